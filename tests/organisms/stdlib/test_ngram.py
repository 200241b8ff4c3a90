import math
from collections import Counter

import pytest
import torch

from patchclamp.organisms.stdlib.ngram import KneserNey


def text(length, vocabulary=12, seed=0):
    """Tokens of a Markov chain of order two."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.distributions.Dirichlet(torch.full((vocabulary,), 0.3))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        chances = table.sample((vocabulary, vocabulary))
    tokens = [0, 1]
    for _ in range(length):
        tokens.append(int(torch.multinomial(chances[tokens[-2], tokens[-1]], 1, generator=generator)))
    return torch.tensor(tokens)


def by_hand(stream, gram, vocabulary):
    """The formula of Chen & Goodman, with dictionaries."""
    tokens, order = stream.tolist(), len(gram)
    tables = {order: Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))}
    for length in range(order - 1, 0, -1):
        tables[length] = Counter(longer[1:] for longer in tables[length + 1])

    def p(gram):
        if not gram:
            return 1 / vocabulary
        table = tables[len(gram)]
        n = [sum(count == k for count in table.values()) for k in (1, 2, 3, 4)]
        if all(n):
            y = n[0] / (n[0] + 2 * n[1])
            steps = [0, *(max(0, k - (k + 1) * y * n[k] / n[k - 1]) for k in (1, 2, 3))]
        else:
            steps = [0, 0.5, 0.5, 0.5]
        after = {g: c for g, c in table.items() if g[:-1] == gram[:-1]}
        if not after:
            return p(gram[1:])
        total = sum(after.values())
        left = sum(steps[min(c, 3)] for c in after.values()) / total
        count = table[gram]
        return (count - steps[min(count, 3)]) / total + left * p(gram[1:])

    return p(gram)


def test_it_is_the_formula_written_plainly():
    stream = text(800)
    model = KneserNey(stream, 3, 12)
    grams = torch.randint(12, (60, 3), generator=torch.Generator().manual_seed(3))
    expected = torch.tensor([by_hand(stream, tuple(gram), 12) for gram in grams.tolist()], dtype=torch.float64)
    assert torch.allclose(model.probability(grams), expected, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_sum_to_one_after_any_history(order):
    model = KneserNey(text(500), order, 14)  # two tokens were never seen
    histories = torch.randint(14, (40, order - 1), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(model.distribution(histories).sum(-1), torch.ones(40, dtype=torch.float64))
    assert (model.distribution(histories) > 0).all()


def test_the_loss_is_that_of_the_text_and_order_three_is_best_on_a_chain_of_order_two():
    stream, tested = text(20_000), text(4_000, seed=1)
    losses = {order: KneserNey(stream, order, 12).loss(tested) for order in (1, 2, 3)}
    assert losses[3] < losses[2] - 0.1 and losses[2] < losses[1] < math.log(12)
    model = KneserNey(stream, 3, 12)
    some = torch.stack([model.distribution(h[None])[0] for h in tested[:50].unfold(0, 2, 1)[:-1]])
    by_rows = -some.gather(1, tested[2:50, None]).log().mean().item()
    assert math.isclose(by_rows, model.loss(tested[:50]), rel_tol=1e-9)


def test_wrong_orders_are_answered():
    with pytest.raises(ValueError, match="order 6 with 2048"):
        KneserNey(text(50), 6, 2048)
    with pytest.raises(ValueError, match="grams of 2 tokens were given to a model of 3"):
        KneserNey(text(500), 3, 12).probability(torch.zeros(1, 2, dtype=torch.long))
