import pytest
import torch

import patchclamp as pc
from patchclamp.organisms.toys import superposition as toys

NAMES = [toys.FAMILY + case for case in toys.TOYS]


def shipped(name):
    model = pc.load(f"organism:{name}").hf
    return model.encoder.weight.detach().double(), model.bias.detach().double()


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_model_is_at_the_known_optimum(name):
    toy, best = toys.TOYS[name.removeprefix(toys.FAMILY)], toys.optimum(name)
    weight, bias = shipped(name)
    loss = toys.exact_loss(toy)(weight, bias).item()
    assert best.loss * 0.999 <= loss <= best.loss * 1.01
    assert pc.organisms.recipe(name)["exact_loss"] == pytest.approx(loss, rel=1e-3)
    norms = weight.norm(dim=0)
    kept = [i for i in range(toy.features) if norms[i] > 0.1]
    assert len(kept) == len(best.represented)
    known = best.weight[:, best.represented].norm(dim=0)
    torch.testing.assert_close(norms[kept].sort().values, known.sort().values, atol=0.05, rtol=0)
    found = torch.nn.functional.normalize(weight[:, kept], dim=0)
    cosines = (found.T @ found).flatten().sort().values
    torch.testing.assert_close(cosines, best.cosines.flatten().sort().values, atol=0.05, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_no_descent_from_anywhere_beats_the_optimum(name):
    toy, best = toys.TOYS[name.removeprefix(toys.FAMILY)], toys.optimum(name)
    loss_at = toys.exact_loss(toy, points=128)
    generator = torch.Generator().manual_seed(1)
    reached = []
    for _ in range(3):
        weight = (torch.randn(toy.hidden, toy.features, generator=generator).double() * 0.7).requires_grad_()
        bias = torch.zeros(toy.features).double().requires_grad_()
        descent = torch.optim.LBFGS([weight, bias], max_iter=150, line_search_fn="strong_wolfe", tolerance_change=1e-12)

        def closure(descent=descent, weight=weight, bias=bias):
            descent.zero_grad()
            loss = loss_at(weight, bias) * 100
            loss.backward()
            return loss.item()

        descent.step(closure)
        reached.append(loss_at(weight, bias).item())
    assert min(reached) >= best.loss * 0.99


def test_the_order_of_kept_features_is_that_of_their_importance():
    for case, kept in (("5-2-dense", 2), ("5-2-medium", 4), ("20-5-linear", 5)):
        norms = shipped(toys.FAMILY + case)[0].norm(dim=0)
        assert norms[:kept].min() > 0.9
        assert norms[kept:].max() < 0.1


def test_known_geometries():
    pentagon = toys.optimum("toy-superposition:5-2-sparse").cosines
    angles = torch.rad2deg(pentagon.clamp(-1, 1).arccos()).round().unique().tolist()
    assert angles == [0, 72, 144]
    octahedron = toys.optimum("toy-superposition:6-3-sparse").cosines.round(decimals=3)
    assert octahedron.abs().sum(1).tolist() == [2] * 6  # itself and its antipode
    assert toys.optimum("toy-superposition:5-2-medium").represented == [0, 1, 2, 3]


def test_losses_that_are_known_in_closed_form():
    # Two antipodal features of norm 1 confuse each other where both are active: min(x, y)^2 each, 1/3 in the mean.
    toy, p = toys.TOYS["4-2-sparse"], 0.05
    weight, _ = toys._geometry(toy)
    assert toys.exact_loss(toy)(weight, torch.zeros(4).double()).item() == pytest.approx(2 * p**2 / 3, rel=2e-3)
    dense = toys.optimum("toy-superposition:5-2-dense")
    assert dense.loss == pytest.approx((0.7**2 + 0.7**3 + 0.7**4) / 12)
    assert toys.exact_loss(toys.TOYS["5-2-dense"])(dense.weight, dense.bias).item() == pytest.approx(
        dense.loss, rel=1e-3
    )


@pytest.mark.parametrize("case", ["5-2-sparse", "20-5-linear"])
def test_the_exact_loss_is_the_mean_of_the_models_own(case):
    toy, truth = toys.TOYS[case], pc.organisms.truth(toys.FAMILY + case)
    weight, bias = shipped(toys.FAMILY + case)
    x, y = truth.sample(400_000, seed=5)
    assert torch.equal(x, y)
    model = pc.load(f"organism:{toys.FAMILY}{case}").hf
    with torch.no_grad():
        losses = (x - model(x).logits).square() @ toy.importance.float()
        assert model(x, labels=x).loss.item() == pytest.approx(losses.mean().item(), rel=1e-4)
    error = losses.std().item() / len(losses) ** 0.5
    assert toys.exact_loss(toy)(weight, bias).item() == pytest.approx(losses.mean().item(), abs=5 * error)


def test_truth_names_the_directions():
    name = "toy-superposition:5-2-sparse"
    truth, (weight, _) = pc.organisms.truth(name), shipped(name)
    assert list(truth.features) == [f"feature.{i}" for i in range(5)]
    for i, direction in enumerate(truth.features.values()):
        assert torch.equal(direction.double(), weight[:, i])
    x, _ = truth.sample(50_000)
    assert (x > 0).float().mean().item() == pytest.approx(truth.firing["feature.0"], rel=0.05)
    run = pc.load(f"organism:{name}").run({"inputs": x[:10]}, record="module:encoder")
    torch.testing.assert_close(run["module:encoder"].double(), x[:10].double() @ weight.T)


def test_an_interrupted_recipe_goes_on_with_the_same_bits(tmp_path, monkeypatch):
    name, whole, broken = "toy-superposition:5-2-sparse", tmp_path / "whole", tmp_path / "broken"
    losses = toys.train(name, whole, steps=40, progress=False)
    stop_after(monkeypatch, toys, 23)
    toys.train(name, broken, steps=40, progress=False)
    monkeypatch.undo()
    assert toys.train(name, broken, steps=40, progress=False) == losses
    assert (whole / "model.safetensors").read_bytes() == (broken / "model.safetensors").read_bytes()
    assert toys.train(name, tmp_path / "other", seed=1, steps=40, progress=False) != losses


def stop_after(monkeypatch, module, steps):
    fit = module.fit
    monkeypatch.setattr(module, "fit", lambda *args, **kwargs: fit(*args, stop_at=steps, **kwargs))
