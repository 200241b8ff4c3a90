"""The parts of one transformer block, found in a trace: sublayers, norms, projections, attention recipes."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from patchclamp.anatomy.attention import Recipe, recipe
from patchclamp.anatomy.experts import unread
from patchclamp.anatomy.structure import Term, ancestor, is_linear, is_norm, same, solve, stream_tensors
from patchclamp.anatomy.trace import Call, Event, Trace


@dataclass
class Sublayer:
    """Attention: who computes it (`core`), who holds it (`holder`), its projections, and what it adds to the stream."""

    core: Call
    recipe: Recipe
    holder: Call
    inputs: list[Call]  # the projections that read the stream
    out: Call | None  # the out-projection
    term: Term | None = None
    reads: int | str | None = None  # the holder's argument that is the sublayer's input
    projected: tuple[str, ...] = ()  # "q", "k": whichever attention takes as its projection makes it


@dataclass
class Mlp:
    """A dense MLP: its projections by role, the module that holds them, and that module's input."""

    holder: Call
    up: Call
    gate: Call | None
    down: Call
    fused: tuple[slice, slice] | None = None  # (gate, up) within one projection's output
    reads: int | str | None = None


@dataclass
class Experts:
    """Experts with stacked weights: the module, its router, how many there are, how many a token has, the module around
    both and which argument of it is the stream; `why` the experts cannot be read, where they cannot.
    """

    call: Call
    router: Call | None
    count: int
    slots: int
    holder: Call
    reads: int | str | None
    why: str = ""


@dataclass
class Block:
    """What one block is made of; `why` gives reasons for what it lacks."""

    call: Call
    into: int | str
    out: int | str | None
    terms: list[Term] = field(default_factory=list)
    attention: Sublayer | None = None
    cross: Sublayer | None = None
    mlp: Mlp | None = None
    experts: Experts | None = None
    mlp_term: Term | None = None
    mixer_term: Term | None = None
    mid: Term | None = None  # a module that outputs resid_mid itself
    sequential: bool = False
    post_norm: bool = False
    closing: Call | None = None  # the norm that the block ends in, where norms come after the sums
    norm1: Call | None = None
    norm2: Call | None = None
    why: dict[str, str] = field(default_factory=dict)

    @property
    def x(self) -> Tensor:
        return self.call.inputs[self.into]


def read_block(trace: Trace, call: Call, into: int | str, out: int | str | None, batch: int) -> Block:
    """The anatomy of one block from the trace of a forward pass with noise."""
    block = Block(call, into, out)
    inner = trace.inside(call)
    norms = [c for c in inner if is_norm(c)]
    _find_attention(block, trace, inner, batch)
    _find_terms(block, inner, norms)
    _assign_terms(block, inner, norms)
    _find_norms(block, norms)
    _find_mlp(block, inner)
    return block


def _find_attention(block: Block, trace: Trace, inner: list[Call], batch: int) -> None:
    cores: dict[str, Call] = {}
    for event in trace.events:
        owner = next((c for c in inner if c.path == event.path and c.start < event.time < c.end), None)
        if owner is not None and event.kind in ("softmax", "sdpa"):
            cores.setdefault(owner.path, owner)
    for core in cores.values():
        events = [e for e in trace.events if core.start < e.time < core.end]
        length = block.x.shape[1] if block.x.ndim == 3 else None
        found = recipe(core.path, events, batch=batch, cross=False)
        if found is None:
            continue
        keys = next(e for e in events if e.kind in ("sdpa", "softmax"))
        n_keys = keys.operands[1].shape[-2] if keys.kind == "sdpa" else keys.operands[0].shape[-1] - found.sink
        is_cross = length is not None and n_keys != length
        time = keys.time
        width = found.heads * found.d_value
        before = [_input(c) for c in inner if is_linear(c.module) and c.start < time]
        outs = [c for c in inner if is_linear(c.module) and c.start > time and _input(c).shape[-1] == width]
        outs = [c for c in outs if not any(same(_input(c), t) for t in before)]  # a gate reads what queries are made of
        out = min(outs, key=lambda c: c.start, default=None)
        holder = core
        if out is not None and not out.within(core):
            path = ancestor([core.path, out.path])
            holder = next((c for c in inner if c.path == path), core)
        reads = [c for c in inner if is_linear(c.module) and c.within(holder) and c.start < time]
        if is_cross:
            found = Recipe(**{**found.__dict__, "cross": True})
        sublayer = Sublayer(core, found, holder, reads, out)
        sublayer.reads = _stream_input(holder, block.x)
        sublayer.projected = _projected(events, found, reads)
        if is_cross:
            block.cross = block.cross or sublayer
        else:
            block.attention = block.attention or sublayer
    if block.attention is None:
        block.why["attention"] = "this block computes no softmax attention (no softmax, no fused attention was called)"


def _projected(events: list[Event], found: Recipe, reads: list[Call]) -> tuple[str, ...]:
    """Which of queries and keys are, at the last position, a stretch of what a projection returned."""
    if found.fused:
        q, k = next(e for e in events if e.kind == "sdpa").operands[:2]
    else:
        q, k = [e for e in events if e.kind == "product"][found.product].operands
        k = k.transpose(-2, -1)
    rows = [call.outputs[None].reshape(-1, call.outputs[None].shape[-1])[-1] for call in reads if None in call.outputs]

    def made(x: Tensor) -> bool:
        last = x.reshape(-1, x.shape[-1])[-1]  # the last prompt's last head's last position
        return any(bool((row.unfold(0, len(last), 1) == last).all(1).any()) for row in rows if len(row) >= len(last))

    return tuple(part for part, x in (("q", q), ("k", k)) if made(x))


def _input(call: Call) -> Tensor:
    return next(iter(call.inputs.values()))


def _stream_input(call: Call, x: Tensor) -> int | str | None:
    return next((k for k, t in call.inputs.items() if t.numel() == x.numel() and t.shape[-1] == x.shape[-1]), None)


def _find_terms(block: Block, inner: list[Call], norms: list[Call]) -> None:
    """Write the block's output as its input plus the outputs of its sublayers."""
    y = block.call.outputs[block.out]
    candidates = stream_tensors(inner, y)
    closing = next((n for n in norms if same(n.outputs[None], y)), None)
    if closing is None:
        found = solve(y - block.x, candidates)
        if found is not None:
            block.terms = sorted(found, key=lambda term: term.call.end)
            return
    else:  # norms after the sum: y = norm(mid + mlp), mid = norm(x + attention)
        block.post_norm, block.closing = True, closing
        target = _input(closing).reshape(block.x.shape)
        for earlier in norms:
            if earlier is closing or earlier.end > closing.start:
                continue
            rest = solve(target - earlier.outputs[None].reshape(target.shape), candidates, most=1)
            first = solve(_input(earlier).reshape(target.shape) - block.x, candidates, most=2)
            if rest and first:
                block.terms = sorted(first, key=lambda term: term.call.end) + rest
                block.mid = Term(earlier, None, 1.0)
                return
    block.why["sum"] = "the block's output is not its input plus a weighted sum of what its modules return"


def _assign_terms(block: Block, inner: list[Call], norms: list[Call]) -> None:
    """Which summand is attention's, which the MLP's: the first that is ready after attention has been computed."""
    left = list(block.terms)
    for sublayer in (block.attention, block.cross):
        if sublayer is None:
            continue
        made = sublayer.out.end if sublayer.out is not None else sublayer.core.end
        sublayer.term = next((t for t in left if t.call.end >= made), None)
        if sublayer.term is not None:
            left.remove(sublayer.term)
    if block.attention is None and left and (len(left) == 2 or not _named_mlp(left[0].call.path)):
        block.mixer_term = left.pop(0)  # state-space layers, linear attention, convolutions
    if left:  # Gemma 4 adds embeddings of each layer's own behind the MLP
        block.mlp_term = ([term for term in left if _named_mlp(term.call.path)] or left)[-1]
    elif block.terms:
        block.why["mlp"] = "nothing but attention is added to the stream in this block"
    before = [s.term for s in (block.attention, block.cross) if s is not None and s.term is not None]
    if block.mixer_term is not None:
        before.append(block.mixer_term)
    if block.mlp_term is None or not before:
        return
    if block.mid is not None:
        block.sequential = True
        return
    mid = block.x.clone()
    for term in before:
        mid = mid + term.factor * term.tensor.reshape(mid.shape)
    close = [c for c in inner for t in c.inputs.values() if _close(t, mid)]
    block.sequential = bool(close)
    for c in inner:
        if block.sequential and c not in norms:
            key = next((k for k, t in c.outputs.items() if _close(t, mid)), -1)
            if key != -1:
                block.mid = Term(c, key, 1.0)  # the outermost module that returns it


def _named_mlp(path: str) -> bool:
    return any(name in path.lower() for name in ("mlp", "ffn", "feed_forward", "feedforward", "intermediate"))


def _close(a: Tensor, b: Tensor) -> bool:
    if a.numel() != b.numel() or not a.is_floating_point() or a.shape[-1] != b.shape[-1]:
        return False
    gap = (a.reshape(-1).float() - b.reshape(-1).float()).abs().max()
    return bool(gap <= 2e-2 * b.float().abs().max() if b.dtype in _HALF else gap <= 1e-4 * b.abs().max())


_HALF = (torch.float16, torch.bfloat16)


def _find_norms(block: Block, norms: list[Call]) -> None:
    attention = block.attention
    if block.post_norm:
        return
    for norm in norms:
        if attention is not None and norm.within(attention.holder):
            continue  # query and key norms
        if block.norm1 is None and _close(_input(norm), block.x):
            block.norm1 = norm
        elif norm is not block.norm1 and block.mlp_term is not None:
            reads_mid = block.sequential and not _close(_input(norm), block.x)
            if (reads_mid or not block.sequential) and _feeds_mlp(block, norm):
                block.norm2 = norm


def _feeds_mlp(block: Block, norm: Call) -> bool:
    """A norm before the MLP that takes the stream itself, not a sublayer's output (which is a post-norm)."""
    if block.mlp_term is None or norm.end > block.mlp_term.call.end or norm is block.mlp_term.call:
        return False
    return not any(norm is term.call for term in block.terms)


def _find_mlp(block: Block, inner: list[Call]) -> None:
    taken: list[Call] = []
    for sublayer in (block.attention, block.cross):
        if sublayer is not None:
            taken += [*sublayer.inputs, *([sublayer.out] if sublayer.out is not None else [])]
    experts = next((c for c in inner if _expert_count(c.module) and c.outputs), None)
    if experts is not None:
        router = _router(experts, inner)
        path = ancestor([experts.path, *([router.path] if router else [])])
        holder = next((c for c in inner if c.path == path), experts)
        block.experts = _experts(experts, router, holder, _stream_input(holder, block.x))
    else:
        other = next((c for c in inner if type(c.module).__name__.endswith(("Expert", "Experts"))), None)
        block.why["experts"] = (
            "the MLP is dense: no experts"
            if other is None
            else f"{type(other.module).__name__} does not hold its experts as stacked weights, each chosen by its index"
        )
    if block.mlp_term is None:
        return
    width = block.x.shape[-1]
    linears = [
        c
        for c in inner
        if is_linear(c.module)
        and c.outputs.get(None) is not None  # Llama 4's router is a linear layer that returns two tensors
        and c not in taken
        and not (block.mixer_term and (c is block.mixer_term.call or c.within(block.mixer_term.call)))
        and c.outputs[None].numel() * width == block.x.numel() * c.outputs[None].shape[-1]  # every token's, not some
        and not any(c.within(t) for t in inner if is_linear(t.module) and t is not c)
    ]
    downs = [c for c in linears if c.outputs[None].shape[-1] == width]
    downs = [c for c in downs if c.end <= block.mlp_term.call.end]
    for down in sorted(downs, key=lambda c: -c.end):
        hidden = _input(down).shape[-1]
        ups = [c for c in linears if c.end < down.start and c.outputs[None].shape[-1] in (hidden, 2 * hidden)]
        ups = [c for c in ups if _input(c).shape[-1] == width]
        if not ups:
            continue
        block.mlp = _mlp(block, inner, ups[-2:], down, hidden)
        return
    block.why.setdefault(
        "mlp",
        "its neurons are inside the experts: see expert_post"
        if block.experts
        else "no pair of up- and down-projection",
    )


def _mlp(block: Block, inner: list[Call], ups: list[Call], down: Call, hidden: int) -> Mlp:
    path = ancestor([down.path, *(u.path for u in ups)])
    holder = next((c for c in inner if c.path == path), None)
    activations = [
        c for c in inner if next(c.module.parameters(), None) is None and ups[0].start < c.start < down.start
    ]
    acted = [t for c in activations for t in c.inputs.values()]
    fused = None
    gate = None
    up = ups[-1]
    if up.outputs[None].shape[-1] == 2 * hidden and hidden != 0:
        halves = slice(0, hidden), slice(hidden, 2 * hidden)
        first = up.outputs[None][..., halves[0]]
        second = up.outputs[None][..., halves[1]]
        if any(same(second, t) for t in acted) and not any(same(first, t) for t in acted):
            halves = halves[1], halves[0]
        fused = halves
    elif len(ups) == 2 and same(_input(ups[0]), _input(ups[1])):
        by_activation = [u for u in ups if any(same(u.outputs[None], t) for t in acted)]
        by_name = [u for u in ups if "gate" in u.path.rsplit(".", 1)[-1]]
        gate = (by_activation or by_name or [ups[0]])[0]
        up = next(u for u in ups if u is not gate)
    if holder is None:
        holder = gate or up
    return Mlp(holder, up, gate, down, fused, _stream_input(holder, block.x))


def _experts(call: Call, router: Call | None, holder: Call, reads: int | str | None) -> Experts:
    count = _expert_count(call.module) or 0
    why = unread(call.module, tuple(call.inputs.values()), call.outputs[None] if call.raw is None else call.raw)
    slots = 0 if why else next(t.shape[-1] for t in call.inputs.values() if not t.is_floating_point())
    return Experts(call, router, count, slots, holder, reads, why or "")


def _expert_count(module: nn.Module) -> int | None:
    """How many experts a module with stacked (three-dimensional) weights holds."""
    down = getattr(module, "down_proj", None)
    return down.shape[0] if isinstance(down, Tensor) and down.ndim == 3 else None


def _router(experts: Call, inner: list[Call]) -> Call | None:
    """The module that returns the expert indices which the experts are called with."""
    chosen = [t for t in experts.inputs.values() if not t.is_floating_point()]
    for call in inner:
        if call.end < experts.start and any(same(o, t) for o in call.outputs.values() for t in chosen):
            return call
    return next((c for c in inner if c.end < experts.start and "router" in type(c.module).__name__.lower()), None)
