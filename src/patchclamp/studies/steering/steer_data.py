"""Steering language generation: contrastive expert guidance and negative prompting, STEER (O'Neill et al. 2023).

Logits of a fine-tune are pushed away from its base's, so that what it writes is more of its domain, and away from what
it would write behind an earlier sample, so that it repeats less. Together they give more variety and more of the domain
than any temperature does.

The first is asked of `tales` and of its fine-tune on half the sea and half the usual. For the second the expert must
repeat what it has seen, which that one does not: it is asked of small models of 256 strings, trained here, on which
every share is exact. The sampler is held against the formula on three letters: of 20,000 samples over the 256 strings
of four the total variation would be .03 to .05 by chance alone.
"""

from collections.abc import Callable

import numpy
import torch
import transformers
from torch import Tensor

from patchclamp import views
from patchclamp.model import Model
from patchclamp.organisms.tales import world
from patchclamp.steering import Guidance
from patchclamp.steering.guidance import guided
from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured
from patchclamp.studies.steering import _strings as strings
from patchclamp.studies.study import Study

study = Study(
    name="steer-data",
    paper="Steering Language Generation: Harnessing Contrastive Expert Guidance and Negative Prompting for Coherent "
    "and Diverse Synthetic Data Generation (arXiv:2308.07645)",
    seed="004_13a88e549a94230e.txt",
    organism="tales",
)

GAMMAS = (0.25, 0.5, 0.75, 1.0)
ETA = 0.25
NEGATIVES = 24
START = torch.tensor([strings.START])


@study.identity("gamma = eta = 0 is the expert", tolerance=1e-6, control="gamma 0.5", breaks=1e-2)
def expert(lab: Lab) -> Measured:
    own, base, negative = torch.randn(3, 20, 50, generator=lab.generator)
    plain, half = (guided(own, base=base, negative=negative, gamma=g) for g in (0.0, 0.5))
    return Measured.gap(plain, own.log_softmax(-1), control=(half, plain))


@study.identity("gamma = -1 is the base", tolerance=1e-5, control="gamma -0.5", breaks=1e-2)
def base(lab: Lab) -> Measured:
    own, other = torch.randn(2, 20, 50, generator=lab.generator)
    whole, half = (guided(own, base=other, gamma=g) for g in (-1.0, -0.5))
    return Measured.gap(whole, other.log_softmax(-1), control=(half, whole))


@study.identity(
    "where expert, base and negative are one, no weight matters",
    tolerance=1e-5,
    control="another base",
    breaks=1e-2,
)
def irrelevant(lab: Lab) -> Measured:
    own, other = torch.randn(2, 20, 50, generator=lab.generator)
    same, changed = (guided(own, base=b, negative=own, gamma=2.0, eta=3.0) for b in (own, other))
    return Measured.gap(same, own.log_softmax(-1), control=(changed, same))


@study.identity("behind no example eta does not matter", tolerance=1e-6, control="behind an example", breaks=1e-2)
def no_example(lab: Lab) -> Measured:
    own, other = _networks(lab)
    plain, pushed = (Guidance(own, other, eta=eta).next(START[None]) for eta in (0.0, 3.0))
    behind = Guidance(own, other, eta=3.0).next(START[None], negative=torch.cat([START, strings.STRINGS[7]])[None])
    return Measured.gap(pushed, plain, control=(behind, plain))


@study.identity(
    "what is plausible keeps its proportions: largest difference of log-probability",
    tolerance=1e-5,
    control="a higher floor",
    breaks=1e-2,
)
def plausible(lab: Lab) -> Measured:
    """Of the tokens that the expert holds at least .2 times as likely as its likeliest, under guidance."""
    own, other = torch.randn(2, 20, 50, generator=lab.generator)
    kept = own >= own.amax(-1, keepdim=True) + torch.tensor(0.2).log()
    whole = guided(own, base=other, gamma=0.7).masked_fill(~kept, float("-inf")).log_softmax(-1)
    ours, fewer = (guided(own, base=other, gamma=0.7, plausible=floor) for floor in (0.2, 0.5))
    return Measured.gap(ours.exp(), whole.exp(), control=(fewer.exp(), whole.exp()))


@study.identity(
    "20,000 samples are distributed as the formula says: total variation",
    tolerance=0.03,
    control="the unguided distribution",
    breaks=0.06,
)
def sampler(lab: Lab) -> Measured:
    """Of the first three letters of strings, by two random networks and one negative example."""
    own, other = _networks(lab)
    how = Guidance(own, other, gamma=0.7, eta=0.5)
    negative = torch.cat([START, strings.STRINGS[7]])
    written = how.sample(START[None], n=20_000, max_new_tokens=3, negatives=[negative[None]], stop=-1, seed=lab.seed)
    kept = written[(written > 0).all(1)] - 1
    counts = torch.bincount((kept * torch.tensor([16, 4, 1])).sum(1), minlength=64).double()
    logits = [strings.logits(m, before) for m, before in ((own, START), (other, START))]
    behind = strings.logits(own, torch.cat([negative, START]))
    exact = guided(logits[0], base=logits[1], negative=behind, gamma=how.gamma, eta=how.eta)
    # Of samples that have a start among their letters nothing is said, here as there.
    wanted, plain = (_first_three(log_p) for log_p in (exact, logits[0].log_softmax(-1)))
    found = counts / counts.sum()
    far = [0.5 * float((found - p).abs().sum()) for p in (wanted, plain)]
    return Measured.gap([far[0]], [0.0], control=([far[1]], [0.0]))


@study.finding(
    "guided away from its base, the fine-tune writes more of its domain: rise of the share of texts",
    at_least=0.1,
    control="guided away from an untrained network",
)
def adherence(lab: Lab) -> Measured:
    """Texts with a word of the sea, from the start of text, gamma 1 less gamma 0, sample by sample."""
    ours, control = (lab.once(_rise, "tales-sea-mixed", away) for away in ("base", "untrained"))
    return Measured.mean(ours, control=control)


@study.finding(
    "and it is the fine-tune's domain: rise of the share of texts",
    at_least=0.1,
    control="another fine-tune guided away from the same base",
)
def its_domain(lab: Lab) -> Measured:
    return Measured.mean(lab.once(_rise, "tales-sea-mixed", "base"), control=lab.once(_rise, "tales-chat", "base"))


@study.finding(
    "with an earlier sample as a negative example it is repeated less: share of its probability that goes",
    at_least=0.5,
    control="another string as the negative example",
)
def negatives(lab: Lab) -> Measured:
    """eta 1 against 0 at gamma 0.5; mean over samples of the expert."""
    gone, kept = [], []
    for seed in _seeds(lab):
        drawn, plain, ours = lab.once(_drawn, seed), lab.once(_exact, seed, 0.5, 0.0), lab.once(_exact, seed, 0.5, 1.0)
        rows = torch.arange(len(drawn))
        before, after, other = plain[rows, drawn], ours[rows, drawn], ours.roll(1, 0)[rows, drawn]
        gone.append(1 - after / before)
        kept.append((1 - other / before)[drawn != drawn.roll(1)])
    return Measured.mean(torch.cat(gone), control=torch.cat(kept))


@study.finding(
    "the domain hardly suffers: difference of its share",
    at_least=-0.05,
    control="the temperature at which samples are repeated half as often",
    given=negatives,
)
def keeps(lab: Lab) -> Measured:
    """eta 1 less 0 at gamma 0.5, mean over the negative examples."""
    lost, control = [], []
    for seed in _seeds(lab):
        drawn, plain, ours = lab.once(_drawn, seed), lab.once(_exact, seed, 0.5, 0.0), lab.once(_exact, seed, 0.5, 1.0)
        half = 0.5 * float(plain[0, drawn].mean())
        temperatures = lab.once(_baselines, seed)["temperature"]
        hot = next((p for p in temperatures if float(p[drawn].mean()) <= half), temperatures[-1])
        share = plain[0, strings.DOMAIN].sum()
        lost.append(ours[:, strings.DOMAIN].sum(1).mean() - share)
        control.append(hot[strings.DOMAIN].sum() - share)
    return _over_seeds(lost, control)


@study.finding(
    "as varied as at some temperature, it has more of the domain: share of four weights of gamma",
    at_least=0.75,
    control="guided away from an untrained network, without negatives",
    given=negatives,
)
def front(lab: Lab) -> Measured:
    """Variety is the entropy of what is written, averaged over the negative examples; eta 0.25. More is by a point at
    least: the control, which says nothing that a temperature does not, is ahead by a hair half of the time.
    """
    return _ahead(lab, "temperature", lambda margins: (margins > 0.01).double())


@study.finding(
    "and more than a nucleus (top-p) as varied: difference of its share, mean over the weights of gamma",
    at_least=0.0,
    control="guided away from an untrained network, without negatives",
    given=negatives,
)
def front_of_nuclei(lab: Lab) -> Measured:
    return _ahead(lab, "nucleus", lambda margins: margins)


@study.finding(
    "and more than contrastive decoding (gamma 1, a floor of .1) at the temperature at which it is as varied",
    at_least=0.0,
    control="guided away from an untrained network, without negatives",
    given=negatives,
)
def front_of_contrastive(lab: Lab) -> Measured:
    return _ahead(lab, "contrastive", lambda margins: margins)


@study.figure("share of the domain against entropy, by gamma and by temperature")
def plane(lab: Lab):
    seed, baselines = lab.seed, lab.once(_baselines, lab.seed)
    mixed = [lab.once(_exact, seed, gamma, ETA).mean(0) for gamma in (0.0, *GAMMAS)]
    curves = {"gamma 0 to 1": [float(p[strings.DOMAIN].sum()) for p in mixed]}
    curves |= {f"{name}, as varied": [_matched(p, some) for p in mixed] for name, some in baselines.items()}
    return views.lines([_entropy(p) for p in mixed], curves, x_title="entropy, nats", y_title="share of the domain")


def _seeds(lab: Lab) -> range:
    return range(lab.seed, lab.seed + (3 if lab.full else 1))


def _over_seeds(values: list, control: list) -> Measured:
    """One network is a number; several have an interval."""
    if len(values) == 1:
        return Measured.number(values[0], control=control[0])
    return Measured.mean(values, control=control)


def _networks(lab: Lab) -> tuple[Model, Model]:
    """Two random networks of the strings' letters, spread enough that they do not all say the same."""
    config = transformers.LlamaConfig(
        vocab_size=5,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.4,
        bos_token_id=strings.START,
        eos_token_id=None,
    )
    return lab.build(config), lab.at("another network").build(config)


def _rise(lab: Lab, expert: str, away: str) -> Tensor:
    """By sample, gamma 1 less gamma 0: whether it has a word of the sea, from the start of text."""
    lab.need(lab.truth.name == "tales", "tales and a fine-tune of it")
    tuned, other = lab.load(expert), lab.model if away == "base" else lab.fresh()
    start = torch.tensor([[tuned.tokenizer.bos_token_id]])
    shares = []
    for gamma in (0.0, 1.0):
        how = Guidance(tuned, other, gamma=gamma)
        written = how.sample(start, n=600 if lab.full else 150, max_new_tokens=14, seed=lab.seed)
        texts = tuned.tokenizer.batch_decode(written, skip_special_tokens=True)
        hits = [any(word.strip(".") in world.GENRES["sea"] for word in text.split()) for text in texts]
        shares.append(torch.tensor(hits).double())
    return shares[1] - shares[0]


def _drawn(lab: Lab, seed: int) -> Tensor:
    """Samples of the expert, which serve as negative examples."""
    own = strings.probabilities(strings.logits(lab.once(strings.models, seed)[0], START).log_softmax(-1))
    return torch.multinomial(own, NEGATIVES, replacement=True, generator=torch.Generator().manual_seed(seed))


def _exact(lab: Lab, seed: int, gamma: float, eta: float, away: str = "base") -> Tensor:
    """[negative, string] probabilities of all strings, behind each negative example."""
    own, base = lab.once(strings.models, seed)
    other = base if away == "base" else lab.at(f"untrained/{seed}").build(base.hf.config)
    logits, others = strings.logits(own, START), strings.logits(other, START)
    found = []
    for number in lab.once(_drawn, seed).tolist():
        behind = strings.logits(own, torch.cat([START, strings.STRINGS[number], START]))
        found.append(strings.probabilities(guided(logits, base=others, negative=behind, gamma=gamma, eta=eta)))
    return torch.stack(found)


def _baselines(lab: Lab, seed: int) -> dict[str, list[Tensor]]:
    """Distributions over all strings, from narrow to wide: the expert by temperature and by nucleus, and contrastive
    decoding by temperature.
    """
    expert, base = (strings.logits(model, START) for model in lab.once(strings.models, seed))
    contrast = guided(expert, base=base, gamma=1.0, plausible=0.1)
    temperatures = [0.3 * 1.05**step for step in range(70)]
    nuclei = [_nucleus(expert.log_softmax(-1), share) for share in torch.linspace(0.05, 1.0, 70).tolist()]
    return {
        "temperature": [strings.probabilities((expert / t).log_softmax(-1)) for t in temperatures],
        "nucleus": [strings.probabilities(log_p) for log_p in nuclei],
        "contrastive": [strings.probabilities((contrast / t).log_softmax(-1)) for t in temperatures],
    }


def _nucleus(log_p: Tensor, share: float) -> Tensor:
    """The likeliest letters that together have at least `share` of the probability."""
    ordered, order = log_p.exp().sort(-1, descending=True)
    gone = ordered.cumsum(-1) - ordered >= share
    return log_p.masked_fill(torch.zeros_like(gone).scatter(-1, order, gone), float("-inf")).log_softmax(-1)


def _entropy(p: Tensor) -> float:
    return float(torch.special.entr(p).sum())


def _matched(p: Tensor, baseline: list[Tensor]) -> float:
    """The domain's share where the baseline is as varied as `p`: between the two that are nearest in that, in line."""
    points = numpy.array(sorted((_entropy(q), float(q[strings.DOMAIN].sum())) for q in baseline))
    return float(numpy.interp(_entropy(p), points[:, 0], points[:, 1]))


def _ahead(lab: Lab, baseline: str, judge: Callable[[Tensor], Tensor]) -> Measured:
    """What `judge` makes of how much more of the domain there is than in a baseline as varied, mean over gamma."""
    found: dict[str, list[Tensor]] = {"base": [], "untrained": []}
    for seed in _seeds(lab):
        some = lab.once(_baselines, seed)[baseline]
        for (away, values), eta in zip(found.items(), (ETA, 0.0), strict=True):
            mixed = [lab.once(_exact, seed, gamma, eta, away).mean(0) for gamma in GAMMAS]
            margins = [float(p[strings.DOMAIN].sum()) - _matched(p, some) for p in mixed]
            values.append(judge(torch.tensor(margins, dtype=torch.float64)).mean())
    return _over_seeds(found["base"], found["untrained"])


def _first_three(log_probabilities: Tensor) -> Tensor:
    """[64] probability of the first three letters, among strings that have no start in them."""
    steps = log_probabilities[:, :3].double().gather(-1, strings.STRINGS[:, :3, None])[..., 0].sum(1).exp()
    whole = steps.view(64, 4)[:, 0]
    return whole / whole.sum()
