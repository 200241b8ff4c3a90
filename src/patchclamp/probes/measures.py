"""How well decisions agree with labels, for many probes at once, with bootstrap intervals.

auc(decision, y)                           # rows are the last dimension: [..., row] -> [...]
bootstrap(auc, decision, y, seed=0)        # (low, high), each [...]
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Measure = Callable[[Tensor, Tensor], Tensor]


def accuracy(decision: Float[Tensor, "*row"], y: Float[Tensor, "*row"], dim: int = -1) -> Float[Tensor, "*probe"]:
    """Share of rows on the right side of 0."""
    return ((decision > 0) == (y > 0)).double().mean(dim)


def balanced_accuracy(decision: Float[Tensor, "*probe row"], y: Float[Tensor, "*probe row"]) -> Float[Tensor, "*probe"]:
    """The mean of the accuracies among yes and among no: 0.5 is chance, whatever the shares."""
    right, true = ((decision > 0) == (y > 0)).double(), (y > 0).double()
    return ((right * true).sum(-1) / true.sum(-1) + (right * (1 - true)).sum(-1) / (1 - true).sum(-1)) / 2


def auc(decision: Float[Tensor, "*probe row"], y: Float[Tensor, "*probe row"]) -> Float[Tensor, "*probe"]:
    """Probability that a row of yes is decided higher than one of no, ties counting half; NaN where one is missing.

    >>> auc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]))
    tensor(0.7500, dtype=torch.float64)
    """
    decision, y = torch.broadcast_tensors(decision.double(), y.to(decision.device))
    decision = decision.contiguous()
    ordered = decision.sort(-1).values
    below = torch.searchsorted(ordered, decision)
    upto = torch.searchsorted(ordered, decision, right=True)
    rank, true = (below + upto + 1) / 2, (y > 0).double()
    yes, no = true.sum(-1), (1 - true).sum(-1)
    return ((rank * true).sum(-1).double() - yes * (yes + 1) / 2) / (yes * no)


def f1(decision: Float[Tensor, "*probe row"], y: Float[Tensor, "*probe row"]) -> Float[Tensor, "*probe"]:
    """Harmonic mean of precision and recall of yes; 0 where there is neither."""
    said, true = decision > 0, y > 0
    both = (said & true).sum(-1).double()
    return 2 * both / (said.sum(-1) + true.sum(-1)).clamp_min(1)


def mcc(decision: Float[Tensor, "*probe row"], y: Float[Tensor, "*probe row"]) -> Float[Tensor, "*probe"]:
    """Matthews' correlation of what is said with what is so; 0 where one of them never changes."""
    said, true = (decision > 0).double(), (y > 0).double()
    said, true = said - said.mean(-1, keepdim=True), true - true.mean(-1, keepdim=True)
    size = (said**2).sum(-1) * (true**2).sum(-1)
    return torch.where(size > 0, (said * true).sum(-1) / size.clamp_min(1e-300).sqrt(), 0.0)


def r2(decision: Float[Tensor, "*probe row"], y: Float[Tensor, "*probe row"]) -> Float[Tensor, "*probe"]:
    """Share of the variance of numbers that is told: below 0 where their mean would have told more; NaN if constant."""
    y = y.to(decision)
    return 1 - ((y - decision) ** 2).sum(-1) / ((y - y.mean(-1, keepdim=True)) ** 2).sum(-1)


def correlation(decision: Float[Tensor, "*probe row"], y: Float[Tensor, "*probe row"]) -> Float[Tensor, "*probe"]:
    """Pearson's, of numbers with what they were told to be; NaN where one of them never changes."""
    y = y.to(decision)
    y, told = y - y.mean(-1, keepdim=True), decision - decision.mean(-1, keepdim=True)
    return (y * told).sum(-1) / ((y**2).sum(-1) * (told**2).sum(-1)).sqrt()


NUMBERS = ("r2", "correlation")
"""Those that compare numbers; the others ask which side of 0."""

MEASURES: dict[str, Measure] = {
    "accuracy": accuracy,
    "auc": auc,
    "balanced_accuracy": balanced_accuracy,
    "correlation": correlation,
    "f1": f1,
    "mcc": mcc,
    "r2": r2,
}


def by_name(name: "str | Measure") -> Measure:
    """The measure called so; LookupError with the names that there are."""
    if callable(name):
        return name
    if name not in MEASURES:
        raise LookupError(f"no measure is called {name!r}. There are: {', '.join(MEASURES)}.")
    return MEASURES[name]


def bootstrap(
    measure: Measure,
    decision: Float[Tensor, "*probe row"],
    y: Float[Tensor, "*probe row"],
    *,
    groups: Int[Tensor, " row"] | None = None,
    resamples: int = 300,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Float[Tensor, "*probe"], Float[Tensor, "*probe"]]:
    """Percentile interval of the measure over rows drawn with replacement; whole `groups` (prompts) where given."""
    rows = decision.shape[-1]
    y = torch.broadcast_to(y, decision.shape)
    generator = torch.Generator().manual_seed(seed)
    members = None
    if groups is not None:
        count = int(groups.max()) + 1
        members = [(groups == one).nonzero()[:, 0] for one in range(count)]
    drawn = []
    for _ in range(resamples):
        if members is None:
            pick = torch.randint(rows, (rows,), generator=generator)
        else:
            pick = torch.cat([members[i] for i in torch.randint(len(members), (len(members),), generator=generator)])
        drawn.append(measure(decision[..., pick], y[..., pick]))
    low, high = torch.stack(drawn).nanquantile(torch.tensor([(1 - level) / 2, (1 + level) / 2]).double(), dim=0)
    return low, high
