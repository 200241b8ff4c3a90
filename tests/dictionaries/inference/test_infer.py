import pytest
import torch

import patchclamp as pc
from patchclamp.dictionaries import Dictionary, measures
from patchclamp.dictionaries.inference import compare, fista, infer, omp
from patchclamp.organisms import planted


@pytest.fixture(scope="module")
def world():
    return planted.superposition(features=48, width=24, active=3)


@pytest.fixture(scope="module")
def tied(world):
    rows = torch.as_tensor(world.truth().directions[0]).float()
    return Dictionary(rows, torch.zeros(len(rows)), rows, torch.full((24,), 0.5), b_in=torch.full((24,), 0.5),
                      select="topk", k=3)  # fmt: skip


NEEDS = {
    "fista": {"l1": 0.05},
    "ista": {"l1": 0.05},
    "omp": {"k": 4},
    "gradient-pursuit": {"k": 4},
    "optimise": {"l1": 0.05},
    "encoder": {},
}


@pytest.mark.parametrize("method", NEEDS)
def test_every_method_explains_planted_rows_and_better_than_with_random_directions(world, tied, method):
    x = world.sample(300, seed=1).activations + 0.5
    floor = measures.random_dictionary(tied)
    left = [measures.fvu(x, d.decode(infer(d, x, method, **NEEDS[method]))) for d in (tied, floor)]
    assert left[0] < 0.5 * left[1]


@pytest.mark.parametrize("method", ["fista", "omp", "gradient-pursuit", "optimise"])
def test_inference_beats_the_dictionary_s_own_encoder(world, tied, method):
    batch = world.sample(400, seed=1)
    codes = infer(tied, batch.activations + 0.5, method, **NEEDS[method])
    own = infer(tied, batch.activations + 0.5, "encoder")
    assert measures.mcc(codes.dense(), batch.coefficients) > measures.mcc(own.dense(), batch.coefficients) + 0.02
    assert codes.width == 48 and (codes.values >= 0).all()


def test_leading_dimensions_are_kept_and_the_offset_is_taken_off(world, tied):
    x = world.sample(12, seed=1).activations + 0.5
    flat, shaped = infer(tied, x, "omp", k=3), infer(tied, x.reshape(3, 4, 24), "omp", k=3)
    assert shaped.indices.shape == (3, 4, 3) and torch.equal(shaped.indices.reshape(12, 3), flat.indices)
    assert torch.equal(flat.values, infer(tied.W_dec, x - 0.5, "omp", k=3).values)
    shaped = infer(tied, x.reshape(3, 4, 24), "optimise", l1=0.1, iterations=5)
    assert shaped.values.shape[:2] == (3, 4)


def test_a_crosscoder_explains_all_models_at_once(world):
    rows = torch.nn.functional.normalize(torch.randn(30, 12, generator=torch.Generator().manual_seed(0)), dim=1)
    cross = Dictionary(
        rows, torch.zeros(30), rows, torch.zeros(12), select="topk", k=2, shape_in=(2, 6), shape_out=(2, 6)
    )
    x = torch.randn(7, 2, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(infer(cross, x, "omp", k=2).values, omp(rows, x.flatten(1), 2).codes.values)
    assert cross.decode(infer(cross, x, "omp", k=2)).shape == x.shape
    with pytest.raises(ValueError, match=r"\(2, 6\)"):
        infer(cross, x.flatten(1), "omp", k=2)


def test_a_dictionary_of_signed_codes_gets_signed_codes(world):
    rows = torch.as_tensor(world.truth().directions[0]).float()
    signed = Dictionary(rows, torch.zeros(48), rows, torch.zeros(24), select="absolute_topk", k=3)
    x = -world.sample(100, seed=1).activations
    assert (infer(signed, x, "fista", l1=0.05).values < 0).any()
    assert (infer(signed, x, "fista", l1=0.05, signed=False).values >= 0).all()
    assert torch.equal(infer(signed, x, "fista", l1=0.05).dense(), fista(rows, x, 0.05, signed=True).codes.dense())
    with pytest.raises(ValueError, match="no sign"):
        infer(signed, x, "optimise", l1=0.05)


def test_comparison_puts_the_encoder_first_and_the_floor_last(world, tied):
    x = world.sample(300, seed=2).activations + 0.5
    rows = compare(tied, x, k=3)
    assert [row["method"] for row in rows] == ["encoder", "gradient-pursuit", "omp", "omp, random dictionary"]
    assert rows[2]["fvu"] < rows[1]["fvu"] < rows[0]["fvu"] and rows[2]["fvu"] < 0.5 * rows[3]["fvu"]
    assert all(row["l0"] <= 3 for row in rows) and rows[0]["flops"] == 2 * 24 * 48 < rows[1]["flops"] < rows[2]["flops"]


def test_what_a_method_does_not_read_is_refused(tied):
    x = torch.randn(3, 24)
    with pytest.raises(ValueError, match="did you mean 'fista'"):
        infer(tied, x, "fist", l1=0.1)
    with pytest.raises(ValueError, match="fista needs l1"):
        infer(tied, x)
    with pytest.raises(ValueError, match="omp does not read l1"):
        infer(tied, x, "omp", k=3, l1=0.1)
    with pytest.raises(ValueError, match="no encoder"):
        infer(tied.W_dec, x, "encoder")
    with pytest.raises(ValueError, match="explains rows of"):
        infer(tied, x[:, :5], "omp", k=3)
    skip = Dictionary(tied.W_enc, tied.b_enc, tied.W_dec, tied.b_dec, select="topk", k=3, W_skip=torch.zeros(24, 24))
    with pytest.raises(ValueError, match="skip"):
        infer(skip, x, "omp", k=3)


def test_it_is_on_the_face():
    assert pc.dictionaries.infer is infer
