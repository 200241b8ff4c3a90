"""What inference costs: `flops("fista", d=768, width=12288, iterations=200)`, for one row.

Multiplications and additions of matrix products count one each, as in torch's own counter; what is done element by
element, or once for a decoder (its spectral norm, its Gram matrix), does not.
"""

from collections.abc import Sequence
from itertools import pairwise

from patchclamp.dictionaries.inference.proximal import EVERY, uses_gram


def flops(
    method: str, *, d: int, width: int, iterations: int | None = None, k: int | None = None, hidden: Sequence[int] = ()
) -> int:
    """Floating-point operations for one row by one of `METHODS`.

    "encoder" is linear, or an MLP with layers of `hidden` neurons; "fista", "ista" and "optimise" take `iterations`;
    "omp" and "gradient-pursuit" choose `k` latents. ValueError where that number is missing or another is given.

    >>> flops("encoder", d=8, width=16)
    256
    >>> flops("encoder", d=8, width=16, hidden=(32,)) == 2 * (8 * 32 + 32 * 16)
    True
    """
    needs = {"encoder": (), "omp": ("k",), "gradient-pursuit": ("k",)}.get(method, ("iterations",))
    given = {"iterations": iterations, "k": k, "hidden": hidden or None}
    wrong = [name for name in ("iterations", "k") if (given[name] is not None) != (name in needs)]
    if wrong or (hidden and method != "encoder"):
        raise ValueError(f"{method}: expected {', '.join(needs) or 'no iterations and no k'}; got {given}")
    match method:
        case "encoder":
            sizes = [d, *hidden, width]
            return 2 * sum(a * b for a, b in pairwise(sizes))
        case "fista" | "ista":
            assert iterations is not None
            looks = -(-iterations // EVERY) * 4 * d * width
            each = 2 * width**2 if uses_gram(width, d) else 4 * d * width
            return iterations * each + looks + (2 * d * width if uses_gram(width, d) else 0)
        case "optimise":
            assert iterations is not None
            return iterations * 4 * d * width
        case "omp" | "gradient-pursuit":
            assert k is not None
            # each round: all correlations, the new row of the Gram matrix, the residual; then the small system
            rounds = sum(2 * d * width + 4 * d * t for t in range(1, k + 1))
            small = sum(4 * t**2 if method == "gradient-pursuit" else t**3 // 3 + 4 * t**2 for t in range(1, k + 1))
            return rounds + small
        case _:
            raise ValueError(f"no method is called {method!r}")
