"""Plain values into frozen dataclasses; every mistake becomes one line that says what would be right."""

import json
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import pydantic

from sskt.errors import InputError, unknown_name

T = TypeVar("T")

_WRONG = {
    "missing": "it is missing and has no default",
    "string_type": "it has to be text",
    "int_type": "it has to be a whole number",
    "int_from_float": "it has to be a whole number",
    "float_type": "it has to be a number",
    "finite_number": "it has to be finite",
    "bool_type": "it has to be true or false",
    "tuple_type": "it has to be a list",
    "list_type": "it has to be a list",
    "dict_type": "it has to hold named fields",
    "dataclass_type": "it has to hold named fields",
}


_UNION_MEMBERS = {"str", "int", "float", "bool", "dict[str,int]", "dict[str,float]"}
"""Pydantic names the member of a union that it tried, as if it were a field."""


def validate(kind: type[T], raw: Any, *, where: str = "") -> T:
    """Build the dataclass from values as YAML or JSON gives them; `where` leads the names of fields in errors."""
    try:
        holder = _holder(kind).model_validate_json(json.dumps({"value": raw}))
    except TypeError as error:
        raise InputError(f"{where or 'a value'} is not plain text, number, list or mapping: {error}") from error
    except pydantic.ValidationError as error:
        # An unknown field first: next to a missing one it is most likely its misspelling.
        problems = sorted(error.errors(), key=lambda problem: problem["type"] != "unexpected_keyword_argument")
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InputError(_explain(kind, problems[0], where) + more) from None
    value: T = holder.value  # type: ignore[attr-defined]
    return value


def field_paths(kind: type) -> list[str]:
    """The dotted names of all fields, with those of dataclasses inside; `x.*` for what a mapping x holds."""
    paths, hints = list[str](), get_type_hints(kind)
    for name in [field.name for field in fields(kind)]:
        hint = hints[name]
        paths.append(name)
        if any(get_origin(one) is dict for one in (hint, *get_args(hint))):
            paths.append(f"{name}.*")
        elif is_dataclass(hint):
            paths += [f"{name}.{path}" for path in field_paths(hint)]
    return paths


@cache
def _holder(kind: type[Any]) -> type[pydantic.BaseModel]:
    """A model around the dataclass: pydantic hands its strictness down to dataclasses that have none of their own."""
    config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return pydantic.create_model("Holder", value=(kind, ...), __config__=config)


def _explain(kind: type, problem: Any, where: str) -> str:
    path = [str(part) for part in problem["loc"][1:] if part not in _UNION_MEMBERS]
    places = [where, *path] if where else path
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return _placed(str(cause), places)
    name = ".".join(places)
    if problem["type"] == "unexpected_keyword_argument":
        return str(unknown_name("field", name, _siblings(kind, path, name)))
    value = "" if problem["type"] == "missing" else f" is {problem['input']!r}"
    wrong = _WRONG.get(problem["type"], problem["msg"].replace("Input should be", "it has to be"))
    return f"field {name or 'of the file'}{value}; {wrong}"


def _placed(mistake: str, places: list[str]) -> str:
    """What a dataclass says of its own values, and where they stand, but for the name it goes by itself."""
    if places and mistake.startswith(f"{places[-1]}."):
        places = places[:-1]
    return f"{'.'.join(places)}: {mistake}" if places else mistake


def _siblings(kind: type, path: list[str], name: str) -> list[str]:
    """The full names of the fields that exist where the unknown one was written."""
    parent = name.rpartition(".")[0]
    for part in path[:-1]:
        hint = get_type_hints(kind).get(part, kind) if is_dataclass(kind) else kind
        kind = next((inner for inner in (hint, *get_args(hint)) if is_dataclass(inner)), kind)
    return [f"{parent}.{field.name}" if parent else field.name for field in fields(kind)]
