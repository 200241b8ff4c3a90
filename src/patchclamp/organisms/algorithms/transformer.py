"""The transformers that are trained on algorithms: `transformer(vocabulary=114, layers=1, heads=4, width=64, ...)`.

All are of the class ArceeForCausalLM, which is Llama with a plain MLP, down(act(up(x))): here with ReLU. Three things
that the class has, and an algorithm may not want, are cancelled by numbers in its own weights and configuration, so
that any tool still loads it:

    no norm          an RMS norm of epsilon 1e8 and gain 1e4 is x, to one part in 1e8 of x's mean square
    no positions     rotary angles divided by 1e9
    attention only   one neuron whose weights are zero and stay so
"""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import ArceeConfig, ArceeForCausalLM

_NO_NORM = 1e8  # epsilon; the gain is its root
_NO_POSITION = 1e9


def transformer(
    *,
    vocabulary: int,
    layers: int,
    heads: int,
    width: int,
    hidden: int,
    context: int,
    norm: bool = True,
    rotary: bool = True,
    seed: int,
) -> ArceeForCausalLM:
    """An untrained decoder; `hidden=0` leaves attention alone. Matrices are normal with variance 1 / (what they read).

    The global generator is left as it was.
    """
    config = ArceeConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=max(hidden, 1),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act="relu",
        mlp_bias=hidden > 0,
        max_position_embeddings=context,
        rms_norm_eps=1e-5 if norm else _NO_NORM,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}
        if rotary
        else {"rope_type": "linear", "factor": _NO_POSITION, "rope_theta": 10_000.0},
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ArceeForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0 if norm else _NO_NORM**0.5).requires_grad_(norm)
            elif "mlp" in name and hidden == 0:
                parameter.zero_().requires_grad_(False)
            elif parameter.ndim == 2:
                reads = width if name.endswith("embed_tokens.weight") else parameter.shape[1]
                parameter.normal_(0, reads**-0.5, generator=generator)
    return model


def last_logits(model: ArceeForCausalLM, tokens: Int[Tensor, "prompt pos"]) -> Float[Tensor, "prompt vocabulary"]:
    """The logits at the last token, the same in all prompts, of one layer without norms and positions.

    They are those of `model(tokens)`, from what the last token alone needs: keys and values belong to tokens, not to
    places, and there is one query.
    """
    layer: Any = model.model.layers[0]
    heads, size = model.config.num_attention_heads, model.config.hidden_size // model.config.num_attention_heads
    embedding = model.model.embed_tokens.weight
    last = embedding[tokens[0, -1]]
    query = layer.self_attn.q_proj(last).unflatten(-1, (heads, size))
    keys = layer.self_attn.k_proj(embedding).unflatten(-1, (heads, size))
    values = layer.self_attn.v_proj(embedding).unflatten(-1, (heads, size))
    pattern = ((keys * query).sum(-1) / size**0.5)[tokens].softmax(1)
    z = (pattern[..., None] * values[tokens]).sum(1).flatten(1)
    middle = last + layer.self_attn.o_proj(z)
    return model.lm_head(middle + layer.mlp(middle))


def adamw(model: nn.Module, *, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW on what is trained, with betas 0.9 and 0.98; only matrices decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))


def warm_cosine(step: int, steps: int, peak: float, warmup: int) -> float:
    """The learning rate of a step: linear to `peak` in `warmup` steps, then a cosine to a hundredth of it."""
    if step < warmup:
        return peak * (step + 1) / warmup
    along = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * along)))


def evenly(steps: int, count: int) -> tuple[int, ...]:
    """0 and `count` more numbers of steps, equally far apart, the last of them `steps`; none where `count` is 0.

    >>> evenly(1000, 4)
    (0, 250, 500, 750, 1000)
    """
    return tuple(round(steps * index / count) for index in range(count + 1)) if count else ()


def weight_norm(model: nn.Module) -> float:
    """The Euclidean norm of all weights that are trained."""
    return math.sqrt(sum(float(x.detach().square().sum()) for x in model.parameters() if x.requires_grad))
