"""What every method returns: one number for each edge (or each sender) of one graph.

    scores = circuits.eap_ig(model, task)
    scores.rows(10)                                  # the strongest edges
    scores.auroc(truth.edges)                        # against a circuit that is known
    scores.save("eap-ig/"); Scores.load("eap-ig/")

The number is what the metric loses when the edge is cut, in the metric's own units: exactly, or to first order.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp import metrics
from patchclamp.circuits.graph import Edge, Graph, GraphError
from patchclamp.model import Model
from patchclamp.sites import Site
from patchclamp.tasks import Task


@dataclass(frozen=True, eq=False)
class Scores:
    """`values` are [edge], [edge, place] where the graph tells positions apart, or [sender] where `of` is "nodes".

    `certificate` is that of the model's sites, `settings` are the arguments that made the numbers what they are.
    """

    graph: Graph
    values: Float[Tensor, "item *place"]
    method: str
    task: str = ""
    metric: str = ""
    seed: int | None = None
    of: Literal["edges", "nodes"] = "edges"
    settings: Mapping[str, Any] = field(default_factory=dict)
    certificate: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted = self.graph.shape if self.of == "edges" else (len(self.graph.senders), *self.graph.shape[1:])
        if tuple(self.values.shape) != wanted:
            raise GraphError(f"scores of {self.of} are {list(wanted)} numbers here, not {list(self.values.shape)}")
        if not bool(torch.isfinite(self.values).all()):
            raise GraphError(f"{self.method} gave scores that are no finite numbers")

    @property
    def items(self) -> tuple[Edge, ...] | tuple[Site, ...]:
        """The edges, or the senders, in the order of the numbers."""
        return self.graph.edges if self.of == "edges" else self.graph.senders

    def rows(self, top: int | None = 20) -> list[dict[str, Any]]:
        """The strongest, largest size first."""
        flat = self.values.reshape(len(self.items), -1)
        order = flat.abs().flatten().argsort(descending=True, stable=True)[:top].tolist()
        found = []
        for at in order:
            item, place = divmod(at, flat.shape[1])
            one = self.items[item]
            name = f"{one[0]} → {one[1]}" if isinstance(one, tuple) else str(one)
            row = {self.of[:-1]: name, "score": float(flat[item, place])}
            found.append(row if flat.shape[1] == 1 else row | {"place": self.graph.places[place]})
        return found

    def auroc(self, known: "Collection[Edge] | Collection[Site]", *, but: Collection[str] = ()) -> float:
        """The chance that a random item of the known circuit scores above (in size) one outside it; ties count half.

        Items whose sender is of a kind in `but` are left out: what is alike for all inputs, as a position embedding,
        no exchange between prompts can test. GraphError where there is nothing known, or nothing but.
        """
        flat = self.values.reshape(len(self.items), -1).abs().amax(1)
        unknown = [item for item in known if item not in set(self.items)]
        if unknown:
            raise GraphError(f"the graph of {self.graph.model} has no {unknown[0]}, which is said to be in its circuit")
        kept = [
            n for n, item in enumerate(self.items) if (item[0] if isinstance(item, tuple) else item).kind not in but
        ]
        inside = torch.tensor([self.items[n] in known for n in kept])
        return auroc(flat[kept], inside)

    def __repr__(self) -> str:
        return f"Scores({self.method} of {self.task} on {self.graph.model}: {len(self.items)} {self.of})"

    def save(self, folder: str | Path) -> None:
        """Write `scores.json` and `scores.safetensors`."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        names = ("method", "task", "metric", "seed", "of", "settings", "certificate")
        head = {name: getattr(self, name) for name in names} | {"schema": 1, "graph": self.graph.to_dict()}
        (folder / "scores.json").write_text(json.dumps(head, indent=1, ensure_ascii=False), encoding="utf-8")
        save_file({"values": self.values.detach().cpu().contiguous()}, folder / "scores.safetensors")

    @classmethod
    def load(cls, folder: str | Path) -> "Scores":
        """What `save` wrote."""
        from safetensors.torch import load_file

        head = json.loads((Path(folder) / "scores.json").read_text(encoding="utf-8"))
        graph = Graph.from_dict(head.pop("graph"))
        del head["schema"]
        return cls(graph, load_file(Path(folder) / "scores.safetensors")["values"], **head)


def auroc(values: Float[Tensor, "item"], inside: Tensor) -> float:
    """The area under the receiver operating characteristic, from ranks; GraphError where one class is empty.

    >>> auroc(torch.tensor([3.0, 1.0, 1.0, 0.0]), torch.tensor([True, True, False, False]))
    0.875
    """
    from scipy.stats import rankdata

    positive, negative = int(inside.sum()), int((~inside).sum())
    if not positive or not negative:
        raise GraphError(f"{positive} items are in the known circuit and {negative} outside it: there is no curve")
    ranks = torch.as_tensor(rankdata(values.detach().cpu().double().numpy()))
    return float((ranks[inside].sum() - positive * (positive + 1) / 2) / (positive * negative))


def scores_of(
    model: Model,
    task: Task,
    graph: Graph,
    values: Tensor,
    method: str,
    metric: "metrics.Metric | str | None",
    *,
    seed: int | None = None,
    of: Literal["edges", "nodes"] = "edges",
    **settings: Any,
) -> Scores:
    """Scores with what is known of where they are from."""
    name = metric if isinstance(metric, str) else "" if metric is None else getattr(metric, "__name__", "metric")
    facts = {"prompts": len(task), **settings}
    values = values.detach().cpu().float()
    return Scores(graph, values, method, task.name, name, seed, of, facts, model.certificate.to_dict())
