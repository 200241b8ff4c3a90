"""ROME one fact at a time, and MEMIT a hundred at once, on facts of `tales`: what is rewritten, and what else changes.

    .venv/bin/python bench/editing.py --json bench/results/editing.json

Each edit sees two of a fact's four phrasings (`--phrasings`); the others are the paraphrases. Greedy continuations are
judged, and teacher-forced answers beside them; every share stands behind that of the model before the edit. A hundred
facts are two each of 50 people, half of those whom the model knows; and, beside it, one each of 100 subjects, which
leaves 8 people of a hundred untouched: no claim is made of these. MEMIT's neutral text (sentences of the model's own
training grammar) names no subject that is rewritten. Of every second neighbour it does not have the sentence that is
asked, only others about the same subject: these are asked "in other words". Settings were chosen on draw 1 of ROME and
draw 2 of MEMIT, one fact a subject; that two each of 50 people meet the bars was seen on draw 3. The third part of the
comparison, the mask that takes edits back, is the study `patchclamp study one-mask`. Ends with status 1 if a claim
fails.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

import torch
from protocol import Claim, Timings, report

import patchclamp as pc
from patchclamp.editing import Edit, Joint, Report, Rewrite, Search, drawn, evaluate, memit, prefixes, rome
from patchclamp.editing import second_moment as moment_of
from patchclamp.editing.evaluate import JUDGES, Measure
from patchclamp.organisms.tales import world
from patchclamp.studies.editing._tales_facts import RELATIONS, follows
from patchclamp.studies.measured import Measured

LAYER = 0  # the only one whose MLP facts of tales can be rewritten in, by pc.editing.reachable
WRITTEN = 30
SEPARATE = Search(enough=0.25)
ROME, TOGETHER_50, TOGETHER_100 = "ROME, one at a time", "MEMIT, 50 subjects", "MEMIT, 100 subjects"
EACH = {ROME: 1, TOGETHER_50: 2, TOGETHER_100: 1}  # facts of a subject
ALONE = ", values one by one"
METHODS = (ROME, TOGETHER_50, TOGETHER_50 + ALONE, TOGETHER_100, TOGETHER_100 + ALONE)  # the others solve them together
WHEN = ("before", "after")
AS_TEXT, IN_OTHER_WORDS = "neighbourhood, as text has it", "neighbourhood, in other words"
BARS = (("efficacy", 0.95), ("paraphrase", 0.80), ("neighbourhood", 0.05))


def facts_of(n: int, seed: int, phrasings: int, each: int = 1) -> list[Rewrite]:
    return drawn(world.fact_table(), n, seed, relations=RELATIONS, follows=follows, prompts=phrasings, each=each)


def plain_text() -> list[str]:
    """What ROME's second moment is of."""
    documents = pc.organisms.truth("tales").documents
    kinds = (("life", 300), ("fact", 300), ("unknown", 150), (None, 100))
    return [document.text for kind, n in kinds for document in documents(n, seed=5, kind=kind)]


def neutral_text(facts: Sequence[Rewrite]) -> list[str]:
    """Sentences about people and places, and short documents of every kind, none of a rewritten subject or unseen."""
    documents = pc.organisms.truth("tales").documents
    every = [d.text for d in documents(300, seed=5) if len(d.text) < 150]
    for kind, n in (("life", 900), ("fact", 900), ("unknown", 300)):
        every += [s.strip() for d in documents(n, seed=5, kind=kind) for s in re.findall(r"[^.]+\.", d.text)]
    subjects = [fact.subject for fact in facts]
    return sorted({t for t in every if not t.startswith(unseen(facts)) and not any(s in t for s in subjects)})


def unseen(facts: Sequence[Rewrite]) -> tuple[str, ...]:
    """Every second question about neighbours: neutral text does not have it."""
    return tuple(sorted({prompt for fact in facts for prompt, _ in fact.neighbours})[::2])


def measures_of(facts: Sequence[Rewrite], result: Report, parted: bool) -> dict[str, Measure]:
    """The report's measures by name; where `parted`, neighbours by whether neutral text has what is asked."""
    found: dict[str, Measure] = {str(kind): measure for kind, measure in result.measures.items()}
    if parted:
        left_out = unseen(facts)
        other = torch.tensor([prompt in left_out for fact in facts for prompt, _ in fact.neighbours])
        whole = found.pop("neighbourhood")
        for name, rows in ((AS_TEXT, ~other), (IN_OTHER_WORDS, other)):
            found[name] = Measure("neighbourhood", whole.before[rows], whole.after[rows])
    return found


def edits_of(method: str, model: pc.Model, facts: Sequence[Rewrite]) -> Edit | list[Edit]:
    if method == ROME:
        return rome(model, facts, LAYER, moment=moment_of(model, plain_text(), LAYER), search=SEPARATE)
    text = neutral_text(facts)
    moments = {LAYER: moment_of(model, text, LAYER)}
    if method.endswith(ALONE):
        return memit(model, facts, [LAYER], moments=moments, weight=100.0, search=SEPARATE)
    before = prefixes(model, 3)
    return memit(model, facts, [LAYER], moments=moments, weight=300.0, prefixes=before, joint=Joint(), neutral=text)


def table(method: str, draw: int, measures: Mapping[str, Measure], fluency: tuple[float, float]) -> None:
    print(f"\n{method}, draw {draw}\n  {'measure':31}   n  generated         teacher-forced")
    for name, measure in measures.items():
        pairs = [f"{measure.share(j, 'before'):.3f} → {measure.share(j):.3f}" for j in ("generated", "forced")]
        print(f"  {name:31} {measure.n:3}  {'     '.join(pairs)}")
    print(f"  {'fluency (bits)':36} {fluency[0]:.3f} → {fluency[1]:.3f}", flush=True)


def bars(method: str, draws: Sequence[Mapping[str, Measure]]) -> list[Claim]:
    """Over all draws, with Wilson's interval; neighbours may lose so many points."""
    claims = []
    for name in draws[0]:
        bar = next((bar for kind, bar in BARS if name.startswith(kind)), None)
        if bar is None:
            continue
        value = Measured.share(torch.cat([one[name].after.generated for one in draws]))
        if name.startswith("neighbourhood"):
            before = float(torch.cat([one[name].before.generated for one in draws]).double().mean())
            drop, ends = before - value.value, (before - value.interval[1], before - value.interval[0])
            claims.append(Claim(f"{method}: {name} falls by at most {bar:.2f}", drop, ends, bar, drop <= bar))
        else:
            ok = value.value >= bar
            claims.append(Claim(f"{method}: {name} is at least {bar:.2f}", value.value, value.interval, bar, ok))
    return claims


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", type=int, default=40, help="facts of a draw for ROME")
    parser.add_argument("--many", type=int, default=100, help="facts of a draw for MEMIT")
    parser.add_argument("--phrasings", type=int, default=2, help="of a fact's four, those that an edit sees")
    parser.add_argument("--draws", type=int, nargs="+", default=[31, 32, 33])
    parser.add_argument("--json", type=Path, help="write the figures here")
    chosen = parser.parse_args()

    torch.set_num_threads(1)
    model = pc.load("organism:tales")
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    cpu_seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    measured: dict[str, object] = {}
    claims: list[Claim] = []
    for method in METHODS:
        found = []
        for draw in chosen.draws:
            each = EACH[method.removesuffix(ALONE)]
            facts = facts_of(chosen.one if method == ROME else chosen.many, draw, chosen.phrasings, each)
            start, start_cpu = time.perf_counter(), time.process_time()
            edits = edits_of(method, model, facts)
            seconds[method].append(time.perf_counter() - start)
            cpu_seconds[method].append(time.process_time() - start_cpu)
            result = evaluate(model, facts, edits, write=WRITTEN)
            assert result.fluency is not None
            found.append(measures_of(facts, result, parted=method != ROME))
            table(method, draw, found[-1], result.fluency)
            shares = {n: {f"{j}, {w}": one.share(j, w) for j in JUDGES for w in WHEN} for n, one in found[-1].items()}
            measured[f"{method}, draw {draw}"] = {**shares, "fluency": result.fluency}
        if method in (ROME, TOGETHER_50):  # the others stand beside them
            claims += bars(method, found)
    print()
    return report(
        "editing",
        threads=1,
        setting={
            "facts": [chosen.one, chosen.many],
            "draws": chosen.draws,
            "phrasings": chosen.phrasings,
            "layer": LAYER,
        },
        timings=Timings(seconds, cpu_seconds),
        claims=claims,
        measured=measured,
        path=chosen.json,
    )


if __name__ == "__main__":
    sys.exit(main())
