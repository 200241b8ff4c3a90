"""What an MLP must write at a subject's last token so that the model says something else of it, and what it reads.

    texts = Contexts.of(model, rewrites, prefixes(model, n=4))
    found = solve(model, rewrites, texts, "module:model.layers.1.mlp.down_proj")
    found.delta                                  # [rewrite, d_model]: what is added there

v* = v + delta minimises -log p(new | prefix + prompt), averaged over prefixes and prompts, + KL on what the subject is
+ a decay of |delta|² / |v|² (Meng et al. 2022, arXiv:2202.05262, eq. 4). All rewrites are solved in one batch: each row
has its own delta, and each delta its own loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchclamp.editing.edit import EditError
from patchclamp.editing.matrices import down_projection
from patchclamp.editing.rewrite import SUBJECT, Rewrite, answered, log_probability, subject_ends
from patchclamp.inputs import Tokens, beginning
from patchclamp.interventions import edit
from patchclamp.model import Model
from patchclamp.views import track


@dataclass(frozen=True, eq=False)
class Contexts:
    """The rows of the batch: every prompt of every rewrite behind every prefix, then each rewrite's essence prompt."""

    tokens: Tokens
    answer: Bool[Tensor, "row pos"]  # none on the essence rows
    owner: Int[Tensor, "row"]
    place: Int[Tensor, "row"]  # the subject's last token
    essence: Bool[Tensor, "row"]
    plain: Bool[Tensor, "row"]  # a rewrite's first prompt without a prefix

    @classmethod
    def of(cls, model: Model, rewrites: Sequence[Rewrite], prefixes: Sequence[str] = ("",)) -> "Contexts":
        """`prefixes` are texts that stand before each prompt; the empty one is always among them."""
        every = list(dict.fromkeys(["", *prefixes]))
        rows = [
            (index, prefix + template.replace(SUBJECT, one.subject), one.new, False, not prefix and not number)
            for index, one in enumerate(rewrites)
            for prefix in every
            for number, template in enumerate(one.prompts)
        ]
        rows += [(i, one.essence.replace(SUBJECT, one.subject), one.new, True, False) for i, one in enumerate(rewrites)]
        owner, prompts, answers, essence, plain = (list(column) for column in zip(*rows, strict=True))
        tokens, answer = answered(model, prompts, answers)
        is_essence = torch.tensor(essence)
        ends = subject_ends(tokens, [rewrites[i].subject for i in owner])
        return cls(tokens, answer, torch.tensor(owner), ends, is_essence, torch.tensor(plain))

    def __len__(self) -> int:
        return len(self.owner)

    @property
    def last(self) -> Int[Tensor, "row"]:
        """The column before the answer."""
        return self.answer.int().argmax(1) - 1

    def read(self, model: Model, site: str) -> Float[Tensor, "rewrite d"]:
        """Mean over a rewrite's prompts of what `site` holds at the subject's last token, in float64."""
        run = model.run(self.tokens, record=site, stop=True)
        rows = run[site][torch.arange(len(self)), self.place].flatten(1).double().cpu()[~self.essence]
        owner = self.owner[~self.essence]
        sums = torch.zeros(int(owner.max()) + 1, rows.shape[1], dtype=torch.double).index_add(0, owner, rows)
        return sums / torch.bincount(owner)[:, None]


@dataclass(frozen=True, eq=False)
class Values:
    """`delta` [rewrite, d_model], log p(new) of each rewrite's prompts before and after it is added, and the losses."""

    delta: Float[Tensor, "rewrite d"]
    before: Float[Tensor, "rewrite"]
    after: Float[Tensor, "rewrite"]
    losses: Float[Tensor, "step rewrite"]


@dataclass(frozen=True)
class Search:
    """Adam on the deltas. Units are relative: the rate is in root mean squares of v, and |delta| <= clamp |v|.

    `kl` and `decay` weigh the essence prompt's drift and |delta|² / |v|²; a rewrite whose new answer is within `enough`
    nats a token of certain stays where it is. The decay is far below the authors' 0.5, which weighs |delta| / |v|² and
    so depends on units.
    """

    steps: int = 25
    learning_rate: float = 0.5
    kl: float = 0.0625
    decay: float = 0.01
    clamp: float = 4.0
    enough: float = 0.05


def solve(
    model: Model,
    rewrites: Sequence[Rewrite],
    contexts: Contexts,
    site: str,
    search: Search | None = None,
) -> Values:
    """The deltas that make each rewrite's new answer likely when they are added to `site` at the subject's last token.

    Only they get gradients: the parameters' own are not touched.
    """
    search = search or Search()
    n, rows = len(rewrites), torch.arange(len(contexts))
    own, essence, owner = ~contexts.essence, contexts.essence, contexts.owner
    ids, mask = contexts.tokens.ids.to(model.device), contexts.tokens.mask.long().to(model.device)
    base = model.run(contexts.tokens, record=site)
    assert base.logits is not None
    held = base[site]
    if held.ndim != 3:
        raise EditError(f"{site} is {list(held.shape)}, not [prompt, pos, d_model]")
    there = held[rows, contexts.place].float()
    scale = torch.stack([there[(owner == i) & own].norm(dim=1).mean() for i in range(n)])[:, None]
    width = there.shape[1]
    said, _ = log_probability(base.logits, contexts.tokens.ids, contexts.answer)
    was = base.logits[rows[essence], contexts.last[essence]].float().log_softmax(-1).detach()
    lengths = contexts.answer.sum(1).clamp_min(1).to(said.device)
    counts = torch.bincount(owner[own], minlength=n).to(said.device)

    def mean_of(values: Tensor) -> Tensor:
        return torch.zeros(n, device=values.device).index_add(0, owner[own].to(values.device), values[own]) / counts

    theta = torch.zeros(n, width, device=there.device, requires_grad=True)
    optimiser = torch.optim.Adam([theta], lr=search.learning_rate)
    losses, settled = [], torch.zeros(n, dtype=torch.bool, device=there.device)
    after = before = mean_of(said).detach()
    for step in track(range(search.steps + 1), "values"):
        # A part of the run, so that gradients reach theta whatever mode the caller is in.
        with torch.enable_grad():
            delta = theta * scale / width**0.5

            def put(x: Tensor, delta: Tensor = delta) -> Tensor:
                added = delta[owner.to(delta.device)].to(x.dtype)
                return x.index_put((rows.to(x.device), contexts.place.to(x.device)), added, accumulate=True)

            with model.under(do=[edit(site, put)]):
                logits = model.hf(input_ids=ids, attention_mask=mask).logits
            said, _ = log_probability(logits, contexts.tokens.ids, contexts.answer)
            now = logits[rows[essence], contexts.last[essence]].float().log_softmax(-1)
            drift = (now.exp() * (now - was)).sum(-1)
            shrink = (delta.norm(dim=1) / scale[:, 0]).square()
            unsaid = mean_of(-said / lengths)
            loss = unsaid + search.kl * drift + search.decay * shrink
            gradient = None if step == search.steps else torch.autograd.grad(loss.sum(), theta)[0]
        losses.append(loss.detach().cpu())
        after = mean_of(said).detach()
        settled |= unsaid.detach() < search.enough
        if gradient is None or bool(settled.all()):
            break
        kept = theta.detach().clone()
        theta.grad = gradient
        optimiser.step()
        with torch.no_grad():
            theta[settled] = kept[settled]
            theta *= (search.clamp * width**0.5 / theta.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
    delta = (theta * scale / width**0.5).detach().double().cpu()
    return Values(delta, before.cpu(), after.cpu(), torch.stack(losses))


def prefixes(model: Model, n: int = 5, *, tokens: int = 8, seed: int = 0) -> list[str]:
    """Texts that the model writes out of nothing, to stand before prompts: sampled, `tokens` long, ended by a stop."""
    begin = beginning(model.tokenizer)
    if begin is None:
        raise EditError(f"{model.name} has no token that begins a text; give prefixes=[...] of your own")
    start = torch.full((n, 1), begin)
    texts = model.generate(start, max_new_tokens=tokens, do_sample=True, seed=seed).new_text
    assert isinstance(texts, list)
    return [text.strip().rstrip(".") + ". " for text in texts]


def reachable(model: Model, rewrites: Sequence[Rewrite], search: Search | None = None) -> Float[Tensor, "layer"]:
    """Mean log p(new) that something added to each layer's down-projection can reach: where to edit.

    -inf where a layer has no single down-projection. A few rewrites are enough.
    """
    contexts = Contexts.of(model, rewrites)
    found = []
    for layer, about in enumerate(model.anatomy.layers[""]):
        if about.down is None:
            found.append(torch.tensor(-torch.inf))
        else:
            site = f"module:{down_projection(model, layer).path}"
            found.append(solve(model, rewrites, contexts, site, search).after.mean())
    return torch.stack(found)
