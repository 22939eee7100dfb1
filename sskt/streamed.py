"""The streamed feed: a set larger than memory, read in parts that threads fetch ahead of the step."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor

from sskt.answers import LiveOutputs
from sskt.datasets import Split
from sskt.errors import InputError
from sskt.feeds import Batch, Feed
from sskt.orders import WindowStream, part_of
from sskt.views import Kind

WINDOW = 16
"""Parts that a stream takes its rows from; which rows are in a batch depends on it."""
AHEAD = 8
"""Parts of a stream that are read before any of their rows is wanted."""
READERS = 2
BATCHES = 2
"""Batches that are made before they are asked for."""

Read = Callable[[int], Tensor]
"""The images of a part, uint8 [n, C, S, S]; called by several threads at once."""


class Shelf:
    """The images of a set, of which some parts are in memory: those that were asked to be kept."""

    def __init__(self, read: Read, edges: Sequence[int], *, device: torch.device, window: int = WINDOW) -> None:
        """Edges: the ids where parts begin, and where the last one ends."""
        self.read, self.edges, self.device, self.window = read, edges, device, window
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="parts")
        self._kept: dict[int, Future[Tensor]] = {}

    def keep(self, parts: Iterable[int]) -> None:
        """Have these parts in memory and no others; begin to read those that are missing, in this order."""
        parts = list(parts)
        for part in self._kept.keys() - set(parts):
            self._kept.pop(part).cancel()
        for part in parts:
            if part not in self._kept:
                self._kept[part] = self._readers.submit(self._load, part)

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Images by their ids, int64 [B], as uint8 [B, C, S, S]; parts that are not kept are read for them alone."""
        rows = rows.cpu()
        runs, counts = torch.unique_consecutive(part_of(rows, self.edges), return_counts=True)
        parts, lengths = runs.tolist() or [0], counts.tolist() or [0]
        shown = torch.empty((len(rows), *self._part(parts[0]).shape[1:]), dtype=torch.uint8)
        for part, some, into in zip(parts, torch.split(rows, lengths), torch.split(shown, lengths), strict=True):
            torch.index_select(self._part(part), 0, some - self.edges[part], out=into)
        return shown.to(self.device)

    def another(self) -> "Shelf":
        """One of the same images, with nothing on it."""
        return Shelf(self.read, self.edges, device=self.device, window=self.window)

    def close(self) -> None:
        """End its threads, after what they read now."""
        self._readers.shutdown(wait=False, cancel_futures=True)

    def _part(self, part: int) -> Tensor:
        return self._kept[part].result() if part in self._kept else self._load(part)

    def _load(self, part: int) -> Tensor:
        try:
            return self.read(part)
        except Exception as error:
            error.add_note(f"part {part} of the images, ids {self.edges[part]}..{self.edges[part + 1] - 1}")
            raise


class StreamedFeed(Feed):
    """Of a set whose images are on a `Shelf`. Batches are made by a thread, one after the other, ahead of the step.

    In memory are at most `window` + AHEAD parts for the labelled images, as many for those of the pool, and BATCHES + 2
    batches; while a split is evaluated, AHEAD parts of it beyond those of a batch. A batch that has more rows than a
    part lies in several stretches of the order, and needs a part more for each.
    """

    _labelled: WindowStream
    _pool: WindowStream

    @property
    def shelf(self) -> Shelf:
        """Where the images are."""
        shelf = self.set.images
        assert isinstance(shelf, Shelf)  # noqa: S101 (what a streamed feed is made of)
        return shelf

    def ordered(self, ids: Tensor, *, seed: int, size: int) -> WindowStream:
        """Shuffle them within a window of parts."""
        edges, window = self.shelf.edges, self.shelf.window
        return WindowStream(ids, edges=edges, window=window, size=size, seed=seed, share=self.share)

    def mine(self, rows: Tensor) -> Tensor:
        """Adjacent ones, which lie in few parts."""
        count = rows.shape[1] // self.share.world
        return rows[:, self.share.rank * count :][:, :count]

    def batch(self, step: int) -> Batch:
        """Return this process's rows of the batch of a step; those of the next steps are made meanwhile."""
        wanted = range(step, step + 1 + BATCHES)
        for number in self._begun.keys() - set(wanted):
            self._begun.pop(number).cancel()
        for number in wanted:
            if number not in self._begun:
                self._begun[number] = self._maker.submit(self._made, number)
        return self.served(self._begun.pop(step).result())

    def evaluation(self, split: Split, *, batch_size: int = 512) -> Iterator[tuple[Tensor, Tensor]]:
        """All labelled images of a split as packed, without views: uint8 [B, C, S, S] and their labels."""
        ids = self.labelled_of(split)
        parts = part_of(ids.cpu(), self.shelf.edges)
        with closing(self.shelf.another()) as shelf:
            for some, within in zip(torch.split(ids, batch_size), torch.split(parts, batch_size), strict=True):
                if len(within):
                    shelf.keep(range(int(within[0]), min(int(within[-1]) + AHEAD, int(parts[-1])) + 1))
                yield shelf[some], self.set.labels[some]

    def looked_at(self, source: str, ids: Tensor, *, views: Tensor, kind: Kind) -> Tensor:
        """Nothing: sources that are asked about any image answer from a cache."""
        if isinstance(self.outputs[source], LiveOutputs):
            raise InputError(
                f"source {source!r} is live, and asked about images of the whole pool; a streamed set has "
                "only some of them in memory: set resources.feed to 'resident', or live to false"
            )
        return torch.empty(0)

    def close(self) -> None:
        """End what works in the background."""
        self._maker.shutdown(wait=False, cancel_futures=True)
        self.shelf.close()

    def _made(self, step: int) -> Batch:
        streams = (self._labelled, self._pool) if self.extras.pool else (self._labelled,)
        needed, coming = zip(*(stream.wanted(step, ahead=AHEAD) for stream in streams), strict=True)
        self.shelf.keep(dict.fromkeys(chain(*needed, *coming)))
        return self.build(step)

    @cached_property
    def _maker(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix="batches")

    @cached_property
    def _begun(self) -> dict[int, Future[Batch]]:
        return {}
