"""What a language model has to beat: an n-gram model with interpolated, modified Kneser-Ney smoothing.

baseline = KneserNey(stream, order=4, vocabulary=2048)
baseline.loss(held_out)                               # nats a token
baseline.distribution(histories)                      # Float[history, vocabulary]
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class _Order:
    """Grams of one length as numbers in base `vocabulary`, oldest token first, and the histories that they begin with;
    both ascending.
    """

    grams: Int[Tensor, " gram"]
    share: Float[Tensor, " gram"]  # discounted count / count of the history
    histories: Int[Tensor, " history"]
    left: Float[Tensor, " history"]  # what the discounts leave to the next lower order


class KneserNey:
    """Interpolated n-gram model with modified Kneser-Ney discounts (Chen & Goodman 1998, section 3).

    p(w | h) = (c(hw) - D(c(hw))) / c(h) + left(h) p(w | h'), where h' is h without its oldest token, D takes three
    values (for counts of 1, 2, and 3 or more), left(h) makes the sum one, and all orders but the highest count in how
    many different contexts a gram was seen in place of how often. Below the single tokens all are equally likely.
    A history that was never seen gives all to the lower order. Grams run across the ends of documents.
    """

    def __init__(self, stream: Int[Tensor, " token"], order: int, vocabulary: int):
        """Count the grams of up to `order` tokens; ValueError where their numbers do not fit 63 bits."""
        if order < 1 or vocabulary**order >= 2**63:
            raise ValueError(f"order {order} with {vocabulary} tokens: grams must be numbered from 0 to 2^63")
        self.order, self.vocabulary = order, vocabulary
        grams, counts = torch.unique(self._numbers(stream.unfold(0, order, 1)), return_counts=True)
        orders = [_discounted(grams, counts, vocabulary)]
        for length in range(order - 1, 0, -1):
            grams, counts = torch.unique(grams % vocabulary**length, return_counts=True)
            orders.append(_discounted(grams, counts, vocabulary))
        self._orders = orders[::-1]

    def probability(self, grams: Int[Tensor, "gram order"]) -> Float[Tensor, " gram"]:
        """How likely the last token of each gram is after the others (double precision)."""
        if grams.shape[-1] != self.order:
            raise ValueError(f"grams of {grams.shape[-1]} tokens were given to a model of {self.order}")
        number = self._numbers(grams)
        p = torch.full(number.shape, 1 / self.vocabulary, dtype=torch.float64)
        for length, table in enumerate(self._orders, start=1):
            gram = number % self.vocabulary**length
            share = _look_up(table.grams, table.share, gram, missing=0.0)
            p = share + p * _look_up(table.histories, table.left, gram // self.vocabulary, missing=1.0)
        return p

    def distribution(self, histories: Int[Tensor, "history order_less_1"]) -> Float[Tensor, "history vocabulary"]:
        """How likely each token of the vocabulary is after each history."""
        every = torch.arange(self.vocabulary)
        rows = [
            self.probability(torch.cat([history.expand(self.vocabulary, -1), every[:, None]], dim=1))
            for history in histories
        ]
        return torch.stack(rows)

    def loss(self, stream: Int[Tensor, " token"]) -> float:
        """Mean loss in nats of `stream[order - 1:]`."""
        return -self.probability(stream.unfold(0, self.order, 1)).log().mean().item()

    def _numbers(self, grams: Int[Tensor, "gram length"]) -> Int[Tensor, " gram"]:
        number = torch.zeros(grams.shape[:-1], dtype=torch.long)
        for token in grams.unbind(-1):
            number = number * self.vocabulary + token
        return number


def _discounted(grams: Int[Tensor, " gram"], counts: Int[Tensor, " gram"], vocabulary: int) -> _Order:
    n1, n2, n3, n4 = ((counts == seen).sum().item() for seen in (1, 2, 3, 4))
    if min(n1, n2, n3, n4) > 0:
        y = n1 / (n1 + 2 * n2)
        steps = [0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    else:  # the estimate needs grams of each count; single tokens of a long text are all frequent
        steps = [0.0, 0.5, 0.5, 0.5]
    discount = torch.tensor(steps, dtype=torch.float64).clamp(min=0)[counts.clamp(max=3)]
    histories, row = torch.unique(grams // vocabulary, return_inverse=True)
    total = torch.zeros(len(histories), dtype=torch.float64).index_add_(0, row, counts.double())
    left = torch.zeros(len(histories), dtype=torch.float64).index_add_(0, row, discount)
    return _Order(grams, (counts - discount) / total[row], histories, left / total)


def _look_up(
    keys: Int[Tensor, " key"], values: Float[Tensor, " key"], asked: Int[Tensor, " asked"], missing: float
) -> Float[Tensor, " asked"]:
    at = torch.searchsorted(keys, asked).clamp(max=len(keys) - 1)
    return torch.where(keys[at] == asked, values[at], missing)
