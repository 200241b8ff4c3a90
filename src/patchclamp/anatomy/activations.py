"""Activation functions by name: which of them an MLP has is found by trying them on what it computed."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu (tanh)": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu squared": lambda x: F.relu(x).square(),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "identity": lambda x: x,
    "tanh": torch.tanh,
}
