"""No secret is in anything that a run leaves behind: objects, logs, sessions, pickles, what it prints."""

import base64
import json
import pickle
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.object_store import BUCKET, SECRET_KEY
from tests.processes import ROOT, finish
from tests.secret_scan import Scanner

SECRET = "tests/secret+key=with every/sign-that_matters"  # noqa: S105
SCANNER = Scanner({"the key": SECRET})

PLANTED = {
    "bytes": lambda secret: secret.encode(),
    "a URL": lambda secret: urlencode({"key": secret}).encode(),
    "a path": lambda secret: quote(secret).encode(),
    "a URL in lower case": lambda secret: (
        quote(secret, safe="").replace("%2F", "%2f").replace("%2B", "%2b").replace("%3D", "%3d").encode()
    ),
    "JSON": lambda secret: json.dumps({"secret": secret}).encode(),
    "JSON of JavaScript": lambda secret: json.dumps(secret).replace("/", r"\/").encode(),
    "a pickle": lambda secret: pickle.dumps({"environment": {"SECRET": secret}}),
    "hex": lambda secret: secret.encode().hex().encode(),
    "upper case hex": lambda secret: secret.encode().hex().upper().encode(),
    "UTF-16": lambda secret: f"x{secret}".encode("utf-16"),
    "UTF-16 of the other kind": lambda secret: secret.encode("utf-16-be"),
    **{
        f"base64 behind {count} bytes": lambda secret, count=count: base64.b64encode(
            bytes(range(count)) + secret.encode()
        )
        for count in range(4)
    },
    "base64 before others": lambda secret: base64.b64encode(f"{secret}&more".encode()),
    "base64 of URLs": lambda secret: base64.urlsafe_b64encode(f"key={secret}".encode()),
}


@pytest.mark.parametrize("form", PLANTED)
def test_a_planted_secret_is_found(form, tmp_path):
    data = secrets.token_bytes(1000) + PLANTED[form](SECRET) + secrets.token_bytes(1000)
    assert SCANNER.find(data)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "raylet.out").write_bytes(data)
    found, read = SCANNER.scan([tmp_path])
    assert read == 1
    assert found
    assert all("the key as" in line and "raylet.out" in line and SECRET not in line for line in found)


def test_what_is_no_secret_is_not_found():
    for form in PLANTED.values():
        assert SCANNER.find(form(SECRET.replace("every", "evers"))) == []


@given(
    secret=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=16, max_size=40),
    before=st.binary(max_size=7),
    after=st.binary(max_size=7),
)
def test_any_secret_is_found_in_base64_wherever_it_stands(secret, before, after):
    scanner = Scanner({"it": secret})
    assert scanner.find(base64.b64encode(before + secret.encode() + after))
    assert scanner.find(base64.urlsafe_b64encode(before + secret.encode() + after))


def test_names_of_files_are_looked_at_too_and_files_can_be_left_out(tmp_path):
    (tmp_path / "session-a-name").touch()
    (tmp_path / "token").write_text("another secret")
    scanner = Scanner({"a name": "a-name", "a token": "another secret"})
    found, read = scanner.scan([tmp_path], without=[tmp_path / "token"])
    assert read == 1
    assert {line.partition(" as ")[0] for line in found} == {"a name"}
    assert {line.partition(" as ")[0] for line in scanner.scan([tmp_path])[0]} == {"a name", "a token"}


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """For all that processes put aside: names of sockets have no room for pytest's own folder."""
    with tempfile.TemporaryDirectory(prefix="s-") as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_whole_experiment_on_a_bucket_leaves_no_secret_behind(
    experiment_file, bucket_uri, object_store, tmp_path, short_folder, monkeypatch
):
    token_file, token = tmp_path / "token", secrets.token_hex(32)
    token_file.write_text(token)
    for name, value in {
        "TMPDIR": str(short_folder),
        "RAY_TMPDIR": str(short_folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_BACKEND_LOG_LEVEL": "debug",
        "SSKT_LOG": "json",
    }.items():
        monkeypatch.setenv(name, value)
    told, changed = [], ("--set", f"storage={bucket_uri}")
    for verb in ("pack", "cache", "sweep", "report", "watch", "verify"):
        code, said = finish(verb, str(experiment_file), *changed)
        assert code == 0, said
        told.append(said.encode())
    command = [sys.executable, "-m", "cluster", "doctor", "--json", "--storage", bucket_uri]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout
    told += [done.stdout, done.stderr]

    client, root = object_store.client(), bucket_uri.removeprefix(f"s3://{BUCKET}/")
    for entry in client.list_objects_v2(Bucket=BUCKET, Prefix=root)["Contents"]:
        answer = client.get_object(Bucket=BUCKET, Key=entry["Key"])
        told += [answer["Body"].read(), str(answer["Metadata"]).encode(), entry["Key"].encode()]
    scanner = Scanner({"the secret key": SECRET_KEY, "Ray's token": token})
    found, read = scanner.scan([tmp_path, short_folder], without=[token_file])
    assert found + [said for data in told for said in scanner.find(data)] == []
    # So that nothing was looked for where there is nothing.
    assert len(told) > 50
    logs = [path.name for path in short_folder.rglob("*") if path.is_file()]
    assert read > 50
    assert any(name.startswith("raylet") for name in logs)
    assert any(name.startswith("worker") for name in logs)
