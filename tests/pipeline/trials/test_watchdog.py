import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.trials.watchdog import HUNG, START, Pulse, watching

ROOT = Path(__file__).parents[3]


class Clock:
    """Time that passes when it is told to; the pulse is asked every second meanwhile, as the thread would."""

    def __init__(self, **changes: float) -> None:
        self.now = 1000.0
        self.pulse = Pulse(**({"patience": 100, "floor": 60} | changes), clock=lambda: self.now)

    def wait(self, seconds: float) -> str | None:
        """What the pulse says first, if it says anything."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 1)
            reason = self.pulse.hung()
            if reason is not None:
                return reason
        return None

    def steps(self, *seconds: float) -> list[str | None]:
        """What it says before each of the steps."""
        said = []
        for pause in seconds:
            said.append(self.wait(pause))
            self.pulse.beat()
        return said


def test_quick_steps_count_as_hung_after_the_floor():
    clock = Clock()
    clock.steps(5, *[0.12] * 50)
    assert clock.wait(60) is None
    assert clock.wait(3) == "hung: no step for 61 s, where its median step took 0.12 s"


def test_slow_steps_count_as_hung_after_many_of_their_own():
    clock = Clock()
    clock.steps(5, *[2.0] * 10)
    assert clock.wait(200) is None
    assert clock.wait(3) == "hung: no step for 201 s, where its median step took 2 s"


def test_one_slow_step_does_not_change_what_is_usual():
    clock = Clock()
    assert clock.steps(5, *[0.1] * 10, 50.0, *[0.1] * 10) == [None] * 22
    assert clock.wait(61) == "hung: no step for 61 s, where its median step took 0.1 s"


def test_only_recent_steps_say_what_is_usual():
    clock = Clock()
    clock.steps(5, *[0.1] * 200, *[3.0] * 60)
    assert clock.wait(299) is None


@pytest.mark.parametrize("beats", [0, 1])
def test_the_start_may_take_longer_and_is_no_step(beats):
    clock = Clock()
    clock.steps(*[300.0] * beats)
    assert clock.wait(START) is None
    assert clock.wait(1) == "hung: no second step after 601 s"
    clock = Clock()
    clock.steps(500.0, 0.1)
    assert clock.wait(61) == "hung: no step for 61 s, where its median step took 0.1 s"


def test_a_floor_above_the_time_of_the_start_holds_for_the_start_too():
    assert Clock(floor=3600).wait(3600) is None


def test_a_wait_for_others_is_no_silence():
    clock = Clock()
    clock.steps(5, *[0.1] * 10)
    told = []
    report = clock.pulse.resting()(lambda metrics: told.append((metrics, clock.wait(5000))))
    for metrics in (1, 2):
        report(metrics)
        assert clock.wait(59) is None
    assert told == [(1, None), (2, None)]
    assert clock.wait(2) is not None


def test_a_wait_that_ends_badly_ends():
    clock = Clock()
    clock.steps(5, *[0.1] * 10)
    with pytest.raises(ValueError, match="lost"), clock.pulse.resting():
        raise ValueError("lost")
    assert clock.wait(61) is not None


def test_a_process_that_was_stopped_has_not_hung():
    clock = Clock()
    clock.steps(5, *[0.1] * 10)
    clock.now += 5000  # nobody is asked in the meantime
    assert clock.wait(60) is None
    assert clock.wait(2) is not None


def test_a_block_that_ends_leaves_nothing_behind():
    before = threading.active_count()
    with watching(pytest.fail) as pulse:
        pulse.beat()
        assert threading.active_count() == before + 1
    with pytest.raises(ValueError, match="mine"), watching(pytest.fail):
        raise ValueError("mine")
    assert threading.active_count() == before


PROGRAM = """
import time
from pipeline.trials import watchdog
watchdog.START = {start}

def tell(reason):
    print(reason, flush=True)
    {telling}

def stuck():
    {stuck}

with watchdog.watching(tell, patience=2, floor=0.4) as pulse:
    for _ in range(20):
        time.sleep(0.05)
        pulse.beat()
    stuck()
time.sleep(1.5)
print("went on")
"""


def hang(*, stuck: str, telling: str = "pass", start: float = 60) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(stuck=stuck, telling=telling, start=start)
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_process_that_goes_on_after_the_block_is_left_alone():
    done = hang(stuck="pass", start=1)
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr


@pytest.mark.parametrize("telling", ["pass", "raise OSError('the storage is gone')"])
def test_a_process_that_hangs_tells_why_and_where_and_ends(telling):
    done = hang(stuck="time.sleep(1000)", telling=telling)
    assert done.returncode == HUNG
    assert re.fullmatch(r"hung: no step for \d+ s, where its median step took 0\.\d+ s\n", done.stdout)
    assert "in stuck" in done.stderr


def test_a_process_that_keeps_the_interpreter_to_itself_ends_too():
    done = hang(stuck="sum(range(10**12))", start=1.5)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Timeout (0:00:01.5" in done.stderr
    assert "in stuck" in done.stderr
