"""A line for every file, in order, with what the network says of it or why it says nothing."""

import csv
import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.release.card import Card
from pipeline.release.predict import BATCH, image_files, load_release, predict
from sskt.errors import InputError
from sskt.networks import ImageFormat, build_target
from sskt.settings import TargetSettings

CARD = Card(
    name="photos", architecture="small_cnn", classes=("cat", "dog", "error"), multi_label=False, channels=1,
    image_size=12, method="scratch", sources={}, dataset="photos", fingerprint="f", training_images=9,
    metric="accuracy", validation=80, test=80, run_key="a", seed=0, versions={},
)  # fmt: skip


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        settings = TargetSettings(architecture="small_cnn", options={"width": 4})
        return build_target(settings, classes=3, image=ImageFormat(1, 12, (0.5,), (0.25,))).eval()


def rows_of(network, card, files):
    out = io.StringIO()
    unread = predict(network, card, files, out=out)
    return unread, list(csv.DictReader(io.StringIO(out.getvalue())))


def picture(file, seed, size=(12, 12)):
    pixels = np.random.default_rng(seed).integers(0, 256, size[::-1], dtype=np.uint8)
    file.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(file)
    return pixels


def test_every_image_gets_the_networks_own_answer(network, tmp_path):
    count = BATCH + 3
    pixels = [picture(tmp_path / "sub" / f"{number:03}.png", number) for number in range(count)]
    files = image_files(tmp_path)
    unread, rows = rows_of(network, CARD, files)
    assert unread == 0
    assert [row["file"] for row in rows] == [str(tmp_path / "sub" / f"{number:03}.png") for number in range(count)]
    for row, image in zip(rows, pixels, strict=True):  # one by one, where predict takes 64 at once
        with torch.no_grad():
            wanted = network(torch.from_numpy(image)[None, None]).logits.softmax(dim=1)[0]
        assert [float(row[f"p {name}"]) for name in CARD.classes] == pytest.approx(wanted.tolist(), abs=1e-4)
        assert row["predicted"] == CARD.classes[wanted.argmax()]


def test_a_damaged_image_has_its_reason_and_the_others_their_answers(network, tmp_path):
    picture(tmp_path / "a.png", 1)
    (tmp_path / "b.png").write_bytes(b"no image")
    picture(tmp_path / "c.png", 3, size=(30, 17))
    unread, rows = rows_of(network, CARD, image_files(tmp_path))
    assert unread == 1
    assert [bool(row["predicted"]) for row in rows] == [True, False, True]
    assert "cannot identify image" in rows[1]["error"]
    assert {row["error"] for row in (rows[0], rows[2])} == {""}
    unread, rows = rows_of(network, CARD, [tmp_path / "b.png"])
    assert (unread, rows[0]["p cat"]) == (1, "")


def test_where_several_classes_may_hold_each_has_a_probability_of_its_own(network, tmp_path):
    image = picture(tmp_path / "a.png", 5)
    card = dataclasses.replace(CARD, multi_label=True, metric="mean_ap")
    _, [row] = rows_of(network, card, image_files(tmp_path / "a.png"))
    with torch.no_grad():
        wanted = network(torch.from_numpy(image)[None, None]).logits.sigmoid()[0].tolist()
    assert [float(row[f"p {name}"]) for name in CARD.classes] == pytest.approx(wanted, abs=1e-4)
    assert row["predicted"] == "; ".join(name for name, value in zip(CARD.classes, wanted, strict=True) if value >= 0.5)


def test_a_network_for_clips_reads_no_single_images(network):
    with pytest.raises(InputError, match="the network sees clips of 16 frames; predict reads single images"):
        predict(network, dataclasses.replace(CARD, channels=48), [], out=io.StringIO())


def test_folders_without_what_is_needed_are_named(tmp_path):
    with pytest.raises(InputError, match=r"holds no image; they end in \.avif"):
        image_files(tmp_path)
    with pytest.raises(InputError, match="is no exported network"):
        load_release(tmp_path)
