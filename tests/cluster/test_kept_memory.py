"""What a process frees stays with it: counted in page faults, in a process of its own, for there is no way back."""

import ctypes
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from cluster.kept_memory import keep_freed_memory

FAULTS = """
import json, resource
from cluster.kept_memory import LARGEST, keep_freed_memory

def faults(size, times=4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        bytearray(size)  # written to, and freed
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults(48 << 20)
kept = keep_freed_memory()
faults(48 << 20)
after = faults(48 << 20)
keep_freed_memory()
print(json.dumps([kept, before, after, faults(48 << 20, 1), faults(LARGEST + 4096, 1)]))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than glibc")
def test_a_block_that_was_freed_is_found_again_unless_it_is_a_data_set_or_another_run_begins():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    kept, before, after, anew, huge = json.loads(done.stdout)
    assert kept
    assert before >= 4 * (48 << 20) // (2 << 20), "a fault for each page, were they as large as pages can be"
    assert after < before / 10
    assert anew > before / 10
    assert huge > before / 10


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert keep_freed_memory() is False
