"""Whole layers moved about: frozen, left out, put in another order, or given what a later layer had.

    model.run(tokens, do=freeze(model, run, layers=[3, 4]))      # these layers write what they wrote in `run`
    reordered(model, [0, 2, 1, 3]).run(tokens)                   # layers 1 and 2 change places, in a copy
    back_patching(model, task, pos="END")                        # dims (late, early): a later state written earlier

Back-patching gives computation that came too late another chance: Biran et al. 2024, arXiv:2406.12775.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from patchclamp import metrics
from patchclamp.interventions import Intervention, ablate, patch
from patchclamp.model import Model, wrap
from patchclamp.patching.pairs import Measure, Pairs
from patchclamp.positions import Position
from patchclamp.sites import Site
from patchclamp.tasks import Task
from patchclamp.views import track


def freeze(model: Model, source: Any, layers: Sequence[int], pos: Position = None) -> list[Intervention]:
    """Interventions under which these layers add to the stream what they added in `source`, whatever they read.

    `source` is a run that recorded their `attn_out` and `mlp_out`.
    """
    return [patch(site, source, pos) for site in _written(model, layers)]


def leave_out(model: Model, layers: Sequence[int], pos: Position = None) -> list[Intervention]:
    """Interventions under which these layers add nothing: the stream passes them by."""
    return [ablate(site, "zero", pos) for site in _written(model, layers)]


def reordered(model: Model, order: Sequence[int]) -> Model:
    """The model with its layers in this order (some may be left out, none repeated); it shares the weights.

    ValueError for an order that is not one, or for layers that are not the items of one list.
    """
    wanted = list(order)
    if not wanted or len(set(wanted)) < len(wanted) or not set(wanted) <= set(range(model.n_layers)):
        raise ValueError(f"order={wanted}: different layers of 0 to {model.n_layers - 1}, at least one")
    paths = [layer.path.rpartition(".") for layer in model.anatomy.layers[""]]
    if len({parent for parent, _, _ in paths}) != 1 or [name for _, _, name in paths] != list(
        map(str, range(len(paths)))
    ):
        raise ValueError(f"the layers of {model.name} are not the items of one list, which could be put in order")
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.hf.parameters(), *model.hf.buffers())}
    hf = copy.deepcopy(model.hf, shared)
    parent = hf.get_submodule(paths[0][0])
    blocks = [parent.get_submodule(str(index)) for index in wanted]
    for index in reversed(range(len(paths))):
        delattr(parent, str(index))
    for index, block in enumerate(blocks):
        parent.add_module(str(index), block)
        for module in block.modules():
            if hasattr(module, "layer_idx"):  # the place in the cache, which must grow in order
                setattr(module, "layer_idx", index)  # noqa: B010
    config = getattr(hf, "config", None)
    for name in ("num_hidden_layers", "n_layer", "num_layers"):
        if hasattr(config, name):
            setattr(config, name, len(wanted))
            break
    for name in ("layer_types", "mlp_layer_types"):  # read by place: which mask, which kind of MLP
        types = getattr(config, name, None)
        if isinstance(types, list) and len(types) == len(paths):
            setattr(config, name, [types[index] for index in wanted])
    return wrap(hf, model.tokenizer, name=f"{model.name}, layers {', '.join(map(str, wanted))}")


def back_patching(
    model: Model,
    task: Task,
    *,
    pos: Position,
    metric: "str | metrics.Metric" = metrics.logit_difference,
    seed: int = 0,
) -> xr.DataArray:
    """The metric when the stream after layer `late` is written before layer `early` of a second run, at `pos`.

    Dims (state, late, early), early <= late, nan elsewhere. States: "own", the same prompt's; "other", the control,
    another prompt's. `attrs["without"]` is the metric of the plain run.
    """
    score = metrics.by_name(metric) if isinstance(metric, str) else metric
    measure: Measure = lambda logits: score(task.at_answer(logits), task)  # noqa: E731
    pairs = Pairs(model, task.clean, task.clean, measure, task.mask)
    where = task.labels[pos][:, None] if isinstance(pos, str) and pos in task.labels else pos
    run = model.run(task.clean, record="resid_post.*", attention_mask=task.mask)
    count = model.n_layers
    other = _others(len(task), seed)
    values = np.full((2, count, count), np.nan)
    for late in track(range(count), "patching back"):
        state = run[Site("resid_post", late)]
        columns = _columns(task, where)
        for early in range(late + 1):
            for row, rows in enumerate((torch.arange(len(task)), other)):
                moved = state[rows[:, None], columns[rows]]
                values[row, late, early] = float(pairs.values([patch(f"resid_pre.{early}", moved, pos=where)]).mean())
    layers = list(range(count))
    return xr.DataArray(
        values,
        dims=["state", "late", "early"],
        coords={"state": ["own", "other"], "late": layers, "early": layers},
        name=getattr(score, "__name__", "metric"),
        attrs={"model": model.name, "task": task.name, "without": float(pairs.base_values.mean())},
    )


def _others(count: int, seed: int) -> torch.Tensor:
    """Another prompt for each."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    other = torch.empty(count, dtype=torch.long)
    other[order] = order.roll(-1)
    return other


def _columns(task: Task, pos: Position) -> torch.Tensor:
    from patchclamp.positions import Frame

    columns = Frame.of_mask(task.mask).columns(pos)
    if columns is None or bool((columns < 0).any()):
        raise ValueError(f"pos={pos!r}: back-patching takes the same number of positions in every prompt")
    return columns


def _written(model: Model, layers: Sequence[int]) -> list[Site]:
    sites = [Site(kind, layer) for layer in layers for kind in ("attn_out", "mlp_out")]
    for site in sites:
        model.sites(site)  # an error that names it, where the model has none
    return sites
