"""Training over several processes, as ``torchrun`` starts them; one process alone is the plain case."""

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

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's number among ``size`` processes."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes, reports and decides."""
        return self.rank == 0

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share of a batch."""
        return items[self.rank :: self.size]

    def sum(self, value: Tensor) -> Tensor:
        """Sum over the processes, with gradient.

        The gradient is the sum of all processes' too. DistributedDataParallel takes its mean, so that a loss
        that each computes from the sums of all gets the gradient of the joint batch, no more and no less.
        """
        return value if self.size == 1 else _SumOverRanks.apply(value)

    def first_says(self, numbers: list[float], device: torch.device) -> list[float]:
        """The numbers of the first process: what depends on a clock must be the same for all."""
        if self.size == 1:
            return numbers
        shared = torch.tensor(numbers, dtype=torch.float64, device=device)
        dist.broadcast(shared, 0)
        return shared.tolist()

    def same_statistics(self, network: nn.Module) -> None:
        """The first process's batch-norm statistics for all: those of its weights are what is kept."""
        if self.size > 1:
            for value in network.buffers():
                dist.broadcast(value, 0)

    def wrap(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network that averages gradients over the processes; on CUDA batch norms see the joint batch.

        PyTorch has such batch norms for CUDA only: on the CPU each process normalises its own part.
        """
        if self.size == 1:
            return network
        if device.type == "cuda" and any(norm.training for norm in batch_norms(network)):
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return nn.parallel.DistributedDataParallel(network, [device] if device.type == "cuda" else None)


class _SumOverRanks(torch.autograd.Function):
    """PyTorch's own differentiable sum is deprecated without a public successor in the versions that we allow."""

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
    """Join the processes that torchrun started (NCCL on CUDA, else gloo); alone, nothing is joined."""
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
    """UsageError unless every process gets an equal part of a batch."""
    if batch % ranks.size:
        raise UsageError(f"a batch of {batch} pairs cannot be shared by {ranks.size} processes; choose another --batch")
