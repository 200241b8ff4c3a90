import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from patchclamp.dictionaries.inference import AmortisedEncoder, fista, flops, omp, optimise


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def counted(work, rows=32, d=8):
    """What torch counts for one row more: what is done once for a decoder drops out."""
    totals = []
    for n in (rows, 2 * rows):
        x = draw(n, d, seed=1)
        with FlopCounterMode(display=False) as counter:
            work(x)
        totals.append(counter.get_total_flops())
    return (totals[1] - totals[0]) / rows


@pytest.mark.parametrize("width", [16, 40])  # by the Gram matrix, and by two products
@pytest.mark.filterwarnings("ignore:.*did not reach")
def test_fista_costs_what_torch_counts(width):
    decoder = draw(width, 8)
    measured = counted(lambda x: fista(decoder, x, 1e-3, tolerance=0, iterations=25))
    assert measured == flops("fista", d=8, width=width, iterations=25)


def test_encoders_and_optimisation_cost_what_torch_counts():
    decoder = draw(16, 8)
    for hidden in ((), (32,), (32, 24)):
        encoder = AmortisedEncoder(decoder, hidden=hidden)
        assert counted(lambda x, encoder=encoder: encoder(x)) == flops("encoder", d=8, width=16, hidden=hidden)
    assert counted(lambda x: optimise(decoder, x, 0.1, steps=7)) == flops("optimise", d=8, width=16, iterations=7)


def test_by_hand():
    assert flops("encoder", d=8, width=16) == 2 * 8 * 16
    # three rounds of 16 correlations; 1, 2, 3 new products and as many atoms summed; a small system
    assert flops("omp", d=8, width=16, k=3) == 3 * 256 + 4 * 8 * (1 + 2 + 3) + (0 + 4) + (2 + 16) + (9 + 36)
    measured = counted(lambda x: omp(draw(16, 8), x, 3, tolerance=0))
    assert 3 * 256 + 4 * 8 * 6 <= measured <= 1.2 * flops("omp", d=8, width=16, k=3)


def test_what_a_method_does_not_take_is_refused():
    with pytest.raises(ValueError, match="expected k"):
        flops("omp", d=8, width=16)
    with pytest.raises(ValueError, match="expected iterations"):
        flops("fista", d=8, width=16, k=3)
    with pytest.raises(ValueError, match="no method"):
        flops("magic", d=8, width=16, iterations=3)
