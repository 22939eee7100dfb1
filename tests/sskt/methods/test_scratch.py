import torch

from tests.sskt.methods.test_base import run


def test_the_seed_decides_everything():
    one, parts = run("scratch")
    two, again = run("scratch")
    assert [part["loss"] for part in parts] == [part["loss"] for part in again]
    for left, right in zip(one.export().parameters(), two.export().parameters(), strict=True):
        assert torch.equal(left, right)


def test_only_labels_are_learnt_from():
    _, parts = run("scratch")
    assert set(parts[0]) == {"loss", "primary"}
