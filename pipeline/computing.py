"""How a process that computes is set up, whatever it computes."""

import torch

from cluster.kept_memory import keep_freed_memory


def compute_here(threads: int) -> None:
    """Have this process compute with so many threads, from now on."""
    torch.set_num_threads(threads)
    keep_freed_memory()
