"""Several workers that train one model: each takes its share of every batch, gradients are averaged (Li et al., 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from core.training_data import Share


@dataclass(frozen=True, eq=False)
class DataParallel:
    """This process among the workers of a model. share: its part of every batch. group: None for all processes that torch has joined.

    Each worker calls what is here as often as the others, in the same order.
    """

    share: Share
    group: dist.ProcessGroup | None = None

    @staticmethod
    def joined(group: dist.ProcessGroup | None = None) -> DataParallel:
        """The workers of a process group that exists (`torch.distributed.init_process_group`)."""
        return DataParallel(Share(dist.get_rank(group), dist.get_world_size(group)), group)

    @property
    def is_first(self) -> bool:
        """Whether it is this worker that keeps what all have alike."""
        return self.share.rank == 0

    def averaging(self, objective: nn.Module) -> DistributedDataParallel:
        """The module whose gradients are the workers' mean. All begin with the first one's weights."""
        return DistributedDataParallel(objective, process_group=self.group, broadcast_buffers=False, gradient_as_bucket_view=True)

    def mean(self, values: Tensor) -> Tensor:
        """The workers' mean of what each has, alike on all."""
        values = values.detach().clone()
        dist.all_reduce(values, group=self.group)
        return values / self.share.size

    def agree(self, number: int, device: torch.device) -> bool:
        """Whether all have the same number. device: where the group's backend takes tensors from."""
        own = torch.tensor([number, -number], device=device)
        dist.all_reduce(own, dist.ReduceOp.MAX, self.group)
        return int(own[0]) == -int(own[1])

    def first_says(self, is_so: bool, device: torch.device) -> bool:
        """What the first worker says, on all."""
        said = torch.tensor([is_so and self.is_first], dtype=torch.uint8, device=device)
        dist.all_reduce(said, dist.ReduceOp.MAX, self.group)
        return bool(said.item())
