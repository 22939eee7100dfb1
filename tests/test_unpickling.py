"""What docs/security.md says of data that could run code: by no call of the three packages is any read so."""

import ast
from collections.abc import Iterator

import pytest
import yaml

from pipeline.planning import strict_yaml
from tests.test_architecture import FILES, name_of, parse

RUNS_CODE = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "runpy.run_path", "runpy.run_module",
    "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter", "pandas.read_pickle",
    "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "xml.sax.parse", "code.interact",
}  # fmt: skip
UNPICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "ray.cloudpickle", "dill", "joblib", "marshal", "shelve"}
"""Modules of which nothing is called; an error of theirs may be caught."""
ALLOWED = {
    # Names of architectures that a person writes; two packages of the demo, by fixed names.
    ("sskt/networks/__init__.py", "importlib.import_module"),
    ("sskt/networks/lite.py", "importlib.import_module"),
    # A safe loader that refuses what is written twice.
    ("pipeline/planning/strict_yaml.py", "yaml.load"),
    # What was written a moment before, by the same process.
    ("pipeline/release/bundle.py", "torch.export.load"),
}


def imported(tree: ast.Module) -> dict[str, str]:
    """What each imported name stands for."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.split(".")[0]
                names[alias.asname or root] = alias.name if alias.asname else root
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else "?"


def calls(tree: ast.Module) -> Iterator[tuple[str, dict[str | None, object]]]:
    """The full name of everything that is called, with the keywords that are constants."""
    names = imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if node.args and isinstance(node.args[0], ast.Constant) and dotted(node.func).endswith("import_module"):
                continue  # of a fixed name, it is an import like any other
            first, _, rest = dotted(node.func).partition(".")
            called = names.get(first, first) + (f".{rest}" if rest else "")
            yield (
                called.replace("numpy.", "np.", 1),
                {word.arg: getattr(word.value, "value", ...) for word in node.keywords},
            )


def dangers(tree: ast.Module) -> set[str]:
    """Calls by which data may run code."""
    found = set()
    for called, keywords in calls(tree):
        module = called.rpartition(".")[0]
        loads_objects = called == "torch.load" or (called.endswith(".get_state_dict") and "check_hash" in keywords)
        if (
            called in RUNS_CODE
            or module in UNPICKLES
            or called in ("importlib.import_module", "yaml.load", "torch.export.load")
            or (loads_objects and keywords.get("weights_only") is not True)
            or (called == "np.load" and keywords.get("allow_pickle", False) is not False)
            or keywords.get("shell") is True
            or (called == "PIL.Image.open" and "formats" not in keywords)
        ):
            found.add(called)
    return found


def test_no_data_runs_code():
    found = {(name_of(path), called) for path in FILES for called in dangers(parse(path))}
    assert found - ALLOWED == set()
    assert ALLOWED - found == set()  # what is allowed is there


def test_the_loader_of_experiment_files_makes_plain_values_only():
    assert issubclass(strict_yaml._Loader, yaml.SafeLoader)
    with pytest.raises(Exception, match="could not determine a constructor"):
        strict_yaml.parse_yaml("a: !!python/object/apply:os.system ['true']")


@pytest.mark.parametrize(
    "program",
    [
        "import pickle\npickle.load(file)",
        "from pickle import loads as read\nread(data)",
        "import pickle as p\np.Unpickler(file).load()",
        "import cloudpickle\ncloudpickle.loads(data)",
        "from ray import cloudpickle\ncloudpickle.loads(data)",
        "import torch\ntorch.load(file)",
        "import torch\ntorch.load(file, weights_only=False)",
        "from torch import load\nload(file)",
        "import numpy as np\nnp.load(file, allow_pickle=True)",
        "from numpy import load\nload(file, allow_pickle=True)",
        "import yaml\nyaml.load(text, yaml.Loader)",
        "import subprocess\nsubprocess.run(line, shell=True)",
        "import os\nos.system(line)",
        "eval(text)",
        "exec(text)",
        "from importlib import import_module\nimport_module(name)",
        "import importlib\nimportlib.import_module(name)",
        "from PIL import Image\nImage.open(file)",
        "weights.get_state_dict(check_hash=True)",
        "import torch\ntorch.jit.load(file)",
    ],
)
def test_such_calls_would_be_found(program):
    assert dangers(ast.parse(program))


@pytest.mark.parametrize(
    "program",
    [
        "network.eval()",
        "import torch\ntorch.load(file, weights_only=True)",
        "import numpy as np\nnp.load(file)",
        "import re\nre.compile(text)",
        "from PIL import Image\nImage.open(file, formats=('PNG',))",
        "import importlib\nimportlib.import_module('mlflow.exceptions')",
        "import pickle\ntry:\n    f()\nexcept pickle.UnpicklingError:\n    pass",
        "import safetensors.torch\nsafetensors.torch.load(data)",
    ],
)
def test_harmless_calls_are_not_taken_for_them(program):
    assert dangers(ast.parse(program)) == set()
