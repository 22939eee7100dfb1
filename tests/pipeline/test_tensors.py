import warnings

import numpy as np
import torch

from pipeline.tensors import as_tensor


def test_memory_is_shared_and_read_only_arrays_are_welcome():
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert as_tensor(array).data_ptr() == array.ctypes.data
    array.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = as_tensor(array)
    assert torch.equal(tensor, torch.tensor([[0, 1, 2], [3, 4, 5]], dtype=torch.uint8))
