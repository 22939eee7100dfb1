"""How good a target is on a held-out split."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


@torch.inference_mode()
def accuracy(predict: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Percentage of images whose largest logit is that of their class."""
    correct, total = 0, 0
    for images, labels in batches:
        correct += int((predict(images).argmax(dim=1) == labels).sum())
        total += len(labels)
    return 100.0 * correct / total
