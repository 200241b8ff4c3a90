"""Inputs that are made up for a model, to see what it does with them."""

import torch
from torch import Tensor, nn

_LENGTH, _SOURCE_LENGTH, _BATCH = 5, 7, 2


def trial_inputs(model: nn.Module, seed: int = 1) -> dict:
    """A small batch that the model accepts: two rows of five tokens, two images, or its own `dummy_inputs`."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "main_input_name"):
        raise TypeError("not a transformers model")
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    name = model.main_input_name
    if name == "pixel_values":
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", 32)
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        dtype = next(model.parameters()).dtype
        return {name: torch.randn(_BATCH, vision.num_channels, height, width, generator=generator).to(device, dtype)}
    if name != "input_ids" and name in getattr(model, "dummy_inputs", {}):
        return {key: value.to(device) for key, value in model.dummy_inputs.items()}  # type: ignore[union-attr]
    if name != "input_ids":
        raise TypeError(f"inputs called {name!r} cannot be made up")
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    vocab = getattr(text, "vocab_size", None) or model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    special = {getattr(text, f"{n}_token_id", None) for n in ("pad", "bos", "eos", "decoder_start", "image")}
    ordinary = torch.tensor([i for i in range(min(vocab, 4096)) if i not in special])

    def draw(length: int) -> Tensor:
        return ordinary[torch.randint(len(ordinary), (_BATCH, length), generator=generator)].to(device)

    if getattr(config, "is_encoder_decoder", False):
        return {"input_ids": draw(_SOURCE_LENGTH), "decoder_input_ids": draw(_LENGTH)}
    return {"input_ids": draw(_LENGTH)}
