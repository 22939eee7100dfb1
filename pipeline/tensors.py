"""Arrays of the object store as tensors, without a copy."""

import warnings

import numpy as np
import torch
from torch import Tensor


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor over the same memory. Arrays from the object store are read-only, and nothing here writes to them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def placed(array: np.ndarray, device: torch.device, kept: dict[int, Tensor]) -> Tensor:
    """An array on a device: a copy that is kept, by the array's id, for all who ask, who keep the array meanwhile."""
    if id(array) not in kept:
        kept[id(array)] = as_tensor(array).to(device)
    return kept[id(array)]
