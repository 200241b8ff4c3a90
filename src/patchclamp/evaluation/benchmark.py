"""The whole benchmark: `evaluate(dictionary, data)` gives every score that the data allow, beside its baselines.

    data = Labelled.of_text(model, "resid_post.2", documents, "letter:")
    scores = evaluate(dictionary, data, model=model, site="resid_post.2", texts=texts, seeds=(0, 1, 2))
    print(scores["accuracy@1"].value, scores["accuracy@1"].baselines)

Several dictionaries that were trained alike with other seeds count as one: `evaluate([first, second, third], data)`.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

import numpy as np

from patchclamp.dictionaries import Dictionary, measures
from patchclamp.evaluation import disentanglement, erasure, probing, unlearning
from patchclamp.evaluation.absorption import absorption, silent_parents
from patchclamp.evaluation.baselines import BASELINES, baselines
from patchclamp.evaluation.labelled import FEWEST, Labelled
from patchclamp.evaluation.recovered import recovered
from patchclamp.evaluation.scores import Estimate, Score, Scores
from patchclamp.views import track

if TYPE_CHECKING:
    from patchclamp.model import Model

Values = Mapping[str, np.ndarray]
_ABLATIONS: tuple[tuple[erasure.Ablation, str], ...] = (("zero", ""), ("mean", " (mean)"))


@dataclass(frozen=True)
class _Asked:
    """What a measure is asked of."""

    dictionary: Dictionary
    data: Labelled
    seed: int
    model: "Model | None"
    site: "str | tuple[str, str] | None"
    texts: Any


@dataclass(frozen=True)
class Measure:
    """How a measure is taken, what it needs of the data, and which of its scores are better high or low."""

    take: Callable[[_Asked], Values]
    lacks: Callable[[_Asked], str]
    better: Mapping[str, str]


def core(asked: _Asked) -> Values:
    """fvu, l0, shares of dead and of dense latents, shrinkage, cosine of the nearest other latent."""
    found = measures.report(asked.dictionary, asked.data.x)
    return {name: np.array([value]) for name, value in found.items() if isinstance(value, float)}  # not the controls


def kept(asked: _Asked) -> Values:
    """Loss and KL recovered, against zeros and against the mean."""
    assert asked.model is not None and asked.site is not None
    found = recovered(asked.model, asked.dictionary, asked.site, asked.texts)
    return {
        f"{what} recovered ({to})": np.array([value])
        for what, table in (("loss", found.loss), ("KL", found.kl))
        for to, value in table.items()
    }


def truth(asked: _Asked) -> Values:
    """Planted directions: share with a latent of cosine above 0.9, mean cosine of the best pairing; and firing F1."""
    assert asked.data.directions is not None
    rows, directions = asked.dictionary.W_dec, asked.data.directions
    found = {"directions found": np.array([measures.recovered(rows, directions)])}
    if len(rows) < len(directions):
        return found
    pairs = measures.match(rows, directions)
    f1 = measures.firing_f1(asked.dictionary.encode(asked.data.x), pairs.latent, asked.data.holds)
    return found | {"matched cosine": pairs.cosine.numpy(), "firing F1": f1.numpy()}


def removal(asked: _Asked) -> Values:
    """Spurious correlation removal of the pairs of concepts that cross: as published, and with ablation to the mean."""
    found: dict[str, list[np.ndarray]] = {}
    for (i, j), (to, suffix) in product(_crossed(asked.data), _ABLATIONS):
        run = erasure.spurious(asked.dictionary, asked.data, wanted=i, unwanted=j, to=to, seed=asked.seed)
        for name, value in run.items():
            found.setdefault(name + suffix, []).append(value)
    return {name: np.concatenate(runs) for name, runs in found.items()}


def exchanged(asked: _Asked) -> Values:
    """Cause and isolation of the concepts that cross, with linear heads as readers."""
    some = asked.data.only(sorted({i for pair in _crossed(asked.data) for i in pair}))
    attributes = disentanglement.linear(some)
    return disentanglement.exchange(asked.dictionary, some.x, attributes, seed=asked.seed)


def _crossed(data: Labelled, most: int = 6) -> list[tuple[int, int]]:
    """The first pairs of concepts that hold together and apart often enough, in both halves."""
    found = []
    for i, j in combinations(range(len(data.names)), 2):
        a, b = data.holds[:, i], data.holds[:, j]
        fewest = min(int(cell.sum()) for cell in (a & b, a & ~b, ~a & b, ~a & ~b))
        if fewest >= 4 * FEWEST:
            found.append((i, j))
        if len(found) == most:
            break
    return found


def _nothing(asked: _Asked) -> str:
    return ""


def _concepts(least: int) -> Callable[[_Asked], str]:
    return lambda asked: "" if len(asked.data.names) >= least else f"data with {least} concepts or more"


MEASURES: dict[str, Measure] = {
    "core": Measure(core, _nothing, {"fvu": "lower", "dead": "lower", "dense": "lower", "nearest": "lower"}),
    "recovered": Measure(
        kept,
        lambda a: "" if None not in (a.model, a.site, a.texts) else "model=, site= and texts=",
        {f"{what} recovered ({to})": "higher" for what in ("loss", "KL") for to in ("zero", "mean")},
    ),
    "truth": Measure(
        truth,
        lambda a: "" if a.data.directions is not None else "planted data, whose directions are known",
        dict.fromkeys(("directions found", "matched cosine", "firing F1"), "higher"),
    ),
    "probing": Measure(
        lambda a: probing.accuracy(a.dictionary, a.data, seed=a.seed),
        _concepts(1),
        {f"accuracy@{k}": "higher" for k in (1, 2, 5)},
    ),
    "splitting": Measure(
        lambda a: probing.splitting(a.dictionary, a.data, seed=a.seed), _concepts(1), {"latents a concept": "lower"}
    ),
    "absorption": Measure(
        lambda a: absorption(a.dictionary, a.data, seed=a.seed),
        _concepts(1),
        {"full absorption": "lower", "absorption fraction": "lower"},
    ),
    "hierarchy": Measure(
        lambda a: {"silent parents": silent_parents(a.dictionary, a.data)},
        lambda a: "" if any(parent >= 0 for parent in a.data.parents) else "planted data with parents and children",
        {"silent parents": "lower"},
    ),
    "tpp": Measure(
        lambda a: erasure.targeted(a.dictionary, a.data, seed=a.seed),
        _concepts(2),
        {f"tpp@{n}": "higher" for n in (1, 2, 5)},
    ),
    "scr": Measure(
        removal,
        lambda a: "" if _crossed(a.data) else f"two concepts that hold together and apart in {4 * FEWEST} rows each",
        {f"scr@{n}{suffix}": "higher" for n in (1, 2, 5) for suffix in ("", " (mean)")},
    ),
    "ravel": Measure(
        exchanged,
        lambda a: "" if _crossed(a.data) else f"two concepts that hold together and apart in {4 * FEWEST} rows each",
        {f"ravel {what}": "higher" for what in ("cause", "isolation", "score")},
    ),
    "unlearning": Measure(
        lambda a: unlearning.of_concepts(a.dictionary, a.data, seed=a.seed), _concepts(2), {"forgotten": "higher"}
    ),
}


def values(
    measure: str,
    dictionary: Dictionary,
    data: Labelled,
    *,
    model: "Model | None" = None,
    site: "str | tuple[str, str] | None" = None,
    texts: Any = None,
    seed: int = 0,
) -> Values:
    """One measure of one dictionary: each of its scores for every concept (or pair, or prompt), not averaged.

    ValueError where there is no such measure, or it lacks something.
    """
    asked = _Asked(dictionary, data, seed, model, site, texts)
    (name,) = _chosen([measure], asked, named=True)
    return _renamed(name, MEASURES[name].take(asked))


def evaluate(
    dictionary: Dictionary | Sequence[Dictionary],
    data: Labelled,
    *,
    measures: Sequence[str] | None = None,
    model: "Model | None" = None,
    site: "str | tuple[str, str] | None" = None,
    texts: Any = None,
    baselines: Sequence[str] | Mapping[str, Dictionary] = BASELINES,
    seeds: Sequence[int] = (0,),
) -> Scores:
    """Score a dictionary, or several that were trained alike, and the baselines in the same way.

    `measures` are names of MEASURES; None is every one that the data allow. `baselines` are names, or dictionaries by
    name. `seeds` draw the halves and the pairs of rows, and the random baseline; with several of them, or of
    dictionaries, intervals are over those and over concepts. ValueError where a measure that was named lacks something.
    """
    several = [dictionary] if isinstance(dictionary, Dictionary) else list(dictionary)
    if not several or not seeds:
        raise ValueError("evaluate needs at least one dictionary and one seed")
    names = _chosen(measures, _Asked(several[0], data, 0, model, site, texts), measures is not None)
    given = dict(baselines) if isinstance(baselines, Mapping) else {}
    called = () if isinstance(baselines, Mapping) else tuple(baselines)
    runs: dict[str, dict[str, list[np.ndarray]]] = {}
    for number, seed in track([(n, s) for n in range(len(several)) for s in seeds], "evaluation"):
        beside = {**_baselines(several[number], data.x, called, seed), **given} if number == 0 else {}
        for label, one in {"": several[number], **beside}.items():
            asked = _Asked(one, data, seed, model, site, texts)
            for name in names:
                for score, values in _renamed(name, MEASURES[name].take(asked)).items():
                    runs.setdefault(score, {}).setdefault(label, []).append(values)
    better = {score: way for name in names for score, way in MEASURES[name].better.items()}
    scores = []
    for score, by_label in runs.items():
        estimates = {label: Estimate.of(values) for label, values in by_label.items()}
        own = estimates.pop("")
        scores.append(Score(score, own.value, own.interval, better.get(score, ""), estimates))
    facts = {"dictionaries": len(several), "width": several[0].width, "rows": len(data), "concepts": len(data.names)}
    return Scores(tuple(scores), facts | {"seeds": list(seeds)})


_baselines = baselines


def _renamed(measure: str, values: Values) -> Values:
    """Scores by names that say what they are when they stand alone."""
    prefix = {"absorption": {"full": "full absorption", "fraction": "absorption fraction"},
              "splitting": {"latents": "latents a concept"}}.get(measure, {})  # fmt: skip
    if measure == "ravel":
        return {f"ravel {name}": value for name, value in values.items()}
    return {prefix.get(name, name): value for name, value in values.items()}


def _chosen(wanted: Sequence[str] | None, asked: _Asked, named: bool) -> list[str]:
    unknown = [name for name in wanted or () if name not in MEASURES]
    if unknown:
        near = difflib.get_close_matches(unknown[0], MEASURES, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no measure is called {unknown[0]!r}{hint} There are {', '.join(MEASURES)}.")
    found = []
    for name in wanted or MEASURES:
        lacking = MEASURES[name].lacks(asked)
        if lacking and named:
            raise ValueError(f"the measure {name!r} needs {lacking}")
        if not lacking:
            found.append(name)
    return found
