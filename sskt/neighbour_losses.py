"""Losses between an image and its neighbours: how like it each of them is, in one space and in another.

Groups are embeddings [G, 1 + n, D]: an image, then its n neighbours.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sskt.embedding_losses import directions
from sskt.relations import kl, row_softmax, unit_size


def cosine(groups: Tensor) -> Tensor:
    """cos(z_i, z_j) of each group's image i with its neighbours j: [G, n]."""
    rows = directions(groups.flatten(0, 1)).view_as(groups)
    return (rows[:, :1] * rows[:, 1:]).sum(dim=2)


def rbf(groups: Tensor) -> Tensor:
    """exp(-||z_i - z_j||^2 / m_i), m_i the mean of these squares over i's neighbours, so blind to scale: [G, n]."""
    groups = unit_size(groups)
    squares = (groups[:, :1] - groups[:, 1:]).square().sum(dim=2)
    mean = squares.mean(dim=1, keepdim=True)
    return torch.exp(-squares / torch.where(mean > 0, mean, 1.0))


KERNELS: dict[str, Callable[[Tensor], Tensor]] = {"rbf": rbf, "cosine": cosine}


def local_structure(target: Tensor, source: Tensor, *, kernel: str, temperature: float) -> Tensor:
    """Mean over the groups of KL(source || target) of softmaxes, over the neighbours, of kernel / temperature.

    target: [G, 1 + n, D]; source: [G, 1 + n, D_source].
    """
    mine, its = (row_softmax(KERNELS[kernel](groups) / temperature) for groups in (target, source))
    return kl(mine, its)
