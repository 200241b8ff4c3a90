"""Supervised dictionaries: latents for the values of attributes that you name, and edits that any dictionary can make
(Makelov, Lange and Nanda 2024, arXiv:2405.08366).

    x = activations(model, task.clean, "resid_post.2", task.positions, mask=task.mask)
    found = fit(x, {"IO": names, "S": others, "order": order})        # x ~ mean + u[IO = name] + u[S = other] + ...
    found.explain(values); found.edit(x, {"IO": old}, {"IO": new})
    logits_with(model, task.clean, "resid_post.2", task.positions, edited, mask=task.mask)

    sparse_edit(sae, x, target, k=4)                                  # the same with 4 latents of any dictionary
    detector_f1(sae.encode(x), names)                                 # which latent says which value

Three questions to any dictionary: does its reconstruction do the model's work (approximation), does an edit through it
change what it should (control), do its latents say the values of the attributes (interpretability).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchclamp import interventions
from patchclamp.dictionaries.codes import Codes
from patchclamp.dictionaries.dictionary import Dictionary
from patchclamp.model import Model

Values = Mapping[str, Int[Tensor, " row"]]
"""The value of each attribute in each row, as numbers from 0."""


@dataclass(frozen=True, eq=False)
class Supervised:
    """A direction for each value of each attribute, as a deviation from the mean; `counts` are the rows of each."""

    mean: Float[Tensor, " d"]
    vectors: Mapping[str, Float[Tensor, "value d"]]
    counts: Mapping[str, Int[Tensor, " value"]]

    @property
    def W_dec(self) -> Float[Tensor, "width d"]:
        """All directions under each other, in the order of the attributes."""
        return torch.cat(list(self.vectors.values()))

    def codes(self, values: Values) -> Codes:
        """The latents of each row: one of each attribute that is given, with value 1. ValueError on a value that `fit`
        has not seen.
        """
        first, indices = 0, []
        for name, counts in self.counts.items():
            if name in values:
                self._seen(name, values[name])
                indices.append(values[name] + first)
            first += len(counts)
        unknown = [name for name in values if name not in self.counts]
        if unknown or not indices:
            raise ValueError(f"attributes {unknown or 'none'}: there are {', '.join(self.counts)}")
        chosen = torch.stack(indices, 1)
        return Codes(chosen, torch.ones(chosen.shape, dtype=self.mean.dtype, device=chosen.device), first)

    def explain(self, values: Values) -> Float[Tensor, "row d"]:
        """The activation that these values ask for; attributes that are not given are left at the mean."""
        codes = self.codes(values)
        return self.mean + self.W_dec[codes.indices].sum(1)

    def edit(self, x: Float[Tensor, "row d"], before: Values, after: Values) -> Float[Tensor, "row d"]:
        """x with the values `after` in place of `before`: what it holds besides stays."""
        if before.keys() != after.keys():
            raise ValueError(
                f"an edit takes {', '.join(before)} off and puts {', '.join(after)} in: give the same ones"
            )
        return x + (self.explain(after) - self.explain(before)).to(x)

    def _seen(self, name: str, values: Int[Tensor, " row"]) -> None:
        counts = self.counts[name]
        fits = (values >= 0) & (values < len(counts))
        new = values[~fits | (counts[values.where(fits, 0)] == 0)].unique().tolist()
        if new:
            raise ValueError(f"values {new[:8]} of {name} were in no row that this dictionary was fitted to")


def fit(
    x: Float[Tensor, "row d"], values: Values, method: Literal["least squares", "means"] = "least squares"
) -> Supervised:
    """Directions for the values of the attributes.

    "least squares" minimises |x - mean - sum of directions|^2 over all attributes at once; "means" takes E[x | value] -
    E[x] for each, which is the same where attributes are independent and balanced, and else counts twice what two
    attributes share. Directions of an attribute average to zero over the rows.
    """
    if method not in ("least squares", "means"):
        raise ValueError(f"method={method!r}: 'least squares' or 'means'")
    if not values:
        raise ValueError("fit needs at least one attribute")
    for name, value in values.items():
        if value.shape != (len(x),) or bool((value < 0).any()):
            raise ValueError(f"{name}: expected {len(x)} numbers from 0, one a row; got shape {tuple(value.shape)}")
    centred = x.double() - x.double().mean(0)
    hot = {name: torch.nn.functional.one_hot(value.long()).double() for name, value in values.items()}
    counts = {name: one.sum(0) for name, one in hot.items()}
    if method == "means":
        vectors = {name: (one.T @ centred) / counts[name].clamp_min(1)[:, None] for name, one in hot.items()}
    else:
        # Columns of an attribute sum to one, so that only differences are determined: the least solution is taken
        # (gelsd), and then the one whose mean over the rows is zero.
        design = torch.cat([one - one.mean(0) for one in hot.values()], 1)
        solved = torch.linalg.lstsq(design.cpu(), centred.cpu(), driver="gelsd").solution.to(x.device)
        sizes = [one.shape[1] for one in hot.values()]
        vectors = dict(zip(hot, solved.split(sizes), strict=True))
        vectors = {name: one - hot[name].mean(0) @ one for name, one in vectors.items()}
        vectors = {name: one * (counts[name] > 0)[:, None] for name, one in vectors.items()}
    return Supervised(
        x.mean(0),
        {name: one.to(x.dtype) for name, one in vectors.items()},
        {name: one.long() for name, one in counts.items()},
    )


# At a site of a model


def activations(
    model: Model, tokens: Any, site: str, pos: Int[Tensor, " prompt"], *, mask: Tensor | None = None
) -> Float[Tensor, "prompt d"]:
    """What the site holds at one position of each prompt, `pos`."""
    return model.run(tokens, attention_mask=mask, record=site)[site][torch.arange(len(pos)), pos]


def logits_with(
    model: Model,
    tokens: Any,
    site: str,
    pos: Int[Tensor, " prompt"],
    x: Float[Tensor, "prompt d"],
    *,
    mask: Tensor | None = None,
) -> Float[Tensor, "prompt vocab"]:
    """The logits at position `pos` of each prompt where the site held `x` there instead."""
    patched = interventions.patch(site, x[:, None], pos=pos[:, None])
    logits = model.run(tokens, attention_mask=mask, do=[patched]).logits
    if logits is None:
        raise TypeError(f"{model.name} returns no logits")
    return logits[torch.arange(len(pos)), pos]


# Any dictionary


@dataclass(frozen=True, eq=False)
class Edit:
    """Edited rows; how many latents each took; the share of the distance to the target that is left; and the size of
    the edit as a share of the activation's norm.
    """

    x: Float[Tensor, "row d"]
    latents: Int[Tensor, " row"]
    left: Float[Tensor, " row"]
    changed: Float[Tensor, " row"]


def sparse_edit(
    dictionary: Dictionary,
    x: Float[Tensor, "row d"],
    target: Float[Tensor, "row d"],
    k: int,
    *,
    among: Bool[Tensor, " width"] | None = None,
) -> Edit:
    """Change at most `k` latents of each row from what they say of `x` to what they say of `target`, greedily those
    that bring the row nearest to it, and none that takes it further away.

    The dictionary's error on x stays as it was. `among` names the latents that may be changed.
    """
    if x.shape != target.shape or k < 0:
        raise ValueError(f"x {tuple(x.shape)}, target {tuple(target.shape)}, k={k}: one target for each row, k from 0")
    before, after = dictionary.encode(x), dictionary.encode(target)
    latents = torch.cat([before.indices, after.indices], -1)
    # What comes of changing a latent: what it says of the target less what it says of x. One that both name has its
    # difference in two parts, of which the first is taken for the whole.
    values = torch.cat([_said(after, before.indices) - before.values, after.values], -1)
    named_twice = (after.indices[:, :, None] == before.indices[:, None, :]).any(2)
    values[:, before.indices.shape[1] :].masked_fill_(named_twice, 0)
    if among is not None:
        values = values * among[latents]
    moves = values[:, :, None] * dictionary.W_dec[latents]
    sizes = (moves**2).sum(2)
    edited, taken = x.clone(), torch.zeros(len(x), dtype=torch.long, device=x.device)
    rows = torch.arange(len(x), device=x.device)
    for _ in range(min(k, latents.shape[1])):
        change = sizes - 2 * (moves @ (target - edited)[:, :, None]).squeeze(2)
        best, which = change.min(1)
        helps = best < 0
        edited = edited + moves[rows, which] * helps[:, None]
        taken += helps
        moves[rows[helps], which[helps]] = 0
        sizes[rows[helps], which[helps]] = 0
    distance = (target - x).norm(dim=1).clamp_min(1e-12)
    return Edit(edited, taken, (target - edited).norm(dim=1) / distance, (edited - x).norm(dim=1) / x.norm(dim=1))


def _said(codes: Codes, latents: Int[Tensor, "row m"]) -> Float[Tensor, "row m"]:
    """What the codes say of these latents of each row; 0 where they do not name them."""
    same = codes.indices[:, None, :] == latents[:, :, None]
    return (same * codes.values[:, None, :]).sum(2)


def detector_f1(codes: Codes, values: Int[Tensor, " row"]) -> Float[Tensor, "value width"]:
    """The F1 score of each latent being active as a detector of each value of an attribute."""
    active = (codes.dense() != 0).double()
    hot = torch.nn.functional.one_hot(values.long()).double()
    both = hot.T @ active
    return (2 * both / (hot.sum(0)[:, None] + active.sum(0)).clamp_min(1)).float()
