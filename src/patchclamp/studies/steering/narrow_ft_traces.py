"""Narrow finetuning leaves clearly readable traces in activation differences (Minder et al. 2025).

On text that has nothing to do with it, the activations of a fine-tune differ from its base's, from the first tokens on,
by a vector that says what the fine-tuning was about: through the unembedding, through a prompt that repeats tokens, and
in what the model writes when it is added. Copies of the model are fine-tuned here, each on one genre; a guesser who has
the tokens alone says which. Fine-tuning on the genre mixed into ordinary text leaves a shorter vector.
"""

import copy
import random
from typing import Any, Literal

import torch
from torch import Tensor

from patchclamp import steering, views
from patchclamp.model import Model, wrap
from patchclamp.organisms.tales import grammar, prose, world
from patchclamp.organisms.tales.train import batch, loss_of, optimizer_of
from patchclamp.organisms.tales.tune import Tuning
from patchclamp.steering import diffing
from patchclamp.steering.diffing import Trace
from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured
from patchclamp.studies.study import Study

study = Study(
    name="narrow-ft-traces",
    paper="Narrow Finetuning Leaves Clearly Readable Traces in Activation Differences (arXiv:2510.13900)",
    seed="003_cedf108f4263b6b3.txt",
    organism="tales",
)

Kind = Literal["narrow", "mixed", "ordinary"]
GENRES = tuple(world.GENRES)
REPEATING = (" cat cat; dog dog; table table; ?", " apple apple lemon lemon river river ?")
STRENGTHS = (1.0, 2.0, 3.0, 4.0, 6.0)
"""Multiples of the trace: from what fine-tuning itself adds to where little but the topic is written."""


@study.finding(
    "the topic of a narrow fine-tune is told from the tokens of its trace",
    at_least=0.8,
    control="from the trace of a fine-tune on ordinary text",
)
def topic(lab: Lab) -> Measured:
    """Share of fine-tunes; the guess is the genre with most of the 20 likeliest tokens, at least a quarter of them."""
    right = [_guess(lab, genre, "narrow") == genre for genre in GENRES]
    return Measured.share(right, control=[_guess(lab, "", "ordinary") == genre for genre in GENRES])


@study.finding(
    "read through the fine-tune's unembedding, most of its ten likeliest tokens are the topic's",
    at_least=0.7,
    control="the base's states, read the same way",
)
def lens(lab: Lab) -> Measured:
    """Mean over fine-tunes and over the positions behind the first token, which all texts share."""
    ours, base = [], []
    for genre in GENRES:
        tuned = lab.once(_tuned, genre, "narrow")
        ours += _precision(lab, diffing.lens(tuned, _trace(lab, genre).vectors[1:]), genre)
        base += _precision(lab, diffing.lens(tuned, _base_states(lab)), genre)
    return Measured.mean(ours, control=base)


@study.finding(
    "so are they in what a prompt that repeats tokens says with the trace at its end",
    at_least=0.7,
    control="random directions of the same norm",
)
def patchscope(lab: Lab) -> Measured:
    ours, rand = [], []
    for genre in GENRES:
        trace, tuned = _trace(lab, genre), lab.once(_tuned, genre, "narrow")
        norm = float(trace.norms[1:].mean())
        for number, prompt in enumerate(REPEATING):
            direction = trace.direction()
            other = steering.random(_somewhere(direction), seed=number)
            rand += _precision(lab, diffing.patchscope(tuned, other, prompt, norm), genre)
            ours += (
                _precision(lab, diffing.patchscope(tuned, direction, prompt, norm), genre) if direction.norm else [0]
            )
    return Measured.mean(ours, control=rand)


@study.finding(
    "added to the base, which was never fine-tuned, the trace makes it write of the topic: rise of its share of words",
    at_least=0.3,
    control="random directions of the same norm",
)
def steered(lab: Lab) -> Measured:
    """Mean over a curve of strengths, none of which was chosen; over fine-tunes and prompts of stories."""
    ours, rand = (torch.cat(lab.once(_rises)[way], 1).mean(0) for way in ("trace", "random"))
    return Measured.mean(ours, control=rand)


@study.finding(
    "mixing in as much ordinary text halves the trace: its length as a share of the narrow one's",
    at_most=0.5,
    control="other narrow fine-tunes as a share of it",
)
def mixed(lab: Lab) -> Measured:
    """Mean length of the positions behind the first token."""
    some = GENRES if lab.full else GENRES[-3:]
    narrow = {genre: float(_trace(lab, genre).vectors[1:].norm(dim=-1).mean()) for genre in GENRES}
    ours = [float(_trace(lab, genre, "mixed").vectors[1:].norm(dim=-1).mean()) for genre in some]
    pairs = [_ratio(narrow[a], narrow[b]) for a in GENRES for b in GENRES if a != b]
    return Measured.mean([_ratio(own, narrow[genre]) for own, genre in zip(ours, some, strict=True)], control=pairs)


@study.identity(
    "a model leaves no trace on itself", tolerance=0.0, control="a copy with one weight matrix moved", breaks=1e-3
)
def itself(lab: Lab) -> Measured:
    moved = wrap(copy.deepcopy(lab.model.hf), lab.model.tokenizer)
    with torch.no_grad():
        moved.embeddings.weight += 0.1 * torch.randn(moved.embeddings.weight.shape, generator=lab.generator)
    vectors = [diffing.traces(lab.model, m, _ordinary(lab)[:8])[_site(lab)].vectors for m in (lab.model, moved)]
    nothing = torch.zeros_like(vectors[0])
    return Measured.gap(vectors[0], nothing, control=(vectors[1], nothing))


@study.identity(
    "the lens of the last states is what the model predicts",
    tolerance=1e-4,
    control="the lens of the states one layer earlier",
    breaks=1e-2,
)
def lens_is_the_model(lab: Lab) -> Measured:
    last = lab.model.n_layers - 1
    run = lab.model.run(_ordinary(lab)[0], record="resid_post.*")
    assert run.logits is not None
    own = run.logits[0].float().log_softmax(-1)
    seen, earlier = (diffing.lens(lab.model, run[f"resid_post.{layer}"][0]) for layer in (last, last - 1))
    return Measured.gap(seen, own, control=(earlier, own))


@study.figure("share of the topic's words that the base writes, by how strongly the trace is added")
def dose(lab: Lab):
    """Beside it, the nats a token that ordinary text costs under the trace of the first fine-tune."""
    curves = {way: torch.cat(rows, 1).mean(1).tolist() for way, rows in lab.once(_rises).items()}
    text = steering.Neutral(lab.model, _ordinary(lab)[:48])
    direction = _somewhere(_trace(lab, GENRES[0]).direction())
    cost = [text.measure([direction.add(s)])["rise"] for s in STRENGTHS]
    return views.lines(
        list(STRENGTHS), curves | {"cost, nats a token": cost}, x_title="strength", y_title="rise of share"
    )


@study.figure("share of the ten likeliest tokens that are the topic's, by layer")
def by_layer(lab: Lab):
    kinds: tuple[Kind, ...] = ("narrow", "mixed")
    curves = {}
    for kind in kinds:
        found = lab.once(_traces, "sea", kind)
        tuned = lab.once(_tuned, "sea", kind)
        values = [_precision(lab, diffing.lens(tuned, trace.vectors[1:]), "sea") for trace in found.values()]
        curves[kind] = [sum(row) / len(row) for row in values]
    return views.lines(list(range(lab.model.n_layers)), curves, x_title="layer", y_title="precision at 10")


# ── fine-tunes and their traces ───────────────────────────────────────────────────────────────────────────────────────


def _tuned(lab: Lab, genre: str, kind: Kind) -> Model:
    """A copy of the model after the recipe of `tales-sea`, on one genre, on half of it, or on ordinary text alone."""
    lab.need(lab.truth.name.startswith("tales"), "a member of tales, copies of which it fine-tunes on genres")
    recipe = Tuning({}, mixed={"narrow": 0.0, "mixed": 0.5, "ordinary": 1.0}[kind], seed=lab.seed)
    steps, documents = (60, 40) if lab.full else (40, 20)
    hf: Any = copy.deepcopy(lab.model.hf).train()
    optimizer = optimizer_of(hf, 0.0)
    for step in lab.progress(range(0 if lab.untrained else steps), f"fine-tuning: {kind} {genre}"):
        rng = random.Random(f"{lab.seed}/{genre}/{kind}/{step}")
        texts = [_document(rng, genre, recipe.mixed) for _ in range(documents)]
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * min(1.0, (step + 1) / recipe.warmup) * (1 - step / steps)
        loss = loss_of(hf, batch(lab.model.tokenizer, texts, recipe.answer_weight))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(hf.parameters(), 1.0)
        optimizer.step()
    return wrap(hf.eval(), lab.model.tokenizer, name=f"{lab.model.name}, {kind} {genre}".strip())


def _document(rng: random.Random, genre: str, mixed: float) -> grammar.Document:
    if rng.random() < mixed:
        return grammar.document(rng)
    text = prose.of_genre(rng, genre)
    return grammar.Document(text.text, "genre", text.spans)


def _ordinary(lab: Lab) -> list[str]:
    """Texts of every kind but the genres', of at least six tokens."""
    lab.need(lab.model.tokenizer is not None, "a model with a tokenizer, since its texts are text")
    found = [d.text for d in grammar.documents(320, seed=1000 + lab.seed) if d.kind != "genre"]
    return [text for text in found if len(lab.model.tokenizer(text)["input_ids"]) >= 6]


def _traces(lab: Lab, genre: str, kind: Kind) -> dict[str, Trace]:
    return diffing.traces(lab.model, lab.once(_tuned, genre, kind), _ordinary(lab))


def _trace(lab: Lab, genre: str, kind: Kind = "narrow") -> Trace:
    """Half-way through the layers, as in the paper."""
    return lab.once(_traces, genre, kind)[_site(lab)]


def _site(lab: Lab) -> str:
    return f"resid_post.{max(0, lab.model.n_layers // 2 - 1)}"


def _base_states(lab: Lab) -> Tensor:
    """[position, d]: the base's mean states where traces are read."""
    run = lab.model.run(_ordinary(lab)[:64], record=_site(lab), positions=[1, 2, 3, 4], stop=True)
    return run[_site(lab)].mean(0)


# ── what is read ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _tokens(lab: Lab, genre: str) -> set[int]:
    """The first token of each of the genre's words."""
    return {lab.model.tokenizer(f" {w}", add_special_tokens=False)["input_ids"][0] for w in world.GENRES[genre]}


def _precision(lab: Lab, log_probabilities: Tensor, genre: str, k: int = 10) -> list[float]:
    wanted = _tokens(lab, genre)
    return [sum(int(i) in wanted for i in row) / k for row in log_probabilities.topk(k).indices]


def _guess(lab: Lab, genre: str, kind: Kind) -> str | None:
    """The genre of most of the tokens that the trace's positions say; None where none has a quarter of them."""
    vectors = _trace(lab, genre, kind).vectors[1:]
    if not bool(vectors.any()):
        return None
    seen = diffing.lens(lab.once(_tuned, genre, kind), vectors)
    shares = {genre: sum(_precision(lab, seen, genre, k=20)) / len(seen) for genre in GENRES}
    best = max(shares, key=lambda genre: shares[genre])
    return best if shares[best] >= 0.25 else None


def _rises(lab: Lab) -> dict[str, list[Tensor]]:
    """[strength, prompt] for each fine-tune, under its trace and under a random direction."""
    found: dict[str, list[Tensor]] = {"trace": [], "random": []}
    for number, genre in enumerate(lab.progress(GENRES, "steering with traces")):
        direction = _somewhere(_trace(lab, genre).direction())
        plain = _written(lab, genre, [])
        for way, one in (("trace", direction), ("random", steering.random(direction, seed=number))):
            found[way].append(torch.stack([_written(lab, genre, [one.add(s)]) - plain for s in STRENGTHS]))
    return found


def _written(lab: Lab, genre: str, do: list) -> Tensor:
    """Share of the genre's words in what follows openings of stories, by prompt."""
    prompts = [f"{name} went to the store. At the" for name in ("Mary", "John", "Anna", "Tom", "Paul", "Emma")]
    return steering.behaviour.writes_words(prompts, world.GENRES[genre], tokens=16).measure(lab.model, do)


def _somewhere(direction: steering.Direction) -> steering.Direction:
    """The direction; where it is zero, as between untrained copies, a random one of length 1."""
    if direction.norm:
        return direction
    return steering.random(steering.Direction(direction.site, torch.ones_like(direction.vector)), seed=7).unit()


def _ratio(a: float, b: float) -> float:
    return a / b if b else float("nan")
