"""The entries of an activation that an intervention touches, and how values from elsewhere line up with them.

Entries are (row, position) pairs of one forward pass. Values come from a tensor, from another run with padding of its
own, from the other prompts of the batch, or from a function; whatever has no counterpart is an error, never a guess.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from patchclamp.positions import Frame, Position
from patchclamp.recording import Recording
from patchclamp.sites import Site


class InterventionError(ValueError):
    """An intervention that cannot be carried out as it is written."""


@dataclass(frozen=True)
class Selection:
    """What `of` selects of one site in one forward pass.

    `y` is the site's whole tensor with positions second, [prompt, pos, (unit), ...]. `columns` [prompt, n] are the
    columns meant, -1 where a prompt has none; an entry's `ordinal` is its place among them, the same in every prompt.
    """

    y: Tensor
    site: Site
    frame: Frame
    of: str  # the intervention, for messages
    pos: Position
    columns: Tensor
    rows: Tensor
    local: Tensor
    ordinals: Tensor

    @property
    def whole(self) -> Tensor:
        """[prompt, pos, ...] of the site's own unit, or of all units."""
        return self.y if self.site.unit is None else self.y[:, :, self.site.unit]

    @property
    def moved(self) -> bool:
        """Whether positions are not second in the site's own layout: the queries of whole scores and patterns."""
        return self.site.unit is None and self.site.pos_axis != 1

    # ── values from a tensor ──────────────────────────────────────────────────────────────────────────────────────

    def fit(self, value: Tensor) -> Tensor:
        """A value by its shape: [feature], [prompt, feature], [prompt, n, feature] or [prompt, pos, feature]."""
        tail = list(self.whole.shape[2:])
        value = value.to(self.y.device)
        if value.numel() == 1:
            return value.reshape(())
        if list(value.shape) == tail:
            return value
        if self.moved and value.ndim == self.y.ndim:
            value = value.movedim(self.site.pos_axis, 1)
        lead = list(value.shape[: value.ndim - len(tail)])
        batch = self.frame.batch
        if list(value.shape[len(lead) :]) == tail and lead and lead[0] in (1, batch):
            value = value.expand(batch, *value.shape[1:])
            if len(lead) == 1:
                return value[self.rows]
            if len(lead) == 2 and lead[1] == 1:
                return value[self.rows, 0]
            if len(lead) == 2 and lead[1] == self.columns.shape[1] and self.pos is not None:
                return value[self.rows, self.ordinals]
            if len(lead) == 2 and lead[1] == self.frame.prompt:
                return value[self.rows, self._as_given()]
        if not self.frame.ordered and self.y.ndim == 4 and list(value.shape) == tail[1:]:
            return value  # [feature] for a module that returns [prompt, anything, feature]
        raise InterventionError(
            f"{self.of} has a value of shape {list(value.shape)}, which does not fit {self.site} "
            f"{list(self.whole.shape)}: give {tail}, or [{batch}, *{tail}] (one a prompt), or "
            f"[{batch}, {self.columns.shape[1]}, *{tail}] (one a position)"
        )

    def _as_given(self) -> Tensor:
        """The entries' columns in the prompts' own layout, before generation moved their padding to the left."""
        columns = self.local + self.frame.start
        if bool((columns >= self.frame.prompt).any()):
            raise InterventionError(
                f"{self.of} reaches generated tokens, but its value ends with the prompt; "
                'use when="prompt", or pos= for the positions that the value has'
            )
        given = self.frame.left if self.frame.given is None else self.frame.given
        return columns - self.frame.left[self.rows] + given[self.rows]

    # ── values from another run ───────────────────────────────────────────────────────────────────────────────────

    def recorded(self, source: Recording) -> Tensor:
        """Values from another run: the same position of the same row, each counted in its own run's padding."""
        if self.site in source.reduced or self.site.whole in source.reduced:
            raise InterventionError(f"{self.of}: its source recorded {self.site} reduced, not whole")
        try:
            value = source[self.site]
        except KeyError as error:
            raise InterventionError(f"{self.of}: {error.args[0]}") from None
        value = value.movedim(self.site.pos_axis, 1) if self.moved else value
        if len(value) not in (1, self.frame.batch):
            raise InterventionError(
                f"{self.of} takes from a run of {len(value)} prompts, but this run has {self.frame.batch}"
            )
        theirs = source.frame_of(self.site)
        rows = self.rows if len(value) > 1 else torch.zeros_like(self.rows)
        columns = self._their_columns(theirs, rows)
        kept = source.columns.get(self.site, source.columns.get(self.site.whole))
        if kept is None:
            self._check_reached(theirs.seen(value.shape[1]), rows, columns)
            place = columns
        else:
            match = kept[rows] == columns[:, None]
            if not bool(match.any(1).all()):
                raise InterventionError(f"{self.of} takes positions that its source did not keep")
            place = match.int().argmax(1)
        picked = value[rows.to(value.device), place.to(value.device)]
        if self.site.kind in ("scores", "pattern"):
            picked = self._with_their_keys(picked, theirs, rows)
        if picked.shape[1:] != self.whole.shape[2:]:
            raise InterventionError(
                f"{self.of}: its source has {self.site} {list(value.shape)}, and here it is {list(self.whole.shape)}"
            )
        return picked

    def _their_columns(self, theirs: Frame, rows: Tensor) -> Tensor:
        if self.pos is None:
            return theirs.column(rows, self.frame.logical(self.rows, self.local + self.frame.start))
        wanted = theirs.columns(self.pos)
        assert wanted is not None
        if wanted.shape[1] != self.columns.shape[1]:
            raise InterventionError(
                f"{self.of} selects {self.columns.shape[1]} positions here and {wanted.shape[1]} there"
            )
        return wanted[rows, self.ordinals]

    def _check_reached(self, theirs: Frame, rows: Tensor, columns: Tensor) -> None:
        there = (columns >= 0) & (columns < theirs.length)
        there &= theirs.real[rows, columns.clamp(0, theirs.length - 1)]
        if not bool(there.all()):
            first = int((~there).nonzero()[0])
            row = int(rows[first])
            raise InterventionError(
                f"{self.of} reaches position {int(theirs.logical(rows, columns)[first])} of prompt {row}, of which its "
                f'source has {int(theirs.real[row].sum())} tokens; use when="prompt", or pos= for what both have'
            )

    def _with_their_keys(self, picked: Tensor, theirs: Frame, rows: Tensor) -> Tensor:
        """[selected, (head), key] of another run, over this pass's keys, which may be padded or cut off otherwise."""
        keys = self.y.shape[-1]
        here = torch.arange(keys) + max(self.frame.start + self.frame.length - keys, 0)
        mine, other = self.rows[:, None].expand(-1, keys), rows[:, None].expand(-1, keys)
        columns = theirs.column(other, self.frame.logical(mine, here.expand(len(mine), -1)))
        known = (columns >= 0) & (columns < picked.shape[-1])
        shape = (len(columns), *([1] * (picked.ndim - 2)), keys)
        columns, known = (t.view(shape).expand(*picked.shape[:-1], keys).to(picked.device) for t in (columns, known))
        taken = picked.gather(-1, columns.clamp(0, picked.shape[-1] - 1))
        return taken.where(known, 0.0 if self.site.kind == "pattern" else -torch.inf)

    # ── values from the other prompts, or from a function ─────────────────────────────────────────────────────────

    def mean(self, rows: Tensor, local: Tensor, ordinals: Tensor) -> Tensor:
        """The mean over the prompts of the batch at each entry's ordinal; (rows, local, ordinals) are all there are."""
        values = self.whole[rows.to(self.y.device), local.to(self.y.device)]
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        total = values.new_zeros(self.columns.shape[1], *values.shape[1:]).index_add(
            0, ordinals.to(values.device), values
        )
        count = torch.bincount(ordinals, minlength=len(total)).to(values.device)
        return (total / count.view(-1, *([1] * (values.ndim - 1))))[self.ordinals.to(values.device)]

    def resampled(self, rows: Tensor, local: Tensor, ordinals: Tensor, seed: int) -> Tensor:
        """The value at the same ordinal of another prompt: the next in a random order of the batch that has one."""
        batch = self.frame.batch
        where = torch.full((batch, self.columns.shape[1]), -1)
        where[rows, ordinals] = local
        order = torch.randperm(batch, generator=torch.Generator().manual_seed(seed))
        after = torch.empty_like(order)
        after[order] = order.roll(-1)
        donors = after[self.rows]
        for _ in range(batch):
            lacking = where[donors, self.ordinals] < 0
            if not bool(lacking.any()):
                break
            donors = torch.where(lacking, after[donors], donors)
        if bool((donors == self.rows).any()):
            row = int(self.rows[donors == self.rows][0])
            raise InterventionError(
                f"{self.of}: no other prompt has a counterpart to a position of prompt {row}; give pos="
            )
        return self.whole[donors.to(self.y.device), where[donors, self.ordinals].to(self.y.device)]

    def edited(self, fn: Callable[..., Tensor]) -> Tensor:
        """What `fn` makes of the whole activation, given a copy in the site's own layout; [prompt, pos, ...]."""
        own = self.whole.movedim(1, self.site.pos_axis) if self.moved else self.whole
        x = (own if self.frame.ordered else own.squeeze(1)).clone()
        shape = x.shape
        new = fn(x, **_accepted(fn, {"site": self.site, "frame": self.frame, "start": self.frame.start}))
        if not isinstance(new, Tensor) or new.shape != shape:
            got = list(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise InterventionError(
                f"{self.of}: the function returned {got}, but it was given {list(shape)} and must keep it"
            )
        new = new if self.frame.ordered else new.unsqueeze(1)
        return new.movedim(self.site.pos_axis, 1) if self.moved else new


def _accepted(fn: Callable[..., Tensor], context: dict) -> dict:
    """The part of the context that a function's parameters, after the first, have names for."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except ValueError:  # built in: torch.relu
        return {}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return context
    names = {p.name for p in parameters[1:]}
    return {name: value for name, value in context.items() if name in names}
