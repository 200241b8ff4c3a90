"""What makes a dictionary sparse, as data: one frozen dataclass for each choice.

    TopK(k=32)                                     k latents of each row              (arXiv:2406.04093)
    AbsoluteTopK(k=32)                             the same by size, with signs
    GroupMax(k=32)                                 the largest of each of k groups of latents
    BatchTopK(k=32)                                k on average over the batch        (arXiv:2412.06410)
    ReLU(l1=4.0) or ReLU(l0=32)                    an L1 penalty, given or controlled
    PAnneal(l0=32)                                 an L_p penalty whose p falls from 1 (arXiv:2408.00113)
    Gated(l1=4.0) or Gated(l0=32)                  separate gate and magnitude        (arXiv:2404.16014)
    JumpReLU(l0=32)                                a threshold learned for each latent (arXiv:2407.14435)
    Matryoshka(BatchTopK(k=32), groups=(512, 2048, 8192))    nested prefixes          (arXiv:2503.17547)

A part says how codes come of pre-activations. Penalties are in units of normalised activations, in which the mean
squared norm of a row is its dimension.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from patchclamp.dictionaries.parallel import ALONE, Alone
from patchclamp.dictionaries.sparse import Active


def _positive(part: Any, *names: str) -> None:
    for name in names:
        value = getattr(part, name)
        if value is not None and not value > 0:
            raise ValueError(f"{type(part).__name__}({name}={value}): expected a positive number")


def _one_of(part: Any, *names: str) -> None:
    given = [name for name in names if getattr(part, name) is not None]
    if len(given) != 1:
        said = ", ".join(f"{name}={getattr(part, name)}" for name in given) or "none"
        raise ValueError(f"{type(part).__name__}: give one of {', '.join(f'{n}=' for n in names)}; got {said}")
    _positive(part, *given)


@dataclass(frozen=True)
class TopK:
    """The k largest pre-activations of each row, if positive (Gao et al. 2024)."""

    k: int
    auxiliary: float = 1 / 4
    """weight of the loss in which dead latents model the error"""
    signed = False
    inference = "topk"

    def __post_init__(self) -> None:
        _positive(self, "k")

    def select(self, pre: Float[Tensor, "row width"]) -> tuple[Active, Float[Tensor, " pair"]]:
        """The active pairs and their pre-activations."""
        values, indices = pre.topk(self.k, dim=-1, sorted=False)
        return Active.of(indices, pre.shape[-1]), values.flatten()


@dataclass(frozen=True)
class AbsoluteTopK:
    """The k pre-activations of largest size, with their signs."""

    k: int
    auxiliary: float = 1 / 4
    signed = True
    inference = "absolute_topk"

    def __post_init__(self) -> None:
        _positive(self, "k")

    def select(self, pre: Float[Tensor, "row width"]) -> tuple[Active, Float[Tensor, " pair"]]:
        """The active pairs and their pre-activations."""
        indices = pre.abs().topk(self.k, dim=-1, sorted=False).indices
        return Active.of(indices, pre.shape[-1]), pre.gather(-1, indices).flatten()


@dataclass(frozen=True)
class GroupMax:
    """Latents in k groups of neighbours; the largest of each group, if positive. k divides the width."""

    k: int
    auxiliary: float = 1 / 4
    signed = False
    inference = "groupmax"

    def __post_init__(self) -> None:
        _positive(self, "k")

    def select(self, pre: Float[Tensor, "row width"]) -> tuple[Active, Float[Tensor, " pair"]]:
        """The active pairs and their pre-activations."""
        width = pre.shape[-1]
        if width % self.k:
            raise ValueError(f"GroupMax(k={self.k}) needs a width that {self.k} divides; got {width}")
        values, within = pre.unflatten(-1, (self.k, width // self.k)).max(-1)
        first = torch.arange(0, width, width // self.k, device=pre.device)
        return Active.of(within + first, width), values.flatten()


@dataclass(frozen=True)
class BatchTopK:
    """The k x rows largest pre-activations of a batch, wherever they are (Bussmann et al. 2024).

    Afterwards a threshold, the running mean of the smallest one that was kept, makes a row's codes its own.
    """

    k: int
    auxiliary: float = 1 / 4
    signed = False
    inference = "threshold"

    def __post_init__(self) -> None:
        _positive(self, "k")

    def select(
        self, pre: Float[Tensor, "row width"], processes: Alone = ALONE
    ) -> tuple[Active, Float[Tensor, " pair"]]:
        """The active pairs and their pre-activations: exactly k x rows of them, of the rows of all processes together.

        The 4k largest of each row are compared across the batch. That is exact unless a row has all of its own among
        the kept; then everything as large as the smallest kept is compared.
        """
        rows, width = pre.shape
        k, candidates = min(self.k, width), min(width, 4 * self.k)
        best, indices = pre.topk(candidates, dim=-1, sorted=False)
        kept, found = processes.largest(best.flatten(), rows, k)
        counts = torch.bincount(kept // candidates, minlength=rows)
        if candidates < width and int(processes.most(counts)) == candidates:
            at = (pre >= found.min()).flatten().nonzero().flatten()
            kept = at[processes.largest(pre.flatten()[at], rows, k)[0]]
            counts, latents = torch.bincount(kept // width, minlength=rows), kept % width
            values = pre.flatten()[kept]
        else:
            values, latents = best.flatten()[kept], indices.flatten()[kept]
        start = torch.zeros(rows + 1, dtype=torch.long, device=pre.device)
        torch.cumsum(counts, 0, out=start[1:])
        return Active(start, latents, width), values


@dataclass(frozen=True)
class ReLU:
    """Positive pre-activations, under a penalty l1 x (sum of the values); with `l0` the weight is controlled so that
    this many latents are active on average.
    """

    l1: float | None = None
    l0: float | None = None
    auxiliary: float = 1 / 4
    inference = "threshold"

    def __post_init__(self) -> None:
        _one_of(self, "l1", "l0")

    def parameters(self, width: int) -> dict[str, Tensor]:
        return {}

    def codes(self, pre: Float[Tensor, "row width"], extra: Mapping[str, Tensor]) -> Float[Tensor, "row width"]:
        return pre.relu()

    def penalty(
        self, pre: Tensor, codes: Float[Tensor, "row width"], extra: Mapping[str, Tensor], along: float
    ) -> Float[Tensor, ""]:
        """What is weighed by l1: the mean over rows of the sum of the values."""
        return codes.sum(-1).mean()


@dataclass(frozen=True)
class PAnneal(ReLU):
    """As ReLU, with the sum of value^p, where p falls from 1 to `p` over the last 80 % of training."""

    p: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.p <= 1:
            raise ValueError(f"PAnneal(p={self.p}): expected 0 < p <= 1")

    def penalty(
        self, pre: Tensor, codes: Float[Tensor, "row width"], extra: Mapping[str, Tensor], along: float
    ) -> Float[Tensor, ""]:
        p = 1 - (1 - self.p) * max(0.0, along - 0.2) / 0.8
        # The slope of value^p at zero is infinite: the small constant bounds it.
        return ((codes + 1e-3) ** p - 1e-3**p).sum(-1).mean()


@dataclass(frozen=True)
class Gated:
    """A gate [z + b_enc > 0] times a magnitude relu(exp(r_mag) z + b_mag) of the same z = W x. The L1 penalty falls on
    the gate alone, which a reconstruction through a frozen decoder trains (Rajamanoharan et al. 2024, eq. 6 to 8).
    """

    l1: float | None = None
    l0: float | None = None
    auxiliary: float = 1 / 4
    inference = "threshold"

    def __post_init__(self) -> None:
        _one_of(self, "l1", "l0")

    def parameters(self, width: int) -> dict[str, Tensor]:
        return {"r_mag": torch.zeros(width), "b_mag": torch.zeros(width)}

    def codes(self, pre: Float[Tensor, "row width"], extra: Mapping[str, Tensor]) -> Float[Tensor, "row width"]:
        magnitude = (extra["r_mag"].exp() * (pre - extra["b_enc"]) + extra["b_mag"]).relu()
        return magnitude * (pre > 0)

    def penalty(
        self, pre: Tensor, codes: Float[Tensor, "row width"], extra: Mapping[str, Tensor], along: float
    ) -> Float[Tensor, ""]:
        return pre.relu().sum(-1).mean()

    def gate_error(
        self,
        pre: Float[Tensor, "row width"],
        decoder: Float[Tensor, "width d"],
        bias: Float[Tensor, " d"],
        y: Float[Tensor, "row d"],
    ) -> Float[Tensor, ""]:
        """Summed squared error of what the gates alone explain, which teaches gates and leaves the decoder as it is."""
        return ((y - pre.relu() @ decoder.detach() - bias.detach()) ** 2).sum()


@dataclass(frozen=True)
class JumpReLU:
    """Pre-activations above a threshold of each latent's own, which is learned through a rectangle of `bandwidth`
    about it; the penalty is (L0 / l0 - 1)^2 (Rajamanoharan et al. 2024b; Lieberum et al. 2024).
    """

    l0: float
    bandwidth: float = 2.0
    weight: float = 1.0
    """of the penalty, against a reconstruction loss that is 1 where nothing is explained"""
    auxiliary: float = 1 / 4
    inference = "threshold"

    def __post_init__(self) -> None:
        _positive(self, "l0", "bandwidth", "weight")

    def parameters(self, width: int) -> dict[str, Tensor]:
        return {"log_threshold": torch.zeros(width)}

    def codes(self, pre: Float[Tensor, "row width"], extra: Mapping[str, Tensor]) -> Float[Tensor, "row width"]:
        threshold = extra["log_threshold"].exp()
        return _Jump.apply(pre, threshold, self.bandwidth)  # pyright: ignore[reportReturnType]

    def penalty(
        self, pre: Tensor, codes: Float[Tensor, "row width"], extra: Mapping[str, Tensor], along: float
    ) -> Float[Tensor, ""]:
        """Mean number of active latents, with the rectangle's gradient to the thresholds: what `cost` is of."""
        return _Step.apply(pre, extra["log_threshold"].exp(), self.bandwidth).sum(-1).mean()  # pyright: ignore

    def cost(self, l0: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The penalty, where so many latents of a row are active on average in the whole batch."""
        return self.weight * (l0 / self.l0 - 1) ** 2


class _Jump(Function):
    """pre * [pre > threshold]; the threshold's derivative is -threshold / bandwidth within half a bandwidth of it."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (g,) = grads
        pre, threshold = ctx.saved_tensors
        near = (pre - threshold).abs() < ctx.bandwidth / 2
        return g * (pre > threshold), (-(threshold / ctx.bandwidth) * g * near).sum(0), None


class _Step(Function):
    """[pre > threshold]; the threshold's derivative is -1 / bandwidth within half a bandwidth of it, pre has none."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (g,) = grads
        pre, threshold = ctx.saved_tensors
        near = (pre - threshold).abs() < ctx.bandwidth / 2
        return None, (-(g * near) / ctx.bandwidth).sum(0), None


Chosen = TopK | AbsoluteTopK | GroupMax | BatchTopK
"""Parts that choose a known number of latents: trained through (indices, values) alone."""
Penalised = ReLU | PAnneal | Gated | JumpReLU
"""Parts that a penalty makes sparse: how many are active is known afterwards."""


@dataclass(frozen=True)
class Matryoshka:
    """Any part, with a reconstruction asked of each prefix of the latents: `groups` are the sizes of the prefixes, the
    last being the width. The mean of the prefixes' losses is trained (Bussmann et al. 2025).
    """

    inner: Chosen | Penalised
    groups: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        if list(self.groups) != sorted(set(self.groups)) or not self.groups or self.groups[0] < 1:
            raise ValueError(f"Matryoshka(groups={self.groups}): sizes of growing prefixes, as in (64, 256, 1024)")


Part = Chosen | Penalised | Matryoshka


def part(
    name: str,
    *,
    k: int | None = None,
    l0: float | None = None,
    l1: float | None = None,
    groups: tuple[int, ...] = (),
) -> Part:
    """The part called `name`, as a command line says it. ValueError where it is none, or does not have such a setting.

    >>> part("BatchTopK", k=32, groups=(64, 256))
    Matryoshka(inner=BatchTopK(k=32, auxiliary=0.25), groups=(64, 256))
    """
    kinds = {kind.__name__: kind for kind in (*get_args(Chosen), *get_args(Penalised))}
    if name not in kinds:
        near = difflib.get_close_matches(name, kinds, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"no part is called {name!r}{hint} There are {', '.join(kinds)}.")
    given = {key: value for key, value in {"k": k, "l0": l0, "l1": l1}.items() if value is not None}
    has = {field.name for field in fields(kinds[name])}
    if not given or not given.keys() <= has:
        wants = " or ".join(sorted(has & {"k", "l0", "l1"}))
        raise ValueError(f"{name} is given {wants}; got {', '.join(given) or 'nothing'}")
    inner = kinds[name](**given)
    return Matryoshka(inner, groups) if groups else inner
