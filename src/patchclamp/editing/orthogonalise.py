"""Take a direction out of the weights: no part of the model can write it to the residual stream any more.

    edit = pc.editing.orthogonalise(model, direction)
    edit.merge(model, "without-refusal/")               # the same as running with direction.ablated(model), for good

Every matrix that writes to the stream (embeddings, each layer's out-projection and down-projection) and its bias lose
their component along the direction, W - r r'W (Arditi et al. 2024, arXiv:2406.11717, eq. 5).
"""

import torch
from torch import Tensor

from patchclamp.anatomy.discover import evaluation, trial_inputs
from patchclamp.anatomy.views import projection
from patchclamp.editing.edit import Change, Edit, EditError, named
from patchclamp.model import Model
from patchclamp.steering import Direction, writes

_LEFT_OVER = 1e-3  # of a write's size; in half precision the weights themselves are rounded to about that


def orthogonalise(model: Model, direction: Direction) -> Edit:
    """The rank-one edits after which nothing that is written to the stream has a component along `direction`.

    Raises `EditError` where that is not a matter of these weights alone (a norm after a sublayer, as in Gemma 2; or
    experts): there `direction.ablated(model)` does the same at run time.
    """
    shape = list(direction.vector.shape)
    if shape != [model.d_model]:
        raise EditError(f"the direction at {direction.site} is {shape}, and the stream has {model.d_model} dimensions")
    unit = torch.nn.functional.normalize(direction.vector.double(), dim=0)
    changes = []
    for path in _writers(model):
        module = model.hf.get_submodule(path)
        for name, parameter in named(model, path).items():
            weight = parameter.detach().double().cpu()
            if weight.ndim == 1:
                changes.append(Change(name, "dense", -(weight @ unit) * unit))
            elif _stored_by_output(module, parameter):  # [d_model, in]: W - r (r'W)
                changes.append(Change(name, "low_rank", -unit[:, None], (unit @ weight)[None]))
            else:  # [in, d_model]
                changes.append(Change(name, "low_rank", -(weight @ unit)[:, None], unit[None]))
    edit = Edit(tuple(changes), f"orthogonal to {direction.fit or direction.site}", {"model": model.name})
    _check(model, edit, direction)
    return edit


def _writers(model: Model) -> list[str]:
    """Paths of the modules whose outputs are summed into the stream."""
    paths = list(model.anatomy.embed_parts)
    for index, layer in enumerate(model.anatomy.layers[""]):
        for what, path in (("out-projection", layer.out_proj), ("down-projection", layer.down)):
            kind = "attn_out" if what == "out-projection" else "mlp_out"
            if path is None and any(site.kind == kind and site.layer == index for site in model.sites()):
                raise EditError(
                    f"layer {index} of {model.name} has no single {what}; use direction.ablated(model) instead"
                )
            paths += [path] if path is not None else []
    return paths


def _stored_by_output(module: torch.nn.Module, parameter: Tensor) -> bool:
    """Whether a matrix is stored [output, input] (Linear), rather than [input, output] (Conv1D, embedding tables)."""
    if isinstance(module, torch.nn.Embedding):
        return False
    return projection(module).stride() != parameter.stride() or not torch.equal(projection(module), parameter)


def _check(model: Model, edit: Edit, direction: Direction) -> None:
    """Refuse an edit after which something still writes the direction."""
    sites = writes(model)
    with torch.no_grad(), evaluation(model.hf), edit.applied(model, tied=True):
        run = model._raw_run(trial_inputs(model.hf), sites)
    for site in sites:
        written = run[site].double()
        left = float(direction.project(written).abs().max() / written.norm(dim=-1).max().clamp_min(1e-12))
        if left > _LEFT_OVER:
            raise EditError(
                f"{site} of {model.name} still has {left:.1%} of its size along the direction: a norm or a scale "
                "stands behind the matrix. Weights alone cannot take it out; use direction.ablated(model)"
            )
