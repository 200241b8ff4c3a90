"""What a claim is given to measure with: the network, what is known of it, seeded generators, work done once."""

import copy
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import torch

    from patchclamp.model import Model
    from patchclamp.organisms import Truth

Item = TypeVar("Item")
Result = TypeVar("Result")

MODEL, SAMPLED = "the model", "on text that the model wrote itself"
"""What a claim can have used, as `Lab.used` says; a verdict on a user's model tells all but the first."""
SAMPLE_TOKENS, SAMPLE_BATCH = 64, 250


class NotApplicable(ValueError):
    """A claim, or a whole study, cannot be asked of this model; says what it needs."""


class _Watched:
    """The model of a lab: who asks for it is said to have used it, so that a verdict can say which claims did not."""

    def __get__(self, lab: "Lab", owner: type) -> "Model":
        lab.used.add(MODEL)
        return lab.__dict__["model"]

    def __set__(self, lab: "Lab", model: "Model") -> None:
        lab.__dict__["model"] = model


@dataclass(repr=False)
class Lab:
    """The bench of one claim.

    `model` and `truth` are the organism's, or the user's own model with an empty truth. Under `--model random` the
    weights are fresh (`untrained`), and a study that trains a network of its own leaves it untrained. `full` asks for
    the paper's sizes instead of quick ones. `out` is a folder for files, None where none are wanted. `used` says
    whether the claim has asked for the model at all, itself or in work done once, and what stood in for what is not
    known of it.
    """

    model: "Model"
    truth: "Truth"
    seed: int = 0
    full: bool = False
    untrained: bool = False
    out: Path | None = None
    scope: str = ""
    shared: dict[Any, Any] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    @cached_property
    def generator(self) -> "torch.Generator":
        """A torch generator of this claim's own: its draws do not depend on which claims ran before."""
        import torch

        return torch.Generator().manual_seed(self._stream)

    @cached_property
    def numpy(self) -> "np.random.Generator":
        """The same for numpy."""
        import numpy

        return numpy.random.default_rng(self._stream)

    @property
    def _stream(self) -> int:
        return zlib.crc32(f"{self.seed}/{self.scope}".encode())

    def at(self, scope: str) -> "Lab":
        """The same lab with the generators of another claim; work done once stays done."""
        return self._like(self.seed, scope, self.shared)

    def of_seed(self, seed: int) -> "Lab":
        """The same claim's lab with another seed, and with work done once for all that ask for this seed."""
        found = self._like(seed, self.scope, self.shared.setdefault(("seed", seed), {}))
        found.used = self.used
        return found

    def _like(self, seed: int, scope: str, shared: dict[Any, Any]) -> "Lab":
        return Lab(self.__dict__["model"], self.truth, seed, self.full, self.untrained, self.out, scope, shared)

    def once(self, work: "Callable[..., Result]", *arguments: Any) -> Result:
        """`work(lab, *arguments)`, done once in a run for all claims that ask for it."""
        key = (work, *arguments)
        if key not in self.shared:
            scope = " ".join([getattr(work, "__qualname__", repr(work)), *map(str, arguments)])
            lab = self.at(scope)
            self.shared[key] = work(lab, *arguments)
            self.shared["used", *key] = lab.used
        self.used |= self.shared.get(("used", *key), set())
        return self.shared[key]

    def texts(self, n: int, seed: int) -> list[str]:
        """`n` texts such as the model was trained on: of an organism its documents, else what the model writes itself.

        It writes from its first token on, each next token drawn from its own distribution; the verdict says so.
        """
        if self.truth.writer is not None:
            return [document.text for document in self.truth.documents(n, seed=seed)]
        self.used.add(SAMPLED)
        return self.once(_written, n, seed)

    def progress(self, items: Iterable[Item], description: str = "") -> Iterator[Item]:
        """The items, with a bar in the terminal."""
        from patchclamp.views import track

        return track(items, description or self.scope.replace("_", " "))

    def need(self, condition: object, what: str) -> None:
        """Refuse the claim where the condition is false; `what` continues the sentence "this claim needs ..."."""
        if not condition:
            raise NotApplicable(f"needs {what}")

    def fresh(self, seed: int = 1) -> "Model":
        """The model's architecture with random weights, for a control; not those of `--model random`."""
        return random_weights(self.model, 1000 * self.seed + seed)

    def build(self, config: Any) -> "Model":
        """A causal language model of this transformers configuration with fresh weights, for identities."""
        import torch
        import transformers

        from patchclamp.model import wrap

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._stream)
            hf = transformers.AutoModelForCausalLM.from_config(config)
        return wrap(hf.eval(), name=f"a random {config.model_type}")

    def load(self, name: str) -> "Model":
        """Another organism; with fresh weights too, where this lab's are."""
        model = load_organism(name)
        return random_weights(model, self.seed) if self.untrained else model


Lab.model = _Watched()  # type: ignore[assignment]  to readers a Model; behind the dataclass, or it would be a default


def _written(lab: Lab, n: int, seed: int) -> list[str]:
    """Texts that the model writes behind the token that begins one, or behind that which ends one."""
    from patchclamp.inputs import beginning

    model = lab.model
    lab.need(model.tokenizer is not None, "a model with a tokenizer, which writes the text that is measured on")
    lab.need(hasattr(model.hf, "generate"), "a model that generates the text that is measured on")
    start = beginning(model.tokenizer)
    lab.need(start is not None, "a tokenizer that says which token begins or ends a text")
    found: list[str] = []
    for first in lab.progress(range(0, n, SAMPLE_BATCH), f"text written by {model.name}"):
        prompts = [[start]] * min(SAMPLE_BATCH, n - first)
        drawn = model.generate(prompts, max_new_tokens=SAMPLE_TOKENS, do_sample=True, seed=1000 * seed + first)
        found += drawn.new_texts or []
    return [text for text in found if text.strip()]


def open_lab(
    organism: str, *, model: "str | Path | Model | None", seed: int, full: bool, out: Path | None
) -> tuple[Lab, str]:
    """The lab for a study on `organism`, and the name of what is in it.

    `model` is None for the organism itself, "random" for its architecture with fresh weights, or the user's own.
    """
    from patchclamp.organisms import Truth

    if model is None or model == "random":
        own, untrained = load_organism(organism), model == "random"
        name = f"{organism} with random weights" if untrained else organism
        chosen = random_weights(own, seed) if untrained else own
        return Lab(chosen, organism_truth(organism), seed, full, untrained, out), name
    if isinstance(model, (str, Path)):
        from patchclamp.loading import load

        name = str(model)
        if name.startswith("organism:"):
            plain = name.removeprefix("organism:")
            return Lab(load_organism(plain), organism_truth(plain), seed, full, False, out), plain
        return Lab(load(model), Truth(name=""), seed, full, False, out), name  # a folder may be called as organisms are
    return Lab(model, Truth(name=""), seed, full, False, out), model.name


def load_organism(name: str) -> "Model":
    """The organism called `name`."""
    from patchclamp.loading import load

    return load(f"organism:{name}")


def organism_truth(name: str) -> "Truth":
    """What is known of it."""
    from patchclamp import organisms

    return organisms.truth(name)


def random_weights(model: "Model", seed: int) -> "Model":
    """The same architecture as `model` with the weights that training would start from.

    transformers' own initialisation where there is a configuration, else `reset_parameters` of every module. Raises
    `TypeError`, naming the module, where a module with parameters has no such method.
    """
    import torch

    from patchclamp.model import wrap

    name = f"{model.name} with random weights"
    with torch.random.fork_rng(devices=[]):  # initialisers draw from the global generator, which is put back
        torch.manual_seed(seed)
        config = getattr(model.hf, "config", None)
        if config is not None and hasattr(type(model.hf), "from_pretrained"):
            fresh = type(model.hf)(copy.deepcopy(config))
        else:
            fresh = copy.deepcopy(model.hf)
            for path, module in fresh.named_modules():
                if not list(module.parameters(recurse=False)):
                    continue
                reset = getattr(module, "reset_parameters", None)
                if not callable(reset):
                    raise TypeError(f"module {path or 'itself'} ({type(module).__name__}) has no reset_parameters()")
                reset()
    return wrap(fresh.to(device=model.device, dtype=model.dtype).eval(), model.tokenizer, name=name)
