"""The weights by their role, in one orientation, whatever the layout on disk: x @ W gives the site.

    model.weights.W_Q[4, 2]        [d_model, d_head]   head 2 of layer 4
    model.weights.W_O[4]           [head, d_head, d_model]
    model.weights.W_in[4], .W_gate[4], .W_out[4], .W_E, .W_pos, .W_U, .b_U

Where queries, keys and values share one matrix, its layout is read off a short run: the columns are those that give
the values which attention consumes. Nothing is folded, centred or changed.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from patchclamp.anatomy.attention import Recipe
from patchclamp.anatomy.discover import Anatomy, Layer, evaluation, trial_inputs
from patchclamp.anatomy.views import projection
from patchclamp.runtime import Session
from patchclamp.sites import Site, SiteError, indices
from patchclamp.tape import Keep

Columns = dict[str, tuple[str, Tensor]]
"""For each of q, k, v: the module, and which of its output features, as [head, d_head]."""


class PerLayer:
    """One kind of weight: `W[layer]`, `W[layer, head]`; negative layers count from the end."""

    def __init__(self, name: str, layers: int, get: Callable[[int], Tensor]):
        self.name, self.layers, self.get = name, layers, get

    def __len__(self) -> int:
        return self.layers

    def __getitem__(self, key: "int | tuple[int, int]") -> Tensor:
        layer, head = key if isinstance(key, tuple) else (key, None)
        whole = self.get(indices(str(layer), self.layers, what="layer", within=f"{self.name}[{layer}]")[0])
        if head is None:
            return whole
        return whole[indices(str(head), len(whole), what="head", within=f"{self.name}[{layer}, {head}]")[0]]

    def stack(self) -> Tensor:
        """All layers in one tensor, [layer, ...]; they must have one shape."""
        return torch.stack([self.get(i) for i in range(self.layers)])


class Weights:
    """Views of a model's weights; see the file's first lines. Biases are zeros where a layer has none."""

    def __init__(self, module: nn.Module, anatomy: Anatomy):
        self.module, self.anatomy = module, anatomy
        self._columns = lru_cache(maxsize=None)(self._find_columns)

    def _per_layer(self, name: str, get: Callable[[int], Tensor]) -> PerLayer:
        return PerLayer(name, len(self._layers), get)

    @property
    def _layers(self) -> tuple[Layer, ...]:
        return self.anatomy.layers[""]

    @property
    def W_Q(self) -> PerLayer:
        """[head, d_model, d_head]: before norms of queries and rotary."""
        return self._per_layer("W_Q", lambda i: self._in(i, "q"))

    @property
    def W_K(self) -> PerLayer:
        """[kv_head, d_model, d_head]; query head h reads kv head `kv_head(h)`."""
        return self._per_layer("W_K", lambda i: self._in(i, "k"))

    @property
    def W_V(self) -> PerLayer:
        """[kv_head, d_model, d_head]."""
        return self._per_layer("W_V", lambda i: self._in(i, "v"))

    @property
    def b_Q(self) -> PerLayer:
        """[head, d_head]."""
        return self._per_layer("b_Q", lambda i: self._bias_in(i, "q"))

    @property
    def b_K(self) -> PerLayer:
        """[kv_head, d_head]."""
        return self._per_layer("b_K", lambda i: self._bias_in(i, "k"))

    @property
    def b_V(self) -> PerLayer:
        """[kv_head, d_head]."""
        return self._per_layer("b_V", lambda i: self._bias_in(i, "v"))

    @property
    def W_O(self) -> PerLayer:
        """[head, d_head, d_model]: head_out[h] = z[h] @ W_O[h]."""
        return self._per_layer(
            "W_O", lambda i: self._matrix(self._layers[i].out_proj, "W_O", i).unflatten(0, (self._recipe(i).heads, -1))
        )

    @property
    def b_O(self) -> PerLayer:
        """[d_model]."""
        return self._per_layer("b_O", lambda i: self._bias(self._layers[i].out_proj, "b_O", i))

    @property
    def W_in(self) -> PerLayer:
        """[d_model, neuron]: the up-projection, mlp_pre = mlp_in @ W_in + b_in."""
        return self._per_layer("W_in", lambda i: self._half(i, 1, self._matrix(self._layers[i].up, "W_in", i)))

    @property
    def b_in(self) -> PerLayer:
        """[neuron]."""
        return self._per_layer("b_in", lambda i: self._half(i, 1, self._bias(self._layers[i].up, "b_in", i)))

    @property
    def W_gate(self) -> PerLayer:
        """[d_model, neuron]: mlp_gate = mlp_in @ W_gate + b_gate."""
        return self._per_layer("W_gate", lambda i: self._half(i, 0, self._matrix(self._gate(i), "W_gate", i)))

    @property
    def b_gate(self) -> PerLayer:
        """[neuron]."""
        return self._per_layer("b_gate", lambda i: self._half(i, 0, self._bias(self._gate(i), "b_gate", i)))

    @property
    def W_out(self) -> PerLayer:
        """[neuron, d_model]: the down-projection."""
        return self._per_layer("W_out", lambda i: self._matrix(self._layers[i].down, "W_out", i))

    @property
    def b_out(self) -> PerLayer:
        """[d_model]."""
        return self._per_layer("b_out", lambda i: self._bias(self._layers[i].down, "b_out", i))

    @property
    def W_E(self) -> Float[Tensor, "vocab d_model"]:
        """Token embeddings as stored; multipliers outside the table are not in it."""
        return self._table(Site("embed"))

    @property
    def W_pos(self) -> Float[Tensor, "pos d_model"]:
        """Position embeddings as stored."""
        return self._table(Site("pos_embed"))

    @property
    def W_U(self) -> Float[Tensor, "d_model vocab"]:
        """The unembedding: logits = final_norm @ W_U + b_U, before soft-caps and scales."""
        return self._matrix(self.anatomy.unembed, "W_U", None)

    @property
    def b_U(self) -> Float[Tensor, "vocab"]:
        return self._bias(self.anatomy.unembed, "b_U", None)

    def kv_head(self, layer: int, head: int) -> int:
        """The key-value head that a query head reads, where several share one."""
        return head // self._recipe(layer).group

    # ── how they are found ────────────────────────────────────────────────────────────────────────────────────────

    def _recipe(self, layer: int) -> Recipe:
        recipe = self._layers[layer].recipe
        if recipe is None:
            raise SiteError(
                f"{self.anatomy.model} has no attention weights in layer {layer}: it computes no softmax attention"
            )
        return recipe

    def _module(self, path: str | None, name: str, layer: int | None) -> nn.Module:
        if path is None:
            where = "" if layer is None else f" in layer {layer}"
            raise SiteError(f"{self.anatomy.model} has no {name}{where}; `patchclamp doctor` says what it has")
        return self.module.get_submodule(path)

    def _matrix(self, path: str | None, name: str, layer: int | None) -> Tensor:
        return projection(self._module(path, name, layer))

    def _bias(self, path: str | None, name: str, layer: int | None) -> Tensor:
        module = self._module(path, name, layer)
        bias = getattr(module, "bias", None)
        matrix = projection(module)
        return bias if bias is not None else matrix.new_zeros(matrix.shape[1])

    def _gate(self, layer: int) -> str | None:
        return self._layers[layer].gate or (self._layers[layer].up if self._layers[layer].fused_mlp else None)

    def _half(self, layer: int, which: int, x: Tensor) -> Tensor:
        halves = self._layers[layer].fused_mlp
        return x if halves is None else x[..., halves[which]]

    def _table(self, site: Site) -> Tensor:
        if site not in self.anatomy.taps:
            raise SiteError(
                f"{self.anatomy.model} has no {site.kind} table: {self.anatomy.inventory.absent.get(site, '')}"
            )
        weight = self.module.get_submodule(self.anatomy.taps[site].path).weight
        assert isinstance(weight, Tensor)
        return weight

    def _in(self, layer: int, part: str) -> Tensor:
        path, columns = self._columns(layer)[part]
        return projection(self.module.get_submodule(path))[:, columns].movedim(1, 0)

    def _bias_in(self, layer: int, part: str) -> Tensor:
        path, columns = self._columns(layer)[part]
        return self._bias(path, f"b_{part.upper()}", layer)[columns]

    def _find_columns(self, layer: int) -> Columns:
        """Which module, and which of its features, make the queries, keys and values of one layer."""
        recipe, paths = self._recipe(layer), self._layers[layer].qkv
        value = Site("v", layer)
        sites = {part: Site(part, layer) for part in ("q", "k")}
        keeps = [Keep(site) for site in (value, *sites.values())] + [Keep(f"module:{path}") for path in paths]
        session = Session(self.module, self.anatomy, keeps, ())
        with torch.no_grad(), evaluation(self.module), session:
            self.module(**trial_inputs(self.module))
        got = session.recording()
        v = got[value].flatten(2)
        if len(paths) == 1:
            made = got[f"module:{paths[0]}"].reshape(*v.shape[:2], -1)
            for parts in _layouts(recipe, made.shape[-1]):
                if torch.allclose(made[..., parts["v"].flatten()], v, rtol=1e-3, atol=1e-4) and all(
                    _parallel(made[:, 0, parts[part]], got[sites[part]][:, 0]) for part in ("q", "k")
                ):
                    return {part: (paths[0], columns) for part, columns in parts.items()}
        else:
            widths = {path: got[f"module:{path}"].shape[-1] for path in paths}
            own = [
                p
                for p in paths
                if widths[p] == v.shape[-1]
                and torch.allclose(got[f"module:{p}"].reshape(v.shape), v, rtol=1e-3, atol=1e-4)
            ]
            others = [p for p in paths if p not in own]
            queries, keys = (
                [
                    p
                    for p in others
                    if _parallel(got[f"module:{p}"].reshape(len(v), v.shape[1], -1)[:, 0], got[site][:, 0])
                ]
                for site in sites.values()
            )
            if own and queries and keys:
                q, k = torch.arange(recipe.heads * recipe.d_head), torch.arange(recipe.kv_heads * recipe.d_head)
                return {
                    "q": (queries[0], q.view(recipe.heads, -1)),
                    "k": (keys[0], k.view(recipe.kv_heads, -1)),
                    "v": (own[0], torch.arange(v.shape[-1]).view(recipe.kv_heads, -1)),
                }
        raise SiteError(
            f"the projections of layer {layer} of {self.anatomy.model} ({', '.join(paths)}) are in no layout that "
            "gives its values: not separate, not [Q|K|V], not interleaved by head or by group"
        )


def _parallel(made: Tensor, seen: Tensor) -> bool:
    """Whether queries at position 0, where rotary turns by nothing, are a projection's, but for norms and scales."""
    if made.numel() != seen.numel():
        return False
    made, seen = made.reshape(seen.shape).double(), seen.double()
    # A head that was set to zero, or to what rounding makes of zero, points nowhere.
    silent = torch.stack([x.norm(dim=-1) <= 1e-6 * x.norm(dim=-1).max() for x in (made, seen)]).all(0)
    likeness = torch.cosine_similarity(made, seen, dim=-1)[~silent]
    return len(likeness) == 0 or float(likeness.mean()) > 0.5  # of unrelated ones about 0


def _layouts(recipe: Recipe, width: int) -> list[dict[str, Tensor]]:
    """Column indices of q [head, d], k and v [kv_head, d] in the layouts that fused projections come in."""
    heads, kv, d = recipe.heads, recipe.kv_heads, recipe.d_head
    found = []
    every = torch.arange(width)
    if width == (heads + 2 * kv) * d:
        q, k, v = every.split([heads * d, kv * d, kv * d])
        found.append({"q": q.view(heads, d), "k": k.view(kv, d), "v": v.view(kv, d)})  # GPT-2, Phi-3
        groups = every.view(kv, recipe.group + 2, d)
        found.append(
            {"q": groups[:, :-2].reshape(heads, d), "k": groups[:, -2], "v": groups[:, -1]}
        )  # NeoX, Bloom, Falcon
        for shards in (4, 2, 8):
            if kv == heads and heads % shards == 0:
                q, v, k = every.view(shards, 3, heads // shards, d).unbind(1)  # CodeGen, written for several cores
                found.append({"q": q.reshape(heads, d), "k": k.reshape(heads, d), "v": v.reshape(heads, d)})
    return found
