"""The programs that are planted, and the components that they are planted in.

    plan = PLANS["planted-circuit:pointer"]
    plan.program.evaluate(["1", "2", "a", "b", "c", "d", "e", "f", "g"])[-1]             # "D": three behind the first
    plan.alignment["place"], plan.spare                                    # mlp_out.0, and all that is to carry nothing

Every program has a value for whatever its variables are replaced by (heads that could select several keys prefer one),
so that each interchange has an answer. Importing this imports no torch.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from patchclamp.organisms.compiled.language import (
    Aggregate,
    Expression,
    Selector,
    Share,
    aggregate,
    both,
    constant,
    indices,
    latest,
    least,
    select,
    tokens,
)
from patchclamp.organisms.compiled.program import Program
from patchclamp.sites import Site

FAMILY = "planted-circuit:"
LETTERS = tuple("abcdefgh")
NAMES = ("Ann", "Bob", "Cid", "Dan", "Eve")
WORDS: tuple[str, ...] = ("and", "went", "gave", "then", "saw", "met")


@dataclass(frozen=True)
class Plan:
    """A program, the component of each of its variables, and the size of the network, which has more of both kinds."""

    program: Program
    homes: Mapping[str, Site]
    layers: int
    heads: int = 4

    @cached_property
    def alignment(self) -> dict[str, Site]:
        """The site of each variable; the tokens are in the embedding, the indices in the position embedding."""
        sites = {"tokens": Site("embed"), "indices": Site("pos_embed"), **self.homes}
        return {name: sites[name] for name in self.program.variables}

    @cached_property
    def nodes(self) -> tuple[Site, ...]:
        """The components of the circuit, in the order of the program."""
        return tuple(site for site in self.alignment.values() if site.kind in ("z", "mlp_out"))

    @cached_property
    def spare(self) -> tuple[Site, ...]:
        """The heads and MLPs that are not in the circuit."""
        heads = [Site("z", layer, head) for layer in range(self.layers) for head in range(self.heads)]
        mlps = [Site("mlp_out", layer) for layer in range(self.layers)]
        return tuple(site for site in (*heads, *mlps) if site not in self.nodes)

    @cached_property
    def ports(self) -> tuple[Site, ...]:
        """Queries, keys and values of the circuit's heads: where the program's aggregates read."""
        return tuple(Site(kind, site.layer, site.unit) for site in self.nodes if site.kind == "z" for kind in "qkv")

    @cached_property
    def edges(self) -> frozenset[tuple[Site, Site]]:
        """Which component reads which: the program's own edges, since all that is spare carries nothing."""
        found = {(self.alignment[self.program.names[self.program.output]], Site("logits"))}
        for name, expression in self.program.variables.items():
            home = self.alignment[name]
            if home.kind == "mlp_out":
                found |= {(source, Site("mlp_in", home.layer)) for source in self._sites(expression.inputs)}
            elif home.kind == "z" and isinstance(expression, Aggregate | Share):
                selector = expression.selector
                by_key, by_query = self._compares(selector)
                reads = {
                    "q": [selector.queries] if by_query else [],
                    "k": [*([selector.keys] if by_key else []), *(by for by, _ in selector.order)],
                    "v": [expression.values] if isinstance(expression, Aggregate) else [],
                }
                for kind, sources in reads.items():
                    found |= {(source, Site(kind, home.layer, home.unit)) for source in self._sites(sources)}
        return frozenset(found)

    def _sites(self, expressions: Iterable[Expression]) -> set[Site]:
        """Their components; a constant has none."""
        return {self.alignment[self.program.names[one]] for one in expressions if one in self.program.names}

    def _compares(self, selector: Selector) -> tuple[bool, bool]:
        """Whether the predicate depends on the key, and whether on the query."""
        table = self.program.table(selector)
        keys, queries = self.program.domain(selector.keys), self.program.domain(selector.queries)
        rows = {tuple(table[key, query] for query in queries) for key in keys}
        columns = {tuple(table[key, query] for key in keys) for query in queries}
        return len(rows) > 1, len(columns) > 1


def _induction() -> Plan:
    before = aggregate(select(indices, indices, lambda key, query: key == query - 1), tokens, name="before")
    prediction = aggregate(latest(select(before, tokens)), tokens, name="prediction")
    shown = prediction.map(lambda letter: letter.upper(), name="shown")

    def draw(rng: random.Random, n: int) -> list[str]:
        """Few letters of the alphabet, so that most tokens have been before; the last one has."""
        row = rng.choices(rng.sample(LETTERS, 5), k=n - 1)
        return [*row, rng.choice(row)]

    program = Program(
        "induction", shown, LETTERS, 10, draw, 3, "what followed this letter the last time, as a capital letter"
    )
    return Plan(
        program, {"before": Site("z", 0, 2), "prediction": Site("z", 1, 1), "shown": Site("mlp_out", 1)}, layers=2
    )


def _pointer() -> Plan:
    one = aggregate(select(indices, constant(1)), tokens, name="first digit")
    two = aggregate(select(indices, constant(2)), tokens, name="second digit")
    digits = "0123"

    def add(a: str, b: str) -> int | None:
        return 3 + int(a) + int(b) if a in digits and b in digits else None

    place = both(one, two, add, name="place")
    letter = aggregate(select(indices, place), tokens, name="letter")
    shown = letter.map(lambda token: token.upper() if token in LETTERS else None, name="shown")

    def draw(rng: random.Random, n: int) -> list[str]:
        """Digits are also among the letters, so that nothing but its place tells that a digit is one of the two."""
        row = rng.choices((*digits, *LETTERS), k=n)
        row[:2] = rng.choices(digits, k=2)
        row[2 + int(row[0]) + int(row[1])] = rng.choice(LETTERS)
        return row

    summary = "the letter as many places behind two digits as they sum to, as a capital letter"
    program = Program("pointer", shown, (*digits, *LETTERS), 9, draw, 9, summary)
    homes = {
        "first digit": Site("z", 0, 0),
        "second digit": Site("z", 0, 3),
        "place": Site("mlp_out", 0),
        "letter": Site("z", 2, 2),
        "shown": Site("mlp_out", 2),
    }
    return Plan(program, homes, layers=3)


def _duplicate_removal() -> Plan:
    share = Share(select(tokens, tokens), name="share")
    twice = share.map(lambda part: part < 1 / 2, name="twice")
    subject = aggregate(latest(select(twice, constant(True))), tokens, name="subject")
    others = select(tokens, subject, lambda key, query: key in NAMES and key != query)
    other = aggregate(latest(others), tokens, name="indirect object")

    def draw(rng: random.Random, n: int) -> list[str]:
        """One name twice and another once, in any order (so the last name need not be the subject's), among different
        words, and "to" at the end.
        """
        subject, other = rng.sample(NAMES, 2)
        names = rng.sample([subject, subject, other], 3)
        places = sorted(rng.sample(range(n - 1), 3))
        row: list[str] = rng.sample(WORDS, n - 1 - 3)
        for where, name in zip(places, names, strict=True):
            row.insert(where, name)
        return [*row, "to"]

    summary = "the one of two names that was not named twice"
    program = Program("duplicate-removal", other, (*NAMES, *WORDS, "to"), 9, draw, 5, summary)
    homes = {
        "share": Site("z", 0, 1),
        "twice": Site("mlp_out", 0),
        "subject": Site("z", 1, 3),
        "indirect object": Site("z", 2, 0),
    }
    return Plan(program, homes, layers=3)


def _bracket_balance() -> Plan:
    step = tokens.numbers({"(": 1, ")": -1}, name="step")
    everything = select(tokens, tokens, lambda key, query: True)
    lead = aggregate(everything, step, name="lead")
    sign = lead.map(lambda mean: (mean > 0) - (mean < 0), name="sign")
    lowest = aggregate(latest(least(everything, sign)), sign, name="lowest")
    verdict = both(
        sign, lowest, lambda now, low: "wrong" if low < 0 else "open" if now > 0 else "balanced", name="verdict"
    )

    def draw(rng: random.Random, n: int) -> list[str]:
        """A walk that is drawn back to zero, so that all three verdicts are common, and sometimes falls below."""
        row: list[str] = []
        depth, up = 0, rng.choice([0.6, 0.85, 1.0])
        for _ in range(n):
            opens = rng.random() < (up if depth <= 0 else 0.4)
            row.append("(" if opens else ")")
            depth += 1 if opens else -1
        return row

    summary = "whether brackets are balanced, still open, or in a wrong order"
    program = Program("bracket-balance", verdict, ("(", ")"), 12, draw, 1, summary)
    homes = {
        "step": Site("embed"),
        "lead": Site("z", 0, 3),
        "sign": Site("mlp_out", 0),
        "lowest": Site("z", 1, 0),
        "verdict": Site("mlp_out", 2),
    }
    return Plan(program, homes, layers=3)


PLANS = {
    FAMILY + plan.program.name: plan for plan in (_induction(), _pointer(), _duplicate_removal(), _bracket_balance())
}
