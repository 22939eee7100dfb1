import pytest
import torch
from torch.nn import functional as F

from sskt.encodings import ENCODINGS, get_encoding
from sskt.errors import UnknownNameError


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("classes", [1, 10, 1000])
def test_rows_have_the_stated_size_and_keep_the_top_class(name, classes):
    logits = torch.randn(64, classes, generator=torch.Generator().manual_seed(0)) * 8
    encoding = get_encoding(name)
    rows = encoding.encode(logits)
    assert rows.dtype == torch.uint8
    assert rows.shape == (64, encoding.row_bytes(classes))
    assert torch.equal(encoding.decode(rows).argmax(dim=1), logits.argmax(dim=1))


def test_fp32_loses_nothing():
    logits = torch.randn(32, 7) * 1e4
    encoding = get_encoding("fp32")
    assert torch.equal(encoding.decode(encoding.encode(logits)), logits)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e6])
def test_fp16_keeps_the_probabilities(scale):
    logits = torch.randn(256, 100, generator=torch.Generator().manual_seed(1)) * scale + 1e5
    encoding = get_encoding("fp16")
    decoded = encoding.decode(encoding.encode(logits))
    assert decoded.isfinite().all()
    variation = 0.5 * (F.softmax(decoded, dim=1) - F.softmax(logits, dim=1)).abs().sum(dim=1)
    assert variation.max() < 2e-3


def test_decoding_works_on_gathered_rows():
    encoding = get_encoding("fp16")
    logits = torch.randn(20, 3, 10)
    payload = encoding.encode(logits.view(60, 10)).view(20, 3, -1)
    ids, views = torch.tensor([5, 0, 19]), torch.tensor([2, 0, 1])
    shifted = logits[ids, views] - logits[ids, views].amax(dim=1, keepdim=True)
    assert torch.allclose(encoding.decode(payload[ids, views]), shifted, atol=1e-2)


def test_an_unknown_encoding_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"encoding 'fp8' is unknown; .*known: fp16, fp32"):
        get_encoding("fp8")
