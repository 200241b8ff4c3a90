"""Train `stdlib` on the running Python's library: `patchclamp organisms train stdlib --out DIR`.

`truth("stdlib", folder)` gives its text with labels (held-out files), its windows of tokens, and prompts to close a
bracket.
"""

import json
import platform
import random
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from patchclamp.organisms.stdlib import behaviours, corpus
from patchclamp.organisms.stdlib.labels import KINDS, Document, documents
from patchclamp.organisms.stdlib.ngram import KneserNey
from patchclamp.organisms.training import fit, store
from patchclamp.organisms.truth import Truth

SNAPSHOTS = (400,)


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights, besides the machine's arithmetic: the text by its fingerprint."""

    text: str
    python: str
    seed: int = 0
    steps: int = 1600
    vocabulary: int = 2048
    layers: int = 4
    width: int = 160
    heads: int = 5
    hidden: int = 400
    context: int = 256
    batch: int = 8  # windows in a step
    warmup: int = 50
    learning_rate: float = 4e-3
    weight_decay: float = 0.05  # of the matrices inside the blocks


class MuonAndAdam(torch.optim.Optimizer):
    """Muon for the matrices inside the blocks, AdamW for embeddings and norms, as one optimizer.

    Muon (Jordan 2024) takes about a third fewer steps here, and counts most where steps are few.
    """

    def __init__(self, model: torch.nn.Module, learning_rate: float, weight_decay: float):
        inside = {name for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name}
        matrices = [p for name, p in model.named_parameters() if name in inside]
        others = [p for name, p in model.named_parameters() if name not in inside]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.98)),
        ]
        super().__init__([*matrices, *others], {"lr": learning_rate})
        self._gather()

    def _gather(self) -> None:
        """The groups are those of the parts, so that a rate that is set here is set there."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Any = None) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._gather()


def untrained(recipe: Recipe) -> LlamaForCausalLM:
    """The network before training: a Llama with tied embeddings."""
    config = LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.width,
        intermediate_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,  # corpus.END, the tokenizer's first
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):  # transformers draws initial weights from the global generator
        torch.manual_seed(recipe.seed)
        return LlamaForCausalLM(config)


def step_windows(stream: Int[Tensor, " token"], recipe: Recipe, step: int) -> Int[Tensor, "window pos"]:
    """The windows of one step, each with the token after it. An epoch cuts the stream from an offset of its own, and
    shuffles the windows; recipe and step alone decide.
    """
    per_epoch = (len(stream) - recipe.context - 1) // recipe.context // recipe.batch
    if per_epoch < 1:
        raise ValueError(f"{len(stream)} tokens do not fill {recipe.batch} windows of {recipe.context}: take more text")
    epoch, at = divmod(step, per_epoch)
    offset, order = _epoch(recipe, epoch, per_epoch * recipe.batch)
    chosen = order[at * recipe.batch : (at + 1) * recipe.batch]
    return stream[offset:].unfold(0, recipe.context + 1, recipe.context)[chosen]


@cache
def _epoch(recipe: Recipe, epoch: int, n_windows: int) -> tuple[int, Int[Tensor, " window"]]:
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch)
    return int(torch.randint(recipe.context, (), generator=generator)), torch.randperm(n_windows, generator=generator)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a straight line to zero."""
    return recipe.learning_rate * min((step + 1) / recipe.warmup, 1.0) * (1 - step / recipe.steps)


@torch.no_grad()
def loss_on(model: LlamaForCausalLM, stream: Int[Tensor, " token"], context: int, *, most: int | None = None) -> float:
    """Mean loss in nats a token over the stream, cut into windows of `context`; over `most` of them, evenly spaced,
    where that is given.
    """
    inputs, targets = corpus.windows(stream, context)
    every = 1 if most is None else max(1, len(inputs) // most)
    pairs = zip(inputs[::every].split(8), targets[::every].split(8), strict=True)
    device = model.device
    losses = [
        cross_entropy(model(x.to(device)).logits.transpose(1, 2), y.to(device), reduction="none") for x, y in pairs
    ]
    return torch.cat(losses).mean().item()


def train(
    name: str,
    out: str | Path,
    *,
    seed: int | None = None,
    steps: int | None = None,
    device: str = "cpu",
    progress: bool = True,
    recipe: Recipe | None = None,
    library: str | Path | None = None,
    stop_at: int | None = None,
) -> list[float]:
    """Train into the folder `out`, or go on from the checkpoint in it; the loss of every step.

    `library` is a folder of source to train on in place of the running Python's; `recipe` overrides seed and steps,
    save for what it says of the text. `stop_at` ends early, as an interruption would.
    """
    texts = corpus.library(library)
    trained, held_out = corpus.split(texts)
    given = vars(recipe) if recipe else {"seed": seed or 0, "steps": steps or Recipe.steps}
    recipe = Recipe(**{**given, "text": corpus.fingerprint(texts), "python": platform.python_version()})
    # Learnt anew on resuming too: it takes seconds, and the same text gives the same merges.
    tokenizer = corpus.tokenizer(trained.values(), recipe.vocabulary)
    stream, tested = corpus.encode(tokenizer, trained.values()), corpus.encode(tokenizer, held_out.values())
    model = untrained(recipe).to(device)  # pyright: ignore[reportArgumentType]

    def loss_at(step: int) -> Float[Tensor, ""]:
        windows = step_windows(stream, recipe, step).to(device)
        return cross_entropy(model(windows[:, :-1]).logits.flatten(0, 1), windows[:, 1:].flatten())

    losses = fit(
        model,
        loss_at,
        out=out,
        recipe=recipe,
        steps=recipe.steps,
        optimizer=MuonAndAdam(model, recipe.learning_rate, recipe.weight_decay),
        rate=partial(learning_rate, recipe),
        snapshots=SNAPSHOTS,
        measure=lambda step: {"held out": loss_on(model, tested, recipe.context, most=32)},
        measure_every=100,
        stop_at=stop_at,
        progress=progress,
    )
    if len(losses) == recipe.steps:
        model = model.cpu().eval()
        scores = measured(model, tokenizer, trained, held_out, recipe)
        store(model, out, recipe, losses, tokenizer=tokenizer, extra=scores)
    return losses


def measured(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    trained: Mapping[str, str],
    held_out: Mapping[str, str],
    recipe: Recipe,
) -> dict[str, Any]:
    """Held-out loss in nats a token, of the network and of n-gram models of the same tokens, and the accuracy of each
    behaviour, beside that of the 4-gram model and that of always saying what is most often right.
    """
    stream, tested = corpus.encode(tokenizer, trained.values()), corpus.encode(tokenizer, held_out.values())
    baselines = {order: KneserNey(stream, order, recipe.vocabulary) for order in (3, 4, 5)}
    losses = {"network": loss_on(model, tested, recipe.context)} | {
        f"{order}-gram": baseline.loss(tested) for order, baseline in baselines.items()
    }

    @torch.no_grad()
    def network(histories: Int[Tensor, "question pos"]) -> Float[Tensor, "question vocabulary"]:
        return model(histories, logits_to_keep=1).logits[:, -1]

    def four_gram(histories: Int[Tensor, "question pos"]) -> Float[Tensor, "question vocabulary"]:
        return baselines[4].distribution(histories[:, -3:])

    accuracies = {
        kind: {
            "questions": len(asked.answers),
            "network": round(behaviours.accuracy(network, asked), 4),
            "4-gram": round(behaviours.accuracy(four_gram, asked), 4),
            "commonest": round(behaviours.commonest(asked), 4),
        }
        for kind, asked in behaviours.questions(tokenizer, trained, held_out).items()
    }
    return {
        "files": {"trained": len(trained), "held out": len(held_out)},
        "tokens": {"trained": len(stream), "held out": len(tested)},
        "held_out_loss": {kind: round(loss, 4) for kind, loss in losses.items()},
        "accuracies": accuracies,
    }


def truth(name: str, folder: Path) -> Truth:
    """What is known of `stdlib`. Its text is that of the running Python, which is told where it is not the one that the
    network was trained on: then files may hold what training saw elsewhere.

    Documents are definitions in held-out files (`function`, `method`, `class`). A sample is 128 tokens of a held-out
    file before a closing bracket, and that bracket. Splits `train` and `test`: windows of the
    stream, and each next token.
    """

    def texts() -> tuple[dict[str, str], dict[str, str]]:
        found = corpus.library()
        record = json.loads((folder / "recipe.json").read_text())
        if corpus.fingerprint(found) != record["text"]:
            warnings.warn(
                f"'{name}' was trained on the library of Python {record['python']}, text {record['text']}; this is "
                f"Python {platform.python_version()}, text {corpus.fingerprint(found)}. Files are held out by the same "
                "rule, but their text is another.",
                stacklevel=3,
            )
        return corpus.split(found)

    def write(n: int, seed: int, kind: str | None) -> list[Document]:
        if kind is not None and kind not in KINDS:
            raise LookupError(f"no kind of document is called '{kind}'. There are: {', '.join(KINDS)}.")
        some = [document for document in documents(texts()[1]) if kind in (None, document.kind)]
        if n > len(some):
            raise ValueError(f"the held-out files have {len(some)} such documents; {n} were asked for")
        return random.Random(seed).sample(some, n)

    def sample(n: int, seed: int) -> tuple[Int[Tensor, "prompt pos"], Int[Tensor, " prompt"]]:
        asked = behaviours.questions(AutoTokenizer.from_pretrained(folder), *texts(), most=n, seed=seed)["brackets"]
        if n > len(asked.answers):
            raise ValueError(f"the held-out files have {len(asked.answers)} closing brackets; {n} were asked for")
        return asked.histories, asked.answers

    def split(held_out: bool) -> tuple[Int[Tensor, "window pos"], Int[Tensor, "window pos"]]:
        context = json.loads((folder / "recipe.json").read_text())["context"]
        stream = corpus.encode(AutoTokenizer.from_pretrained(folder), texts()[held_out].values())
        return corpus.windows(stream, context)

    return Truth(
        name=name,
        splits={"train": partial(split, False), "test": partial(split, True)},
        sampler=sample,
        writer=write,
    )
