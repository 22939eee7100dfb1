import torch

from cluster.storage import FolderStorage
from pipeline.trials.checkpoints import KEPT, Checkpoints, newest_epochs


def state(epoch: int) -> dict:
    return {"epoch": epoch, "weights": {"w": torch.full((3,), float(epoch))}, "history": [{"loss": 0.5}] * epoch}


def test_the_newest_state_comes_back_and_old_ones_go(tmp_path):
    storage = FolderStorage(str(tmp_path))
    checkpoints = Checkpoints(storage, "key")
    assert checkpoints.load() is None
    assert checkpoints.newest_epoch() == 0
    for epoch in range(1, 13):
        checkpoints.save(state(epoch))
    loaded = checkpoints.load()
    assert loaded["epoch"] == 12
    assert checkpoints.newest_epoch() == 12
    assert torch.equal(loaded["weights"]["w"], torch.full((3,), 12.0))
    assert len(list(storage.keys("checkpoints/key"))) == KEPT


def test_a_damaged_state_gives_way_to_the_one_before(tmp_path):
    storage = FolderStorage(str(tmp_path))
    checkpoints = Checkpoints(storage, "key")
    for epoch in (1, 2):
        checkpoints.save(state(epoch))
    newest = list(storage.keys("checkpoints/key"))[-1]
    data = storage.read(newest)
    for damaged in (b"", data[:20], data[:-1], data[:100] + bytes([data[100] ^ 1]) + data[101:]):
        storage.write(newest, damaged)
        assert checkpoints.load()["epoch"] == 1
    checkpoints.clear()
    assert checkpoints.load() is None


def test_one_listing_tells_how_far_all_trainings_are(tmp_path):
    storage = FolderStorage(str(tmp_path))
    assert newest_epochs(storage) == {}
    for key, epochs in (("one", (1, 2, 10)), ("two", (7,))):
        for epoch in epochs:
            Checkpoints(storage, key).save(state(epoch))
    assert newest_epochs(storage) == {key: Checkpoints(storage, key).newest_epoch() for key in ("one", "two")}
    assert newest_epochs(storage) == {"one": 10, "two": 7}


def test_trainings_do_not_see_each_other(tmp_path):
    storage = FolderStorage(str(tmp_path))
    Checkpoints(storage, "one").save(state(3))
    assert Checkpoints(storage, "two").load() is None


def test_a_state_within_an_epoch_is_newer_than_that_of_the_epoch_before_and_older_than_the_next(tmp_path):
    checkpoints = Checkpoints(storage := FolderStorage(str(tmp_path)), "key")
    for epoch, step in ((9, 0), (9, 2), (9, 10), (10, 0), (10, 1)):
        checkpoints.save(state(epoch) | {"step": step})
        loaded = checkpoints.load()
        assert (loaded["epoch"], loaded["step"]) == (epoch, step)
        assert checkpoints.newest_epoch() == newest_epochs(storage)["key"] == epoch
    assert [key.rpartition("/")[2] for key in storage.keys("checkpoints/key")] == [
        "epoch-000010",
        "epoch-000010-step-000001",
    ]
