"""Train a small code model on the source of Python's standard library, with plain torch, transformers and tokenizers.

    python examples/code_model/train.py --out code-model --threads 2

What comes out is an ordinary `save_pretrained` folder: a Llama of four layers with a byte-level BPE of its own.
Nothing in this file knows of patchclamp: the folder is what a user would bring. The text is the `.py` files of the
Python that runs the script, so figures differ a little from version to version. Interrupt it at will: the same command
goes on where it stopped.
"""

import argparse
import hashlib
import keyword
import os
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# Folders that are not library code as people write it: tests, tables, generated help, vendored or installed packages.
LEFT_OUT = {
    *("test", "tests", "idlelib", "lib2to3", "encodings", "pydoc_data", "ensurepip"),
    *("site-packages", "dist-packages", "__phello__"),
}
END = "<|endoftext|>"
# Names stand alone: blanks go with the keyword or the operator beside them, so that `alpha` is the same token in
# `self.alpha` as in `= alpha`, and can be copied. Brackets stand alone too, so that `foo[bar` and `foo(bar` have the
# same number of tokens and every closing bracket is one. A line break keeps the indentation after it.
PIECES = Regex(rf"(?:{'|'.join(keyword.kwlist)})\b ?|[^\W\d]\w*|\d|[()\[\]{{}}]|\n[ \t]*| ?[^\s\w()\[\]{{}}]+ ?| +|\s+")


@dataclass(frozen=True)
class Settings:
    """Everything the weights depend on, besides the text and the number of threads."""

    vocabulary: int = 2048
    layers: int = 4
    width: int = 128
    heads: int = 4
    hidden: int = 384  # width of the MLP
    context: int = 256  # tokens
    batch: int = 16  # windows of `context` tokens in a step
    steps: int = 1000
    warmup: int = 30
    learning_rate: float = 4e-3
    files: int | None = None  # take only this many files (None: all)
    seed: int = 0


# --- the text ---------------------------------------------------------------------------------------------------------


def library(limit: int | None = None) -> dict[str, str]:
    """The standard library's source by path relative to its folder, in the order of a hash of the path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = {}
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if name not in LEFT_OUT]  # not walked at all: installed packages can be many
        for path in (
            Path(folder, name) for name in names if name.endswith(".py") and not name.startswith("_sysconfigdata")
        ):
            found[path.relative_to(root).as_posix()] = path
    chosen = sorted(found, key=path_hash)[:limit]
    return {name: found[name].read_text(encoding="utf-8", errors="replace") for name in chosen}


def path_hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def split(files: dict[str, str], one_in: int = 16) -> tuple[list[str], list[str]]:
    """Texts to train on and texts held out; the hash of its path alone decides where a file goes."""
    trained = [text for name, text in files.items() if path_hash(name) % one_in]
    held_out = [text for name, text in files.items() if not path_hash(name) % one_in]
    if not trained or not held_out:
        raise ValueError(f"{len(files)} files are too few to hold some out: one in {one_in} is; take more")
    return trained, held_out


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(PIECES, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=END, clean_up_tokenization_spaces=False
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """All texts as one stream of token ids, each ended by the end token."""
    ids = []
    for text in texts:
        ids += [*tokenizer(text, verbose=False)["input_ids"], tokenizer.eos_token_id]
    return torch.tensor(ids)


def batches(stream: torch.Tensor, settings: Settings, first_step: int) -> Iterator[torch.Tensor]:
    """Windows [batch, context + 1] from `first_step` on; step and seed alone decide which, also in a resumed run.

    An epoch cuts the stream into windows, from an offset of its own, and shuffles them.
    """
    size = settings.context
    per_epoch = (len(stream) - size - 1) // size // settings.batch
    if per_epoch < 1:
        raise ValueError(
            f"{len(stream)} tokens do not fill a batch of {settings.batch} windows of {size}: take more files"
        )
    epoch, done = divmod(first_step, per_epoch)
    while True:
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
        offset = int(torch.randint(size, (), generator=generator))
        windows = stream[offset:].unfold(0, size + 1, size)
        order = torch.randperm(len(windows), generator=generator)
        for batch in order.split(settings.batch)[done:per_epoch]:
            yield windows[batch]
        epoch, done = epoch + 1, 0


# --- what it should beat ----------------------------------------------------------------------------------------------


def trigram_loss(stream: torch.Tensor, held_out: torch.Tensor, vocabulary: int) -> float:
    """Mean loss (nats a token) on `held_out[2:]` of an interpolated Kneser-Ney trigram counted on `stream`.

    p(w | h) = (max(c(hw) − d, 0) + d · n(h) · p(w | h′)) / c(h), where n(h) is the number of different words after h,
    h′ is h without its oldest word, d = n₁ / (n₁ + 2 n₂), and lower orders count contexts instead of occurrences.
    Below the single words, one is added to each count.
    """

    def count(grams: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.unique(grams, return_counts=True)

    def look_up(table: tuple[torch.Tensor, torch.Tensor], grams: torch.Tensor) -> torch.Tensor:
        at = torch.searchsorted(table[0], grams).clamp(max=len(table[0]) - 1)
        return torch.where(table[0][at] == grams, table[1][at], 0)

    def codes(tokens: torch.Tensor) -> torch.Tensor:
        return (tokens[:-2] * vocabulary + tokens[1:-1]) * vocabulary + tokens[2:]

    trigrams = count(codes(stream))
    bigrams = count(trigrams[0] % vocabulary**2)  # in how many contexts each was seen
    unigrams = count(bigrams[0] % vocabulary)
    target = codes(held_out)
    p = (look_up(unigrams, target % vocabulary) + 1) / (unigrams[1].sum() + vocabulary)
    for table, gram in ((bigrams, target % vocabulary**2), (trigrams, target)):
        once, twice = (table[1] == 1).sum(), (table[1] == 2).sum()
        discount = once / (once + 2 * twice)
        contexts, kinds = count(table[0] // vocabulary)
        row = torch.searchsorted(contexts, table[0] // vocabulary)
        total = torch.zeros(len(contexts), dtype=torch.long).index_add_(0, row, table[1])
        history = gram // vocabulary
        all_after = look_up((contexts, total), history)
        seen = all_after.clamp(min=1)
        new = (
            (look_up(table, gram) - discount).clamp(min=0) + discount * look_up((contexts, kinds), history) * p
        ) / seen
        p = torch.where(all_after > 0, new, p)
    return -p.double().log().mean().item()


@torch.no_grad()
def model_loss(model: LlamaForCausalLM, held_out: torch.Tensor, context: int, windows: int | None = None) -> float:
    """Mean loss (nats a token) on `held_out[2:]`, the trigram's tokens, cut into windows; or on some, evenly spaced."""
    inputs, targets = held_out[1:-1].split(context), held_out[2:].split(context)
    chosen = range(len(inputs)) if windows is None else range(0, len(inputs), max(1, len(inputs) // windows))
    model.eval()
    losses = torch.cat(
        [F.cross_entropy(model(inputs[i][None]).logits[0], targets[i], reduction="none") for i in chosen]
    )
    model.train()
    return losses.mean().item()


# --- the model and its training ---------------------------------------------------------------------------------------


def new_model(settings: Settings) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=settings.vocabulary,
        hidden_size=settings.width,
        intermediate_size=settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=settings.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,  # END, the tokenizer's first
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):  # transformers draws initial weights from the global generator
        torch.manual_seed(settings.seed)
        return LlamaForCausalLM(config)


def optimisers(model: LlamaForCausalLM, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, Adam for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and "layers" in name)]
    return [
        torch.optim.Muon(matrices, lr=settings.learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=settings.learning_rate, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def rate(step: int, settings: Settings) -> float:
    """Share of the learning rate at a step: linear warm-up, then a straight line to zero."""
    return min((step + 1) / settings.warmup, 1.0) * (1 - step / settings.steps)


def save(path: Path, state: dict) -> None:
    """Save whole or not at all: an interruption leaves the checkpoint before."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def restore(
    path: Path, identity: dict, model: LlamaForCausalLM, optimisers: list[torch.optim.Optimizer]
) -> tuple[int, float]:
    """Load a checkpoint, if there is one, into model and optimisers; returns the steps done and the seconds spent."""
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    if state["identity"] != identity:
        changed = ", ".join(sorted(key for key in identity if state["identity"].get(key) != identity[key]))
        raise ValueError(f"{path} is of another run ({changed} differ): remove it, or take another --out")
    model.load_state_dict(state["model"])
    for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    print(f"going on from step {state['step']}", flush=True)
    return state["step"], state["seconds"]


def train(
    settings: Settings, out: Path, *, stop_after: int | None = None, save_every: int = 100
) -> dict[str, float] | None:
    """Train, or go on training, in folder `out`; the held-out losses, or None where step `stop_after` came first."""
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    trained_texts, held_out_texts = split(library(settings.files))
    # The tokenizer is trained anew on resuming too: it takes seconds, and the same text gives the same merges.
    tokenizer = train_tokenizer(trained_texts, settings.vocabulary)
    stream, held_out = encode(tokenizer, trained_texts), encode(tokenizer, held_out_texts)
    trigram = trigram_loss(stream, held_out, settings.vocabulary)
    model = new_model(settings)
    print(f"to train on: {len(trained_texts)} files, {len(stream):,} tokens")
    print(f"held out: {len(held_out_texts)} files, {len(held_out):,} tokens, trigram {trigram:.3f} nats a token")
    print(f"the model: {model.num_parameters():,} weights", flush=True)

    text_hash = hashlib.sha256(stream.numpy().tobytes() + held_out.numpy().tobytes()).hexdigest()
    identity = {**asdict(settings), "text": text_hash}
    checkpoint = out / "checkpoint.pt"
    steppers = optimisers(model, settings)
    first, spent = restore(checkpoint, identity, model, steppers)

    for step, batch in zip(range(first, settings.steps), batches(stream, settings, first), strict=False):
        for optimiser in steppers:
            for group in optimiser.param_groups:
                group["lr"] = settings.learning_rate * rate(step, settings)
        logits = model(batch[:, :-1]).logits  # [batch, context, vocabulary]
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in steppers:
            optimiser.step()
            optimiser.zero_grad()

        done, seconds = step + 1, spent + time.monotonic() - began
        progress = f"step {done:5}/{settings.steps}"
        if done % 25 == 0:
            left = seconds / done * (settings.steps - done)
            print(f"{progress}  loss {loss.item():.3f}  {seconds:4.0f} s, about {left:.0f} s left", flush=True)
        if done % save_every == 0 or done in (stop_after, settings.steps):
            state = {"identity": identity, "step": done, "seconds": seconds, "model": model.state_dict()}
            save(checkpoint, {**state, "optimisers": [optimiser.state_dict() for optimiser in steppers]})
            some = model_loss(model, held_out, settings.context, windows=64)
            print(f"{progress}  held out, 64 windows: {some:.3f}", flush=True)
        if done == stop_after and done < settings.steps:
            return None

    losses = {"model": model_loss(model, held_out, settings.context), "trigram": trigram}
    model.eval()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    minutes = (spent + time.monotonic() - began) / 60
    verdict = "better" if losses["model"] < trigram else "NOT better"
    print(f"held out, all: model {losses['model']:.3f}, trigram {trigram:.3f} nats a token: {verdict}")
    print(f"{minutes:.1f} minutes; model and tokenizer are in {out}")
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("code-model"), help="folder for the checkpoint and the model")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    for name, default in asdict(Settings()).items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(default) if default is not None else int, default=default
        )
    options = vars(parser.parse_args())
    out, threads = options.pop("out"), options.pop("threads")
    torch.set_num_threads(threads)
    train(Settings(**options), out)


if __name__ == "__main__":
    main()
