"""What is known of an organism. Importing this imports no torch: tensors appear only when they are asked for."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from patchclamp.sites import Site

Fact = tuple[str, str, str]


@dataclass(frozen=True)
class Truth:
    """What is true of one organism; what is not known is empty.

    `facts` are (subject, relation, object). `nodes` and `edges` are the circuit: sites that take part, and (sender,
    reader) pairs, in which a reader is the input of a head (`q`, `k`, `v`), of an MLP (`mlp_in`) or the `logits`.
    `alignment` says which site holds which variable of the algorithm. `features` are known directions by name, `firing`
    how often each is active. `behaviours` are the tasks that the network was trained to do, `splits` its data sets by
    name, each as (inputs, answers).
    """

    name: str
    facts: tuple[Fact, ...] = ()
    nodes: "frozenset[Site]" = frozenset()
    edges: "frozenset[tuple[Site, Site]]" = frozenset()
    alignment: "Mapping[str, Site]" = field(default_factory=dict)
    features: "Mapping[str, Tensor]" = field(default_factory=dict)
    firing: Mapping[str, float] = field(default_factory=dict)
    behaviours: tuple[str, ...] = ()
    splits: "Mapping[str, Callable[[], tuple[Tensor, Tensor]]]" = field(default_factory=dict, repr=False)
    sampler: "Callable[[int, int], tuple[Tensor, Tensor]] | None" = field(default=None, repr=False)
    writer: Callable[[int, int, str | None], Sequence[Any]] | None = field(default=None, repr=False)

    def sample(self, n: int, seed: int = 0) -> "tuple[Tensor, Tensor]":
        """`n` inputs with their right answers: tokens Int[prompt, pos], right padded, and answers Int[prompt].

        LookupError where the organism has no sampler.
        """
        if self.sampler is None:
            raise LookupError(f"the truth of '{self.name}' has no sampler of inputs and answers.")
        return self.sampler(n, seed)

    def split(self, name: str) -> "tuple[Tensor, Tensor]":
        """One of the data sets whole, as inputs and answers: "train" is what the network saw, "test" what it did not.

        LookupError with the names that there are.
        """
        if name not in self.splits:
            near = difflib.get_close_matches(name, self.splits, n=1, cutoff=0.5)
            hint = f"Did you mean '{near[0]}'? " if near else ""
            raise LookupError(
                f"'{self.name}' has no split '{name}'. {hint}There are: {', '.join(self.splits) or 'none'}."
            )
        return self.splits[name]()

    def documents(self, n: int, seed: int = 0, kind: str | None = None) -> Sequence[Any]:
        """`n` documents of the text that it was trained on (of one `kind`, if given), each with labelled spans.

        LookupError where the organism was not trained on text.
        """
        if self.writer is None:
            raise LookupError(f"'{self.name}' was not trained on text, so there are no documents.")
        return self.writer(n, seed, kind)
