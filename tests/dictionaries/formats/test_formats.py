"""Every format gives back what was written, computing the same; bench/formats.py asks the libraries themselves."""

import pytest
import torch

from patchclamp.dictionaries import FORMATS, Dictionary, load

WIDTH, D = 20, 6


def dictionary(select="threshold", k=None, threshold=0.0, centred=False, skip=False, d_out=D, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    b_dec = draw(d_out)
    return Dictionary(
        draw(WIDTH, D),
        draw(WIDTH),
        draw(WIDTH, d_out),
        b_dec,
        b_in=b_dec if centred else draw(D),
        select=select,
        k=k,
        threshold=threshold,
        W_skip=draw(D, d_out) if skip else None,
        metadata={"model_name": "tiny", "hook_name": "blocks.0.hook_resid_post"},
    )


KINDS = {
    "relu": {},
    "relu, centred": {"centred": True},
    "threshold": {"threshold": 0.7},
    "threshold, centred": {"threshold": 0.7, "centred": True},
    "topk": {"select": "topk", "k": 3},
    "topk, centred": {"select": "topk", "k": 3, "centred": True},
    "absolute topk": {"select": "absolute_topk", "k": 3},
    "groupmax": {"select": "groupmax", "k": 5},
    "transcoder": {"d_out": 4},
    "skip transcoder": {"threshold": 0.5, "skip": True},
    "skip transcoder, topk": {"select": "topk", "k": 3, "skip": True},
}
HAS = {
    "patchclamp": set(KINDS),
    "saelens": set(KINDS) - {"groupmax", "skip transcoder, topk"},
    "dictionary_learning": {name for name in KINDS if name.startswith(("relu", "threshold", "topk"))},
    "sparsify": {"topk", "topk, centred", "groupmax", "skip transcoder, topk"},
    "gemma_scope": {"relu", "relu, centred", "threshold", "threshold, centred", "transcoder"},
    "gemma_scope_2": {"relu", "relu, centred", "threshold", "threshold, centred", "transcoder", "skip transcoder"},
    "circuit_tracer": {"relu", "relu, centred", "threshold", "threshold, centred", "transcoder", "skip transcoder"},
    "itda": set(),
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_computes_the_same_when_read(format, kind, tmp_path):
    written = dictionary(**KINDS[kind])
    if kind not in HAS[format]:
        with pytest.raises(ValueError, match="has no dictionary with"):
            written.save(tmp_path, format)
        return
    written.save(tmp_path, format)
    read = load(tmp_path)
    x = torch.randn(50, D, generator=torch.Generator().manual_seed(1)) * 2
    assert torch.allclose(read.encode(x).dense(), written.encode(x).dense(), atol=1e-5)
    assert torch.allclose(read(x), written(x), atol=1e-4)
    if format == "patchclamp":
        assert read.metadata == written.metadata and read.config() == written.config()


def test_a_crosscoder_is_ours_alone(tmp_path):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    cross = Dictionary(draw(8, 6), draw(8), draw(8, 6), draw(6), shape_in=(2, 3), shape_out=(2, 3))
    assert load(cross.save(tmp_path / "ours")).shape_in == (2, 3)
    for format in set(FORMATS) - {"patchclamp"}:
        with pytest.raises(ValueError, match="several models or layers"):
            cross.save(tmp_path / format, format)


def test_what_is_not_known_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no dictionary that is known \(no such folder\)"):
        load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="there are patchclamp, saelens"):
        dictionary().save(tmp_path, "sae")
    folder = dictionary().save(tmp_path / "s", "saelens")
    config = (folder / "cfg.json").read_text()
    (folder / "cfg.json").write_text(config.replace('"standard"', '"temporal"'))
    with pytest.raises(ValueError, match="architecture 'temporal' is not known"):
        load(folder)
    (folder / "cfg.json").write_text(
        config.replace('"normalize_activations": "none"', '"normalize_activations": "layer_norm"')
    )
    with pytest.raises(ValueError, match="fold it in SAELens first"):
        load(folder)


def test_hugging_face_s_mixin_saves_and_loads(tmp_path):
    written = dictionary(threshold=0.3)
    written.save_pretrained(tmp_path)
    read = Dictionary.from_pretrained(str(tmp_path))
    assert all(
        torch.equal(a, b) for a, b in zip(written.state_dict().values(), read.state_dict().values(), strict=True)
    )
