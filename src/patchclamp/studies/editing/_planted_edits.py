"""A linear memory with rank-one edits that all read the same few inputs.

memory = Memory.draw(generator)                  # 150 facts that are edited, 100 that are not
keep, _ = editing.learn_mask((OUTPUTS, INPUTS), lambda mask: memory.loss(mask, margin=3.0, kl=1.0))
memory.precision(keep), memory.recall(keep), memory.reverted(keep), memory.unedited(keep)
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

INPUTS, OUTPUTS, ANSWERS, PLANTED = 192, 48, 40, 16
EDITS, UNEDITED = 150, 100  # of the edits, two thirds to learn on


@dataclass(frozen=True, eq=False)
class Memory:
    """Answers a = argmax V'W k of keys k, and rank-one edits of W whose key side is zero off the planted inputs."""

    weight: Float[Tensor, "out in"]
    answers: Float[Tensor, "answer out"]
    planted: Int[Tensor, "row"]
    keys: Float[Tensor, "fact in"]  # those that are edited, then those that are not
    old: Int[Tensor, "fact"]
    new: Int[Tensor, "fact"]

    @classmethod
    def draw(cls, generator: torch.Generator) -> "Memory":
        """A key is its answer's direction and noise of half its length; the weights send directions to answers."""

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        values = torch.nn.functional.normalize(normal(ANSWERS, OUTPUTS), dim=1)
        directions = torch.nn.functional.normalize(normal(ANSWERS, INPUTS), dim=1)
        old = torch.randint(ANSWERS, (EDITS + UNEDITED,), generator=generator)
        shift = torch.randint(1, ANSWERS, old.shape, generator=generator)
        keys = directions[old] + 0.5 * normal(len(old), INPUTS) / INPUTS**0.5
        planted = torch.randperm(INPUTS, generator=generator)[:PLANTED]
        return cls(values.T @ directions, values, planted, keys, old, (old + shift) % ANSWERS)

    @property
    def rights(self) -> Float[Tensor, "edit in"]:
        """d_i: the key on the planted inputs, so that d_i'k_i = 1."""
        on = torch.zeros(INPUTS).index_fill(0, self.planted, 1.0)
        rows = self.keys[:EDITS] * on
        return rows / (rows * self.keys[:EDITS]).sum(1, keepdim=True)

    @property
    def lefts(self) -> Float[Tensor, "edit out"]:
        """u_i: from what the memory gives to the new answer."""
        return self.answers[self.new[:EDITS]] - self.keys[:EDITS] @ self.weight.T

    def logits(self, mask: Tensor, rows: Tensor) -> Float[Tensor, "row answer"]:
        """Of each edited fact under its own edit and the mask."""
        keys, right, left = self.keys[rows], self.rights[rows], self.lefts[rows]
        return (keys @ (self.weight * mask).T + left * ((keys * right) @ mask.T)) @ self.answers.T

    def loss(self, mask: Tensor, margin: float, kl: float) -> Tensor:
        """Of the edits to learn on, and what is forgotten of half of the facts that are not edited."""
        rows = torch.arange(EDITS * 2 // 3)
        logits = 10 * self.logits(mask, rows)
        gap = logits[rows, self.old[rows]] - logits[rows, self.new[rows]]
        keys = self.keys[EDITS : EDITS + UNEDITED // 2]
        was = (10 * keys @ self.weight.T @ self.answers.T).log_softmax(-1)
        now = (10 * keys @ (self.weight * mask).T @ self.answers.T).log_softmax(-1)
        return (margin - gap).clamp_min(0).mean() + kl * (was.exp() * (was - now)).sum(-1).mean()

    def reverted(self, mask: Tensor) -> Tensor:
        """Of each other edit, whether the old answer is above the new one again."""
        rows = torch.arange(EDITS * 2 // 3, EDITS)
        logits = self.logits(mask.float(), rows)
        each = torch.arange(len(rows))
        return logits[each, self.old[rows]] > logits[each, self.new[rows]]

    def unedited(self, mask: Tensor) -> Tensor:
        """With all edits on and the mask: whether each fact of the half that the mask did not see is answered right."""
        whole = (self.weight + self.lefts.T @ self.rights) * mask
        rows = slice(EDITS + UNEDITED // 2, None)
        return (self.keys[rows] @ whole.T @ self.answers.T).argmax(1) == self.old[rows]

    def precision(self, mask: Tensor) -> float:
        zero = ~mask.bool()
        return float(zero[:, self.planted].sum() / zero.sum())

    def recall(self, mask: Tensor) -> float:
        return float((~mask.bool())[:, self.planted].double().mean())
