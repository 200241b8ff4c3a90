import pytest

import patchclamp as pc


@pytest.fixture(scope="session")
def tales():
    return pc.load("organism:tales")


@pytest.fixture(scope="session")
def documents():
    return pc.organisms.truth("tales").documents(120, seed=11)
