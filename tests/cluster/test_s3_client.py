from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import ClientError

from cluster import s3_client
from cluster.s3_client import client, code_of, credentials, reason, status_of
from cluster.stored import StorageError
from tests.object_store import forget, use


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch):
    """Clients are made, and ask nobody."""
    use("http://storage.example:9000", monkeypatch)
    yield
    forget()


def address(bucket: str = "bucket") -> str:
    return client().generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "key"}).partition("?")[0]


def refusal(code: str, status: int, message: str = "") -> ClientError:
    answer = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "GetObject")


def test_a_process_has_one_client_for_all_its_threads(monkeypatch):
    with ThreadPoolExecutor(8) as threads:
        assert len({id(made) for made in threads.map(lambda _: client(), range(16))}) == 1
    parents = client()
    monkeypatch.setattr(s3_client.os, "getpid", lambda: -1)  # as after a fork
    assert client() is not parents


def test_own_servers_are_addressed_by_path_unless_told_otherwise(tmp_path, monkeypatch):
    assert address() == "http://storage.example:9000/bucket/key"
    (tmp_path / "config").write_text("[default]\ns3 =\n  addressing_style = virtual\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    forget()
    assert address() == "http://bucket.storage.example:9000/key"


def test_the_endpoint_of_s3_goes_before_that_of_all_services(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://special.example")
    forget()
    assert address() == "https://special.example/bucket/key"


def test_aws_itself_is_addressed_by_bucket_and_region(monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    forget()
    assert client().meta.region_name == "eu-north-1"
    assert address() == "https://bucket.s3.amazonaws.com/key"
    assert address("dotted.name") == "https://s3.eu-north-1.amazonaws.com/dotted.name/key"


def test_a_profile_is_followed(tmp_path, monkeypatch):
    config, keys = tmp_path / "config", tmp_path / "credentials"
    config.write_text("[profile mine]\nregion = sa-east-1\nendpoint_url = http://mine.example\n")
    keys.write_text("[mine]\naws_access_key_id = theirs\naws_secret_access_key = hidden\n")
    for name in ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    forget()
    assert (client().meta.region_name, address()) == ("sa-east-1", "http://mine.example/bucket/key")


@pytest.mark.parametrize("endpoint", ["nonsense", "http://", "localhost:9000"])
def test_an_endpoint_that_is_no_address_is_refused(monkeypatch, endpoint):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    forget()
    with pytest.raises(StorageError, match="AWS_ENDPOINT_URL is no address; it has to be https://host"):
        client()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (refusal("403", 403), "access is denied"),
        (refusal("404", 404), "there is no such bucket"),
        (refusal("301", 301), "another region; set AWS_REGION"),
        (refusal("ExpiredToken", 400), "have expired"),
        (refusal("RequestTimeTooSkewed", 403), "clock is wrong"),
        (refusal("InternalError", 500), "the server failed 1 times (InternalError)"),
        (refusal("TooManyRequests", 429), "the server failed"),
        (refusal("QuotaExceeded", 403, "too\nmuch"), "QuotaExceeded: too much"),
    ],
)
def test_refusals_are_put_into_words(error, words):
    assert words in reason(error)
    assert "\n" not in reason(error)


def test_a_refusal_has_a_name_and_a_number():
    assert (code_of(refusal("NoSuchKey", 404)), status_of(refusal("NoSuchKey", 404))) == ("NoSuchKey", 404)


def test_credentials_are_told_by_where_they_come_from(monkeypatch):
    assert credentials() == ("env", None)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "temporary")
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", "2000-01-01T00:00:00Z")
    assert credentials() == ("env", 946684800.0)


def test_credentials_in_a_file_are_found_and_a_missing_profile_is_none(tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "file").write_text("[mine]\naws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "file"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert credentials() is None
    monkeypatch.setenv("AWS_PROFILE", "mine")
    assert credentials() == ("shared-credentials-file", None)
    monkeypatch.setenv("AWS_PROFILE", "yours")
    assert credentials() is None
