"""`pc.load`: an organism, a folder, or a name on the Hugging Face hub, as a `Model`."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from patchclamp.model import Model


def load(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    device_map: Any = None,
) -> Model:
    """The model called `name_or_path`, in evaluation mode, in the dtype that it was saved in unless `dtype` says other.

    "organism:NAME" is a network that ships with the package, "organism:NAME@STEP" one of its training checkpoints; a
    folder is a checkpoint saved by transformers; anything else is a hub id, which transformers downloads or finds in
    its cache.
    """
    name = str(name_or_path)
    if device is not None and device_map is not None:
        raise ValueError("device= puts the model on one device, device_map= spreads it over several: give one of them")
    weights = None
    if name.startswith("organism:"):
        from patchclamp import organisms

        organism, step = _step(name.removeprefix("organism:"))
        built = organisms.build(organism)
        if built is not None:
            if step is not None:
                raise LookupError(f"{organism} is built from code: it has no training checkpoint {step}")
            _placed(built.hf, dtype, device)
            return built
        path = str(organisms.path(organism))
        weights = None if step is None else organisms.path(organism, step)
    else:
        path = name
        if not Path(path).is_dir() and (path.startswith((".", "/", "~")) or Path(path).suffix or "\\" in path):
            raise FileNotFoundError(_no_folder(path))
    kind = _class(path)
    with _without_bar(path != name):
        hf = kind.from_pretrained(path, dtype=dtype or "auto", device_map=device_map)
    if weights is not None:
        hf.load_state_dict(safetensors.torch.load_file(weights))
    if device is not None:
        hf = hf.to(device)
    return Model(hf.eval(), _tokenizer(path), name)


def _step(name: str) -> tuple[str, int | None]:
    """The name of an organism and the training step that is asked for after an "@"."""
    organism, at, step = name.partition("@")
    if at and not step.isdigit():
        raise ValueError(f"organism:{name}: after @ comes a number of training steps, as in organism:{organism}@1000")
    return organism, int(step) if at else None


def _placed(hf: Any, dtype: torch.dtype | str | None, device: str | torch.device | None) -> None:
    if dtype is not None and dtype != "auto":
        hf.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
    if device is not None:
        hf.to(device)


@contextmanager
def _without_bar(quiet: bool) -> Iterator[None]:
    """No progress bar for what loads at once; transformers' own setting is put back."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    if quiet:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if quiet and shown:
            logging.enable_progress_bar()


def _class(path: str) -> Any:
    """The class that the checkpoint was saved from, so that no head is lost; a causal model where it does not say."""
    import transformers

    written, _ = transformers.PreTrainedConfig.get_config_dict(path)
    for architecture in written.get("architectures") or []:
        if hasattr(transformers, architecture):
            return getattr(transformers, architecture)
        from patchclamp.organisms import networks

        if hasattr(networks, architecture):
            return getattr(networks, architecture)
    return transformers.AutoModelForCausalLM


def _tokenizer(path: str) -> Any:
    import transformers

    files = ("*token*", "*vocab*", "*.model", "merges*")
    if Path(path).is_dir() and not any(any(Path(path).glob(pattern)) for pattern in files):
        return None  # transformers would guess one from the configuration, and warn
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, ImportError):
        return None  # a model without one takes token ids; text then raises and says so
    # Where a checkpoint has none, transformers may make up one that knows special tokens and no word.
    words = tokenizer.get_vocab().keys() - {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens, "▁"}
    return tokenizer if words else None


def _no_folder(path: str) -> str:
    parent = Path(path).expanduser().parent
    names = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
    near = difflib.get_close_matches(Path(path).name, names, 1)
    return f"there is no folder {path!r}" + (f"; did you mean {parent / near[0]}?" if near else "")
