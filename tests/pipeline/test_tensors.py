import warnings

import numpy as np
import torch

from pipeline.tensors import as_tensor, placed


def test_memory_is_shared_and_read_only_arrays_are_welcome():
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert as_tensor(array).data_ptr() == array.ctypes.data
    array.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = as_tensor(array)
    assert torch.equal(tensor, torch.tensor([[0, 1, 2], [3, 4, 5]], dtype=torch.uint8))


def test_what_is_placed_is_placed_once():
    array, other, kept = np.arange(3), np.arange(3), {}
    first = placed(array, torch.device("cpu"), kept)
    assert placed(array, torch.device("cpu"), kept) is first
    assert placed(other, torch.device("cpu"), kept) is not first
    assert first.tolist() == [0, 1, 2]
