"""What is known of an organism. Importing this imports no torch: tensors appear only when a sample is asked for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Fact = tuple[str, str, str]


@dataclass(frozen=True)
class Truth:
    """What is true of one organism; what is not known is empty.

    `facts` are (subject, relation, object); `nodes` and `edges` the sites of a circuit that is known by
    construction; `features` known directions by name; `behaviours` the built-in tasks that the network was trained
    to do.
    """

    name: str
    facts: tuple[Fact, ...] = ()
    nodes: frozenset[Any] = frozenset()
    edges: frozenset[tuple[Any, Any]] = frozenset()
    features: Mapping[str, Any] = field(default_factory=dict)
    behaviours: tuple[str, ...] = ()
    sampler: "Callable[[int, int], tuple[Tensor, Tensor]] | None" = field(default=None, repr=False)
    writer: Callable[[int, int, str | None], Sequence[Any]] | None = field(default=None, repr=False)

    def sample(self, n: int, seed: int = 0) -> "tuple[Tensor, Tensor]":
        """`n` inputs with their right answers: tokens Int[prompt, pos], right padded, and answers Int[prompt].

        LookupError where the organism has no sampler.
        """
        if self.sampler is None:
            raise LookupError(f"the truth of '{self.name}' has no sampler of inputs and answers.")
        return self.sampler(n, seed)

    def documents(self, n: int, seed: int = 0, kind: str | None = None) -> Sequence[Any]:
        """`n` documents of the text that it was trained on (of one `kind`, if given), each with labelled spans.

        LookupError where the organism was not trained on text.
        """
        if self.writer is None:
            raise LookupError(f"'{self.name}' was not trained on text, so there are no documents.")
        return self.writer(n, seed, kind)
