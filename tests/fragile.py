"""Networks that do what must not happen, each in a worker of its own: die, or fail.

Sources are tried on one image before any worker starts; there these networks behave.
"""

import os
import signal
import time
from pathlib import Path

import ray
import torch
from torch import nn


def in_actor() -> bool:
    return ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None


class Fragile(nn.Module):
    """Kills its process at the first image, as often as a file beside it allows."""

    def __init__(self, *, classes: int, lives: str) -> None:
        super().__init__()
        self.fc = nn.Linear(1, classes)
        self.lives = Path(lives)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left = list(self.lives.glob("life-*"))
        if left and in_actor():
            left[0].unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.fc(x.mean(dim=(1, 2, 3)).view(-1, 1))


def dying(*, classes: int, lives: str) -> nn.Module:
    return Fragile(classes=classes, lives=lives)


class Broken(Fragile):
    """Fails at the first image of a worker, not while it is looked at before."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if in_actor():
            raise ArithmeticError("the network is broken")
        return super().forward(x)


def broken(*, classes: int, lives: str) -> nn.Module:
    return Broken(classes=classes, lives=lives)


class Gated(Fragile):
    """Waits at every image while there is a life in the folder."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while in_actor() and list(self.lives.glob("life-*")):
            time.sleep(0.02)
        return super().forward(x)


def gated(*, classes: int, lives: str) -> nn.Module:
    return Gated(classes=classes, lives=lives)


class Mortal(nn.Module):
    """A small target that kills its process in the midst of training, as often as there are lives in a folder."""

    def __init__(self, *, classes: int, lives: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4, classes)
        self.lives = Path(lives)
        self.steps = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += self.training
        left = list(self.lives.glob("life-*"))
        if self.steps == 6 and left:
            left[0].unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.fc(torch.relu(self.conv(x)).mean(dim=(2, 3)))


def mortal(*, classes: int, lives: str) -> nn.Module:
    return Mortal(classes=classes, lives=lives)


class Picky(nn.Module):
    """Takes images of one size only, as transformers do."""

    def __init__(self, *, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(1, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] != 20:
            raise ValueError("it wants 20 by 20")
        return self.fc(x.mean(dim=(1, 2, 3)).view(-1, 1))


def picky(*, classes: int) -> nn.Module:
    return Picky(classes=classes)
