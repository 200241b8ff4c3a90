"""One file of a store: safetensors, written from parts and memory-mapped back; and how rows become its tensors.

    parts = encode(compress(rows, "bfloat16"))          # header and data, ready to be written
    tensors = mapped(path)                              # views of the file: nothing is read until it is used
    expand(tensors, index, torch.float32)               # the rows `index`, as they were, up to the precision kept

"int8" keeps each row in 8 bits under the row's largest magnitude, and apart from that, in bfloat16, the few dimensions
that are far larger than the others in real residual streams, which would take all 8 bits for themselves.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchclamp.store.errors import Damaged

DTYPES = {"bfloat16": 2, "float32": 4, "int8": 1}
"""What rows can be kept as, and the bytes of one number."""
_NAMES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.uint8: "U8",
}
_TYPES = {name: dtype for dtype, name in _NAMES.items()}


def encode(tensors: Mapping[str, Tensor]) -> list[Any]:
    """A safetensors file as parts to be written one after the other; the same tensors give the same bytes."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))  # so that all are aligned
    header: dict[str, Any] = {}
    parts: list[Any] = []
    end = 0
    for name, tensor in ordered:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        begin, end = end, end + flat.numel() * flat.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        if len(flat):
            parts.append(flat.view(torch.uint8).numpy().data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little") + text, *parts]


def mapped(path: Path) -> dict[str, Tensor]:
    """The tensors of a file as views of it, mapped into memory; `Damaged` where it is missing or not whole."""
    try:
        size = path.stat().st_size
        data = np.memmap(path, np.uint8, "c") if size else np.empty(0, np.uint8)  # "c": private, never written back
    except FileNotFoundError:
        raise Damaged(f"{path} is missing") from None
    return _views(torch.from_numpy(data), str(path))


def decode(data: bytes, name: str) -> dict[str, Tensor]:
    """The tensors of a file that was read whole; `Damaged` where it is not."""
    return _views(torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8), name)


def _views(data: Tensor, name: str) -> dict[str, Tensor]:
    size = len(data)
    length = int.from_bytes(data[:8].numpy().tobytes(), "little")
    if not 0 < length <= size - 8:
        raise Damaged(f"{name} is truncated: it has {size:,} bytes, fewer than its header")
    try:
        header = json.loads(data[8 : 8 + length].numpy().tobytes())
    except ValueError:
        raise Damaged(f"{name} is no safetensors file: its header cannot be read") from None
    header.pop("__metadata__", None)
    body = data[8 + length :]
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if end != len(body):
        raise Damaged(f"{name} is truncated: it has {size:,} bytes, and its header says {8 + length + end:,}")
    found = {}
    for key, entry in header.items():
        begin, stop = entry["data_offsets"]
        found[key] = body[begin:stop].view(_TYPES[entry["dtype"]]).view(entry["shape"])
    return found


def read_ahead(path: Path) -> None:
    """Have the system read a file in order before its rows are asked for in disorder, which disks are slow at."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def compress(rows: Float[Tensor, "row d"], dtype: str) -> dict[str, Tensor]:
    """Rows as the tensors that hold them in `dtype`: "bfloat16", "float32" or "int8"."""
    if dtype != "int8":
        return {"activations": rows.to(getattr(torch, dtype))}
    kept = outliers_kept(rows.shape[1])
    dims = rows.float().abs().mean(0).topk(kept).indices.sort().values
    quiet = rows.float().index_fill(1, dims, 0)
    scale = quiet.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
    small = (quiet / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
    return {"activations": small, "scale": scale, "outliers": rows[:, dims].bfloat16(), "outlier_dims": dims}


def outliers_kept(d: int) -> int:
    """Dimensions that "int8" keeps in bfloat16."""
    return max(1, d // 64)


def expand(
    tensors: Mapping[str, Tensor], index: "Int[Tensor, 'n'] | slice", dtype: torch.dtype
) -> Float[Tensor, "n d"]:
    """The rows at `index` out of what `compress` made."""
    rows = tensors["activations"][index]
    if "scale" not in tensors:
        return rows.to(dtype, copy=isinstance(index, slice))
    full = rows.float() * tensors["scale"][index][:, None]
    full[:, tensors["outlier_dims"]] = tensors["outliers"][index].float()
    return full.to(dtype)


def row_bytes(d: int, dtype: str) -> int:
    """Bytes that one row of `d` numbers takes on disk."""
    return d * DTYPES[dtype] + (4 + 2 * outliers_kept(d) if dtype == "int8" else 0)
