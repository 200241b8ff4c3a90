"""Pairs of runs, the base and the source that activations are taken from, and what a patch between them moves.

    pairs = Pairs.of(model, task)                    # clean into corrupted; direction="noise" the other way
    pairs.effect([pc.patch("mlp_out.3", pairs.sources("mlp_out.3"))])      # 0: as the base run, 1: as the source run

A plain `nn.Module` has pairs too: `Pairs(model, base, source, measure=lambda output: output[:, 0])`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp import metrics
from patchclamp.interventions import Intervention
from patchclamp.model import Model
from patchclamp.patching.sweep import Direction, check_fits
from patchclamp.sites import Site
from patchclamp.tasks import Task

Measure = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Inputs of base and source runs, row by row, and `measure`: of the logits (or a module's output), a number a row.

    `mask` marks real tokens, which are the same in both.
    """

    model: Model
    base: Any
    source: Any
    measure: Measure
    mask: Tensor | None = None
    _kept: dict[Site, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        model: Model,
        task: Task,
        *,
        metric: "str | metrics.Metric" = metrics.logit_difference,
        direction: Direction = "denoise",
    ) -> "Pairs":
        """A task's prompts: "denoise" patches clean into corrupted, "noise" corrupted into clean."""
        if direction not in ("denoise", "noise"):
            raise ValueError(f"direction={direction!r}: 'denoise' patches clean into corrupted, 'noise' the other way")
        check_fits(model, task)
        score = metrics.by_name(metric) if isinstance(metric, str) else metric
        sides = (task.corrupt, task.clean) if direction == "denoise" else (task.clean, task.corrupt)
        return cls(model, *sides, lambda logits: score(task.at_answer(logits), task), task.mask)

    @cached_property
    def base_values(self) -> Float[Tensor, "prompt"]:
        return self.values()

    @cached_property
    def source_values(self) -> Float[Tensor, "prompt"]:
        return self._measured(self.model.run(self.source, attention_mask=self.mask).logits)

    def values(self, do: "Sequence[Intervention] | Intervention" = ()) -> Float[Tensor, "prompt"]:
        """The measure of the base runs under `do`."""
        return self._measured(self.model.run(self.base, do=do, attention_mask=self.mask).logits)

    def _measured(self, logits: Tensor | None) -> Tensor:
        if logits is None:
            raise TypeError(f"{self.model.name} returns no logits, and no tensor, that could be measured")
        return self.measure(logits)

    def effect(self, do: "Sequence[Intervention] | Intervention") -> float:
        """How far `do` moves the mean measure: 0 leaves it at the base runs', 1 takes it to the source runs'."""
        means = (values.mean() for values in (self.values(do), self.source_values, self.base_values))
        patched, source, base = means
        return float(metrics.normalise(patched, source, base))

    def flipped(self, do: "Sequence[Intervention] | Intervention") -> float:
        """Interchange accuracy: the share of rows whose measure comes to lie nearer the source run's."""
        values = self.values(do)
        return float(((values - self.source_values).abs() < (values - self.base_values).abs()).double().mean())

    def activations(self, site: "str | Site") -> tuple[Tensor, Tensor]:
        """(base, source) at a site, each [prompt, pos, ...] as recorded; both are kept."""
        found = self.model.sites(site)
        if len(found) != 1:
            raise ValueError(f"{site} names {len(found)} sites; one at a time is patched here")
        if found[0] not in self._kept:
            runs = (
                self.model.run(ids, record=found[0], stop=True, attention_mask=self.mask)
                for ids in (self.base, self.source)
            )
            base, source = (run[found[0]] for run in runs)
            self._kept[found[0]] = base, source
        return self._kept[found[0]]

    def forward(self) -> Tensor:
        """The measure of the base runs with their graph, for use inside `model.under(...)`."""
        arguments = {} if self.mask is None else {"attention_mask": self.mask.long().to(self.model.device)}
        if self.mask is not None and bool(self.mask.all()):
            arguments = {}
        output = self.model.hf(torch.as_tensor(self.base).to(self.model.device), **arguments)
        return self._measured(output if isinstance(output, Tensor) else output.logits)
