import pytest
import torch

from patchclamp.store import Rows, held


def test_a_tensor_in_memory_is_read_like_a_store():
    x = torch.randn(103, 4, generator=torch.Generator().manual_seed(0))
    rows = held(x)
    assert isinstance(rows, Rows) and (rows.d, rows.rows) == (4, 103)
    whole = torch.cat(list(rows.batches(10, seed=1)))
    assert not whole.equal(x) and whole.sort(0).values.equal(x.sort(0).values)
    assert torch.cat(list(rows.batches(7, seed=1, start=50))).equal(whole[50:])
    assert not torch.cat(list(rows.batches(10, seed=1, epoch=1))).equal(whole)
    assert [len(b) for b in rows.batches(50)] == [50, 50, 3]
    assert list(rows.batches(50, start=103)) == []
    found = rows.statistics(covariance=True)
    assert torch.allclose(found.covariance, x.double().T.cov(correction=0))


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(3, 2, dtype=torch.long), torch.zeros(0, 2), [[1.0]]])
def test_what_holds_no_rows_is_an_error(wrong):
    with pytest.raises(ValueError, match="floating-point tensor"):
        held(wrong)
