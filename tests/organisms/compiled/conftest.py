from functools import cache

import pytest
import torch

from patchclamp.organisms.compiled.compile import compile
from patchclamp.organisms.compiled.programs import program


@pytest.fixture(scope="session")
def compiled():
    """`compiled(name, compression)`: each network is made once."""
    torch.set_num_threads(1)
    return cache(lambda name, compression=None: compile(program(name), compression=compression))
