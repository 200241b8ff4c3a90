"""Steering networks over grids: what one regime of a simulation has more of than another, at each place or on average.

    delta = pc.steering.fields.difference(emulator, vortices, laminar, site="module:blocks.2")
    emulator.run({"inputs": frames}, do=[delta.add(0.5)])           # where the vortices were
    emulator.run({"inputs": frames}, do=[delta.dropped().add(0.5)]) # on average over space: at any place of any grid
    delta.resized((64, 64)); delta.cropped((16, 16))                # as it is, on another grid
    pc.steering.random(delta, seed=0)                               # of the same norm: the control

As in Physics Steering in a Physics Foundation Model: the mean activation over files and time in which a feature is
there, less that over those in which it is not: a `Direction` with space, since features come second there, [batch,
feature, ...space]. A network that keeps them last, [batch, place, feature], is steered as one over tokens is.
"""

from jaxtyping import Float
from torch import Tensor

from patchclamp.model import Model
from patchclamp.sites import Site
from patchclamp.steering.direction import Direction, DirectionError

FEWEST = 8
"""Inputs that a mean is taken over; below that it is mostly noise."""


def difference(
    model: Model,
    positive: Float[Tensor, "input ..."],
    negative: Float[Tensor, "input ..."],
    *,
    site: str | Site,
    batch: int = 64,
) -> Direction:
    """Mean activation over `positive` inputs less that over `negative` ones, at every feature and place.

    Inputs are tensors that the model takes one batch at a time. Raises `DirectionError` for fewer than 8 on either side
    and for a site that returns no [batch, feature, ...space].
    """
    values = mean(model, positive, site=site, batch=batch) - mean(model, negative, site=site, batch=batch)
    about = {"model": model.name, "positive": len(positive), "negative": len(negative)}
    return Direction(str(site), values, "difference", about)


def mean(
    model: Model, inputs: Float[Tensor, "input ..."], *, site: str | Site, batch: int = 64
) -> Float[Tensor, "feature *space"]:
    """The mean activation over inputs."""
    if len(inputs) < FEWEST:
        raise DirectionError(f"{len(inputs)} inputs, and a mean of fewer than {FEWEST} is mostly noise")
    total: Tensor | None = None
    for start in range(0, len(inputs), batch):
        found = model.run(inputs[start : start + batch], record=site, stop=True)[site]
        if found.ndim < 3:
            raise DirectionError(f"{site} returns {list(found.shape)}, not [batch, feature, ...space]")
        part = found.double().sum(0).cpu()
        total = part if total is None else total + part
    assert total is not None
    return (total / len(inputs)).float()
