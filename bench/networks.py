"""The networks that are timed: random weights from a seed, saved as Hugging Face folders that every library loads."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)


def save_gpt2(folder: Path, *, seed: int) -> Path:
    """GPT-2 of 6 layers, width 384, 6 heads and GPT-2's vocabulary of 50,257."""
    config = GPT2Config(n_layer=6, n_embd=384, n_head=6, vocab_size=50257, bos_token_id=0, eos_token_id=0)
    return _save(GPT2LMHeadModel(config), folder, seed=seed)


def save_llama(folder: Path, *, seed: int) -> Path:
    """Llama of 4 layers, width 128, 4 heads sharing 2 key-value heads, vocabulary 2,048."""
    config = LlamaConfig(
        num_hidden_layers=4,
        hidden_size=128,
        intermediate_size=344,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=2048,
        bos_token_id=0,
        eos_token_id=0,
    )
    return _save(LlamaForCausalLM(config), folder, seed=seed)


def _save(model: PreTrainedModel, folder: Path, *, seed: int) -> Path:
    _draw(model, seed=seed)
    model.save_pretrained(folder)
    _tokenizer(model.config.vocab_size).save_pretrained(folder)
    return folder


@torch.no_grad()
def _draw(model: PreTrainedModel, *, seed: int) -> None:
    """Weights large enough that attention is far from uniform, and norms and biases that are not the identity.

    With the usual initialisation (0.02, biases 0, norms 1) no patch moves the logits by more than the tolerance,
    and two tables would agree whatever the two libraries did.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.empty_like(parameter).normal_(generator=generator)
        if parameter.ndim == 2:
            parameter.copy_(0.08 * noise)
        elif name.endswith("weight"):
            parameter.copy_(1 + 0.1 * noise)
        else:
            parameter.copy_(0.1 * noise)


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Word number n of the vocabulary is written "tn"; number 0 is kept for the special tokens."""
    tokenizer = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocabulary)}, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="t0", eos_token="t0", pad_token="t0")
