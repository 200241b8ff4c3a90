import random

import pytest

from patchclamp.organisms.tales import grammar, vocabulary


@pytest.fixture(scope="session")
def tokenizer():
    """Built from the grammar, as training builds it."""
    return vocabulary.build()


@pytest.fixture(scope="session")
def many():
    """Documents of every stage of training, and of each kind that only siblings see."""
    rng = random.Random(54321)
    found = [grammar.document(rng) for _ in range(10_000)]
    found += [grammar.document(rng, shares=shares) for shares in grammar.STAGES.values() for _ in range(1_000)]
    return found + [grammar.document(rng, kind) for kind in grammar.KINDS for _ in range(300)]


@pytest.fixture(scope="session")
def of(many):
    def of(kind):
        found = [document for document in many if document.kind == kind]
        assert len(found) >= 300
        return found

    return of
