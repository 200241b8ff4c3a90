"""Cross-layer transcoders: latents read one layer's MLP input and write to its output and those of all later layers.

    data = store.rows("mlp_in.0", "mlp_in.1", "mlp_out.0", "mlp_out.1")              # inputs first, then outputs
    transcoder = train_crosslayer(BatchTopK(k=16), data, width=4096)                 # trainer: crosslayer_training.py
    codes = transcoder.encode(x)                                                     # x [row, layer, d]
    transcoder.decode(codes)                                                         # [row, layer, d]

    f[l] = chosen(W_enc[l] (x[l] - b_in[l]) + b_enc[l])         y[m] = sum over l <= m of f[l] W_dec[m][l] + b_dec[m]

Codes are (indices, values) of each row and layer. `W_dec[m]` holds the rows of all latents that write to layer m: first
those of layer 0, then of layer 1, and so on to m; so that a layer's output is one sum over the codes below it
(Ameisen et al. 2025, transformer-circuits.pub/2025/attribution-graphs/methods.html).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from patchclamp.dictionaries.codes import Codes, strongest

CONFIG, WEIGHTS = "config.json", "crosslayer.safetensors"
SELECT = ("threshold", "topk")


class CrossLayerTranscoder(nn.Module):
    """One encoder for each layer, and decoders from each layer to itself and all later ones.

    `W_enc` is [layer, width, d_in]; `W_dec[m]` is [(m + 1) * width, d_out]; `threshold` and `b_enc` are [layer, width],
    `b_in` [layer, d_in], `b_dec` [layer, d_out], `W_skip`, where there is one, [layer, d_in, d_out]. `select` is
    "threshold" (JumpReLU; with zeros ReLU), or "topk" with `k` latents of each layer.
    """

    W_enc: Float[Tensor, "layer width d_in"]
    b_enc: Float[Tensor, "layer width"]
    b_in: Float[Tensor, "layer d_in"]
    b_dec: Float[Tensor, "layer d_out"]
    threshold: Float[Tensor, "layer width"]
    W_skip: Float[Tensor, "layer d_in d_out"] | None

    def __init__(
        self,
        W_enc: Float[Tensor, "layer width d_in"],
        b_enc: Float[Tensor, "layer width"],
        W_dec: Sequence[Float[Tensor, "sources d_out"]],
        b_dec: Float[Tensor, "layer d_out"],
        *,
        b_in: Float[Tensor, "layer d_in"] | None = None,
        threshold: Float[Tensor, "layer width"] | float = 0.0,
        select: str = "threshold",
        k: int | None = None,
        W_skip: Float[Tensor, "layer d_in d_out"] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        layers, width, d_in = W_enc.shape
        d_out = b_dec.shape[-1]
        if select not in SELECT or (k is None) != (select == "threshold"):
            raise ValueError(f"select={select!r} with k={k}: expected 'threshold' without k, or 'topk' with it")
        if len(W_dec) != layers:
            raise ValueError(f"{len(W_dec)} decoders of {layers} layers: W_dec[m] writes to layer m")
        tensors = {
            "W_enc": (W_enc, (layers, width, d_in)),
            "b_enc": (b_enc, (layers, width)),
            "b_dec": (b_dec, (layers, d_out)),
            "b_in": (W_enc.new_zeros(layers, d_in) if b_in is None else b_in, (layers, d_in)),
            "threshold": (torch.as_tensor(threshold, dtype=W_enc.dtype).expand(layers, width), (layers, width)),
            **{f"W_dec_{m}": (rows, ((m + 1) * width, d_out)) for m, rows in enumerate(W_dec)},
            **({} if W_skip is None else {"W_skip": (W_skip, (layers, d_in, d_out))}),
        }
        for name, (tensor, shape) in tensors.items():
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} is {tuple(tensor.shape)}; with W_enc {tuple(W_enc.shape)} it must be {shape}")
            self.register_buffer(name, tensor.detach().clone().contiguous())
        if W_skip is None:
            self.W_skip = None
        self.select, self.k, self.metadata = select, k, metadata or {}

    @property
    def layers(self) -> int:
        """Layers that are read, and written to."""
        return self.W_enc.shape[0]

    @property
    def width(self) -> int:
        """Latents of each layer."""
        return self.W_enc.shape[1]

    @property
    def W_dec(self) -> list[Float[Tensor, "sources d_out"]]:
        """For each layer the decoder rows of all latents that write to it."""
        return [self.get_buffer(f"W_dec_{m}") for m in range(self.layers)]

    def writes(
        self, layer: int, latents: int | Sequence[int] | Int[Tensor, " latent"]
    ) -> Float[Tensor, "*latent to d"]:
        """What latents of `layer` write to it and to each later layer."""
        at = torch.as_tensor(latents) + layer * self.width
        return torch.stack([self.get_buffer(f"W_dec_{m}")[at] for m in range(layer, self.layers)], -2)

    def encode_layer(self, layer: int, x: Float[Tensor, "*row d_in"]) -> Codes:
        """The codes of one layer, which depend on that layer's input alone."""
        pre = nn.functional.linear(x - self.b_in[layer], self.W_enc[layer], self.b_enc[layer])
        return self._chosen(pre, self.threshold[layer])

    def encode(self, x: Float[Tensor, "*row layer d_in"]) -> Codes:
        """Which latents of each layer are active, and how much: indices and values [row, layer, k]."""
        wanted = (self.layers, self.W_enc.shape[-1])
        if tuple(x.shape[-2:]) != wanted:
            raise ValueError(f"x is {tuple(x.shape)}; this transcoder reads rows of {wanted}")
        pre = torch.einsum("...ld,lfd->...lf", x - self.b_in, self.W_enc) + self.b_enc
        return self._chosen(pre, self.threshold)

    def decode_layer(
        self, layer: int, codes: Sequence[Codes], x: Float[Tensor, "*row d_in"] | None = None
    ) -> Float[Tensor, "*row d_out"]:
        """The explained output of one layer, from the codes of layers 0 to that one; a skip needs its input `x` too."""
        y = self.written(layer, codes) + self.b_dec[layer]
        if self.W_skip is None:
            return y
        if x is None:
            raise ValueError("this transcoder has a skip connection: decode(codes, x) needs the input too")
        return y + x @ self.W_skip[layer]

    def written(self, layer: int, codes: Sequence[Codes]) -> Float[Tensor, "*row d_out"]:
        """What latents of layers 0 to `layer` write to it, biases apart; `codes` has one item a layer."""
        below = codes[: layer + 1]
        indices = torch.cat([one.indices + source * self.width for source, one in enumerate(below)], -1)
        values = torch.cat([one.values for one in below], -1).to(self.W_enc.dtype)
        rows, table = indices.reshape(-1, indices.shape[-1]), self.get_buffer(f"W_dec_{layer}")
        y = nn.functional.embedding_bag(rows, table, per_sample_weights=values.reshape(rows.shape), mode="sum")
        return y.reshape(*indices.shape[:-1], -1)

    def decode(
        self, codes: Codes, x: Float[Tensor, "*row layer d_in"] | None = None
    ) -> Float[Tensor, "*row layer d_out"]:
        """Every layer's explained output. One with a skip connection needs `x` too; ValueError without it."""
        if codes.width != self.width or codes.indices.shape[-2] != self.layers:
            raise ValueError(
                f"codes of {codes.indices.shape[-2]} layers of {codes.width} latents; "
                f"this transcoder has {self.layers} of {self.width}"
            )
        each = self.by_layer(codes)
        inputs = [None] * self.layers if x is None else x.unbind(-2)
        return torch.stack([self.decode_layer(m, each, inputs[m]) for m in range(self.layers)], -2)

    def by_layer(self, codes: Codes) -> list[Codes]:
        """Codes [row, layer, k] as those of each layer."""
        pairs = zip(codes.indices.unbind(-2), codes.values.unbind(-2), strict=True)
        return [Codes(indices, values, self.width) for indices, values in pairs]

    def forward(self, x: Float[Tensor, "*row layer d_in"]) -> Float[Tensor, "*row layer d_out"]:
        """Encode and decode."""
        return self.decode(self.encode(x), x)

    def save(self, folder: str | Path, format: str = "patchclamp") -> Path:
        """Write a folder in our own format, or circuit-tracer's ("circuit_tracer"). ValueError for any other."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if format == "circuit_tracer":
            from patchclamp.dictionaries.formats import circuit_tracer

            circuit_tracer.write_set(self, folder)
        elif format == "patchclamp":
            save_file(self.state_dict(), folder / WEIGHTS)
            config = {"kind": "cross-layer transcoder", "layers": self.layers, "width": self.width}
            config |= {"select": self.select, "k": self.k, "metadata": self.metadata}
            (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
        else:
            raise ValueError(f"format={format!r}: a cross-layer transcoder is written as patchclamp or circuit_tracer")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "CrossLayerTranscoder":
        """What `save` wrote, in either format. FileNotFoundError where the folder holds none."""
        from safetensors.torch import load_file

        folder = Path(folder)
        if not (folder / WEIGHTS).is_file():
            from patchclamp.dictionaries.formats import circuit_tracer

            found = circuit_tracer.read_set(folder)
            if not isinstance(found, cls):
                raise ValueError(f"{folder} holds transcoders of single layers: circuit_tracer.read_set reads them")
            return found
        config, tensors = json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS)
        return cls(
            tensors["W_enc"],
            tensors["b_enc"],
            [tensors[f"W_dec_{m}"] for m in range(config["layers"])],
            tensors["b_dec"],
            b_in=tensors["b_in"],
            threshold=tensors["threshold"],
            select=config["select"],
            k=config["k"],
            W_skip=tensors.get("W_skip"),
            metadata=config["metadata"],
        )

    def extra_repr(self) -> str:
        how = f"{self.select}, k={self.k}" if self.k else self.select
        return f"{self.layers} layers of {self.width} latents ({how})"

    def _chosen(self, pre: Float[Tensor, "*row width"], threshold: Tensor) -> Codes:
        if self.select == "topk":
            values, indices = pre.topk(self.k or 1, dim=-1)
            return Codes(indices, values.relu(), self.width)
        return strongest(pre.relu() * (pre > threshold))
