"""YAML as people write it: 1e-3 is a number, a key written twice is an error."""

import re
from typing import Any

import yaml

from sskt.errors import InputError


class _Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2 floats and no silent duplicates."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        for key in keys:
            if keys.count(key) > 1:
                raise InputError(f"line {node.start_mark.line + 1}: the field {key!r} is written twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def parse_yaml(text: str) -> dict[str, Any]:
    """Parse a document that is a mapping."""
    try:
        data = yaml.load(text, _Loader)  # noqa: S506 (a safe loader)
    except yaml.YAMLError as error:
        raise InputError(f"this is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise InputError("the file has to hold fields such as `dataset:` and `target:`")
    return data
