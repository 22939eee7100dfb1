"""The methods as a list: what each is, what it needs, what can be chosen."""

import ast
import inspect
import itertools
import textwrap
from dataclasses import fields
from typing import Any

from sskt.methods import METHODS, Method, Needs

WIDTH = 110


def catalogue() -> str:
    """Describe every method and its options, as their code does."""
    return "\n\n".join(describe(name, method) for name, method in METHODS.items())


def describe(name: str, method: type[Method]) -> str:
    """A line on the method, what it needs with its defaults, and a line for each option."""
    summary = (inspect.getdoc(method) or "").partition("\n")[0]
    needs = method.needs(method.Options())
    mixable = ["  can learn from mixed images of the pool, training.mix"] if method.mixable else []
    lines = [f"{name}: {summary}", f"  needs {'; '.join(_needed(needs))}", *mixable]
    lines += [_option(field.name, field.default, documents(method.Options)) for field in fields(method.Options)]
    return "\n".join(lines)


def _needed(needs: Needs) -> list[str]:
    """What a method asks of caches, graphs and batches, in words."""
    read = {
        f"{', '.join(needs.outputs)} of its sources": needs.outputs,
        f"the {needs.graph} nearest neighbours of every image by each source's embedding": needs.graph,
    }
    shown = {"unlabelled images": needs.pool, "two views of every image": needs.pair, "turned views": needs.turned}
    words = [name for name, asked in read.items() if asked] or ["no cache"]
    return words + [name for name, asked in shown.items() if asked]


def documents(options: type[Any]) -> dict[str, str]:
    """The doc string under each field of a dataclass."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(options))).body[0]
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    found = {}
    for field, below in itertools.pairwise(body):
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            found[field.target.id] = " ".join(str(below.value.value).split())
    return found


def _option(name: str, default: Any, explained: dict[str, str]) -> str:
    text = f"{name}: {default}" + (f"  {explained[name]}" if name in explained else "")
    return textwrap.fill(text, WIDTH, initial_indent="    ", subsequent_indent="        ")
