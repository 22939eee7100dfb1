"""What mattered, where it is known what did."""

import numpy as np

from pipeline.reports.importance import METHOD, importance
from pipeline.reports.report import Ending


def trials(score, *, count=200, seed=0, extra=None):
    generator = np.random.default_rng(seed)
    made = []
    for number in range(count):
        point = {"lr": float(generator.uniform()), "idle": float(generator.uniform())}
        point["kind"] = str(generator.choice(["a", "b", "c"]))
        if generator.uniform() < 0.5:
            point["sometimes"] = [1, int(generator.integers(3))]
        method = "sskt" if number % 2 else "kd"
        made.append(
            Ending(
                run_key=str(number), label="", method=method, sources=("wise",), seed=0,
                state="done", epoch=1, epochs=1,
                validation=float(score(point, method) + generator.normal(0, 0.05)), point=point,
            )
        )  # fmt: skip
    return made


def test_what_matters_is_found_and_what_does_not_is_not():
    found = importance(trials(lambda point, method: 10 * point["lr"] + 3 * (point["kind"] == "b")))
    assert list(found.shares)[:2] == ["lr", "kind"]
    assert abs(sum(found.shares.values()) - 1) < 1e-9
    assert found.shares["idle"] + found.shares[METHOD] + found.shares["sometimes"] < 0.05
    assert found.explained > 0.8
    assert found.trials == 200


def test_the_method_and_an_axis_that_is_only_sometimes_there_count_too():
    found = importance(trials(lambda point, method: 5 * (method == "sskt") + 2 * ("sometimes" in point)))
    assert list(found.shares)[:2] == [METHOD, "sometimes"]


def test_of_noise_nothing_is_claimed():
    found = importance(trials(lambda point, method: np.random.default_rng(int(point["lr"] * 1e9)).normal()))
    assert (found.shares, found.explained < 0.2) == ({}, True)


def test_few_trials_and_few_axes_are_not_asked():
    assert importance(trials(lambda point, method: point["lr"], count=19)) is None
    one = [trial for trial in trials(lambda point, method: 1.0) if trial.method == "kd"]
    for trial in one:
        trial.point.clear()
    assert importance(one) is None
    assert importance([]) is None
