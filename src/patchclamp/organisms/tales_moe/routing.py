"""Which expert serves which domain: measured, with a null from permuted documents.

    routes = routing.routes(model.hf, tokenizer, documents)
    measured = routing.specialisation(routes, [document.kind for document in documents])
    measured.usage                                   # Float[layer, domain, expert]: shares of a domain's choices
    measured.information, measured.p_value           # of each layer: bits between domain and expert, and its p

Documents are what is permuted, never tokens: the tokens of one document are not independent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchclamp.organisms.tales import grammar

PARTITIONS: dict[str, tuple[str, ...]] = {
    "kind": tuple(grammar.SHARES),
    "language": ("english", "spanish"),
    "code": ("code",),
    "genre": ("genre",),
}
"""What divides documents into domains, and the kinds of document that it is asked of."""


@dataclass(frozen=True)
class Routes:
    """The experts that were chosen for every token, and which document each token is of; padding is left out."""

    experts: Int[Tensor, "layer token slot"]
    document: Int[Tensor, " token"]
    token: Int[Tensor, " token"]
    n_experts: int


@dataclass(frozen=True)
class Specialisation:
    """`usage[layer, domain]` are the shares of each expert among the choices for the tokens of a domain: they sum to 1.

    `information` is the mutual information of domain and expert in bits, layer by layer; `null` the same for labels
    permuted among documents, `p_value` the share of permutations (the true labels counted among them) with as much.
    """

    domains: tuple[str, ...]
    usage: Float[Tensor, "layer domain expert"]
    overall: Float[Tensor, "layer expert"]
    information: Float[Tensor, " layer"]
    null: Float[Tensor, "permutation layer"]
    p_value: Float[Tensor, " layer"]

    def specialists(self) -> list[list[str]]:
        """For each layer and expert, the domain that uses the expert most beyond its overall share."""
        excess = self.usage - self.overall[:, None]
        return [[self.domains[int(best)] for best in layer.argmax(0)] for layer in excess]


def sample(partition: str, each: int, seed: int) -> list[grammar.Document]:
    """`each` new documents of every kind that a partition is asked of."""
    return [document for kind in PARTITIONS[partition] for document in grammar.documents(each, seed, kind)]


def label(document: grammar.Document, partition: str) -> str:
    """The domain of a document in one of the PARTITIONS: its kind, or the role of its whole text (`genre:sea`);
    ValueError where the partition is not asked of such documents.
    """
    if document.kind not in PARTITIONS[partition]:
        raise ValueError(
            f"'{partition}' divides {', '.join(PARTITIONS[partition])}; this document is a {document.kind}"
        )
    if partition in ("kind", "language"):
        return document.kind
    return next(span.role for span in document.spans if span.role.startswith(f"{partition}:"))


@torch.no_grad()
def routes(hf: Any, tokenizer: Any, documents: Sequence[grammar.Document]) -> Routes:
    """The choices of a Mixtral's routers for every token of the documents, BOS included."""
    rows, owners, tokens = [], [], []
    top_k = hf.config.num_experts_per_tok
    for first in range(0, len(documents), 64):
        some = documents[first : first + 64]
        encoded = tokenizer([document.text for document in some], return_tensors="pt", padding=True)
        encoded = {name: encoded[name].to(hf.device) for name in ("input_ids", "attention_mask")}
        real = encoded["attention_mask"].bool().flatten()
        logits = hf.model(**encoded, output_router_logits=True, use_cache=False).router_logits
        rows.append(torch.stack([layer.topk(top_k, dim=-1).indices[real] for layer in logits]).cpu())
        owner = torch.arange(len(some), device=hf.device)[:, None].expand_as(encoded["input_ids"]).flatten()
        owners.append(first + owner[real].cpu())
        tokens.append(encoded["input_ids"].flatten()[real].cpu())
    return Routes(torch.cat(rows, dim=1), torch.cat(owners), torch.cat(tokens), hf.config.num_local_experts)


def specialisation(
    routes: Routes,
    labels: Sequence[str],
    *,
    given_token: bool = False,
    permutations: int = 200,
    seed: int = 0,
) -> Specialisation:
    """Usage of each expert by each domain, and how much the domain tells of the expert.

    `labels` has the domain of each document. With `given_token` the information is that beyond the token's identity,
    I(domain; expert | token): what remains where domains merely have other words. ValueError where there are fewer
    than two domains.
    """
    domains = tuple(sorted(set(labels)))
    if len(domains) < 2:
        raise ValueError(f"documents of {len(domains)} domains ({', '.join(domains)}); at least two are compared")
    if given_token:
        strata, stratum = torch.unique(routes.token, return_inverse=True)
    else:
        strata, stratum = torch.zeros(1), torch.zeros_like(routes.token)
    of_document = torch.tensor([domains.index(name) for name in labels])
    shape = (len(strata), len(domains), routes.n_experts)

    def counts(domain_of: Int[Tensor, " document"]) -> Float[Tensor, "layer stratum domain expert"]:
        cell = (stratum * len(domains) + domain_of[routes.document])[None, :, None] * routes.n_experts + routes.experts
        size = shape[0] * shape[1] * shape[2]
        return torch.stack([layer.flatten().bincount(minlength=size).reshape(shape) for layer in cell]).double()

    table = counts(of_document)
    pooled = table.sum(1)
    generator = torch.Generator().manual_seed(seed)
    permuted = [of_document[torch.randperm(len(labels), generator=generator)] for _ in range(permutations)]
    null = [_information(counts(some)) for some in permuted]
    information, drawn = _information(table), torch.stack(null)
    return Specialisation(
        domains,
        pooled / pooled.sum(-1, keepdim=True),
        pooled.sum(1) / pooled.sum((1, 2))[:, None],
        information,
        drawn,
        (1 + (drawn >= information - 1e-12).sum(0)) / (1 + permutations),
    )


def _information(counts: Float[Tensor, "layer stratum domain expert"]) -> Float[Tensor, " layer"]:
    """I(domain; expert | stratum) in bits: the sum over strata of p(s) I(domain; expert | S = s)."""
    joint = counts / counts.sum((1, 2, 3), keepdim=True)

    def entropy(p: Tensor) -> Float[Tensor, " layer"]:
        return -torch.special.xlogy(p, p).flatten(1).sum(1) / torch.log(torch.tensor(2.0, dtype=p.dtype))

    return entropy(joint.sum(3)) + entropy(joint.sum(2)) - entropy(joint.sum((2, 3))) - entropy(joint)
