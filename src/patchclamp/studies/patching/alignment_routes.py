"""How alignment routes: localizing, scaling and controlling policy circuits in language models (Frank 2026).

What is refused is decided by a gate, a head that writes next to nothing of the refusal itself: it reads what was
detected and tells later components, which write it. So the gate is found by interchange and not by what it writes;
without it the amplifiers fall silent; where a second gate backs it up, only both together are needed; and under a
cipher the gate is not triggered, though its state from the plain prompt brings the refusal back.

A hand-written network has one gate, two amplifiers and decoys that write much and decide nothing. `tales-chat`, which
was taught to refuse one class of requests, is asked whether it has such a head too. This is measurement of which parts
refuse: nothing here makes requests that are refused.
"""

from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy.stats import spearmanr

import patchclamp as pc
from patchclamp import metrics
from patchclamp.model import Model
from patchclamp.organisms.tales import chat, world
from patchclamp.patching.routes import LITTLE, candidates, cascade, rescue, routes, together
from patchclamp.studies.behaviour import task_of
from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured
from patchclamp.studies.patching._gated_network import AMPLIFIERS, BACKUP, GATE, network, topics
from patchclamp.studies.study import Study
from patchclamp.tasks import Task

study = Study(
    name="alignment-routes",
    paper="How Alignment Routes: Localizing, Scaling, and Controlling Policy Circuits in Language Models "
    "(arXiv:2604.04385)",
    seed="003_cedf108f4263b6b3.txt",
    organism="tales-chat",
)

STEPS = np.linspace(-1.0, 1.0, 11)  # strengths of the detected signal


@study.finding("the network with a planted gate refuses", at_least=0.95, control="its twins")
def planted_refuses(lab: Lab) -> Measured:
    task, model = lab.once(topics, False), lab.once(network, False)
    hits = [_refused(model, task, side) for side in ("clean", "corrupt")]
    return Measured.share(hits[0], control=hits[1])


@study.finding(
    "interchange ranks the gate first, with p below .001",
    at_most=1,
    control="its rank by what heads write themselves",
    given=planted_refuses,
)
def gate_is_first(lab: Lab) -> Measured:
    table = lab.once(_planted)
    significant = float(table["necessity_p"].sel(layer=0, head=0)) < 0.001
    rank = _rank(table["necessity"]) if significant else table["necessity"].size
    return Measured.number(rank, control=_rank(abs(table["direct"])))


@study.finding(
    "what the gate writes itself ranks it behind the first five",
    at_least=6,
    control="the amplifiers' ranks",
    given=planted_refuses,
)
def written_share_misses_the_gate(lab: Lab) -> Measured:
    """It writes 1 % of the logits."""
    written = abs(lab.once(_planted)["direct"])
    return Measured.number(_rank(written), control=[_rank(written, site) for site in AMPLIFIERS])


@study.finding(
    "without the gate the amplifiers fall silent: part of what they wrote that is gone",
    at_least=0.8,
    control="without another head",
    given=planted_refuses,
)
def cascade_reaches_the_amplifiers(lab: Lab) -> Measured:
    model, task = lab.once(network, False), lab.once(topics, False)
    others = [site for site in map(str, model.sites("z.0.*")) if site != GATE]
    return Measured.number(_fall(model, task, GATE), control=[_fall(model, task, site) for site in others])


@study.finding(
    "where a second gate backs it up, one alone is hardly needed, both together are",
    at_least=0.6,
    control="one alone",
    given=planted_refuses,
)
def bands_are_needed(lab: Lab) -> Measured:
    """Necessity of both; of either alone it is at most .1, or else this is 0."""
    model, task = lab.once(network, True), lab.once(topics, False)
    alone = [together(model, task, site)[0] for site in (GATE, BACKUP)]
    both = together(model, task, [GATE, BACKUP])[0]
    return Measured.number(both if max(alone) <= 0.1 else 0.0, control=alone)


@study.finding(
    "in other words the gate is not triggered: part of its necessity that is gone",
    at_least=0.7,
    control="with other fillers",
    given=planted_refuses,
)
def cipher_cuts_necessity(lab: Lab) -> Measured:
    """In logits, by prompt: what the gate's interchange takes of the refusal in coded words, and in plain ones."""
    model = lab.once(network, False)
    plain, coded, again = (lab.once(topics, *some) for some in ((False,), (True,), (False, 1)))
    taken = [_taken(model, task) for task in (plain, coded, again)]
    whole = float(taken[0].mean())
    if whole < 1e-3:  # there is no necessity that could go
        return Measured.number(0.0, control=0.0)
    return Measured.mean(1 - taken[1] / whole, control=1 - taken[2] / whole)


@study.finding(
    "its state from the plain prompt brings the refusal back in coded ones",
    at_least=0.45,
    control="a decoy's state",
    given=cipher_cuts_necessity,
)
def rescue_restores(lab: Lab) -> Measured:
    """Share of coded prompts that are refused then."""
    model, plain, coded = lab.once(network, False), lab.once(topics, False), lab.once(topics, True)
    hits = [rescue(model, plain, coded, site).numpy() > 0 for site in (GATE, "z.0.2")]
    return Measured.share(hits[0], control=hits[1])


@study.finding(
    "refusal follows the strength of what is detected: rank correlation",
    at_least=0.95,
    control="along random directions",
    given=planted_refuses,
)
def dose_response(lab: Lab) -> Measured:
    """The direction is from other prompts. Random ones move what decoys write, as they do all that is linear."""
    return _dose(lab, lab.once(network, False), lab.once(topics, False, 1), lab.once(topics, False))


@study.finding("the chat model refuses", at_least=0.9, control="harmless twins")
def chat_refuses(lab: Lab) -> Measured:
    task = lab.once(_requests)
    hits = [_refused(lab.model, task, side) for side in ("clean", "corrupt")]
    return Measured.share(hits[0], control=hits[1])


@study.finding(
    "in the chat model the head that is needed most writes little of the refusal itself",
    at_most=LITTLE,
    control="the head that writes most",
    given=chat_refuses,
)
def chat_has_a_gate(lab: Lab) -> Measured:
    """Its share of what all components write; 1 where its p-value is .001 or more."""
    table = lab.once(_chat_routes)
    at = np.unravel_index(int(table["necessity"].values.argmax()), table["necessity"].shape)
    share = float(table["share"].values[at]) if float(table["necessity_p"].values[at]) < 0.001 else 1.0
    return Measured.number(share, control=float(table["share"].max()))


@study.finding(
    "the gate passes the test on other requests: necessity",
    at_least=0.0,
    control="another request's state of the same class",
    given=chat_has_a_gate,
)
def chat_gate_is_needed(lab: Lab) -> Measured:
    """Of the head chosen above, on requests that training never had; 0 where its p-value is .001 or more."""
    site = lab.once(_chat_gate)
    table = pc.patching.interchange(lab.model, lab.once(_requests, True), site, permutations=2000, seed=lab.seed)
    needed, control = float(table["necessity"].max()), float(table["necessity_control"].max())
    return Measured.number(needed if float(table["necessity_p"].max()) < 0.001 else 0.0, control=control)


@study.finding(
    "without the gate what comes behind it writes less of the refusal: part that is gone",
    at_least=0.8,
    control="without another head of its layer",
    given=chat_has_a_gate,
)
def chat_cascade(lab: Lab) -> Measured:
    """On the held-out requests, with the threshold of a planted gate; where other heads tell as well, less is gone."""
    site, task = lab.once(_chat_gate), lab.once(_requests, True)
    layer = int(site.split(".")[1])
    others = [other for other in map(str, lab.model.sites(f"z.{layer}.*")) if other != site]
    return Measured.number(_behind(lab, task, site), control=[_behind(lab, task, other) for other in others])


@study.finding(
    "in the chat model refusal follows the strength of what is detected: rank correlation",
    at_least=0.95,
    control="along random directions",
    given=chat_refuses,
)
def chat_dose_response(lab: Lab) -> Measured:
    """The direction is from training's requests, refusal that of held-out ones."""
    return _dose(lab, lab.model, lab.once(_requests), lab.once(_requests, True))


@study.identity(
    "what all components write is the logit difference",
    tolerance=1e-3,
    control="the heads alone",
    breaks=1e-2,
)
def parts_sum(lab: Lab) -> Measured:
    config: Any = lab.model.hf.config
    capped = getattr(config.get_text_config(), "final_logit_softcapping", None)
    lab.need(not capped, "a model whose logits are linear in the last norm's output, with no soft cap on them")
    task = lab.once(_behaviour)[:16]
    written = pc.patching.direct_effect(lab.model, task)
    logits = lab.model.run(task.clean, attention_mask=task.mask).logits
    assert logits is not None
    whole = metrics.logit_difference(task.at_answer(logits), task).numpy()
    heads = written.sel(component=[str(name).startswith("head_out") for name in written.component.values])
    return Measured.gap(written.sum("component").values, whole, control=(heads.sum("component").values, whole))


@study.identity("a head exchanged with its own state changes nothing", tolerance=1e-5)
def own_state_changes_nothing(lab: Lab) -> Measured:
    task = lab.once(_behaviour)[:8]
    values = rescue(lab.model, task, task, "z.0.*")
    logits = lab.model.run(task.clean, attention_mask=task.mask).logits
    assert logits is not None
    return Measured.gap(values, metrics.logit_difference(task.at_answer(logits), task))


@study.figure("Necessity of each head of the chat model for refusing")
def necessity(lab: Lab):
    return pc.views.heatmap(lab.once(_chat_routes)["necessity"], title="necessity")


# ── what the claims share ─────────────────────────────────────────────────────────────────────────────────────────────


def _refused(model: Model, task: Task, side: str) -> np.ndarray:
    """Whether the refusal's first token is the likeliest of all."""
    logits = model.run(getattr(task, side), attention_mask=task.mask).logits
    assert logits is not None
    return metrics.top1(task.at_answer(logits), task).numpy()


def _rank(table: xr.DataArray, site: str = GATE) -> int:
    """The place of a head, the largest value first."""
    _, layer, head = site.split(".")
    return 1 + int((table.values > float(table.sel(layer=int(layer), head=int(head)))).sum())


def _fall(model: Model, task: Task, site: str) -> float:
    """The part of what the amplifiers write that goes with a head."""
    names = [f"head_out.{one[2:]}" for one in AMPLIFIERS]
    found = cascade(model, task, site).sel(component=names).sum()
    before = float(found["before"])
    return 1 - float(found["after"]) / before if before else 0.0


def _behind(lab: Lab, task: Task, site: str) -> float:
    """The part of what the later layers and this one's MLP write that goes with a head."""
    layer, found = int(site.split(".")[1]), cascade(lab.model, task, site)
    names = [str(name) for name in found.component.values]
    later = [
        name
        for name in names
        if (name.startswith(("head_out", "mlp_out")) and int(name.split(".")[1]) > layer) or name == f"mlp_out.{layer}"
    ]
    sums = found.sel(component=later).sum()
    before = float(sums["before"])
    return 1 - float(sums["after"]) / before if before else 0.0


def _taken(model: Model, task: Task) -> np.ndarray:
    """What the corrupted prompts' state of the gate takes of each prompt's logit difference."""
    clean = model.run(task.clean, attention_mask=task.mask).logits
    state = model.run(task.corrupt, attention_mask=task.mask, record="z.0")["z.0"][:, :, 0]
    patched = model.run(task.clean, attention_mask=task.mask, do=[pc.patch(GATE, state)]).logits
    assert clean is not None and patched is not None
    before, after = (metrics.logit_difference(task.at_answer(logits), task) for logits in (clean, patched))
    return (before - after).double().numpy()


def _dose(lab: Lab, model: Model, shown: Task, task: Task, site: str = "resid_pre.0") -> Measured:
    """Spearman's correlation of strength and refusal, of twins to whose word a direction is added.

    It is the difference of means at the word in which the two sides of `shown` differ.
    """
    where = (shown.clean != shown.corrupt).float().argmax(1)
    states = [model.run(ids, attention_mask=shown.mask, record=site)[site] for ids in (shown.clean, shown.corrupt)]
    rows = torch.arange(len(shown))
    found = (states[0][rows, where] - states[1][rows, where]).mean(0)
    randoms = torch.randn(10, len(found), generator=torch.Generator().manual_seed(lab.seed))
    values, pos = [], (task.clean != task.corrupt).float().argmax(1)[:, None]
    for direction in (found, *(randoms / randoms.norm(dim=1, keepdim=True) * found.norm())):
        curve = []
        for step in STEPS:
            do = [pc.add(site, direction, scale=float(step), pos=pos)]
            logits = model.run(task.corrupt, attention_mask=task.mask, do=do).logits
            assert logits is not None
            curve.append(float(metrics.logit_difference(task.at_answer(logits), task).mean()))
        correlation: Any = 0.0 if np.ptp(curve) < 1e-6 else spearmanr(STEPS, curve)[0]
        values.append(float(correlation))
    return Measured.number(values[0], control=np.abs(values[1:]).mean())


# ── requests of the chat model ────────────────────────────────────────────────────────────────────────────────────────


def _requests(lab: Lab, held_out: bool = False) -> Task:
    """Each request of the refused class beside one that differs in its verb alone; `held_out` from training."""
    lab.need(lab.truth.name == "tales-chat", "organism:tales-chat, of which it is known what it refuses")
    from patchclamp.tasks.example import reserved

    rows = [
        tuple(f"<|user|>{chat.ask(template, verb, target).text}<|assistant|>" for verb in pair)
        for template in (world.REQUESTS if held_out else world.REQUESTS[:-1])
        for pair in zip(world.REFUSED, world.HARMLESS, strict=True)
        for target in world.TARGETS
        if all(reserved("request", verb, target) == held_out for verb in pair)
    ]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(lab.seed)).tolist()
    rows = [rows[at] for at in order[: 240 if lab.full else 64]]
    clean, corrupt = zip(*rows, strict=True)
    refusal, help_ = [chat.REFUSAL.split()[0]] * len(rows), ["To"] * len(rows)
    return Task.from_prompts(lab.model, clean=clean, corrupt=corrupt, answers=refusal, wrong=help_, name="requests")


def _behaviour(lab: Lab) -> Task:
    """For what is true of any behaviour: requests, or what another model is asked to do."""
    return lab.once(_requests) if lab.truth.name == "tales-chat" else lab.once(task_of)


def _chat_routes(lab: Lab) -> xr.Dataset:
    return routes(lab.model, lab.once(_requests), seed=lab.seed)


def _chat_gate(lab: Lab) -> str:
    """The most needed head that writes little; the most needed one, where there is none."""
    table = lab.once(_chat_routes)
    found = candidates(table)
    at = np.unravel_index(int(table["necessity"].values.argmax()), table["necessity"].shape)
    return str(found[0]) if found else f"z.{at[0]}.{at[1]}"


# ── the hand-written network ──────────────────────────────────────────────────────────────────────────────────────────


def _planted(lab: Lab) -> xr.Dataset:
    return routes(lab.once(network, False), lab.once(topics, False), permutations=2000, seed=lab.seed)
