"""Self-attention as a parametric endofunctor (O'Neill 2025), and what it leaves in practice: exact path expansion.

The linear parts of attention are parametric linear maps; layers compose, and a stack of them is the sum over its
paths, prod_l (1 + sum_h A_h (x) W_OV,h), once attention patterns and the scales of norms are held fixed. Softmax is
outside the theory: recomputed, it breaks the identity. The theory says nothing about what is learnt; that few paths
then carry a behaviour is a finding of its own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

import patchclamp as pc
from patchclamp.circuits import Paths, expand, expand_score
from patchclamp.circuits.parametric import Map, compose, identity, linear, paths, residual, tensor
from patchclamp.model import Model
from patchclamp.studies.behaviour import answers, task_of
from patchclamp.studies.lab import Lab
from patchclamp.studies.measured import Measured
from patchclamp.studies.study import Study

study = Study(
    name="para-attention",
    paper="Self-Attention as a Parametric Endofunctor: A Categorical Framework for Transformer Architectures "
    "(arXiv:2501.02931)",
    seed="004_13a88e549a94230e.txt",
    organism="compiled:hand-induction",
)

POSITIONS, WIDTH, LAYERS, HEADS = 5, 6, 2, 2


# ── the algebra ───────────────────────────────────────────────────────────────────────────────────────────────────────


@study.identity("composing and tensoring parametric maps is associative, unital and interchangeable", tolerance=1e-10)
def laws(lab: Lab) -> Measured:
    """(f g) h = f (g h); 1 f = f = f 1; (f x g)(h x k) = fh x gk."""
    f, g, h, k = linear("f", 4, 3), linear("g", 5, 4), linear("h", 2, 5), linear("k", 3, 2)
    weights = {m.name: _draw(lab, *m.target, *m.source) for m in (f, g, h, k)}
    pairs = [
        (compose(compose(f, g), h), compose(f, compose(g, h))),
        (compose(identity(3), f), f),
        (compose(f, identity(4)), f),
        (compose(tensor(f, h), tensor(g, k)), tensor(compose(f, g), compose(h, k))),
    ]
    images = [[m(x, weights).flatten() for m in pair] for pair in pairs for x in [_draw(lab, *pair[0].source)]]
    left, right = (torch.cat(side) for side in zip(*images, strict=True))
    return Measured.gap(left, right)


@study.identity(
    "the parameter space of a composite is the product of those of its parts",
    tolerance=0.0,
    control="tied weights, which are one parameter used twice",
    breaks=1.0,
)
def parameters(lab: Lab) -> Measured:
    f, g, tied = linear("f", 4, 3), linear("g", 5, 4), linear("w", 3, 3)
    return Measured.gap(
        [compose(f, g).dimension, tensor(f, g).dimension],
        [f.dimension + g.dimension, f.dimension + g.dimension],
        control=(compose(tied, tied).dimension, 2 * tied.dimension),
    )


@study.identity(
    "attention with frozen patterns is the sum of its paths",
    tolerance=1e-10,
    control="softmax recomputed on each path's own vectors",
    breaks=1e-3,
)
def toy_paths(lab: Lab) -> Measured:
    toy = Toy.draw(lab)
    stack, weights, out = toy.frozen()
    summed = sum((path(toy.x, weights) for path in paths(stack)), torch.zeros_like(out))
    return Measured.gap(summed, out, control=(toy.recomputed(), out))


@study.identity(
    "attention without a mask or positions commutes with permuting the tokens",
    tolerance=1e-10,
    control="the causal mask",
    breaks=1e-3,
)
def equivariance(lab: Lab) -> Measured:
    toy = Toy.draw(lab)
    order = torch.tensor([3, 0, 4, 1, 2])
    (free, moved), (masked, masked_moved) = (
        (toy.run(toy.x, causal=causal)[order], toy.run(toy.x[order], causal=causal)) for causal in (False, True)
    )
    return Measured.gap(free, moved, control=(masked, masked_moved))


# ── positions ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@study.identity(
    "a sinusoid of a later position is a rotation of it, the same at every position",
    tolerance=1e-12,
    control="adding: p(3) + p(4) in place of p(7)",
    breaks=1.0,
)
def sinusoids_rotate(lab: Lab) -> Measured:
    codes = sinusoids(torch.arange(64))
    turned = torch.stack([codes[t] @ rotation(k) for t in range(32) for k in range(32)])
    there = torch.stack([codes[t + k] for t in range(32) for k in range(32)])
    return Measured.gap(turned, there, control=((codes[3] + codes[4] - codes[7]).norm(), 0.0))


@study.identity(
    "a linear code a t is additive in t",
    tolerance=1e-12,
    control="the sinusoid, which is not",
    breaks=1.0,
)
def linear_codes_add(lab: Lab) -> Measured:
    a = _draw(lab, WIDTH)
    sinusoid = sinusoids(torch.arange(8))
    return Measured.gap(3 * a + 4 * a, 7 * a, control=((sinusoid[3] + sinusoid[4] - sinusoid[7]).norm(), 0.0))


@study.identity(
    "no two of 4097 positions have one sinusoid: pairs closer than 1e-6",
    tolerance=0.0,
    control="a sinusoid of one frequency that divides the circle",
    breaks=1.0,
)
def sinusoids_are_injective(lab: Lab) -> Measured:
    at = torch.arange(4097)
    circle = (2 * torch.pi * at.double() / 64)[:, None]
    return Measured.number(_collisions(sinusoids(at)), control=_collisions(torch.cat([circle.cos(), circle.sin()], 1)))


# ── transformers ──────────────────────────────────────────────────────────────────────────────────────────────────────


@study.identity(
    "the logit difference of a GPT-2 (float64) is the sum of its paths",
    tolerance=1e-10,
    control="softmax and norms recomputed on two halves of the embeddings",
    breaks=1e-3,
)
def gpt2_paths(lab: Lab) -> Measured:
    from transformers import GPT2Config

    config = GPT2Config(
        vocab_size=50,
        n_positions=16,
        n_embd=24,
        n_layer=2,
        n_head=3,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return _sums(lab, lab.build(config))


@study.identity(
    "the logit difference of a Llama (float64, whose norms compute in float32) is the sum of its paths",
    tolerance=1e-5,
    control="softmax and norms recomputed on two halves of the embeddings",
    breaks=1e-3,
)
def llama_paths(lab: Lab) -> Measured:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    return _sums(lab, lab.build(config))


@study.identity("the logit difference of the model itself, on its task, is the sum of its paths", tolerance=1e-3)
def model_paths(lab: Lab) -> Measured:
    tables = lab.once(_tables)
    return Measured.gap([sum(path.contribution for path in t.paths) for t in tables], [t.total for t in tables])


@study.finding("the model does the task", at_least=0.95, control="the same answers on the corrupted prompts")
def does_the_task(lab: Lab) -> Measured:
    return answers(lab)


@study.finding(
    "a tenth of the paths carries nine tenths of the logit difference, by size",
    at_least=0.9,
    control="as many paths drawn at random",
    given=does_the_task,
)
def few_paths_carry_it(lab: Lab) -> Measured:
    largest, drawn = [], []
    for table in lab.once(_tables):
        sizes = torch.tensor([abs(path.contribution) for path in table.paths], dtype=torch.double)
        few = math.ceil(len(sizes) / 10)
        largest.append(float(sizes[:few].sum() / sizes.sum()))
        order = torch.randperm(len(sizes), generator=lab.generator)
        drawn.append(float(sizes[order[:few]].sum() / sizes.sum()))
    return Measured.mean(largest, control=drawn)


@study.finding(
    "paths through planted heads alone make the logit difference: their share of the sizes of all paths",
    at_least=0.99,
    control="as many heads that were not planted",
    given=does_the_task,
)
def planted_paths_carry_it(lab: Lab) -> Measured:
    lab.need(lab.truth.nodes, "a model whose circuit is known")
    planted = {f"{node.layer}.{node.unit}" for node in lab.truth.nodes}
    others = [f"{i}.{h}" for i in range(lab.model.n_layers) for h in range(lab.model.n_heads)]
    others = [head for head in others if head not in planted]
    values, controls = [], []
    for table in lab.once(_tables):
        order = torch.randperm(len(others), generator=lab.generator).tolist()
        drawn = {others[i] for i in order[: len(planted)]}
        values.append(_share(table, lambda heads: bool(heads) and heads <= planted))
        controls.append(_share(table, lambda heads, drawn=drawn: bool(heads) and heads <= drawn))
    return Measured.mean(values, control=controls)


@study.finding(
    "the induction head finds its key through the head below: the share of its score, by size, of one pair of paths",
    at_least=0.9,
    control="the same share by the other heads of that layer",
    given=does_the_task,
)
def score_is_composed(lab: Lab) -> Measured:
    """Score of head 1.0 from the last token to the answer: the pair embed → query, embed → head 0.0 → key."""
    task = lab.once(task_of)
    lab.need("B" in task.labels and lab.truth.nodes, "the hand-written induction network")
    through, around = [], []
    for row in range(8):
        table = expand_score(lab.model, task.clean[row], head="1.0", query=-1, key=int(task.labels["B"][row]))
        size = sum(abs(pair.contribution) for pair in table.paths)
        by_head = [
            sum(abs(p.contribution) for p in table.paths if p.nodes == ("embed → query", f"embed → head 0.{h} → key"))
            for h in range(lab.model.n_heads)
        ]
        through.append(by_head[0] / size)
        around.append(sum(by_head[1:]) / size)
    return Measured.mean(through, control=around)


@study.figure("The largest paths to the logit difference of the first prompt")
def largest_paths(lab: Lab):
    return lab.once(_tables)[0].plot(12)


# ── what the claims share ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Toy:
    """Attention layers without norms, in float64: x [pos, d], and per layer and head W_Q, W_K and W_OV [d, d]."""

    x: Float[Tensor, "pos d"]
    queries: Float[Tensor, "layer head d d"]
    keys: Float[Tensor, "layer head d d"]
    values: Float[Tensor, "layer head d d"]

    @classmethod
    def draw(cls, lab: Lab) -> "Toy":
        sizes = (LAYERS, HEADS, WIDTH, WIDTH)
        return cls(_draw(lab, POSITIONS, WIDTH), *(_draw(lab, *sizes) / WIDTH**0.5 for _ in range(3)))

    def pattern(self, layer: int, head: int, x: Tensor, causal: bool = False) -> Float[Tensor, "query key"]:
        scores = (x @ self.queries[layer, head].T) @ (x @ self.keys[layer, head].T).T
        ahead = torch.ones_like(scores).triu(1).bool() if causal else torch.zeros_like(scores).bool()
        return scores.masked_fill(ahead, -torch.inf).softmax(-1)

    def run(self, x: Tensor, causal: bool = False) -> Float[Tensor, "pos d"]:
        """Layer by layer."""
        for layer in range(LAYERS):
            moved = [self.pattern(layer, h, x, causal) @ x @ self.values[layer, h].T for h in range(HEADS)]
            x = x + torch.stack(moved).sum(0)
        return x

    def frozen(self) -> tuple[Map, dict[str, Tensor], Float[Tensor, "pos d"]]:
        """The parametric map, its parameters (the patterns of this run among them), and what the run gave."""
        x, stack, weights = self.x, identity(POSITIONS, WIDTH), {}
        for layer in range(LAYERS):
            heads = []
            for head in range(HEADS):
                weights[f"A{layer}.{head}"] = self.pattern(layer, head, x, causal=True)
                weights[f"OV{layer}.{head}"] = self.values[layer, head]
                heads.append(
                    linear(f"A{layer}.{head}", POSITIONS, POSITIONS) @ linear(f"OV{layer}.{head}", WIDTH, WIDTH)
                )
            step = residual(sum(heads[1:], heads[0]))
            x, stack = step(x, weights), stack >> step
        return stack, weights, self.run(self.x, causal=True)

    def recomputed(self) -> Float[Tensor, "pos d"]:
        """The sum over paths with each pattern computed from the path's own vectors."""
        parts = [self.x]
        for layer in range(LAYERS):
            parts += [
                self.pattern(layer, head, part, causal=True) @ part @ self.values[layer, head].T
                for head in range(HEADS)
                for part in list(parts)
            ]
        return torch.stack(parts).sum(0)


def sinusoids(at: Tensor, d: int = 32) -> Float[Tensor, "pos d"]:
    """Position codes of Vaswani et al. (2017), sines then cosines, in float64."""
    angles = at.double()[:, None] * _frequencies(d)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def rotation(k: int, d: int = 32) -> Float[Tensor, "d d"]:
    """R with sinusoids(t) @ R = sinusoids(t + k)."""
    angle = k * _frequencies(d)
    cos, sin = angle.cos().diag(), angle.sin().diag()
    return torch.cat([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)], 0)


def _frequencies(d: int) -> Float[Tensor, "half"]:
    return 10000.0 ** (-2 * torch.arange(d // 2, dtype=torch.double) / d)


def _collisions(codes: Float[Tensor, "pos d"]) -> int:
    """Pairs of positions whose codes are closer than 1e-6; with exact distances, not the expanded square."""
    distances = torch.cdist(codes, codes, compute_mode="donot_use_mm_for_euclid_dist")
    return int((distances < 1e-6).triu(1).sum())


def _draw(lab: Lab, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=lab.generator, dtype=torch.double)


def _sums(lab: Lab, model: Model) -> Measured:
    """All paths together against the logit difference of one prompt; control: the model run on two halves of it."""
    model.hf.double()
    ids = torch.randint(1, 50, (1, 8), generator=lab.generator)
    table = expand(model, ids, answer=1, wrong=2, steps=100_000)
    stream = model.run(ids, record="resid_pre.0")["resid_pre.0"]
    share = torch.rand(stream.shape, generator=lab.generator, dtype=torch.double)
    halves = [
        model.run(ids, do=[pc.patch("resid_pre.0", part)]).logits for part in (share * stream, (1 - share) * stream)
    ]
    apart = sum(float(logits[0, -1, 1] - logits[0, -1, 2]) for logits in halves if logits is not None)
    return Measured.gap(sum(path.contribution for path in table.paths), table.total, control=(apart, table.total))


def _tables(lab: Lab) -> list[Paths]:
    """All paths to the logit difference of some prompts of the task."""
    task = lab.once(task_of)
    rows = range(32 if lab.full else 8)
    return [
        expand(
            lab.model,
            task.clean[row][task.mask[row]],
            answer=int(task.answers[row, 0]),
            wrong=int(task.wrong[row, 0]),
            steps=100_000,
        )
        for row in lab.progress(rows, "paths")
    ]


def _share(table: Paths, chosen: Callable[[set[str]], bool]) -> float:
    """Share of the sizes of all paths that those have whose set of heads is chosen."""
    sizes = [(abs(path.contribution), chosen(set(path.heads))) for path in table.paths]
    return sum(size for size, taken in sizes if taken) / sum(size for size, _ in sizes)
