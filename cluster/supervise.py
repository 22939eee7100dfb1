"""Follows a job to its end through broken connections and lost clusters."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from cluster.jobs import Job, Jobs, Order, State, UnreachableError
from cluster.submit import run_of

SUCCEEDED, FAILED, BAD_INPUT, CANCELLED = 0, 1, 2, 130
"""Exit codes."""
LONGEST_WAIT = 30.0
"""Seconds between two attempts to reach a cluster."""
QUIET = 15.0
"""Seconds without a line after which the cluster is asked whether it and the job are still there."""
MOST_VAIN = 5
"""Attempts to read to its end the log of a job that has ended."""
STOPPING = 60.0
"""Seconds in which a job that is cancelled has to end; Ray kills it after 3."""
KEPT = "it goes on from what is finished"


class Do(Enum):
    """What can be done about a job."""

    SEND = auto()
    FOLLOW = auto()
    WAIT = auto()
    END = auto()


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What is to be done next."""

    do: Do
    after: float = 0.0
    """Seconds to wait before."""
    code: int = SUCCEEDED
    """Exit code, of an end."""
    say: str = ""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long somebody goes on."""

    tries: int
    """How often a job is sent; 0 where it may only be followed."""
    patience: float
    """Seconds without a sign of life of the job."""


@dataclass(frozen=True, kw_only=True)
class SoFar:
    """What has happened."""

    sent: int = 0
    silent: float = 0.0
    """Seconds since the last sign of life."""
    vain: int = 0
    """Attempts in a row that brought nothing new."""
    told: bool = False
    """Whether the log was read to its end."""


def decide(seen: Job | UnreachableError | None, so_far: SoFar, limits: Limits) -> Decision:
    """What to do about a job that looks like that: None is one that the cluster does not know."""
    pause = min(LONGEST_WAIT, 2.0 ** min(so_far.vain, 5)) if so_far.vain else 0.0
    if isinstance(seen, UnreachableError):
        left = limits.patience - so_far.silent
        minutes = f"{limits.patience / 60:g} minutes"
        if left <= 0:
            say = f"{seen}; given up after {minutes}: submit it again, and {KEPT}"
            return Decision(do=Do.END, code=FAILED, say=say)
        return Decision(do=Do.WAIT, after=min(left, pause or 1.0), say=f"{seen}; trying again for {minutes}")
    if seen and (seen.state.alive or not (so_far.told or so_far.vain >= MOST_VAIN)):
        return Decision(do=Do.FOLLOW, after=pause)
    if seen is None or is_lost(seen):
        return _about_lost(seen, so_far, limits)
    return _about_ended(seen)


def is_lost(job: Job) -> bool:
    """Whether it was killed, or died with its machine, rather than ended by itself."""
    killed = job.exit_code is None or job.exit_code < 0 or job.exit_code > 128
    return job.state is State.FAILED and killed and job.exit_code != CANCELLED


def _about_lost(job: Job | None, so_far: SoFar, limits: Limits) -> Decision:
    why = job.message if job else "the cluster knows nothing of it"
    if so_far.sent >= limits.tries:
        return Decision(do=Do.END, code=FAILED, say=f"lost ({why}); submit it again, and {KEPT}")
    again = f"lost ({why}); sending it again, number {so_far.sent + 1} of {limits.tries}: {KEPT}"
    return Decision(do=Do.SEND, say=again if so_far.sent else "")


def _about_ended(job: Job) -> Decision:
    if job.state is State.SUCCEEDED:
        return Decision(do=Do.END)
    if job.state is State.CANCELLED or job.exit_code == CANCELLED:
        return Decision(do=Do.END, code=CANCELLED, say=f"cancelled; submit it again, and {KEPT}")
    code = BAD_INPUT if job.exit_code == BAD_INPUT else FAILED
    return Decision(do=Do.END, code=code, say=f"ended with exit code {job.exit_code}: {job.message}")


class Log:
    """How much of a job's log is written; the API tells it from its beginning each time."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._run: tuple[str, float] | None = None
        self._written = self._skip = 0

    def begin(self, job: Job) -> None:
        """From now on the log of that run is told anew."""
        run = (job.name, job.started)  # a new cluster may give an old name
        self._written = self._written if run == self._run else 0
        self._run, self._skip = run, self._written

    def take(self, text: str) -> bool:
        """Write what is new of the next piece; say whether there was any."""
        fresh = text[self._skip :]
        self._skip = max(0, self._skip - len(text))
        self._written += len(fresh)
        if fresh:
            self._write(fresh)
        return bool(fresh)


@dataclass(frozen=True, kw_only=True)
class Outlet:
    """Where things go, and what time is."""

    write: Callable[[str], None]
    """Takes what the job prints."""
    note: Callable[[str], None]
    """Takes lines about the job."""
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic


class Supervisor:
    """Carries out what is decided about one job."""

    def __init__(self, jobs: Jobs, name: str, *, limits: Limits, outlet: Outlet, order: Order | None = None) -> None:
        self.name = name
        self._jobs, self._limits, self._outlet, self._order = jobs, limits, outlet, order
        self._log = Log(outlet.write)
        self._sent = self._vain = 0
        self._told = False
        self._heard = outlet.clock()
        self._noted = ""

    def run(self, *, follow: bool = True) -> int:
        """Until the job has ended, or until it is there; the exit code."""
        seen: Job | UnreachableError | None = None
        if self._order is None:
            seen = self._look()
        while True:
            decision = decide(seen, self._so_far(), self._limits)
            self._note(decision.say)
            self._outlet.sleep(decision.after)
            if decision.do is Do.END or (decision.do is Do.FOLLOW and not follow):
                return decision.code
            try:
                if decision.do is Do.SEND:
                    self._send()
                elif decision.do is Do.FOLLOW:
                    asyncio.run(self._follow())
            except UnreachableError as error:
                seen = error
                self._vain += 1
            else:
                seen = self._look()

    def _so_far(self) -> SoFar:
        silent = self._outlet.clock() - self._heard
        return SoFar(sent=self._sent, silent=silent, vain=self._vain, told=self._told)

    def _look(self) -> Job | UnreachableError | None:
        try:
            job = self._jobs.get(self.name)
        except UnreachableError as error:
            self._vain += 1
            return error
        if job and job.state.alive:
            self._heard = self._outlet.clock()
        return job

    def _note(self, line: str) -> None:
        if line and line != self._noted:
            self._outlet.note(f"{self.name}: {line}")
        self._noted = line or self._noted

    def _send(self) -> None:
        """Send the order, or take up the run that is there."""
        assert self._order is not None  # noqa: S101 (without one, no try is granted)
        self.name, runs = run_of(self._order.name, self._jobs.all())
        if not runs:
            self._jobs.send(self.name, self._order)
        self._sent += 1
        self._revive()
        self._note(f"{'runs already on' if runs else 'sent to'} {self._jobs.address}")

    async def _follow(self) -> None:
        """Write what the job prints, until its log ends or breaks off; look after it where it is quiet."""
        if (begun := self._jobs.get(self.name)) is None:
            return
        self._log.begin(begun)
        self._vain, self._told = self._vain + 1, False  # until something new comes
        pieces, ended = self._jobs.log(self.name), 0
        piece = asyncio.ensure_future(anext(pieces))
        while ended < 2:  # its last lines may come after its end
            done, _ = await asyncio.wait({piece}, timeout=QUIET)
            if not done:
                job = self._look()
                if isinstance(job, UnreachableError):
                    raise job
                ended += job is None or job.started != begun.started or not job.state.alive
                continue
            try:
                fresh = self._log.take(piece.result())
            except StopAsyncIteration:
                break
            if fresh:
                self._revive()
            piece = asyncio.ensure_future(anext(pieces))
        self._told = True

    def _revive(self) -> None:
        """There was a sign of life."""
        self._heard, self._vain, self._noted = self._outlet.clock(), 0, ""


def cancel(jobs: Jobs, job: Job, *, outlet: Outlet) -> int:
    """End a job and wait until it has; the exit code."""
    seen: Job | None = job
    if job.state.alive:
        jobs.stop(job.name)
        until = outlet.clock() + STOPPING
        while seen and seen.state.alive:
            if outlet.clock() > until:
                outlet.note(f"{job.name}: {seen.state} {STOPPING:g} s after it was told to stop; look at the head")
                return FAILED
            outlet.sleep(0.5)
            seen = jobs.get(job.name)
    state = seen.state if seen else "gone with its cluster"
    outlet.note(f"{job.name}: {state}; what is finished is kept: submit it again, and {KEPT}")
    return SUCCEEDED
