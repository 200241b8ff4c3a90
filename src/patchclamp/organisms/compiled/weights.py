"""Writes the weights of a compiled program: `write(program, layout)` gives the network and all its edges.

Everything is written in coordinates first (see `layout`): a `Port` is what one reader takes from the residual stream,
a matrix [coordinate, out] and a bias, and remembers which variables it reads. `Hull.head` and `Hull.mlp` then turn
coordinates into the dimensions of the stream.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from patchclamp.organisms.compiled.language import Aggregate, Both, Constant, Expression, Linear, Map, Share
from patchclamp.organisms.compiled.layout import Layout
from patchclamp.organisms.compiled.packing import is_equality
from patchclamp.organisms.compiled.program import BOS, Program
from patchclamp.sites import Site

NATS = 52.0  # between the scores of a match, of rest and of no match: exp(-52) is lost beside 1, its square is 0
MARGIN = 10.0  # by how many nats the output beats every other token
STEEP = 4 / 3  # neurons for one value are 1 there and 0 from 1 / STEEP of the way to the next; steeper rounds worse
EPS, GAIN = 1e8, 1e4  # of layer norms that are the identity: x / sqrt(var + 1e8) * 1e4

Edges = set[tuple[Site, Site]]


@dataclass
class Port:
    """What a reader takes from the stream: coordinates times `weight`, and `bias`; `senders` are whom it reads."""

    weight: Float[Tensor, "coordinate out"]
    bias: Float[Tensor, "out"]
    senders: set[Site] = field(default_factory=set)


@dataclass
class Writer:
    """The program and its layout, with what is known of every variable at BOS, where it is always the same."""

    program: Program
    layout: Layout
    at_bos: dict[Expression, Any]

    def port(self, out: int) -> Port:
        """A port that takes nothing yet."""
        zeros = torch.zeros(self.layout.width, out, dtype=torch.double)
        return Port(zeros, torch.zeros(out, dtype=torch.double))

    def take(self, port: Port, source: Expression, table: Float[Tensor, "value out"]) -> None:
        """Let `port` have row v of `table` where `source` has its value number v (of a number, that times the row)."""
        if isinstance(source, Constant):
            port.bias += table[0]
            return
        place = self.layout.places[source]
        found = torch.linalg.lstsq(place.code, table).solution
        assert torch.allclose(place.code @ found, table, atol=1e-9), f"{self.program.names[source]} cannot be packed"
        port.weight[place.dims] += found
        port.senders.add(place.site)

    def skip_bos(self, port: Port, source: Expression, table: Float[Tensor, "value out"]) -> None:
        """Let `port` have nothing of `source` at BOS."""
        value = self.at_bos[source]
        if not value and (source.numerical or value is None):
            return
        row = float(value) * table[0] if source.numerical else table[self.program.domain(source).index(value)]
        port.weight[self.layout.bos] -= row
        port.senders.add(Site("embed"))


def write(program: Program, layout: Layout) -> tuple[GPT2LMHeadModel, Edges]:
    """The network, and who reads whom: all pairs of a component and a reader that has a weight on what it writes."""
    start = program.trace(program.tokens[:1])  # what is at BOS depends on nothing behind it
    at_bos = {expression: start[name][0] for name, expression in program.variables.items()}
    at_bos |= {e: e.value for v in program.variables.values() for e in v.inputs if isinstance(e, Constant)}
    writer = Writer(program, layout, at_bos)
    mlps: dict[int, list[Neurons]] = defaultdict(list)
    heads, edges = [], set()
    for expression in program.variables.values():
        place = layout.places[expression]
        if isinstance(expression, Aggregate | Share):
            heads.append((place.site, _head(writer, expression)))
        elif isinstance(expression, Map | Both | Linear):
            assert place.site.layer is not None
            mlps[place.site.layer].append(_neurons(writer, expression))
    hf = _blank(program, layout, max((sum(map(len, some)) for some in mlps.values()), default=1))
    body: Any = hf.transformer
    with torch.no_grad():
        _embeddings(body, writer)
        for site, head in heads:
            _put_head(body.h[site.layer].attn, layout, site.unit, head)
            for kind, port in zip("qkv", (head.q, head.k, head.v), strict=True):
                reader = Site(kind, site.layer, site.unit)
                edges |= {(sender, reader) for sender in port.senders}
        for layer, some in mlps.items():
            _put_mlp(body.h[layer].mlp, layout, some)
            edges |= {(sender, Site("mlp_in", layer)) for one in some for sender in one.read.senders}
        edges |= _unembedding(hf, writer)
    return hf, edges


# ── heads ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Head:
    """Three ports, and where in the coordinates the values are written."""

    q: Port
    k: Port
    v: Port
    out: Float[Tensor, "out coordinate"]


def _head(writer: Writer, expression: Aggregate | Share) -> Head:
    """Scores: a match `top` and more, rest `NATS` below the least match, no match `NATS` below rest.

    What a key is worth beyond its match (its place in the selector's order) and the rest at BOS share one dimension,
    in which every query is 1.
    """
    layout, selector = writer.layout, expression.selector
    key_table, query_table, likeness = _comparison(writer, selector)
    ranks, places = _ranks(writer, selector)
    top = NATS * (places + 1) / (1 - likeness)
    size = key_table.shape[1]
    q, k = writer.port(size + 1), writer.port(size + 1)
    writer.take(q, selector.queries, top * _padded(query_table, 1))
    q.bias[size] = 1.0
    for source, table in [(selector.keys, _padded(key_table, 1)), *((by, _last(rank, size)) for by, rank in ranks)]:
        writer.take(k, source, table)
        writer.skip_bos(k, source, table)
    share = isinstance(expression, Share)
    k.weight[layout.bos, size] += top if share else NATS * places + likeness * top
    k.senders.add(Site("embed"))
    target = layout.places[expression]
    v = writer.port(target.code.shape[1])
    if share:
        v.weight[layout.bos] = target.code[0]
        v.senders.add(Site("embed"))
    else:
        writer.take(v, expression.values, target.code)
        writer.skip_bos(v, expression.values, target.code)
    out = torch.zeros(v.weight.shape[1], layout.width, dtype=torch.double)
    out[:, target.dims] = torch.eye(len(out), dtype=torch.double)
    return Head(q, k, v, out)


def _comparison(writer: Writer, selector: Any) -> tuple[Tensor, Tensor, float]:
    """A vector for each key and each query: their dot product is 1 for a match, and otherwise at most the third."""
    program, places = writer.program, writer.layout.places
    keys, queries = program.domain(selector.keys), program.domain(selector.queries)
    packed = next(
        (
            places[side]
            for side in (selector.keys, selector.queries)
            if side in places and _is_packed(places[side].code)
        ),
        None,
    )
    if packed is not None and is_equality(program, selector):
        vectors = {}
        for side, values in ((selector.keys, keys), (selector.queries, queries)):
            if side in places:
                vectors |= dict(zip(values, places[side].code, strict=True))
        zero = torch.zeros(packed.code.shape[1], dtype=torch.double)
        key_table, query_table = (torch.stack([vectors.get(x, zero) for x in some]) for some in (keys, queries))
        return key_table, query_table, packed.overlap
    table = program.table(selector)
    holds = torch.tensor([[float(table[key, query]) for query in queries] for key in keys], dtype=torch.double)
    if len(keys) <= len(queries):
        return torch.eye(len(keys), dtype=torch.double), holds.T.contiguous(), 0.0
    return holds, torch.eye(len(queries), dtype=torch.double), 0.0


def _ranks(writer: Writer, selector: Any) -> tuple[list[tuple[Expression, Tensor]], int]:
    """What each value of each expression in the order adds to the score, and the number of places in the order."""
    places, found = 1, []
    for by, sign in reversed(selector.order):
        rank = writer.program.rank(by)
        highest = len(rank) - 1
        worth = [places * (rank[value] if sign > 0 else highest - rank[value]) for value in writer.program.domain(by)]
        found.append((by, NATS * torch.tensor(worth, dtype=torch.double)))
        places *= len(rank)
    return found, places


def _put_head(attention: Any, layout: Layout, unit: int, head: Head) -> None:
    size, d_model = layout.d_head, layout.heads * layout.d_head
    for index, (port, factor) in enumerate(((head.q, size**0.5), (head.k, 1.0), (head.v, 1.0))):
        start = index * d_model + unit * size  # c_attn is [d_model, q | k | v], and scores are divided by sqrt(d_head)
        columns = slice(start, start + port.weight.shape[1])
        attention.c_attn.weight[:, columns] = (layout.read @ port.weight * factor).float()
        attention.c_attn.bias[columns] = (port.bias * factor).float()
    rows = slice(unit * size, unit * size + len(head.out))
    attention.c_proj.weight[rows] = (head.out @ layout.write).float()


# ── MLPs ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Neurons:
    """Some neurons, what each adds to the coordinates when it is 1, and what is added in any case."""

    read: Port
    out: Float[Tensor, "neuron coordinate"]
    always: Float[Tensor, "coordinate"]

    def __len__(self) -> int:
        return len(self.out)


def _neurons(writer: Writer, expression: Map | Both | Linear) -> Neurons:
    match expression:
        case Linear():
            return _sum(writer, expression)
        case Both():
            return _pairs(writer, expression)
        case Map(source=source):
            return _steps(writer, expression) if source.numerical else _values(writer, expression)


def _values(writer: Writer, expression: Map) -> Neurons:
    """One neuron for each value whose result is another than where there is none: relu((x·v - threshold) gain)."""
    program, source = writer.program, expression.source
    results = _written(writer, expression, [program._apply(expression, x) for x in (*program.domain(source), None)])
    values, always = results[:-1], results[-1]
    if isinstance(source, Constant):
        return Neurons(writer.port(0), torch.zeros(0, writer.layout.width, dtype=torch.double), values[0])
    place = writer.layout.places[source]
    changes = (values != always).any(1).nonzero()[:, 0]
    gain = STEEP / (1 - place.overlap)  # 1 at x = v
    read = writer.port(len(changes))
    read.weight[place.dims] = gain * place.code[changes].T
    read.bias += 1 - gain
    read.senders.add(place.site)
    return Neurons(read, values[changes] - always, always)


def _pairs(writer: Writer, expression: Both) -> Neurons:
    """One neuron for each pair of values that has a result: it needs both."""
    program, left, right = writer.program, expression.left, expression.right
    pairs = [(a, b) for a in range(len(program.domain(left))) for b in range(len(program.domain(right)))]
    results = [expression.function(program.domain(left)[a], program.domain(right)[b]) for a, b in pairs]
    pairs = [pair for pair, result in zip(pairs, results, strict=True) if result is not None]
    out = _written(writer, expression, [result for result in results if result is not None])
    places = writer.layout.places[left], writer.layout.places[right]
    gain = STEEP / (1 - max(place.overlap for place in places))
    read = writer.port(len(pairs))
    for place, which in zip(places, zip(*pairs, strict=True), strict=True):
        read.weight[place.dims] += gain * place.code[list(which)].T
        read.senders.add(place.site)
    read.bias += 1 - 2 * gain
    return Neurons(read, out, torch.zeros(writer.layout.width, dtype=torch.double))


def _steps(writer: Writer, expression: Map) -> Neurons:
    """Where the result changes between two neighbouring numbers, two neurons make a step half as wide as the gap.

    All steps are taken downwards or all upwards, whichever makes the neurons less active: rounding grows with that.
    """
    program, source = writer.program, expression.source
    numbers = program.domain(source)
    results = _written(writer, expression, [program._apply(expression, x) for x in numbers])
    if isinstance(source, Constant):
        return Neurons(writer.port(0), torch.zeros(0, writer.layout.width, dtype=torch.double), results[0])
    changes = [i for i in range(1, len(numbers)) if bool((results[i] != results[i - 1]).any())]
    gaps = [float(numbers[i] - numbers[i - 1]) for i in changes]
    down = sum(float(numbers[i] - numbers[0]) / gap for i, gap in zip(changes, gaps, strict=True)) < sum(
        float(numbers[-1] - numbers[i]) / gap for i, gap in zip(changes, gaps, strict=True)
    )
    sign = -1.0 if down else 1.0
    place = writer.layout.places[source]
    read = writer.port(2 * len(changes))
    read.senders.add(place.site)
    out = torch.zeros(2 * len(changes), writer.layout.width, dtype=torch.double)
    for step, (i, gap) in enumerate(zip(changes, gaps, strict=True)):
        near, far = (numbers[i], numbers[i - 1]) if down else (numbers[i - 1], numbers[i])
        for neuron, share, jump in ((2 * step, 0.25, 1.0), (2 * step + 1, 0.75, -1.0)):
            knot = float(near) + share * float(far - near)
            read.weight[place.dims, neuron] = sign * 2 / gap / place.code[0, 0]
            read.bias[neuron] = -sign * 2 / gap * knot
            out[neuron] = jump * sign * (results[i] - results[i - 1])
    return Neurons(read, out, results[-1] if down else results[0])


def _sum(writer: Writer, expression: Linear) -> Neurons:
    """x = relu(x) - relu(-x)."""
    place = writer.layout.places[expression]
    read = writer.port(2)
    signs = torch.tensor([[1.0, -1.0]], dtype=torch.double)
    for term, factor in expression.terms:
        writer.take(read, term, float(factor) * signs)
    read.bias += float(expression.constant) * signs[0]
    out = torch.zeros(2, writer.layout.width, dtype=torch.double)
    out[:, place.dims] = signs.T * place.code[0]
    return Neurons(read, out, torch.zeros(writer.layout.width, dtype=torch.double))


def _written(writer: Writer, expression: Expression, results: list[Any]) -> Float[Tensor, "result coordinate"]:
    """What the home of `expression` writes for each of these values of it."""
    place, domain = writer.layout.places[expression], writer.program.domain(expression)
    out = torch.zeros(len(results), writer.layout.width, dtype=torch.double)
    for row, result in enumerate(results):
        if expression.numerical:
            out[row, place.dims] = float(result) * place.code[0]
        elif result is not None:
            out[row, place.dims] = place.code[domain.index(result)]
    return out


def _put_mlp(mlp: Any, layout: Layout, some: list[Neurons]) -> None:
    start = 0
    for neurons in some:
        columns = slice(start, start + len(neurons))
        mlp.c_fc.weight[:, columns] = (layout.read @ neurons.read.weight).float()
        mlp.c_fc.bias[columns] = neurons.read.bias.float()
        mlp.c_proj.weight[columns] = (neurons.out @ layout.write).float()
        start += len(neurons)
    mlp.c_proj.bias.copy_((torch.stack([neurons.always for neurons in some]).sum(0) @ layout.write).float())


# ── both ends ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _embeddings(body: Any, writer: Writer) -> None:
    layout = writer.layout
    rows = torch.zeros(len(body.wte.weight), layout.width, dtype=torch.double)
    rows[0, layout.bos] = 1.0
    for place in layout.places.values():
        if place.site == Site("embed"):
            rows[1 : 1 + len(place.code), place.dims] = place.code
        elif place.site == Site("pos_embed"):
            where = torch.zeros(1 + len(place.code), layout.width, dtype=torch.double)
            where[1:, place.dims] = place.code
            body.wpe.weight.copy_((where @ layout.write).float())
    body.wte.weight.copy_((rows @ layout.write).float())


def _unembedding(hf: Any, writer: Writer) -> Edges:
    program, layout = writer.program, writer.layout
    place = layout.places[program.output]
    columns = torch.zeros(layout.width, len(program.vocabulary), dtype=torch.double)
    for value, vector in zip(program.domain(program.output), place.code, strict=True):
        columns[place.dims, program.vocabulary.index(value)] = MARGIN / (1 - place.overlap) * vector
    hf.lm_head.weight.copy_((layout.read @ columns).T.float())
    return {(place.site, Site("logits"))}


def _blank(program: Program, layout: Layout, neurons: int) -> GPT2LMHeadModel:
    """A GPT-2 of zeros whose layer norms are the identity."""
    config = GPT2Config(
        vocab_size=len(program.vocabulary),
        n_positions=program.length + 1,
        n_embd=layout.heads * layout.d_head,
        n_layer=layout.layers,
        n_head=layout.heads,
        n_inner=neurons,
        activation_function="relu",
        layer_norm_epsilon=EPS,
        bos_token_id=program.vocabulary.index(BOS),
        eos_token_id=program.vocabulary.index(BOS),
        tie_word_embeddings=False,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
    )
    with torch.device("meta"):  # no initialisation: nothing is drawn from the global generator
        hf = GPT2LMHeadModel(config)
    hf = hf.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.zero_()
        for module in hf.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.fill_(GAIN)
    return hf.eval()


def _is_packed(code: Float[Tensor, "value d"]) -> bool:
    return code.shape[1] < len(code)


def _padded(table: Float[Tensor, "value d"], more: int) -> Float[Tensor, "value d_and_more"]:
    return torch.nn.functional.pad(table, (0, more))


def _last(column: Float[Tensor, "value"], size: int) -> Float[Tensor, "value size_and_one"]:
    """`column` as the last of otherwise empty columns."""
    return torch.nn.functional.pad(column[:, None], (size, 0))
