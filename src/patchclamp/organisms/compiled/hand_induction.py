"""An induction circuit written by hand into a GPT-2: three heads that do something, and nothing else.

The residual stream has four parts of 32 dimensions, which never mix:

    token       one-hot of the token            written by the embedding
    position    sinusoids of the position       written by the position embedding
    previous    one-hot of the token before     written by head 0.0, which attends one position back
    output      one-hot of the prediction       written by head 1.0; head 1.1 writes the same, negative and smaller

Head 1.0 looks from a token to the position whose `previous` is that token, and copies the token it finds there. Where
there is none it rests on the first token, BOS, and writes nothing. Head 1.1 attends in the same way and suppresses.
Every other weight of attention and MLP is zero. Each part has a constant sum and a constant norm at every position, so
that a layer norm is one known affine map, which its own gain and bias undo.
"""

import random
from itertools import product
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from patchclamp.model import Model, wrap
from patchclamp.organisms.truth import Truth
from patchclamp.sites import Site
from patchclamp.tasks.task import Task

NAME = "compiled:hand-induction"
VOCABULARY, HEADS, D_HEAD, POSITIONS = 32, 4, 32, 64
D_MODEL = HEADS * D_HEAD
TOKEN, POSITION, PREVIOUS, OUTPUT = (slice(start, start + D_HEAD) for start in range(0, D_MODEL, D_HEAD))
BOS = 0
LENGTH = 20
SUPPRESSING = frozenset({Site("z", 1, 1)})  # lowers the logit of what the circuit predicts

FREQUENCIES = tuple(2.0 * 0.72**i for i in range(10))  # radians a position; the slowest turns once in 60
SHARPNESS = 12.0  # by how many nats a head's target beats what comes second; at 64 positions 4e-4 of it leaks
COPY, SUPPRESS = 1.0, 0.3  # what heads 1.0 and 1.1 write of the token they attend to
LOGIT = 12.0  # by how many nats the prediction beats the others

Port = tuple[slice, Float[Tensor, "32 32"]]
"""A part of the residual stream and the matrix between it and a head."""


def build(name: str) -> Model:
    return hand_induction()


def truth(name: str, folder: Path) -> Truth:
    return hand_induction_truth()


def hand_induction() -> Model:
    """The hand-written induction network: 2 layers, 4 heads, d_model 128, no tokenizer (32 tokens, 0 is BOS).

    >>> model = hand_induction()
    >>> int(model.run([[0, 5, 9, 3, 7, 5]]).logits[0, -1].argmax())
    9
    """
    hf = _empty()
    with torch.no_grad():
        _write(hf)
    return wrap(hf.eval(), name=f"organism:{NAME}")


def hand_induction_truth() -> Truth:
    """The circuit: its three heads, the edges between them by the input that is read, and the four subspaces."""
    q, k, v, z = (lambda layer, head, kind=kind: Site(kind, layer, head) for kind in "qkvz")
    embed, position, logits = Site("embed"), Site("pos_embed"), Site("logits")
    edges = {(position, q(0, 0)), (position, k(0, 0)), (embed, v(0, 0))}
    for head in (0, 1):
        edges |= {
            (embed, q(1, head)),
            (z(0, 0), k(1, head)),
            (embed, k(1, head)),
            (embed, v(1, head)),
            (z(1, head), logits),
        }
    eye = torch.eye(D_MODEL)
    return Truth(
        name=NAME,
        nodes=frozenset({z(0, 0), z(1, 0), z(1, 1)}),
        edges=frozenset(edges),
        features={"token": eye[TOKEN], "position": eye[POSITION], "previous": eye[PREVIOUS], "output": eye[OUTPUT]},
        behaviours=("hand_induction",),
        sampler=_sample,
    )


def hand_induction_task(n: int = 64, seed: int = 0) -> Task:
    """BOS, some different tokens, and part of them again: what followed the last token the first time?

    20 tokens, of which the first 11 to 17 are new, so that the distance to the first occurrence varies from prompt to
    prompt (with a fixed one every position would tell the answer). Corrupted: the last token's first occurrence changes
    places with another token, whose follower becomes the answer. Labels: A1 and B (first occurrence), X and D (the
    other token and its follower), END.
    """
    rng = random.Random(seed)
    rows = [_prompt(rng) for _ in range(n)]
    clean, corrupt, answers, wrong, places = (list(column) for column in zip(*rows, strict=True))
    task = Task.from_tokens(clean=clean, corrupt=corrupt, answers=answers, wrong=wrong, name="hand_induction")
    a1, x = (torch.tensor(column) for column in zip(*places, strict=True))
    task.labels.update({"A1": a1, "B": a1 + 1, "X": x, "D": x + 1})
    return task


def _prompt(rng: random.Random) -> tuple[list[int], list[int], int, int, tuple[int, int]]:
    fresh = rng.randint(11, 17)
    repeated = LENGTH - 1 - fresh
    start = rng.randrange(fresh - repeated)
    a = start + repeated - 1
    # Not in the repeated part, nor beside it: the swap must change what one query finds and nothing else.
    others = [i for i in range(fresh - 1) if not start - 1 <= i <= a + 1]
    if not others:
        return _prompt(rng)
    x = rng.choice(others)
    first = rng.sample(range(1, VOCABULARY), fresh)
    swapped = list(first)
    swapped[a], swapped[x] = first[x], first[a]
    again = first[start : a + 1]
    return [BOS, *first, *again], [BOS, *swapped, *again], first[a + 1], first[x + 1], (a + 1, x + 1)


def _sample(n: int, seed: int) -> tuple[Tensor, Tensor]:
    task = hand_induction_task(n, seed)
    return task.clean, task.answers[:, 0]


def _empty() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=POSITIONS,
        n_embd=D_MODEL,
        n_layer=2,
        n_head=HEADS,
        n_inner=D_HEAD,
        bos_token_id=BOS,
        eos_token_id=BOS,
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
    return hf


def _write(hf: GPT2LMHeadModel) -> None:
    body: Any = hf.transformer
    eye = torch.eye(D_HEAD)
    body.wte.weight[:, TOKEN] = eye
    body.wpe.weight[:, POSITION] = _sinusoids(torch.arange(POSITIONS))
    for layer, block in enumerate(body.h):
        # `token` and, from layer 1 on, `previous` have sum 1 and norm 1; `position` has sum 0 and norm 1.
        _undo(block.ln_1, total=1 + layer, square=2 + layer)
        block.ln_2.weight.fill_(1.0)
    body.ln_f.weight.fill_(1.0)

    nats = SHARPNESS * D_HEAD**0.5  # scores are divided by sqrt(d_head)
    apart = 1 - float(_likeness()[1:].max())
    _head(body.h[0], 0, (POSITION, nats / apart * _shift()), (POSITION, eye), (TOKEN, eye), (PREVIOUS, eye))
    but_bos = eye.clone()
    but_bos[BOS, BOS] = 0.0
    for head, gain in ((0, COPY), (1, -SUPPRESS)):
        _head(body.h[1], head, (TOKEN, 2 * nats * but_bos), (PREVIOUS, but_bos), (TOKEN, but_bos), (OUTPUT, gain * eye))
        column = head * D_HEAD + BOS
        body.h[1].attn.c_attn.bias[column] = nats  # every query asks for BOS, half as loud as for a match
        body.h[1].attn.c_attn.weight[TOKEN.start + BOS, D_MODEL + column] = 1.0

    gain = COPY - SUPPRESS
    total, square = 2 + gain, 3 + gain**2
    scale = (square / D_MODEL - (total / D_MODEL) ** 2) ** 0.5
    hf.lm_head.weight[:, OUTPUT] = LOGIT * scale / gain * eye


def _undo(norm: torch.nn.LayerNorm, total: float, square: float) -> None:
    """Gain and bias with which the norm leaves a vector of this sum and squared norm as it is."""
    mean = total / D_MODEL
    scale = (square / D_MODEL - mean**2 + norm.eps) ** 0.5
    norm.weight.fill_(scale)
    norm.bias.fill_(mean)


def _head(block: Any, head: int, q: Port, k: Port, v: Port, o: Port) -> None:
    """Write a head: q, k and v each read a part of the stream through a matrix, and o writes to one."""
    first = head * D_HEAD
    for index, (part, matrix) in enumerate((q, k, v)):
        start = index * D_MODEL + first  # c_attn is [d_model, q | k | v]
        block.attn.c_attn.weight[part, start : start + D_HEAD] = matrix
    part, matrix = o
    block.attn.c_proj.weight[first : first + D_HEAD, part] = matrix


def _sinusoids(where: Tensor) -> Float[Tensor, "pos 32"]:
    """Position codes of norm 1 and sum 0: each frequency in three phases 120 degrees apart; two dimensions stay 0."""
    angles = where.double()[:, None] * torch.tensor(FREQUENCIES, dtype=torch.double)
    phases = torch.arange(3, dtype=torch.double) * (2 * torch.pi / 3)
    code = (angles[..., None] - phases).cos() * (2 / 3 / len(FREQUENCIES)) ** 0.5
    return torch.nn.functional.pad(code.flatten(1), (0, 2)).float()


def _shift() -> Float[Tensor, "32 32"]:
    """The matrix that turns the code of a position, as a row vector, into the code of the one before."""
    shift = torch.zeros(D_HEAD, D_HEAD, dtype=torch.double)
    for index, frequency in enumerate(FREQUENCIES):
        for row, column in product(range(3), range(3)):
            angle = (row - column) * 2 * torch.pi / 3 - frequency
            shift[3 * index + row, 3 * index + column] = 2 / 3 * torch.tensor(angle, dtype=torch.double).cos()
    return shift.float()


def _likeness() -> Float[Tensor, "pos"]:
    """Dot product of the codes of two positions, by their distance."""
    code = _sinusoids(torch.arange(POSITIONS))
    return code @ code[0]
