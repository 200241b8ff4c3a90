"""What needs to go right for an induction head? (Singh et al. 2024).

An induction head forms at once, after a plateau, because it takes parts that must each be there before the others pay:
attention to the token before, attention to what followed the same token, and a copy of it. Holding a part throughout
training ("artificial optogenetics") says what each of them costs. Here the organism's own recipe is trained again, two
layers of two heads on sequences that repeat, with the attention of one head held to the token before, that of another
to the match as well, or to tokens drawn at random. Time is the first step, of every tenth, at which the loss of what
repeats is half of that of guessing.

The third part, the copy, is not held: heads of 32 dimensions have no exact copy of 64 tokens. On random weights the
text that is trained on repeats nothing.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

import patchclamp as pc
from patchclamp.model import wrap
from patchclamp.organisms.algorithms.induction import (
    LENGTH,
    VOCABULARY,
    Recipe,
    head_scores,
    repeated,
    repeated_loss,
    untrained,
)
from patchclamp.organisms.algorithms.transformer import adamw
from patchclamp.patching.clamped_training import (
    Hold,
    Training,
    anywhere,
    clamped_training,
    hold,
    matching,
    previous_token,
)
from patchclamp.sites import Site
from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured
from patchclamp.studies.study import Study

study = Study(
    name="induction-formation",
    paper="What needs to go right for an induction head? (arXiv:2404.07129)",
    seed="003_cedf108f4263b6b3.txt",
    organism="induction",
)

NONE, BEFORE, BOTH_PARTS, ANYWHERE, ANYWHERE_BOTH = (
    "nothing",
    "the token before (0.0)",
    "the token before (0.0) and the match (1.0)",
    "anywhere (0.0)",
    "anywhere (0.0 and 0.1)",
)
CLAMPS = (NONE, BEFORE, BOTH_PARTS, ANYWHERE, ANYWHERE_BOTH)
_STEPS, _EVERY, _PATIENCE = 1500, 10, 1.5
_HALF = math.log(VOCABULARY - 1) / 2
_NEVER_REPEATS = (2 * LENGTH, 2 * LENGTH)  # lags longer than the rows


@study.finding("training comes to repeat sequences (accuracy)", at_least=0.25, control="before the first step")
def forms(lab: Lab) -> Measured:
    """Of the tokens that repeat, when training ends, which is when their loss has halved; the least over seeds."""
    logs = [lab.once(_trained, NONE, seed).log for seed in _seeds(lab)]
    ends = [[log[at]["repeated_accuracy"] for log in logs] for at in (-1, 0)]
    return Measured.number(min(ends[0]), control=ends[1])


@study.finding(
    "attention to the token before, given from the first step, shortens the plateau (time, unclamped 1)",
    at_most=0.6,
    control="the same head held to tokens at random",
    given=forms,
)
def given_the_token_before(lab: Lab) -> Measured:
    return _times(lab, BEFORE, ANYWHERE)


@study.finding(
    "given the match too, there is no plateau (time, unclamped 1)",
    at_most=0.3,
    control="one head held to tokens at random",
    given=forms,
)
def given_both(lab: Lab) -> Measured:
    return _times(lab, BOTH_PARTS, ANYWHERE)


@study.finding(
    "with all of the first layer held to tokens at random it comes later or never (time, unclamped 1)",
    at_least=_PATIENCE,
    control="one head held to the token before",
    given=forms,
)
def random_patterns_delay(lab: Lab) -> Measured:
    """Training ends at one and a half times the unclamped time, which stands for never."""
    return _times(lab, ANYWHERE_BOTH, BEFORE)


@study.finding(
    "induction heads are redundant: without the strongest, the network still repeats (accuracy)",
    at_least=0.5,
    control="without the two strongest",
)
def redundant(lab: Lab) -> Measured:
    """Of the tokens that repeat; ablated to the mean over prompts."""
    first, second = lab.once(_strongest)
    return Measured.share(_hits(lab, [first]), control=_hits(lab, [first, second]))


@study.identity("what the last layer's heads add to the logits sums to what they add together", tolerance=1e-4)
def additive(lab: Lab) -> Measured:
    """In a network of attention without norms; the paper finds it in effects on the loss, to an R² of 0.8 and more."""
    lab.need(lab.truth.name == "induction", "a network of attention alone, without norms")
    heads = [Site("z", lab.model.n_layers - 1, head) for head in range(lab.model.n_heads)]
    tokens = repeated(8, seed=lab.seed)[0]

    def logits(ablated: Sequence[Site]) -> Tensor:
        found = lab.model.run(tokens, do=[pc.ablate(head) for head in ablated]).logits
        assert found is not None
        return found

    clean = logits([])
    single = torch.stack([clean - logits([head]) for head in heads])
    return Measured.gap(clean - logits(heads), single.sum(0))


@study.identity(
    "held to its own activations, training is the same to the bit",
    tolerance=0.0,
    control="training with the pattern held to the token before",
    breaks=1e-3,
)
def own_activations(lab: Lab) -> Measured:
    """Losses of 20 steps; attention is eager in all, as other kernels that give no pattern round otherwise."""
    holds = {name: hold("pattern.0.0", to) for name, to in (("own", lambda _, x: x), ("before", previous_token))}
    plain, own, before = (
        _train(lab, [*several], 0, 20, attention="eager")[1] for several in ([], [holds["own"]], [holds["before"]])
    )
    return Measured.gap(own, plain, control=(before, plain))


@study.figure("Loss of what repeats, in training, by what is held")
def curves(lab: Lab):
    runs = {clamp: lab.once(_trained, clamp, lab.seed).curve("repeated_loss") for clamp in CLAMPS}
    steps = max((run[0] for run in runs.values()), key=len)
    drawn = {clamp: values + [values[-1]] * (len(steps) - len(values)) for clamp, (_, values) in runs.items()}
    return pc.views.lines(steps, drawn, title="loss while a part is held", x_title="step", y_title="nats")


# ── what the claims share ─────────────────────────────────────────────────────────────────────────────────────────────


def _seeds(lab: Lab) -> range:
    return range(lab.seed, lab.seed + (3 if lab.full else 1))


def _holds(clamp: str) -> list[Hold]:
    before = hold("pattern.0.0", previous_token)
    return {
        NONE: [],
        BEFORE: [before],
        BOTH_PARTS: [before, hold("pattern.1.0", matching)],
        ANYWHERE: [hold("pattern.0.0", anywhere(0))],
        ANYWHERE_BOTH: [hold("pattern.0.0", anywhere(0)), hold("pattern.0.1", anywhere(1))],
    }[clamp]


def _trained(lab: Lab, clamp: str, seed: int) -> Training:
    """Trained until the loss has halved, or for one and a half times as long as unclamped."""
    most = _STEPS
    if clamp != NONE:
        most = int(_PATIENCE * lab.once(_trained, NONE, seed).steps)
    elif lab.untrained:
        most //= 10
    return _train(lab, _holds(clamp), seed, most)[0]


def _time(training: Training) -> int | None:
    return training.first("repeated_loss", below=_HALF)


def _times(lab: Lab, clamp: str, control: str) -> Measured:
    """Time with a clamp over time without, by seed; where training went on to its end, that end. NaN without a time."""

    def ratios(name: str) -> list[float]:
        found = []
        for seed in _seeds(lab):
            plain = _time(lab.once(_trained, NONE, seed))
            if plain is None:
                return [math.nan]
            held = lab.once(_trained, name, seed)
            found.append((_time(held) or held.steps) / plain)
        return found

    ours, theirs = ratios(clamp), ratios(control)
    if len(ours) > 1:
        return Measured.mean(ours, control=theirs)
    return Measured.number(ours[0], control=theirs)


def _train(
    lab: Lab, holds: Sequence[Hold], seed: int, most: int, *, attention: str | None = None
) -> tuple[Training, Float[Tensor, "step"]]:
    """The organism's recipe until the loss has halved, at most `most` steps; and the loss of every step."""
    recipe = Recipe(seed=seed)
    hf = untrained(recipe)
    if attention is not None:
        hf.set_attn_implementation(attention)
    model, optimizer = wrap(hf), adamw(hf, learning_rate=recipe.learning_rate, weight_decay=0.0)
    tests = repeated(32, seed=10_000 + seed)
    lags = {"lags": _NEVER_REPEATS} if lab.untrained else {}
    losses = []
    with clamped_training(model, holds, watch=lambda: repeated_loss(hf, *tests), every=_EVERY) as training:
        for step in lab.progress(range(most), "training under clamps"):
            tokens = repeated(recipe.batch, (seed + 1) * 1_000_000 + step, **lags)[0]
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * min(1.0, (step + 1) / recipe.warmup)
            loss = cross_entropy(hf(tokens, use_cache=False).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(hf.parameters(), 1.0)
            optimizer.step()
            training.step()
            losses.append(loss.item())
            if _time(training) is not None:
                break
    return training, torch.tensor(losses, dtype=torch.double)


def _strongest(lab: Lab) -> list[Site]:
    """The two heads that attend most to what followed the same token."""
    lab.need(min(lab.model.embeddings.weight.shape) >= 2 and lab.model.anatomy.head == "tokens", "a language model")
    scores = head_scores(lab.model, repeated(32, seed=lab.seed)[0])["prefix_matching"]
    order = scores.flatten().argsort(descending=True)[:2].tolist()
    return [Site("z", *divmod(at, scores.shape[1])) for at in order]


def _hits(lab: Lab, heads: list[Site]) -> Float[Tensor, "token"]:
    """Which tokens that repeat are right with these heads at their mean."""
    tokens, lag = repeated(128 if lab.full else 32, seed=lab.seed + 1)
    run = lab.model.run(tokens, record=[head.whole for head in heads])
    do = [pc.ablate(head, run[head.whole].mean((0, 1))[head.unit]) for head in heads]
    logits = lab.model.run(tokens, do=do).logits
    assert logits is not None
    again = torch.arange(1, tokens.shape[1]) > lag[:, None] + 1
    return (logits[:, :-1].argmax(-1) == tokens[:, 1:])[again].float()
