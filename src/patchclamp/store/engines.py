"""Who does the units: this process, the processes that torchrun started, or Ray's actors. Each writes what it does.

    engine_called("local")      engine_called("torchrun")      engine_called("ray", workers=4)

An engine gives out units and hears that they are done; activations go from the model to the disk, and nowhere else.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

from patchclamp.model import Model
from patchclamp.store.errors import Mismatch
from patchclamp.store.harvest import harvest, sites_of
from patchclamp.store.manifest import Plan, describe_model, read_tensors, shard_name
from patchclamp.store.places import Place
from patchclamp.store.units import Unit
from patchclamp.store.writer import write_unit

Result = TypeVar("Result")
ModelSource = Model | Callable[[], Model]


@dataclass(frozen=True)
class Job:
    """What it takes to do any unit: the model (and where other processes get it from), the place, and the plan."""

    model: Model
    source: ModelSource
    place: Place
    plan: Plan
    batch_tokens: int


def same_model(model: Model, plan: Plan) -> None:
    """`Mismatch` unless it is the model that the plan was made with: each process loads its own."""
    found = describe_model(model)
    if found["weights"] != plan.model["weights"]:
        raise Mismatch(
            f"this process has loaded {found['name']} with weights {found['weights'][:12]}..., and the store is of "
            f"{plan.model['name']} with weights {plan.model['weights'][:12]}..."
        )


def gather(job: Job, number: int) -> tuple[Unit, dict[str, Any]]:
    """A unit and the rows that the model gives for it."""
    unit = Unit.from_tensors(read_tensors(job.place, shard_name("documents", number)))
    sites = sites_of(job.model, list(job.plan.sites))
    return unit, harvest(job.model, unit, sites, seed=job.plan.cut.seed, batch_tokens=job.batch_tokens)


class Engine(Protocol):
    """Does units, wherever."""

    @property
    def workers(self) -> int:
        """How many work at once."""
        ...

    def lead(self, do: Callable[[], Result]) -> Result:
        """Do something once, and give its result (or raise its error) in every process."""
        ...

    def run(self, job: Job, numbers: Sequence[int]) -> Iterator[int]:
        """Do the units, each number as it is done here; returns when all are done, everywhere."""
        ...


@dataclass(frozen=True)
class Local:
    """One unit after the other in this process; the last is written while the next goes through the model."""

    workers: int = 1

    def lead(self, do: Callable[[], Result]) -> Result:
        return do()

    def run(self, job: Job, numbers: Sequence[int]) -> Iterator[int]:
        pending: Future[Mapping[str, Any]] | None = None
        with ThreadPoolExecutor(1) as writer:
            for number in numbers:
                unit, rows = gather(job, number)
                if pending is not None:
                    yield pending.result()["unit"]
                pending = writer.submit(write_unit, job.place, job.plan, unit, rows)
            if pending is not None:
                yield pending.result()["unit"]


class Torchrun:
    """Every process that torchrun started calls `record` alike; each does every n-th unit, the first also the rest."""

    def __init__(self):
        self._group: list[Any] = []

    @property
    def workers(self) -> int:
        import torch.distributed as dist

        self._joined()
        return dist.get_world_size()

    def _joined(self) -> Any:
        """A group of our own, on gloo, whose patience does not end while another process is at work."""
        import torch.distributed as dist

        if not self._group:
            if not dist.is_initialized():
                if not dist.is_torchelastic_launched():
                    raise RuntimeError(
                        "engine='torchrun' is for processes that torchrun starts: "
                        "torchrun --nproc-per-node 2 script.py, where the script calls record"
                    )
                dist.init_process_group("gloo", timeout=timedelta(days=7))
            self._group.append(dist.new_group(backend="gloo", timeout=timedelta(days=7)))
        return self._group[0]

    def lead(self, do: Callable[[], Result]) -> Result:
        import torch.distributed as dist

        group = self._joined()
        told: list[Any] = [None, None]
        if dist.get_rank() == 0:
            try:
                told[0] = do()
            except Exception as failed:  # the others must not wait for what will not come
                told[1] = failed
        dist.broadcast_object_list(told, src=0, group=group)
        if told[1] is not None:
            raise told[1]
        return told[0]

    def run(self, job: Job, numbers: Sequence[int]) -> Iterator[int]:
        import torch.distributed as dist

        group = self._joined()
        failed: list[Any] = [None] * dist.get_world_size()
        mine: Exception | None = None
        try:
            if dist.get_rank():
                same_model(job.model, job.plan)
            yield from Local().run(job, numbers[dist.get_rank() :: dist.get_world_size()])
        except Exception as error:
            mine = error
        dist.all_gather_object(failed, mine and f"{type(mine).__name__}: {mine}", group=group)
        if mine is not None:
            raise mine
        others = [f"rank {rank}: {text}" for rank, text in enumerate(failed) if text]
        if others:
            raise RuntimeError("another process failed: " + "; ".join(others))


def engine_called(name: "str | Engine", workers: int | None) -> Engine:
    """The engine of a name, "local", "torchrun" or "ray", with as many workers; an engine itself is given back."""
    if not isinstance(name, str):
        if workers is not None:
            raise ValueError("workers= goes with the name of an engine; this one knows how many it has")
        return name
    if name == "ray":
        from patchclamp.store.ray_engine import Ray

        return Ray(workers=workers or 2)
    if name not in ("local", "torchrun"):
        raise ValueError(f"there is no engine {name!r}: say 'local', 'torchrun' or 'ray'")
    if workers not in (None, 1) and name == "local":
        raise ValueError(
            f"engine='local' is one process, not {workers}: say engine='ray', or 'torchrun' under torchrun"
        )
    if workers is not None and name == "torchrun":
        raise ValueError("torchrun itself says how many processes there are: leave workers= out")
    return Local() if name == "local" else Torchrun()
