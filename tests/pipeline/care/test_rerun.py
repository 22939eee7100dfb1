"""Running a source again: what is right passes in every encoding, what is slightly wrong does not."""

import dataclasses

import pytest
import torch

from pipeline.care.rerun import NOISE, SAMPLES, choose, run_again
from pipeline.planning.specs import Labels
from sskt.gallery import Gallery
from sskt.networks import ImageFormat, build_target
from sskt.settings import TargetSettings, ViewSettings
from sskt.sources import Source
from sskt.views import KINDS, TURN, make_recipe

CLASSES, SIZE, SAMPLES_HERE = 20, 8, 24
RECIPE = make_recipe(ViewSettings(ops=[{"pad_crop": 1}, "hflip"]), image_size=SIZE)


@pytest.fixture(scope="module")
@torch.no_grad()
def source():
    torch.manual_seed(0)
    settings = TargetSettings(architecture="small_cnn", options={"width": 6})
    network = build_target(settings, classes=CLASSES, image=ImageFormat(1, SIZE, (0.5,), (0.25,)))
    for weights in list(network.parameters())[-2:]:
        weights.mul_(20)  # nothing could be told from answers that are all alike
    return Source("wise", network)


def labels(source, output, encoding, *, kind=""):
    return Labels(
        source={}, views={}, output=output, kind=kind, width=source.widths(())[output], encoding=encoding,
        numerics={"device": "cpu", "batch_size": 32},
    )  # fmt: skip


def gallery(images, ids):
    """The images of ids in a row."""
    return Gallery(RECIPE, images, (0, int(ids[0]), int(ids[-1]) + 1), first=int(ids[0]))


def stored(source, of, images, ids, view_ids):
    """What the cache stage would store, one view in a batch of its own: uint8 [n, views, bytes]."""
    show = gallery(images, ids).show
    said = [
        source.outputs(show(ids, views=torch.full_like(ids, view), kind=of.kind), (of.output,))[of.output]
        for view in view_ids
    ]
    return torch.stack([of.encoder.encode(values) for values in said], dim=1), torch.stack(said, dim=1)


def some_images(count=SAMPLES_HERE):
    return torch.randint(0, 256, (count, 1, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


CASES = [
    ("logits", "fp32", ""), ("logits", "fp16", "mixup"), ("logits", "u8", "turned"), ("logits", "top5", ""),
    ("embedding", "fp32", "turned"), ("embedding", "fp16", ""), ("embedding", "u8", "cutmix"),
]  # fmt: skip


@pytest.mark.parametrize(("output", "encoding", "kind"), CASES)
def test_what_is_right_passes_and_what_is_slightly_wrong_does_not(source, output, encoding, kind):
    of = labels(source, output, encoding, kind=kind)
    view_ids = tuple(number * TURN + view for number in KINDS[kind] for view in (0, 1, 2))[:4]
    images, ids = some_images(), torch.arange(100, 100 + SAMPLES_HERE)
    right, said = stored(source, of, images, ids, view_ids)
    seen = run_again(source, gallery(images, ids), right, ids=ids, view_ids=view_ids, labels=of)
    assert (seen.samples, seen.wrong) == (SAMPLES_HERE, ())
    assert 0 <= seen.beyond <= NOISE * seen.noise < 1e-3
    # One value of one view of one sample, changed by twice the largest rounding error of its row and a little.
    changed = said[5, 1].clone()
    place = int(changed.argmin())
    error = (of.encoder.decode(right[5, 1], of.width) - (changed - changed.max() * (output == "logits"))).abs().max()
    changed[place] += 5 * float(error) + 1e-3 if of.encoder.dense else 20.0
    wrong = right.clone()
    wrong[5, 1] = of.encoder.encode(changed[None])[0]
    seen = run_again(source, gallery(images, ids), wrong, ids=ids, view_ids=view_ids, labels=of)
    assert seen.wrong == (105,)
    assert seen.beyond > NOISE * seen.noise


@pytest.mark.parametrize("encoding", ["fp32", "fp16", "u8", "top5"])
def test_samples_or_views_that_were_swapped_are_found(source, encoding):
    of = labels(source, "logits", encoding)
    images, ids = some_images(), torch.arange(SAMPLES_HERE)
    right, _ = stored(source, of, images, ids, (0, 1, 2))
    swapped = right.clone()
    swapped[[2, 9]] = right[[9, 2]]
    assert run_again(source, gallery(images, ids), swapped, ids=ids, view_ids=(0, 1, 2), labels=of).wrong == (2, 9)
    others = run_again(source, gallery(images, ids), right, ids=ids, view_ids=(0, 2, 1), labels=of)
    assert len(others.wrong) > SAMPLES_HERE / 2


def test_a_source_that_is_no_number_is_wrong(source):
    of = labels(source, "embedding", "fp32")
    images, ids = some_images(), torch.arange(SAMPLES_HERE)
    right, _ = stored(source, of, images, ids, (0,))
    right[7] = of.encoder.encode(torch.full((1, of.width), float("nan")))
    assert run_again(source, gallery(images, ids), right, ids=ids, view_ids=(0,), labels=of).wrong == (7,)


def test_one_sample_of_one_view_is_enough(source):
    of = dataclasses.replace(labels(source, "logits", "fp16"), numerics={"device": "cpu", "batch_size": 1})
    images, ids = some_images(1), torch.tensor([4])
    right, _ = stored(source, of, images, ids, (0,))
    assert run_again(source, gallery(images, ids), right, ids=ids, view_ids=(0,), labels=of).wrong == ()


@pytest.mark.parametrize(("rows", "fraction", "count"), [(5, 0.001, 5), (1000, 0.001, SAMPLES), (1000, 0.1, 100)])
def test_samples_are_chosen_by_their_ids_alone(rows, fraction, count):
    chosen = choose(range(50, 50 + rows), fraction)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert len(chosen) == count
    assert 50 <= int(chosen.min()) <= int(chosen.max()) < 50 + rows
    assert torch.equal(chosen, choose(range(50, 50 + rows), fraction))
    if rows == 1000:
        assert int(chosen.max()) - int(chosen.min()) > 500, "from everywhere"
