"""Explorations of self-repair in language models (Rushing and Nanda 2024).

Take a head away, and the logit of the next token falls by less than the head had added to it: later heads, MLPs and the
last norm make up for some of it. The paper finds this in whole heads over the whole distribution of text, imperfect and
different from token to token; about a third of the direct effect comes back because the last norm then divides by less,
and of the MLPs' part much is owed to few neurons that had written against the token and now do so less.

All parts are exact and keep their signs. In a hand-written network a backup head that is active if and only if the main
one is silent, and a neuron that erases what the main head writes, have to be found.
"""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import patchclamp as pc
from patchclamp.model import Model, wrap
from patchclamp.patching import SelfRepair, self_repair
from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured
from patchclamp.studies.study import Study

study = Study(
    name="self-repair",
    paper="Explorations of Self-Repair in Language Models (arXiv:2402.15390)",
    seed="002_c890b7b323703807.txt",
    organism="tales",
)

TOP = 0.02
"""The share of tokens that each head does most for, on which the paper reports."""
MAIN, BACKUP = 6.0, 4.0  # what the hand-written heads write of the letter that they find
ERASER = 7
LETTERS, FILLERS = range(1, 9), range(9, 13)
VOCABULARY = 13


@study.finding("the model predicts its text", at_least=0.3, control="the same architecture with fresh weights")
def predicts(lab: Lab) -> Measured:
    """Share of next tokens that have the highest logit."""
    tokens = lab.once(_tokens)
    hits = [_best(m, tokens)[:, :-1] == tokens[:, 1:] for m in (lab.model, lab.once(_fresh))]
    return Measured.share(hits[0].flatten(), control=hits[1].flatten())


@study.finding(
    "on the tokens that a head does most for, part of its direct effect comes back",
    at_least=0.0,
    control="the same with fresh weights",
    given=predicts,
)
def part_comes_back(lab: Lab) -> Measured:
    """Repair as a share of what the head's own direct effect fell by, over heads behind the first layer.

    The paper says that it exists, and not how much: more than nothing, and than in weights that have learnt nothing.
    """
    return _shares(lab, "repair")


@study.finding(
    "of the direct effect, the last norm's scale alone brings back a third",
    at_least=0.3,
    control="the same with fresh weights",
    given=predicts,
)
def the_norm_repairs(lab: Lab) -> Measured:
    return _shares(lab, "norm")


@study.finding(
    "it differs from token to token, and on some tokens more comes back than was lost",
    at_least=0.05,
    control="the same with fresh weights",
    given=part_comes_back,
)
def some_tokens_are_overcorrected(lab: Lab) -> Measured:
    hits = [_of_heads(lab.once(work), "repair") > 1 for work in (_repairs, _repairs_of_fresh_weights)]
    return Measured.share(hits[0], control=hits[1])


@study.finding(
    "few neurons of the last layer carry the anti-erasure: the share of them that carries half of it",
    at_most=0.1,
    control="the same with fresh weights",
    given=predicts,
)
def few_neurons_carry_it(lab: Lab) -> Measured:
    """One value for each head behind the first layer, of the means over its top tokens."""
    values = [[_half(found) for found in lab.once(work)] for work in (_repairs, _repairs_of_fresh_weights)]
    return Measured.mean(values[0], control=values[1])


@study.identity(
    "own effect, other heads, MLPs and the norm sum to the change of the logit, on every token",
    tolerance=1e-5,
    control="the norm's part left out",
    breaks=1e-4,
)
def parts_sum(lab: Lab) -> Measured:
    """Of every head and every MLP, in float64; the norm's part is computed from the stream, not as what is left."""
    model, tokens = lab.once(_exact), lab.once(_tokens)[:8]
    found = [self_repair(model, tokens, site, seed=lab.seed) for site in model.sites(["z.*.*", "mlp_out.*"])]
    change, norm = (np.stack([getattr(one, name) for one in found]) for name in ("change", "norm"))
    summed = np.stack([one.effects.values.sum(0) for one in found])
    return Measured.gap(summed, change, control=(summed - norm, change))


@study.identity(
    "with the last norm's scale held, the rest is the whole change, and its own part is nothing", tolerance=1e-5
)
def frozen_scale(lab: Lab) -> Measured:
    model, tokens = lab.once(_exact), lab.once(_tokens)[:8]
    site = model.sites(f"z.{model.n_layers // 2}.*")[0]
    found = self_repair(model, tokens, site, to="zero")
    clean = model.run(tokens, record="final_norm_scale")
    held = model.run(tokens, do=[pc.ablate(site), pc.patch("final_norm_scale", clean)])
    logits = [_relative(run.logits, tokens) for run in (held, clean)]
    return Measured.gap(logits[0] - logits[1], found.frozen)


@study.identity(
    "behind a head of the last layer, only that layer's MLP and the norm change",
    tolerance=1e-7,
    control="a head of the first layer",
    breaks=1e-4,
)
def nothing_else_is_behind_the_last_layer(lab: Lab) -> Measured:
    model, tokens = lab.once(_exact), lab.once(_tokens)[:8]
    last = model.n_layers - 1

    def others(site: str) -> np.ndarray:
        effects = self_repair(model, tokens, site, seed=lab.seed).effects
        kept = [name for name in effects.component.values if name not in (site, f"mlp_out.{last}", "norm")]
        return effects.sel(component=kept).values

    late, early = others(f"z.{last}.0"), others("z.0.0")
    return Measured.gap(late, np.zeros_like(late), control=(early, np.zeros_like(early)))


@study.identity("one layer of attention alone, without a norm, repairs nothing", tolerance=1e-6)
def nothing_repairs_in_one_layer(lab: Lab) -> Measured:
    from patchclamp.organisms.algorithms.transformer import transformer

    hf = transformer(
        vocabulary=40, layers=1, heads=4, width=16, hidden=0, context=16, norm=False, rotary=True, seed=lab.seed
    )
    tokens = torch.randint(40, (8, 12), generator=lab.generator)
    found = self_repair(wrap(hf.double(), name="one layer"), tokens, "z.0.1", seed=lab.seed)
    return Measured.gap(found.repair, np.zeros_like(found.repair))


@study.finding(
    "a hand-written network with a backup head answers", at_least=0.95, control="the same network with fresh weights"
)
def hand_written_network_answers(lab: Lab) -> Measured:
    tokens, letters = _prompts(lab)
    models = _hand_written(lab, lab.untrained), _hand_written(lab, True)
    hits = [_best(model, tokens)[:, -1] == letters for model in models]
    return Measured.share(hits[0], control=hits[1])


@study.finding(
    "the backup head's share of what is lost is the planted one: the error, as a share of it",
    at_most=0.05,
    control="the same for every other component",
    given=hand_written_network_answers,
)
def the_backup_is_measured(lab: Lab) -> Measured:
    found = lab.once(_planted)
    shares = found.repairers() / -found.own.mean()
    errors = np.abs(shares / (BACKUP / MAIN) - 1)
    others = errors[errors.component != "z.1.0"]
    return Measured.number(float(errors.sel(component="z.1.0")), control=others.values)


@study.finding(
    "the backup head comes first among the repairers",
    at_most=1,
    control="the ranks of all others",
    given=hand_written_network_answers,
)
def the_backup_is_first(lab: Lab) -> Measured:
    return _rank(list(lab.once(_planted).repairers().component.values), "z.1.0")


@study.finding(
    "the neuron that erases comes first in anti-erasure",
    at_most=1,
    control="the ranks of all others",
    given=hand_written_network_answers,
)
def the_eraser_is_first(lab: Lab) -> Measured:
    return _rank(list(lab.once(_planted).erasers(1).neuron.values), f"mlp_post.1.{ERASER}")


@study.figure("Mean change of the logit on each head's top tokens, by what changed it")
def parts(lab: Lab):
    import xarray as xr

    found = lab.once(_repairs)
    terms = ["own", "heads", "mlps", "norm", "change"]
    rows = [[one.mean(TOP)[term] for term in terms] for one in found]
    coords = {"head": [one.site for one in found], "term": terms}
    return pc.views.heatmap(xr.DataArray(rows, dims=("head", "term"), coords=coords), title="self-repair, in logits")


# ── what the claims share ─────────────────────────────────────────────────────────────────────────────────────────────


def _tokens(lab: Lab) -> Tensor:
    """The first tokens of texts such as the model was trained on."""
    count, length = (512, 32) if lab.full else (160, 32)
    texts = lab.texts((20 if lab.truth.writer else 4) * count, lab.seed + 1)  # an organism's are short
    rows = [ids[:length] for ids in (lab.model.tokens(text).ids[0] for text in texts) if len(ids) >= length]
    lab.need(len(rows) >= 16, f"a model that writes texts of {length} tokens, to measure on")
    return torch.stack(rows[:count])


def _fresh(lab: Lab) -> Model:
    return lab.fresh(1)


def _exact(lab: Lab) -> Model:
    return wrap(copy.deepcopy(lab.model.hf).double(), name=f"{lab.model.name} in float64")


def _repairs(lab: Lab) -> list[SelfRepair]:
    return _of_every_head(lab, lab.model)


def _repairs_of_fresh_weights(lab: Lab) -> list[SelfRepair]:
    return _of_every_head(lab, lab.once(_fresh))


def _of_every_head(lab: Lab, model: Model) -> list[SelfRepair]:
    """Those behind the first layer, on which everything else builds."""
    heads = [site for site in model.sites("z.*.*") if site.layer]
    lab.need(bool(heads), "a model of two layers or more")
    tokens = lab.once(_tokens)
    keep = model.n_layers - 1
    found = []
    for site in lab.progress(heads, f"ablating heads of {model.name}"):
        one = self_repair(model, tokens, site, neurons=True, seed=lab.seed)
        found.append(replace(one, neurons={keep: one.neurons[keep]} if keep in one.neurons else {}))
    return found


def _of_heads(found: list[SelfRepair], name: str) -> np.ndarray:
    """On each head's top tokens, as a share of what its direct effect falls by there in the mean."""
    rows = []
    for one in found:
        top = one.top(TOP)
        rows.append(getattr(one, name)[top] / abs(one.own[top].mean()) * (-1 if name == "change" else 1))
    return np.concatenate(rows)


def _shares(lab: Lab, name: str) -> Measured:
    ours, theirs = (_of_heads(lab.once(work), name) for work in (_repairs, _repairs_of_fresh_weights))
    return Measured.mean(ours, control=theirs)


def _half(found: SelfRepair) -> float:
    """The share of a layer's neurons that together carry half of its anti-erasure."""
    layer = next(iter(found.neurons))
    amounts = found.erasers(layer, TOP).values.clip(min=0)
    return float((np.cumsum(amounts) < amounts.sum() / 2).sum() + 1) / len(amounts)


def _best(model: Model, tokens: Tensor) -> Tensor:
    """The token with the highest logit, at every position."""
    logits = model.run(tokens).logits
    assert logits is not None
    return logits.argmax(-1).cpu()


def _relative(logits: Tensor | None, tokens: Tensor) -> np.ndarray:
    """Logits of the next tokens, less the mean over the vocabulary."""
    assert logits is not None
    centred = (logits - logits.mean(-1, keepdim=True))[:, :-1]
    return centred.gather(-1, tokens[:, 1:, None])[..., 0].flatten().numpy()


def _rank(names: list[str], wanted: str) -> Measured:
    rank = 1 + names.index(wanted)
    return Measured.number(rank, control=[other for other in range(1, len(names) + 1) if other != rank])


# ── the hand-written network ──────────────────────────────────────────────────────────────────────────────────────────


def _planted(lab: Lab) -> SelfRepair:
    """Head 0.0 is set to zero, and the logit of the letter measured at the last token."""
    tokens, letters = _prompts(lab)
    targets = torch.full_like(tokens, -1)
    targets[:, -1] = letters
    return self_repair(_hand_written(lab, lab.untrained), tokens, "z.0.0", to="zero", targets=targets, neurons=True)


def _prompts(lab: Lab) -> tuple[Tensor, Tensor]:
    """BOS, a letter, five fillers: the answer is the letter."""
    generator = torch.Generator().manual_seed(lab.seed)
    letters = torch.randint(LETTERS.start, LETTERS.stop, (64, 1), generator=generator)
    fillers = torch.randint(FILLERS.start, FILLERS.stop, (64, 5), generator=generator)
    return torch.cat([torch.zeros_like(letters), letters, fillers], 1), letters[:, 0]


def _hand_written(lab: Lab, fresh: bool) -> Model:
    """Head 0.0 copies the letter and raises a flag. Head 1.0 copies it too, where it finds no flag, and rests on BOS.

    Stream: one-hot token (13), constant, is-letter, is-BOS, flag, output (8). Neuron 7 of MLP 1 reads the flag, and
    writes against all letters; the others are random and small.
    """
    from patchclamp.organisms.algorithms.transformer import transformer

    hf: Any = transformer(
        vocabulary=VOCABULARY,
        layers=2,
        heads=2,
        width=32,
        hidden=48,
        context=16,
        norm=False,
        rotary=False,
        seed=lab.seed,
    )
    if fresh:
        return wrap(hf, name="hand-written, with fresh weights")
    constant, letter, bos, flag, out = 13, 14, 15, 16, range(17, 25)
    sharp = 80.0  # a quarter of it reaches softmax
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if "mlp" in name:
                parameter.mul_(0.05)
            elif "norm" not in name:
                parameter.zero_()
        embed = hf.model.embed_tokens.weight
        embed[:, :VOCABULARY] = torch.eye(VOCABULARY)
        embed[:, constant], embed[LETTERS, letter], embed[0, bos] = 1.0, 1.0, 1.0
        for index, gain in enumerate((MAIN, BACKUP)):
            heads = hf.model.layers[index].self_attn
            heads.q_proj.weight[0, constant], heads.k_proj.weight[0, letter] = sharp, 1.0
            heads.v_proj.weight[range(8), LETTERS] = 1.0
            heads.o_proj.weight[out, range(8)] = gain
        first, second = (hf.model.layers[index] for index in (0, 1))
        first.self_attn.v_proj.weight[8, constant] = first.self_attn.o_proj.weight[flag, 8] = 1.0
        second.self_attn.q_proj.weight[0, flag] = -sharp
        second.self_attn.q_proj.weight[1, constant], second.self_attn.k_proj.weight[1, bos] = sharp / 2, 1.0
        second.mlp.up_proj.weight[ERASER] = 0.0
        second.mlp.up_proj.weight[ERASER, flag], second.mlp.up_proj.bias[ERASER] = 1.0, -0.5
        second.mlp.down_proj.weight[:, ERASER] = 0.0
        second.mlp.down_proj.weight[out, ERASER] = -2.0
        hf.lm_head.weight[LETTERS, out] = 1.0
    return wrap(hf, name="hand-written, with a backup head")
