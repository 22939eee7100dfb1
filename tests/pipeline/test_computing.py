"""Every process that computes is set up in one way."""

import re
from pathlib import Path

import torch

from pipeline import computing
from pipeline.computing import compute_here

PIPELINE = Path(computing.__file__).parent


def test_threads_are_set_and_freed_memory_is_kept(monkeypatch):
    asked = []
    monkeypatch.setattr(computing, "keep_freed_memory", lambda: asked.append("memory"))
    before = torch.get_num_threads()
    try:
        compute_here(3)
        assert (torch.get_num_threads(), asked) == (3, ["memory"])
    finally:
        torch.set_num_threads(before)


def test_no_process_of_the_pipeline_is_set_up_in_another_way():
    own = [path for path in PIPELINE.rglob("*.py") if re.search(r"set_num_threads|mallopt", path.read_text())]
    assert [path.name for path in own] == ["computing.py"]
