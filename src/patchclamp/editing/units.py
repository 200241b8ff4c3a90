"""Sets of units, MLP neurons and attention's value channels: silenced by a hook, or taken out of the weights.

chosen = pc.editing.Units.of({"mlp_post.1": [4, 17], "z.2": [30]})      # channel 30 of z.2, heads in line
model.run(text, do=chosen.ablation())
with chosen.removal(model).applied(model):                          # in- and out-weights zero: the same logits
    model.run(text)
chosen.drawn(model, seed=0)                                         # as many of each site at random: the control
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from patchclamp.editing.edit import Edit, EditError
from patchclamp.editing.matrices import Matrix, down_projection, matrix, out_projection
from patchclamp.interventions import Intervention, edit
from patchclamp.model import Model

KINDS = ("mlp_post", "z")


@dataclass(frozen=True, eq=False)
class Units:
    """Indices of units by site (`mlp_post.L` or `z.L`), in rising order; of z, heads are counted through."""

    of_site: Mapping[str, Int[Tensor, "n"]]

    @classmethod
    def of(cls, chosen: Mapping[str, Iterable[int] | Tensor]) -> "Units":
        """From lists of indices; `EditError` for a site that has no units of weights."""
        found = {}
        for site, indices in chosen.items():
            _layer_of(site)
            found[site] = torch.as_tensor(indices if isinstance(indices, Tensor) else list(indices)).long().unique()
        return cls({site: indices for site, indices in found.items() if len(indices)})

    def __len__(self) -> int:
        return sum(len(indices) for indices in self.of_site.values())

    def __or__(self, other: "Units") -> "Units":
        """Those of either set."""
        sites = dict.fromkeys([*self.of_site, *other.of_site])
        none = torch.zeros(0, dtype=torch.long)
        return Units.of({s: torch.cat([self.of_site.get(s, none), other.of_site.get(s, none)]) for s in sites})

    def __and__(self, other: "Units") -> "Units":
        """Those of both sets."""
        return Units.of({s: i[torch.isin(i, other.of_site[s])] for s, i in self.of_site.items() if s in other.of_site})

    def __repr__(self) -> str:
        return f"Units({', '.join(f'{len(i)} of {site}' for site, i in self.of_site.items())})"

    def ablation(self) -> list[Intervention]:
        """Interventions that hold all of them at zero, for `do=`."""

        def silenced(indices: Tensor):
            def hold(x: Tensor, **context) -> Tensor:
                flat = x.flatten(2).clone()
                flat[..., indices.to(x.device)] = 0
                return flat.view(x.shape)

            return hold

        return [edit(site, silenced(indices)) for site, indices in self.of_site.items()]

    def removal(self, model: Model) -> Edit:
        """Masks that zero the units' in- and out-weights, and their biases.

        Where several query heads share a value channel, its in-weights go when all of them lose it. Raises `EditError`
        for layers whose units have no weights of their own (experts).
        """
        masks: dict[str, Tensor] = {}
        for site, indices in self.of_site.items():
            layer, width = _layer_of(site), count(model, site)
            if int(indices[-1]) >= width or int(indices[0]) < 0:
                raise EditError(f"unit {int(indices[-1])} of {site}, which has {width}")
            if site.startswith("mlp_post"):
                _remove_neurons(model, layer, indices, masks)
            else:
                _remove_channels(model, layer, indices, masks)
        return Edit.masks(masks, "units removed", model=model.name, units=len(self))

    def drawn(self, model: Model, seed: int = 0) -> "Units":
        """As many units of each site, drawn at random: the control."""
        generator = torch.Generator().manual_seed(seed)
        return Units.of(
            {s: torch.randperm(count(model, s), generator=generator)[: len(i)] for s, i in self.of_site.items()}
        )


def count(model: Model, site: str) -> int:
    """How many units a site has."""
    layer = _layer_of(site)
    found = down_projection(model, layer) if site.startswith("mlp_post") else out_projection(model, layer)
    return found.weight(model).shape[1]


def _layer_of(site: str) -> int:
    kind, _, layer = site.partition(".")
    if kind not in KINDS or not layer.isdigit():
        raise EditError(f"{site!r} has no units with weights of their own; give whole sites, mlp_post.L or z.L")
    return int(layer)


def _remove_neurons(model: Model, layer: int, indices: Tensor, masks: dict[str, Tensor]) -> None:
    about = model.anatomy.layers[""][layer]
    _zero(model, masks, down_projection(model, layer), "in", indices)
    up = matrix(model, about.up, f"MLP up-projection in layer {layer}")
    if about.fused_mlp is None:
        _zero(model, masks, up, "out", indices)
    else:
        features = torch.arange(up.weight(model).shape[0])
        for half in about.fused_mlp:
            _zero(model, masks, up, "out", features[half][indices])
    if about.gate is not None:
        _zero(model, masks, matrix(model, about.gate, f"MLP gate in layer {layer}"), "out", indices)


def _remove_channels(model: Model, layer: int, indices: Tensor, masks: dict[str, Tensor]) -> None:
    recipe = model.anatomy.layers[""][layer].recipe
    if recipe is None:
        raise EditError(f"{model.name} has no softmax attention in layer {layer}")
    out = out_projection(model, layer)
    _zero(model, masks, out, "in", indices)
    gone = torch.zeros(out.weight(model).shape[1], dtype=torch.bool)
    gone[indices] = True
    shared = gone.view(recipe.kv_heads, recipe.group, -1).all(1)  # [kv_head, d_head]
    path, columns = model.weights._columns(layer)["v"]
    _zero(model, masks, matrix(model, path, f"value projection in layer {layer}"), "out", columns[shared])


def _zero(model: Model, masks: dict[str, Tensor], of: Matrix, side: str, indices: Tensor) -> None:
    """Mark some inputs or outputs of a matrix (and the biases of its outputs) as zero."""
    stored = model.hf.get_parameter(of.name)
    mask = masks.setdefault(of.name, torch.ones(stored.shape, dtype=torch.bool))
    mask.index_fill_(of.axis(side), indices, False)
    if side == "out" and of.bias is not None:
        bias = masks.setdefault(of.bias, torch.ones(stored.shape[of.axis("out")], dtype=torch.bool))
        bias[indices] = False
