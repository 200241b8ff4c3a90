"""The logit lens and the tuned lens: what the model would answer, were each layer its last.

    lens = tuned_lens(model, train_tokens, seed=0)               # an affine map for each layer, fitted to the last
    read = compare_lenses(model, held_out_tokens, lens)          # dims (lens, layer, measure), controls included

The logit lens puts the stream after a layer through the last norm and the unembedding (nostalgebraist 2020); the
tuned lens translates it first, x + x A + b, with A and b that bring the distribution near the model's own (Belrose et
al. 2023, arXiv:2303.08112).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from patchclamp.model import Model
from patchclamp.sites import Site, SiteError
from patchclamp.views import track


class Decoder:
    """From the residual stream to logits, by the model's own last norm and unembedding, soft-cap and scale.

    SiteError where that does not give the model's logits from its last layer.
    """

    def __init__(self, model: Model):
        anatomy = model.anatomy
        if anatomy.unembed is None or not anatomy.layers[""] or anatomy.head != "tokens":
            raise SiteError(f"{model.name} has no residual stream that ends in an unembedding of tokens")
        self.unembed = model.hf.get_submodule(anatomy.unembed)
        self.norm = None if anatomy.final_norm is None else model.hf.get_submodule(anatomy.final_norm)
        config: Any = model.hf.config
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        self.cap: float | None = getattr(text, "final_logit_softcapping", None)
        self.factor = 1.0
        end = Site("resid_post", model.n_layers - 1)
        trial = model.run(torch.arange(4)[None] % len(model.embeddings.weight), record=end)
        assert trial.logits is not None
        with torch.no_grad():
            made = self(trial[end])
        if not self.cap:
            self.factor = float((made * trial.logits).sum() / made.square().sum())
        if not torch.allclose(made * self.factor, trial.logits, rtol=1e-3, atol=1e-3 * float(trial.logits.abs().max())):
            raise SiteError(f"the last norm and the unembedding of {model.name} do not make its logits from {end}")
        self.factor = 1.0 if abs(self.factor - 1) < 1e-4 else self.factor

    def __call__(self, stream: Float[Tensor, "... d_model"]) -> Float[Tensor, "... vocab"]:
        logits = self.unembed(stream if self.norm is None else self.norm(stream)) * self.factor
        return torch.tanh(logits / self.cap) * self.cap if self.cap else logits


@dataclass(frozen=True, eq=False)
class TunedLens:
    """Translators x + x A + b, (A, b) by layer; `losses` [step] is the mean KL divergence over layers in training."""

    translators: Mapping[int, tuple[Float[Tensor, "d_model d_model"], Float[Tensor, "d_model"]]]
    losses: tuple[float, ...]

    def translate(self, stream: Float[Tensor, "... d_model"], layer: int) -> Float[Tensor, "... d_model"]:
        if layer not in self.translators:
            raise LookupError(f"no translator for layer {layer}; there are {', '.join(map(str, self.translators))}")
        matrix, bias = self.translators[layer]
        return stream + stream @ matrix + bias


def logit_lens(
    model: Model, inputs: Any, *, lens: TunedLens | None = None, attention_mask: Any = None
) -> Float[Tensor, "layer prompt pos vocab"]:
    """Logits read off the stream after each layer (with `lens`, translated first); the last are the model's own."""
    decode, last = Decoder(model), model.n_layers - 1
    run = model.run(inputs, record="resid_post.*", attention_mask=attention_mask)
    with torch.no_grad():
        found = []
        for layer in range(model.n_layers):
            stream = run[Site("resid_post", layer)]
            found.append(decode(stream if lens is None or layer == last else lens.translate(stream, layer)))
    return torch.stack(found)


def tuned_lens(
    model: Model,
    inputs: Any,
    *,
    steps: int = 250,
    batch: int = 256,
    learning_rate: float = 2e-3,
    attention_mask: Any = None,
    seed: int = 0,
) -> TunedLens:
    """Fit a translator for each layer but the last: least KL divergence from the model's distribution to the lens's.

    Adam from A = 0, b = 0, which is the logit lens, on `batch` random tokens a step.
    """
    decode, last = Decoder(model), model.n_layers - 1
    if last < 1:
        raise ValueError(f"{model.name} has one layer: there is none before the last to translate")
    streams, logits = _tokens(model, inputs, attention_mask)
    target = logits.float().log_softmax(-1)
    shape = (model.d_model, model.d_model)
    translators = {i: (torch.zeros(shape), torch.zeros(model.d_model)) for i in range(last)}
    moved = {i: tuple(x.to(streams[i]).requires_grad_() for x in pair) for i, pair in translators.items()}
    optimiser = torch.optim.Adam([x for pair in moved.values() for x in pair], lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for step in track(range(steps), "tuning lenses"):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * (1 - step / steps)
        rows = torch.randint(len(target), (min(batch, len(target)),), generator=generator).to(target.device)
        with torch.enable_grad():
            found = []
            for layer, (matrix, bias) in moved.items():
                x = streams[layer][rows]
                found.append(_divergence(target[rows], decode(x + x @ matrix + bias)).mean())
            loss = torch.stack(found).sum()
            parameters = [x for pair in moved.values() for x in pair]
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
        optimiser.step()
        losses.append(float(loss.detach()) / last)
    return TunedLens({i: (pair[0].detach(), pair[1].detach()) for i, pair in moved.items()}, tuple(losses))


def compare_lenses(
    model: Model, inputs: Any, lens: TunedLens, *, attention_mask: Any = None, seed: int = 0
) -> xr.DataArray:
    """How near each lens is to the model's distribution, on tokens that it was not fitted on.

    dims (lens, layer, measure). Lenses: "tuned"; "logit", the untrained translator; "shuffled", the translators of
    other layers. Measures: "kl" in nats, and "top1", the share of tokens with the same most likely token.
    """
    decode, layers = Decoder(model), list(lens.translators)
    streams, logits = _tokens(model, inputs, attention_mask)
    target, best = logits.float().log_softmax(-1), logits.argmax(-1)
    shift = 1 + int(torch.randint(max(len(layers) - 1, 1), (1,), generator=torch.Generator().manual_seed(seed)))
    other = {layer: layers[(index + shift) % len(layers)] for index, layer in enumerate(layers)}
    values = np.full((3, len(layers), 2), np.nan)
    with torch.no_grad():
        for column, layer in enumerate(layers):
            x = streams[layer]
            made = [decode(lens.translate(x, layer)), decode(x)]
            made += [decode(lens.translate(x, other[layer]))] if other[layer] != layer else []
            for row, one in enumerate(made):
                values[row, column] = (
                    float(_divergence(target, one).mean()),
                    float((one.argmax(-1) == best).float().mean()),
                )
    return xr.DataArray(
        values,
        dims=["lens", "layer", "measure"],
        coords={"lens": ["tuned", "logit", "shuffled"], "layer": layers, "measure": ["kl", "top1"]},
        name="lens",
        attrs={"model": model.name, "tokens": len(target)},
    )


def _tokens(model: Model, inputs: Any, attention_mask: Any) -> tuple[list[Tensor], Tensor]:
    """The stream after each layer and the logits, of the real tokens: [token, ...]."""
    run = model.run(inputs, record="resid_post.*", attention_mask=attention_mask)
    assert run.logits is not None
    mask = run.mask.to(run.logits.device)
    return [run[Site("resid_post", layer)][mask] for layer in range(model.n_layers)], run.logits[mask]


def _divergence(target: Float[Tensor, "token vocab"], logits: Float[Tensor, "token vocab"]) -> Float[Tensor, "token"]:
    """KL divergence in nats from the model's log-probabilities to the lens's."""
    return (target.exp() * (target - logits.float().log_softmax(-1))).sum(-1)
