"""One seed a person gives, many independent ones derived from it by purpose."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, purpose: str) -> int:
    """Derive the seed of one purpose; purposes do not disturb each other."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Draw from the purpose's own random numbers and leave everyone else's where they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, purpose))
        yield
