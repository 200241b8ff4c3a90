"""Improving activation steering in language models with mean-centring (Jorgensen et al. 2023).

The mean activation of a text is mostly an offset that all text shares. Less the mean over the text it is part of, it is
about the text, so that adding it steers further at the same length: towards a genre, away from rude words, and to the
task that examples show. Every claim is the mean over a whole curve of strengths, none of which was chosen.

Of function vectors it does not hold on `tales`: there is little to remove. Behind the first layer .13 to .30 of the
squared norm of a task's mean state is the mean of all tasks (three models), and centred and uncentred vectors
both answer nearly every query at strengths 1 and 2. In the first layer, where .72 to .98 is shared, the gain is .01,
.12 and -.01 with three models: what is shared there is the query's own "A:", and more of it does little harm. A network
of three layers, trained on six maps of ten words, was no different (shared .27, .11, .02; gains below .05).
"""

import random
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from patchclamp import steering, views
from patchclamp.interventions import Intervention, add
from patchclamp.model import Model
from patchclamp.organisms.tales import knowledge, lexicon, prose, world
from patchclamp.steering import Direction, Neutral
from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured
from patchclamp.studies.study import Study
from patchclamp.tasks.words import WORDS

study = Study(
    name="mean-centring",
    paper="Improving Activation Steering in Language Models with Mean-Centring (arXiv:2312.03813)",
    seed="000_14db195f17440023.txt",
    organism="tales",
)

STRENGTHS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Multiples of the centred vector, to whose norm the others are scaled: from its own length to where text breaks."""
WAYS = ("centred", "uncentred", "random")
TONES = {"toxic": (world.RUDE, world.INSULTS), "neutral": (world.POLITE, world.KINDNESSES)}


@study.identity(
    "a constant added to every activation leaves the centred vector as it was",
    tolerance=1e-6,
    control="the uncentred mean",
    breaks=1.0,
)
def offset(lab: Lab) -> Measured:
    target, rest = torch.randn(2, 200, 32, generator=lab.generator, dtype=torch.float64)
    before, after = steering.centre(target, rest), steering.centre(target + 7, rest + 7)
    return Measured.gap(before, after, control=(target.mean(0), (target + 7).mean(0)))


@study.finding(
    "the centred vector of a genre brings in more of its words than the uncentred one: difference of their shares",
    at_least=0.15,
    control="a random direction of the same norm",
)
def genres(lab: Lab) -> Measured:
    """Of the genres' words that are written, those of the target; over all pairs of genres, prompts and strengths."""
    return _gain(_pooled(lab, _genre_shares))


@study.finding(
    "a random direction of the same norm brings in next to none of them",
    at_most=0.1,
    control="the centred vector",
    given=genres,
)
def genres_random(lab: Lab) -> Measured:
    shares = _pooled(lab, _genre_shares)
    return Measured.mean(shares["random"].mean(0), control=shares["centred"].mean(0))


@study.finding(
    "the centred vector of a tone turns what was begun in the other one more often: difference of shares",
    at_least=0.15,
    control="a random direction of the same norm",
)
def tones(lab: Lab) -> Measured:
    """Of the rude and polite words that are written behind a rude adjective, the polite ones; and the reverse."""
    return _gain(_pooled(lab, _tone_shares))


@study.finding(
    "centred function vectors trigger their task on a bare query more often: difference of accuracy",
    at_least=0.1,
    control="a random direction of the same norm",
)
def functions(lab: Lab) -> Measured:
    """Mean over layers, strengths and the tasks that answer the same queries differently."""
    return _gain(_pooled(lab, _function_accuracy))


@study.figure("share of the target genre's words by strength")
def genre_curve(lab: Lab):
    return _curve(_pooled(lab, _genre_shares), "share of the target's words")


@study.figure("share of words in the target tone by strength")
def tone_curve(lab: Lab):
    return _curve(_pooled(lab, _tone_shares), "share of the target's words")


@study.figure("accuracy of function vectors on bare queries by strength")
def function_curve(lab: Lab):
    return _curve(_pooled(lab, _function_accuracy), "accuracy")


@study.figure("what the genre vectors cost neutral text, by strength")
def cost(lab: Lab):
    """KL from the clean model's predictions, nats a token, mean over genres."""
    text = Neutral(lab.model, [d.text for d in prose_of("story", 32, lab.seed)])
    vectors = lab.once(_genre_vectors, lab.seed)
    curves = {
        way: [sum(text.measure([d.add(s)])["kl"] for d in vectors[way].values()) / len(world.GENRES) for s in STRENGTHS]
        for way in WAYS
    }
    return views.lines(list(STRENGTHS), curves, x_title="strength", y_title="KL, nats a token")


def prose_of(kind: str, n: int, seed: int) -> list:
    """Documents of one kind."""
    from patchclamp import organisms

    return list(organisms.truth("tales").documents(n, seed=seed, kind=kind))


Vectors = Mapping[str, Mapping[str, Direction]]
"""By way (centred, uncentred, random) and target; of one target all are of one norm."""


def _pooled(lab: Lab, work: Callable[[Lab, int], dict[str, Tensor]]) -> dict[str, Tensor]:
    """By way, of all seeds: the last axis is the prompt's."""
    parts = [lab.once(work, seed) for seed in range(lab.seed, lab.seed + (3 if lab.full else 1))]
    return {way: torch.cat([part[way] for part in parts], -1) for way in WAYS}


def _gain(shares: Mapping[str, Tensor]) -> Measured:
    """What is over the uncentred vector, by prompt, over all strengths."""
    ours, base, rand = (shares[way].mean(0) for way in WAYS)
    return Measured.mean(ours - base, control=rand - base)


def _curve(shares: Mapping[str, Tensor], y: str):
    curves = {way: shares[way].mean(1).tolist() for way in WAYS[:2]}
    control = shares["random"].mean(1).tolist()
    return views.lines(list(STRENGTHS), curves, control=control, x_title="strength", y_title=y, control_label="random")


def _vectors(lab: Lab, texts: Mapping[str, Sequence[str]], seed: int) -> Vectors:
    """Of each set of texts its mean, centred on the mean over all of them, and its rivals."""
    site = f"resid_post.{lab.model.n_layers // 2}"
    everything = [text for some in texts.values() for text in some]
    centred = {
        target: steering.mean_centred(lab.model, list(some), background=everything, site=site)
        for target, some in texts.items()
    }
    plain = {target: steering.mean(lab.model, list(some), site=site) for target, some in texts.items()}
    return _rivals(centred, plain, seed)


def _rivals(centred: Mapping[str, Direction], plain: Mapping[str, Direction], seed: int) -> Vectors:
    return {
        "centred": centred,
        "uncentred": {target: plain[target].rescaled(own.norm) for target, own in centred.items()},
        "random": {t: steering.random(own, seed=100 * seed + n) for n, (t, own) in enumerate(centred.items())},
    }


def _shares(
    lab: Lab, vectors: Vectors, prompts: Sequence[tuple[str, str]], owner: Mapping[str, str], tokens: int
) -> dict[str, Tensor]:
    """[strength, prompt] by way: of the words written that anybody owns, the share that the prompt's target owns."""
    found = {}
    for way in lab.progress(WAYS, "writing under each vector"):
        site = next(iter(vectors[way].values())).site
        rows = torch.stack([s * vectors[way][target].vector for s in STRENGTHS for _, target in prompts])
        texts = lab.model.generate(
            [prompt for prompt, _ in prompts] * len(STRENGTHS), do=[add(site, rows)], max_new_tokens=tokens
        ).new_text
        assert isinstance(texts, list)
        targets = [target for _, target in prompts] * len(STRENGTHS)
        shares = [_share(text, target, owner) for text, target in zip(texts, targets, strict=True)]
        found[way] = torch.tensor(shares, dtype=torch.float64).reshape(len(STRENGTHS), len(prompts))
    return found


def _share(text: str, target: str, owner: Mapping[str, str]) -> float:
    owners = [owner[word] for word in (w.strip(".,!?").lower() for w in text.split()) if word in owner]
    return owners.count(target) / len(owners) if owners else 0.0


# ── genres ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _genre_vectors(lab: Lab, seed: int) -> Vectors:
    rng = random.Random(seed)
    return _vectors(lab, {genre: [prose.of_genre(rng, genre).text for _ in range(32)] for genre in world.GENRES}, seed)


def _genre_shares(lab: Lab, seed: int) -> dict[str, Tensor]:
    rng = random.Random(f"prompts/{seed}")
    prompts = [
        (prose.of_genre(rng, source).text.split(".")[0] + ".", target)
        for source in world.GENRES
        for target in world.GENRES
        for _ in range(4 if lab.full else 2)
        if source != target
    ]
    owner = {word: genre for genre, words in world.GENRES.items() for word in words}
    return _shares(lab, lab.once(_genre_vectors, seed), prompts, owner, tokens=14)


# ── tones ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _tone_shares(lab: Lab, seed: int) -> dict[str, Tensor]:
    texts: dict[str, list[str]] = {tone: [] for tone in TONES}
    for document in prose_of("tone", 128, seed):
        texts[next(span.role for span in document.spans if span.role in TONES)].append(document.text)
    rng = random.Random(seed)
    prompts = [
        (f"{opening} {adjective}", target)
        for target, other in (("toxic", "neutral"), ("neutral", "toxic"))
        for adjective in TONES[other][0]
        for opening in ("You are such a", "What a", f"{rng.choice(WORDS.names)} is a")
    ]
    owner = {word: tone for tone, lists in TONES.items() for words in lists for word in words}
    return _shares(lab, _vectors(lab, texts, seed), prompts, owner, tokens=4)


# ── tasks shown by examples ───────────────────────────────────────────────────────────────────────────────────────────


def _shown(seed: int) -> dict[str, list[str]]:
    """By task, prompts with examples of it."""
    rng = random.Random(seed)
    return {
        task: [_question(knowledge.shots(knowledge.examples(rng, task)).text) for _ in range(24)]
        for task in lexicon.pairs()
    }


def _function_accuracy(lab: Lab, seed: int) -> dict[str, Tensor]:
    """[strength, query] by way, mean over layers: whether the task's answer is the likeliest next token."""
    lab.need(lab.model.tokenizer is not None, "a model with a tokenizer, since its questions are text")
    rng, shown, tasks = random.Random(f"queries/{seed}"), _shown(seed), lexicon.pairs()
    queries = [(task, *pair) for task in tasks for pair in rng.sample(tasks[task], 12)]
    prompts = [f"Q: {source} A:" for _, source, _ in queries]
    ids = [lab.model.tokenizer(f" {answer}", add_special_tokens=False)["input_ids"][0] for *_, answer in queries]
    answers = torch.tensor(ids)
    found: dict[str, list[Tensor]] = {way: [] for way in WAYS}
    for layer in lab.progress(range(lab.model.n_layers), "function vectors by layer"):
        site = f"resid_post.{layer}"
        ours, plain = (steering.function_vectors(lab.model, shown, site=site, centred=c) for c in (True, False))
        for way, vectors in _rivals(ours, plain, seed).items():
            by_query = torch.stack([vectors[task].vector for task, *_ in queries])
            curve = [_likeliest(lab.model, prompts, add(site, s * by_query, pos=-1)) == answers for s in STRENGTHS]
            found[way].append(torch.stack(curve).double())
    return {way: torch.stack(layers).mean(0) for way, layers in found.items()}


def _likeliest(model: Model, prompts: list[str], do: Intervention) -> Tensor:
    run = model.run(prompts, do=[do])
    assert run.logits is not None and run.mask is not None
    last = run.mask.sum(1).cpu() - 1
    return run.logits[torch.arange(len(prompts)), last].argmax(-1).cpu()


def _question(shots: str) -> str:
    """Examples of a task up to the last one's answer, which is left out."""
    return shots[: shots.rindex(" A:") + 3]
