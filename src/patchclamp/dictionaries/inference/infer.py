"""One face for inference: `infer(dictionary_or_decoder, x, method, k= or l1=) -> Codes`.

| method             | needs | what it does                                                   |
|--------------------|-------|----------------------------------------------------------------|
| "fista", "ista"    | l1    | the penalised problem, solved to a tolerance                   |
| "omp"              | k     | greedy, least squares after each choice                        |
| "gradient-pursuit" | k     | greedy, one gradient step after each choice                    |
| "optimise"         | l1    | gradient descent on log-codes, from the encoder's where it has |
| "encoder"          |       | what the dictionary's own encoder says                         |
"""

import difflib

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.dictionaries.codes import Codes
from patchclamp.dictionaries.dictionary import Dictionary
from patchclamp.dictionaries.inference.encoders import AmortisedEncoder
from patchclamp.dictionaries.inference.logcodes import optimise
from patchclamp.dictionaries.inference.proximal import fista, ista
from patchclamp.dictionaries.inference.pursuit import gradient_pursuit, omp
from patchclamp.dictionaries.inference.solution import Solution

METHODS = ("fista", "ista", "omp", "gradient-pursuit", "optimise", "encoder")
_READS = {
    "fista": ("l1", "signed", "tolerance", "iterations"),
    "ista": ("l1", "signed", "tolerance", "iterations"),
    "omp": ("k", "signed", "tolerance"),
    "gradient-pursuit": ("k", "signed", "tolerance"),
    "optimise": ("l1", "iterations"),
    "encoder": (),
}


def infer(
    dictionary_or_decoder: Dictionary | AmortisedEncoder | Float[Tensor, "width d"],
    x: Float[Tensor, "*row d"],
    method: str = "fista",
    *,
    k: int | None = None,
    l1: float | None = None,
    signed: bool | None = None,
    tolerance: float | None = None,
    iterations: int | None = None,
) -> Codes:
    """Codes of `x` for a fixed decoder: a dictionary's (its `b_dec` is subtracted first) or a matrix [width, d].

    `x` is what the decoder explains, so of a transcoder the output. `k` latents at most, or an `l1` penalty in units of
    x. Values are >= 0 unless `signed`, which is the rule for a dictionary whose own codes have signs. ValueError for an
    argument that the method does not read, a missing one, and a decoder with a skip connection.
    """
    return solve(
        dictionary_or_decoder, x, method, k=k, l1=l1, signed=signed, tolerance=tolerance, iterations=iterations
    ).codes


def solve(
    dictionary_or_decoder: Dictionary | AmortisedEncoder | Float[Tensor, "width d"],
    x: Float[Tensor, "*row d"],
    method: str = "fista",
    *,
    k: int | None = None,
    l1: float | None = None,
    signed: bool | None = None,
    tolerance: float | None = None,
    iterations: int | None = None,
) -> Solution:
    """The same with what it took: iterations of each row and, where there is one, the duality gap."""
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, 1)
        raise ValueError(f"no method is called {method!r}{f'; did you mean {near[0]!r}?' if near else ''}: {METHODS}")
    given = {"k": k, "l1": l1, "signed": signed, "tolerance": tolerance, "iterations": iterations}
    unread = [name for name, value in given.items() if value is not None and name not in _READS[method]]
    if unread:
        raise ValueError(f"{method} does not read {', '.join(unread)}; it reads {', '.join(_READS[method]) or 'none'}")
    for name in ("k", "l1"):
        if name in _READS[method] and given[name] is None:
            what = "the number of latents" if name == "k" else "the penalty, in units of x"
            raise ValueError(f"{method} needs {name}=, {what}")
    if method == "encoder":
        codes = _own(dictionary_or_decoder, x)
        return Solution(codes, codes.l0().long().flatten())
    decoder, offset = decoder_of(dictionary_or_decoder)
    shape = getattr(dictionary_or_decoder, "shape_out", (decoder.shape[1],))
    if tuple(x.shape[-len(shape) :]) != tuple(shape):
        raise ValueError(f"x is {tuple(x.shape)}; this decoder explains rows of {tuple(shape)}")
    lead = x.shape[: -len(shape)]
    target = x.reshape(-1, decoder.shape[1]) - offset
    signs = getattr(dictionary_or_decoder, "select", "") == "absolute_topk" if signed is None else signed
    match method:
        case "fista" | "ista":
            way = fista if method == "fista" else ista
            assert l1 is not None
            found = way(
                decoder,
                target,
                l1,
                signed=signs,
                tolerance=1e-5 if tolerance is None else tolerance,
                iterations=iterations or 5000,
            )
        case "optimise":
            assert l1 is not None
            start = None if isinstance(dictionary_or_decoder, Tensor) else _own(dictionary_or_decoder, x)
            if start is not None:
                columns = start.indices.shape[-1]
                start = Codes(start.indices.reshape(-1, columns), start.values.reshape(-1, columns), start.width)
            if signs:
                raise ValueError("the logarithm of a code has no sign: optimise makes positive codes only")
            found = optimise(decoder, target, l1, steps=iterations or 500, start=start)
        case _:
            way = omp if method == "omp" else gradient_pursuit
            assert k is not None
            found = way(decoder, target, k, signed=signs, tolerance=1e-6 if tolerance is None else tolerance)
    indices, values = (part.reshape(*lead, part.shape[-1]) for part in (found.codes.indices, found.codes.values))
    return Solution(Codes(indices, values, found.codes.width), found.iterations, found.gap)


def decoder_of(
    dictionary_or_decoder: Dictionary | AmortisedEncoder | Float[Tensor, "width d"],
) -> tuple[Float[Tensor, "width d"], Float[Tensor, " d"]]:
    """The decoder's rows and what it adds to every row; ValueError where it adds a linear map of another activation."""
    if isinstance(dictionary_or_decoder, Tensor):
        if dictionary_or_decoder.ndim != 2:
            raise ValueError(f"a decoder is [width, d], not {tuple(dictionary_or_decoder.shape)}")
        return dictionary_or_decoder.detach(), dictionary_or_decoder.new_zeros(dictionary_or_decoder.shape[1])
    if getattr(dictionary_or_decoder, "W_skip", None) is not None:
        raise ValueError(
            "this dictionary has a skip connection: subtract x @ W_skip + b_dec yourself and give its W_dec as decoder"
        )
    return dictionary_or_decoder.W_dec.detach(), dictionary_or_decoder.b_dec.detach()


def _own(dictionary: Dictionary | AmortisedEncoder | Tensor, x: Tensor) -> Codes:
    if isinstance(dictionary, Tensor):
        raise ValueError("a decoder alone has no encoder: give a Dictionary, or what amortise() learns")
    if isinstance(dictionary, Dictionary) and dictionary.shape_in != dictionary.shape_out:
        raise ValueError("a transcoder's encoder reads another site than x: call its encode()")
    with torch.no_grad():
        return dictionary.encode(x)
