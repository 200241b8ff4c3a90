"""What a library can be given: the weights of a dictionary of one site, with its centring where that library has it."""

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.dictionaries.dictionary import Dictionary


def refuse(dictionary: Dictionary, library: str, what: str) -> ValueError:
    """The error that says which dictionary a format does not have."""
    return ValueError(f"{library} has no dictionary with {what}: {dictionary.extra_repr()}")


def one_site(dictionary: Dictionary, library: str) -> None:
    """ValueError unless it reads one site and explains one: other formats have no crosscoders."""
    if len(dictionary.shape_in) > 1 or len(dictionary.shape_out) > 1:
        raise refuse(dictionary, library, "several models or layers")


def centred_by_output(dictionary: Dictionary) -> bool:
    """Whether what is taken off the input is the decoder's bias, as half of the libraries have it."""
    return dictionary.b_in.shape == dictionary.b_dec.shape and bool(torch.equal(dictionary.b_in, dictionary.b_dec))


def bias_of(dictionary: Dictionary, taken_off: Float[Tensor, " d_in"] | None) -> Float[Tensor, " width"]:
    """The encoder's bias for a library that takes `taken_off` from the input in place of `b_in`.

    W (x - b_in) + b_enc = W (x - taken_off) + (b_enc + W (taken_off - b_in)), in double precision.
    """
    shift = -dictionary.b_in if taken_off is None else taken_off - dictionary.b_in
    moved = dictionary.b_enc.double() + dictionary.W_enc.double() @ shift.double()
    return moved.to(dictionary.b_enc.dtype)
