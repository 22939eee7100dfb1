"""Checkpoints of a training, under its run key. One that is damaged is passed over for the one before it.

checkpoints/<run key>/epoch-000003                 after three epochs
checkpoints/<run key>/epoch-000003-step-000017     and after 17 steps of the next, where it had to leave
"""

import hashlib
import io
from typing import Any

import torch

from cluster.storage import Storage

KEPT = 2


def newest_epochs(storage: Storage) -> dict[str, int]:
    """Epochs that the newest state of each training has behind it, by run key, from one listing."""
    newest: dict[str, int] = {}
    for key in storage.keys("checkpoints"):
        _, run_key, name = key.split("/")
        newest[run_key] = max(newest.get(run_key, 0), _epoch(name))
    return newest


def _epoch(name: str) -> int:
    return int(name.split("-")[1])


def _name(*, epoch: int, step: int) -> str:
    """What a state is called; names sort as states follow each other."""
    return f"epoch-{epoch:06d}" + (f"-step-{step:06d}" if step else "")


class Checkpoints:
    """The saved states of one training, newest last. Each is its SHA-256 followed by a torch file of plain values."""

    def __init__(self, storage: Storage, run_key: str) -> None:
        self.storage = storage
        self.prefix = f"checkpoints/{run_key}"

    def save(self, state: dict[str, Any]) -> None:
        """Publish a state, then let the oldest go."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        data = buffer.getvalue()
        name = _name(epoch=state["epoch"], step=state.get("step", 0))
        self.storage.write(f"{self.prefix}/{name}", hashlib.sha256(data).digest() + data)
        for key in list(self.storage.keys(self.prefix))[:-KEPT]:
            self.storage.delete(key)

    def newest_epoch(self) -> int:
        """Epochs that the newest state has behind it, 0 where there is none."""
        keys = list(self.storage.keys(self.prefix))
        return _epoch(keys[-1].rpartition("/")[2]) if keys else 0

    def load(self) -> dict[str, Any] | None:
        """Return the newest whole state, or None."""
        for key in reversed(list(self.storage.keys(self.prefix))):
            data = self.storage.read(key) or b""
            if hashlib.sha256(data[32:]).digest() == data[:32]:
                state: dict[str, Any] = torch.load(io.BytesIO(data[32:]), weights_only=True)
                return state
        return None

    def clear(self) -> None:
        """Remove all states, once the result is there."""
        for key in list(self.storage.keys(self.prefix)):
            self.storage.delete(key)
