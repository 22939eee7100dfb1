import base64
import gzip

import pytest

from cluster.s3_headers import ENCRYPTION, checksum, encryption, kind
from cluster.storage import StorageError, open_storage


@pytest.mark.parametrize("data", [b"", b"one", bytes(range(256)) * 1000])
def test_the_checksum_is_that_of_other_programs(data):
    at_the_end = gzip.compress(data)[-8:-4]  # of a gzip file, the lowest byte first
    assert base64.b64decode(checksum(data)) == at_the_end[::-1]


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("reports/mine.html", {"ContentType": "text/html; charset=utf-8"}),
        ("reports/mine.csv", {"ContentType": "text/csv; charset=utf-8"}),
        ("results/00ff.json", {"ContentType": "application/json"}),
        ("caches/id/shard-00000.parquet", {}),
        ("claims/html", {}),
    ],
)
def test_what_a_browser_shows_has_its_kind(key, told):
    assert kind(key) == told


@pytest.mark.parametrize(
    ("chosen", "asked"),
    [
        ("", {}),
        ("AES256", {"ServerSideEncryption": "AES256"}),
        ("aws:kms", {"ServerSideEncryption": "aws:kms"}),
        ("aws:kms=alias/mine", {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "alias/mine"}),
    ],
)
def test_encryption_is_asked_for_as_chosen(monkeypatch, chosen, asked):
    monkeypatch.setenv(ENCRYPTION, chosen)
    assert encryption() == asked


@pytest.mark.parametrize("chosen", ["aes256", "AES256 ", "aws:kms:dsse", "aws:kms=", "aws:kms=two words", "none"])
def test_encryption_that_makes_no_sense_is_refused_when_a_storage_is_opened(monkeypatch, chosen):
    monkeypatch.setenv(ENCRYPTION, chosen)
    with pytest.raises(StorageError) as failure:
        open_storage("s3://bucket/prefix")
    assert str(failure.value) == f"SSKT_S3_ENCRYPTION is {chosen!r}; it has to be AES256, aws:kms, or aws:kms=KEY"
