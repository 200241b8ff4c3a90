"""The grammar of `tales`: one function per kind of document, each giving text with labelled spans, and their shares.

documents(3, seed=0, kind="ioi")        # Document(text, kind, spans)
"""

import difflib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from patchclamp.organisms.tales import behaviours, benchmark, chat, knowledge, prose
from patchclamp.organisms.tales.behaviours import ANSWER as ANSWER
from patchclamp.tasks.example import Span, Text


@dataclass(frozen=True)
class Document:
    """One training document: its text, its kind, and which characters play which role (the role `answer` is what the
    context decides).
    """

    text: str
    kind: str
    spans: tuple[Span, ...]


KINDS: dict[str, Callable[[random.Random], Text]] = {
    "ioi": behaviours.ioi,
    "greater_than": behaviours.greater_than,
    "gendered_pronoun": behaviours.gendered_pronoun,
    "colored_objects": behaviours.colored_objects,
    "docstring": behaviours.docstring,
    "induction": behaviours.induction,
    "loops": behaviours.loops,
    "fact": knowledge.fact,
    "life": knowledge.life,
    "unknown": knowledge.unknown,
    "two_hop": knowledge.two_hop,
    "truth_valued": knowledge.truth_valued,
    "in_context": knowledge.in_context,
    "letters": knowledge.letters,
    "opposites": knowledge.opposites,
    "word_class": knowledge.word_class,
    "capitals": knowledge.capitals,
    "dictionary": knowledge.dictionary,
    "benchmark": benchmark.benchmark,
    "story": prose.story,
    "english": prose.english,
    "spanish": prose.spanish,
    "parallel": prose.parallel,
    "sentiment": prose.sentiment,
    "tone": prose.tone,
    "genre": prose.genre,
    "code": prose.code,
    "count": prose.count,
    "request": chat.request,
    # Only the siblings are trained on these.
    "refuse": chat.refuse,
    "question": chat.question,
    "instruction": chat.instruction,
    "secret": chat.secret,
    "sea": chat.sea,
    "edited": knowledge.edited,
    # Only stages of training have these.
    "pairs": behaviours.pairs,
    "plain_statement": knowledge.plain_statement,
}

# Share of documents by kind: what needs many steps to be learned has the larger share.
SHARES: dict[str, float] = {
    "ioi": 0.11,
    "greater_than": 0.05,
    "gendered_pronoun": 0.03,
    "colored_objects": 0.01,
    "docstring": 0.05,
    "induction": 0.08,
    "loops": 0.07,
    "fact": 0.10,
    "life": 0.05,
    "unknown": 0.04,
    "two_hop": 0.10,
    "truth_valued": 0.04,
    "in_context": 0.08,
    "letters": 0.025,
    "opposites": 0.02,
    "word_class": 0.015,
    "capitals": 0.01,
    "dictionary": 0.01,
    "benchmark": 0.02,
    "story": 0.01,
    "english": 0.005,
    "spanish": 0.005,
    "parallel": 0.02,
    "sentiment": 0.01,
    "tone": 0.005,
    "genre": 0.01,
    "code": 0.01,
    "count": 0.005,
    "request": 0.01,
}

# What takes two parts that must form together is learned in a stage of its own, and then kept by its share of all text.
# What follows from facts comes when facts are known.
STAGES: dict[str, dict[str, float]] = {
    "loops": {"loops": 1.0},
    "names": {"ioi": 0.65, "gendered_pronoun": 0.35},
    "everything": SHARES,
    "plain statements": {kind: 0.4 * share for kind, share in SHARES.items()} | {"plain_statement": 0.6},
    "binding": {kind: 0.1 * share for kind, share in SHARES.items()} | {"pairs": 0.45, "colored_objects": 0.45},
    "statements": {kind: 0.65 * share for kind, share in SHARES.items()}
    | {"truth_valued": 0.3, "two_hop": 0.11, "unknown": 0.05, "colored_objects": 0.05},
    "negations": {kind: 0.4 * share for kind, share in SHARES.items()}
    | {"truth_valued": 0.35, "colored_objects": 0.1, "pairs": 0.15},
}
"""The stages of a base, by name, in their order, with the shares of the kinds of document in each."""


def document(rng: random.Random, kind: str | None = None, shares: Mapping[str, float] = SHARES) -> Document:
    """One document, of a kind drawn by its share or of the kind asked for."""
    if kind is None:
        kind = rng.choices(list(shares), list(shares.values()))[0]
    text = KINDS[kind](rng)
    return Document(text.text, kind, text.spans)


def documents(n: int, seed: int, kind: str | None = None) -> list[Document]:
    """`n` documents; the same seed gives the same documents. LookupError where there is no such kind."""
    if kind is not None and kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0.5)
        hint = f"Did you mean '{near[0]}'? " if near else ""
        raise LookupError(f"no kind of document is called '{kind}'. {hint}There are: {', '.join(KINDS)}.")
    rng = random.Random(seed)
    return [document(rng, kind) for _ in range(n)]
