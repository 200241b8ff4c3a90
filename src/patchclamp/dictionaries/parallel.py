"""Training by several processes that torchrun started: each takes its share of every batch, and all learn the same.

    processes, device = together("cpu")      # ALONE, unless torchrun started this process
    x = processes.share(batch)               # every process is given the whole batch
    loss = processes.total(squared_error(x)) / processes.total(variance(x))
    loss.backward()
    processes.add_up(gradients)              # now those of the whole batch

`total` adds in the forward pass and is the identity in the backward pass, so that each process has its own rows' part
of the gradient of what the whole batch says, also where that is a ratio or a square of sums. The sum of those parts is
the gradient that one process would have found.
"""

import atexit
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function

Result = TypeVar("Result")


class Alone:
    """One process: its share is the batch, and its sums are the sums."""

    rank, size = 0, 1

    def share(self, rows: Float[Tensor, "row *d"]) -> Float[Tensor, "share *d"]:
        """This process's rows of a batch, which all were given."""
        return rows

    def total(self, value: Tensor) -> Tensor:
        """The sum over processes; its gradient goes to this process's value as it is."""
        return value

    def mean(self, value: Float[Tensor, ""], part: float) -> Float[Tensor, ""]:
        """The mean over the whole batch, of which the share, with this mean, is a `part`; gradient as of `total`."""
        return value

    def least(self, values: Tensor) -> Float[Tensor, ""]:
        """The smallest of all values."""
        return values.min()

    def most(self, values: Tensor) -> Float[Tensor, ""]:
        """The largest of all values."""
        return values.max()

    def largest(self, values: Float[Tensor, " n"], rows: int, k: int) -> tuple[Int[Tensor, " kept"], Tensor]:
        """Where, among this process's values, those are that belong to the k for each row of the whole batch that are
        largest anywhere, in order; and the largest values themselves, everybody's. `rows` are those of the share.
        """
        found, at = values.topk(rows * k, sorted=False)
        return at.sort().values, found

    def add_up(self, gradients: Iterable[Tensor]) -> None:
        """Sum each gradient over processes, in place."""

    def lead(self, do: Callable[[], Result]) -> Result:
        """What `do` returns or raises in the first process, in every process."""
        return do()

    def agree(self, run: Mapping[str, Any]) -> None:
        """ValueError where another process says something else of the run."""


ALONE = Alone()


class Processes(Alone):
    """The processes of torch.distributed's default group, on its backend, with tensors on `device`."""

    def __init__(self, device: torch.device) -> None:
        import torch.distributed as dist

        self.device = device
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def _all(self, tensor: Tensor, how: str = "SUM") -> Tensor:
        import torch.distributed as dist

        dist.all_reduce(tensor, getattr(dist.ReduceOp, how))
        return tensor

    def share(self, rows: Float[Tensor, "row *d"]) -> Float[Tensor, "share *d"]:
        return rows.tensor_split(self.size)[self.rank]

    def total(self, value: Tensor) -> Tensor:
        return _Total.apply(value, self)  # pyright: ignore[reportReturnType]

    def mean(self, value: Float[Tensor, ""], part: float) -> Float[Tensor, ""]:
        # A batch of fewer rows than processes leaves some with none, whose mean is not a number.
        return self.total(value * part if part else value.new_zeros(()))

    def least(self, values: Tensor) -> Float[Tensor, ""]:
        return -self.most(-values)

    def most(self, values: Tensor) -> Float[Tensor, ""]:
        lowest = -torch.inf if values.is_floating_point() else torch.iinfo(values.dtype).min
        mine = values.max() if len(values) else values.new_tensor(lowest)
        return self._all(mine.clone(), "MAX")

    def largest(self, values: Float[Tensor, " n"], rows: int, k: int) -> tuple[Int[Tensor, " kept"], Tensor]:
        # Every process compares the same values in the same order, so that all agree also where two are equal.
        sizes = torch.zeros(2, self.size, dtype=torch.long)
        sizes[:, self.rank] = torch.tensor([len(values), rows])
        lengths, shares = self._all(sizes.to(self.device)).tolist()
        first = sum(lengths[: self.rank])
        whole = values.new_zeros(sum(lengths), dtype=torch.float32)  # in which bfloat16 is exact
        whole[first : first + len(values)] = values
        found, at = self._all(whole).topk(sum(shares) * k, sorted=False)
        return at[(at >= first) & (at < first + len(values))].sort().values - first, found

    def add_up(self, gradients: Iterable[Tensor]) -> None:
        for gradient in gradients:
            self._all(gradient)

    def lead(self, do: Callable[[], Result]) -> Result:
        import torch.distributed as dist

        told: list[Any] = [None, None]
        if not self.rank:
            try:
                told[0] = do()
            except Exception as failed:  # the others must not wait for what will not come
                told[1] = failed
        dist.broadcast_object_list(told, src=0)
        if told[1] is not None:
            raise told[1]
        return told[0]

    def agree(self, run: Mapping[str, Any]) -> None:
        import torch.distributed as dist

        runs: list[Any] = [None] * self.size
        dist.all_gather_object(runs, dict(run))
        for rank, other in enumerate(runs):
            different = [
                f"{name}={other[name]} (in process 0 {value})"
                for name, value in runs[0].items()
                if other[name] != value
            ]
            if different:
                raise ValueError(
                    f"process {rank} trains something else: {', '.join(different)}. All processes of torch.distributed "
                    "train the same dictionaries on the same data together; give each the same."
                )


class _Total(Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, processes: Processes) -> Tensor:
        return processes._all(value.detach().clone())

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None


def together(device: str | torch.device) -> tuple[Alone, torch.device]:
    """The processes that train together, and this one's device: ALONE where neither torchrun started this process nor
    torch.distributed is initialised. "cuda" is the GPU of the process's number on its machine.
    """
    import torch.distributed as dist

    device = torch.device(device)
    if not dist.is_available() or not (dist.is_initialized() or dist.is_torchelastic_launched()):
        return ALONE, device
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL's collectives of objects ask for it
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())
    return (Processes(device) if dist.get_world_size() > 1 else ALONE), device
