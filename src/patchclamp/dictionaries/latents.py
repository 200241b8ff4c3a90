"""Latents as a site of a model: recorded, ablated, clamped, scaled, steered and patched like any activation.

    latents = dictionary.as_site("resid_post.2")
    run = model.run(prompts, record=latents.site)
    latents.codes(run)                                            # Codes at every position
    model.run(prompts, do=[latents.clamp(17, 4.0, pos=-1)])       # as if latent 17 had said 4.0
    model.run(prompts, do=[latents.patch([17, 40], other_run)])

What an intervention changes is the latents' share of the activation, x + (f' - f) W_dec: what the dictionary does not
explain, its error, stays as it was. `replace` alone leaves the error out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp import interventions
from patchclamp.dictionaries.codes import Codes
from patchclamp.dictionaries.dictionary import Dictionary
from patchclamp.interventions import Intervention, When
from patchclamp.model import Run
from patchclamp.positions import Position
from patchclamp.recording import Recording


@dataclass(frozen=True)
class Latents:
    """A dictionary at the site that it reads and explains."""

    dictionary: Dictionary
    site: str

    def codes(self, run: Run | Recording) -> Codes:
        """What the dictionary says of a run that recorded the site."""
        return self.dictionary.encode(run[self.site])

    def error(self, run: Run | Recording) -> Float[Tensor, "prompt pos d"]:
        """What of the recorded activation the dictionary does not explain."""
        return run[self.site] - self.dictionary(run[self.site])

    def ablate(self, latents: int | Sequence[int], *, pos: Position = None, when: When = "all") -> Intervention:
        """These latents say nothing."""
        return self.clamp(latents, 0.0, pos=pos, when=when)

    def clamp(
        self,
        latents: int | Sequence[int],
        value: float | Sequence[float],
        *,
        pos: Position = None,
        when: When = "all",
    ) -> Intervention:
        """These latents say `value` (one for all, or one for each), whatever they would."""
        which = self._which(latents)
        held = torch.as_tensor(value, dtype=self.dictionary.W_dec.dtype).expand(len(which))
        return self._moved(which, lambda now: held.to(now) - now, pos, when)

    def scale(
        self, latents: int | Sequence[int], factor: float, *, pos: Position = None, when: When = "all"
    ) -> Intervention:
        """These latents say `factor` times as much."""
        return self._moved(self._which(latents), lambda now: (factor - 1) * now, pos, when)

    def add(
        self, latents: int | Sequence[int], amount: float, *, pos: Position = None, when: When = "all"
    ) -> Intervention:
        """These latents say `amount` more: their decoder rows are added, as steering vectors."""
        which = self._which(latents)
        return interventions.add(self.site, self.dictionary.W_dec[which].sum(0), scale=amount, pos=pos, when=when)

    def patch(
        self,
        latents: int | Sequence[int],
        source: Run | Recording,
        *,
        pos: Position = None,
        when: When = "all",
    ) -> Intervention:
        """These latents say what they said in `source`, a run of the same shape that recorded the site."""
        which = self._which(latents)
        theirs = self.codes(source).dense()[..., which]

        def difference(now: Float[Tensor, "prompt pos latent"]) -> Float[Tensor, "prompt pos latent"]:
            if now.shape != theirs.shape:
                raise ValueError(
                    f"the source has {list(theirs.shape[:2])} prompts and positions, this run {list(now.shape[:2])}"
                )
            return theirs.to(now) - now

        return self._moved(which, difference, pos, when)

    def replace(self, *, pos: Position = None, when: When = "all") -> Intervention:
        """The activation is what the dictionary explains of it, without the error: what is lost so is its loss."""
        return interventions.edit(self.site, lambda x: self.dictionary(x).to(x.dtype), pos=pos, when=when)

    def _moved(self, which: list[int], difference, pos: Position, when: When) -> Intervention:
        rows = self.dictionary.W_dec[which]

        def moved(x: Float[Tensor, "prompt pos d"]) -> Float[Tensor, "prompt pos d"]:
            now = self.dictionary.encode(x.to(rows.dtype)).dense()[..., which]
            return x + (difference(now) @ rows.to(now)).to(x.dtype)

        return interventions.edit(self.site, moved, pos=pos, when=when)

    def _which(self, latents: int | Sequence[int]) -> list[int]:
        which = [latents] if isinstance(latents, int) else list(latents)
        wrong = [latent for latent in which if not 0 <= latent < self.dictionary.width]
        if wrong:
            raise IndexError(
                f"latents {wrong} of a dictionary of {self.dictionary.width}: 0 to {self.dictionary.width - 1}"
            )
        return which
