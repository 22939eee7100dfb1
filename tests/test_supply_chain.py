"""What images install is known to the byte: the lock agrees with requirements.txt, and the Dockerfile goes by it."""

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
CUT = "# Checks and tests"
LOCK = (ROOT / "requirements.lock").read_text()


def pins(text: str) -> dict[str, Requirement]:
    """The requirements of a file by their names."""
    lines = re.findall(r"^[\w-].*?(?=\s*\\?$)", text, re.MULTILINE)
    return {canonicalize_name(one.name): one for one in map(Requirement, lines)}


WHOLE = (ROOT / "requirements.txt").read_text()
RUN, CHECKS = (pins(part) for part in WHOLE.split(CUT))
LOCKED = pins(LOCK)


def test_every_package_is_pinned_to_one_version():
    for name, requirement in (RUN | CHECKS | LOCKED).items():
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), name
    assert len(pins(WHOLE)) == len(RUN) + len(CHECKS)


def test_the_lock_has_the_versions_of_the_requirements():
    assert len(RUN) > 10
    assert {name: LOCKED[name].specifier for name in RUN} == {name: one.specifier for name, one in RUN.items()}


def test_every_entry_of_the_lock_has_hashes_and_no_address():
    entries = [entry for entry in re.split(r"\n(?=\S)", LOCK.strip()) if not entry.startswith("#")]
    assert len(entries) >= len(LOCKED) > 100
    for entry in entries:
        lines = entry.split(" \\\n")
        assert len(lines) > 1, entry
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", line) for line in lines[1:]), lines[0]
    assert not re.search(r"://|@|^-", LOCK, re.MULTILINE)


def test_nothing_that_is_needed_is_missing_in_the_lock():
    """By what the packages that are installed here say of themselves."""
    missing, looked_at = [], 0
    for name, requirement in LOCKED.items():
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another platform, or CUDA's
            continue
        if requirement.specifier.contains(metadata.version(name), prereleases=True):
            looked_at += 1
            extras = {"", *(RUN[name].extras if name in RUN else ())}
            wanted = [one for one in map(Requirement, needed) if _applies(one, extras)]
            missing += [f"{name} needs {one.name}" for one in wanted if canonicalize_name(one.name) not in LOCKED]
    assert missing == []
    assert looked_at > 50


def _applies(needed: Requirement, extras: set[str]) -> bool:
    return needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras)


def test_what_ray_loads_is_what_images_hold():
    """What a tool brings, and one of Ray's libraries loads where it is there, each process of Ray would wait for."""
    program = """
import sys
from importlib.metadata import packages_distributions

installed = packages_distributions()  # of now: Ray adds packages of its own to where they are looked for
import ray.data, ray.train.torch, ray.tune

print(*{one for name in sys.modules for one in installed.get(name.split(".")[0], ())})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(map(canonicalize_name, done.stdout.split()))
    assert {"ray", "jsonschema", "torch"} <= loaded
    assert loaded - set(LOCKED) == set()


def test_images_hold_what_is_needed_to_run_and_no_tools():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for names in project["optional-dependencies"].values() for name in names]
    assert set(RUN) == {canonicalize_name(Requirement(name).name) for name in (*project["dependencies"], *extras)}
    assert not set(CHECKS) & set(LOCKED)


def test_the_image_installs_the_lock_and_nothing_else():
    dockerfile = (ROOT / "cluster" / "Dockerfile").read_text().replace("\\\n", " ")
    installs = re.findall(r"pip install (.*)", dockerfile)
    assert installs == ["--require-hashes --requirement requirements.lock", "--no-deps --no-build-isolation ."]
    assert "COPY requirements.lock ." in dockerfile
    builds_with = Requirement(tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"][0])
    (version,) = LOCKED[canonicalize_name(builds_with.name)].specifier
    assert builds_with.specifier.contains(version.version)


def test_the_lock_is_cut_where_the_checks_begin():
    recipe = (ROOT / "Makefile").read_text().partition("\nlock:")[2].partition("\n\n")[0]
    assert f"sed '/^{CUT}/,$$d' requirements.txt" in recipe
    assert "--generate-hashes" in recipe
    assert "--no-emit-index-url" in recipe


@pytest.mark.filterwarnings("ignore")
def test_the_bill_of_materials_names_every_package_with_its_version(tmp_path):
    """As `make sbom` writes it."""
    recipe = (ROOT / "Makefile").read_text().partition("\nsbom:")[2].partition("\n\n")[0].replace("\\\n", " ")
    tool, *arguments = recipe.partition("$(BILL)/")[2].split()
    file = tmp_path / Path(arguments.pop()).name
    command = [Path(sys.prefix) / "bill" / tool, *arguments, file]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    bill = json.loads(file.read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "sskt"
    found = {(canonicalize_name(one["name"]), one["version"]) for one in bill["components"]}
    assert found >= {(name, str(one.specifier).removeprefix("==")) for name, one in LOCKED.items()}
