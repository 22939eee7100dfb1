import math
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.nn import functional as F

from sskt.encodings import get_encoding, stored_as
from sskt.errors import InputError, UnknownNameError

EACH = settings(max_examples=60, deadline=None)
HUGE = float(np.float32(1e30))
FINITE = st.floats(-HUGE, HUGE, width=32, allow_subnormal=False) | st.floats(-20, 20, width=32)
TIES = st.sampled_from([0.0, 1.0, 1.0 + 2**-23, -HUGE, 2.0**-30])
DENSE = ("fp32", "fp16", "u8")


def bf16(two: bytes) -> float:
    """The upper half of a float32."""
    return struct.unpack("<f", b"\0\0" + two)[0]


def slow_softmax(row) -> list[float]:
    powers = [math.exp(float(value) - float(max(row))) for value in row]
    return [power / sum(powers) for power in powers]


def slow_decode(name: str, output: str, payload: bytes, width: int) -> list[float]:
    """One row, by the layout that the doc strings tell; of topK probabilities."""
    if name == "fp32":
        return list(struct.unpack(f"<{width}f", payload))
    if name == "fp16" or (output != "logits" and name != "u8"):
        return list(struct.unpack(f"<{width}e", payload))
    if name == "u8":
        step = bf16(payload[2:4])
        if output != "logits":
            return [struct.unpack("<e", payload[:2])[0] - code * step for code in payload[4:]]
        place = struct.unpack("<h", payload[:2])[0]
        return [0.0 if index == place else -max(code, 0.25) * step for index, code in enumerate(payload[4:])]
    kept, size = int(name[3:]), 1 if width <= 256 else 2
    places = struct.unpack(f"<{kept}{'B' if size == 1 else 'h'}", payload[: kept * size])
    masses = [(root / 255) ** 2 for root in payload[kept * size : -2]]
    odds = struct.unpack("<e", payload[-2:])[0]
    row = [odds / (1 + odds) / (width - kept)] * width
    for place, mass in zip(places, masses, strict=True):
        row[place] = mass / sum(masses) / (1 + odds)
    return row


def assert_encoded(name: str, output: str, payload: bytes, row: list[float]) -> None:
    """The bytes of one row say what they should, as nearly as they can."""
    width = len(row)
    if name.startswith("top") and output == "logits":
        return assert_kept(int(name[3:]), payload, row)
    top, decoded = max(row), slow_decode(name, output, payload, width)
    if name == "fp32":
        assert decoded == row
    elif name == "u8":
        step, lost = bf16(payload[2:4]), 0.0 if output == "logits" else abs(top) * 2**-11 + 2**-25
        clipped = [max(value - top, -24.0) for value in row] if output == "logits" else row
        span = max(clipped) - min(clipped)
        assert step <= (span + lost) / 255 * 1.01 + 1e-32, "no coarser than the span asks for"
        for value, found in zip(clipped, decoded, strict=True):
            assert abs(value - found) <= step * 0.5001 + lost + 1e-6 * abs(value)
    else:
        for value, found in zip(row, decoded, strict=True):
            value = max(value - top, -6e4) if output == "logits" else value
            assert abs(value - found) <= abs(value) * (2**-11 + 2**-20) + 2**-24
    return None


def assert_kept(kept: int, payload: bytes, row: list[float]) -> None:
    """The bytes of one row of the likeliest classes."""
    size, chances = 1 if len(row) <= 256 else 2, slow_softmax(row)
    order = sorted(range(len(row)), key=lambda index: (-row[index], index))[:kept]
    assert list(struct.unpack(f"<{kept}{'B' if size == 1 else 'h'}", payload[: kept * size])) == order
    for place, root in zip(order, payload[kept * size : -2], strict=True):
        assert root == 1 or abs(root - 255 * math.sqrt(chances[place])) <= 0.5 + 1e-6
    others = sum(chance for index, chance in enumerate(chances) if index not in order)
    odds = others / sum(chances[place] for place in order)
    assert struct.unpack("<e", payload[-2:])[0] == pytest.approx(odds, rel=2**-11 + 1e-9, abs=2**-25)


def logits_of(rows: int, classes: int, *, scale: float = 3.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed)) * scale


def there_and_back(name: str, values: torch.Tensor, output: str = "logits") -> torch.Tensor:
    encoding = get_encoding(name, output)
    return encoding.decode(encoding.encode(values), values.shape[1])


CASES = [
    *[(name, output, width) for name in DENSE for output in ("logits", "embedding") for width in (1, 2, 10, 300)],
    *[("top1", "logits", 2), ("top2", "logits", 10), ("top5", "logits", 256), ("top5", "logits", 257)],
    *[("top10", "logits", 1000), ("top9", "logits", 10), ("top10", "embedding", 7)],
]


@pytest.mark.parametrize(("name", "output", "width"), CASES)
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 30.0])
def test_bytes_are_what_the_layout_says_and_are_read_as_it_says(name, output, width, scale):
    values = logits_of(12, width, scale=scale, seed=width)
    encoding = get_encoding(name, output)
    payload = encoding.encode(values)
    assert (payload.dtype, payload.shape) == (torch.uint8, (12, encoding.row_bytes(width)))
    decoded = encoding.decode(payload, width)
    assert (decoded.dtype, decoded.shape) == (torch.float32, values.shape)
    truncated = name.startswith("top") and output == "logits"
    for row, stored, found in zip(values.tolist(), payload.numpy(), decoded.tolist(), strict=True):
        assert_encoded(name, output, stored.tobytes(), row)
        expected = slow_decode(name, output, stored.tobytes(), width)
        if truncated:
            found = [math.exp(value) for value in found]
        # The likeliest of the topK is told apart from its equals, by less than this.
        np.testing.assert_allclose(found, expected, rtol=2.2e-3 if truncated else 1e-6, atol=1e-11 if truncated else 0)


@pytest.mark.parametrize(("name", "width"), [*[(name, 7) for name in DENSE], ("top3", 7), ("top5", 300)])
@pytest.mark.parametrize("output", ["logits", "embedding"])
def test_any_shape_of_rows_is_decoded_alike(name, width, output):
    """Odd numbers of bytes too: a row may begin anywhere in memory."""
    encoding, rows = get_encoding(name, output), logits_of(24, width)
    payload = encoding.encode(rows)
    whole = encoding.decode(payload, width)
    for shape in ((24,), (2, 12), (2, 3, 4), (24, 1), (1, 24)):
        assert torch.equal(encoding.decode(payload.view(*shape, -1), width), whole.view(*shape, width))
    by_view = payload.view(6, 4, -1)
    ids, views = torch.tensor([5, 0, 3]), torch.tensor([2, 0, 3])
    assert torch.equal(encoding.decode(by_view[ids, views], width), whole.view(6, 4, -1)[ids, views])
    for row in range(24):
        assert torch.equal(encoding.decode(payload[row], width), whole[row])
        assert torch.equal(encoding.decode(payload[row : row + 1], width), whole[row : row + 1])
        assert torch.equal(encoding.encode(rows[row : row + 1])[0], payload[row]), "a row depends on no other"
    assert encoding.decode(payload[:0], width).shape == (0, width)


@st.composite
def rows_of_values(draw) -> np.ndarray:
    elements = draw(st.sampled_from([FINITE, TIES, st.floats(-20, 20, width=32)]))
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 12) | st.sampled_from([255, 256, 257])))
    return draw(arrays(np.float32, shape, elements=elements, fill=elements))


@EACH
@given(rows_of_values(), st.sampled_from([*DENSE, "top1", "top2", "top7"]))
def test_whatever_the_logits_the_largest_stays_the_only_largest(values, name):
    logits = torch.from_numpy(values)
    if name.startswith("top") and int(name[3:]) >= logits.shape[1]:
        return
    payload = get_encoding(name, "logits").encode(logits)
    decoded = get_encoding(name, "logits").decode(payload, logits.shape[1])
    assert decoded.isfinite().all()
    assert torch.equal(decoded.argmax(dim=1), logits.argmax(dim=1))
    if name == "u8" or name.startswith("top"):
        assert ((decoded == decoded.amax(dim=1, keepdim=True)).sum(dim=1) == 1).all()
    for row, stored in zip(values.tolist(), payload.numpy(), strict=True):
        assert_encoded(name, "logits", stored.tobytes(), row)


@EACH
@given(arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.floats(-65504, 65504, width=32)))
def test_whatever_the_other_outputs_they_come_back(values):
    for name in (*DENSE, "top3"):
        payload = get_encoding(name, "attention").encode(torch.from_numpy(values))
        assert get_encoding(name, "attention").decode(payload, values.shape[1]).isfinite().all()
        for row, stored in zip(values.tolist(), payload.numpy(), strict=True):
            assert_encoded(name, "attention", stored.tobytes(), row)


def test_places_take_one_byte_up_to_256_classes_and_then_two():
    top = get_encoding("top3", "logits")
    assert [top.row_bytes(width) for width in (4, 256, 257, 1 << 15)] == [8, 8, 11, 11]
    for name in ("top3", "u8"):
        for width in (255, 256, 257, 300, 1 << 15):
            logits = torch.zeros(4, width)
            likeliest = torch.tensor([0, 127, 128, width - 1])
            logits[torch.arange(4), likeliest] = 9.0
            assert there_and_back(name, logits).argmax(dim=1).tolist() == likeliest.tolist()


@pytest.mark.parametrize(
    ("name", "width", "says"),
    [
        (
            "top10",
            10,
            "cache.encoding is 'top10' for 10 classes; it is for more than 10 of them, and for 32768 at most",
        ),
        (
            "top11",
            10,
            "cache.encoding is 'top11' for 10 classes; it is for more than 11 of them, and for 32768 at most",
        ),
        ("top5", 32769, "cache.encoding is 'top5' for 32769 classes"),
        ("u8", 32769, "cache.encoding is 'u8', which has room for 32768 classes; the source has 32769"),
    ],
)
def test_what_has_no_room_is_refused(name, width, says):
    with pytest.raises(InputError, match=says):
        get_encoding(name, "logits").check(width)
    get_encoding(name, "embedding").check(width)


def test_what_has_room_is_not_refused():
    for name, width in (("top9", 10), ("top10", 1 << 15), ("u8", 1 << 15), ("fp16", 1 << 16), ("fp32", 1), ("u8", 1)):
        get_encoding(name, "logits").check(width)


@pytest.mark.parametrize(
    ("name", "width", "most"),
    [("u8", 10, 15), ("fp16", 10, 21), ("u8", 100, 106), ("fp16", 100, 210), ("top10", 1000, 34), ("fp32", 10, 40)],
)
def test_a_view_takes_no_more_bytes_than_was_aimed_for(name, width, most):
    payload = get_encoding(name, "logits").encode(logits_of(50, width))
    assert payload.shape[1] * payload.element_size() <= most


@pytest.mark.parametrize("output", ["logits", "embedding"])
def test_fp32_loses_not_a_bit(output):
    values = torch.cat([logits_of(32, 7, scale=1e4), torch.tensor([[0.0, -0.0, 1e-45, 3e38, -3e38, 1e-38, 1.0]])])
    payload = get_encoding("fp32", output).encode(values)
    assert payload.numpy().tobytes() == values.numpy().tobytes()
    assert there_and_back("fp32", values, output).numpy().tobytes() == values.numpy().tobytes()
    assert [get_encoding(name, output).exact for name in (*DENSE, "top5")] == [True, False, False, False]


def test_only_what_keeps_every_value_is_dense():
    assert [get_encoding(name, "logits").dense for name in (*DENSE, "top5")] == [True, True, True, False]
    assert get_encoding("top5", "embedding").dense


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e6])
def test_fp16_keeps_the_probabilities(scale):
    logits = logits_of(256, 100, scale=scale) + 1e5
    decoded = there_and_back("fp16", logits)
    assert decoded.isfinite().all()
    variation = 0.5 * (F.softmax(decoded, dim=1) - F.softmax(logits, dim=1)).abs().sum(dim=1)
    assert variation.max() < 2e-3


TEACHERS = {"sharp": (1000, 2.5, 11.0), "flat": (1000, 2.0, 7.5), "small": (100, 2.0, 7.0)}
"""Classes, spread of the logits, and the logit of one class that stands out: its probability is 0.74, 0.21, 0.63."""

BOUNDS = {
    "sharp": {"fp16": (2e-4, 0.01), "u8": (3e-3, 0.15), "top10": (0.1, 1.2), "top32": (0.06, 0.5)},
    "flat": {"fp16": (4e-4, 0.02), "u8": (6e-3, 0.5), "top10": (0.35, 11.0), "top100": (0.12, 2.5)},
    "small": {"fp16": (2e-4, 0.01), "u8": (3e-3, 0.2), "top10": (0.06, 1.7), "top32": (0.016, 0.4)},
}  # fmt: skip
"""Mean total variation, and mean angle in degrees between the gradients p - q of a learner."""


def teacher(kind: str, rows: int = 2000) -> torch.Tensor:
    classes, scale, lead = TEACHERS[kind]
    logits = logits_of(rows, classes, scale=scale, seed=3)
    leader = torch.randint(0, classes, (rows, 1), generator=torch.Generator().manual_seed(4))
    return logits.scatter(1, leader, lead)


@pytest.mark.parametrize("kind", TEACHERS)
def test_the_gradient_of_a_learner_is_that_of_the_dense_labels_within_bounds(kind):
    logits = teacher(kind)
    p, learner = (
        F.softmax(logits.double(), dim=1),
        F.softmax(logits_of(*logits.shape, scale=1.0, seed=5).double(), dim=1),
    )
    wanted = p - learner
    for name, (variation, angle) in BOUNDS[kind].items():
        decoded = there_and_back(name, logits)
        q = F.softmax(decoded.double(), dim=1)
        found = q - learner
        cosine = (wanted * found).sum(dim=1) / wanted.norm(dim=1) / found.norm(dim=1)
        mean_angle = torch.rad2deg(torch.arccos(cosine.clamp(max=1))).mean()
        assert (p - q).abs().sum(dim=1).mean() / 2 < variation
        assert mean_angle < angle
        assert torch.equal(decoded.argmax(dim=1), logits.argmax(dim=1))


@pytest.mark.parametrize("scale", [1e-30, 1e-7, 1e-3, 1.0, 24.0, 1e5])
def test_u8_is_as_fine_as_the_span_of_a_row_allows(scale):
    logits = logits_of(300, 40, scale=scale)
    span = (logits.amax(dim=1) - logits.amin(dim=1)).clamp(max=24.0)
    off = (there_and_back("u8", logits) - (logits - logits.amax(dim=1, keepdim=True)).clamp(min=-24)).abs()
    assert (off.amax(dim=1) <= span / 255 * 0.51 + 1e-32).all()


@pytest.mark.parametrize("name", [*DENSE, "top2"])
@pytest.mark.parametrize("gap", [2.0**-23, 1e-8, 1e-12, 1e-30])
def test_the_largest_by_next_to_nothing_stays_the_largest(name, gap):
    logits = torch.tensor([[-gap, -gap, 0.0], [-5.0, 0.0, gap], [-gap, 0.0, -30.0]])
    assert (logits == logits.amax(dim=1, keepdim=True)).sum() == 3
    decoded = there_and_back(name, logits)
    assert torch.equal(decoded.argmax(dim=1), logits.argmax(dim=1))
    assert (decoded == decoded.amax(dim=1, keepdim=True)).sum() == 3


def test_u8_needs_no_number_that_a_processor_may_take_for_0():
    torch.set_flush_denormal(True)
    try:
        decoded = there_and_back("u8", torch.tensor([[7.0, 7.0, 7.0], [0.0, -1e-37, 0.0], [-1e-36, 0.0, 0.0]]))
        others = there_and_back("u8", torch.zeros(2, 4), "embedding")
    finally:
        torch.set_flush_denormal(False)
    assert decoded.argmax(dim=1).tolist() == [0, 0, 1]
    assert ((decoded < 0).sum(dim=1) == 2).all()
    assert torch.equal(others, torch.zeros(2, 4))


def test_a_row_of_one_value_and_a_class_that_cannot_be():
    for name in (*DENSE, "top3"):
        constant = there_and_back(name, torch.full((2, 5), 3.25))
        assert F.softmax(constant, dim=1).sub(0.2).abs().max() < 1e-3
        impossible = there_and_back(name, torch.tensor([[-1e30, 1.0, -1e30, 2.0, 0.0]]))
        assert F.softmax(impossible, dim=1)[0, [0, 2]].max() < 1e-9
        assert impossible.isfinite().all()
    for name in DENSE:
        assert torch.equal(F.softmax(there_and_back(name, torch.tensor([[-7.0], [1e30]])), dim=1), torch.ones(2, 1))


def test_maps_and_embeddings_in_u8():
    maps = F.normalize(logits_of(50, 3000).square(), dim=1)
    assert (there_and_back("u8", maps, "attention") - maps).abs().max() < maps.max() / 255
    assert 0 < maps.mean() < 0.02
    tiny = maps * 1e-3
    off = (there_and_back("u8", tiny, "attention") - tiny).abs().amax(dim=1)
    assert (off < tiny.amax(dim=1) / 255).all()
    embedding = logits_of(50, 512).relu()
    assert F.cosine_similarity(there_and_back("u8", embedding, "embedding"), embedding).min() > 0.9999
    same = torch.full((3, 4), 0.3)
    assert torch.allclose(there_and_back("u8", same, "embedding"), same, rtol=2**-11)


def test_an_output_that_half_precision_does_not_have_is_refused():
    embedding = torch.rand(8, 5) * 60_000
    assert torch.allclose(there_and_back("fp16", embedding, "embedding"), embedding, rtol=1e-3)
    for name, said in (("fp16", "fp16"), ("top10", "fp16"), ("u8", "u8")):
        encoding = get_encoding(name, "embedding")
        for value in (7e4, -7e4):
            with pytest.raises(
                InputError, match=f"cache.encoding is '{said}', but an output reaches 70000; use 'fp32'"
            ):
                encoding.encode(torch.tensor([[1.0, value]]))
        with pytest.raises(InputError, match="reaches nan"):
            encoding.encode(torch.tensor([[1.0, float("nan")]]))
    assert torch.equal(there_and_back("fp32", torch.tensor([[7e4]]), "embedding"), torch.tensor([[7e4]]))


def test_a_million_saturated_rows_are_distributions():
    """What a float32 softmax calls 1: the mass of the others is there, and never below 0."""
    top, generator = get_encoding("top3", "logits"), torch.Generator().manual_seed(6)
    seen = 0
    for scale in torch.linspace(0.5, 60, 20).tolist():
        logits = torch.randn(50_000, 8, generator=generator) * scale
        logits[::2, 0] += 40 * scale**0.5
        decoded = top.decode(top.encode(logits), 8)
        chances = decoded.exp()
        assert decoded.isfinite().all()
        assert chances.min() >= 0
        assert (chances.double().sum(dim=1) - 1).abs().max() < 1e-6
        others = decoded.sort(dim=1).values
        runner_up = others[:, -2]
        assert (others[:, -1] > runner_up).all()
        assert torch.equal(decoded.argmax(dim=1), logits.argmax(dim=1))
        seen += len(logits)
    assert seen == 10**6


@pytest.mark.parametrize("gap", [0.0, 1.0, 10.0, 20.0, 40.0, 90.0])
def test_the_others_share_their_mass_evenly(gap):
    logits = logits_of(40, 30)
    logits[torch.arange(40), torch.arange(40) % 30] += gap
    p, q = F.softmax(logits.double(), dim=1), there_and_back("top4", logits).double().exp()
    left = torch.ones_like(p, dtype=torch.bool).scatter(1, p.topk(4, dim=1).indices, value=False)
    for row in range(40):
        tail, found = p[row, left[row]], q[row, left[row]]
        assert found.max() == found.min() > 0
        assert found.sum().item() == pytest.approx(tail.sum().item(), rel=2e-3, abs=2e-6)


@pytest.mark.parametrize(
    ("kept", "width"), [(1, 2), (1, 3), (5, 257), (1, 5000), (10, 1000), (1, 1 << 15), (100, 1 << 15)]
)
def test_flat_rows_of_any_width_keep_the_likeliest_and_a_finite_logarithm(kept, width):
    """Where the others have nearly all of the mass, next to which the likeliest class must not vanish."""
    logits = torch.stack([torch.zeros(width), torch.linspace(0, 1e-3, width), 1e-4 * logits_of(1, width)[0]])
    decoded = there_and_back(f"top{kept}", logits)
    assert torch.equal(decoded.argmax(dim=1), logits.argmax(dim=1))
    assert decoded.amax(dim=1).tolist() == pytest.approx([-math.log(width)] * 3, abs=3e-3)
    assert (decoded.double().exp().sum(dim=1) - 1).abs().max() < 1e-6


def test_names_and_what_stands_for_them():
    for name in ("fp8", "top0", "top", "top05", "auto", "TOP5"):
        with pytest.raises(
            UnknownNameError, match=f"cache.encoding '{name}' is unknown; .*known: auto, fp16, fp32, top10"
        ):
            get_encoding(name, "logits")
    for output, names in (
        ("logits", {"top10": "top10", "auto": "fp16"}),
        ("features", {"top10": "fp16", "auto": "fp16"}),
    ):
        assert {name: stored_as(name, output) for name in names} == names
        assert [stored_as(name, output) for name in DENSE] == list(DENSE)
