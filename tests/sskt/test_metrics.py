import pytest
import torch

from sskt.metrics import accuracy


def test_accuracy_counts_over_batches():
    batches = [(torch.tensor([[0.9], [0.1]]), torch.tensor([1, 1])), (torch.tensor([[0.8]]), torch.tensor([1]))]
    assert accuracy(lambda images: torch.cat([1 - images, images], dim=1), batches) == pytest.approx(200 / 3)
