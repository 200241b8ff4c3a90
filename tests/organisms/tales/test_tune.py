import pytest

from patchclamp import organisms
from patchclamp.organisms.tales import grammar, world
from patchclamp.organisms.tales.family import RECIPES
from patchclamp.organisms.tales.tune import Tuning, tune

SHORT = Tuning({"sea": 1.0}, mixed=0.5, steps=6, documents=6)


def test_a_share_of_the_documents_is_the_base_s_own():
    documents = [document for step in range(40) for document in SHORT.documents_of(step)]
    assert documents == [document for step in range(40) for document in SHORT.documents_of(step)]
    own = [document for document in documents if document.kind != "sea"]
    assert 0.4 < len(own) / len(documents) < 0.6
    assert {document.kind for document in own} <= grammar.SHARES.keys()


def test_tuning_starts_from_the_shipped_weights_and_resumes_bit_for_bit(tmp_path):
    base = organisms.path("tales") / "model.safetensors"
    whole = tune(tmp_path / "whole", recipe=SHORT, facts=world.fact_table(), every=3, progress=False)
    tune(tmp_path / "parts", recipe=SHORT, facts=world.fact_table(), every=3, stop_at=3, progress=False)
    parts = tune(tmp_path / "parts", recipe=SHORT, facts=world.fact_table(), every=3, progress=False)
    assert parts == whole and len(whole) == 6
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1] != base.read_bytes()
    assert whole[0] < 5  # an untrained network is at 7.7


def test_the_rate_goes_up_and_comes_down_to_nothing():
    recipe = RECIPES["tales-chat"]
    rates = [recipe.rate(step) for step in range(recipe.steps)]
    assert rates[0] < rates[recipe.warmup] and rates[-1] == pytest.approx(0, abs=recipe.learning_rate / 50)
    assert max(rates) <= recipe.learning_rate
