import pytest
import torch

from patchclamp.dictionaries import BatchTopK, Gated, JumpReLU, Matryoshka, ReLU, TopK, part


def test_parts_are_made_by_name():
    assert part("TopK", k=3) == TopK(k=3)
    assert part("ReLU", l1=0.5) == ReLU(l1=0.5)
    assert part("Gated", l0=9) == Gated(l0=9)
    assert part("JumpReLU", l0=9) == JumpReLU(l0=9)
    assert part("BatchTopK", k=3, groups=(8, 16)) == Matryoshka(BatchTopK(k=3), (8, 16))


def test_wrong_names_and_settings_are_refused():
    with pytest.raises(ValueError, match="no part is called 'Topk'; did you mean 'TopK'"):
        part("Topk", k=3)
    with pytest.raises(ValueError, match="TopK is given k; got l0"):
        part("TopK", l0=3)
    with pytest.raises(ValueError, match="ReLU is given l0 or l1; got nothing"):
        part("ReLU")
    with pytest.raises(ValueError, match="growing prefixes"):
        Matryoshka(TopK(k=2), groups=(16, 8))
    with pytest.raises(ValueError, match="l0=-1"):
        JumpReLU(l0=-1)


def test_batch_topk_is_exact_where_one_row_takes_all_of_its_candidates():
    pre = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    pre[2] += 5
    active, values = BatchTopK(k=3).select(pre)
    expected = pre.flatten().topk(18)
    assert torch.equal(values.sort().values, expected.values.sort().values)
    assert torch.equal(active.row * 40 + active.latents, expected.indices.sort().values)
    assert torch.equal(pre[active.row, active.latents], values)
