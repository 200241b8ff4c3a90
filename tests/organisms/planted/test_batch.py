import pytest
import torch

from patchclamp.organisms import planted

BATCH = planted.circles().sample(64, seed=2)


def test_padded_codes_decode_to_the_same_activations():
    indices, values = BATCH.padded()
    assert indices.shape == values.shape == (64, int(BATCH.fires.sum(1).max()))
    dense = torch.zeros(64, BATCH.features).scatter_add_(1, indices, values)
    assert torch.equal(dense, BATCH.coefficients)


def test_dense_views_agree():
    assert torch.equal(BATCH.fires, BATCH.coefficients > 0)
    assert torch.equal(BATCH.coefficients[BATCH.rows, BATCH.indices], BATCH.values)


def test_a_cut_is_the_same_rows():
    part = BATCH[10:30]
    assert (len(part), part.start) == (20, 10)
    assert torch.equal(part.coefficients, BATCH.coefficients[10:30])
    assert torch.equal(part.activations, BATCH.activations[10:30])
    assert len(BATCH[5:5]) == 0
    assert BATCH[5:5].padded()[0].shape == (0, 0)
    with pytest.raises(TypeError, match="cut by rows"):
        BATCH[3]


def test_every_tensor_moves():
    moved = BATCH.to("meta")
    assert {moved.activations.device.type, moved.values.device.type, moved.angles.device.type} == {"meta"}
