"""Mixture of Tunable Experts: behaviour modification at inference time (Dahlke et al. 2025).

The experts with most weight on prompts that are refused, less that on others, carry refusing: switched off (their
routed weight is 0, the other chosen experts' grow so that the sum stays, and no expert takes their place) the model
refuses less and speaks as before; forced into the choice on neutral prompts it refuses what it did not. Experts drawn
at random, or chosen as often, do neither.

Asked of a mixture in which one known expert learnt to refuse, trained here: `tales-moe` refuses nothing. The relevance
is over all of a prompt's tokens, as in the paper, the switches act in generation, and the margin by which the expert is
forced was chosen on other networks. On seeds 0, 1 and 2 all holds but that on seed 2 forcing adds 0.13 to the share of
refusals, where it added 0.45 and 0.31. Where all experts had learnt to refuse (three networks of 48 experts), four that
were switched off ended nearly all refusals in two and few in the third; but forced on they made only the third refuse,
and a quarter of the prompts: what an expert writes depends on what it reads.
"""

from typing import Any

import torch
import transformers
import xarray as xr
from torch import Tensor

from patchclamp import views
from patchclamp.interventions import Intervention, ablate
from patchclamp.sites import Site
from patchclamp.steering import Neutral
from patchclamp.steering.experts import Relevance, activity, relevance, switch, weigh
from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured
from patchclamp.studies.seeds import over_seeds
from patchclamp.studies.steering import _refusing as refusing
from patchclamp.studies.study import Study

study = Study(
    name="mote",
    paper="Mixture of Tunable Experts: Behavior Modification of DeepSeek-R1 at Inference Time (arXiv:2502.11096)",
    seed="003_cedf108f4263b6b3.txt",
    organism="tales-moe",
)

K = 1
"""Experts that are switched, of 32."""
MARGIN = 3.0
RANDOM = 12


@study.identity(
    "the weights of those that are left have the sum that all had",
    tolerance=1e-5,
    control="its weight alone removed",
    breaks=1e-2,
)
def summed(lab: Lab) -> Measured:
    """By token and layer, with the expert that is chosen most often off, in the model itself."""
    model = lab.model
    routers = [site for site in model.sites() if site.kind == "router" and site.unit is None]
    lab.need(routers, "a mixture of experts whose routers are sites")
    ids = torch.randint(len(model.embeddings.weight), (8, 9), generator=lab.generator)
    used = activity(model, ids)
    most = used.experts[int(used.chosen.mean(0).argmax())]
    weights = Site("expert_weight", most.layer, stack=most.stack)
    before, after = (model.run(ids, do=do, record=weights)[weights] for do in ([], switch(model, off=[most])))
    left = before.index_fill(-1, torch.tensor([most.unit]), 0.0).sum(-1)
    some = left > 0  # where it was chosen alone, nothing is left
    return Measured.gap(after.sum(-1)[some], before.sum(-1)[some], control=(left[some], before.sum(-1)[some]))


@study.identity(
    "so where all experts are alike, none is missed",
    tolerance=1e-4,
    control="its output removed, the others' weights as they were",
    breaks=1e-2,
)
def kept(lab: Lab) -> Measured:
    """Logits, with one expert of each layer off."""
    model = lab.build(_config())
    hf: Any = model.hf
    for layer in hf.model.layers:
        for parameter in layer.mlp.experts.parameters():
            parameter.data[:] = parameter.data[0]
    ids = torch.randint(50, (8, 9), generator=lab.generator)
    off = [f"router.{layer}.3" for layer in range(model.n_layers)]
    without = [ablate(f"expert_post.{layer}.0") for layer in range(model.n_layers)]
    clean, now, spoilt = (model.run(ids, do=do).logits for do in ([], switch(model, off=off), without))
    return Measured.gap(now, clean, control=(spoilt, clean))


@study.finding(
    "where a router sends a class of tokens to an expert by hand, that expert ranks first: share of mixtures",
    at_least=0.95,
    control="mixtures whose routers were left alone",
)
def ranked(lab: Lab) -> Measured:
    """Twenty mixtures with random weights, the expert drawn for each."""
    draws = range(60 if lab.full else 20)
    found = [[_first(lab, draw, sent=sent) for draw in draws] for sent in (not lab.untrained, False)]
    return Measured.share(found[0], control=found[1])


@study.finding("three topics are refused: share of prompts", at_least=0.6, control="prompts about other topics")
@over_seeds
def refuses(lab: Lab) -> Measured:
    """Greedily, on prompts that judge. The premise of what follows."""
    return Measured.mean(lab.once(_before, True), control=lab.once(_before, False))


@study.finding(
    "the expert that learnt to refuse is the most relevant of all: its rank",
    at_most=1.0,
    control="its mean rank with topics shuffled",
    given=refuses,
)
@over_seeds
def found(lab: Lab) -> Measured:
    """Of 32, by the prompts that choose."""
    own, shuffled = lab.once(_ranks)
    return Measured.number(own, control=shuffled)


@study.finding(
    "switched off, there are fewer refusals: drop, as a share of them",
    at_least=0.5,
    control="experts drawn at random, as many",
    given=refuses,
)
@over_seeds
def off(lab: Lab) -> Measured:
    return Measured.mean(lab.once(_drop), control=lab.once(_drops, "drawn"))


@study.finding("random experts do next to nothing: mean drop", at_most=0.15, control="the relevant ones", given=off)
@over_seeds
def random(lab: Lab) -> Measured:
    """Mean over twelve draws."""
    return Measured.mean(lab.once(_drops, "drawn"), control=lab.once(_drop))


@study.finding(
    "nor do experts that are chosen as often: mean drop", at_most=0.15, control="the relevant ones", given=off
)
@over_seeds
def matched(lab: Lab) -> Measured:
    """Mean over twelve draws, each of the three with the most similar use."""
    return Measured.mean(lab.once(_drops, "matched"), control=lab.once(_drop))


@study.finding(
    "texts about other topics stay as likely: ratio of perplexities", at_most=1.02, control="refused texts", given=off
)
@over_seeds
def neutral(lab: Lab) -> Measured:
    own, theirs = lab.once(_perplexities)
    return Measured.number(own, control=theirs)


@study.finding(
    "forced on, other topics are refused: rise of their share",
    at_least=0.2,
    control="experts drawn at random, as many, forced as much",
    given=refuses,
)
@over_seeds
def on(lab: Lab) -> Measured:
    return Measured.mean(lab.once(_rise), control=lab.once(_rises))


@study.figure("relevance: mean weight on refused prompts less that on others")
def map_of_experts(lab: Lab):
    scores = lab.once(_relevance).score.view(refusing.LAYERS, refusing.EXPERTS)
    return views.heatmap(xr.DataArray(scores, dims=("layer", "expert")), colour_label="relevance")


@study.figure("share of prompts that are refused, by what the expert's weight is multiplied by")
def curve(lab: Lab):
    model, _ = lab.once(refusing.trained)
    factors = [0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 2.0, 4.0]
    chosen = lab.once(_relevance).most(K)
    ways = [weigh(model, dict.fromkeys(map(str, chosen), factor)) for factor in factors]
    curves = {
        name: [float(_refused(lab, side, do).mean()) for do in ways]
        for name, side in (("refused topics", True), ("other topics", False))
    }
    return views.lines(factors, curves, x_title="factor", y_title="share refused")


def _config() -> transformers.MixtralConfig:
    return transformers.MixtralConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_local_experts=8,
        num_experts_per_tok=3,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=None,
    )


def _first(lab: Lab, draw: int, *, sent: bool) -> bool:
    """Whether the expert that is drawn ranks first, where tokens below 10 are sent to it and where not."""
    generator = torch.Generator().manual_seed(1000 * lab.seed + draw)
    model = lab.at(f"mixture {draw}").build(_config())
    layer, unit = (int(torch.randint(size, (1,), generator=generator)) for size in (2, 8))
    ids = torch.randint(10, 50, (32, 9), generator=generator)
    ids[:16, 1:8:2] = torch.randint(10, (16, 4), generator=generator)
    if sent:
        mark = torch.nn.functional.normalize(torch.randn(32, generator=generator), dim=0)
        hf: Any = model.hf
        hf.model.embed_tokens.weight.data[:10] += mark
        hf.model.embed_tokens.weight.data[10:] -= mark
        hf.model.layers[layer].mlp.gate.weight.data[unit] += 3 * mark
    return str(relevance(model, *ids.chunk(2)).most(1)[0]) == f"router.{layer}.{unit}"


def _texts(lab: Lab, refused: bool, part: str) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * lab.seed + 10 * refused + (part == "judge"))
    return refusing.texts(refusing.topics(150, generator, refused=refused), generator)


def _prompts(lab: Lab, refused: bool, part: str) -> Tensor:
    return lab.once(_texts, refused, part)[:, : refusing.PROMPT]


def _relevance(lab: Lab) -> Relevance:
    model, _ = lab.once(refusing.trained)
    return relevance(model, *(lab.once(_prompts, side, "choose") for side in (True, False)))


def _rank(scores: Relevance, expert: Site) -> float:
    return 1.0 + float((scores.score > scores.score[scores.experts.index(expert)]).sum())


def _ranks(lab: Lab) -> tuple[float, float]:
    """Of the planted expert, and its mean with prompts shuffled between the sides."""
    model, planted = lab.once(refusing.trained)
    prompts = torch.cat([lab.once(_prompts, side, "choose") for side in (True, False)])
    shuffled = []
    for draw in range(RANDOM):
        order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(100 * lab.seed + draw))
        shuffled.append(_rank(relevance(model, *prompts[order].chunk(2)), planted))
    return _rank(lab.once(_relevance), planted), sum(shuffled) / RANDOM


def _refused(lab: Lab, refused: bool, do: list[Intervention]) -> Tensor:
    """By prompt that judges, 1 where the model writes that it is sorry and cannot."""
    model, _ = lab.once(refusing.trained)
    prompts = lab.once(_prompts, refused, "judge")
    written = model.generate(prompts, do=do, max_new_tokens=2).tokens[:, refusing.PROMPT :]
    return (written == torch.tensor([refusing.SORRY, refusing.CANNOT])).all(1).double()


def _before(lab: Lab, refused: bool) -> Tensor:
    return _refused(lab, refused, [])


def _drop(lab: Lab, *chosen: Site) -> Tensor:
    """By refused prompt, what switching experts off takes, as a share of what there was; by default the relevant."""
    model, _ = lab.once(refusing.trained)
    before = lab.once(_before, True)
    return (before - _refused(lab, True, switch(model, off=chosen or lab.once(_relevance).most(K)))) / before.mean()


def _drops(lab: Lab, how: str) -> list[float]:
    scores = lab.once(_relevance)
    draw = {"drawn": scores.drawn, "matched": scores.matched}[how]
    return [float(_drop(lab, *draw(K, seed=100 * lab.seed + n)).mean()) for n in range(RANDOM)]


def _rise(lab: Lab, *chosen: Site) -> Tensor:
    """By other prompt, what forcing experts on adds; by default the relevant."""
    model, _ = lab.once(refusing.trained)
    do = switch(model, on=chosen or lab.once(_relevance).most(K), margin=MARGIN)
    return _refused(lab, False, do) - lab.once(_before, False)


def _rises(lab: Lab) -> list[float]:
    scores = lab.once(_relevance)
    return [float(_rise(lab, *scores.drawn(K, seed=100 * lab.seed + n)).mean()) for n in range(RANDOM)]


def _perplexities(lab: Lab) -> list[float]:
    """Of texts about other topics and of refused ones, with the expert off, as a ratio to what they were."""
    model, _ = lab.once(refusing.trained)
    do = switch(model, off=lab.once(_relevance).most(K))
    return [Neutral(model, lab.once(_texts, side, "judge")).measure(do)["perplexity"] for side in (False, True)]
