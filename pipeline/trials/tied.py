"""Processes that train one target together, tied by their gradients."""

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def tied(module: nn.Module, *, world: int, bucket_mb: float) -> nn.Module:
    """Have the gradients of a module, which is on its device, averaged over all processes, a bucket of them at a time.

    A bucket goes on its way as soon as it is full, while the backward pass goes on; gradients lie in the buckets
    themselves, so there is no second copy of them.
    """
    if world == 1:
        return module
    device = next(module.parameters()).device
    if device.type == "cuda":  # where NCCL would otherwise put what it needs by itself: on the first one, for all
        torch.cuda.set_device(device)
    return DistributedDataParallel(module, bucket_cap_mb=bucket_mb, gradient_as_bucket_view=True)


def gathered(own: Tensor, *, world: int) -> Tensor:
    """A tensor [n] of every process, [processes, n], the same in all of them."""
    rows = [own] if world == 1 else [torch.empty_like(own) for _ in range(world)]
    if world > 1:
        torch.distributed.all_gather(rows, own)
    return torch.stack(rows)
