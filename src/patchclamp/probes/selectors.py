"""Which units know a label: a score for every unit, by which k-sparse probes choose theirs.

    scores = SELECTORS["f"](x, y, weights)     # x [site, row, d], y and weights [some, row, label] -> [site, label, d]

Gurnee et al. 2023 (arXiv:2305.01610), section 3.2. None looks at anything but the rows it is given: which units are
chosen is part of the fit, and must see no row of the test.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from patchclamp.probes.linear import means
from patchclamp.probes.logistic import balance, deviation, solve

BINS = 16

Selector = Callable[[Tensor, Tensor, Tensor, int], Float[Tensor, "site label d"]]


def mean_difference(x: Tensor, y: Tensor, weights: Tensor, k: int = 1) -> Float[Tensor, "site label d"]:
    """|mean(yes) - mean(no)|, in the units of x."""
    yes, no, _ = means(x, y, weights)
    return (yes - no).abs()


def f_statistic(x: Tensor, y: Tensor, weights: Tensor, k: int = 1) -> Float[Tensor, "site label d"]:
    """F of a one-way analysis of variance: what lies between the two means over what lies within; 0 if constant."""
    yes, no, share = means(x, y, weights)
    total = weights.sum(1)
    second = (weights.transpose(1, 2) @ x**2) / total[..., None]
    mean = share[..., None] * yes + (1 - share[..., None]) * no
    between = (share * (1 - share))[..., None] * (yes - no) ** 2
    within = (second - mean**2 - between).clamp_min(1e-12 * second)
    return torch.where(within > 0, (total - 2)[..., None] * between / within.clamp_min(1e-300), 0.0)


def mutual_information(x: Tensor, y: Tensor, weights: Tensor, k: int = 1) -> Float[Tensor, "site label d"]:
    """Mutual information in nats of the label and the unit cut into 16 bins of equal counts, less its bias.

    Equal values share a bin, so that a unit which is mostly 0 has one bin for that. The bias of a plug-in estimate is
    (filled bins - 1) / 2n (Miller 1955).
    """
    sites, rows, d = x.shape
    bins = max(2, min(BINS, rows // 8))
    columns = x.transpose(1, 2).contiguous()
    ordered = columns.sort(-1).values
    edges = ordered[..., [round(rows * i / bins) for i in range(1, bins)]].contiguous()
    which = torch.searchsorted(edges, columns, right=True)
    found = []
    for label in range(y.shape[-1]):
        counts = []
        for mass in (weights[..., label] * y[..., label], weights[..., label] * (1 - y[..., label])):
            mass = mass[:, None].expand(sites, d, rows)
            counts.append(x.new_zeros(sites, d, bins).scatter_add_(2, which, mass))
        joint = torch.stack(counts)
        size = joint.sum((0, 3), keepdim=True)
        joint = joint / size
        alone = joint.sum(0, keepdim=True) * joint.sum(3, keepdim=True)
        information = torch.special.xlogy(joint, joint / alone.clamp_min(1e-300)).sum((0, 3))
        filled = (joint.sum(0) > 0).sum(-1)
        found.append(information - (filled - 1) / (2 * size[0, ..., 0]))
    return torch.stack(found, 1)


def l1(x: Tensor, y: Tensor, weights: Tensor, k: int = 1) -> Float[Tensor, "site label d"]:
    """Size of the weights of L1-penalised logistic regression, with a penalty that is lowered until k are not 0.

    By accelerated proximal steps (Beck and Teboulle 2009) on standardised units, each penalty from the last one's
    solution; the penalty starts where the first unit comes in and falls by a fifth.
    """
    x, y, weights = _standardised(x, y, weights)
    total = weights.sum(1)
    lipschitz = 0.3 * _largest_eigenvalue(x, weights) + 1e-12
    w = x.new_zeros(len(x), y.shape[-1], x.shape[-1])
    b = torch.logit((weights * y).sum(1) / total)
    residual = weights * (torch.sigmoid(b)[:, None] - y)
    penalty = (residual.transpose(1, 2) @ x).abs().amax(-1)
    for _ in range(40):
        done = (w != 0).sum(-1) >= min(k, x.shape[-1])
        if bool(done.all()):
            break
        penalty = torch.where(done, penalty, 0.8 * penalty)
        ahead, ahead_b, momentum = w, b, 1.0
        for _ in range(40):
            residual = weights * (torch.sigmoid(x @ ahead.transpose(1, 2) + ahead_b[:, None]) - y)
            moved = ahead - (residual.transpose(1, 2) @ x) / lipschitz[..., None]
            new = moved.sign() * (moved.abs() - (penalty / lipschitz)[..., None]).relu()
            new_b = ahead_b - residual.sum(1) / (0.25 * total)
            following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
            new, new_b = torch.where(done[..., None], w, new), torch.where(done, b, new_b)
            ahead, ahead_b = (a + (momentum - 1) / following * (a - o) for a, o in ((new, w), (new_b, b)))
            w, b, momentum = new, new_b, following
    # Units that are still out are ranked behind, by how near they are to coming in.
    residual = weights * (torch.sigmoid(x @ w.transpose(1, 2) + b[:, None]) - y)
    near = (residual.transpose(1, 2) @ x).abs()
    near = near / near.amax(-1, keepdim=True).clamp_min(1e-300)
    smallest = torch.where(w != 0, w.abs(), torch.inf).amin(-1, keepdim=True).clamp_max(1.0)
    return torch.where(w != 0, w.abs(), 0.999 * smallest * near)


def adaptive_thresholding(x: Tensor, y: Tensor, weights: Tensor, k: int = 1) -> Float[Tensor, "site label d"]:
    """Logistic regression is fitted again and again on the third of its units that have the largest weights.

    A unit's score is the number of rounds that it survives, and then its weight in the last one. From the 512 units of
    largest F on.
    """
    sites, _, d = x.shape
    labels = y.shape[-1]
    scale, weights = deviation(x, weights.mean(-1, keepdim=True)), balance(y, weights)
    size = min(d, max(512, k))
    kept = f_statistic(x, y, weights).topk(size, -1).indices
    scores = x.new_zeros(sites, labels, d)
    survived = 0
    while True:
        w = _refit(x / scale, y, weights, kept)
        part = w.abs() / w.abs().amax(-1, keepdim=True).clamp_min(1e-300)
        scores.scatter_(2, kept, survived + 0.999 * part)
        if size <= k:
            return scores
        size, survived = max(k, size // 3), survived + 1
        kept = kept.gather(2, part.topk(size, -1).indices)


def random(seed: int) -> Selector:
    """The control: units drawn at random."""

    def draw(x: Tensor, y: Tensor, weights: Tensor, k: int = 1) -> Float[Tensor, "site label d"]:
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(len(x), y.shape[-1], x.shape[-1], generator=generator, dtype=x.dtype).to(x.device)

    return draw


SELECTORS: dict[str, Selector] = {
    "mean": mean_difference,
    "f": f_statistic,
    "mutual_information": mutual_information,
    "l1": l1,
    "adaptive": adaptive_thresholding,
}


def gathered(x: Float[Tensor, "site row d"], support: Tensor) -> Float[Tensor, "site_label row k"]:
    """The chosen units of each label, labels in front."""
    sites, rows, _ = x.shape
    labels, k = support.shape[1:]
    index = support.reshape(sites, 1, labels * k).expand(-1, rows, -1)
    return x.gather(2, index).unflatten(2, (labels, k)).transpose(1, 2).flatten(0, 1)


def spread(values: Tensor, sites: int) -> Float[Tensor, "site_label row 1"]:
    """[some, row, label] as one label a row of sites, in the order of `gathered`."""
    return values.expand(sites, -1, -1).transpose(1, 2).flatten(0, 1)[..., None]


def _refit(x: Tensor, y: Tensor, weights: Tensor, support: Tensor) -> Float[Tensor, "site label k"]:
    sites = len(x)
    w, _ = solve(gathered(x, support), spread(y, sites), spread(weights, sites), tolerance=1e-4)
    return w[:, 0].unflatten(0, (sites, -1))


def _standardised(x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shared = weights.mean(-1, keepdim=True)
    centre = (shared * x).sum(1, keepdim=True) / shared.sum(1, keepdim=True)
    return (x - centre) / deviation(x, shared), y, balance(y, weights)


def _largest_eigenvalue(x: Tensor, weights: Tensor) -> Float[Tensor, "site label"]:
    """Of the Gram matrix with the label's weights, by twenty power iterations."""
    v = x.new_ones(len(x), weights.shape[-1], x.shape[-1])
    for _ in range(20):
        v = v / v.norm(dim=-1, keepdim=True)
        v = (weights * (x @ v.transpose(1, 2))).transpose(1, 2) @ x
    return v.norm(dim=-1)
