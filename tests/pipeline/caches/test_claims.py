import subprocess
import time

import pytest

from cluster import metrics
from cluster.storage import FolderStorage
from pipeline.caches import claims
from pipeline.caches.claims import BEAT, LEASE, Claim, TakenOverError, Watch, claimed
from pipeline.canonical import seal, unseal

KEY = "caches/some/views-00000-00003/shard-00000.claim"


class Clock:
    """Stands still unless it is moved."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def storage(tmp_path):
    return FolderStorage(str(tmp_path))


def theirs(storage, **differing):
    """A claim by a builder on another machine."""
    content = {"builder": "theirs", "beat": 0, "place": "another machine", "pid": 1} | differing
    storage.write(KEY, seal(content))
    return storage.read(KEY)


def gone():
    """The id of a process that is no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_one_of_two_gets_it_and_the_other_gets_it_after(storage):
    one, two = Claim(storage=storage, key=KEY), Claim(storage=storage, key=KEY)
    assert (one.take(), two.take()) == (True, False)
    assert (one.held(), two.held()) == (True, False)
    two.release()
    assert one.held()
    one.release()
    assert storage.read(KEY) is None
    assert two.take()


def test_every_beat_changes_what_others_see(storage):
    claim = Claim(storage=storage, key=KEY)
    claim.take()
    seen = [storage.read(KEY)]
    for _ in range(3):
        claim.beat()
        seen.append(storage.read(KEY))
    assert [unseal(content)["beat"] for content in seen] == [0, 1, 2, 3]
    assert len({unseal(content)["builder"] for content in seen}) == 1


def test_a_claim_that_was_taken_over_is_neither_renewed_nor_removed(storage, monkeypatch):
    monkeypatch.setattr(metrics, "_STATE", metrics._State())
    claim = Claim(storage=storage, key=KEY)
    claim.take()
    assert claim.held()
    assert metrics._STATE.ledger.total("sskt_claims_lost") == 0
    content = theirs(storage)
    assert not claim.held()
    claim.beat()
    claim.release()
    assert storage.read(KEY) == content
    storage.delete(KEY)
    claim.beat()
    assert storage.read(KEY) is None
    assert metrics._STATE.ledger.total("sskt_claims_lost") == 1  # however often it is looked for


def test_who_insists_asks_the_storage_only_when_beats_are_late(storage, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(claims.time, "monotonic", clock)
    claim = Claim(storage=storage, key=KEY)
    claim.take()
    theirs(storage)
    clock.now += 2 * BEAT
    claim.insist()  # a claim of which nothing was heard for so short a time cannot have died
    clock.now += 0.1
    for _ in range(2):
        with pytest.raises(TakenOverError, match="others go on with it"):
            claim.insist()
        storage.delete(KEY)
        assert Claim(storage=storage, key=KEY).take()
    storage.delete(KEY)
    late = Claim(storage=storage, key=KEY)
    late.take()
    clock.now += LEASE
    late.insist()  # late, and still ours
    monkeypatch.setattr(storage, "read", None)
    clock.now += 2 * BEAT
    late.insist()


def test_a_claim_dies_when_it_was_seen_unchanged_for_the_lease(storage):
    clock = Clock()
    watch = Watch(storage, clock=clock)
    assert not watch.lives(KEY)
    for beat in range(3):
        content = theirs(storage, beat=beat)
        assert watch.lives(KEY), "whatever had been seen before"
        clock.now += LEASE - 1
        assert watch.lives(KEY)
        clock.now += 0.5
    clock.now += 0.5
    assert storage.read(KEY) == content
    assert not watch.lives(KEY)
    assert storage.read(KEY) is None, "and makes room for the next"
    assert Claim(storage=storage, key=KEY).take()
    assert watch.lives(KEY)


def test_the_time_a_storage_was_away_kills_no_claim(storage, monkeypatch):
    clock = Clock()
    watch = Watch(storage, clock=clock)
    theirs(storage)
    assert watch.lives(KEY)

    def late(key, read=storage.read):
        clock.now += 2 * LEASE
        return read(key)

    monkeypatch.setattr(storage, "read", late)
    assert watch.lives(KEY)  # its builder could not beat either
    monkeypatch.undo()
    clock.now += LEASE - 1
    assert watch.lives(KEY)
    clock.now += 1
    assert not watch.lives(KEY)


def test_a_claim_of_the_same_errand_is_that_of_a_try_that_died(storage):
    first, again = (Claim(storage=storage, key=KEY, errand="one") for _ in range(2))
    assert first.take()
    assert Watch(storage, errand="another").lives(KEY)
    assert Watch(storage).lives(KEY)
    assert not Watch(storage, errand="one").lives(KEY)
    assert again.take()
    assert (first.held(), again.held()) == (False, True), "should the first wake up, it has nothing to say"
    again.release()
    theirs(storage)
    assert Watch(storage, errand="").lives(KEY), "no errand is none that two could have in common"


def test_each_observer_waits_by_itself(storage):
    clock = Clock()
    first, second = Watch(storage, clock=clock), Watch(storage, clock=clock)
    theirs(storage)
    assert first.lives(KEY)
    clock.now += LEASE
    assert second.lives(KEY)
    assert not first.lives(KEY)


def test_a_claim_taken_over_while_it_is_buried_stays(storage, monkeypatch):
    clock = Clock()
    watch = Watch(storage, clock=clock)
    watch.lives(KEY)
    old = theirs(storage)
    watch.lives(KEY)
    clock.now += LEASE
    new = theirs(storage, builder="of a third")
    answers = [old, new]
    monkeypatch.setattr(storage, "read", lambda key: answers.pop(0))
    watch.lives(KEY)
    monkeypatch.undo()
    assert storage.read(KEY) == new


def test_a_process_of_this_machine_that_is_gone_is_not_waited_for(storage):
    clock = Clock()
    theirs(storage, place=claims.place(), pid=gone())
    assert not Watch(storage, clock=clock).lives(KEY)
    assert storage.read(KEY) is None
    theirs(storage, place="another machine", pid=gone())
    assert Watch(storage, clock=clock).lives(KEY)
    Claim(storage=storage, key=KEY.replace("0.claim", "1.claim")).take()
    assert Watch(storage, clock=clock).lives(KEY.replace("0.claim", "1.claim"))


def test_a_process_that_is_killed_but_not_buried_is_gone(storage):
    process = subprocess.Popen(["sleep", "60"])
    theirs(storage, place=claims.place(), pid=process.pid)
    assert Watch(storage).lives(KEY)
    process.kill()
    deadline = time.monotonic() + 20
    while Watch(storage).lives(KEY):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.wait()


def test_where_processes_cannot_be_told_apart_only_the_lease_counts(storage, monkeypatch):
    monkeypatch.setattr(claims, "place", lambda: "")
    theirs(storage, place="", pid=gone())
    assert Watch(storage).lives(KEY)


def test_what_cannot_be_read_is_nobodys_and_dies_like_any_other(storage):
    clock = Clock()
    watch = Watch(storage, clock=clock)
    storage.write(KEY, b"no claim")
    assert not Claim(storage=storage, key=KEY).take()
    assert not Claim(storage=storage, key=KEY).held()
    assert watch.lives(KEY)
    clock.now += LEASE
    assert not watch.lives(KEY)


def test_claims_live_while_the_block_lasts(storage, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.01)
    other = KEY.replace("some", "other")
    with claimed(storage, [KEY, other]) as held:
        assert set(held) == {KEY, other}
        deadline = time.monotonic() + 20
        while min(unseal(storage.read(key))["beat"] for key in held) < 3:
            assert time.monotonic() < deadline, "nobody beats"
            time.sleep(0.01)
    time.sleep(0.05)
    assert list(storage.keys("caches")) == []


def test_a_beat_that_fails_is_not_the_last(storage, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.01)
    failures = [OSError("the disk is away")] * 3
    write = storage.write

    def flaky(key, data):
        if failures:
            raise failures.pop()
        write(key, data)

    monkeypatch.setattr(storage, "write", flaky)
    with claimed(storage, [KEY]):
        deadline = time.monotonic() + 20
        while failures or unseal(storage.read(KEY))["beat"] < 5:
            assert time.monotonic() < deadline, "nobody beats"
            time.sleep(0.01)


def test_who_does_not_get_the_first_gets_none(storage):
    """So that two who want the same outputs do not make one of them each, in a pass each."""
    keys = [KEY.replace("some", name) for name in "cab"]
    first, _, last = sorted(keys)
    with claimed(storage, [first]) as one, claimed(storage, keys) as two:
        assert (list(one), list(two)) == ([first], [])
    with claimed(storage, [last]), claimed(storage, keys) as some:
        assert set(some) == set(keys) - {last}
    assert list(storage.keys("caches")) == []


def test_an_error_gives_the_claims_up(storage):
    with pytest.raises(ArithmeticError), claimed(storage, [KEY]):
        raise ArithmeticError
    assert storage.read(KEY) is None
