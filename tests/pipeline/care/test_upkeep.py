"""The verbs of house-keeping as a person meets them."""

import os
import time

import pytest

from pipeline.__main__ import main
from pipeline.caches.labels import record_key, shard_key
from tests.pipeline.trials.test_trials import prepared


@pytest.fixture
def sound(experiment_file):
    plan, storage = prepared(experiment_file)
    for key in storage.keys(""):
        os.utime(storage.path(key), (time.time() - 7200,) * 2)
    return plan, storage, str(experiment_file)


def test_caches_are_listed_and_compared(sound, capsys):
    plan, storage, _ = sound
    assert main(["caches", storage.uri]) == 0
    said = capsys.readouterr().out
    name = plan.caches["wise"]["logits"].id
    assert name in said
    assert "no graphs" in said
    assert main(["cache-diff", storage.uri, name[:5], name]) == 0
    assert capsys.readouterr().out == "identical\n"
    assert main(["cache-diff", storage.uri, name, "xyz"]) == 2
    assert capsys.readouterr().err == f"error: cache 'xyz' is unknown; there are: {name}\n"


@pytest.mark.parametrize("command", [["caches"], ["cache-diff", "a", "b"]])
def test_a_storage_that_does_not_exist_is_bad_input(command, tmp_path, capsys):
    verb, *ids = command
    assert main([verb, f"{tmp_path}/nowhere", *ids]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"error: storage '{tmp_path}/nowhere' does not exist or holds nothing")
    assert not (tmp_path / "nowhere").exists()
    assert main([verb, "ftp://x", *ids]) == 2
    assert "the scheme 'ftp' is unknown" in capsys.readouterr().err


def test_the_exit_code_of_verify_says_whether_all_is_well(sound, capsys):
    plan, storage, file = sound
    segment = plan.caches["wise"]["logits"].segment(0, 0, 3)
    assert main(["verify", file]) == 0
    assert "16 samples run again" in capsys.readouterr().out
    assert main(["verify", file, "--rerun", "0"]) == 0
    assert "run again" not in capsys.readouterr().out
    assert main(["verify", file, "--rerun", "2"]) == 2
    assert capsys.readouterr().err == "error: --rerun is 2.0; it has to be between 0 and 1\n"
    storage.write(shard_key(segment, 0), b"damaged")
    assert main(["verify", file]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert "1 shards put aside, `cache` makes them again" in line
    assert storage.read(record_key(segment, 0)) is None
    assert storage.read(record_key(segment, 1)) is not None


def test_verify_of_what_was_never_packed_is_bad_input(experiment_file, tmp_path, capsys):
    assert main(["verify", str(experiment_file)]) == 2
    assert capsys.readouterr().err.endswith("; run `pack`\n")
    assert not (tmp_path / "store").exists()


def test_an_experiment_without_sources_has_nothing_to_verify(sound, capsys):
    assert main(["verify", sound[2], "--set", "methods=[{method: scratch}]"]) == 0
    assert capsys.readouterr().out == "verify  no trial reads a cache\n"


def test_gc_removes_only_when_told_to(sound, capsys):
    _, storage, file = sound
    before, other = set(storage.keys("")), ["--set", "methods=[{method: scratch}]"]
    for flags in ([], ["--dry-run"]):
        assert main(["gc", storage.uri, file, *other, *flags]) == 0
        assert "nothing was removed; --yes removes it" in capsys.readouterr().out
        assert set(storage.keys("")) == before
    assert main(["gc", storage.uri, file, "--yes"]) == 0
    assert capsys.readouterr().out == "gc      nothing to remove\n"
    with pytest.raises(SystemExit):
        main(["gc", storage.uri, file, *other, "--dry-run", "--yes"])
    with pytest.raises(SystemExit):
        main(["gc", storage.uri, "--yes"])
    assert set(storage.keys("")) == before
    assert main(["gc", storage.uri, file, *other, "--yes"]) == 0
    assert before - set(storage.keys("")) == {key for key in before if key.startswith("caches/")}


def test_gc_refuses_an_experiment_of_another_storage(sound, tmp_path, capsys):
    _, storage, file = sound
    before = set(storage.keys(""))
    assert main(["gc", f"{tmp_path}/another", file, "--yes"]) == 2
    assert f"small.yaml: storage is '{storage.uri}'; it has to be '{tmp_path}/another'" in capsys.readouterr().err
    assert main(["gc", storage.uri, file, "nowhere.yaml", "--yes"]) == 2
    assert set(storage.keys("")) == before
