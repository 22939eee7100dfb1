"""Memory that a process has freed stays with it, so that its next tensors find it."""

import ctypes

# mallopt's parameters, of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = -1
LARGEST = 1 << 28
"""Bytes of a block that is kept. Larger ones go back: they are labels and data sets, not what a network computes."""


def keep_freed_memory() -> bool:
    """Have this process keep what it frees from now on; return whether its C library can.

    What it has freed before goes back first, so a process that is used again begins small.

    glibc maps blocks of 32 MB and more anew each time, and gives back what is free at the end of its heap. A network's
    layers are freed and allocated again for every batch, and each 4 kB of theirs would cost a page fault: on a CPU a
    third of what a source computes from 32 images of 128 pixels.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):  # macOS, musl
        return False
    library.malloc_trim(0)
    return bool(library.mallopt(_MMAP_THRESHOLD, LARGEST) and library.mallopt(_TRIM_THRESHOLD, _NEVER))
