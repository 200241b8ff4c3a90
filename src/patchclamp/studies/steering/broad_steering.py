"""Extending activation steering to broad skills and multiple behaviours (van der Weij et al. 2024).

A direction of a broad skill (code less other text) takes it away about as selectively as that of a narrow one (one
programming language less other text), on `tales`. Four styles that a text has or not, independently of each other, are
turned on at once in texts that have none: their directions are added each at a layer of its own, or merged into one
vector at one layer. This is asked of small models of such texts, trained here (`_styles`), as the styles of `tales`
exclude each other: what is Spanish cannot be rude in English. Layers and strengths are chosen on other texts than those
that judge.

A style's shift is the rise of the probability of its words among all words. Its share among its own and the opposite
words will not do: where steering has broken a model and neither is written any more, it is a half. On `tales`, so
measured, polite, positive, male and of the sea at once rose by .13, .10, .54 and .11 (the least by .11 where merged).
Over the three models of `--full` a merged vector with strengths of its own stays .096 behind, where .1 is asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
import transformers
from torch import Tensor

from patchclamp import steering, views
from patchclamp.interventions import Intervention
from patchclamp.model import Model
from patchclamp.organisms.tales import grammar
from patchclamp.steering import Direction
from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured
from patchclamp.studies.steering import _styles as styles
from patchclamp.studies.study import Study

study = Study(
    name="broad-steering",
    paper="Extending Activation Steering to Broad Skills and Multiple Behaviours (arXiv:2403.05767)",
    seed="000_14db195f17440023.txt",
    organism="tales",
)

STRENGTHS = (1.0, 2.0, 4.0, 6.0, 8.0)
"""Multiples of a difference of means."""


@study.finding(
    "steering away from all code takes it away as selectively as steering away from one language: ratio of the two",
    at_least=0.8,
    control="random directions of the same norm, to the direction of one language",
)
def broad(lab: Lab) -> Measured:
    """Selective loss: share of next-token accuracy lost on that language less that lost on other text, mean over the
    strengths; by draw of texts.
    """
    draws = [lab.once(_selective_losses, seed) for seed in range(3 * lab.seed, 3 * lab.seed + (6 if lab.full else 3))]
    ratios = [found["broad"].mean() / found["narrow"].mean() for found in draws]
    control = [f[name].mean() / f["narrow"].mean() for f in draws for name in f if name.startswith("random")]
    return Measured.mean(ratios, control=control)


@study.finding(
    "added at once, each at its own layer, four directions turn every style on: shift of the least moved",
    at_least=0.25,
    control="random directions of the same norms at the same layers",
)
def simultaneous(lab: Lab) -> Measured:
    """Rise of the probability of the style's words, by text; of each model that was trained its least moved style."""
    return _of_least(lab, "simultaneous", "random")


@study.finding(
    "the three others hardly turn a style on: largest mean shift without its own direction",
    at_most=0.1,
    control="with its own direction",
    given=simultaneous,
)
def crosstalk(lab: Lab) -> Measured:
    parts = []
    for shifts in _every(lab):
        most = int(shifts["others"].mean(1).abs().argmax())
        parts.append([shifts[way][most].abs() for way in ("others", "simultaneous")])
    ours, control = (torch.cat(column) for column in zip(*parts, strict=True))
    return Measured.mean(ours, control=control)


@study.finding(
    "merged into one vector of the same total norm they leave one behind: how much further it moves otherwise",
    at_least=0.1,
    control="the same style under random directions, at several layers less merged",
    given=simultaneous,
)
def merged(lab: Lab) -> Measured:
    """Of the style that the merged vector moves least, at the layer that is best for it."""
    return _behind(lab, "merged")


@study.finding(
    "and so they do where each of the merged directions is made as strong as serves best",
    at_least=0.1,
    control="the same style under random directions, at several layers less merged",
    given=simultaneous,
)
def merged_at_its_best(lab: Lab) -> Measured:
    return _behind(lab, "merged, tuned")


@study.identity(
    "directions added at several layers with strength 0 change no bit", tolerance=0.0, control="strength 1", breaks=1e-3
)
def nothing(lab: Lab) -> Measured:
    model, directions, ids = _small(lab)
    clean, zero, one = (
        model.run(ids, do=[d.add(s) for d in directions] if s is not None else []).logits for s in (None, 0.0, 1.0)
    )
    return Measured.gap(zero, clean, control=(one, clean))


@study.identity(
    "two directions added at one place are their sum, added", tolerance=1e-6, control="one of the two", breaks=1e-3
)
def summed(lab: Lab) -> Measured:
    model, (first, second), ids = _small(lab)
    second = second.at(first.site)
    both = model.run(ids, do=[first.add(), second.add()]).logits
    return Measured.gap(
        both,
        model.run(ids, do=[(first + second).add()]).logits,
        control=(both, model.run(ids, do=[first.add()]).logits),
    )


@study.figure("mean shift of each style, by how the four directions are added")
def side_by_side(lab: Lab):
    shifts = _every(lab)[0]
    ways = ("alone", "simultaneous", "merged", "merged, tuned", "others", "random")
    found = {way: [Measured.mean(row) for row in shifts[way]] for way in ways}
    return views.lines(
        list(range(styles.STYLES)),
        {way: [m.value for m in row] for way, row in found.items()},
        intervals={way: [list(m.interval) for m in row] for way, row in found.items()},
        x_title="style",
        y_title="shift of probability",
    )


def _small(lab: Lab) -> tuple[Model, list[Direction], Tensor]:
    """A random network in double precision, two directions at different layers, tokens."""
    model = lab.build(
        transformers.GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=50, bos_token_id=0, eos_token_id=0)
    )
    model.hf.double()
    vectors = torch.randn(2, 32, generator=lab.generator)
    directions = [Direction(f"resid_post.{layer}", vector) for layer, vector in enumerate(vectors)]
    return model, directions, torch.randint(50, (4, 9), generator=lab.generator)


# ── a broad and a narrow skill ────────────────────────────────────────────────────────────────────────────────────────


def _selective_losses(lab: Lab, seed: int) -> dict[str, Tensor]:
    """[strength] by direction: share of accuracy lost on infix code less that lost on other text."""
    lab.need(lab.model.tokenizer is not None, "a model with a tokenizer, since its programs are text")
    kinds = ("story", "fact", "sentiment", "english", "opposites")
    fit, held = ([d for k in ("code", *kinds) for d in grammar.documents(48, part, k)] for part in (seed, 99 + seed))
    infix, prefix = ([d.text for d in fit if _has(d, f"code:{which}")] for which in ("infix", "prefix"))
    text = [d.text for d in fit if d.kind != "code"]
    code, rest = [d.text for d in held if _has(d, "code:infix")], [d.text for d in held if d.kind != "code"][::4]
    clean = [_accuracy(lab.model, texts, []) for texts in (code, rest)]
    if not lab.untrained:
        lab.need(min(clean) > 0.2, "a model that continues the programs and the text of tales")
    site = f"resid_post.{lab.model.n_layers // 2}"
    narrow = steering.difference(lab.model, infix, text, site=site)
    one = min(len(infix), len(prefix))
    directions = {"narrow": narrow}
    directions["broad"] = steering.difference(lab.model, infix[:one] + prefix[:one], text, site=site)
    directions = {name: d.rescaled(narrow.norm) for name, d in directions.items()}
    directions |= {f"random {n}": steering.random(narrow, seed=100 * seed + n) for n in range(2)}
    found = {}
    for name, direction in lab.progress(list(directions.items()), "steering away from code"):
        row = []
        for strength in STRENGTHS:
            left = [_accuracy(lab.model, texts, [direction.add(-strength)]) for texts in (code, rest)]
            lost = [1 - now / before if before else float("nan") for now, before in zip(left, clean, strict=True)]
            row.append(lost[0] - lost[1])
        found[name] = torch.tensor(row, dtype=torch.float64)
    return found


def _has(document: grammar.Document, role: str) -> bool:
    return any(span.role == role for span in document.spans)


def _accuracy(model: Model, texts: list[str], do: list[Intervention]) -> float:
    """Share of next tokens that are the likeliest."""
    run = model.run(texts, do=do)
    assert run.logits is not None and run.tokens is not None
    real = run.tokens.mask[:, 1:].bool()
    hits = run.logits[:, :-1].argmax(-1).cpu() == run.tokens.ids[:, 1:].cpu()
    return float(hits[real.cpu()].double().mean())


# ── four styles at once ───────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class Bench:
    """A model of styles, the difference of means of each style by layer, texts without any to choose on or to judge."""

    model: Model
    vectors: list[list[Direction]]
    choose: Tensor
    judge: Tensor

    @classmethod
    def of(cls, lab: Lab, seed: int) -> "Bench":
        model, generator = styles.model(lab, seed), torch.Generator().manual_seed(1000 + seed)
        on = styles.drawn(256, generator)
        fit = styles.texts(on, generator)
        vectors = [
            list(steering.differences(model, fit[has], fit[~has], sites="resid_post.*").values())
            for has in on.bool().unbind(1)
        ]
        return cls(model, vectors, *(styles.texts(torch.zeros_like(on[:n]), generator) for n in (32, 64)))

    def moved(self, directions: Sequence[Direction], ids: Tensor) -> Tensor:
        """[style, text] what the directions, added together, add to the probability of each style's words."""
        do = [direction.add() for direction in directions]
        return styles.said(self.model, ids, do) - styles.said(self.model, ids, [])

    def least(self, directions: Sequence[Direction]) -> float:
        """Mean shift of the least moved style, on the texts to choose on."""
        return float(self.moved(directions, self.choose).mean(1).min())

    def tuned(self, layers: Sequence[int], rounds: int = 0) -> tuple[float, list[Direction]]:
        """The strengths at which the least moved style moves most: first one for all, then each in turn."""

        def at(strengths: Sequence[float]) -> list[Direction]:
            return [s * own[layer] for s, own, layer in zip(strengths, self.vectors, layers, strict=True)]

        def best(some: Sequence[list[float]]) -> tuple[float, list[float]]:
            return max(((self.least(at(strengths)), strengths) for strengths in some), key=lambda item: item[0])

        found, strengths = best([[s] * len(layers) for s in STRENGTHS])
        for style in list(range(len(layers))) * rounds:
            factors = (1.0, 0.7, 1.4)
            tried = [[s * f if n == style else s for n, s in enumerate(strengths)] for f in factors]
            found, strengths = best(tried)
        return found, at(strengths)


def _shifts(lab: Lab, seed: int) -> dict[str, Tensor]:
    """[style, text] for each way to add the directions, on the texts that judge."""
    bench = Bench.of(lab, seed)
    count = bench.model.n_layers
    orders = lab.progress(list(permutations(range(count), styles.STYLES)), "choosing layers and strengths")
    order = max(orders, key=lambda layers: bench.tuned(layers)[0])
    several = bench.tuned(order, rounds=3)[1]
    total = sum(direction.norm for direction in several)
    randoms = [steering.random(direction, seed=50 * seed + n) for n, direction in enumerate(several)]

    def sums(layer: int) -> list[Direction]:
        own = [vectors[layer].rescaled(d.norm) for vectors, d in zip(bench.vectors, several, strict=True)]
        return [_sum(own, own[0].site, total)]

    ways = {"simultaneous": several, "random": randoms}
    ways["merged"] = max(map(sums, range(count)), key=bench.least)
    ways["random merged"] = [_sum(randoms, ways["merged"][0].site, total)]
    same = max(range(count), key=lambda layer: bench.tuned([layer] * styles.STYLES)[0])
    ways["merged, tuned"] = bench.tuned([same] * styles.STYLES, rounds=3)[1]
    found = {way: bench.moved(some, bench.judge) for way, some in ways.items()}
    without = [[d for n, d in enumerate(several) if n != style] for style in range(styles.STYLES)]
    for way, some in (("alone", [[d] for d in several]), ("others", without)):
        found[way] = torch.stack([bench.moved(each, bench.judge)[style] for style, each in enumerate(some)])
    return found


def _every(lab: Lab) -> list[dict[str, Tensor]]:
    return [lab.once(_shifts, seed) for seed in range(lab.seed, lab.seed + (3 if lab.full else 1))]


def _of_least(lab: Lab, way: str, control: str) -> Measured:
    least = [(shifts, int(shifts[way].mean(1).argmin())) for shifts in _every(lab)]
    ours, other = (torch.cat([shifts[w][style] for shifts, style in least]) for w in (way, control))
    return Measured.mean(ours, control=other)


def _behind(lab: Lab, way: str) -> Measured:
    """How much further the style that `way` moves least moves where directions are at several layers."""
    ours, control = [], []
    for shifts in _every(lab):
        least = int(shifts[way].mean(1).argmin())
        ours.append(shifts["simultaneous"][least] - shifts[way][least])
        control.append(shifts["random"][least] - shifts["random merged"][least])
    return Measured.mean(torch.cat(ours), control=torch.cat(control))


def _sum(directions: Sequence[Direction], site: str, norm: float) -> Direction:
    first, *rest = (direction.at(site) for direction in directions)
    return sum(rest, first).rescaled(norm)
