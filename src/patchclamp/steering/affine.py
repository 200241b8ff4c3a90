"""Steering by affine maps, one for each unit of each layer, that carry one text's activations to another's.

    maps = pc.steering.affine.trained(model, source, target, sites="resid_post.*")      # LinEAS: all layers at once
    maps = pc.steering.affine.closed_form(model, source, target, sites="resid_post.*")  # LinAcT: layer by layer
    model.generate(prompts, do=maps.apply(strength=0.8), max_new_tokens=16)

A unit z becomes w z + b. What is asked is that its distribution over prompts (mean over tokens) be the target's, in the
1-D Wasserstein distance; no prompt is paired with another. The closed form fits sorted to sorted values (Rodriguez et
al. 2024, arXiv:2410.23054); training moves all maps at once, each seeing what earlier ones do, and with a sparse group
lasso leaves most units alone (Rodriguez et al. 2025, arXiv:2503.10679).

A prompt's first token is neither averaged nor mapped: it says nothing of the text, and attention rests on its state.
Source and target should differ in nothing else than what is wanted: of few prompts, the maps learn any other difference
as well.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.interventions import Intervention, edit
from patchclamp.model import Model
from patchclamp.sites import Site
from patchclamp.steering.direction import DirectionError
from patchclamp.views.terminal import track

FEWEST = 8
TEXT = slice(1, None)


@dataclass(frozen=True, eq=False)
class Maps:
    """`weights` and `biases` [d] by site: z becomes weight * z + bias."""

    weights: Mapping[str, Float[Tensor, "d"]]
    biases: Mapping[str, Float[Tensor, "d"]]
    fit: str = ""

    def apply(self, strength: float = 1.0) -> list[Intervention]:
        """(1 - strength) z + strength (w z + b) at every site and token but the first; strength 0 changes no bit."""
        return [
            edit(site, _map(1 + strength * (self.weights[site] - 1), strength * self.biases[site]), pos=TEXT)
            for site in self.weights
        ]

    @property
    def changed(self) -> float:
        """Share of units that are not left exactly as they are."""
        moved = [(self.weights[site] != 1) | (self.biases[site] != 0) for site in self.weights]
        return float(torch.cat(moved).float().mean())


def _map(weight: Tensor, bias: Tensor) -> Callable[..., Tensor]:
    return lambda z, **_: z * weight.to(z) + bias.to(z)


def wasserstein(a: Float[Tensor, "row d"], b: Float[Tensor, "row d"]) -> Float[Tensor, "d"]:
    """Squared 2-Wasserstein distance of each column's distribution: mean squared difference of sorted values.

    >>> wasserstein(torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [2.0]]))
    tensor([4.])
    """
    if a.shape != b.shape:
        raise DirectionError(f"sorted values are compared one to one: as many rows in both, not {len(a)} and {len(b)}")
    return (a.sort(0).values - b.sort(0).values).square().mean(0)


def fitted(source: Float[Tensor, "row d"], target: Float[Tensor, "row d"]) -> tuple[Tensor, Tensor]:
    """Weight and bias [d] of the least-squares line from each column's sorted values to the target's.

    A column that is constant keeps weight 1.
    """
    if source.shape != target.shape:
        raise DirectionError(
            f"sorted values are fitted one to one: as many rows in both, not {len(source)} and {len(target)}"
        )
    a, b = source.sort(0).values, target.sort(0).values
    centred = a - a.mean(0)
    spread = centred.square().sum(0)
    weight = torch.where(spread > 0, (centred * (b - b.mean(0))).sum(0) / spread.clamp_min(1e-30), 1.0)
    return weight, b.mean(0) - weight * a.mean(0)


def closed_form(
    model: Model, source: Sequence[str], target: Sequence[str], *, sites: "str | Site" = "resid_post.*"
) -> Maps:
    """LinAcT: site by site in the order of the forward pass, each fitted on what the maps before it leave."""
    wanted = pooled(model, target, sites)
    _same(source, target)
    weights: dict[str, Tensor] = {}
    biases: dict[str, Tensor] = {}
    for site in track(list(wanted), "fitting maps"):
        now = pooled(model, source, site, Maps(weights, biases).apply())[site]
        weights[site], biases[site] = fitted(now, wanted[site])
    return Maps(weights, biases, "LinAcT")


def trained(
    model: Model,
    source: Sequence[str],
    target: Sequence[str],
    *,
    sites: "str | Site" = "resid_post.*",
    sparse: float = 0.0,
    groups: float = 0.0,
    steps: int = 100,
    rate: float = 0.1,
) -> Maps:
    """LinEAS: the maps that make the sum over sites and units of Wasserstein distances least, trained end to end.

    What is trained of a unit is w, about the source's mean, and how far that mean moves, in standard deviations: w and
    b themselves go together and differ in size, and gradient descent gets half as far. `sparse` weighs the sum of both
    and `groups` the Euclidean norm of a site's whole map, by proximal steps, so that units and sites are left exactly
    as they are. Nothing is drawn at random.
    """
    wanted, clean = pooled(model, target, sites), pooled(model, source, sites)
    _same(source, target)
    tokens = model.tokens(list(source))
    # By site [2, d]: departure of the weight from 1, and of the mean.
    moves = {site: torch.zeros(2, rows.shape[1], requires_grad=True) for site, rows in wanted.items()}
    optimizer = torch.optim.Adam(list(moves.values()), lr=rate)
    with torch.enable_grad():
        for step in track(range(steps), "training maps"):
            now = rate * (1 - step / steps)
            optimizer.param_groups[0]["lr"] = now
            do = [edit(site, _map(*_line(move, clean[site])), pos=TEXT) for site, move in moves.items()]
            with model.under(do, record=list(moves)) as run:
                model.hf(input_ids=tokens.ids.to(model.device), attention_mask=tokens.mask.to(model.device).long())
            found = {site: _pool(run[site], tokens.mask) for site in moves}
            loss = torch.stack([wasserstein(found[site], rows.to(found[site])).sum() for site, rows in wanted.items()])
            grads = torch.autograd.grad(loss.sum(), list(moves.values()))
            for move, grad in zip(moves.values(), grads, strict=True):
                move.grad = grad
            optimizer.step()
            _shrink(optimizer, now, sparse, groups)
    lines = {site: _line(move.detach(), clean[site]) for site, move in moves.items()}
    return Maps({site: line[0] for site, line in lines.items()}, {s: line[1] for s, line in lines.items()}, "LinEAS")


def distance(
    model: Model, maps: Maps | None, source: Sequence[str], target: Sequence[str], sites: "str | Site"
) -> float:
    """Sum over sites and units of the Wasserstein distance from the source under the maps to the target."""
    now = pooled(model, source, sites, maps.apply() if maps else ())
    return sum(float(wasserstein(now[site], rows).sum()) for site, rows in pooled(model, target, sites).items())


def pooled(
    model: Model, texts: Sequence[str], sites: "str | Site", do: Sequence[Intervention] = ()
) -> dict[str, Float[Tensor, "text d"]]:
    """The mean over each text's tokens but the first at every site, as the model goes on with it under `do`."""
    if len(texts) < FEWEST:
        raise DirectionError(f"{len(texts)} texts, and a distribution over fewer than {FEWEST} is mostly noise")
    run = model.run(list(texts), record=sites, do=do, stop=True)
    assert run.tokens is not None
    short = [text for text, count in zip(texts, run.tokens.mask.sum(1).tolist(), strict=True) if count < 2]
    if short:
        raise DirectionError(f"the text {short[0]!r} is one token long, and the first token is left out")
    return {str(site): _pool(run[site], run.tokens.mask).float().cpu() for site in model.sites(sites)}


def _pool(states: Tensor, mask: Tensor) -> Tensor:
    real = (mask & (mask.cumsum(1) > 1)).to(states)[..., None]
    return (states * real).sum(1) / real.sum(1)


def _line(move: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias [d] of what is trained [2, d]; a unit that is constant has no unit to count in but 1."""
    spread = source.std(0)
    return 1 + move[0], torch.where(spread > 0, spread, 1.0) * move[1] - move[0] * source.mean(0)


def _same(source: Sequence[str], target: Sequence[str]) -> None:
    if len(source) != len(target):
        raise DirectionError(f"source and target need as many texts, not {len(source)} and {len(target)}")


def _shrink(optimizer: torch.optim.Adam, rate: float, sparse: float, groups: float) -> None:
    """The proximal step of the sparse group lasso, in Adam's metric: soft thresholds, then each site's norm.

    Adam's steps are as long whatever the gradient, so that a threshold that did not shrink with the gradient's size
    would keep every unit or none.
    """
    with torch.no_grad():
        for move in optimizer.param_groups[0]["params"]:
            state = optimizer.state[move]
            size = (state["exp_avg_sq"] / (1 - optimizer.defaults["betas"][1] ** float(state["step"]))).sqrt() + 1e-8
            move.copy_(move.sign() * (move.abs() - rate * sparse / size).clamp_min(0))
            norm, step = float(move.norm()), rate * groups / float(size.square().mean().sqrt())
            if norm > 0:
                move.mul_(max(0.0, 1 - step / norm))
