"""A model as it is, with its anatomy beside it: run it, record it, change what passes through it.

model = pc.load("organism:tales")
run = model.run("When Mary and John went to the store, John gave a drink to", record="z.*")
run.logits, run["z.2.1"]
model.generate("The day", do=[pc.add("resid_post.2", direction, scale=4)], max_new_tokens=12).text
with model.under(do=[pc.ablate("z.2.1")], record="resid_post.*") as run:
    loss = model.hf(**batch).loss
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from patchclamp.anatomy.discover import Anatomy, discover
from patchclamp.certificate import Certificate, certify
from patchclamp.inputs import Tokens, as_tokens
from patchclamp.interventions import Intervention
from patchclamp.positions import Frame, Position
from patchclamp.recording import Recording
from patchclamp.runtime import NeverFired, Session, Stopped
from patchclamp.sites import Site, SiteError
from patchclamp.tape import as_keeps
from patchclamp.weights import Weights

Record = Any
"""A site, a pattern, `pc.keep(...)`, or a list of them."""


@dataclass
class Run:
    """What one forward pass gave: `logits`, the model's own `output`, and `run[site]` for what was recorded."""

    logits: Float[Tensor, "prompt pos vocab"] | None = None
    output: Any = None
    recording: Recording = field(default_factory=lambda: Recording({}, Frame.plain(0, 0)))
    grad: Recording | None = None
    tokens: Tokens | None = None

    def __getitem__(self, site: "str | Site") -> Any:
        return self.recording[site]

    def __contains__(self, site: object) -> bool:
        return site in self.recording

    @property
    def mask(self):
        """Bool [prompt, pos]: the real tokens."""
        return self.recording.frame.mask if self.tokens is None else self.tokens.mask

    def __repr__(self) -> str:
        shape = None if self.logits is None else list(self.logits.shape)
        return f"Run(logits={shape}, recording={[str(site) for site in self.recording]})"


@dataclass
class Generation:
    """What was generated: `tokens` with the prompt in front (left-padded), the texts, and what was recorded."""

    tokens: Int[Tensor, "prompt pos"]
    prompt_length: int
    texts: list[str] | None
    new_texts: list[str] | None
    recording: Recording
    single: bool

    @property
    def text(self) -> "str | list[str] | None":
        """Prompt and continuation: a string for one string, else a list."""
        return self.texts[0] if self.texts is not None and self.single else self.texts

    @property
    def new_text(self) -> "str | list[str] | None":
        """The continuation alone."""
        return self.new_texts[0] if self.new_texts is not None and self.single else self.new_texts

    def __getitem__(self, site: "str | Site") -> Any:
        return self.recording[site]


class Model:
    """An unmodified transformers model or any `nn.Module` (`model.hf`), and where each site lives in it."""

    def __init__(self, module: nn.Module, tokenizer: Any = None, name: str = ""):
        self.hf, self.tokenizer = module, tokenizer
        self.name = name or type(module).__name__
        self._anatomies: dict[str, Anatomy] = {}

    # ── what it is ────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def anatomy(self) -> Anatomy:
        """Where the sites are; discovered once for each attention implementation."""
        implementation = getattr(getattr(self.hf, "config", None), "_attn_implementation", None) or "none"
        if implementation not in self._anatomies:
            self._anatomies[implementation] = discover(self.hf, self.name)
        return self._anatomies[implementation]

    def sites(self, pattern: "str | Site | Sequence[str | Site] | None" = None) -> list[Site]:
        """All sites of this model (whole ones), or those that patterns name, each once, in the order of `record=`."""
        return list(self.anatomy.taps) if pattern is None else self.anatomy.inventory.expand(pattern)

    def certify(self) -> Certificate:
        """Check every site's equation on a short prompt; see `patchclamp.certificate`."""
        self.__dict__.pop("certificate", None)
        return self.certificate

    @cached_property
    def certificate(self) -> Certificate:
        """The certificate, made when first asked for."""
        return certify(self.anatomy, self.hf, self._raw_run)

    @cached_property
    def weights(self) -> Weights:
        """W_Q[layer, head], W_O, W_in, W_U and the others, in one orientation, as views."""
        return Weights(self.hf, self.anatomy)

    @property
    def n_layers(self) -> int:
        return self.anatomy.inventory.layers[""]

    @property
    def n_heads(self) -> int:
        """Query heads of the first layer that has attention; 0 without."""
        return next((layer.recipe.heads for layer in self.anatomy.layers[""] if layer.recipe is not None), 0)

    @property
    def d_model(self) -> int:
        return self.anatomy.d_model

    @property
    def embeddings(self) -> nn.Embedding:
        """The token embedding table's module."""
        get = getattr(self.hf, "get_input_embeddings", None)
        if get is None:
            raise SiteError(f"{self.name} has no token embeddings")
        return get()

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.hf.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.hf.parameters()), torch.get_default_dtype())

    @property
    def pad(self) -> int:
        """The id that fills short prompts; masked, so that its choice changes nothing."""
        own = getattr(self.tokenizer, "pad_token_id", None)
        config = getattr(self.hf, "config", None)
        choices = (own, getattr(config, "pad_token_id", None), getattr(config, "eos_token_id", None), 0)
        first = next(c for c in choices if c is not None)
        return first[0] if isinstance(first, (list, tuple)) else int(first)

    def __repr__(self) -> str:
        layers = self.anatomy.layers[""]
        if not layers:
            return f"Model({self.name}: {type(self.hf).__name__}, module sites only)"
        size = f"{len(layers)} layers, {self.n_heads} heads, d_model {self.d_model}"
        return f"Model({self.name}: {type(self.hf).__name__}, {size})"

    # ── running it ────────────────────────────────────────────────────────────────────────────────────────────────

    def tokens(self, inputs: Any, attention_mask: Any = None) -> Tokens:
        """Prompts as right-padded ids with their mask."""
        found = as_tokens(inputs, self.tokenizer, self.pad, attention_mask)
        if found is None:
            raise TypeError(f"{type(inputs).__name__} holds no text and no token ids")
        return found

    def run(
        self,
        inputs: Any,
        *,
        record: Record = None,
        do: "Sequence[Intervention] | Intervention" = (),
        grad: Callable[[Tensor], Tensor] | None = None,
        attention_mask: Any = None,
        stop: "str | Site | bool | None" = None,
        positions: Position = None,
    ) -> Run:
        """One forward pass; logits equal those of the model itself bit for bit.

        `record` says what to keep, at `positions` (all by default); recorded values are what the model went on with,
        after `do`. `grad` is a function of the logits: its sum's gradient at each recorded site is `run.grad[site]`.
        `stop` is the last site that is needed (True: the last recorded): the pass ends there, and there are no logits.
        """
        arguments, tokens = self._arguments(inputs, attention_mask)
        keeps = as_keeps(record, positions)
        end = self._stop(stop, keeps)
        if grad is not None and (not keeps or end):
            raise ValueError("grad= needs sites to differentiate by (record=) and a whole forward pass (no stop=)")
        frames = {} if tokens is None else {"": tokens.frame}
        if frames and self._encodes:
            frames["encoder"] = frames[""]
        session = Session(self.hf, self.anatomy, keeps, _several(do), frames=frames, grad=grad is not None, stop=end)
        output = None
        with torch.set_grad_enabled(grad is not None):
            with session:
                try:
                    output = self.hf(**arguments)
                except Stopped:
                    if not end:
                        raise
            logits = None if output is None else _logits(output)
            gradients = None
            if grad is not None:
                if logits is None:
                    raise ValueError(f"grad= is a function of logits, which {self.name} does not return")
                gradients = session.gradients(grad(logits).sum())
        if grad is not None and logits is not None:
            logits = logits.detach()
        recording = session.recording() if grad is None else session.recording().detach()
        return Run(logits, output, recording, gradients, tokens)

    def generate(
        self,
        inputs: Any,
        *,
        do: "Sequence[Intervention] | Intervention" = (),
        record: Record = None,
        max_new_tokens: int,
        do_sample: bool = False,
        seed: int = 0,
        temperature: float = 1.0,
        attention_mask: Any = None,
    ) -> Generation:
        """Continue the prompts with a KV cache; interventions mean what they mean in `run`, token by token.

        Sampling draws from the model's distribution at `temperature`, with its own seed; greedy otherwise.
        """
        if not hasattr(self.hf, "generate"):
            raise TypeError(f"{type(self.hf).__name__} cannot generate: it has no generate() of its own")
        tokens = self.tokens(inputs, attention_mask).moved_left(self.pad)
        frames = {"encoder": tokens.frame} if self._encodes else {"": replace(tokens.frame, reach=max_new_tokens)}
        session = Session(self.hf, self.anatomy, as_keeps(record), _several(do), frames=frames, reach=max_new_tokens)
        # Only what is said here: a checkpoint's own defaults (beams, penalties, truncation) would change the meaning.
        options: dict[str, Any] = {
            "num_beams": 1,
            "repetition_penalty": 1.0,
            "temperature": None,
            "top_p": None,
            "top_k": None,
        }
        if do_sample:
            options |= {"temperature": temperature, "top_p": 1.0, "top_k": 0, "min_p": None, "typical_p": 1.0}
        if self._accepts("logits_to_keep") and any(site.kind in ("logits", "module") for site in session.stages):
            options["logits_to_keep"] = 0  # all of the prompt's, not the last one's alone
        ids, mask = tokens.ids.to(self.device), tokens.mask.to(self.device)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices), session:
            torch.manual_seed(seed)
            out = self.hf.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=mask.long(),
                max_new_tokens=max_new_tokens,
                do_sample=do_sample,
                pad_token_id=self.pad,
                use_cache=True,
                disable_compile=True,
                **options,
            )
        width = 0 if self._encodes else ids.shape[1]
        texts = new = None
        if self.tokenizer is not None:
            texts = self.tokenizer.batch_decode(out, skip_special_tokens=True)
            new = self.tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
        return Generation(out, width, texts, new, session.recording(), isinstance(inputs, str))

    @contextmanager
    def under(self, do: "Sequence[Intervention] | Intervention" = (), record: Record = None) -> Iterator[Run]:
        """Intervene on and record the forward passes that you run yourself (`model.hf(...)`), training steps included.

        The run that it yields is filled when the block ends, and holds the last forward pass. Recorded tensors stay in
        the graph, so that a loss may use them.
        """
        run = Run()
        session = Session(self.hf, self.anatomy, as_keeps(record), _several(do))
        handle = self.hf.register_forward_hook(lambda mod, args, out: _fill(run, session, out))
        try:
            with session:
                yield run
                if not session.passes.count:
                    raise NeverFired("the block under model.under(...) ended without a forward pass of model.hf")
        finally:
            handle.remove()

    # ── inputs ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _arguments(self, inputs: Any, attention_mask: Any) -> tuple[dict[str, Any], Tokens | None]:
        """Keyword arguments of the model's forward; positions follow from the mask here and nowhere else."""
        tokens = as_tokens(inputs, self.tokenizer, self.pad, attention_mask)
        if tokens is None:
            return self._given(inputs), None
        name = "input_ids" if self._accepts("input_ids") else getattr(self.hf, "main_input_name", "") or self._first()
        arguments: dict[str, Any] = {name: tokens.ids.to(self.device)}
        if tokens.padded or attention_mask is not None:
            if not self._accepts("attention_mask"):
                raise ValueError(
                    f"{type(self.hf).__name__} takes no attention_mask: run prompts of one length together"
                )
            arguments["attention_mask"] = tokens.mask.long().to(self.device)
            arguments |= self._behind_padding(name, tokens.ids, tokens.mask)
        return arguments, tokens

    def _behind_padding(self, name: str, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """What keeps a model from counting the padding on the left of its prompts as positions."""
        if bool(mask[:, 0].all()) or self._encodes:
            return {}
        if self._own_positions:  # counted from the ids: whatever fills the padding must be the pad
            return {name: torch.where(mask.bool(), ids, self.pad).to(self.device)}
        positions = (mask.long().cumsum(1) - 1).clamp_min(0).to(self.device)
        return {"position_ids": positions} if self._accepts("position_ids") else {}

    def _given(self, inputs: Any) -> dict[str, Any]:
        if isinstance(inputs, Mapping):
            given = dict(inputs)
            unknown = [key for key in given if not self._accepts(key)]
            if unknown:
                raise TypeError(f"{type(self.hf).__name__}.forward takes no {', '.join(unknown)}")
            mask, ids = given.get("attention_mask"), given.get("input_ids")
            whole = not {"position_ids", "past_key_values"} & given.keys()
            if whole and isinstance(mask, Tensor) and isinstance(ids, Tensor) and mask.shape == ids.shape:
                given |= self._behind_padding("input_ids", ids, mask)
            return {key: v.to(self.device) if isinstance(v, Tensor) else v for key, v in given.items()}
        tensor = torch.as_tensor(inputs)
        name = getattr(self.hf, "main_input_name", None)
        return {name if name and self._accepts(name) else self._first(): tensor.to(self.device)}

    @cached_property
    def _parameters(self) -> dict[str, inspect.Parameter]:
        return dict(inspect.signature(self.hf.forward).parameters)

    def _accepts(self, name: str) -> bool:
        return name in self._parameters

    def _first(self) -> str:
        return next(iter(self._parameters))

    @property
    def _encodes(self) -> bool:
        """Whether the prompts go to an encoder, and the output comes from a decoder."""
        return bool(getattr(getattr(self.hf, "config", None), "is_encoder_decoder", False))

    @cached_property
    def _own_positions(self) -> bool:
        """Models that derive positions from the padding themselves, and count them differently."""
        return any(hasattr(m, "create_position_ids_from_input_ids") for m in self.hf.modules())

    def _stop(self, stop: "str | Site | bool | None", keeps: list) -> list[Site]:
        """The sites after which the pass may end; none where it must go on, for logits at least."""
        if stop is None or stop is False:
            return []
        if stop is True:
            sites = [site.whole for want in keeps for site in self.anatomy.inventory.expand(want.sites)]
            if not sites:
                raise ValueError("stop=True ends after the last recorded site, and record= names none")
            return [] if any(s.kind == "logits" for s in sites) else sites
        found = self.anatomy.inventory.expand(stop)
        if len(found) != 1:
            raise SiteError(f"stop={stop!r} names {len(found)} sites; the pass ends at one")
        return [found[0].whole]

    def _raw_run(self, arguments: dict[str, Any], record: Record, do: Sequence[Intervention] = ()) -> Run:
        """A run on the model's own arguments, for the certificate."""
        session = Session(self.hf, self.anatomy, as_keeps(record), do)
        with torch.no_grad(), session:
            output = self.hf(**arguments)
        return Run(_logits(output), output, session.recording())


def wrap(module: nn.Module, tokenizer: Any = None, *, name: str = "") -> Model:
    """A `Model` around a module that you have; it is not changed. Any module has `module:` sites."""
    if isinstance(module, Model):
        return module
    if not isinstance(module, nn.Module):
        raise TypeError(f"wrap takes a torch.nn.Module, not {type(module).__name__}; pc.load takes names and folders")
    return Model(module, tokenizer, name)


def _several(do: "Sequence[Intervention] | Intervention") -> Sequence[Intervention]:
    return [do] if isinstance(do, Intervention) else do


def _logits(output: Any) -> Tensor | None:
    return output if isinstance(output, Tensor) else getattr(output, "logits", None)


def _fill(run: Run, session: Session, output: Any) -> None:
    if session._active():
        run.output, run.logits, run.recording = output, _logits(output), session.recording()
