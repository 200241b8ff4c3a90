"""Whether latents separate attributes: exchange some of them between two activations, and one attribute should change.

    attributes = linear(data)                        # or [Attribute(name, values, read), ...]: read may run a model
    exchange(dictionary, data.x, attributes)         # {"cause": [attribute], "isolation": ..., "score": ...}
    rotation(data.x, attributes)                     # the skyline: directions that were learned for it

RAVEL (Huang et al. 2024, arXiv:2402.17700) with a learned binary mask over latents, as in Karvonen et al. 2025
(arXiv:2503.09532); the skyline is distributed alignment search, with a mask on a learned rotation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchclamp.dictionaries import Dictionary
from patchclamp.evaluation import heads
from patchclamp.evaluation.labelled import Labelled, latents, shuffled

if TYPE_CHECKING:
    from patchclamp.model import Model

Read = Callable[[Float[Tensor, "pair d"], Int[Tensor, " pair"]], Float[Tensor, "pair value"]]
"""What is said of the attribute when activations stand in place of those of these rows: logits of its values."""


@dataclass(frozen=True, eq=False)
class Attribute:
    """One thing that activations know: its value in each row, and what reads it out of them, with gradients."""

    name: str
    values: Int[Tensor, " row"]
    read: Read


def linear(data: Labelled) -> list[Attribute]:
    """Each concept as an attribute of two values, read by a linear head."""
    probes = heads.fit(data)

    def read(concept: int) -> Read:
        def said(x: Tensor, rows: Tensor) -> Tensor:
            odds = x @ probes.weight[concept].to(x) + probes.bias[concept].to(x)
            return torch.stack([torch.zeros_like(odds), odds], -1)

        return said

    return [Attribute(name, data.holds[:, i].long(), read(i)) for i, name in enumerate(data.names)]


def by_model(
    model: "Model",
    site: str,
    prompts: Sequence[str],
    positions: Sequence[int],
    choices: Sequence[int],
) -> Read:
    """A reader that asks a model: row i's activation is put at `positions[i]` of `prompts[i]`, and the logits of the
    tokens `choices` after the last token are the answer.
    """
    from patchclamp.interventions import edit

    tokens = model.tokens(list(prompts))
    ends = tokens.mask.sum(1) - 1
    where = torch.as_tensor(positions)

    def read(x: Tensor, rows: Tensor) -> Tensor:
        each = torch.arange(len(rows))

        def put(now: Tensor) -> Tensor:
            return now.index_put((each.to(now.device), where[rows].to(now.device)), x.to(now))

        ids, mask = tokens.ids[rows].to(model.device), tokens.mask[rows].to(model.device)
        with model.under(do=[edit(site, put)]):
            logits = model.hf(input_ids=ids, attention_mask=mask.long()).logits
        return logits[each, ends[rows]][:, list(choices)]

    return read


def exchange(
    dictionary: Dictionary,
    x: Float[Tensor, "row d"],
    attributes: Sequence[Attribute],
    *,
    error: bool = False,
    pairs: int = 256,
    steps: int = 100,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Cause, isolation and their mean for each attribute, [attribute], on pairs of held-out rows.

    A mask over latents is learned for each attribute: those in it are taken from the source row, the others stay the
    base row's, so that the attribute reads as the source's (cause) and every other one as the base's (isolation; of
    pairs that differ in it). Taking nothing or everything scores 0.5. The dictionary's error is left out, as in the
    paper, unless `error`.
    """
    with torch.no_grad():
        codes = latents(dictionary, x).double()
        decoder = torch.nn.functional.normalize(dictionary.W_dec.double(), dim=-1)
        kept = x.double() if error else dictionary(x).double()
    mask = torch.zeros(dictionary.width, dtype=torch.float64)

    def mixed(base: Tensor, source: Tensor, share: Tensor, learned: list[Tensor]) -> Tensor:
        return kept[base] + (share * (codes[source] - codes[base])) @ decoder

    return _scores(mixed, mask, [], attributes, len(x), pairs, steps, seed)


def rotation(
    x: Float[Tensor, "row d"],
    attributes: Sequence[Attribute],
    *,
    pairs: int = 256,
    steps: int = 100,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """The same with a rotation of the activation, learned along with the mask, in place of latents: what can be had."""
    rows = x.double()
    start = torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], generator=_generator(seed), dtype=torch.float64))[0]

    def mixed(base: Tensor, source: Tensor, share: Tensor, learned: list[Tensor]) -> Tensor:
        turned = torch.linalg.qr(learned[0])[0]
        return rows[base] + (share * ((rows[source] - rows[base]) @ turned)) @ turned.T

    return _scores(mixed, torch.zeros(x.shape[1], dtype=torch.float64), [start], attributes, len(x), pairs, steps, seed)


Mixed = Callable[[Tensor, Tensor, Tensor, list[Tensor]], Tensor]


def _scores(
    mixed: Mixed,
    mask: Float[Tensor, " width"],
    learned: list[Tensor],
    attributes: Sequence[Attribute],
    rows: int,
    pairs: int,
    steps: int,
    seed: int,
) -> dict[str, np.ndarray]:
    if len(attributes) < 2:
        raise ValueError("an attribute is isolated from others: give at least two")
    order = shuffled(rows, seed)
    found: dict[str, list[float]] = {"cause": [], "isolation": [], "score": []}
    for number, attribute in enumerate(attributes):
        learn = _pairs(attribute, order[: rows // 2], pairs, seed)
        test = _pairs(attribute, order[rows // 2 :], pairs, seed + 1)
        chosen, rest = _learn(mixed, mask, learned, attributes, number, learn, steps)
        with torch.no_grad():
            x = mixed(*test, chosen, rest)
            said = [other.read(x, test[0]).argmax(-1).cpu() for other in attributes]
        cause = float((said[number] == attribute.values[test[1]]).double().mean())
        kept = []
        for i, other in enumerate(attributes):
            differ = other.values[test[0]] != other.values[test[1]]
            if i != number and bool(differ.any()):
                kept.append(float((said[i] == other.values[test[0]])[differ].double().mean()))
        isolation = float(np.mean(kept)) if kept else np.nan
        for name, value in zip(found, (cause, isolation, (cause + isolation) / 2), strict=True):
            found[name].append(value)
    return {name: np.array(values) for name, values in found.items()}


def _learn(
    mixed: Mixed,
    mask: Tensor,
    learned: list[Tensor],
    attributes: Sequence[Attribute],
    number: int,
    pairs: tuple[Tensor, Tensor],
    steps: int,
) -> tuple[Tensor, list[Tensor]]:
    """The mask (0 or 1) for one attribute, and what was learned with it; its temperature falls from 1 to 0.01."""
    trained = [tensor.clone().requires_grad_() for tensor in (mask, *learned)]
    optimiser = torch.optim.Adam(trained, lr=0.1)
    base, source = pairs
    for step in range(steps):
        with torch.enable_grad():
            share = torch.sigmoid(trained[0] / 0.01 ** (step / steps))
            x = mixed(base, source, share, trained[1:])
            loss = x.new_zeros(())
            for i, attribute in enumerate(attributes):
                target = attribute.values[source if i == number else base]
                asked = torch.nn.functional.cross_entropy(attribute.read(x, base).to(x), target.to(x.device))
                loss = loss + (asked if i == number else asked / (len(attributes) - 1))
            gradients = torch.autograd.grad(loss, trained, allow_unused=True)
        for tensor, gradient in zip(trained, gradients, strict=True):
            tensor.grad = gradient
        optimiser.step()
    return (trained[0].detach() > 0).to(mask), [tensor.detach() for tensor in trained[1:]]


def _pairs(attribute: Attribute, rows: Int[Tensor, " some"], pairs: int, seed: int) -> tuple[Tensor, Tensor]:
    """Base and source rows that differ in the attribute; every value is as often a base as the data allow."""
    generator = _generator(seed)
    values = attribute.values[rows]
    kinds, counts = values.unique(return_counts=True)
    if len(kinds) < 2:
        raise ValueError(f"{attribute.name} has one value in all of {len(rows)} rows: nothing can be exchanged")
    weight = (1 / counts.double())[torch.searchsorted(kinds, values)]
    base = torch.multinomial(weight, pairs, replacement=True, generator=generator)
    allowed = (values[base][:, None] != values[None, :]) * weight
    source = torch.multinomial(allowed, 1, generator=generator).squeeze(1)
    return rows[base], rows[source]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 2654435761 + 0xAE1) % 2**63)
