"""Units done by Ray's actors, on one machine or a cluster: they write shards; activations never meet the object store.

    pc.record(model, corpus, sites, out, engine="ray", workers=4)
    pc.record(load, corpus, sites, "s3://bucket/acts", engine=Ray(workers=64, gpus=1, address="auto"))

An actor that dies is replaced, and its unit is done again. Every worker must be able to write to `out`.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from patchclamp.model import Model, wrap
from patchclamp.store.engines import Job, gather, same_model
from patchclamp.store.errors import StoreError
from patchclamp.store.writer import write_unit

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ray:
    """`workers` actors with `cpus` cores and `gpus` devices each; `attempts` is how often one unit may kill its actor.

    `address` is the cluster's; without one, a Ray that runs in this process is used, or one is started for the call.
    """

    workers: int = 2
    cpus: float = 1
    gpus: float = 0
    address: str | None = None
    attempts: int = 3

    def __post_init__(self) -> None:
        if self.workers < 1 or self.attempts < 1:
            raise ValueError(f"workers={self.workers} and attempts={self.attempts} must be at least 1")

    def lead(self, do: Callable[[], Result]) -> Result:
        return do()

    def run(self, job: Job, numbers: Sequence[int]) -> Iterator[int]:
        """Do the units on the actors; each number as it is done."""
        if not numbers:
            return
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ImportError("engine='ray' needs: pip install 'patchclamp[ray]'") from None
        own = not ray.is_initialized()
        if own:
            # Logical cores: more than the actors hold, so that what Ray itself schedules never waits for them.
            here = {} if self.address else {"num_cpus": int(self.workers * self.cpus) + 2, "include_dashboard": False}
            ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR, **here)
        try:
            yield from self._on(ray, job, list(numbers))
        finally:
            if own:
                ray.shutdown()

    def _on(self, ray: Any, job: Job, waiting: list[int]) -> Iterator[int]:
        count = min(self.workers, len(waiting))
        there = ray.cluster_resources()
        for what, needed in (("CPU", count * self.cpus), ("GPU", count * self.gpus)):
            if there.get(what, 0) < needed:
                raise StoreError(f"{count} workers need {needed:g} {what}, and this Ray has {there.get(what, 0):g}")
        shared = ray.put(_portable(job, self.gpus))
        actor = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_restarts=0)(_Worker)
        idle = [actor.remote(shared) for _ in range(count)]
        busy: dict[Any, tuple[Any, int]] = {}
        tried: dict[int, int] = {}
        try:
            while waiting or busy:
                while waiting and idle:
                    worker, number = idle.pop(), waiting.pop(0)
                    busy[worker.do.remote(number)] = (worker, number)
                (ready, *_), _ = ray.wait(list(busy), num_returns=1)
                worker, number = busy.pop(ready)
                try:
                    yield ray.get(ready)
                    idle.append(worker)
                except ray.exceptions.RayActorError as died:
                    tried[number] = tried.get(number, 0) + 1
                    if tried[number] >= self.attempts:
                        raise StoreError(f"unit {number} killed {self.attempts} workers, one after another") from died
                    waiting.insert(0, number)
                    idle.append(actor.remote(shared))
                except ray.exceptions.RayTaskError as failed:
                    raise (failed.cause or failed) from failed
        finally:
            for worker in (*idle, *(worker for worker, _ in busy.values())):
                ray.kill(worker)


def _portable(job: Job, gpus: float) -> tuple[Any, ...]:
    """A job without what does not travel: of a model, its module and its tokenizer."""
    rest = (job.place, job.plan, job.batch_tokens)
    if not isinstance(job.source, Model):
        return job.source, None, *rest
    if job.source.device.type != "cpu" or gpus:
        raise ValueError(
            "Ray's workers load a model on their own devices: give record a function, such as "
            "functools.partial(pc.load, 'NAME', device='cuda'), in place of the model"
        )
    return None, (job.source.hf, job.source.tokenizer, job.source.name), *rest


class _Worker:
    """One actor: it gets the model when it does its first unit, so that what goes wrong there is that unit's error."""

    def __init__(self, shared: tuple[Any, ...]):
        self.shared, self.job = shared, None

    def do(self, number: int) -> int:
        if self.job is None:
            load, parts, place, plan, batch_tokens = self.shared
            model = load() if parts is None else wrap(parts[0], parts[1], name=parts[2])
            if load is not None:
                same_model(model, plan)
            self.job = Job(model, model, place, plan, batch_tokens)
        return write_unit(self.job.place, self.job.plan, *gather(self.job, number))["unit"]
