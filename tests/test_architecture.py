"""The house stays as it was drawn: what may import what, how large things may grow, what everything says of itself."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("sskt", "cluster", "pipeline")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
FORBIDDEN = {
    "sskt": {"ray", "pyarrow", "boto3", "botocore", "fsspec", "cluster", "pipeline"},
    "cluster": {"torch", "torchvision", "sskt", "pipeline"},
    "pipeline": set(),
}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported_roots(tree: ast.Module) -> set[str]:
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            roots.add(node.module.split(".")[0])
    return roots


def functions(tree: ast.Module) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_top_level_is_what_was_asked_for():
    assert all((ROOT / name).is_dir() for name in (*PACKAGES, "tests"))
    assert (ROOT / "requirements.txt").is_file()
    assert len(FILES) > 40


def test_a_command_loads_what_it_needs():
    """Each takes seconds of every process's start: the verbs, networks and charts that want them import them."""
    heavy = ["ray", "torchvision", "matplotlib", "torch._dynamo", "boto3", "pandas"]
    program = f"import sys, pipeline.__main__, pipeline.trials.runners; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_keeps_to_its_room(path):
    tree = parse(path)
    assert ast.get_docstring(tree), "a module says in one line what it is"
    assert not imported_roots(tree) & FORBIDDEN[path.relative_to(ROOT).parts[0]]
    is_method = path.parent.name == "methods" and path.name != "base.py"
    assert len(path.read_text().splitlines()) <= (200 if is_method else 300)
    for function in functions(tree):
        length = (function.end_lineno or 0) - function.lineno + 1
        assert length <= 80, f"{function.name} has {length} lines"
        positional = [argument.arg for argument in function.args.args if argument.arg not in ("self", "cls")]
        assert len(positional) <= 5, f"{function.name} takes {positional}"


def test_only_the_session_starts_ray_and_only_the_storage_knows_buckets():
    starts = {name_of(path) for path in FILES if "ray.init(" in path.read_text()}
    buckets = {name_of(path) for path in FILES if imported_roots(parse(path)) & {"boto3", "botocore"}}
    assert starts == {"cluster/session.py"}
    assert buckets == {"cluster/s3.py", "cluster/s3_client.py"}


def test_sskt_works_with_ray_absent():
    """A fresh interpreter in which the cluster's libraries cannot be imported trains a step."""
    program = """
import sys
for name in ("ray", "pyarrow", "boto3", "botocore", "fsspec"):
    sys.modules[name] = None
import torch
from sskt.feeds import ImageSet, ResidentFeed
from sskt.loop import Context, fit
from sskt.methods import Facts, Task, get_method
from sskt.networks import ImageFormat
from sskt.settings import TargetSettings, TrainingSettings, ViewSettings
from sskt.views import make_recipe
images = ImageSet(torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8), torch.arange(12) % 2,
                  (torch.arange(12) // 4).to(torch.int8))
training = TrainingSettings(epochs=1, batch_size=4)
recipe = make_recipe(ViewSettings(), image_size=8)
feed = ResidentFeed(images, classes=2, training=training, recipe=recipe, view_count=1, seed=0)
facts = Facts(classes=2, image=ImageFormat(1, 8, (0.5,), (0.5,)), sources={}, taps=(), rows=4, pool_rows=4,
              pool_size=4)
task = Task(facts=facts, target=TargetSettings(architecture="small_cnn"), training=training, steps_per_epoch=1,
            seed=0, load_source=None, pool=feed.pool(), prepare=lambda module: module)
method = get_method("scratch")
print(fit(method(task, method.Options()), feed, epochs=1, seed=0, context=Context(device=torch.device("cpu"))).epoch)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "1", done.stderr


def test_every_source_file_has_a_test_file():
    # Files without behaviour of their own, and files whose behaviour only shows end to end.
    exempt = {"__init__.py", "errors.py", "settings.py"}
    untested = [
        name_of(path)
        for path in FILES
        if path.name not in exempt
        and not (ROOT / "tests" / path.relative_to(ROOT).parent / f"test_{path.stem.strip('_')}.py").exists()
    ]
    assert untested == []
