"""The matrices that edits change, found by the model's anatomy: which parameter, and which way it is stored.

    down = down_projection(model, 2)         # Matrix("model.layers.2.mlp.down_proj", "...weight", by_output=True)
    down.weight(model)                       # [out, in], whichever way it is stored
    down.low_rank(left, right)               # factors of W + left @ right, as the parameter is stored

What has no single matrix (experts), or none that numbers can be added to (quantised weights), is refused by name.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.editing.edit import EditError
from patchclamp.model import Model


@dataclass(frozen=True)
class Matrix:
    """A linear module: its path, the names of its weight and bias, and whether the weight is stored [out, in]."""

    path: str
    name: str
    bias: str | None
    by_output: bool  # Linear; Conv1D is stored [in, out]

    def weight(self, model: Model) -> Float[Tensor, "out in"]:
        """A view of the weight as [out, in]."""
        stored = model.hf.get_parameter(self.name).detach()
        return stored if self.by_output else stored.T

    def low_rank(self, left: Float[Tensor, "out r"], right: Float[Tensor, "r in"]) -> tuple[Tensor, Tensor]:
        """Factors for `Edit.low_rank`, as the parameter is stored, of its number type or better."""
        return (left, right) if self.by_output else (right.T.contiguous(), left.T.contiguous())

    def axis(self, side: str) -> int:
        """The dimension of the stored weight that counts its inputs ("in") or its outputs ("out")."""
        return 0 if (side == "out") == self.by_output else 1


def matrix(model: Model, path: str | None, what: str) -> Matrix:
    """The matrix at `path`; `EditError` where there is none that can be edited. `what` names it in the message."""
    if path is None:
        raise EditError(
            f"{model.name} has no single {what} to edit: experts and fused layers keep theirs in other forms "
            "(`patchclamp doctor` says what is there)"
        )
    module = model.hf.get_submodule(path)
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.nn.Parameter) or not weight.is_floating_point() or weight.ndim != 2:
        raise EditError(
            f"the {what} of {model.name}, {path}, is a {type(module).__name__} without a plain floating-point weight: "
            "quantised or adapted weights cannot be edited; load the model unquantised"
        )
    bias = f"{path}.bias" if isinstance(getattr(module, "bias", None), torch.nn.Parameter) else None
    return Matrix(path, f"{path}.weight", bias, type(module).__name__ != "Conv1D")


def down_projection(model: Model, layer: int) -> Matrix:
    """What writes an MLP's neurons to the stream."""
    return matrix(model, _layer(model, layer).down, f"MLP down-projection in layer {layer}")


def out_projection(model: Model, layer: int) -> Matrix:
    """What writes attention's value channels to the stream."""
    return matrix(model, _layer(model, layer).out_proj, f"attention out-projection in layer {layer}")


def _layer(model: Model, layer: int):
    layers = model.anatomy.layers[""]
    if not 0 <= layer < len(layers):
        raise EditError(f"layer {layer} of {model.name}, which has layers 0 to {len(layers) - 1}")
    return layers[layer]
