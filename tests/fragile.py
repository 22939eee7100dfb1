"""Networks that do what must not happen, each in a worker of its own, such as die or fail; one keeps a diary of it.

Sources are tried on one image before any worker starts; there these networks behave.
"""

import fcntl
import os
import signal
import time
import zlib
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
            self.befall()
        return self.fc(torch.relu(self.conv(x)).mean(dim=(2, 3)))

    def befall(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def mortal(*, classes: int, lives: str) -> nn.Module:
    return Mortal(classes=classes, lives=lives)


class Hanging(Mortal):
    """A small target that hangs where a mortal one dies."""

    def befall(self) -> None:
        time.sleep(10_000)


def hanging(*, classes: int, lives: str) -> nn.Module:
    return Hanging(classes=classes, lives=lives)


class Large(Mortal):
    """A small target of which one at a time fits into memory: a lock in the folder, held as long as it is there.

    In an actor, the one that fits waits in its first step until another was refused.
    """

    room = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and self.room is None:
            self.room = (self.lives / "room").open("w")
            try:
                fcntl.flock(self.room, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                (self.lives / "refused").touch()
                raise torch.OutOfMemoryError("no room for two") from None
            while in_actor() and not (self.lives / "refused").exists():
                time.sleep(0.02)
        return super().forward(x)


def large(*, classes: int, lives: str) -> nn.Module:
    return Large(classes=classes, lives=lives)


class Diligent(nn.Module):
    """A small target that writes its process and each training step into a diary, one file for each training.

    Which training it is, and how many steps it has behind it, is part of its state and of what is exported.
    """

    def __init__(self, *, classes: int, diaries: str, nap: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4, classes)
        self.diaries, self.nap = Path(diaries), nap
        self.register_buffer("born", torch.tensor(0))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.write_down(x)
            time.sleep(self.nap)
        return self.fc(torch.relu(self.conv(x)).mean(dim=(2, 3)))

    def write_down(self, x: torch.Tensor) -> None:
        if self.steps == 0:  # its first batch and its weights are those of no other training
            self.born += zlib.crc32(x.numpy().tobytes() + self.conv.weight.detach().numpy().tobytes())
        self.steps += 1
        with (self.diaries / f"{int(self.born)}").open("a") as diary:
            diary.write(f"{os.getpid()}@{os.uname().nodename} {int(self.steps)}\n")


def diligent(*, classes: int, diaries: str, nap: float) -> nn.Module:
    return Diligent(classes=classes, diaries=diaries, nap=nap)


class Thorough(nn.Module):
    """A source that takes its time in a worker, and writes into a diary what it has looked at."""

    def __init__(self, *, classes: int, diary: str, nap: float) -> None:
        super().__init__()
        self.fc = nn.Linear(4, classes)
        self.diary, self.nap = Path(diary), nap

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if in_actor():
            with self.diary.open("a") as diary:
                diary.write(f"{zlib.crc32(x.numpy().tobytes())}\n")
            time.sleep(self.nap)
        return self.fc(x.mean(dim=1).flatten(1)[:, :4])


def thorough(*, classes: int, diary: str, nap: float) -> nn.Module:
    return Thorough(classes=classes, diary=diary, nap=nap)


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
