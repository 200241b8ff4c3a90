"""What a probe scores where there is nothing to find: beside every score stand these.

    shuffled(y, seed=0)                        # labels that belong to other rows
    random_like(x, seed=0)                     # activations that say nothing, of the same mean and covariance
    bag_of_tokens(ids, mask)                   # what the words alone say, without the model
    control_task(ids, seed=0)                  # a random label for each kind of token: what can be memorised
    control_numbers(ids, y, seed=0)            # the same for labels that are numbers

Selectivity is the score on the task minus that on the control task (Hewitt and Liang 2019, arXiv:1909.03368).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def shuffled(
    y: Float[Tensor, "row *label"], *, seed: int = 0, groups: Int[Tensor, " row"] | None = None
) -> Float[Tensor, "row *label"]:
    """The labels in another order; with `groups` (the prompt of each token) labels stay in theirs, and whole label
    columns move together.
    """
    generator = torch.Generator().manual_seed(seed)
    if groups is None:
        return y[torch.randperm(len(y), generator=generator)]
    out = y.clone()
    for group in groups.unique():
        rows = (groups == group).nonzero()[:, 0]
        out[rows] = y[rows[torch.randperm(len(rows), generator=generator)]]
    return out


def random_like(x: Float[Tensor, "*site row d"], *, seed: int = 0) -> Float[Tensor, "*site row d"]:
    """Normal rows with each site's mean and covariance, independent of everything."""
    generator = torch.Generator().manual_seed(seed)
    rows = x.shape[-2]
    centre = x.double().mean(-2, keepdim=True)
    mix = torch.randn(rows, rows, generator=generator, dtype=torch.float64).to(x.device) / rows**0.5
    return (centre + mix @ (x.double() - centre)).to(x.dtype)


def bag_of_tokens(
    ids: Int[Tensor, "row pos"], mask: Bool[Tensor, "row pos"] | None = None
) -> Float[Tensor, "row token"]:
    """How often each token stands in each row; tokens that stand in no row, or equally often in all, are left out."""
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(ids.device)
    _, column = ids.unique(return_inverse=True)
    counts = torch.zeros(len(ids), int(column.max()) + 1, device=ids.device)
    counts.scatter_add_(1, column, mask.float())
    counts = counts[:, counts.amax(0) > counts.amin(0)]
    return counts if counts.shape[1] else torch.zeros(len(ids), 1, device=ids.device)


def control_task(ids: Int[Tensor, "*row"], *, share: float = 0.5, seed: int = 0) -> Float[Tensor, "*row"]:
    """A label for each row that its token decides at random: yes for a `share` of the kinds of token, at least one."""
    kinds, which = torch.as_tensor(ids).unique(return_inverse=True)
    if len(kinds) < 2:
        raise ValueError("a control task needs tokens of two kinds at least")
    order = torch.randperm(len(kinds), generator=torch.Generator().manual_seed(seed))
    yes = torch.zeros(len(kinds))
    yes[order[: min(len(kinds) - 1, max(1, round(share * len(kinds))))]] = 1.0
    return yes.to(which.device)[which]


def control_numbers(
    ids: Int[Tensor, " row"], y: Float[Tensor, "row *label"], *, seed: int = 0
) -> Float[Tensor, "row *label"]:
    """Numbers for each row that its token decides at random: for each kind of token those of some row."""
    kinds, which = torch.as_tensor(ids).unique(return_inverse=True)
    if len(kinds) < 2:
        raise ValueError("a control task needs tokens of two kinds at least")
    return y[torch.randint(len(y), (len(kinds),), generator=torch.Generator().manual_seed(seed))][which]
