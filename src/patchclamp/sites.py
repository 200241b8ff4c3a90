"""The vocabulary: what an activation is called, which dimensions it has, and which equation defines it.

    site("z.9.6")                 layer 9, head 6                   site("resid_post.-1")     the last layer
    site("mlp_post.3.1021")       one neuron                        site("module:features.3") the output of any module
    "resid_post.*"  "z.4:9.*"  "z.{7,9}.*"                          patterns, which a model expands
    "blocks.5.attn.hook_z"                                          TransformerLens' names, translated

A site of a second stack carries the stack's name: `encoder.resid_post.3` in an encoder-decoder.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace


class SiteError(ValueError):
    """A site that cannot be meant: misspelt, out of range, or absent from this architecture."""


@dataclass(frozen=True)
class Kind:
    """One kind of activation: its dimensions, the dimension that a unit indexes, and its defining equation."""

    name: str
    dims: tuple[str, ...]
    equation: str
    unit: str | None = None
    layered: bool = True


_RESID = ("prompt", "pos", "d_model")
_HEAD = ("prompt", "pos", "head", "d_head")
_KV = ("prompt", "pos", "kv_head", "d_head")
_SQUARE = ("prompt", "head", "query", "key")
_NEURON = ("prompt", "pos", "neuron")

# In the order in which a forward pass makes them; hooks on one module apply in this order.
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("embed", _RESID, "token embeddings, as they are added to the residual stream", layered=False),
        Kind("pos_embed", _RESID, "position embeddings, as they are added to the residual stream", layered=False),
        Kind("resid_pre", _RESID, "resid_pre[0] = embed + pos_embed; resid_pre[l] = resid_post[l-1]"),
        Kind("ln1_scale", ("prompt", "pos"), "attn_in = (resid_pre - mean) / ln1_scale * weight + bias"),
        Kind("attn_in", _RESID, "what the attention module reads: ln1(resid_pre) in pre-norm blocks"),
        Kind("q", _HEAD, "queries as attention consumes them: after norms, rotary and biases", "head"),
        Kind("k", _KV, "keys as attention consumes them, one for each key-value head", "kv_head"),
        Kind("v", _KV, "values as attention consumes them, one for each key-value head", "kv_head"),
        Kind("scores", _SQUARE, "the input of softmax: scaled, soft-capped, biased and masked", "head"),
        Kind("pattern", _SQUARE, "pattern = softmax(scores); rows sum to 1, less the sink's share", "head"),
        Kind("z", _HEAD, "z = pattern @ v, the input of the out-projection", "head"),
        Kind("head_out", (*_HEAD[:3], "d_model"), "head_out[h] = z[h] @ W_O[h]", "head"),
        Kind("attn_out", _RESID, "what attention adds to the stream; resid_mid = resid_pre + attn_out"),
        Kind("cross_q", _HEAD, "queries of cross-attention", "head"),
        Kind("cross_k", _KV, "keys of cross-attention", "kv_head"),
        Kind("cross_v", _KV, "values of cross-attention", "kv_head"),
        Kind("cross_scores", _SQUARE, "the input of cross-attention's softmax", "head"),
        Kind("cross_pattern", _SQUARE, "cross_pattern = softmax(cross_scores)", "head"),
        Kind("cross_z", _HEAD, "cross_z = cross_pattern @ cross_v", "head"),
        Kind("cross_attn_out", _RESID, "what cross-attention adds to the stream"),
        Kind("resid_mid", _RESID, "resid_mid = resid_pre + attn_out [+ cross_attn_out]"),
        Kind("ln2_scale", ("prompt", "pos"), "mlp_in = (resid_mid - mean) / ln2_scale * weight + bias"),
        Kind("mlp_in", _RESID, "what the MLP reads: ln2(resid_mid) in pre-norm blocks"),
        Kind("router", ("prompt", "pos", "expert"), "router logits, before top-k", "expert"),
        Kind("mlp_gate", _NEURON, "input of the activation function in a gated MLP", "neuron"),
        Kind("mlp_pre", _NEURON, "the up-projection: mlp_post = act(mlp_pre), or act(mlp_gate) * mlp_pre", "neuron"),
        Kind("mlp_post", _NEURON, "the neurons: the input of the down-projection", "neuron"),
        Kind("expert_index", ("prompt", "pos", "slot"), "which expert fills each of the router's top-k slots", "slot"),
        Kind(
            "expert_weight",
            ("prompt", "pos", "expert"),
            "mlp_out = sum over e of expert_weight[e] * expert[e](mlp_in) [+ shared experts]; 0 where not chosen",
            "expert",
        ),
        Kind(
            "expert_post", ("prompt", "pos", "slot", "neuron"), "neurons of the experts chosen, by top-k slot", "slot"
        ),
        Kind("mlp_out", _RESID, "what the MLP adds to the stream; resid_post = resid_mid + mlp_out"),
        Kind("resid_post", _RESID, "resid_post = resid_pre + attn_out + mlp_out"),
        Kind("final_norm_scale", ("prompt", "pos"), "the denominator of the last norm", layered=False),
        Kind("final_norm", _RESID, "final_norm = norm(resid_post[-1])", layered=False),
        Kind(
            "logits", ("prompt", "pos", "vocab"), "logits = unembed(final_norm), soft-capped and scaled", layered=False
        ),
    )
}
ORDER = {name: rank for rank, name in enumerate(KINDS)}


@dataclass(frozen=True, order=True)
class Site:
    """The address of an activation.

    `layer` is the block's index in its `stack` (the empty string names the stack that makes the logits); `unit` is a
    head, key-value head, neuron, expert or slot; `path` is a module's path for the kind "module".

    >>> str(Site("z", 9, 6)), Site("z", 9, 6).dims
    ('z.9.6', ('prompt', 'pos', 'd_head'))
    """

    kind: str
    layer: int | None = None
    unit: int | None = None
    stack: str = ""
    path: str = ""

    def __str__(self) -> str:
        if self.kind == "module":
            return f"module:{self.path}"
        parts = [self.stack, self.kind, self.layer, self.unit]
        return ".".join(str(part) for part in parts if part not in ("", None))

    @property
    def whole(self) -> "Site":
        """The same site with all its units: `z.9` for `z.9.6`."""
        return replace(self, unit=None)

    @property
    def source(self) -> str:
        """The stack whose tokens are along the axis of positions: the encoder's, for the keys of cross-attention."""
        return "encoder" if self.kind in ("cross_k", "cross_v") else self.stack

    @property
    def unit_axis(self) -> int | None:
        """Axis that the unit indexes in the whole site's tensor, or None where the kind has no units."""
        kind = KINDS.get(self.kind)
        return None if kind is None or kind.unit is None else kind.dims.index(kind.unit)

    @property
    def pos_axis(self) -> int:
        """Axis of token positions: the queries, for `scores` and `pattern`."""
        return 2 if self.kind.endswith(("scores", "pattern")) else 1

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the dimensions of the recorded tensor."""
        if self.kind == "module":
            return ("prompt", "...")
        dims = KINDS[self.kind].dims
        axis = self.unit_axis
        return dims if self.unit is None or axis is None else dims[:axis] + dims[axis + 1 :]


_TRANSFORMER_LENS = {
    "hook_embed": "embed",
    "hook_pos_embed": "pos_embed",
    "ln_final.hook_scale": "final_norm_scale",
    "ln_final.hook_normalized": "final_norm",
    "unembed.hook_out": "logits",
}
_TRANSFORMER_LENS_BLOCK = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "ln1.hook_scale": "ln1_scale",
    "ln1.hook_normalized": "attn_in",
    "ln2.hook_scale": "ln2_scale",
    "ln2.hook_normalized": "mlp_in",
    "attn.hook_q": "q",  # before norms and rotary: where there are any, an error (`Inventory.projected`)
    "attn.hook_k": "k",
    "attn.hook_rot_q": "q",
    "attn.hook_rot_k": "k",
    "attn.hook_v": "v",
    "attn.hook_z": "z",
    "attn.hook_result": "head_out",
    "attn.hook_attn_scores": "scores",
    "attn.hook_pattern": "pattern",
    "mlp.hook_pre": "mlp_gate|mlp_pre",  # TransformerLens' "pre" is what enters the activation function
    "mlp.hook_pre_linear": "mlp_pre",
    "mlp.hook_post": "mlp_post",
    "mlp.hook_router_scores": "router",
}


def from_transformer_lens(name: str) -> str | None:
    """Our pattern for a TransformerLens hook name, or None where it is not one.

    >>> from_transformer_lens("blocks.5.attn.hook_z")
    'z.5'
    """
    if name in _TRANSFORMER_LENS:
        return _TRANSFORMER_LENS[name]
    match = re.fullmatch(r"blocks\.(\d+|\*)\.(.+)", name)
    if match is None:
        if "hook_" in name:
            near = difflib.get_close_matches(name, _TRANSFORMER_LENS, 1)
            raise SiteError(
                f"{name!r} looks like a TransformerLens name, but is none that has a site here{_mean(near)}"
            )
        return None
    layer, hook = match.groups()
    kind = _TRANSFORMER_LENS_BLOCK.get(hook)
    if kind is None:
        near = difflib.get_close_matches(hook, _TRANSFORMER_LENS_BLOCK, 1)
        raise SiteError(f"TransformerLens' {hook!r} has no site here{_mean([f'blocks.{layer}.{n}' for n in near])}")
    return f"{kind}.{layer}"


def _mean(near: Iterable[str]) -> str:
    near = list(near)
    return f"; did you mean {' or '.join(repr(str(n)) for n in near)}?" if near else ""


_INDEX = re.compile(r"\*|-?\d+|-?\d*:-?\d*|\{-?\d+(,-?\d+)*\}")


@dataclass(frozen=True)
class Pattern:
    """A parsed pattern: kinds (alternatives, first that exists), and the text of the layer and unit parts."""

    text: str
    kinds: tuple[str, ...]
    stack: str
    layer: str | None
    unit: str | None
    path: str = ""
    projected: bool = False  # means what the projection returns, before norms, rotary and scales


def parse(text: str) -> Pattern:
    """The parts of a site pattern; `SiteError` says what is wrong with it and what it may have meant.

    >>> parse("z.4:9.*").layer
    '4:9'
    """
    text = text.strip()
    if text.startswith("module:"):
        return Pattern(text, ("module",), "", None, None, text.removeprefix("module:"))
    translated = from_transformer_lens(text)
    parts = (translated or text).split(".")
    stack = ""
    if parts[0] not in KINDS and len(parts) > 1 and parts[1] in KINDS:
        stack, parts = parts[0], parts[1:]
    kinds = tuple(parts[0].split("|"))
    for kind in kinds:
        if kind not in KINDS:
            near = difflib.get_close_matches(kind, KINDS, 2, cutoff=0.5)
            raise SiteError(
                f"no kind of site is called {kind!r} (in {text!r}){_mean(near)} "
                f"Kinds: {', '.join(KINDS)}; any module is 'module:its.path'."
            )
    kind = KINDS[kinds[0]]
    indices = parts[1:]
    allowed = (1 if kind.layered else 0) + (1 if kind.unit else 0)
    form = kind.name + (".LAYER" if kind.layered else "") + (f"[.{kind.unit.upper()}]" if kind.unit else "")
    if len(indices) > allowed:
        raise SiteError(f"{text!r} has too many parts: {kind.name} is written {form}")
    if kind.layered and not indices:
        raise SiteError(f"{text!r} names no layer: it is written {form}, and {kind.name}.* means every layer")
    for index in indices:
        if not _INDEX.fullmatch(index):
            raise SiteError(f"{index!r} in {text!r} is no index: use a number, *, a range 2:5, or a list {{2,5}}")
    layer = indices[0] if kind.layered else None
    unit = indices[-1] if len(indices) > (1 if kind.layered else 0) else None
    projected = translated is not None and text.endswith((".hook_q", ".hook_k"))
    return Pattern(text, kinds, stack, layer, unit, projected=projected)


def indices(text: str, size: int, *, what: str, within: str) -> list[int]:
    """The numbers that an index text selects out of `size`; out of range is an error, never a clip."""

    def check(number: int) -> int:
        if not -size <= number < size:
            raise SiteError(f"{within} asks for {what} {number}, but there are {size}: 0 to {size - 1}")
        return number % size

    if text == "*":
        return list(range(size))
    if text.startswith("{"):
        return [check(int(number)) for number in text[1:-1].split(",")]
    if ":" in text:
        start, stop = text.split(":")
        first = check(int(start)) if start else 0
        last = size if not stop else (int(stop) if int(stop) >= 0 else int(stop) + size)
        if not first < last <= size:
            raise SiteError(f"{within} asks for {what}s {text}, but there are {size}: 0:{size} is all of them")
        return list(range(first, last))
    return [check(int(text))]


@dataclass(frozen=True)
class Inventory:
    """What one model has: units by whole site (0: none), layers by stack, reasons for what is absent."""

    units: Mapping[Site, int]
    layers: Mapping[str, int]
    absent: Mapping[Site, str]
    modules: frozenset[str]
    model: str
    projected: frozenset[Site] = frozenset()  # queries and keys that attention takes as their projection makes them

    def expand(self, pattern: "str | Site | Pattern | Iterable[str | Site]") -> list[Site]:
        """The sites of this model that a pattern names, in the model's order, never none; or those that several
        patterns name, each once, pattern after pattern.
        """
        if isinstance(pattern, Site):
            pattern = str(pattern)
        if not isinstance(pattern, (str, Pattern)):
            return list(dict.fromkeys(site for one in pattern for site in self.expand(one)))
        parsed = parse(pattern) if isinstance(pattern, str) else pattern
        if parsed.path or parsed.kinds == ("module",):
            return [self._module(parsed)]
        if parsed.stack not in self.layers:
            known = [name for name in self.layers if name]
            said = f"; it has {', '.join(known)}" if known else ": it has one stack, whose sites carry no prefix"
            raise SiteError(f"{self.model} has no stack {parsed.stack!r} (in {parsed.text!r}){said}")
        kind = next((k for k in parsed.kinds if any(s.kind == k and s.stack == parsed.stack for s in self.units)), None)
        if kind is None:
            raise SiteError(self._why_absent(Site(parsed.kinds[0], stack=parsed.stack), parsed.text))
        if not KINDS[kind].layered:
            return self._with_units(Site(kind, stack=parsed.stack), parsed)
        wanted = indices(parsed.layer or "*", self.layers[parsed.stack], what="layer", within=parsed.text)
        found: list[Site] = []
        for layer in wanted:
            whole = Site(kind, layer, stack=parsed.stack)
            if whole in self.units:
                found += self._with_units(whole, parsed)
            elif parsed.layer != "*":
                raise SiteError(self._why_absent(whole, parsed.text))
        for site in found:
            if parsed.projected and site.whole not in self.projected:
                raise SiteError(
                    f"TransformerLens' {parsed.text} is before rotary, norms and scales, and {site} is what attention "
                    f"consumes, after them: ask for {site}, or for the projection's output as module:PATH"
                )
        if not found:
            raise SiteError(self._why_absent(Site(kind, wanted[0], stack=parsed.stack), parsed.text))
        return found

    def _with_units(self, whole: Site, parsed: Pattern) -> list[Site]:
        if whole not in self.units:
            raise SiteError(self._why_absent(whole, parsed.text))
        if parsed.unit is None:
            return [whole]
        name = KINDS[whole.kind].unit or "unit"
        chosen = indices(parsed.unit, self.units[whole], what=name, within=parsed.text)
        return [replace(whole, unit=unit) for unit in chosen]

    def _module(self, parsed: Pattern) -> Site:
        if parsed.path not in self.modules:
            near = difflib.get_close_matches(parsed.path, self.modules, 3, cutoff=0.4)
            raise SiteError(f"{self.model} has no module {parsed.path!r}{_mean(f'module:{n}' for n in near)}")
        return Site("module", path=parsed.path)

    def _why_absent(self, site: Site, text: str) -> str:
        reasons = [why for at, why in self.absent.items() if at.kind == site.kind and at.stack == site.stack]
        exact = self.absent.get(site)
        why = exact or "; ".join(dict.fromkeys(reasons)) or "the architecture has no such activation"
        return f"{self.model} has no {site} (asked for as {text!r}): {why}"
