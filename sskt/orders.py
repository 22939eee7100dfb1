"""Orders: endless streams of ids with random access, shuffled throughout or within a window of parts that moves on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sskt.seeds import derive


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which rows of every batch this process trains on."""

    rank: int = 0
    world: int = 1


class Stream(Protocol):
    """An endless stream of ids with random access: every pass has each of them once, in an order of its own."""

    ids: Tensor

    def take(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Return ids and passes (int64 [count]) of the positions start, start + 1, ..."""


class IndexStream:
    """A stream in which each pass is a permutation of all ids, drawn like any other."""

    def __init__(self, ids: Tensor, *, seed: int) -> None:
        self.ids = ids
        self.seed = seed
        self._orders: dict[int, Tensor] = {}

    def take(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Return ids and passes (int64 [count]) of the positions start, start + 1, ..."""
        length = len(self.ids)
        first, last = start // length, (start + count - 1) // length
        self._orders = {number: self._order(number) for number in range(first, last + 1)}
        # Of every pass only what is asked for: an order is as long as the set.
        parts = [
            self.ids[order[max(0, start - number * length) : start + count - number * length]]
            for number, order in self._orders.items()
        ]
        return torch.cat(parts), torch.arange(start, start + count, device=self.ids.device) // length

    def _order(self, number: int) -> Tensor:
        if number in self._orders:
            return self._orders[number]
        # Always on the CPU, so that a seed means the same order on every device.
        generator = torch.Generator().manual_seed(derive(self.seed, f"pass {number}"))
        return torch.randperm(len(self.ids), generator=generator).to(self.ids.device)


class Pass(NamedTuple):
    """One pass of a window over the parts."""

    ids: Tensor
    """In their order, int64 [N]."""
    parts: Tensor
    """The parts that this process has rows of, in the order in which it first does, int64 [n]."""
    first: Tensor
    """The steps at which it first has one, in order, int64 [n]."""
    last: Tensor
    """The steps at which it last has one, int64 [n]."""


class WindowStream:
    """A stream that never needs more than `window` parts at once, so that what they hold can be read as it goes on.

    A pass puts the parts in a random order and walks through it: in stretch k it takes rows of the parts k to
    k + window - 1, each of which is spread evenly over the stretches that it is in. There are `window - 1` stretches
    fewer than parts, so that every one of them mixes `window` parts; where there are no more parts than that, a pass is
    a permutation like any other. What falls into one batch, of `size` rows, lies in it by the parts' places in the
    window, and a process takes rows that are adjacent: of several processes each reads a few of the parts.
    """

    def __init__(self, ids: Tensor, *, edges: Sequence[int], window: int, size: int, seed: int, share: Share) -> None:
        """Ids in rising order; edges: where the parts begin, and where the last one ends."""
        self.ids, self.window, self.size, self.seed, self.share = ids, window, size, seed, share
        self._parts, self._part = torch.unique(part_of(ids.cpu(), edges), return_inverse=True)
        self._passes: dict[int, Pass] = {}

    def take(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Return ids and passes (int64 [count]) of the positions start, start + 1, ..."""
        length = len(self.ids)
        first, last = start // length, (start + count - 1) // length
        joined = torch.cat([self._pass(number).ids for number in range(first, last + 1)])
        passes = torch.arange(start, start + count, device=self.ids.device) // length
        return joined[start - first * length :][:count], passes

    def wanted(self, step: int, *, ahead: int) -> tuple[list[int], list[int]]:
        """Return the parts that this process needs at a step, or has not done with, and so many that come next."""
        number, last = (place // len(self.ids) for place in (step * self.size, (step + 1) * self.size - 1))
        self._passes = {known: one for known, one in self._passes.items() if known >= number}
        needed, coming = dict[int, None](), dict[int, None]()
        for one in map(self._pass, range(number, last + 2)):
            begun = int(torch.searchsorted(one.first, step, right=True))
            needed |= dict.fromkeys(one.parts[:begun][one.last[:begun] >= step].tolist())
            coming |= dict.fromkeys(one.parts[begun : begun + len(needed) + ahead].tolist())
            if begun < len(one.parts) and len(coming.keys() - needed.keys()) >= ahead:
                break
        return list(needed), [part for part in coming if part not in needed][:ahead]

    def _pass(self, number: int) -> Pass:
        if number not in self._passes:
            self._passes[number] = self._drawn(number)
        return self._passes[number]

    def _drawn(self, number: int) -> Pass:
        """Draw a pass, always on the CPU, so that a seed means the same order on every device."""
        generator = torch.Generator().manual_seed(derive(self.seed, f"pass {number}"))
        places = torch.randperm(len(self._parts), generator=generator)[self._part]
        begin = (places - self.window + 1).clamp(min=0)
        end = (places + 1).clamp(max=max(1, len(self._parts) - self.window + 1))
        keys = begin + torch.rand(len(places), dtype=torch.float64, generator=generator) * (end - begin)
        positions = torch.arange(len(keys)) + number * len(keys)
        order = keys.argsort(stable=True)
        order = order[(positions // self.size * self.window + places[order] % self.window).argsort(stable=True)]
        mine = positions % self.size // (self.size // self.share.world) == self.share.rank
        return Pass(self.ids[order.to(self.ids.device)], *self._spans(self._part[order][mine], positions[mine]))

    def _spans(self, part: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Parts, and their first and last steps, in the order of the first ones."""
        steps, far = positions // self.size, torch.iinfo(torch.int64).max
        first = torch.full((len(self._parts),), far).scatter_reduce(0, part, steps, "amin")
        last = torch.full((len(self._parts),), -1).scatter_reduce(0, part, steps, "amax")
        order = first.argsort(stable=True)[: int((first < far).sum())]
        return self._parts[order], first[order], last[order]


def part_of(ids: Tensor, edges: Sequence[int]) -> Tensor:
    """Return the part of each id, int64 [n]."""
    return torch.bucketize(ids, torch.tensor(edges[1:-1], dtype=torch.int64, device=ids.device), right=True)
