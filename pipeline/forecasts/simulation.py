"""A run on a cluster, event by event: workers, the driver between them, a storage with limits, nodes that get lost.

A plain discrete-event simulation: the same seed gives the same run. docs/plan.md says what it assumes.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.forecasts.machines import HOUR, Fleet, Link
from sskt.errors import InputError

MOST_STARTS = 50
"""How often a piece of work is started on average before a run counts as one that never ends."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A trial, or a shard: laps, each of which is saved when it is done."""

    laps: int = 1
    lap: float
    """Seconds of each."""
    around: float = 0.0
    """Seconds beside them, as often as it is started."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Pieces that are given in their order to whatever place is free."""

    name: str
    pieces: Sequence[Piece]
    places: int
    """Of each node."""
    start: float = 0.0
    """Seconds before the first is given out, when nothing else runs."""
    turn: float = 0.0
    """Seconds of the driver for each, one after the other."""
    saves: int = 0
    """Requests one after the other that save a lap."""
    save_bytes: float = 0.0
    ends: int = 0
    """Requests around a piece."""


@dataclass(kw_only=True)
class Times:
    """Where the time of all places went, in seconds."""

    useful: float = 0.0
    lost: float = 0.0
    """Done again, for a node was lost."""
    storage: float = 0.0
    driver: float = 0.0
    absent: float = 0.0
    """Of nodes that were lost, until others took their place, and the work that waited for their claims to end."""
    start: float = 0.0
    idle: float = 0.0
    """Without work that could be given out."""

    def __add__(self, other: "Times") -> "Times":
        return Times(**{name: value + vars(other)[name] for name, value in vars(self).items()})

    @property
    def total(self) -> float:
        """All of it."""
        return sum(vars(self).values())


@dataclass(frozen=True, kw_only=True)
class Run:
    """What came of it."""

    seconds: float
    first: float
    """When the first piece began."""
    done: int
    losses: int
    times: Times
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds of each."""


def simulate(stages: Sequence[Stage], fleet: Fleet, link: Link | None = None) -> Run:
    """Run some stages, one after the other."""
    nodes = [_Node(number, fleet) for number in range(fleet.nodes)]
    now, first, done, times, took = 0.0, math.inf, 0, Times(), dict[str, float]()
    for stage in stages:
        if stage.pieces:
            running = _Running(stage, fleet, link or Link(), nodes, now)
            ended = running.run()
            first, done, times = min(first, running.began), done + running.done, times + running.times
            took[stage.name], now = ended - now, ended
    first = 0.0 if first == math.inf else first
    return Run(seconds=now, first=first, done=done, losses=sum(node.losses for node in nodes), times=times, stages=took)


class _Node:
    """A machine: when it is lost next, and from when on it takes work."""

    def __init__(self, number: int, fleet: Fleet) -> None:
        self._random = random.Random(f"{fleet.seed} {number}")  # noqa: S311 (no secret)
        self._fleet, self.life, self.losses = fleet, 0, 0
        self.ready = fleet.start_seconds
        self.lost_at = self._next(self.ready)

    def lose(self) -> None:
        """Be gone, and come back."""
        self.life, self.losses = self.life + 1, self.losses + 1
        self.ready = self.lost_at + self._fleet.replacement_seconds + self._fleet.start_seconds
        self.lost_at = self._next(self.ready)

    def _next(self, since: float) -> float:
        rate = self._fleet.loss_per_hour / HOUR
        return since + self._random.expovariate(rate) if rate else math.inf


@dataclass(kw_only=True)
class _Work:
    """A piece in its place."""

    piece: Piece
    node: _Node
    life: int
    """Of the node when it was given."""
    given: float
    told: float
    """When the driver had given it."""
    begins: float
    """When the storage had answered."""
    first: int
    """Laps that were behind it then."""
    laps: int
    saved: float
    """From when on all of these are safe."""
    waited: float = 0.0
    """For the storage, to save them."""


class _Queue:
    """Requests below one prefix, as many a second as the server answers."""

    def __init__(self, link: Link) -> None:
        self._link, self._gap, self._due = link, 1 / link.requests_per_second, -math.inf

    def ask(self, now: float, requests: int, data: float = 0.0) -> float:
        """When some requests that follow each other are answered."""
        if not requests:
            return now
        self._due = max(self._due, now - 1.0) + requests * self._gap
        return max(now, self._due) + requests * self._link.latency + data / self._link.bytes_per_second


class _Running:
    """One stage under way."""

    def __init__(self, stage: Stage, fleet: Fleet, link: Link, nodes: list[_Node], now: float) -> None:
        self.stage, self.fleet, self.nodes = stage, fleet, nodes
        self.times, self.done, self.starts, self.began = Times(), 0, 0, math.inf
        self._since, self._open = now, now + stage.start
        self._events: list[tuple[float, int, str, object]] = []
        self._order = 0
        self._waiting = deque((piece, 0) for piece in stage.pieces)
        self._idle: deque[tuple[_Node, int]] = deque()
        self._at_work: dict[int, dict[int, _Work]] = {id(node): {} for node in nodes}
        self._driver = self._open
        self._saves, self._ends = _Queue(link), _Queue(link)

    def run(self) -> float:
        """Run to the end; return when that is."""
        for node in self.nodes:
            while node.lost_at < self._open:  # with nothing to lose yet
                node.lose()
            self._away(node, max(0.0, node.ready - self._open))
            self._push(max(self._open, node.ready), "back", (node, node.life))
            self._push(node.lost_at, "lost", node)
        last = self._since
        while self.done < len(self.stage.pieces):
            now, _, kind, what = heapq.heappop(self._events)
            getattr(self, f"_{kind}")(now, what)
            last = now
        self._account(last)
        return last

    def _push(self, time: float, kind: str, what: object) -> None:
        if time < math.inf:
            self._order += 1
            heapq.heappush(self._events, (time, self._order, kind, what))

    def _back(self, now: float, what: tuple[_Node, int]) -> None:
        node, life = what
        if node.life == life:
            self._idle.extend((node, life) for _ in range(self.stage.places))
            self._give(now)

    def _again(self, now: float, what: tuple[Piece, int]) -> None:
        self._waiting.appendleft(what)
        self._give(now)

    def _give(self, now: float) -> None:
        """Give what waits to the places that are free, by way of the driver."""
        while self._waiting and self._idle:
            node, life = self._idle.popleft()
            if node.life != life:
                continue
            piece, laps = self._waiting.popleft()
            self.starts += 1
            if self.starts > MOST_STARTS * len(self.stage.pieces):
                raise InputError(
                    f"loss_per_hour is {self.fleet.loss_per_hour}: nodes are lost before anything is saved, which is "
                    f"every {piece.around + piece.lap:.0f} s; it has to be lower"
                )
            told = self._driver = max(now, self._driver) + self.stage.turn
            begins = self._ends.ask(told, self.stage.ends)
            self.began = min(self.began, told)
            work = _Work(
                piece=piece,
                node=node,
                life=life,
                given=now,
                told=told,
                begins=begins,
                first=laps,
                laps=laps,
                saved=begins,
            )
            self._at_work[id(node)][id(work)] = work
            self._push(begins + piece.around + piece.lap, "lap", work)

    def _lap(self, now: float, work: _Work) -> None:
        """A lap is over, and is saved; after the last one the place is free."""
        if work.node.life != work.life:
            return
        work.saved = self._saves.ask(now, self.stage.saves, self.stage.save_bytes)
        work.waited += work.saved - now
        work.laps += 1
        if work.laps < work.piece.laps:
            self._push(work.saved + work.piece.lap, "lap", work)
        else:
            self._push(work.saved, "over", work)

    def _over(self, now: float, work: _Work) -> None:
        if work.node.life != work.life:
            return
        del self._at_work[id(work.node)][id(work)]
        self._charge(work, now, useful=(work.laps - work.first) * work.piece.lap + work.piece.around)
        self.done += 1
        self._idle.append((work.node, work.life))
        self._give(now)

    def _lost(self, now: float, node: _Node) -> None:
        """A node goes: what it did since it last saved is done again elsewhere, once its claims have ended."""
        for work in self._at_work[id(node)].values():
            if now < work.saved and work.laps > work.first:  # in the midst of saving
                work.waited -= work.saved - now
                work.laps -= 1
            self._charge(work, now, useful=(work.laps - work.first) * work.piece.lap)
            self._push(now + self.fleet.lease, "again", (work.piece, work.laps))
        self._at_work[id(node)] = {}
        node.lose()
        self._away(node, node.ready - now)
        self._push(node.ready, "back", (node, node.life))
        self._push(node.lost_at, "lost", node)

    def _charge(self, work: _Work, now: float, *, useful: float) -> None:
        """Where the time went that a piece had a place."""
        driver = min(now, work.told) - work.given
        storage = max(0.0, min(now, work.begins) - work.told) + work.waited
        self.times += Times(
            useful=useful, driver=driver, storage=storage, lost=now - work.given - driver - storage - useful
        )

    def _account(self, ended: float) -> None:
        """What is left of the time of all places: starting, then idleness."""
        places = self.stage.places
        for node in self.nodes:
            self._away(node, -max(0.0, node.ready - max(ended, self._open)))
        self.times.start += places * len(self.nodes) * (self._open - self._since)
        self.times.idle += places * len(self.nodes) * (ended - self._since) - self.times.total

    def _away(self, node: _Node, seconds: float) -> None:
        """Charge the time that a node takes no work: at first it starts, later it is missing."""
        self.times += Times(**{"absent" if node.life else "start": seconds * self.stage.places})
