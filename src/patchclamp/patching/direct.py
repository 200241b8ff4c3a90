"""Direct effects: what each head, MLP and embedding writes straight into the answer's logit difference.

The last norm's scale is held at what it was, so that the logits are linear in the residual stream, and the stream is
the sum of what its components wrote (Elhage et al. 2021, transformer-circuits.pub/2021/framework). The parts and the
bias sum to the logit difference; `attrs["gap"]` is what they miss it by.
"""

from typing import Any

import torch
import xarray as xr
from torch import Tensor, nn

from patchclamp import metrics
from patchclamp.anatomy.views import NormScale
from patchclamp.model import Model
from patchclamp.sites import Site, SiteError
from patchclamp.tasks import Task


@torch.no_grad()
def direct_effect(model: Model, task: Task, *, neurons: bool = False, corrupted: bool = False) -> xr.DataArray:
    """Logit difference (right minus wrong answers) written directly by each component: dims (component, prompt).

    Components are named by their sites: `embed`, `head_out.3.1`, `mlp_out.2`, with `b_O.3` and `bias` for constants;
    `neurons=True` splits each MLP into `mlp_post.2.17` and `b_out.2`. Units are logits, before a soft-cap.
    Raises SiteError where the stream does not end in a norm and an unembedding.
    """
    reader = _Reader(model, task, task.corrupt if corrupted else task.clean)
    parts: dict[str, Tensor] = reader.start()
    for layer in range(model.n_layers):
        parts |= reader.attention(layer)
        parts |= reader.mlp(layer, neurons)
    parts["bias"] = reader.bias
    values = torch.stack([value.detach().double().cpu() for value in parts.values()])
    total = metrics.logit_difference(reader.logits, task).double().cpu()
    gap = float((values.sum(0) - total).abs().max())
    return xr.DataArray(
        values.numpy(),
        dims=["component", "prompt"],
        coords={"component": list(parts)},
        name="direct_effect",
        attrs={"model": model.name, "task": task.name, "logit_difference": float(total.mean()), "gap": gap},
    )


class _Reader:
    """One recorded run, and the linear map from its residual stream at the answers to the logit difference."""

    def __init__(self, model: Model, task: Task, ids: Tensor):
        self.model = model
        anatomy, weights = model.anatomy, model.weights
        if anatomy.final_norm is None or anatomy.unembed is None or Site("final_norm_scale") not in anatomy.taps:
            raise SiteError(
                f"{model.name} has no last norm and unembedding, through which a direct effect could be read"
            )
        self.where = task.positions
        wanted = [s for s in anatomy.taps if not s.stack and s.kind in _KINDS]
        self.run = model.run(ids, record=wanted, attention_mask=task.mask)
        assert self.run.logits is not None
        view = anatomy.taps[Site("final_norm_scale")].views[0]
        assert isinstance(view, NormScale)
        norm = model.hf.get_submodule(anatomy.final_norm)
        self.gain, norm_bias = norm_gain(norm, view, model.d_model, model.device, model.dtype)
        self.centred = view.centred
        self.scale = self.at(self.run[Site("final_norm_scale")]).float()
        right, wrong = (_average(weights.W_U.float(), ids_) for ids_ in (task.answers, task.wrong))
        direction = right - wrong
        raw = self.at(self.run[Site("final_norm")]).float()
        self.factor = self._head_factor(raw, weights)
        self.direction = direction * self.factor
        offsets = _average(weights.b_U.float()[None], task.answers) - _average(weights.b_U.float()[None], task.wrong)
        self.bias = (norm_bias * self.direction).sum(-1) + self.factor * offsets.squeeze(-1)
        self.logits = self._uncapped(raw, weights)

    def _head_factor(self, final: Tensor, weights: Any) -> float:
        """The constant between the unembedding's output and the logits, where the architecture scales them."""
        if self._cap():
            return 1.0
        made = final @ weights.W_U.float() + weights.b_U.float()
        logits = self.at(self.run.logits).float()
        factor = float((made * logits).sum() / made.square().sum())
        return 1.0 if abs(factor - 1) < 1e-4 else factor

    def _cap(self) -> float | None:
        config: Any = self.model.hf.config
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        return getattr(text, "final_logit_softcapping", None)

    def _uncapped(self, final: Tensor, weights: Any) -> Tensor:
        if not self._cap():
            return self.at(self.run.logits).float()
        return final @ weights.W_U.float() + weights.b_U.float()

    def at(self, x: Any) -> Tensor:
        """[prompt, pos, ...] at the answer positions."""
        return x[torch.arange(len(x), device=x.device), self.where.to(x.device)]

    def read(self, u: Tensor) -> Tensor:
        """Contribution [prompt, ...] of what was written, [prompt, ..., d_model]."""
        u = u.float()
        u = u - u.mean(-1, keepdim=True) if self.centred else u
        shape = (len(u), *([1] * (u.ndim - 2)))
        weight = (self.gain * self.direction).reshape(*shape, -1)
        return (u * weight).sum(-1) / self.scale.reshape(shape)

    def start(self) -> dict[str, Tensor]:
        """The embeddings, split where the stream begins with their plain sum."""
        anatomy = self.model.anatomy
        whole = self.at(self.run[Site("resid_pre", 0)])
        parts: dict[str, Tensor] = {}
        rest = whole.float()
        if anatomy.embed_norm is None:
            for kind in ("embed", "pos_embed"):
                if Site(kind) in self.run:
                    own = self.run[Site(kind)]
                    own = self.at(own.expand(len(whole), *own.shape[1:]))
                    parts[kind] = self.read(own)
                    rest = rest - own.float()
        if not parts or float(rest.abs().max()) > 1e-4 * float(whole.abs().max()):
            parts["resid_pre.0" if not parts else "embed_rest"] = self.read(rest)
        return parts

    def attention(self, layer: int) -> dict[str, Tensor]:
        """Heads and the bias of the out-projection; the whole sublayer where it cannot be split."""
        site, whole = Site("head_out", layer), Site("attn_out", layer)
        if whole not in self.run:
            return {}
        out = self.at(self.run[whole]).float()
        if site not in self.run:
            return {str(whole): self.read(out)}
        heads = self.at(self.run[site]).float()
        bias = self.model.weights.b_O[layer].float()
        summed = heads.sum(1) + bias
        ratio = self._pass(summed, out, layer)
        if ratio is None:
            return {str(whole): self.read(out)}
        written = self.read(heads * ratio[:, None])
        parts = {f"head_out.{layer}.{head}": written[:, head] for head in range(written.shape[1])}
        if bool(bias.any()):
            parts[f"b_O.{layer}"] = self.read(bias * ratio)
        return parts

    def _pass(self, before: Tensor, after: Tensor, layer: int) -> Tensor | None:
        """What multiplies each feature between out-projection and stream: 1, a constant, a post-norm's gain / scale."""
        factor = self.model.anatomy.layers[""][layer].factors[0]
        if _near(before * factor, after):
            return torch.full_like(before, factor)
        path = self.model.anatomy.taps[Site("attn_out", layer)].path
        norm = self.model.hf.get_submodule(path)
        eps = next(
            (getattr(norm, n) for n in ("eps", "variance_epsilon") if isinstance(getattr(norm, n, None), float)), None
        )
        if eps is None:
            return None
        gain, _ = norm_gain(norm, NormScale(False, eps), before.shape[-1], before.device, self.model.dtype)
        ratio = gain * factor / (before.square().mean(-1, keepdim=True) + eps).sqrt()
        return ratio if _near(before * ratio, after) else None

    def mlp(self, layer: int, neurons: bool) -> dict[str, Tensor]:
        site = Site("mlp_out", layer)
        if site not in self.run:
            return {}
        out = self.at(self.run[site]).float()
        post = Site("mlp_post", layer)
        if not neurons or post not in self.run:
            return {str(site): self.read(out)}
        weights, factor = self.model.weights, self.model.anatomy.layers[""][layer].factors[1]
        acts = self.at(self.run[post]).float()
        matrix, bias = weights.W_out[layer].float(), weights.b_out[layer].float()
        if not _near((acts @ matrix + bias) * factor, out):
            return {str(site): self.read(out)}
        columns = matrix - matrix.mean(-1, keepdim=True) if self.centred else matrix
        reads = (self.gain * self.direction) @ columns.T / self.scale[:, None]
        written = acts * reads * factor
        parts = {f"mlp_post.{layer}.{n}": written[:, n] for n in range(written.shape[1])}
        return parts | {f"b_out.{layer}": self.read((bias * factor).expand_as(out))}


_KINDS = frozenset(
    {"embed", "pos_embed", "resid_pre", "head_out", "attn_out", "mlp_out", "mlp_post", "final_norm_scale", "final_norm"}
)


def _near(a: Tensor, b: Tensor) -> bool:
    return float((a - b).abs().max()) <= 1e-3 * max(float(b.abs().max()), 1e-6)


def _average(columns: Tensor, ids: Tensor) -> Tensor:
    """Mean of the columns [d, vocab] that each row of `ids` names (-1 names none): [prompt, d]."""
    ids = ids.to(columns.device)
    real = (ids >= 0).float()
    picked = columns.T[ids.clamp_min(0)] * real[..., None]
    return picked.sum(1) / real.sum(1, keepdim=True)


def norm_gain(
    module: nn.Module, form: NormScale, width: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(gain, bias) [d_model] of a norm, read off what it does to one known vector: weights may mean w or 1 + w."""
    known = torch.linspace(1, 2, width, device=device, dtype=torch.float32)
    known = known * torch.where(torch.arange(width, device=device) % 2 == 0, 1.0, -1.0)
    bias = getattr(module, "bias", None)
    with torch.no_grad():
        out = module(known.to(dtype)[None])[0].float()
    bias = torch.zeros_like(out) if bias is None else bias.detach().float()
    centred = known - known.mean() if form.centred else known
    return (out - bias) / (centred / (centred.square().mean() + form.eps).sqrt()), bias
