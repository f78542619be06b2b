"""Distributes training over the processes that ``torchrun`` starts; also handles a single process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from misgnet.training.start import batch_norms
from misgnet_runtime.errors import UsageError
from misgnet_runtime.formatting import plural

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Position of this process among the processes of a run."""

    rank: int = 0  # number of this process, from 0
    size: int = 1  # number of processes

    @property
    def first(self) -> bool:
        """Returns whether this is the process that writes, reports and decides."""
        return self.rank == 0

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """Returns the part of a batch that belongs to this process."""
        return items[self.rank :: self.size]

    def sum(self, value: Tensor) -> Tensor:
        """Returns the sum over the processes, with gradient.

        The backward pass also sums the gradients of all processes, and DistributedDataParallel averages the result.
        If every process computes the loss from such sums, the gradient is exactly that of the joint batch.
        """
        return value if self.size == 1 else _SumOverRanks.apply(value)

    def broadcast_from_first(self, numbers: list[float], device: torch.device) -> list[float]:
        """Returns the numbers of the first process, so that decisions based on its clock are the same everywhere."""
        if self.size == 1:
            return numbers
        shared = torch.tensor(numbers, dtype=torch.float64, device=device)
        dist.broadcast(shared, 0)
        return shared.tolist()

    def broadcast_statistics(self, network: nn.Module) -> None:
        """Copies the batch-norm statistics of the first process, which saves the weights, to all processes."""
        if self.size > 1:
            for value in network.buffers():
                dist.broadcast(value, 0)

    def wrap(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Wraps the network so that gradients are averaged over the processes.

        On CUDA, batch norms use the joint batch. PyTorch supports this only on CUDA; on the CPU, each process
        normalises its own part.
        """
        if self.size == 1:
            return network
        if device.type == "cuda" and any(norm.training for norm in batch_norms(network)):
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return nn.parallel.DistributedDataParallel(network, [device] if device.type == "cuda" else None)


class _SumOverRanks(torch.autograd.Function):
    """Differentiable sum over processes.

    PyTorch's own is deprecated, without a public successor in the supported versions.
    """

    @staticmethod
    def forward(_: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return _SumOverRanks.forward(_, gradient.contiguous())


@contextmanager
def process_group(device: torch.device) -> Iterator[Ranks]:
    """Joins the processes that torchrun started (NCCL on CUDA, else gloo); does nothing for a single process."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()


def check_batch(batch: int, ranks: Ranks) -> None:
    """Raises UsageError unless the batch can be divided equally among the processes."""
    if batch % ranks.size:
        raise UsageError(
            f"a batch of {plural(batch, 'pair')} cannot be divided equally among {ranks.size} processes; choose "
            "another --batch"
        )
