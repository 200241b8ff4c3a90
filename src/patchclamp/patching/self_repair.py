"""Self-repair: what the rest of a model does when a head or an MLP is taken away, split exactly, token by token.

    found = self_repair(model, texts, "z.2.1")                  # resample ablation, the true next tokens' logits
    found.mean(top=0.02)          # change = own + heads + mlps + norm, in logits; repair is all but own
    found.erasers(3)[:5]          # neurons of layer 3 that write against the token, and now do so less

The logit of a token, less the mean logit, is linear in the residual stream while the last norm's scale is held. So its
change is what the ablated component wrote less, what every other component wrote otherwise, and what the change of the
scale did to all of it (Rushing and Nanda 2024, arXiv:2402.15390). Signs are kept: parts may repair or make worse.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from patchclamp.anatomy.views import NormScale
from patchclamp.interventions import ablate
from patchclamp.model import Model, Run
from patchclamp.patching.direct import norm_gain
from patchclamp.sites import Site, SiteError
from patchclamp.views import track

GROUPS = ("own", "heads", "mlps", "norm")


@dataclass(frozen=True, eq=False)
class SelfRepair:
    """What ablating `site` does to each token's logit.

    `effects` [component, token] are changes of direct effect at the clean scale, with a last row "norm": the sum over
    components is `change`. `clean` [token] is the component's own direct effect before. `neurons` holds, by layer, what
    each neuron wrote straight into the token's logit before and after, each [token, neuron].
    """

    site: str
    effects: xr.DataArray
    change: Float[np.ndarray, "token"]
    clean: Float[np.ndarray, "token"]
    neurons: dict[int, tuple[Tensor, Tensor]]

    def group(self, name: str) -> Float[np.ndarray, "token"]:
        """One of "own", "heads" (other attention), "mlps" (other MLPs, and the embedding) and "norm", summed."""
        if name not in GROUPS:
            raise LookupError(f"no group {name!r}; there are {', '.join(GROUPS)}")
        return self.effects.values[self.effects["group"].values == name].sum(0)

    @property
    def own(self) -> Float[np.ndarray, "token"]:
        return self.group("own")

    @property
    def heads(self) -> Float[np.ndarray, "token"]:
        return self.group("heads")

    @property
    def mlps(self) -> Float[np.ndarray, "token"]:
        return self.group("mlps")

    @property
    def norm(self) -> Float[np.ndarray, "token"]:
        return self.group("norm")

    @property
    def repair(self) -> Float[np.ndarray, "token"]:
        """By how much the logit fell less than the component's own direct effect did."""
        return self.change - self.own

    @property
    def frozen(self) -> Float[np.ndarray, "token"]:
        """The change of the logit with the last norm's scale held at what it was."""
        return self.change - self.norm

    @property
    def gap(self) -> float:
        """What the parts miss the change by, at most."""
        return float(np.abs(self.effects.values.sum(0) - self.change).max())

    def top(self, share: float) -> np.ndarray:
        """Which tokens the component did most for before: this share of them, by its direct effect."""
        if not 0 < share <= 1:
            raise ValueError(f"top={share}: a share of the tokens, above 0 and at most 1")
        chosen = np.zeros(len(self.clean), dtype=bool)
        chosen[np.argsort(-self.clean, kind="stable")[: max(1, round(share * len(self.clean)))]] = True
        return chosen

    def mean(self, top: float = 1.0) -> dict[str, float]:
        """Means over the `top` share of tokens: clean, change, own, repair and its parts."""
        where = self.top(top)
        names = ("clean", "change", "own", "repair", "heads", "mlps", "norm")
        return {name: float(getattr(self, name)[where].mean()) for name in names}

    def repairers(self, top: float = 1.0) -> xr.DataArray:
        """Mean change of every other component over the `top` share of tokens, greatest repair first."""
        others = self.effects[self.effects["group"].values != "own"]
        means = others[:, self.top(top)].mean("token")
        return means[np.argsort(-means.values, kind="stable")]

    def erasers(self, layer: int, top: float = 1.0) -> xr.DataArray:
        """Anti-erasure of each neuron, greatest first: by how much less it wrote against the token than before.

        Of a neuron that wrote c < 0 before and c' now: min(c', 0) - c, the mean over the `top` share of tokens.
        """
        if layer not in self.neurons:
            raise LookupError(
                f"no neurons of layer {layer} were kept: ask with neurons=True (kept: {list(self.neurons)})"
            )
        before, after = (x[torch.from_numpy(self.top(top)).to(x.device)] for x in self.neurons[layer])
        less = torch.where(before < 0, after.clamp_max(0) - before, 0).mean(0).cpu().numpy()
        order = np.argsort(-less, kind="stable")
        names = [f"mlp_post.{layer}.{index}" for index in order]
        return xr.DataArray(less[order], dims=["neuron"], coords={"neuron": names}, name="anti_erasure")


def self_repair(
    model: Model,
    inputs: Any,
    site: "str | Site",
    *,
    to: "str | Tensor" = "resample",
    attention_mask: Any = None,
    targets: Int[Tensor, "prompt pos"] | None = None,
    neurons: bool = False,
    seed: int = 0,
) -> SelfRepair:
    """Ablate a head (`z.2.1`) or an MLP (`mlp_out.2`) at every token, and split the change of the targets' logits.

    `targets` are token ids, -1 where none is asked for; by default the true next tokens. `to` is that of `pc.ablate`:
    another prompt's activation at the same position, by default. SiteError where no last norm and unembedding follow.
    """
    return _Bench(model, inputs, attention_mask, targets, neurons).without(_one(model, site), to, seed)


def self_repairs(
    model: Model,
    inputs: Any,
    sites: "str | Site | Sequence[str | Site]" = "z.*.*",
    *,
    to: "str | Tensor" = "resample",
    top: float = 0.02,
    attention_mask: Any = None,
    targets: Int[Tensor, "prompt pos"] | None = None,
    seed: int = 0,
) -> xr.DataArray:
    """Mean over the `top` share of each site's tokens, and over all: dims (site, tokens, term), in logits."""
    wanted = model.sites(sites)
    bench = _Bench(model, inputs, attention_mask, targets, False)
    rows, gaps = [], []
    for site in track(wanted, "ablating components"):
        found = bench.without(site, to, seed)
        rows.append([list(found.mean(share).values()) for share in (top, 1.0)])
        gaps.append(found.gap)
    terms = ["clean", "change", "own", "repair", "heads", "mlps", "norm"]
    return xr.DataArray(
        np.array(rows),
        dims=["site", "tokens", "term"],
        coords={"site": [str(site) for site in wanted], "tokens": ["top", "all"], "term": terms},
        name="self_repair",
        attrs={"model": model.name, "top": top, "to": str(to), "gap": max(gaps), "count": len(bench.rows)},
    )


class _Bench:
    """The clean run, and the linear map from its residual stream to the targets' logits, scale held."""

    def __init__(self, model: Model, inputs: Any, attention_mask: Any, targets: Tensor | None, neurons: bool):
        self.model, anatomy = model, model.anatomy
        if anatomy.unembed is None or not anatomy.layers[""] or anatomy.head != "tokens":
            raise SiteError(f"{model.name} has no residual stream that ends in an unembedding of tokens")
        tokens = model.tokens(inputs, attention_mask)
        self.ids, self.mask = tokens.ids, tokens.mask
        wanted = _next(self.ids, self.mask) if targets is None else targets.cpu()
        if wanted.shape != self.ids.shape:
            raise ValueError(f"targets of shape {list(wanted.shape)} for prompts of {list(self.ids.shape)} tokens")
        self.rows, self.columns = ((wanted >= 0) & self.mask.cpu().bool()).nonzero(as_tuple=True)
        if not len(self.rows):
            raise ValueError("no token to measure: prompts of one token have no next one; give targets=")
        self.ends = Site("resid_post", model.n_layers - 1)
        self.normed = anatomy.final_norm is not None and Site("final_norm_scale") in anatomy.taps
        kinds = {"resid_pre", "z", "attn_out", "mlp_out", *(["mlp_post"] if neurons else [])}
        keep = [s for s in anatomy.taps if not s.stack and s.kind in kinds and not (s.kind == "resid_pre" and s.layer)]
        keep += [self.ends, Site("final_norm"), *([Site("final_norm_scale")] if self.normed else [])]
        self.record = [site for site in keep if site in anatomy.taps]
        self.clean = self.run()
        self.asked = wanted[self.rows, self.columns].to(model.device)
        self._read(model)
        self.before = self.parts(self.clean)

    def run(self, do: Sequence = ()) -> Run:
        return self.model.run(self.ids, record=self.record, do=do, attention_mask=self.mask)

    def at(self, run: Run, site: Site) -> Tensor:
        """[token, ...] in float64."""
        x = run[site]
        return x[self.rows.to(x.device), self.columns.to(x.device)].double()

    def _read(self, model: Model) -> None:
        weights, anatomy = model.weights, model.anatomy
        unembed, bias = weights.W_U.detach().double(), weights.b_U.detach().double()
        self.unembed = unembed.T[self.asked] - unembed.mean(1)
        self.offset = bias[self.asked] - bias.mean()
        self.factor, self.capped = 1.0, _cap(model) is not None
        if Site("final_norm") in anatomy.taps and not self.capped:
            made = (self.at(self.clean, Site("final_norm")) * self.unembed).sum(-1) + self.offset
            factor = float((made * self.logits(self.clean)).sum() / made.square().sum())
            self.factor = 1.0 if abs(factor - 1) < 1e-4 else factor
        reads = self.unembed * self.factor
        self.scale = torch.ones(len(self.rows), dtype=torch.double, device=model.device)
        if self.normed:
            assert anatomy.final_norm is not None
            view = anatomy.taps[Site("final_norm_scale")].views[0]
            assert isinstance(view, NormScale)
            gain, _ = norm_gain(
                model.hf.get_submodule(anatomy.final_norm), view, model.d_model, model.device, model.dtype
            )
            reads = reads * gain.double()
            reads = reads - reads.mean(-1, keepdim=True) if view.centred else reads
            self.scale = self.at(self.clean, Site("final_norm_scale"))
        self.reads: Float[Tensor, "token d_model"] = reads

    def logits(self, run: Run) -> Float[Tensor, "token"]:
        """Of the targets, less the mean over the vocabulary; before a soft-cap, where there is one."""
        if self.capped:
            return (self.at(run, Site("final_norm")) * self.unembed).sum(-1) + self.offset
        assert run.logits is not None
        logits = run.logits[self.rows.to(run.logits.device), self.columns.to(run.logits.device)].double()
        return logits.gather(1, self.asked[:, None])[:, 0] - logits.mean(1)

    def direct(self, written: Float[Tensor, "token d_model"]) -> Float[Tensor, "token"]:
        return (written * self.reads).sum(-1) / self.scale

    def parts(self, run: Run) -> dict[str, Tensor]:
        """Direct effect of each component, at the clean scale: they sum to the stream's."""
        found = {"resid_pre.0": self.direct(self.at(run, Site("resid_pre", 0)))}
        for layer in range(self.model.n_layers):
            found |= self._attention(run, layer)
            mlp = Site("mlp_out", layer)
            if mlp in run:
                found[str(mlp)] = self.direct(self.at(run, mlp))
        return found

    def _attention(self, run: Run, layer: int) -> dict[str, Tensor]:
        whole, site = Site("attn_out", layer), Site("z", layer)
        if whole not in run:
            return {}
        out = self.at(run, whole)
        if site not in run:
            return {str(whole): self.direct(out)}
        z, matrix = self.at(run, site), self.model.weights.W_O[layer].detach().double()
        bias = self.model.weights.b_O[layer].detach().double()
        passed = self._passed(torch.einsum("the,hed->td", z, matrix) + bias, out, layer)
        if passed is None:
            return {str(whole): self.direct(out)}
        heads = (torch.einsum("hed,td->the", matrix, self.reads * passed) * z).sum(-1) / self.scale[:, None]
        found = {f"z.{layer}.{head}": heads[:, head] for head in range(heads.shape[1])}
        return found | ({f"b_O.{layer}": self.direct(bias * passed)} if bool(bias.any()) else {})

    def _passed(self, made: Tensor, out: Tensor, layer: int) -> Tensor | None:
        """What multiplies each feature between out-projection and stream: a constant, or a post-norm's gain / scale."""
        factor = self.model.anatomy.layers[""][layer].factors[0]
        if _near(made * factor, out):
            return torch.full_like(made, factor)
        norm = self.model.hf.get_submodule(self.model.anatomy.taps[Site("attn_out", layer)].path)
        found = (getattr(norm, name, None) for name in ("eps", "variance_epsilon"))
        eps = next((value for value in found if isinstance(value, float)), None)
        if eps is None:
            return None
        gain, _ = norm_gain(norm, NormScale(False, eps), made.shape[-1], made.device, self.model.dtype)
        passed = gain.double() * factor / (made.square().mean(-1, keepdim=True) + eps).sqrt()
        return passed if _near(made * passed, out) else None

    def neurons(self, run: Run, layer: int) -> Float[Tensor, "token neuron"] | None:
        """What each neuron writes straight into the targets' logits; None where the MLP is not its neurons' sum."""
        post, out = Site("mlp_post", layer), Site("mlp_out", layer)
        if post not in run or out not in run:
            return None
        acts, matrix = self.at(run, post), self.model.weights.W_out[layer].detach().double()
        factor = self.model.anatomy.layers[""][layer].factors[1]
        if not _near((acts @ matrix + self.model.weights.b_out[layer].detach().double()) * factor, self.at(run, out)):
            return None
        return acts * (self.reads @ matrix.T) * factor / self.scale[:, None]

    def without(self, site: Site, to: "str | Tensor", seed: int) -> SelfRepair:
        name = str(site)
        if name not in self.before:
            raise SiteError(
                f"{site} is no component of the stream's sum; ablate one of {', '.join(list(self.before)[1:])}"
            )
        run = self.run([ablate(site, to, seed=seed)])
        after = self.parts(run)
        if after.keys() != self.before.keys():
            raise SiteError(f"the heads of {self.model.name} could be told apart before, and not under the ablation")
        changes = {key: after[key] - value for key, value in self.before.items()}
        end, scale = self.at(run, self.ends), self.scale
        after_scale = self.at(run, Site("final_norm_scale")) if self.normed else scale
        changes["norm"] = (end * self.reads).sum(-1) * (1 / after_scale - 1 / scale)
        groups = ["own" if key == name else _GROUP[key.split(".")[0]] for key in changes]
        values = torch.stack(list(changes.values())).cpu().numpy()
        places = {"prompt": ("token", self.rows.numpy()), "pos": ("token", self.columns.numpy())}
        effects = xr.DataArray(
            values,
            dims=["component", "token"],
            coords={"component": list(changes), "group": ("component", groups), **places},
            name="change_of_direct_effect",
        )
        change = (self.logits(run) - self.logits(self.clean)).cpu().numpy()
        kept = {}
        for layer in range(self.model.n_layers):
            pair = self.neurons(self.clean, layer), self.neurons(run, layer)
            if pair[0] is not None and pair[1] is not None:
                kept[layer] = pair
        return SelfRepair(name, effects, change, self.before[name].cpu().numpy(), kept)


_GROUP = {"z": "heads", "attn_out": "heads", "b_O": "heads", "mlp_out": "mlps", "resid_pre": "mlps", "norm": "norm"}


def _one(model: Model, site: "str | Site") -> Site:
    found = model.sites(site)
    if len(found) != 1:
        raise SiteError(f"{site} names {len(found)} sites; self_repairs takes several")
    return found[0]


def _next(ids: Tensor, mask: Tensor) -> Int[Tensor, "prompt pos"]:
    """The token after each, -1 where there is none."""
    targets = torch.full_like(ids, -1).cpu()
    real = mask.bool().cpu()
    targets[:, :-1] = torch.where(real[:, :-1] & real[:, 1:], ids[:, 1:].cpu(), -1)
    return targets


def _cap(model: Model) -> float | None:
    config: Any = model.hf.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(text, "final_logit_softcapping", None)


def _near(a: Tensor, b: Tensor) -> bool:
    return float((a - b).abs().max()) <= 1e-3 * max(float(b.abs().max()), 1e-6)
