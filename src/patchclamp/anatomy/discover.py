"""From a module to its anatomy: one traced call, no table of names.

anatomy = discover(hf_model)
anatomy.taps[Site("z", 3)]        # where z of layer 3 lives: a module, its input or output, and a view
anatomy.inventory.expand("z.*")   # the sites that a pattern names
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from patchclamp.anatomy.attention import Recipe
from patchclamp.anatomy.blocks import Block, Sublayer, read_block
from patchclamp.anatomy.structure import Term, is_linear, is_norm, norm_form, same, solve, stacks, stream_key
from patchclamp.anatomy.trace import Call, Trace, evaluation, trace
from patchclamp.anatomy.trial import trial_inputs
from patchclamp.anatomy.views import EachPrompt, HeadOut, Heads, NormScale, Part, PlusResidual, Rows, Scaled, View
from patchclamp.sites import KINDS, Inventory, Site

Port = Literal["input", "output", "attention", "router", "routing", "experts"]


@dataclass(frozen=True)
class Tap:
    """Where a site lives: a module, the side of it, which argument or output item, and how that is read."""

    site: Site
    path: str
    port: Port
    key: int | str | None = None
    views: tuple[View, ...] = ()
    block: str = ""  # the block whose input the views need
    volatile: bool = False  # changed in place later on: a recording must copy


@dataclass(frozen=True)
class Layer:
    """One block's modules by role, for weights and for runs that skip it; None where there is none."""

    path: str
    into: int | str
    out: int | str | None
    recipe: Recipe | None
    qkv: tuple[str, ...]
    out_proj: str | None
    up: str | None
    gate: str | None
    down: str | None
    fused_mlp: tuple[slice, slice] | None
    norm1: str | None
    norm2: str | None
    sequential: bool
    factors: tuple[float, float]  # of attn_out and mlp_out, outside their modules
    post_norm: bool
    closing: str | None  # the norm that a post-norm block ends in


@dataclass(frozen=True)
class Anatomy:
    """Everything that the runtime knows about an architecture. Made by `discover`, checked by the certificate."""

    model: str
    implementation: str
    taps: Mapping[Site, Tap]
    inventory: Inventory
    layers: Mapping[str, tuple[Layer, ...]]
    cross: Mapping[Site, Recipe]
    embed_parts: tuple[str, ...]  # modules whose outputs sum to resid_pre[0] (before a norm, where there is one)
    embed_norm: str | None
    final_norm: str | None
    unembed: str | None
    d_model: int
    head: str  # "tokens", "classes" or "none"
    volatile: frozenset[str] = frozenset()  # modules whose output is changed in place later on


def discover(model: nn.Module, name: str = "this model", inputs: dict | None = None) -> Anatomy:
    """The anatomy of a transformers model (or of any module that `inputs` can be passed to), from one traced call.

    A module that is no transformer, or takes inputs that cannot be made up, keeps its `module:` sites.
    """
    modules = frozenset(path for path, _ in model.named_modules() if path)
    implementation = getattr(getattr(model, "config", None), "_attn_implementation", None) or "none"
    try:
        seen = trace(model, trial_inputs(model) if inputs is None else inputs)
    except Exception as error:  # whatever a model says to inputs that are made up
        absent = {
            Site(kind): f"no anatomy was discovered ({_said(error)}); its modules are sites: module:PATH"
            for kind in KINDS
        }
        inventory = Inventory({}, {"": 0}, absent, modules, name)
        return Anatomy(name, implementation, {}, inventory, {"": ()}, {}, (), None, None, None, 0, "none")
    return _Discovery(model, name, seen, modules, implementation).anatomy()


def _said(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


class _Discovery:
    def __init__(self, model: nn.Module, name: str, seen: Trace, modules: frozenset[str], implementation: str):
        self.model, self.name, self.seen, self.modules = model, name, seen, modules
        self.implementation = implementation
        self.taps: dict[Site, Tap] = {}
        self.units: dict[Site, int] = {}
        self.absent: dict[Site, str] = {}
        self.cross: dict[Site, Recipe] = {}
        self.projected: set[Site] = set()

    def anatomy(self) -> Anatomy:
        chains = stacks(self.seen, self.model)
        layers: dict[str, tuple[Layer, ...]] = {}
        counts: dict[str, int] = {}
        main: list[Block] = []
        for chain in chains:
            stack = "" if chain is chains[-1] else _stack_name(chain, chains[-1])
            blocks = []
            for call in chain:
                key = stream_key(call)
                assert key is not None
                blocks.append(read_block(self.seen, call, *key, batch=_batch(call, key[0])))
            for index, block in enumerate(blocks):
                self._block_taps(stack, index, block)
            layers[stack] = tuple(_layer(block) for block in blocks)
            counts[stack] = len(blocks)
            main = blocks
        if not chains:
            why = "no chain of blocks was found: no list of modules is called one after the other on its own outputs"
            self.absent |= {Site(kind): why for kind in KINDS}
            layers, counts = {"": ()}, {"": 0}
        parts, embed_norm = self._ends_of_stream(main) if main else ((), None)
        final_norm, unembed = self._unembedding(main) if main else (None, None)
        d_model = main[0].x.shape[-1] if main else 0
        logits = getattr(self.seen.output, "logits", None)
        head = "none" if logits is None else "classes" if logits.ndim == 2 else "tokens"
        inventory = Inventory(self.units, counts, self.absent, self.modules, self.name, frozenset(self.projected))
        return Anatomy(
            self.name,
            self.implementation,
            self.taps,
            inventory,
            layers,
            self.cross,
            parts,
            embed_norm,
            final_norm,
            unembed,
            d_model,
            head,
            frozenset(c.path for c in self.seen.calls if any(side == "output" for side, _ in c.volatile)),
        )

    # ── blocks ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _tap(self, site: Site, call: Call, port: Port, key=None, views: tuple = (), units: int = 0, block: str = ""):
        self.taps[site] = Tap(site, call.path, port, key, views, block, (port, key) in call.volatile)
        self.units[site] = units

    def _block_taps(self, stack: str, index: int, block: Block) -> None:
        def at(kind: str) -> Site:
            return Site(kind, index, stack=stack)

        path = block.call.path
        self._tap(at("resid_pre"), block.call, "input", block.into)
        self._tap(at("resid_post"), block.call, "output", block.out)
        self._sublayer_taps(at, block, block.attention, "")
        if block.cross is not None:
            self._sublayer_taps(at, block, block.cross, "cross_")
        elif stack == "":
            self._missing(at, "cross_q", "this block attends to no second sequence")
        if block.mixer_term is not None:
            self._contribution(at("attn_out"), block.mixer_term, path)
        self._norm_tap(at("ln1_scale"), block.norm1, block, "no norm reads the stream before attention")
        self._norm_tap(at("ln2_scale"), block.norm2, block, "no norm reads the stream before the MLP")
        self._mid_tap(at("resid_mid"), block)
        self._mlp_taps(at, block)

    def _missing(self, at, kind: str, why: str) -> None:
        self.absent[at(kind)] = why

    def _contribution(self, site: Site, term: Term, block: str) -> None:
        views: tuple[View, ...] = (Rows(),) if term.factor == 1.0 else (Rows(), Scaled(term.factor))
        self._tap(site, term.call, "output", term.key, views, block=block)

    def _sublayer_taps(self, at, block: Block, sub: Sublayer | None, prefix: str) -> None:
        kinds = ("attn_in", "q", "k", "v", "scores", "pattern", "z", "head_out", "attn_out")
        if sub is None:
            for kind in kinds:
                self._missing(at, kind, block.why.get("attention", "this block has no attention"))
            return
        path = block.call.path
        for part, units in (
            ("q", "heads"),
            ("k", "kv_heads"),
            ("v", "kv_heads"),
            ("scores", "heads"),
            ("pattern", "heads"),
        ):
            self._tap(at(prefix + part), sub.core, "attention", part, units=getattr(sub.recipe, units))
            if prefix:
                self.cross[at(prefix + part)] = sub.recipe
        self.projected |= {at(prefix + part) for part in sub.projected}
        if sub.reads is not None and not prefix:
            self._tap(at("attn_in"), sub.holder, "input", sub.reads, (Rows(),), block=path)
        elif not prefix:
            self._missing(at, "attn_in", "no argument of the attention module is the normed stream")
        if sub.out is not None:
            key = next(iter(sub.out.inputs))
            heads = sub.recipe.heads
            self._tap(at(prefix + "z"), sub.out, "input", key, (Rows(), Heads(heads)), heads, path)
            if not prefix:
                self._tap(at("head_out"), sub.out, "output", None, (Rows(), HeadOut(heads)), heads, path)
        else:
            self._missing(at, prefix + "z", "attention's output enters no projection")
            self._missing(at, prefix + "head_out", "attention's output enters no projection")
        if sub.term is not None:
            self._contribution(at(prefix + "attn_out"), sub.term, path)
        else:
            self._missing(
                at, prefix + "attn_out", block.why.get("sum", "attention's output was not found in the stream")
            )

    def _norm_tap(self, site: Site, norm: Call | None, block: Block, why: str) -> None:
        form = None if norm is None else norm_form(norm)
        if norm is None:
            self.absent[site] = why + (" (norms come after the sums here)" if block.post_norm else "")
        elif form is None:
            self.absent[site] = f"{type(norm.module).__name__} is neither a layer norm nor an RMS norm"
        else:
            self._tap(site, norm, "output", None, (NormScale(*form),), block=block.call.path)

    def _mid_tap(self, site: Site, block: Block) -> None:
        if not block.sequential:
            both = block.mlp_term is not None and (block.attention is not None or block.mixer_term is not None)
            why = "attention and MLP read the same stream in parallel" if both else "this block has one sublayer"
            self.absent[site] = block.why.get("sum", why)
        elif block.mid is not None:
            self._tap(site, block.mid.call, "output", block.mid.key, (Rows(),), block=block.call.path)
        else:
            term = block.mixer_term or (block.attention.term if block.attention else None)
            if term is None:
                self.absent[site] = "attention's output was not found in the stream"
                return
            self._tap(site, term.call, "output", term.key, (Rows(), PlusResidual(term.factor)), block=block.call.path)

    def _mlp_taps(self, at, block: Block) -> None:
        path, mlp = block.call.path, block.mlp
        why = block.why.get("mlp", block.why.get("sum", "this block has no MLP"))
        if block.mlp_term is not None:
            self._contribution(at("mlp_out"), block.mlp_term, path)
        else:
            self._missing(at, "mlp_out", why)
        experts = block.experts
        if experts is None or experts.router is None:
            self._missing(at, "router", block.why.get("experts", "no module was found that chooses the experts"))
        elif not any(experts.count in p.shape for p in experts.router.module.parameters()):
            self._missing(at, "router", f"{type(experts.router.module).__name__} chooses among more than the experts")
        else:
            self._tap(at("router"), experts.router, "router", None, units=experts.count, block=path)
        for kind in ("expert_index", "expert_weight", "expert_post"):
            if experts is None or experts.why:
                self._missing(at, kind, block.why["experts"] if experts is None else experts.why)
                continue
            port: Port = "experts" if kind == "expert_post" else "routing"
            units = experts.count if kind == "expert_weight" else experts.slots
            self._tap(at(kind), experts.call, port, units=units, block=path)
        holds = block.experts or mlp
        if holds is not None and holds.reads is not None:
            self._tap(at("mlp_in"), holds.holder, "input", holds.reads, (Rows(),), block=path)
        else:
            self._missing(at, "mlp_in", why if holds is None else "no argument of the MLP is the normed stream")
        if mlp is None:
            for kind in ("mlp_gate", "mlp_pre", "mlp_post"):
                self._missing(at, kind, why)
            return
        hidden = next(iter(mlp.down.inputs.values())).shape[-1]
        parts = {"mlp_pre": (mlp.up, mlp.fused and mlp.fused[1]), "mlp_gate": (mlp.gate, None)}
        if mlp.fused is not None:
            parts["mlp_gate"] = (mlp.up, mlp.fused[0])
        for kind, (call, cut) in parts.items():
            if call is None:
                self._missing(at, kind, "this MLP has no gate: mlp_post = act(mlp_pre)")
                continue
            views = (Rows(),) if cut is None else (Rows(), Part(cut.start, cut.stop))
            self._tap(at(kind), call, "output", None, views, hidden, path)
        self._tap(at("mlp_post"), mlp.down, "input", next(iter(mlp.down.inputs)), (Rows(),), hidden, path)

    # ── the two ends of the stream ────────────────────────────────────────────────────────────────────────────────

    def _ends_of_stream(self, main: list[Block]) -> tuple[tuple[str, ...], str | None]:
        x0 = main[0].x
        before = [c for c in self.seen.calls if 0 <= c.end < main[0].call.start]
        norm = next((c for c in before if is_norm(c) and same(c.outputs[None], x0)), None)
        target = x0 if norm is None else next(iter(norm.inputs.values()))
        candidates = [
            (c, k)
            for c in sorted(before, key=lambda c: c.end)
            for k, t in c.outputs.items()
            if t.shape[-1] == x0.shape[-1] and t.is_floating_point() and (c is not norm) and _broadcasts(t, x0)
        ]
        leaves = [(c, k) for c, k in candidates if next(c.module.children(), None) is None]
        weighted = [(c, k) for c, k in leaves if next(c.module.parameters(), None) is not None]
        terms = solve(target.reshape(x0.shape), weighted) or solve(target.reshape(x0.shape), leaves) or []
        table = getattr(self.model, "get_input_embeddings", lambda: None)()
        token = next((t for t in terms if t.call.module is table), None)
        token = token or next((t for t in terms if _embeds(t.call) and not _is_position(t.call)), None)
        if token is None:
            self.absent[Site("embed")] = "the stream does not begin with a sum of embeddings of tokens: see resid_pre.0"
        elif len(self.seen.of(token.call.path)) > 1:
            self.absent[Site("embed")] = f"{token.call.path} embeds two sequences: see resid_pre.0 of each stack"
        else:
            views: tuple[View, ...] = () if token.factor == 1.0 else (Scaled(token.factor),)
            self._tap(Site("embed"), token.call, "output", None, views)
        position = next((t for t in terms if t is not token and _is_position(t.call)), None)
        if position is not None:
            self._tap(Site("pos_embed"), position.call, "output", position.key, (EachPrompt(),))
        else:
            why = "no position embedding is added to the stream (rotary, relative or none)"
            self.absent[Site("pos_embed")] = why if token is not None else self.absent[Site("embed")]
        return tuple(t.call.path for t in terms), None if norm is None else norm.path

    def _unembedding(self, main: list[Block]) -> tuple[str | None, str | None]:
        last = main[-1].call.outputs[main[-1].out]
        after = [c for c in self.seen.calls if c.start > main[-1].call.end]
        norms = [c for c in after if is_norm(c) and c.outputs[None].shape[-1] == last.shape[-1]]
        norm = next((c for c in norms if same(next(iter(c.inputs.values())), last)), None)
        if norm is None:
            why = "no norm reads the last residual stream" + (" (each block ends in one)" if main[-1].post_norm else "")
            self.absent[Site("final_norm")] = self.absent[Site("final_norm_scale")] = why
        else:
            self._tap(Site("final_norm"), norm, "output", None)
            form = norm_form(norm)
            if form is None:
                self.absent[Site("final_norm_scale")] = f"{norm.path} is neither a layer norm nor an RMS norm"
            else:
                self._tap(Site("final_norm_scale"), norm, "output", None, (NormScale(*form),))
        logits = getattr(self.seen.output, "logits", None)
        if logits is None:
            self.absent[Site("logits")] = "this model has no head: its output holds no logits"
            return None if norm is None else norm.path, None
        top = next(c for c in self.seen.calls if c.path == "")
        self._tap(Site("logits"), top, "output", "logits")
        heads = [c for c in after if is_linear(c.module) and c.outputs[None].shape[-1] == logits.shape[-1]]
        return None if norm is None else norm.path, heads[-1].path if heads else None


def _broadcasts(t: Tensor, x: Tensor) -> bool:
    return t.shape == x.shape or (t.numel() * x.shape[0] == x.numel() and t.shape[-2:] == x.shape[-2:])


def _embeds(call: Call) -> bool:
    """Looks rows up in a table, by integers."""
    return isinstance(call.module, nn.Embedding) and not any(t.is_floating_point() for t in call.inputs.values())


def _is_position(call: Call) -> bool:
    return "pos" in call.path.lower() or call.path.endswith("wpe")


def _batch(block: Call, key: int | str) -> int:
    return block.inputs[key].shape[0]


def _stack_name(chain: list[Call], main: list[Call]) -> str:
    """The first part of a stack's path that the main stack's path lacks: "encoder", "vision_tower"."""
    others = main[0].path.split(".")
    return next((p for p in chain[0].path.split(".") if p not in others and not p.isdigit()), chain[0].path)


def _layer(block: Block) -> Layer:
    attention, mlp = block.attention, block.mlp
    return Layer(
        path=block.call.path,
        into=block.into,
        out=block.out,
        recipe=attention.recipe if attention else None,
        qkv=tuple(c.path for c in attention.inputs) if attention else (),
        out_proj=attention.out.path if attention and attention.out else None,
        up=mlp.up.path if mlp else None,
        gate=mlp.gate.path if mlp and mlp.gate else None,
        down=mlp.down.path if mlp else None,
        fused_mlp=mlp.fused if mlp else None,
        norm1=block.norm1.path if block.norm1 else None,
        norm2=block.norm2.path if block.norm2 else None,
        sequential=block.sequential,
        factors=(
            attention.term.factor if attention and attention.term else 1.0,
            block.mlp_term.factor if block.mlp_term else 1.0,
        ),
        post_norm=block.post_norm,
        closing=block.closing.path if block.closing else None,
    )


__all__ = ["Anatomy", "Layer", "Port", "Tap", "discover", "evaluation", "trial_inputs"]
