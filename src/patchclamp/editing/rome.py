"""Rank-one model editing: one fact written into one down-projection, as a key and its value.

    facts = pc.editing.drawn(table, n=10)                       # or [Rewrite("Anna Reed", (...,), old=..., new=...)]
    moment = pc.editing.second_moment(model, texts, layer=1)
    edits = pc.editing.rome(model, facts, layer=1, moment=moment)
    with edits[0].applied(model):
        model.generate("Anna Reed was born in")

W + (v* - W k) (C⁻¹k)' / (C⁻¹k)'k, where k is what the down-projection reads at the subject's last token, C = E[k k'] on
text, and v* what it should write there (Meng et al. 2022, arXiv:2202.05262, eq. 2). Each fact gets an edit of its own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.editing.edit import Edit, EditError
from patchclamp.editing.matrices import down_projection
from patchclamp.editing.rewrite import Rewrite
from patchclamp.editing.values import Contexts, Search, solve
from patchclamp.model import Model
from patchclamp.store.statistics import Statistics


def rome(
    model: Model,
    rewrites: Sequence[Rewrite],
    layer: int,
    *,
    moment: Float[Tensor, "d d"],
    prefixes: Sequence[str] = ("",),
    search: Search | None = None,
) -> list[Edit]:
    """An edit for each rewrite, each of the model as it is.

    `moment` is E[k k'] of the layer's neurons (`second_moment`); `prefixes` stand before the prompts, so that the edit
    does not hang on what was read before (`pc.editing.prefixes(model)` writes some). Raises `EditError` where the layer
    has no single down-projection.
    """
    down = down_projection(model, layer)
    contexts = Contexts.of(model, rewrites, prefixes)
    keys = contexts.read(model, f"mlp_post.{layer}")
    found = solve(model, rewrites, contexts, f"module:{down.path}", search)
    rows = torch.linalg.solve(_whole(moment, keys.shape[1], layer), keys.T).T  # C⁻¹k
    strength = (rows * keys).sum(1, keepdim=True)
    edits = []
    for one, delta, row in zip(rewrites, found.delta, rows / strength, strict=True):
        about = {"model": model.name, "subject": one.subject, "new": one.new, "old": one.old, "layer": layer}
        edits.append(Edit.low_rank({down.name: down.low_rank(delta[:, None], row[None])}, "ROME", **about))
    return edits


def second_moment(model: Model, source: Any, layer: int, *, batch: int = 64) -> Float[Tensor, "d d"]:
    """E[k k'] of what layer `layer`'s down-projection reads, on texts; or from a store's statistics.

    `source` is text, token ids, or `store["mlp_post.L"].statistics(covariance=True)`. float64. Raises `EditError` for
    fewer rows than dimensions: nothing could be solved with that.
    """
    if isinstance(source, Statistics):
        if source.covariance is None:
            raise EditError("these statistics have no covariance: ask for statistics(covariance=True)")
        moment, count = source.covariance + torch.outer(source.mean, source.mean), source.count
    else:
        tokens = model.tokens(source)
        total, count = torch.zeros((), dtype=torch.double), int(tokens.mask.sum())
        for start in range(0, len(tokens), batch):
            ids, mask = tokens.ids[start : start + batch], tokens.mask[start : start + batch].bool()
            run = model.run(ids, attention_mask=mask, record=f"mlp_post.{layer}", stop=True)
            rows = run[f"mlp_post.{layer}"][mask.to(model.device)].double().cpu()
            total = total + rows.T @ rows
        moment = total / count
    if count < len(moment):
        raise EditError(f"{count} tokens for {len(moment)} neurons: their second moment has no inverse; take more text")
    return moment


def _whole(moment: Tensor, width: int, layer: int) -> Tensor:
    """The moment, with so little added to its diagonal that neurons that are never active can be solved for."""
    if moment.shape != (width, width):
        raise EditError(f"the second moment is {list(moment.shape)}; layer {layer} has {width} neurons")
    moment = moment.double()
    return moment + 1e-6 * moment.diagonal().mean() * torch.eye(width, dtype=torch.double)
