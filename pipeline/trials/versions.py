"""What a training ran on."""

import functools
import os
import platform
import subprocess
from pathlib import Path

import torch


@functools.cache
def versions() -> dict[str, str]:
    """What the training ran on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {"torch": torch.__version__, "python": platform.python_version(), "device": device, "commit": git_commit()}


def git_commit() -> str:
    """The commit of the code that runs, or nothing outside of a checkout."""
    folder = Path(__file__).parent
    answer = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False, env=os.environ
    )
    return answer.stdout.strip()
