"""What fine-tuning left behind: how the activations of a model and its fine-tune differ on text that is not about it.

traces = pc.steering.diffing.traces(base, tuned, unrelated, sites="resid_post.*", positions=5)
trace = traces["resid_post.2"]
pc.steering.diffing.top(tuned, trace.vectors, k=10)                 # by position, through the model's own unembedding
direction, strength = trace.direction(), pc.steering.diffing.tolerated(tuned, trace.direction(), neutral)
base.generate("The day", do=[direction.add(strength)], max_new_tokens=16).text

readout = pc.steering.diffing.read(base, tuned, trace, repeating=prompts, openings=openings, neutral=neutral)
candidates = pc.steering.diffing.topics(base, {"sea": texts, "court": others}, ordinary=pretraining)
candidates.rank(readout), candidates.name(readout)                  # from token ids alone: blind to the models

Both models see the first tokens of the same texts, and the mean of the difference is what fine-tuning adds whatever
the text is about (Minder et al. 2025, arXiv:2510.13900). It is read through the unembedding, by what it makes a prompt
that repeats tokens say, and by adding it, as strongly as the model bears, while it writes. What was read is judged by
how often the tokens occur in texts of each candidate topic, which nobody needs to look at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchclamp.interventions import patch
from patchclamp.model import Model
from patchclamp.sites import Site
from patchclamp.steering.behaviour import Neutral
from patchclamp.steering.direction import Direction, DirectionError, random

BATCH = 64


@dataclass(frozen=True, eq=False)
class Trace:
    """`vectors`: the mean difference by position, fine-tune less base; `norms`: the mean norm of the fine-tune's states
    there, in the same units.
    """

    site: str
    vectors: Float[Tensor, "pos d"]
    norms: Float[Tensor, "pos"]

    @property
    def sizes(self) -> Float[Tensor, "pos"]:
        """Length of the difference as a share of a state's, by position."""
        return self.vectors.norm(dim=-1) / self.norms

    def direction(self, position: int | None = None) -> Direction:
        """The difference at one position, or its mean over all but the first, whose token all texts share."""
        if position is None and len(self.vectors) < 2:
            raise DirectionError("a trace of one position has no others to average over; name it: direction(0)")
        vector = self.vectors[1:].mean(0) if position is None else self.vectors[position]
        return Direction(self.site, vector, "trace", {"position": position})

    def random(self, seed: int = 0) -> "Trace":
        """Random vectors of the same lengths, all along one direction: the control of whatever is read from a trace."""
        along = random(Direction(self.site, torch.ones_like(self.vectors[0])), seed=seed).unit().vector
        return Trace(self.site, self.vectors.norm(dim=-1, keepdim=True) * along, self.norms)


def traces(
    base: Model,
    tuned: Model,
    texts: Sequence[str],
    *,
    sites: "str | Site | Sequence[str | Site]" = "resid_post.*",
    positions: int = 5,
) -> dict[str, Trace]:
    """The trace at every site, over the first `positions` tokens of each text, BOS included.

    Raises `DirectionError` for texts with fewer tokens, and for two models that read the texts differently.
    """
    ours, theirs = tuned.tokens(list(texts)), base.tokens(list(texts))
    if ours.ids.shape != theirs.ids.shape or not torch.equal(ours.ids, theirs.ids):
        raise DirectionError(f"{base.name} and {tuned.name} split the texts into different tokens")
    short = int((ours.mask.sum(1) < positions).sum())
    if short:
        raise DirectionError(f"{short} of {len(texts)} texts have fewer than positions={positions} tokens")
    before, _ = _means(base, theirs.ids[:, :positions], sites)
    after, norms = _means(tuned, ours.ids[:, :positions], sites)
    return {str(site): Trace(str(site), after[site] - before[site], norms[site]) for site in after}


def _means(
    model: Model, ids: Tensor, sites: "str | Site | Sequence[str | Site]"
) -> tuple[dict[Site, Tensor], dict[Site, Tensor]]:
    """Mean state and mean norm by site and position."""
    found = model.sites(sites)
    sums = {site: torch.zeros((), dtype=torch.float64) for site in found}
    norms = dict(sums)
    for start in range(0, len(ids), BATCH):
        run = model.run(ids[start : start + BATCH], record=found, stop=True)
        for site in found:
            states = run[site].double().cpu()
            sums[site] = sums[site] + states.sum(0)
            norms[site] = norms[site] + states.norm(dim=-1).sum(0)
    mean = {site: (total / len(ids)).float() for site, total in sums.items()}
    return mean, {site: (total / len(ids)).float() for site, total in norms.items()}


def lens(model: Model, vectors: Float[Tensor, "row d"]) -> Float[Tensor, "row vocab"]:
    """Log-probabilities that the model's last norm and unembedding give vectors of the residual stream."""
    ids = torch.full((len(vectors), 1), model.pad)
    last = f"resid_post.{model.n_layers - 1}"
    logits = model.run(ids, attention_mask=torch.ones_like(ids), do=[patch(last, vectors[:, None])]).logits
    assert logits is not None
    return logits[:, 0].float().log_softmax(-1).cpu()


def patchscope(
    model: Model, direction: Direction, prompt: str, norm: float, scales: Sequence[float] = (1.0,)
) -> Float[Tensor, "scale vocab"]:
    """Log-probabilities after `prompt`, at whose last token the state is the direction at `scale` times `norm`.

    `prompt` repeats tokens and ends in a placeholder ("cat -> cat; dog -> dog; ?"), so that what the state says is said
    again (Ghandeharioun et al. 2024, arXiv:2401.06102). `norm` is that of states at the direction's site.
    """
    states = torch.stack([direction.rescaled(scale * norm).vector for scale in scales])
    logits = model.run([prompt] * len(scales), do=[patch(direction.site, states[:, None], pos=-1)]).logits
    assert logits is not None
    return logits[:, -1].float().log_softmax(-1).cpu()


def top(model: Model, vectors: Float[Tensor, "row d"], k: int = 10) -> list[list[str]]:
    """The `k` tokens that each vector says most through `lens`, as text."""
    if model.tokenizer is None:
        raise DirectionError(f"{model.name} has no tokenizer: use lens(), whose rows are by token id")
    return [[model.tokenizer.decode([int(i)]).strip() for i in row] for row in lens(model, vectors).topk(k).indices]


def tolerated(
    model: Model, direction: Direction, neutral: Any, *, budget: float = 1.0, most: float = 64.0, halvings: int = 6
) -> float:
    """The largest strength, by bisection up to `most`, at which neutral text costs at most `budget` nats a token."""
    text = Neutral(model, neutral)

    def bears(strength: float) -> bool:
        return text.measure([direction.add(strength)])["rise"] <= budget

    if bears(most):
        return most
    low, high = 0.0, most
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (middle, high) if bears(middle) else (low, middle)
    return low


# ── the topic, told blind ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class Readout:
    """The token ids that a trace says, likeliest first: all that whoever tells its topic gets to see.

    `lens`: by position, the first left out; `patchscope`: by prompt; `steered`: what the base wrote with the trace
    added `strength` times, which is `texts` by opening.
    """

    lens: Int[Tensor, "pos k"]
    patchscope: Int[Tensor, "prompt k"]
    steered: Int[Tensor, "written"]
    strength: float
    texts: tuple[str, ...] = ()


def read(
    base: Model,
    tuned: Model,
    trace: Trace,
    *,
    repeating: Sequence[str],
    openings: Sequence[str],
    neutral: Any,
    k: int = 20,
    budget: float = 1.0,
    tokens: int = 16,
) -> Readout:
    """A trace read in three ways: by `lens`, by `patchscope` after the prompts `repeating`, and by what is written
    after `openings` with as much of it added as `neutral` text bears at `budget` nats a token.

    Lens and patchscope read through the fine-tune. The base is steered, since a narrow fine-tune may write of its topic
    whatever is added to it, which would tell of the model and not of the trace.
    Raises `DirectionError` for a trace of zeros or of one position.
    """
    direction = trace.direction()
    if not direction.norm:
        raise DirectionError(f"the trace at {trace.site} is zero and says nothing: the two models do not differ there")
    norm = float(trace.norms[1:].mean())
    again = torch.cat([patchscope(tuned, direction, prompt, norm) for prompt in repeating])
    strength = tolerated(base, direction, neutral, budget=budget, most=16.0, halvings=5)
    written = base.generate(list(openings), do=[direction.add(strength)], max_new_tokens=tokens).new_text
    assert isinstance(written, list)
    steered = [i for ids in _ids(base, written) for i in ids]
    seen = lens(tuned, trace.vectors[1:]).topk(k).indices
    return Readout(seen, again.topk(k).indices, torch.tensor(steered, dtype=torch.long), strength, tuple(written))


@dataclass(frozen=True, eq=False)
class Topics:
    """`evidence`: nats by which a token speaks for a topic and against ordinary text."""

    names: tuple[str, ...]
    evidence: Float[Tensor, "topic vocab"]

    def by_way(self, readout: Readout) -> dict[str, Float[Tensor, "topic"]]:
        """The mean evidence a token for each topic, by way of reading; none of a way that said nothing."""
        ways = {"lens": readout.lens, "patchscope": readout.patchscope, "steering": readout.steered}
        return {way: self.evidence[:, ids.flatten()].mean(1) for way, ids in ways.items() if ids.numel()}

    def rank(self, readout: Readout) -> list[tuple[str, float]]:
        """The topics, best first, each with its mean evidence a token; the three ways of reading count alike."""
        scores = torch.stack(list(self.by_way(readout).values())).mean(0)
        return [(self.names[i], float(scores[i])) for i in scores.argsort(descending=True).tolist()]

    def name(self, readout: Readout) -> str | None:
        """The best topic; None where ordinary text explains what was read no worse."""
        best, score = self.rank(readout)[0]
        return best if score > 0 else None


def topics(model: Model, texts: Mapping[str, Sequence[str]], ordinary: Sequence[str], *, share: float = 0.5) -> Topics:
    """Candidate topics by how often each token occurs in texts of theirs.

    A token's evidence is log((share p_topic + (1 - share) p_ordinary) / p_ordinary): in a topic's text a `share` of the
    tokens is its own and the rest ordinary, as in the query likelihood of retrieval (Zhai and Lafferty 2001), so that a
    token that a topic lacks counts log(1 - share) against it. Ordinary counts are one more than seen.
    """
    if not texts:
        raise DirectionError("no candidate topics: texts= maps each one's name to texts about it")
    if not 0 < share < 1:
        raise DirectionError(f"share is the part of a topic's text that is its own, between 0 and 1, not {share}")
    general = _counts(model, "ordinary", ordinary) + 1.0
    general /= general.sum()
    own = torch.stack([_counts(model, name, some) for name, some in texts.items()])
    own /= own.sum(1, keepdim=True)
    return Topics(tuple(texts), (share * own / general + 1 - share).log().float())


def _counts(model: Model, name: str, texts: Sequence[str]) -> Float[Tensor, "vocab"]:
    flat = [i for ids in _ids(model, texts) for i in ids] if texts else []
    if not flat:
        raise DirectionError(f"the texts of '{name}' have no tokens to count")
    return torch.bincount(torch.tensor(flat), minlength=len(model.embeddings.weight)).double()


def _ids(model: Model, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens."""
    if model.tokenizer is None:
        raise DirectionError(f"{model.name} has no tokenizer, and a topic is told from tokens of text")
    return model.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
