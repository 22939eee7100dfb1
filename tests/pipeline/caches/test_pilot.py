"""Encodings that are chosen: by what they cost and change, once, for whoever asks."""

import dataclasses
import json
import math
import re
import shutil

import pytest
import torch

from cluster.storage import FolderStorage
from pipeline.caches.pilot import (
    CANDIDATES,
    PILOT,
    Measured,
    Pilot,
    candidates,
    choose_encoding,
    measure,
    smallest,
    table,
)
from pipeline.caches.segments import open_cache, read_cache
from pipeline.packing.packed import read_packed
from pipeline.planning.experiment import load_experiment
from pipeline.stages import Stages
from pipeline.trials.trials import gather_materials, make_feed, run_trial
from sskt.encodings import get_encoding
from sskt.errors import DamagedError, InputError, SsktError
from sskt.export import export_bytes
from sskt.fidelity import Budget, Fidelity, fidelity
from sskt.networks import ImageFormat, build_target
from sskt.seeds import seeded
from sskt.settings import TargetSettings
from tests.pipeline.trials.test_trials import CPU, prepared, with_methods

ANYTHING = Budget(total_variation=1, kl=100, angle=180, agreement=0)
AUTO = "cache.encoding=auto"
LOOSE = "cache.budget={total_variation: 1, kl: 100, angle: 180, agreement: 0}"


def many_classes(file, classes=300, *, sharpness=1.0):
    """A source of many classes in the experiment's place of the one of four."""
    settings = TargetSettings(architecture="small_cnn", options={"width": 6})
    with seeded(4, "many classes"):
        network = build_target(settings, classes=classes, image=ImageFormat(1, 12, (0.5,), (0.25,)))
    weights = network.network.state_dict()
    for name in ("fc.weight", "fc.bias"):
        weights[name] *= sharpness
    wise = file.parent / f"many{classes}.safetensors"
    wise.write_bytes(export_bytes(network, settings=settings, classes=classes))
    file.write_text(re.sub(r"wise: .*", f"wise: {{weights: {wise}}}", file.read_text()))
    return file


def packed_plan(file, *changes):
    """A plan, the lines it said, its storage."""
    said: list[str] = []
    stages = Stages(load_experiment(str(file), changes=changes), said.append)
    return stages.pack(), said, stages.storage


def pilot_of(plan, **changes):
    fields = {
        "source": plan.sources["wise"], "recipe": plan.recipe, "packed": plan.packed,
        "view_count": plan.experiment.views.count, "budget": Budget(), "dense": False,
    }  # fmt: skip
    return Pilot(**fields | changes)


def measured(encoding, view_bytes, *, kl=0.0, dense=True, fits=True):
    found = Fidelity(total_variation=0.0123, kl=kl, angle=0.456, agreement=0.987)
    return Measured(
        encoding=encoding, view_bytes=view_bytes, forecast=view_bytes * 10**6, dense=dense, fidelity=found, fits=fits
    )


def encodings(plan):
    return {name: spec.labels.encoding for name, spec in plan.caches["wise"].items()}


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (1, ["fp16", "fp32"]),
        (2, ["u8", "fp16", "fp32"]),
        (10, ["u8", "fp16", "fp32"]),
        (256, ["u8", "fp16", "fp32"]),
        (257, list(CANDIDATES)),
        (1 << 15, list(CANDIDATES)),
        ((1 << 15) + 1, ["fp16", "fp32"]),
    ],
)
def test_only_encodings_that_save_bytes_and_have_room_are_tried(classes, expected):
    assert candidates(classes) == expected
    for name in expected:
        encoding = get_encoding(name, "logits")
        encoding.check(classes)
        assert encoding.row_bytes(classes) < 4 * classes or name == "fp32"


def test_the_smallest_that_keeps_within_the_budget_is_chosen():
    tried = [
        measured("top5", 12, dense=False, fits=False), measured("top10", 22, dense=False), measured("u8", 104),
        measured("fp16", 200), measured("fp32", 400),
    ]  # fmt: skip
    assert smallest(tried, dense=False) == "top10"
    assert smallest(tried, dense=True) == "u8"
    assert smallest(tried[::-1], dense=False) == "top10"
    assert smallest([tried[0], *tried[3:]], dense=False) == "fp16"
    assert smallest([measured("u8", 8, kl=1e-5), measured("fp16", 8, kl=1e-7)], dense=True) == "fp16"


@pytest.mark.parametrize(("tried", "dense"), [([], False), ([measured("top5", 12, dense=False)], True)])
def test_where_nothing_keeps_within_the_budget_it_is_named(tried, dense):
    with pytest.raises(InputError, match=r"^cache\.budget: no encoding keeps within it, not even 'fp32'; allow more$"):
        smallest([*tried, measured("u8", 104, fits=False), measured("fp32", 400, fits=False)], dense=dense)


def test_what_was_measured_is_told_in_a_line_each():
    lines = table([measured("top10", 22, kl=0.00321, dense=False), measured("fp32", 400)], "top10")
    assert lines == [
        "top10     22 bytes/view,     22.00 MB in all; TV 1.2e-02, KL 3.2e-03, angle 0.46 degrees, same top-1 98.7 %"
        "  <- chosen",
        "fp32     400 bytes/view,    400.00 MB in all; TV 1.2e-02, KL 0.0e+00, angle 0.46 degrees, same top-1 98.7 %",
    ]


def test_each_encoding_is_measured_on_the_first_views_of_the_pool(experiment_file):
    plan, _, storage = packed_plan(many_classes(experiment_file))
    assert plan.packed.pool == 108 < PILOT
    tried = measure(pilot_of(plan), storage)
    assert plan.sources["wise"].passes == 108
    assert [one.encoding for one in tried] == list(CANDIDATES)
    ids = torch.arange(108)
    images = torch.from_numpy(read_packed(plan.packed, storage).images)[:108]
    seen = plan.recipe.apply(images, ids=ids, views=torch.zeros_like(ids))
    logits = plan.sources["wise"].outputs(seen, ("logits",))["logits"]
    for one in tried:
        encoding = get_encoding(one.encoding, "logits")
        payload = encoding.encode(logits)
        assert one.view_bytes == payload.shape[1]
        assert one.forecast == payload.shape[1] * 108 * 3
        assert one.dense == encoding.dense
        expected = dataclasses.asdict(fidelity(logits, encoding.decode(payload, 300)))
        assert dataclasses.asdict(one.fidelity) == pytest.approx(expected, rel=1e-3, abs=1e-5)
        assert one.fits == Budget().allows(one.fidelity)
    assert [one.fits for one in tried] == [False] * 6 + [True] * 3


def test_a_choice_is_said_once_and_remembered(experiment_file):
    plan, _, storage = packed_plan(experiment_file)
    pilot, said = pilot_of(plan), []
    assert choose_encoding(pilot, storage, say=said.append) == "fp16"
    assert plan.sources["wise"].passes == 108
    assert [line.split()[:3] for line in said] == [["pilot", "wise", name] for name in ("u8", "fp16", "fp32")]
    assert [line.endswith("<- chosen") for line in said] == [False, True, False]
    assert choose_encoding(pilot, storage, say=said.append) == "fp16"
    assert (plan.sources["wise"].passes, len(said)) == (108, 3)
    (key,) = storage.keys("pilots")
    assert key == pilot.key
    told = json.loads(storage.read(key))
    assert (told["chosen"], len(told["measured"])) == ("fp16", 3)


def test_what_the_choice_depends_on_is_asked_anew(experiment_file):
    plan, _, storage = packed_plan(many_classes(experiment_file))
    base = pilot_of(plan)
    other = packed_plan(experiment_file, "views.seed=1")[0].recipe
    changed = [base, pilot_of(plan, budget=ANYTHING), pilot_of(plan, dense=True), pilot_of(plan, recipe=other)]
    assert len({one.key for one in changed}) == 4
    assert pilot_of(plan, view_count=9).key == base.key
    for one, chosen in ((base, "u8"), (changed[1], "top5"), (pilot_of(plan, budget=ANYTHING, dense=True), "u8")):
        assert choose_encoding(one, storage, say=lambda line: None) == chosen
    exact = Budget(total_variation=0, kl=0, angle=0)
    assert choose_encoding(pilot_of(plan, budget=exact), storage, say=lambda line: None) == "fp32"


class Raced(FolderStorage):
    """Another process decides between this one's look and its answer."""

    def create(self, key, data):
        super().create(key, json.dumps({"chosen": "fp32", "measured": []}).encode())
        return super().create(key, data)


def test_of_two_that_measure_at_once_the_first_decides(experiment_file):
    plan, _, storage = packed_plan(experiment_file)
    raced = Raced(storage.uri)
    assert choose_encoding(pilot_of(plan), raced, say=lambda line: None) == "fp32"
    assert choose_encoding(pilot_of(plan), storage, say=lambda line: None) == "fp32"


def test_a_damaged_answer_is_named_and_never_taken(experiment_file):
    plan, _, storage = packed_plan(experiment_file)
    pilot = pilot_of(plan)
    storage.write(pilot.key, b'{"chosen":"fp')
    with pytest.raises(DamagedError, match=f"^{pilot.key} is damaged .*; delete it to measure again$"):
        choose_encoding(pilot, storage, say=lambda line: None)


def test_a_source_that_says_no_number_is_refused(experiment_file):
    plan, _, storage = packed_plan(experiment_file)
    plan.sources["wise"].network.network.state_dict()["fc.bias"][0] = float("inf")
    with pytest.raises(SsktError, match=r"^logits of source 'wise' are not finite$"):
        choose_encoding(pilot_of(plan), storage, say=lambda line: None)
    assert list(storage.keys("pilots")) == []


def test_an_experiment_chooses_when_it_is_packed_and_finds_its_choice(experiment_file):
    many_classes(experiment_file)
    plan, said, _ = packed_plan(experiment_file, AUTO)
    assert encodings(plan)["logits"] == "u8"
    assert sum("<- chosen" in line for line in said) == 1
    assert plan.sources["wise"].passes == 108
    again, said, _ = packed_plan(experiment_file, AUTO)
    assert (again.sources["wise"].passes, len(said)) == (0, 1)
    assert [one.run_key for one in again.trials] == [one.run_key for one in plan.trials]
    stated = packed_plan(experiment_file, "cache.encoding=u8")[0]
    assert stated.caches["wise"]["logits"].id == plan.caches["wise"]["logits"].id, "a choice is a setting like another"


def test_a_pool_that_grows_keeps_its_encoding(experiment_file, pictures, tmp_path):
    root = shutil.copytree(pictures, tmp_path / "pictures")
    change = f"dataset.path={root}"
    before = packed_plan(many_classes(experiment_file), AUTO, change)[0]
    for number in range(20):
        shutil.copy(root / "light" / f"{number}.png", root / "dark" / f"more{number}.png")
    after, said, storage = packed_plan(experiment_file, AUTO, change)
    assert len(after.packed.blocks) == 2
    assert after.packed.pool > before.packed.pool
    assert encodings(after)["logits"] == encodings(before)["logits"]
    assert after.sources["wise"].passes == 0
    assert not [line for line in said if line.startswith("pilot")]
    assert len(list(storage.keys("pilots"))) == 1
    (was, known) = (json.loads(storage.read(pilot_of(after).key))["measured"], measure(pilot_of(after), storage))
    assert after.sources["wise"].passes == before.packed.pool, "what came later is no part of what is asked"
    assert [one["view_bytes"] for one in was] == [one.view_bytes for one in known]
    for one, other in zip(was, known, strict=True):
        assert one["fidelity"] == pytest.approx(dataclasses.asdict(other.fidelity), rel=1e-3, abs=1e-5)


def test_a_method_with_a_temperature_gets_all_of_the_logits(experiment_file):
    many_classes(experiment_file)
    assert encodings(packed_plan(experiment_file, AUTO, LOOSE)[0])["logits"] == "top5"
    with_methods(experiment_file, "method: sskt, sources: [wise]", "method: sskt, sources: [wise], temperature: 2")
    assert encodings(packed_plan(experiment_file, AUTO, LOOSE)[0])["logits"] == "u8"


@pytest.mark.parametrize("change", ["sources.wise.live=true", "methods=[{method: embed, sources: [wise]}]",
                                    "methods=[{method: finetune, sources: [wise]}]"])  # fmt: skip
def test_nothing_is_measured_where_no_logits_are_stored(experiment_file, change):
    plan, said, storage = packed_plan(experiment_file, AUTO, change)
    assert plan.sources["wise"].passes == 0
    assert [line.split()[0] for line in said] == ["pack"]
    assert list(storage.keys("pilots")) == []


def test_a_trial_trains_from_the_encoding_that_was_chosen(experiment_file):
    plan, storage = prepared(many_classes(experiment_file, sharpness=60.0), AUTO, LOOSE)
    spec = plan.caches["wise"]["logits"]
    assert spec.labels.encoding == "top5"
    stored = torch.from_numpy(read_cache(storage, open_cache(storage, spec)))
    assert stored.shape == (108, 3, 5 * 3 + 2)
    decoded = get_encoding("top5", "logits").decode(stored, 300)
    assert (decoded.double().exp().sum(dim=-1) - 1).abs().max() < 1e-6
    materials = gather_materials(plan, storage, [plan.trials[2]])
    batch = make_feed(plan.trials[2], materials, CPU).batch(0)
    said = plan.sources["wise"].outputs(batch.images, ("logits",))["logits"]
    expected = get_encoding("top5", "logits").decode(get_encoding("top5", "logits").encode(said), 300)
    assert (batch.outputs["wise"]["logits"].exp() - expected.exp()).abs().max() < 5e-3, (
        "a byte may be rounded otherwise"
    )
    assert expected.exp().max() > 0.1
    result = run_trial(plan.trials[2], materials, CPU)
    assert [metrics["epoch"] for metrics in result["history"]] == [1, 2, 3]
    assert all(math.isfinite(value) for metrics in result["history"] for value in metrics.values())
    assert result["label_rows"] == 3 * 4 * 32


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("cache.budget.kl=-1", "cache.budget: kl is -1.0; it has to be at least 0 and finite"),
        ("cache.budget.agreement=2", "cache.budget: agreement is 2.0; it has to be between 0 and 1"),
        ("cache.budget.tv=1", "field 'cache.budget.tv' is unknown; .*total_variation"),
        ("cache.encoding=automatic", "cache.encoding 'automatic' is unknown; did you mean 'auto'?"),
    ],
)
def test_a_wrong_budget_or_encoding_is_one_line(experiment_file, change, says):
    with pytest.raises(InputError, match=says) as raised:
        load_experiment(str(experiment_file), changes=[change])
    assert "\n" not in str(raised.value)
