import subprocess
import sys
import time

import pytest

SWALLOWING = """
import os, signal, time
from pipeline.interrupts import insistent_interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)
caught = 0
with insistent_interrupts(again=0.1):
    while caught < 3:
        try:
            if not caught:
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            caught += 1
time.sleep(0.3)
print(caught, signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


def test_an_interrupt_that_is_swallowed_comes_again_until_the_block_ends():
    began = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", SWALLOWING], capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout.split() == ["3", "True"], ended.stderr
    assert time.monotonic() - began < 15


ENDING = """
import os, signal, time
from pipeline.interrupts import insistent_interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with insistent_interrupts(again=0.1):
        os.kill(os.getpid(), signal.SIGNAL)
        time.sleep(5)
except KeyboardInterrupt:
    time.sleep(0.3)
    print("ended", signal.getsignal(signal.SIGALRM) is signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
"""


@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM"])
def test_one_interrupt_ends_the_block_and_comes_no_more(signal):
    program = ENDING.replace("SIGNAL", signal)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout.split() == ["ended", "True"], ended.stderr


IGNORING = """
import os, signal
from pipeline.interrupts import insistent_interrupts
signal.signal(signal.SIGINT, signal.SIG_IGN)
with insistent_interrupts(again=0.1):
    os.kill(os.getpid(), signal.SIGINT)
    print("goes on")
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        print("ends")
"""


def test_what_was_started_to_ignore_interrupts_ignores_them_but_not_its_end():
    ended = subprocess.run([sys.executable, "-c", IGNORING], capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout == "goes on\nends\n", ended.stderr
