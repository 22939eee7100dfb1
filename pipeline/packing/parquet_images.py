"""Images in Parquet as Hugging Face writes them: `image: struct<bytes, path>` or binary, and integers as `label`.

Its CIFAR-10 calls the image `img`, its CIFAR-100 the label `fine_label`: those names are known too.
"""

import io
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from sskt.datasets import UNLABELLED, DatasetSettings, RawDataset, Record, Split, existing_path, files_signature
from sskt.datasets.folder import load_image
from sskt.datasets.records import Label
from sskt.errors import InputError

IMAGES, LABELS = ("image", "img"), ("label", "fine_label")
"""What the columns may be called; the first that is there counts."""


def read_parquet_images(settings: DatasetSettings) -> RawDataset:
    """Read the labels of a file, or of all `*.parquet` of a folder; images stay encoded in the files.

    A label that is a list of integers names the classes that hold, and makes a multi-label set.
    """
    root = existing_path(settings.path or "")
    files = [_File(path, "dataset.path") for path in _paths(root, "dataset.path")]
    test_files: list[_File] = []
    signature = f"parquet {_signature(files)}"
    if settings.test_path is not None:
        test_root = existing_path(settings.test_path, "dataset.test_path")
        test_files = [_File(path, "dataset.test_path") for path in _paths(test_root, "dataset.test_path")]
        signature += f" test {_signature(test_files)}"
    names, labels = _classes([*files, *test_files])
    records = [record for file in files for record in _records(file, labels, "train" if test_files else None)]
    records += [record for file in test_files for record in _records(file, labels, "test")]
    name = files[0].path.resolve().parent.name
    return RawDataset(name, names, records, signature, multi_label=files[0].multi_label)


def _paths(root: Path, field: str) -> list[Path]:
    if root.is_file():
        return [root]
    found = sorted(path for path in root.glob("*.parquet") if not path.name.startswith("."))
    if not found:
        raise InputError(f"{field} is {str(root)!r}, which holds no *.parquet file")
    return found


def _signature(files: Sequence["_File"]) -> str:
    return files_signature(files[0].path.parent, (file.path for file in files))


class _File:
    """One Parquet file; a row group of encoded images is in memory only while its rows are read."""

    def __init__(self, path: Path, field: str) -> None:
        self.path = path
        self.field = field
        try:
            self._file = pq.ParquetFile(path, memory_map=True)
            self.schema: pa.Schema = self._file.schema_arrow
            self.image, self.label = self._columns()
            self.multi_label = _is_list(self.schema.field(self.label).type)
            self.labels: list[Any] = self._file.read(columns=[self.label]).column(self.label).to_pylist()
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{field}: {str(path)!r} is not a readable Parquet file: {reason}") from error
        self._lock = Lock()
        # Two groups, because threads are at the end of one and at the start of the next at the same time.
        self._group = lru_cache(maxsize=2)(self._read_group)

    def positions(self) -> Iterator[tuple[int, int]]:
        """Row group, and row in it, of every row of the file."""
        for group in range(self._file.num_row_groups):
            for row in range(self._file.metadata.row_group(group).num_rows):
                yield group, row

    def named_labels(self) -> set[int | None]:
        """Return every label that names a class; what unlabelled rows hold does not."""
        if self.multi_label:
            return {label for labels in self.labels if labels is not None for label in labels}
        return set(self.labels) - {None, UNLABELLED}

    def encoded(self, group: int, row: int) -> bytes:
        """Return the image as it was written, JPEG or PNG."""
        with self._lock:
            value = self._group(group)[row].as_py()
        data = value["bytes"] if isinstance(value, dict) else value
        if not data:
            raise OSError("the row holds no image bytes")
        return bytes(data)

    def _columns(self) -> tuple[str, str]:
        """What image and label are called here."""
        names = [name for known in (IMAGES, LABELS) for name in [one for one in known if one in self.schema.names][:1]]
        if len(names) == 2:
            image, label = (self.schema.field(name).type for name in names)
            if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0:
                image = image.field("bytes").type
            if _is_binary(image) and pa.types.is_integer(label.value_type if _is_list(label) else label):
                return names[0], names[1]
        found = ", ".join(f"{field.name}: {field.type}" for field in self.schema)
        raise InputError(
            f"{self.field}: {str(self.path)!r} has the columns {found}; "
            "needed are image (binary, or struct with bytes) and label (an integer, or a list of integers)"
        )

    def _read_group(self, group: int) -> pa.ChunkedArray:
        return self._file.read_row_group(group, columns=[self.image]).column(self.image)


def _is_binary(kind: pa.DataType) -> bool:
    return kind in (pa.binary(), pa.large_binary())


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _classes(files: Sequence[_File]) -> tuple[tuple[str, ...], dict[int | None, int]]:
    """Names of the classes, and the class of each stored label; labels without names are their own."""
    names = _agreed_names(files)
    found = {label: file for file in files for label in file.named_labels()}
    for label in {None, UNLABELLED} & set(found):
        where = f"{found[label].field}: {str(found[label].path)!r}"
        raise InputError(f"{where} has {label} in a list of labels; a row of which nothing is known is null as a whole")
    if names is None:
        return tuple(str(label) for label in sorted(found)), {label: row for row, label in enumerate(sorted(found))}
    for label, file in found.items():
        if not 0 <= label < len(names):
            raise InputError(
                f"{file.field}: {str(file.path)!r} has the label {label}, but names {len(names)} classes; "
                f"labels have to be 0..{len(names) - 1}, or null where there is none"
            )
    return names, {label: label for label in found}


def _agreed_names(files: Sequence[_File]) -> tuple[str, ...] | None:
    first = files[0]
    for file in files:
        if file.multi_label != first.multi_label:
            raise InputError(f"{file.field}: only one of {str(file.path)!r} and {str(first.path)!r} has lists as label")
        if _class_names(file) != _class_names(first):
            raise InputError(f"{file.field}: {str(file.path)!r} names other classes than {str(first.path)!r}")
    return _class_names(first)


def _class_names(file: _File) -> tuple[str, ...] | None:
    """Read names from Hugging Face's metadata, or from `classes`: a JSON list, or names with commas between."""
    metadata = file.schema.metadata or {}
    text = metadata.get(b"classes", b"").decode()
    try:
        names = _hugging_face_names(metadata.get(b"huggingface", b"{}"), label=file.label)
        if names is None and text:
            names = json.loads(text) if text.startswith("[") else text.split(",")
    except ValueError as error:
        raise InputError(f"{file.field}: {str(file.path)!r} has class names that are not JSON: {error}") from error
    return None if names is None else tuple(str(name) for name in names)


def _hugging_face_names(metadata: bytes, *, label: str) -> Any:
    feature = json.loads(metadata)
    for step in ("info", "features", label):
        feature = _member(feature, step)
    if isinstance(feature, list):  # a feature in brackets is a list of it
        feature = feature[0] if feature else None
    return _member(_member(feature, "feature") or feature, "names")


def _member(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _records(file: _File, labels: dict[int | None, int], split: Split | None) -> Iterator[Record]:
    prefix = "test/" if split == "test" else ""  # both files may have the same name
    for row, (label, (group, place)) in enumerate(zip(file.labels, file.positions(), strict=True)):
        key, known = f"{prefix}{file.path.name}:{row}", _known(label, labels)
        yield Record(key, known, split, partial(_load, file, group, place))


def _known(label: Any, labels: dict[int | None, int]) -> Label:
    if isinstance(label, list):
        return tuple(sorted({labels[each] for each in label}))
    return labels.get(label, UNLABELLED)


def _load(file: _File, group: int, row: int) -> Image.Image:
    return load_image(io.BytesIO(file.encoded(group, row)))
