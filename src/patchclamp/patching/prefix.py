"""Keys and values of the positions before a patch, for runs that begin behind them.

why = refusal(cache)                                   # None, or why runs cannot begin in the middle
past = cropped(cache, rows=8, start=5, copies=3, layer=2)
"""

from typing import Any

from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer


def refusal(cache: Any) -> str | None:
    """Why runs cannot begin behind what this cache holds; None where they can."""
    if not isinstance(cache, DynamicCache):
        return f"the model returns {type(cache).__name__}, not a cache of keys and values"
    for layer in cache.layers:
        if not isinstance(layer, DynamicLayer) or type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            return f"its cache has a {type(layer).__name__}, which is more than keys and values"
        if not layer.is_initialized:
            return "some of its layers keep no keys and values of their own"
    return None


def croppable(cache: DynamicCache) -> bool:
    """Whether keys and values of every position are there: a sliding window has forgotten the first."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def cropped(cache: DynamicCache, *, rows: int, start: int, copies: int, layer: int) -> DynamicCache:
    """The positions before `start` of the first `rows` prompts, `copies` times side by side from `layer` on.

    Layers below are not run; they lend the cache its length alone.
    """
    found = DynamicCache()
    for index, held in enumerate(cache.layers):
        keys, values = held.keys[:rows, :, :start], held.values[:rows, :, :start]  # type: ignore[index]
        if index >= layer and copies > 1:
            keys, values = keys.repeat_interleave(copies, 0), values.repeat_interleave(copies, 0)
        fresh = DynamicLayer()
        fresh.lazy_initialization(keys, values)
        fresh.keys, fresh.values = keys, values
        found.layers.append(fresh)
    return found
