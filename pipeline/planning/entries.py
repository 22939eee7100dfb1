"""The entries of `methods`: what each fixes, which axes concern it, and what its trials are called."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from pipeline.planning.space import Axis, Point, parse_axes
from pipeline.planning.validation import field_paths
from sskt.errors import InputError, unknown_name
from sskt.methods import Method, get_method
from sskt.settings import TargetSettings, TrainingSettings

SECTIONS = ("training", "target", "options", "sources")
"""What the path of an axis starts with; in an entry any other start is one of its options."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One of `methods`, as it stands in the file, and the axes that concern it."""

    where: str
    """How errors call it."""
    method: type[Method]
    name: str
    """Of the method."""
    options: dict[str, Any]
    sources: list[str]
    label: str | None
    own: dict[str, Any]
    """The axes written in it, by their full paths."""
    axes: tuple[Axis, ...] = ()

    @property
    def paths(self) -> list[str]:
        """What its axes may be called; `*` stands for any name."""
        settings = {"training": TrainingSettings, "target": TargetSettings, "options": self.method.Options}
        paths = [f"{section}.{path}" for section, kind in settings.items() for path in field_paths(kind)]
        return ["target", *paths] + ["sources"] * (uses_sources(self.method) and not self.sources)

    def label_at(self, point: Point) -> str:
        """What its trials at a point are called: what the entry says, then the values that vary."""
        varying, sources = dict(point), self.sources
        if self.label is None:
            sources = varying.pop("sources", sources)
        fixed = {name: value for name, value in self.options.items() if f"options.{name}" not in point}
        start = [self.name + "".join(f" {names}" for names in ["+".join(sources)] if names)]
        start += [f"{name} {compact(value)}" for name, value in fixed.items()]
        short = short_names([axis.path for axis in self.axes], others=[f"options.{name}" for name in fixed])
        words = [f"{short[path]} {compact(value)}" for path, value in varying.items()]
        return ", ".join([*([self.label] if self.label else start), *words])


def read_entries(
    methods: Sequence[Mapping[str, Any]], *, kind: str, common: Mapping[str, Any], sources: Collection[str]
) -> tuple[Entry, ...]:
    """Read all entries. Their own axes stand under `kind`, `grid` or `search`, and take the place of the common ones.

    common: the axes of the whole file, by path. sources: the names there are.
    """
    where = {"grid": "grid", "search": "search.axes"}[kind]
    entries = [_read(raw, where=f"methods[{at}]", kind=kind, sources=sources) for at, raw in enumerate(methods)]
    _check_paths(common, [path for entry in entries for path in entry.paths], where=where)
    parsed = parse_axes(common, where=where)
    return tuple(replace(entry, axes=_axes(entry, common, parsed=parsed, kind=kind)) for entry in entries)


def known_sources(names: Any, known: Collection[str], *, where: str) -> list[str]:
    """Check a list of sources."""
    if not isinstance(names, list) or len({str(name) for name in names}) < len(names):
        raise InputError(f"{where}.sources is {names!r}; it has to be a list of sources, each named once")
    for name in names:
        if name not in known:
            raise unknown_name(f"{where}.sources: source", str(name), known)
    return names


def uses_sources(method: type[Method]) -> bool:
    """Whether a method has a use for sources: reads their outputs, or trains one of them."""
    needs = method.needs(method.Options())
    return bool(needs.outputs or needs.graph or not method.builds_target)


def with_point(raw: Any, point: Point, *, section: str) -> Any:
    """Plain settings with the values of a point in their places, whole sections before their fields."""
    for path, value in sorted(point.items(), key=lambda item: item[0].count(".")):
        head, *names = path.split(".")
        if head == section:
            raw = _with(raw, names, value)
    return raw


def short_names(paths: Sequence[str], *, others: Sequence[str] = ()) -> dict[str, str]:
    """The shortest end of each path that is an end of no other one."""
    ends: dict[str, str] = {}
    for path in paths:
        names = path.split(".")
        for length in range(1, len(names) + 1):
            ends[path] = ".".join(names[-length:])
            if not any(f".{one}".endswith(f".{ends[path]}") for one in (*paths, *others) if one != path):
                break
    return ends


def compact(value: Any) -> str:
    """A value as one would write it in YAML, in a row."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {compact(inside)}" for name, inside in value.items()) + "}"
    return "[" + ", ".join(map(compact, value)) + "]" if isinstance(value, list) else str(value)


def _read(raw: Mapping[str, Any], *, where: str, kind: str, sources: Collection[str]) -> Entry:
    options = dict(raw)
    name = options.pop("method", None)
    if not isinstance(name, str):
        raise InputError(f"{where}.method is {name!r}; it has to be the name of a method")
    other = {"grid": "search", "search": "grid"}[kind]
    if other in options:
        has = "a" if kind == "search" else "no"
        raise InputError(f"{where}.{other}: the file has {has} `search`, so axes of an entry stand under `{kind}`")
    entry = Entry(
        where=where,
        name=name,
        method=get_method(name),
        sources=known_sources(options.pop("sources", []), sources, where=where),
        label=_label(options.pop("label", None), where),
        own=_own_axes(options.pop(kind, {}), where=f"{where}.{kind}"),
        options=options,
    )
    _check_paths(entry.own, entry.paths, where=f"{where}.{kind}")
    return entry


def _label(said: Any, where: str) -> str | None:
    if not isinstance(said, str | None):
        raise InputError(f"{where}.label is {said!r}; it has to be text")
    return said or None


def _own_axes(raw: Any, *, where: str) -> dict[str, Any]:
    """The axes of an entry by their full paths, in conditions too."""
    if not isinstance(raw, dict):
        raise InputError(f"{where} is {raw!r}; it has to hold axes by name, such as `alpha: [0.5, 1.0]`")
    axes = {}
    for path, said in raw.items():
        if isinstance(said, dict) and isinstance(said.get("when"), dict):
            said = said | {"when": {_full(name): wanted for name, wanted in said["when"].items()}}
        axes[_full(path)] = said
    return axes


def _full(path: str) -> str:
    return path if path.split(".")[0] in SECTIONS else f"options.{path}"


def _check_paths(axes: Mapping[str, Any], known: Sequence[str], *, where: str) -> None:
    for path in axes:
        if not any(fnmatchcase(path, one) for one in known):
            meant = [one for one in known if one.endswith(f".{path}")]
            if meant:  # too short for what looks alike to be found
                raise InputError(f"{where}: axis {path!r} is unknown; did you mean {meant[0]!r}?")
            raise unknown_name(f"{where}: axis", path, set(known))


def _axes(entry: Entry, common: Mapping[str, Any], *, parsed: Sequence[Axis], kind: str) -> tuple[Axis, ...]:
    """The common axes that an entry has the field for, if it has those of their conditions too, and its own."""
    kept = set(entry.own)
    for axis in parsed:
        if any(fnmatchcase(axis.path, one) for one in entry.paths) and axis.when.keys() <= kept:
            kept.add(axis.path)
    shared = {path: said for path, said in common.items() if path in kept}
    return parse_axes(shared | entry.own, where=f"{entry.where}.{kind}")


def _with(raw: Any, names: Sequence[str], value: Any) -> Any:
    if not names:
        return value
    inside = raw if isinstance(raw, dict) else {}
    return inside | {names[0]: _with(inside.get(names[0]), names[1:], value)}
