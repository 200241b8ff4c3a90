"""What `record` refuses, before anything is written."""

import copy

import pytest

import patchclamp as pc
from patchclamp import store
from patchclamp.sites import SiteError


def record(model, documents, out, **options):
    defaults = {"sites": "resid_post.1", "unit_tokens": 150, "context": 16, "quiet": True}
    return store.record(model, documents, out=out, **(defaults | options))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"dtype": "float8"}, ValueError, "'bfloat16', 'float32', 'int8'"),
        ({"tokens": 0}, ValueError, "at least one row"),
        ({"sites": "pattern.0"}, SiteError, "for each query and key"),
        ({"sites": "logit"}, SiteError, "did you mean 'logits'"),
        ({"sites": []}, ValueError, "needs sites"),
        ({"sites": "module:model.embed_tokens.weight"}, SiteError, "has no module"),
        ({"context": 65}, ValueError, "takes at most 64 tokens"),
        ({"engine": "spark"}, ValueError, "'local', 'torchrun' or 'ray'"),
        ({"workers": 3}, ValueError, "one process, not 3"),
        ({"engine": "torchrun"}, RuntimeError, "torchrun --nproc-per-node"),
        ({"options": {"key": "x"}}, ValueError, "is a local folder"),
        ({"batch_tokens": 0}, ValueError, "at least one token"),
    ],
)
def test_what_cannot_be_recorded_is_told_and_nothing_is_written(model, documents, tmp_path, options, error, says):
    with pytest.raises(error, match=says):
        record(model, documents, tmp_path / "acts", **options)
    assert not (tmp_path / "acts").exists()


def test_what_is_not_finite_is_not_stored(model, documents, tmp_path):
    broken = pc.wrap(copy.deepcopy(model.hf))
    assert len(broken.sites()) > 10  # found while the weights are still numbers
    broken.hf.model.layers[1].mlp.down_proj.weight.data[:] = float("nan")
    with pytest.raises(store.StoreError, match=r"resid_post\.1 is not finite in \d+ of \d+ rows of unit 0"):
        record(broken, documents, tmp_path / "acts", sites=["resid_post.0", "resid_post.1"])
    assert not (tmp_path / "acts/units/00000.json").exists()
