import pytest
import torch
from torch.nn import functional as F

from sskt.encodings import ENCODINGS, encode_output, get_encoding
from sskt.errors import InputError, UnknownNameError


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("classes", [1, 10, 1000])
def test_rows_have_the_stated_size_and_keep_the_top_class(name, classes):
    logits = torch.randn(64, classes, generator=torch.Generator().manual_seed(0)) * 8
    encoding = get_encoding(name)
    rows = encode_output("logits", logits, encoding)
    assert rows.dtype == torch.uint8
    assert rows.shape == (64, encoding.row_bytes(classes))
    assert torch.equal(encoding.decode(rows).argmax(dim=1), logits.argmax(dim=1))


def test_fp32_loses_nothing():
    logits = torch.randn(32, 7) * 1e4
    encoding = get_encoding("fp32")
    assert torch.equal(encoding.decode(encode_output("logits", logits, encoding)), logits)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e6])
def test_fp16_keeps_the_probabilities(scale):
    logits = torch.randn(256, 100, generator=torch.Generator().manual_seed(1)) * scale + 1e5
    encoding = get_encoding("fp16")
    decoded = encoding.decode(encode_output("logits", logits, encoding))
    assert decoded.isfinite().all()
    variation = 0.5 * (F.softmax(decoded, dim=1) - F.softmax(logits, dim=1)).abs().sum(dim=1)
    assert variation.max() < 2e-3


def test_decoding_works_on_gathered_rows():
    encoding = get_encoding("fp16")
    logits = torch.randn(20, 3, 10)
    payload = encode_output("logits", logits.view(60, 10), encoding).view(20, 3, -1)
    ids, views = torch.tensor([5, 0, 19]), torch.tensor([2, 0, 1])
    shifted = logits[ids, views] - logits[ids, views].amax(dim=1, keepdim=True)
    assert torch.allclose(encoding.decode(payload[ids, views]), shifted, atol=1e-2)


def test_an_unknown_encoding_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"cache.encoding 'fp8' is unknown; .*known: fp16, fp32"):
        get_encoding("fp8")


def test_an_embedding_is_stored_as_it_is_or_refused():
    encoding = get_encoding("fp16")
    embedding = torch.rand(8, 5) * 60_000
    decoded = encoding.decode(encode_output("embedding", embedding, encoding))
    assert torch.allclose(decoded, embedding, rtol=1e-3)
    with pytest.raises(InputError, match=r"cache\.encoding is 'fp16', but an output reaches 70000; use 'fp32'"):
        encode_output("embedding", torch.tensor([[1.0, 7e4]]), encoding)
    with pytest.raises(InputError, match="reaches nan"):
        encode_output("embedding", torch.tensor([[1.0, float("nan")]]), encoding)
