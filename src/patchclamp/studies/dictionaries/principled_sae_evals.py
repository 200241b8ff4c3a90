"""Towards Principled Evaluations of Sparse Autoencoders for Interpretability and Control (Makelov, Lange, Nanda 2024).

Indirect object identification has three attributes that are known of every prompt: the indirect object, the subject,
and which of them is named first. A supervised dictionary with a direction for each of their values says what features
can do at a site, and a sparse autoencoder trained on the same prompts is asked the same: is its reconstruction enough
for the task, do edits through it change the answer, do its latents say the values.

The site is the stream at the last token, after the layer where its mean in its place costs most of the logit
difference, as found on prompts that no claim is about. Earlier, an edit can succeed although nothing is lost without
the site: later layers read the name anew (see the figure by layer).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

import patchclamp as pc
from patchclamp import metrics
from patchclamp.dictionaries import BatchTopK, Dictionary, Trainer, measures
from patchclamp.dictionaries.supervised import (
    Supervised,
    Values,
    activations,
    detector_f1,
    fit,
    logits_with,
    sparse_edit,
)
from patchclamp.studies.behaviour import answers, task_on
from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured
from patchclamp.studies.seeds import over_seeds
from patchclamp.studies.study import Study
from patchclamp.tasks import Task, ioi

study = Study(
    name="principled-sae-evals",
    paper="Towards Principled Evaluations of Sparse Autoencoders for Interpretability and Control (arXiv:2405.08366)",
    seed="002_c890b7b323703807.txt",
    organism="tales",
)

CHANGED = 8
"""Latents that a sparse edit may change."""


@study.finding("the model does the task", at_least=0.9, control="the same answers on the corrupted prompts")
def does_the_task(lab: Lab) -> Measured:
    return answers(lab, task_on(lab.model, ioi, n=256 if lab.full else 64, seed=lab.seed))


@study.identity(
    "where attributes are balanced and independent, least squares gives the conditional means",
    tolerance=1e-4,
    control="prompts in which the two names are never the same",
    breaks=1e-3,
)
def fits_agree(lab: Lab) -> Measured:
    """Directions as shares of the activations' norm: six names for each role, every combination once."""
    prompts = lab.once(_prompts, "fit")
    roles = [prompts.names[prompts.values[role]].unique()[:12] for role in ("IO", "S")]
    names = roles[0][:6], torch.tensor([name for name in roles[1].tolist() if name not in roles[0][:6].tolist()][:6])
    values = torch.cartesian_prod(*(torch.arange(len(some)) for some in names), torch.arange(2))
    rows = [int((prompts.values["order"] == order).nonzero()[0]) for order in (0, 1)]
    base = torch.tensor(rows)[values[:, 2]]
    tokens = _named(prompts.task, base, names[0][values[:, 0]], names[1][values[:, 1]])
    site = _sites(lab)[-1]
    x = activations(lab.model, tokens, site, prompts.task.positions[base], mask=prompts.task.mask[base])
    balanced = dict(zip(prompts.values, values.T, strict=True))
    unbalanced = {name: value[:200] for name, value in prompts.values.items()}
    other = lab.once(_states, "fit", site)[:200]
    return Measured.gap(*_both_fits(x, balanced), control=_both_fits(other, unbalanced))


@study.finding(
    "the supervised dictionary's reconstruction keeps the logit difference",
    at_least=0.95,
    control="the mean activation in its place",
    given=does_the_task,
)
def reconstruction_is_enough(lab: Lab) -> Measured:
    kept, _, ablated = lab.once(_approximation, "supervised")
    return Measured.mean(kept, control=ablated)


@study.finding(
    "what the dictionary explains is needed: without it the logit difference is gone",
    at_most=0.05,
    control="the supervised dictionary's reconstruction",
    given=does_the_task,
)
def explanation_is_needed(lab: Lab) -> Measured:
    """The share of the logit difference that is left where the mean takes the place of what is explained."""
    kept, deleted, _ = lab.once(_approximation, "supervised")
    return Measured.mean(deleted, control=kept)


@study.finding(
    "an edit of the indirect object changes the answer to the new name",
    at_least=0.9,
    control="a random edit of the same size",
    given=does_the_task,
)
def edits_control(lab: Lab) -> Measured:
    at = lab.once(_causal_site)
    return Measured.share(lab.once(_edited, at, "supervised"), control=lab.once(_edited, at, "random"))


@study.finding(
    "to explain is not to control: after the first layer, explained as well, the same edit changes no answer",
    at_most=0.05,
    control="the same edit at the causal layer",
    given=edits_control,
)
def explaining_is_not_controlling(lab: Lab) -> Measured:
    """Needs a first layer that is explained: 0.9 of its variance; NaN where it is not."""
    first = _sites(lab)[0]
    at = lab.once(_causal_site)
    x, prompts = lab.once(_states, "test", first), lab.once(_prompts, "test")
    if 1 - measures.fvu(x, lab.once(_fitted, first).explain(prompts.values)) < 0.9:
        return Measured.number(float("nan"), control=1.0)
    return Measured.share(lab.once(_edited, first, "supervised"), control=lab.once(_edited, at, "supervised"))


@study.finding(
    "an edit brings the activation towards that of the prompt with the other name: share of the distance left",
    at_most=0.5,
    control="a random edit of the same size",
    given=does_the_task,
)
def edits_reach_the_counterfactual(lab: Lab) -> Measured:
    at = lab.once(_causal_site)
    x, target = lab.once(_states, "test", at), lab.once(_counterfactual, at)
    left = [(lab.once(_edits, at, how) - target).norm(dim=1) / (x - target).norm(dim=1) for how in EDITS]
    return Measured.mean(left[0], control=left[1])


@study.finding(
    "an autoencoder trained on the task, asked the same, keeps the logit difference",
    at_least=0.8,
    control="its decoder's rows exchanged",
    given=does_the_task,
)
@over_seeds
def autoencoder_is_enough(lab: Lab) -> Measured:
    return Measured.mean(lab.once(_approximation, "autoencoder")[0], control=lab.once(_approximation, "exchanged")[0])


@study.finding(
    "changing at most 8 of its latents changes the answer to the new name",
    at_least=0.5,
    control="its decoder's rows exchanged",
    given=edits_control,
)
@over_seeds
def autoencoder_controls(lab: Lab) -> Measured:
    sae, exchanged = lab.once(_autoencoders)
    return Measured.share(_sparsely_edited(lab, sae, CHANGED), control=_sparsely_edited(lab, exchanged, CHANGED))


@study.finding(
    "its latents say the indirect object: mean F1 score, over names, of the latent chosen for each on other prompts",
    at_least=0.5,
    control="names exchanged among the prompts",
    given=does_the_task,
)
@over_seeds
def latents_say_the_name(lab: Lab) -> Measured:
    sae, _ = lab.once(_autoencoders)
    at = lab.once(_causal_site)
    prompts = lab.once(_prompts, "fit")
    codes, values = sae.encode(lab.once(_states, "fit", at)), prompts.values["IO"]
    exchanged = values[torch.randperm(len(values), generator=lab.generator)]
    half = len(values) // 2
    scores = []
    for named in (values, exchanged):
        chosen = detector_f1(_rows(codes, slice(0, half)), named[:half]).argmax(1)
        held_out = detector_f1(_rows(codes, slice(half, None)), named[half:])
        count = min(len(chosen), len(held_out))
        scores.append(held_out[torch.arange(count), chosen[:count]])
    return Measured.mean(scores[0], control=scores[1])


@study.figure("Share of answers changed to the new name, by how many latents of the autoencoder may change")
def success_by_latents(lab: Lab):
    sae, exchanged = lab.once(_autoencoders)
    counts = [1, 2, 4, 8, 16]
    at = lab.once(_causal_site)
    curves = {
        "autoencoder": [float(_sparsely_edited(lab, sae, k).double().mean()) for k in counts],
        "decoder exchanged": [float(_sparsely_edited(lab, exchanged, k).double().mean()) for k in counts],
        "supervised, 2": [float(lab.once(_edited, at, "supervised").double().mean())] * len(counts),
    }
    return pc.views.lines(counts, curves, title="control by sparse edits")


@study.figure("By layer: edits of the indirect object that change the answer, and what is left without the site")
def success_by_layer(lab: Lab):
    sites = _sites(lab)
    found = {how: [float(lab.once(_edited, at, how).double().mean()) for at in sites] for how in EDITS}
    found["logit difference left with the mean"] = [lab.once(_without, at, "test") for at in sites]
    return pc.views.lines(list(range(len(sites))), found, title="control by layer")


# ── prompts and their attributes ──────────────────────────────────────────────────────────────────────────────────────

SIZES = {"fit": 3000, "choose": 100, "test": 200}


@dataclass(frozen=True)
class Prompts:
    """Prompts of the task, their attributes as numbers, and the token of each name."""

    task: Task
    values: Values
    names: Int[Tensor, " name"]

    def token(self, role: str) -> Int[Tensor, " prompt"]:
        return self.names[self.values[role]]


def _prompts(lab: Lab, part: str) -> Prompts:
    """Every part has the names of "fit" and no others."""
    size = SIZES[part] * (3 if lab.full else 1)
    task = task_on(lab.model, ioi, n=size, seed=len(SIZES) * lab.seed + list(SIZES).index(part))
    rows = torch.arange(len(task))
    tokens = {role: task.clean[rows, task.labels[place]] for role, place in (("IO", "IO"), ("S", "S1"))}
    names = torch.cat(list(tokens.values())).unique() if part == "fit" else lab.once(_prompts, "fit").names
    lab.need(
        all(bool(torch.isin(ids, names).all()) for ids in tokens.values()), f"names that {SIZES['fit']} prompts show"
    )
    values = {role: torch.searchsorted(names, ids) for role, ids in tokens.items()}
    return Prompts(task, {**values, "order": (task.labels["IO"] > task.labels["S1"]).long()}, names)


def _named(
    task: Task, rows: Int[Tensor, " prompt"], io: Int[Tensor, " prompt"], subject: Int[Tensor, " prompt"] | None = None
) -> Int[Tensor, "prompt pos"]:
    """The tokens of these prompts with other names in their places."""
    tokens, each = task.clean[rows].clone(), torch.arange(len(rows))
    tokens[each, task.labels["IO"][rows]] = io
    if subject is not None:
        for place in ("S1", "S2"):
            tokens[each, task.labels[place][rows]] = subject
    return tokens


def _other_names(lab: Lab) -> Int[Tensor, " prompt"]:
    """For each prompt a name that is neither of its two."""
    prompts = lab.once(_prompts, "test")
    count = len(prompts.names)
    lab.need(count > 2, "three names that are single tokens")
    new = torch.randint(count, (len(prompts.task),), generator=lab.generator)
    for _ in range(2):  # the next name, and once more where that is the other one
        taken = (new == prompts.values["IO"]) | (new == prompts.values["S"])
        new = torch.where(taken, (new + 1) % count, new)
    return new


def _sites(lab: Lab) -> list[str]:
    return [str(site) for site in lab.model.sites("resid_post.*")]


def _states(lab: Lab, part: str, site: str) -> Float[Tensor, "prompt d"]:
    return lab.once(_all_states, part)[site]


def _all_states(lab: Lab, part: str) -> dict[str, Float[Tensor, "prompt d"]]:
    """The stream at the last token, after every layer."""
    task, sites = lab.once(_prompts, part).task, _sites(lab)
    found: dict[str, list[Tensor]] = {site: [] for site in sites}
    for rows in lab.progress(torch.arange(len(task)).split(250), f"prompts to {part}"):
        run = lab.model.run(task.clean[rows], attention_mask=task.mask[rows], record=sites)
        for site in sites:
            found[site].append(run[site][torch.arange(len(rows)), task.positions[rows]])
    return {site: torch.cat(parts) for site, parts in found.items()}


# ── the supervised dictionary ─────────────────────────────────────────────────────────────────────────────────────────

EDITS = ("supervised", "random")


def _fitted(lab: Lab, site: str) -> Supervised:
    return fit(lab.once(_states, "fit", site), lab.once(_prompts, "fit").values)


def _both_fits(x: Float[Tensor, "row d"], values: Values) -> tuple[Tensor, Tensor]:
    least, means = fit(x, values).W_dec, fit(x, values, "means").W_dec
    return least / x.norm(dim=1).mean(), means / x.norm(dim=1).mean()


def _edits(lab: Lab, site: str, how: str) -> Float[Tensor, "prompt d"]:
    """Activations in which another name is the indirect object; or random edits of the same size."""
    x, prompts = lab.once(_states, "test", site), lab.once(_prompts, "test")
    new = lab.once(_other_names)
    edited = lab.once(_fitted, site).edit(x, {"IO": prompts.values["IO"]}, {"IO": new})
    if how == "supervised":
        return edited
    noise = torch.nn.functional.normalize(torch.randn(x.shape, generator=lab.generator), dim=1)
    return x + noise * (edited - x).norm(dim=1, keepdim=True)


def _edited(lab: Lab, site: str, how: str) -> Tensor:
    return _answers_new(lab, site, lab.once(_edits, site, how))


def _answers_new(lab: Lab, site: str, x: Float[Tensor, "prompt d"]) -> Tensor:
    """Whether the answer, of all tokens, is the new name where the site holds x."""
    prompts = lab.once(_prompts, "test")
    logits = logits_with(lab.model, prompts.task.clean, site, prompts.task.positions, x, mask=prompts.task.mask)
    return logits.argmax(1) == prompts.names[lab.once(_other_names)]


def _causal_site(lab: Lab) -> str:
    """After which layer the mean in the stream's place leaves least of the logit difference."""
    return min(_sites(lab), key=lambda site: lab.once(_without, site, "choose"))


def _without(lab: Lab, site: str, part: str) -> float:
    """The share of the logit difference that is left with the mean at the site."""
    x = lab.once(_states, part, site)
    mean = lab.once(_states, "fit", site).mean(0).expand_as(x)
    whole, left = (_difference(lab, part, site, held).mean() for held in (x, mean))
    return float(left / whole)


def _difference(lab: Lab, part: str, site: str, held: Float[Tensor, "prompt d"]) -> Float[Tensor, " prompt"]:
    """Logit differences where the site holds this at the last token."""
    task = lab.once(_prompts, part).task
    logits = logits_with(lab.model, task.clean, site, task.positions, held, mask=task.mask)
    return metrics.logit_difference(logits.double(), task)


def _counterfactual(lab: Lab, site: str) -> Float[Tensor, "prompt d"]:
    """What the site holds where the prompt itself has the new name."""
    prompts, rows = lab.once(_prompts, "test"), torch.arange(len(lab.once(_prompts, "test").task))
    tokens = _named(prompts.task, rows, prompts.names[lab.once(_other_names)])
    return activations(lab.model, tokens, site, prompts.task.positions, mask=prompts.task.mask)


def _approximation(lab: Lab, which: str) -> tuple[Tensor, Tensor, Tensor]:
    """By prompt, as shares of the mean logit difference: with what is explained alone, without it, with the mean."""
    at = lab.once(_causal_site)
    x = lab.once(_states, "test", at)
    if which == "supervised":
        explained = lab.once(_fitted, at).explain(lab.once(_prompts, "test").values)
    else:
        explained = lab.once(_autoencoders)[which == "exchanged"](x)
    mean = lab.once(_states, "fit", at).mean(0).expand_as(x)
    whole = _difference(lab, "test", at, x).mean()
    kept, deleted, ablated = (
        _difference(lab, "test", at, held) / whole for held in (explained, x - explained + mean, mean)
    )
    return kept, deleted, ablated


# ── the autoencoder ───────────────────────────────────────────────────────────────────────────────────────────────────


def _autoencoders(lab: Lab) -> tuple[Dictionary, Dictionary]:
    """One trained on the prompts' activations at the causal site, and the same with its decoder's rows exchanged."""
    x, steps = lab.once(_states, "fit", lab.once(_causal_site)), 3000 if lab.full else 2000
    trainer = Trainer(BatchTopK(k=8), d_in=x.shape[1], width=256, steps=steps, seed=lab.seed, learning_rate=3e-3)
    if not lab.untrained:
        for _ in lab.progress(range(steps), "autoencoder"):
            trainer.step(x[torch.randint(len(x), (256,), generator=lab.generator)])
    sae = trainer.dictionary()
    order = torch.randperm(sae.width, generator=lab.generator)
    exchanged = Dictionary(sae.W_enc, sae.b_enc, sae.W_dec[order], sae.b_dec, b_in=sae.b_in, threshold=sae.threshold)
    return sae, exchanged


def _sparsely_edited(lab: Lab, dictionary: Dictionary, k: int) -> Tensor:
    """Whether the answer is the new name where at most k latents change towards the prompt that has it."""
    at = lab.once(_causal_site)
    x, target = lab.once(_states, "test", at), lab.once(_counterfactual, at)
    return _answers_new(lab, at, sparse_edit(dictionary, x, target, k).x)


def _rows(codes: pc.dictionaries.Codes, part: slice) -> pc.dictionaries.Codes:
    return pc.dictionaries.Codes(codes.indices[part], codes.values[part], codes.width)
