"""One binary mask over an edited matrix that takes back edits which it has not seen.

    mask = pc.editing.reversing_mask(model, edits[:80], facts[:80], neutral=texts)
    reversed_by(model, edits[80:], facts[80:], mask.keep)      # of each other edit: is the old answer likelier again?
    with (edits[90] + mask.edit).applied(model): ...

M = sigmoid(theta / tau) is learned on many rank-one edits of one matrix at once: on its own prompts (W + u d') * M
shall prefer the old answer by a margin and say what the unedited model says on other text, with at most a share of M
gone; theta > 0 is what stays. (W * M) k + u * (M (d * k)) is each edit's masked forward pass, so that a batch holds as
many edits as rows ("One Mask to Rule Them All", 2025: mask, margin, schedules; the threshold is ours).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from patchclamp.editing.edit import Edit, EditError
from patchclamp.editing.matrices import Matrix, down_projection
from patchclamp.editing.rewrite import Rewrite
from patchclamp.inputs import Tokens
from patchclamp.interventions import Intervention, edit
from patchclamp.model import Model
from patchclamp.views import track


@dataclass(frozen=True)
class MaskSearch:
    """AdamW on theta ~ N(0.85, 0.1). The temperature falls from `hot` to `cold`, the weight of what is gone beyond
    `gone` rises from 0 to `sparsity`; `margin` is in nats. A step reads `rows` prompts and `texts` neutral texts, drawn
    anew; None: all of them.
    """

    steps: int = 300
    rows: int | None = None
    texts: int | None = None
    learning_rate: float = 0.02
    gone: float = 0.1
    sparsity: float = 60.0
    margin: float = 3.0
    kl: float = 3.3
    hot: float = 6.0
    cold: float = 0.3


@dataclass(frozen=True, eq=False)
class LearnedMask:
    """`keep` is what stays of the matrix, [out, in]; `losses` of every step; `edit` multiplies the parameter by it."""

    keep: Bool[Tensor, "out in"]
    losses: Float[Tensor, "step"]
    edit: Edit

    @property
    def gone(self) -> float:
        """The share of entries that are zeroed."""
        return 1 - float(self.keep.double().mean())


def learn_mask(
    shape: tuple[int, int],
    loss: Callable[[Float[Tensor, "out in"]], Tensor],
    *,
    search: MaskSearch | None = None,
    seed: int = 0,
) -> tuple[Bool[Tensor, "out in"], Float[Tensor, "step"]]:
    """The binary mask, and the losses, for any loss of a soft one; what is beyond `gone` is charged here."""
    search = search or MaskSearch()
    generator = torch.Generator().manual_seed(seed)
    theta = (0.85 + 0.1 * torch.randn(shape, generator=generator)).requires_grad_()
    optimiser = torch.optim.AdamW([theta], lr=search.learning_rate)
    losses = []
    for step in track(range(search.steps), "mask"):
        progress = step / max(1, search.steps - 1)
        temperature = search.hot * (search.cold / search.hot) ** progress
        with torch.enable_grad():
            soft = (theta / temperature).sigmoid()
            over = (1 - soft).mean() - search.gone
            total = loss(soft) + search.sparsity * progress * over.clamp_min(0)
            theta.grad = torch.autograd.grad(total, theta)[0]
        optimiser.step()
        losses.append(total.detach())
    return (theta > 0).detach(), torch.stack(losses) if losses else torch.zeros(0)


def reversing_mask(
    model: Model,
    edits: Sequence[Edit],
    rewrites: Sequence[Rewrite],
    *,
    neutral: Sequence[str] = (),
    search: MaskSearch | None = None,
    seed: int = 0,
) -> LearnedMask:
    """The mask over the matrix that all `edits` (of `rome`, one for each rewrite) change.

    Each `neutral` text is read under one of the edits in turn, masked, and shall be predicted as the unedited model
    does. Raises `EditError` where the edits are not rank-one edits of one down-projection.
    """
    search = search or MaskSearch()
    batch = Batch.of(model, edits, rewrites)
    base, texts = _told(model, neutral) if neutral else (None, None)
    generator = torch.Generator().manual_seed(seed)

    def drawn(count: int, some: int | None) -> Tensor:
        return torch.arange(count) if some is None else torch.randperm(count, generator=generator)[:some]

    def loss(mask: Tensor) -> Tensor:
        lost = (search.margin - batch.at(drawn(len(batch.owner), search.rows)).margin(model, mask)).clamp_min(0).mean()
        if base is None or texts is None:
            return lost
        chosen = drawn(len(neutral), search.texts)
        # Without a draw each text is read under one edit, always the same.
        turns = chosen % len(edits) if search.texts is None else drawn(len(edits), len(chosen))
        turns = turns[torch.arange(len(chosen)) % len(turns)]
        some = Tokens(texts.ids[chosen], texts.mask[chosen])
        real = some.mask.bool().to(base.device)
        now, was = (
            _logits(model, some, batch.masked(model, mask, turns))[real].float().log_softmax(-1),
            base[chosen][real],
        )
        return lost + search.kl * (was.exp() * (was - now)).sum(-1).mean()

    keep, losses = learn_mask(tuple(batch.weight.shape), loss, search=search, seed=seed)  # type: ignore[arg-type]
    stored = keep if batch.down.by_output else keep.T.contiguous()
    about = {"model": model.name, "edits": len(edits), "gone": 1 - float(keep.double().mean())}
    return LearnedMask(keep, losses, Edit.masks({batch.down.name: stored}, "reversing mask", **about))


def reversed_by(
    model: Model,
    edits: Sequence[Edit],
    rewrites: Sequence[Rewrite],
    keep: Tensor | None = None,
    *,
    likeliest: bool = False,
) -> Bool[Tensor, "rewrite"]:
    """Of each edit under the mask (none: as it is), whether the old answer is likelier than the new one.

    On all of its prompts; they are compared at the first token in which they differ. `likeliest` asks for more: that no
    token at all is likelier there than the old answer's.
    """
    batch = Batch.of(model, edits, rewrites)
    mask = torch.ones_like(batch.weight) if keep is None else keep.to(batch.weight.dtype)
    with torch.no_grad():
        ends = batch.ends(model, mask)
    rows = torch.arange(len(batch.owner))
    old = ends[rows, batch.old]
    hits = (old >= ends.amax(1) if likeliest else old > ends[rows, batch.new]).cpu()
    return torch.stack([hits[batch.owner == index].all() for index in range(len(edits))])


def random_mask(keep: Bool[Tensor, "out in"], seed: int = 0) -> Bool[Tensor, "out in"]:
    """A mask with as many zeros, anywhere: the control."""
    order = torch.randperm(keep.numel(), generator=torch.Generator().manual_seed(seed))
    return keep.flatten()[order].view(keep.shape)


def largest_mask(keep: Bool[Tensor, "out in"], sizes: Float[Tensor, "out in"]) -> Bool[Tensor, "out in"]:
    """A mask with as many zeros, where `sizes` are largest: of the weights, or of the edits' mean change."""
    gone = int((~keep).sum())
    mask = torch.ones(keep.numel(), dtype=torch.bool)
    mask[sizes.abs().flatten().argsort(descending=True)[:gone]] = False
    return mask.view(keep.shape)


def mean_change(edits: Sequence[Edit], down: Matrix) -> Float[Tensor, "out in"]:
    """Mean size of what the edits add to each entry."""
    lefts, rights = _factors(edits, down)
    return torch.stack([torch.outer(u, d).abs() for u, d in zip(lefts, rights, strict=True)]).mean(0)


@dataclass(frozen=True, eq=False)
class Batch:
    """All prompts of all rewrites as rows, with the edit of each and the two tokens that are compared."""

    layer: int
    down: Matrix
    weight: Float[Tensor, "out in"]
    lefts: Float[Tensor, "edit out"]
    rights: Float[Tensor, "edit in"]
    tokens: Tokens
    owner: Int[Tensor, "row"]
    old: Int[Tensor, "row"]
    new: Int[Tensor, "row"]

    @classmethod
    def of(cls, model: Model, edits: Sequence[Edit], rewrites: Sequence[Rewrite]) -> "Batch":
        if not edits or len(edits) != len(rewrites):
            raise EditError(f"{len(edits)} edits for {len(rewrites)} rewrites: give one for each")
        layer, down = _one_matrix(model, edits)
        lefts, rights = _factors(edits, down)
        asked = [question for one in rewrites for question in one.questions() if question.kind == "efficacy"]
        owner = [index for index, one in enumerate(rewrites) for _ in one.prompts]
        rows, pairs = [], []
        for question in asked:
            old, new = (
                model.tokens([f"{question.prompt} {answer}"]).ids[0].tolist()
                for answer in (question.rival, question.wanted)
            )
            split = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), None)
            if split is None:
                raise EditError(
                    f"{question.rival!r} and {question.wanted!r}: the tokens of one begin those of the other"
                )
            rows.append(old[:split])
            pairs.append((old[split], new[split]))
        dtype = down.weight(model).dtype
        return cls(
            layer,
            down,
            down.weight(model).clone(),
            lefts.to(dtype),
            rights.to(dtype),
            model.tokens(rows),
            torch.tensor(owner),
            *(torch.tensor(column) for column in zip(*pairs, strict=True)),
        )

    def at(self, rows: Int[Tensor, "some"]) -> "Batch":
        """Some of the rows."""
        tokens = Tokens(self.tokens.ids[rows], self.tokens.mask[rows])
        return replace(self, tokens=tokens, owner=self.owner[rows], old=self.old[rows], new=self.new[rows])

    def masked(self, model: Model, mask: Float[Tensor, "out in"], owner: Int[Tensor, "row"]) -> list[Intervention]:
        """What makes each row run with the masked matrix of its own edit."""
        bias = None if self.down.bias is None else model.hf.get_parameter(self.down.bias).detach()
        seen: dict[str, Tensor] = {}

        def read(x: Tensor) -> Tensor:
            seen["k"] = x
            return x

        def write(x: Tensor) -> Tensor:
            k = seen["k"]
            left, right = (of[owner].to(k.device)[:, None] for of in (self.lefts, self.rights))
            out = k @ (self.weight * mask).T + left * ((k * right) @ mask.T)
            return out if bias is None else out + bias

        return [edit(f"mlp_post.{self.layer}", read), edit(f"module:{self.down.path}", write)]

    def margin(self, model: Model, mask: Float[Tensor, "out in"]) -> Float[Tensor, "row"]:
        """log p(old) - log p(new) of each row under the mask, in nats."""
        rows, ends = torch.arange(len(self.owner)), self.ends(model, mask)
        return ends[rows, self.old] - ends[rows, self.new]

    def ends(self, model: Model, mask: Float[Tensor, "out in"]) -> Float[Tensor, "row vocab"]:
        """Logits of the token after each row under the mask."""
        logits = _logits(model, self.tokens, self.masked(model, mask, self.owner))
        return logits[torch.arange(len(self.owner)), self.tokens.mask.sum(1) - 1].float()


def _logits(model: Model, tokens: Tokens, do: list[Intervention]) -> Tensor:
    with model.under(do=do):
        return model.hf(
            input_ids=tokens.ids.to(model.device), attention_mask=tokens.mask.long().to(model.device)
        ).logits


def _told(model: Model, texts: Sequence[str]) -> tuple[Tensor, Tokens]:
    """[text, pos, vocab] log-probabilities of some texts, and the texts' tokens."""
    tokens = model.tokens(list(texts))
    logits = model.run(tokens).logits
    assert logits is not None
    return logits.float().log_softmax(-1).detach(), tokens


def _one_matrix(model: Model, edits: Sequence[Edit]) -> tuple[int, Matrix]:
    names = {change.parameter for one in edits for change in one.changes}
    for layer in range(model.n_layers):
        if model.anatomy.layers[""][layer].down is not None:
            down = down_projection(model, layer)
            if names == {down.name}:
                return layer, down
    raise EditError(f"the edits change {', '.join(sorted(names))}: one mask is learned over one down-projection")


def _factors(edits: Sequence[Edit], down: Matrix) -> tuple[Float[Tensor, "edit out"], Float[Tensor, "edit in"]]:
    """u and d of each rank-one edit."""
    lefts, rights = [], []
    for one in edits:
        if len(one.changes) != 1 or one.changes[0].right is None or one.changes[0].left.shape[1] != 1:
            raise EditError(f"{one}: the masked pass of a batch needs rank-one edits, as rome(...) makes them")
        a, b = one.changes[0].left[:, 0], one.changes[0].right[0]
        lefts.append(a if down.by_output else b)
        rights.append(b if down.by_output else a)
    return torch.stack(lefts), torch.stack(rights)
