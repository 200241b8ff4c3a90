"""Probe a model: every site, position and label, cross-validated, beside what the same probe finds where nothing is.

    scores = pc.probes.probe(model, texts, labels, sites="resid_post.*", positions="last")
    scores.table                               # layer x pos x label: score, low, high, shuffled, random, bag_of_tokens
    scores.best()                              # where the label is read best
    scores.direction()                         # the probe there on all rows, as a vector with its site

Labels are classes, or numbers: then the score is R² and the probe a ridge regression.

Every score is of rows that the probe was not fitted on. `shuffled` are labels in another order, `random` activations of
the same mean and covariance that say nothing, `bag_of_tokens` the words of the prompt without the model.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from patchclamp.model import Model
from patchclamp.probes import controls
from patchclamp.probes.estimator import Estimator, Probe, Vector, one_hot
from patchclamp.probes.logistic import Logistic
from patchclamp.probes.measures import MEASURES, NUMBERS, bootstrap, by_name
from patchclamp.probes.regression import RidgeRegression
from patchclamp.sites import Site, SiteError
from patchclamp.tasks import Task
from patchclamp.views.terminal import progress, track


@dataclass(frozen=True, eq=False)
class Scores:
    """`table` is a Dataset over layer (or site), pos and label: `score` with `low` and `high` (95 %, over prompts), and
    its controls. `probes` [site, pos, label] are fitted on all rows; `sites`, `positions`, `labels` name them.
    """

    table: xr.Dataset
    probes: Probe
    sites: tuple[str, ...]
    positions: tuple[Any, ...]
    labels: tuple[str, ...]

    def best(self) -> dict[str, Any]:
        """Coordinates and values where the score is highest."""
        place = np.unravel_index(int(self.table["score"].values.argmax()), self.table["score"].shape)
        here = self.table.isel(dict(zip(self.table["score"].dims, place, strict=True)))
        return {str(name): value.item() for name, value in {**here.coords, **here.data_vars}.items()}

    def direction(self, *, site: str | None = None, pos: Any = None, label: str | None = None) -> Vector:
        """The probe at one place as a vector with its site; where nothing is said, that of the best score.

        LookupError for a place that was not probed.
        """
        best = np.unravel_index(int(self.table["score"].values.argmax()), self.table["score"].shape)
        index = []
        for asked, there, otherwise in zip(
            (site, pos, label), (self.sites, self.positions, self.labels), best, strict=True
        ):
            if asked is not None and asked not in there:
                raise LookupError(f"{asked!r} was not probed; there are {', '.join(map(str, there))}")
            index.append(int(otherwise) if asked is None else there.index(asked))
        return Vector(self.probes.weight[tuple(index)], self.sites[index[0]])

    def plot(self, label: str | None = None) -> Any:
        """A heatmap of one label's score, layers by positions."""
        from patchclamp import views

        chosen = self.labels[0] if label is None else label
        title = f"{chosen}: {self.table.attrs['measure']} on other prompts"
        return views.heatmap(
            self.table["score"].sel(label=chosen), title=title, colour_label=self.table.attrs["measure"]
        )

    def save(self, path: str | Path) -> None:
        """One file; `Scores.load` gives the same back."""
        probes = {"weight": self.probes.weight, "bias": self.probes.bias}
        names = {"sites": self.sites, "positions": self.positions, "labels": self.labels}
        torch.save({**probes, **names, "table": self.table.to_dict()}, path)

    @classmethod
    def load(cls, path: str | Path) -> "Scores":
        """Read what `save` wrote; nothing in the file is run."""
        held = torch.load(path, weights_only=True)
        names = (tuple(held[key]) for key in ("sites", "positions", "labels"))
        return cls(xr.Dataset.from_dict(held["table"]), Probe(held["weight"], held["bias"], True), *names)

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


def probe(
    model: Model,
    texts: "Sequence[str] | Task | Int[Tensor, 'prompt pos']",
    labels: Any = None,
    *,
    sites: "str | Site | Sequence[str | Site]" = "resid_post.*",
    positions: Any = "last",
    probe: Estimator | None = None,
    measure: str | None = None,
    folds: int = 5,
    groups: Sequence[Any] | None = None,
    seed: int = 0,
    batch: int = 64,
) -> Scores:
    """How well each label is read at each site and position, on prompts that the probe has not seen.

    `texts` are prompts, or a `Task` (its clean prompts). `labels` are one value a prompt (each class against the rest,
    where there are more than two), or a mapping of names to one 0 or 1 a prompt; for a task, None asks which answer is
    right. They are numbers where one of them is a fraction, or where `probe` is one for numbers (`regression`).
    `positions` is "last", "each" (as many as the shortest prompt has), "labels" (a task's roles), "tokens", or a list
    of positions. With "tokens" every token is a row, labels are [prompt, pos], -1 where a token has none (NaN for
    numbers), and a task with a random label for each kind of token is a further control.
    Prompts of one of the `groups` are never on both sides of a fold. `probe` is any estimator of this room, by default
    a balanced, standardised logistic regression, scored by "auc"; for numbers a ridge regression, scored by "r2".
    """
    numbers = has_fractions(labels) if probe is None else probe.numbers
    default = RidgeRegression() if numbers else Logistic(C=0.1, balanced=True, standardise=True)
    kind = default if probe is None else probe
    measure = ("r2" if numbers else "auc") if measure is None else measure
    score = by_name(measure)
    if (measure in NUMBERS) != numbers:
        fitting = ", ".join(name for name in MEASURES if (name in NUMBERS) == numbers)
        raise ValueError(f"measure={measure!r} is not for {'numbers' if numbers else 'classes'}; there are {fitting}")
    task = texts if isinstance(texts, Task) else None
    tokens = model.tokens(texts) if task is None else model.tokens(task.clean, task.mask)
    by_token = isinstance(positions, str) and positions == "tokens"
    given = labels if labels is not None else _answers(task)
    y, names = labelled(given, len(tokens.ids), by_token, numbers)
    wanted = _sites(model, sites)
    where, places = _places(task, tokens.mask.bool(), positions)
    group = _numbered(groups, len(tokens.ids))
    x = _activations(model, tokens.ids, tokens.mask.bool(), wanted, where, batch)
    bag, known = controls.bag_of_tokens(tokens.ids, tokens.mask), tokens.mask.bool()
    if by_token:
        known = tokens.mask.bool() & (y.isfinite() if numbers else y >= 0).all(-1)
        x = x.transpose(1, 2)[:, known][:, None]
        y, group = y[known], group[:, None].expand(known.shape)[known]
        bag = torch.nn.functional.one_hot(tokens.ids[known].unique(return_inverse=True)[1]).double()
    fold = _folds(group, y, folds, seed)
    wrong = controls.shuffled(y, seed=seed)
    sides = {"score": (x, y), "shuffled": (x, wrong), "random": (controls.random_like(x, seed=seed), y)}
    if by_token:
        sides["control_task"] = (x, _control_task(tokens.ids[known], y, numbers, seed))
    with progress(f"probing {x.shape[0] * x.shape[1] * len(names)} places", folds * (len(sides) + 1)) as advance:
        decisions = {name: _left_out(kind, *pair, fold, advance) for name, pair in sides.items()}
        words = _left_out(RidgeRegression() if numbers else Logistic(balanced=True), bag, y, fold, advance)
    found = {name: score(decisions[name], sides[name][1].T) for name in sides}
    if by_token:
        found["selectivity"] = found["score"] - found["control_task"]
    found["bag_of_tokens"] = score(words, y.T).expand(found["score"].shape)
    found["low"], found["high"] = bootstrap(score, decisions["score"], y.T, groups=group, seed=seed)
    whole = copy.copy(kind).fit(x, y).probe_
    facts = {"model": model.name, "probe": repr(kind), "measure": measure, "rows": len(y), "folds": folds, "seed": seed}
    facts["certificate"] = int(model.certificate.holds)
    table = _table(found, wanted, places, names, facts)
    return Scores(table, whole, tuple(map(str, wanted)), tuple(places), tuple(names))


def has_fractions(labels: Any) -> bool:
    """Whether labels, of one column or several by name, are numbers of which one is a fraction.

    >>> has_fractions([1.5, 2.0]), has_fractions([1, 0]), has_fractions(["a", "b"]), has_fractions({"late": [0, 1]})
    (True, False, False, False)
    """
    columns = list(labels.values()) if isinstance(labels, Mapping) else [] if labels is None else [labels]
    for column in columns:
        values = np.asarray(column)
        if values.dtype.kind == "f" and bool((np.isfinite(values) & (values % 1 != 0)).any()):
            return True
    return False


def labelled(
    labels: Any, prompts: int, by_token: bool = False, numbers: bool = False
) -> tuple[Float[Tensor, "*row label"], list[str]]:
    """Labels as columns with their names: a mapping is taken as it is, and so are numbers; two classes are one column
    of 0 and 1, more are each against the rest. ValueError where there are not as many as prompts, or only one class.
    """
    if isinstance(labels, Mapping):
        columns = [torch.as_tensor(values).double() for values in labels.values()]
        y, names = torch.stack(columns, -1), [str(name) for name in labels]
    elif by_token or numbers:
        y, names = torch.as_tensor(np.asarray(labels, dtype=float))[..., None], ["label"]
    else:
        each, classes = one_hot(labels)
        if len(classes) < 2:
            raise ValueError(f"all labels are {classes[0]!r}: there is nothing to tell apart")
        y, names = (each[:, 1:], [str(classes[1])]) if len(classes) == 2 else (each, [str(one) for one in classes])
    if len(y) != prompts or y.ndim != 2 + by_token:
        shape = "[prompt, pos]" if by_token else "one a prompt"
        raise ValueError(f"labels are {tuple(y.shape[:-1])}: expected {shape}, of {prompts} prompts")
    return y.double(), names


def _control_task(ids: Tensor, y: Tensor, numbers: bool, seed: int) -> Float[Tensor, "row label"]:
    if numbers:
        return controls.control_numbers(ids, y, seed=seed)
    shares = y.mean(0).tolist()
    return torch.stack([controls.control_task(ids, share=share, seed=seed + i) for i, share in enumerate(shares)], -1)


def _answers(task: Task | None) -> list[int]:
    if task is None:
        raise ValueError("labels=None asks which answer of a task is right; for texts give labels, one a prompt")
    return task.answers[:, 0].tolist()


def _sites(model: Model, sites: Any) -> list[Site]:
    patterns = [sites] if isinstance(sites, (str, Site)) else list(sites)
    found = [site for pattern in patterns for site in model.sites(pattern)]
    for site in found:
        if site.kind in ("pattern", "scores"):
            raise SiteError(f"{site} has a dimension of keys, which differs between prompts: it cannot be probed")
    return found


def _places(task: Task | None, mask: Tensor, positions: Any) -> tuple[Int[Tensor, "prompt place"] | None, list[Any]]:
    """Positions to read in each prompt, and what they are called; None for all."""
    count = mask.sum(1)
    if isinstance(positions, str) and positions == "labels":
        if task is None:
            raise ValueError('positions="labels" are the roles of a task; these are texts')
        roles = [role for role, where in task.labels.items() if bool((where >= 0).all())]
        return torch.stack([task.labels[role] for role in roles], 1), roles
    if isinstance(positions, str) and positions == "tokens":
        return None, ["tokens"]
    if isinstance(positions, str) and positions not in ("last", "each"):
        raise ValueError(f"positions={positions!r}: expected 'last', 'each', 'labels', 'tokens', or a list of numbers")
    if isinstance(positions, str):
        chosen = [-1] if positions == "last" else list(range(int(count.min())))
    else:
        chosen = [positions] if isinstance(positions, int) else list(positions)
    wanted = torch.tensor(chosen).expand(len(mask), -1)
    wanted = torch.where(wanted < 0, wanted + count[:, None], wanted)
    bad = (wanted < 0) | (wanted >= count[:, None])
    if bool(bad.any()):
        row, place = (int(i) for i in bad.nonzero()[0])
        raise ValueError(f"prompt {row} has {int(count[row])} tokens, and no position {chosen[place]}")
    return wanted, chosen


def _activations(
    model: Model, ids: Tensor, mask: Tensor, sites: list[Site], where: Tensor | None, batch: int
) -> Float[Tensor, "site place prompt d"]:
    """What each site holds there; a site with units of its own (heads) is read whole, flattened."""
    kept: list[list[Tensor]] = [[] for _ in sites]
    for first in track(range(0, len(ids), batch), "reading activations"):
        part = slice(first, first + batch)
        positions = None if where is None else where[part]
        run = model.run(ids[part], attention_mask=mask[part], record=sites, positions=positions, stop=True)
        for one, site in zip(kept, sites, strict=True):
            one.append(run[site].flatten(2).transpose(0, 1).float().cpu())
    wide = [torch.cat(one, 1) for one in kept]
    if len({tensor.shape[-1] for tensor in wide}) > 1:
        raise ValueError(f"sites of one width are probed together, not {[tuple(t.shape[2:]) for t in wide]}")
    return torch.stack(wide)


def _numbered(groups: Sequence[Any] | None, prompts: int) -> Int[Tensor, " prompt"]:
    if groups is None:
        return torch.arange(prompts)
    if len(groups) != prompts:
        raise ValueError(f"{len(groups)} groups of {prompts} prompts: give one a prompt")
    names = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    return torch.tensor([names[name] for name in groups])


def _folds(group: Tensor, y: Tensor, folds: int, seed: int) -> Int[Tensor, " row"]:
    """The fold of each row: groups in random order, those with the same labels dealt out one to each fold."""
    generator = torch.Generator().manual_seed(seed)
    groups = group.unique()
    if not 2 <= folds <= len(groups):
        raise ValueError(f"folds={folds} of {len(groups)} prompts or groups")
    order = groups[torch.randperm(len(groups), generator=generator)].tolist()
    first = {int(g): i for i, g in reversed(list(enumerate(group.tolist())))}
    order.sort(key=lambda g: tuple(y[first[g]].tolist()))
    dealt = {g: place % folds for place, g in enumerate(order)}
    return torch.tensor([dealt[int(g)] for g in group])


def _left_out(
    kind: Estimator, x: Tensor, y: Tensor, fold: Tensor, advance: Callable[[], None]
) -> Float[Tensor, "*site label row"]:
    """The decision on each row by the probe that was fitted on the other folds."""
    out = torch.zeros(*x.shape[:-2], y.shape[1], len(y), dtype=torch.float64)
    for one in fold.unique():
        left = fold == one
        fit = copy.copy(kind).fit(x[..., ~left, :], y[~left])
        out[..., left] = fit.decision_function(x[..., left, :]).transpose(-1, -2).cpu()
        advance()
    return out


def _table(
    found: dict[str, Tensor], sites: list[Site], places: list[Any], names: list[str], facts: dict[str, Any]
) -> xr.Dataset:
    plain = len({site.kind for site in sites}) == 1 and all(site.layer is not None for site in sites)
    first = ("layer", [site.layer for site in sites]) if plain else ("site", [str(site) for site in sites])
    axes = dict([first, ("pos", places), ("label", names)])
    held = {name: (tuple(axes), values.numpy()) for name, values in found.items()}
    return xr.Dataset(held, coords=axes, attrs=facts)
