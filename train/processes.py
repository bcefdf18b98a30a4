"""The processes of a run: one, or those that torchrun started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from wfvae.errors import TrainingError

ENDED_ELSEWHERE = (
    "another process of this run has ended; its message says why, unless it was killed; --resume continues"
    " from the last checkpoint"
)
"""Message of a process that ends because another one did."""

_PATIENCE = timedelta(hours=2)
"""How long processes wait for each other, such as while the first one validates."""


@dataclass(frozen=True)
class World:
    """This process among its peers."""

    rank: int
    """0..size-1; process 0 writes the files."""
    size: int
    """Number of processes."""
    device: torch.device
    """Where this process computes."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """Returns the mean of a tensor over all processes, the same in each."""
        if self.size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.size

    def any(self, flag: bool) -> bool:
        """Returns whether the flag is set in any process."""
        if self.size == 1:
            return flag
        raised = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return bool(raised.item())

    def synchronize_device(self) -> None:
        """Waits for the device, so that its time is measured where it is spent."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def wait(self) -> None:
        """Waits until all processes have come here."""
        if self.size > 1:
            dist.barrier()


def processes_here() -> int:
    """Returns how many processes torchrun started on this machine; 1 without torchrun."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(int(text), 1) if text.isdecimal() else 1


@contextmanager
def join_world(threads: int) -> Iterator[World]:
    """Joins the processes that torchrun started, by NCCL on GPUs and gloo on CPUs.

    Each has so many CPU threads. Raises `TrainingError` if they do not find each other, or if,
    later, another one ends.
    """
    torch.set_num_threads(threads)
    gpu = torch.cuda.is_available()
    if "WORLD_SIZE" not in os.environ:
        yield World(0, 1, torch.device("cuda", 0) if gpu else torch.device("cpu"))
        return
    try:
        local = int(os.environ["LOCAL_RANK"])
        if gpu:
            torch.cuda.set_device(local)
        dist.init_process_group("nccl" if gpu else "gloo", timeout=_PATIENCE)
    except (KeyError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(
            f"the processes of this run cannot be joined: {reason}; start them by: torchrun"
            " --nproc-per-node N"
        ) from error
    device = torch.device("cuda", local) if gpu else torch.device("cpu")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device)
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        raise TrainingError(ENDED_ELSEWHERE) from error
    finally:
        dist.destroy_process_group()


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether an exchange with other processes failed because one of them has ended."""
    # gloo's errors have no class of their own.
    return isinstance(error, dist.DistError) or "gloo" in str(error)
