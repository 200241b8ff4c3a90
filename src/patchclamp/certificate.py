"""The certificate: every site's equation, checked; recording changes nothing, editing changes the output.

    certificate = model.certify()
    certificate.holds
    for row in certificate.rows: print(row)

A row holds, does not hold, or (None) could not be shown: an edit that moves no logit, where a model's own weights
beyond the site are zero.
"""

import importlib.metadata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from patchclamp.anatomy.activations import ACTIVATIONS
from patchclamp.anatomy.discover import Anatomy, Layer, trial_inputs
from patchclamp.anatomy.experts import by_slot, combine
from patchclamp.anatomy.trace import evaluation
from patchclamp.interventions import edit, scale
from patchclamp.sites import Site

_EXPERTS = ("expert_post", "expert_index", "expert_weight")
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


Pairs = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Row:
    """One equation: where, how far its two sides are apart (relative to their size), and whether that is rounding."""

    equation: str
    sites: str
    error: float | None
    holds: bool | None
    note: str = ""

    def __str__(self) -> str:
        mark = {True: "holds", False: "DOES NOT HOLD", None: "not shown"}[self.holds]
        error = "" if self.error is None else f"  error {self.error:.1e}"
        return f"{self.equation:<64} {self.sites:<18} {mark}{error}{'  ' + self.note if self.note else ''}"


@dataclass(frozen=True)
class Certificate:
    """What was checked of one model, with what result, and what the architecture does not have."""

    model: str
    architecture: str
    implementation: str
    dtype: str
    transformers: str
    causal: bool
    rows: tuple[Row, ...]
    absent: tuple[tuple[str, str], ...]

    @property
    def holds(self) -> bool:
        """Whether no equation fails, and at least one was checked."""
        return bool(self.rows) and all(row.holds is not False for row in self.rows)

    def __str__(self) -> str:
        head = f"{self.model}: {self.architecture}, {self.implementation} attention, {self.dtype}"
        head += f", transformers {self.transformers}"
        lines = [head, *(f"  {row}" for row in self.rows)]
        lines += [f"  no {site}: {why}" for site, why in self.absent]
        return "\n".join([*lines, f"  certificate {'holds' if self.holds else 'DOES NOT HOLD'}"])

    def _repr_html_(self) -> str:
        from html import escape

        cells = "".join(
            f"<tr><td>{escape(r.equation)}</td><td>{escape(r.sites)}</td><td>{r.holds}</td><td>{escape(r.note)}</td></tr>"
            for r in self.rows
        )
        caption = f"{self.model}: {'holds' if self.holds else 'does not hold'}"
        return f"<table><caption>{escape(caption)}</caption>{cells}</table>"

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        rows = [vars(row) for row in self.rows]
        return {**vars(self), "rows": rows, "absent": [list(pair) for pair in self.absent], "holds": self.holds}


def certify(anatomy: Anatomy, module: nn.Module, run: Callable[..., Any]) -> Certificate:
    """Check the anatomy with `run(arguments, record, do) -> Run` on made-up inputs, with dropout off."""
    parameter = next(module.parameters(), None)
    dtype = torch.float32 if parameter is None else parameter.dtype
    with torch.no_grad(), evaluation(module):
        rows, causal = _Checks(anatomy, module, run, dtype).all() if anatomy.taps else (_modules(module, run), False)
    absent: dict[str, dict[str, None]] = {}
    for site, why in anatomy.inventory.absent.items():
        name = f"{site.stack}.{site.kind}" if site.stack else site.kind
        if site.kind not in {s.kind for s in anatomy.taps if s.stack == site.stack}:
            absent.setdefault(name, {})[why] = None  # layers may differ in why they lack it
    version = importlib.metadata.version("transformers")
    return Certificate(
        anatomy.model,
        type(module).__name__,
        anatomy.implementation,
        str(dtype).removeprefix("torch."),
        version,
        causal,
        tuple(rows),
        tuple((name, "; ".join(why)) for name, why in absent.items()),
    )


def _modules(module: nn.Module, run: Callable[..., Any]) -> list[Row]:
    """For a network that is no transformer: recording changes nothing, editing each module changes the output."""
    try:
        inputs = trial_inputs(module)
    except TypeError:
        return []
    paths = [path for path, child in module.named_modules() if path and not list(child.children())]
    bare = module(**inputs).logits
    same = torch.equal(run(inputs, [f"module:{path}" for path in paths]).logits, bare)
    rows = [Row("recording leaves the output as it is, bit for bit", f"{len(paths)} modules", None, same)]
    for path in paths:
        moved = run(inputs, None, [edit(f"module:{path}", lambda x: x + 1 + x.abs().mean())]).logits
        changed = not torch.equal(moved, bare)
        rows.append(Row("editing a site changes the output", f"module:{path}", None, changed or None))
    return rows


class _Checks:
    def __init__(self, anatomy: Anatomy, module: nn.Module, run: Callable[..., Any], dtype: torch.dtype):
        self.anatomy, self.module, self.run = anatomy, module, run
        self.tolerance = _TOLERANCE.get(dtype, 5e-2)
        self.inputs = trial_inputs(module)
        self.bare = module(**self.inputs)

    def all(self) -> tuple[list[Row], bool]:
        rows: list[Row] = []
        for stack, layers in self.anatomy.layers.items():
            rows += self._stream(stack, layers)
            rows += self._attention(stack, layers)
            rows += self._mlp(stack, layers)
        rows += self._ends()
        rows += [self._recording(), *self._edits()]
        causal = self._causal()
        return rows, causal

    def _record(self, *wanted: "Site | str") -> Any:
        return self.run(self.inputs, [w for w in wanted if isinstance(w, str) or w in self.anatomy.taps])

    def _row(self, equation: str, sites: str, pairs: Iterable[tuple[Tensor, Tensor]], note: str = "") -> list[Row]:
        worst, seen = 0.0, False
        for left, right in pairs:
            seen = True
            size = max(float(right.float().abs().max()), 1e-6)
            error = float((left.float() - right.float().reshape(left.shape)).abs().max()) / size
            worst = error if error != error else max(worst, error)  # what is not a number does not hold
        return [Row(equation, sites, worst, worst <= self.tolerance, note)] if seen else []

    def _stream(self, stack: str, layers: tuple[Layer, ...]) -> list[Row]:
        def at(kind: str, layer: int) -> Site:
            return Site(kind, layer, stack=stack)

        kinds = ("resid_pre", "attn_out", "cross_attn_out", "resid_mid", "mlp_out", "resid_post")
        got = self._record(*(at(kind, i) for i in range(len(layers)) for kind in kinds))
        span = f"{stack + '.' if stack else ''}0..{len(layers) - 1}"

        def written(i: int, *kinds: str) -> Tensor:
            return sum(
                (got[at(k, i)] for k in kinds if at(k, i) in got), start=torch.zeros_like(got[at("resid_pre", i)])
            )

        def mids() -> Iterator[tuple[Tensor, Tensor]]:
            for i, layer in enumerate(layers):
                if at("resid_mid", i) in got:
                    total = written(i, "resid_pre", "attn_out", "cross_attn_out")
                    norm = self.anatomy.taps[at("resid_mid", i)].path
                    yield (
                        (self.module.get_submodule(norm)(total) if layer.post_norm else total),
                        got[at("resid_mid", i)],
                    )

        def posts() -> Iterator[tuple[Tensor, Tensor]]:
            for i, layer in enumerate(layers):
                if layer.post_norm and layer.closing and at("mlp_out", i) in got:
                    total = written(i, "resid_mid", "mlp_out")
                    yield self.module.get_submodule(layer.closing)(total), got[at("resid_post", i)]
                elif not layer.post_norm and (at("attn_out", i) in got or at("mlp_out", i) in got):
                    yield written(i, "resid_pre", "attn_out", "cross_attn_out", "mlp_out"), got[at("resid_post", i)]

        chain = ((got[at("resid_post", i)], got[at("resid_pre", i + 1)]) for i in range(len(layers) - 1))
        post_norm = any(layer.post_norm for layer in layers)
        wrap = "norm({})" if post_norm else "{}"
        parts = "resid_pre + attn_out" + (" + cross_attn_out" if at("cross_attn_out", 0) in got else "")
        whole = "resid_mid + mlp_out" if post_norm else parts + " + mlp_out"
        return [
            *self._row("resid_pre[l+1] = resid_post[l]", span, chain),
            *self._row(f"resid_mid = {wrap.format(parts)}", span, mids()),
            *self._row(f"resid_post = {wrap.format(whole)}", span, posts()),
        ]

    def _attention(self, stack: str, layers: tuple[Layer, ...]) -> list[Row]:
        rows: list[Row] = []
        sums, soft, mixed, heads, out = Pairs(), Pairs(), Pairs(), Pairs(), Pairs()
        sink = False
        for i, layer in enumerate(layers):
            for prefix in ("", "cross_"):
                site = {k: Site(prefix + k, i, stack=stack) for k in ("v", "scores", "pattern", "z", "attn_out")}
                if site["pattern"] not in self.anatomy.taps or site["z"] not in self.anatomy.taps:
                    continue
                extra = [f"module:{layer.out_proj}"] if layer.out_proj and not prefix else []
                watched = self._record(site["v"], site["scores"], site["pattern"])
                whole = [site["z"], site["attn_out"], *([Site("head_out", i, stack=stack)] if not prefix else [])]
                got = self._record(*whole, *extra)  # z of the native kernel, in a run that watches no pattern
                pattern, v, z = watched[site["pattern"]], watched[site["v"]], got[site["z"]]
                recipe = layer.recipe if not prefix else self.anatomy.cross[site["pattern"]]
                assert recipe is not None
                sink = sink or recipe.sink
                total = pattern.float().sum(-1)
                full = total.clamp_max(1.0) if recipe.sink else torch.ones_like(total)
                sums.append((total, torch.where(total > 0, full, total)))
                normal = pattern.float() / total.clamp_min(1e-9)[..., None]
                soft.append((normal, watched[site["scores"]].float().softmax(-1)))
                wide = v.repeat_interleave(recipe.group, dim=2)
                mixed.append((torch.einsum("bhqk,bkhd->bqhd", pattern.float(), wide.float()), z))
                if prefix or not extra:
                    continue
                projected = got[extra[0]]
                bias = getattr(self.module.get_submodule(layer.out_proj or ""), "bias", None)
                summed = got[Site("head_out", i, stack=stack)].sum(2)
                heads.append((summed if bias is None else summed + bias, projected.reshape(summed.shape)))
                if site["attn_out"] in got:
                    path = self.anatomy.taps[site["attn_out"]].path
                    after = self._after(path, projected, layer.out_proj or "") * layer.factors[0]
                    out.append((after.reshape(summed.shape), got[site["attn_out"]]))
        name = stack or "all layers"
        note = "less the attention sink's share" if sink else ""
        gated = not self._close(mixed)  # as Qwen3-Next's: right signs, which no wrong site would have
        mixed = [((z / made).nan_to_num(0.0).clamp_min(0.0) * made, z) for made, z in mixed] if gated else mixed
        rows += self._row("rows of pattern sum to 1", name, sums, note)
        rows += self._row("pattern = softmax(scores)", name, soft, note)
        rows += self._row(f"z = {'gate * (pattern @ v), gate > 0' if gated else 'pattern @ v'}", name, mixed)
        rows += self._row("sum over heads of head_out + b_O = out-projection", name, heads)
        rows += self._row("attn_out = out-projection [post-norm, multiplier]", name, out)
        return rows

    def _close(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> bool:
        return all(row.holds for row in self._row("", "", pairs))

    def _after(self, path: str, x: Tensor, origin: str) -> Tensor:
        """What the module at `path` makes of the projection: the same, or the output of a post-norm."""
        module = self.module.get_submodule(path)
        if path == origin or origin.startswith(path + ".") or next(module.parameters(), None) is None:
            return x
        return module(x) if "norm" in type(module).__name__.lower() or "scale" in type(module).__name__.lower() else x

    def _mlp(self, stack: str, layers: tuple[Layer, ...]) -> list[Row]:
        down, acted, experts, routed = Pairs(), Pairs(), Pairs(), Pairs()
        names, factors = set[str](), set[str]()
        for i, layer in enumerate(layers):
            site = {k: Site(k, i, stack=stack) for k in ("mlp_pre", "mlp_gate", "mlp_post", "mlp_out", *_EXPERTS)}
            if layer.down is not None:
                got = self._record(*list(site.values())[:3], f"module:{layer.down}")
                post = got[site["mlp_post"]]
                module = self.module.get_submodule(layer.down)
                seen = got[f"module:{layer.down}"]
                down.append((module(post).reshape(seen.shape), seen))
                best = self._activation(got, site)
                names.add(best[0])
                acted.append((best[1], post))
            if site["expert_post"] in self.anatomy.taps:
                pair, beside, factor = self._experts(site)
                experts.append(pair)
                routed += beside
                factors |= {f"times {factor:.4g}"} if beside and factor != 1 else set()
        name = stack or "all layers"
        form = "act(mlp_gate) * mlp_pre" if any("mlp_gate" in str(s) for s in self.anatomy.taps) else "act(mlp_pre)"
        rows = self._row(f"mlp_post = {form}", name, acted, ", ".join(sorted(names)))
        rows += self._row("down-projection(mlp_post) = what the MLP computes", name, down)
        rows += self._row("experts = sum of expert_weight[expert_index] * W_down expert_post", name, experts)
        return rows + self._row(
            "mlp_out = experts + mlp_out where expert_weight is 0", name, routed, ", ".join(factors)
        )

    def _activation(self, got: Any, site: dict[str, Site]) -> tuple[str, Tensor]:
        post, pre = got[site["mlp_post"]], got[site["mlp_pre"]]
        gate = got.recording.get(site["mlp_gate"])
        made = {name: fn(pre) if gate is None else fn(gate) * pre for name, fn in ACTIVATIONS.items()}
        best = min(made, key=lambda name: float((made[name].float() - post.float()).abs().max()))
        return best, made[best]

    def _experts(self, site: dict[str, Site]) -> tuple[tuple[Tensor, Tensor], Pairs, float]:
        """The experts' sum from its sites; and mlp_out with it and without, and the factor that it has there."""
        path = self.anatomy.taps[site["expert_post"]].path
        got = self._record(*(site[kind] for kind in _EXPERTS), site["mlp_out"], f"module:{path}")
        out = got[f"module:{path}"]
        post, index, weight = (got[site[kind]].flatten(0, 1) for kind in _EXPERTS)
        chosen = (x[:, : index.shape[1]] for x in by_slot(index, weight))  # others have no weight, where all is right
        pair = combine(self.module.get_submodule(path), post, *chosen), out
        if site["mlp_out"] not in got:
            return pair, [], 1.0

        def weighed(factor: float) -> Tensor:
            return self.run(self.inputs, [site["mlp_out"]], [scale(site["expert_weight"], factor)])[site["mlp_out"]]

        whole, bare = got[site["mlp_out"]], weighed(0.0)
        sums, gap = out.reshape(bare.shape).float(), (whole - bare).float()
        factor = float((gap * sums).sum() / sums.square().sum().clamp_min(1e-12))
        factor = 1.0 if abs(factor) < 1e-3 or abs(factor - 1) < 1e-2 else factor
        rest = bare + factor * sums
        if not self._close([(rest, whole)]) and not self._close([(weighed(2.0) - whole, gap)]):
            return pair, [], factor  # a norm behind the sum: mlp_out is no sum of terms
        return pair, [(rest, whole)], factor

    def _ends(self) -> list[Row]:
        rows: list[Row] = []
        first, last = Site("resid_pre", 0), Site("resid_post", len(self.anatomy.layers[""]) - 1)
        parts = self.anatomy.embed_parts
        if parts and Site("embed") in self.anatomy.taps:
            got = self._record(first, Site("embed"), *(f"module:{path}" for path in parts))
            token = self.anatomy.taps[Site("embed")].path
            total = got[Site("embed")] + sum(got[f"module:{path}"] for path in parts if path != token)
            norm = self.anatomy.embed_norm
            total = self.module.get_submodule(norm)(total) if norm else total
            names = " + ".join(["embed", *(path.rsplit(".", 1)[-1] for path in parts if path != token)])
            equation = f"resid_pre[0] = {f'norm({names})' if norm else names}"
            rows += self._row(equation, "embed", [(total, got[first])])
        norm = self.anatomy.final_norm
        if norm is not None:
            got = self._record(last, Site("final_norm"))
            made = self.module.get_submodule(norm)(got[last])
            rows += self._row("final_norm = norm(resid_post[-1])", "final_norm", [(made, got[Site("final_norm")])])
        head = self.anatomy.unembed
        if head is not None and norm is not None and self.anatomy.head == "tokens":
            got = self._record(Site("final_norm"), Site("logits"))
            made = self.module.get_submodule(head)(got[Site("final_norm")]).float()
            note, shaped = self._head_form(made, got[Site("logits")].float())
            equation = "logits = unembed(final_norm) [scaled, soft-capped]"
            rows += self._row(equation, "logits", [(shaped, got[Site("logits")])], note)
        return rows

    def _head_form(self, made: Tensor, logits: Tensor) -> tuple[str, Tensor]:
        """Plain, times a constant, or soft-capped c * tanh(x / c): whichever the logits are."""
        config = getattr(self.module, "config", None)
        text = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
        cap = getattr(text, "final_logit_softcapping", None)
        if cap:
            return f"soft-capped at {cap:g}", cap * torch.tanh(made / cap)
        factor = float((made * logits).sum() / made.square().sum().clamp_min(1e-12))
        return ("", made) if abs(factor - 1) < 1e-3 else (f"scaled by {factor:.4g}", made * factor)

    def _output(self, output: Any) -> Tensor:
        found = getattr(output, "logits", None)
        return found if found is not None else output[0]

    def _recording(self) -> Row:
        calm = [s for s in self.anatomy.taps if not s.kind.endswith(("scores", "pattern"))]
        with_all = self._output(self.run(self.inputs, calm).output)
        same = torch.equal(with_all, self._output(self.bare))
        return Row("recording leaves the output as it is, bit for bit", "all but pattern", None, same)

    def _edits(self) -> list[Row]:
        moved: dict[str, bool] = {}
        reference = self._output(self.bare).float()
        for site in self.anatomy.taps:
            name = f"{site.stack}.{site.kind}" if site.stack else site.kind
            if moved.get(name) or site.kind == "expert_index":
                continue
            moved[name] = self._moves(site, reference)
        silent = [name for name, effect in moved.items() if not effect]
        rows = [Row("editing a site changes the output", f"{len(moved) - len(silent)} kinds", None, True)]
        return rows + [Row("editing a site changes the output", name, None, None, "no logit moved") for name in silent]

    def _moves(self, site: Site, reference: Tensor) -> bool:
        generator = torch.Generator().manual_seed(0)

        def shake(x: Tensor) -> Tensor:
            noise = torch.rand(x.shape, generator=generator).to(x.device, x.dtype)
            if site.kind.endswith(("scale", "pattern")):
                return x * (0.25 + noise)
            return x + noise * (3 if site.kind.endswith("scores") else x.abs().mean() + 1)

        out = self._output(self.run(self.inputs, None, [edit(site, shake)]).output).float()
        return not torch.equal(out, reference)

    def _causal(self) -> bool:
        """Whether the past is independent of the future: earlier positions, after the last token changed."""
        name = "decoder_input_ids" if "decoder_input_ids" in self.inputs else "input_ids"
        if name not in self.inputs:
            return False
        ids = self.inputs[name]
        changed = ids.clone()
        changed[:, -1] = ids[:, 0]
        if torch.equal(changed, ids):
            changed[:, -1] = ids[:, 1]
        last = Site("resid_post", len(self.anatomy.layers[""]) - 1)
        both = self.inputs, {**self.inputs, name: changed}
        before, after = (self.run(given, [last])[last][:, :-1].float() for given in both)
        return bool(((before - after).abs() <= 1e-3 * after.abs() + 1e-4 * before.abs().max()).all())
