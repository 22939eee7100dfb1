"""What stays as it was when a data set is packed again with more images: the ids of its pool, and every split."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from cluster.storage import Storage
from pipeline.packing.packed import PackedDataset, PackedSample, load_manifest, read_samples
from sskt.datasets import UNLABELLED, DatasetSettings, Record, Split
from sskt.datasets.splits import Identity, identify
from sskt.errors import DamagedError


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What an earlier packing has decided, by row of the records; nothing where none can be extended."""

    ids: Mapping[int, int] = field(default_factory=dict)
    """The earlier sample ids: of the pool they stay as they are, of the others only their order does."""
    splits: Mapping[int, Split] = field(default_factory=dict)
    stops: tuple[int, ...] = ()
    """Ends of the earlier blocks of the pool."""
    not_grown: str | None = None


def find_kept(
    records: Sequence[Record],
    identities: Sequence[Identity],
    *,
    shape: tuple[int, ...],
    settings: DatasetSettings,
    storage: Storage,
) -> Kept:
    """Take the earlier packing of the largest pool of which all is still there; `shape` of the images is [C, H, W]."""
    found = {record.key: row for row, record in enumerate(records)}
    not_grown: str | None = None
    for packed in _earlier(settings, storage):
        kept = _compare(packed, found, records, identities, storage=storage, shape=shape)
        if isinstance(kept, Kept):
            return kept
        not_grown = not_grown or f"{packed.pack_id}: {kept}"
    return Kept(not_grown=not_grown)


def _earlier(settings: DatasetSettings, storage: Storage) -> Sequence[PackedDataset]:
    """Packed data sets of the same settings, the largest pool first."""
    same = [packed for packed in packed_datasets(storage) if packed.settings == asdict(settings)]
    return sorted(same, key=lambda packed: (packed.pool, packed.rows, packed.pack_id), reverse=True)


def packed_datasets(storage: Storage) -> Iterator[PackedDataset]:
    """All packed data sets of a storage that can be read."""
    for key in storage.keys("datasets"):
        if key.endswith("/manifest.json"):
            try:
                packed = load_manifest(storage, key.split("/")[1])
            except DamagedError:  # or of another version: nothing to go on from
                continue
            if packed is not None:
                yield packed


def _compare(
    packed: PackedDataset,
    found: Mapping[str, int],
    records: Sequence[Record],
    identities: Sequence[Identity],
    *,
    storage: Storage,
    shape: tuple[int, ...],
) -> Kept | str:
    """Return what can be kept, or what is no longer as it was packed."""
    before = (packed.channels, packed.size, packed.size)
    if before != shape:
        return f"images are {_dimensions(shape)}, not {_dimensions(before)}"
    ids: dict[int, int] = {}
    splits: dict[int, Split] = {}
    try:
        for number, sample in enumerate(read_samples(packed, storage)):
            row = found.get(sample.key)
            if row is None:
                return f"image {sample.key!r} is gone"
            difference = _difference(sample, records[row], identities[row])
            if difference:
                return f"image {sample.key!r} {difference}"
            ids[row], splits[row] = number, sample.split
    except DamagedError as error:
        return str(error)
    return Kept(ids=ids, splits=splits, stops=tuple(block.stop for block in packed.blocks))


def _difference(sample: PackedSample, record: Record, identity: Identity) -> str | None:
    if identify(sample.pixels, sample.key) != identity:
        return "changed"
    if sample.own_split != record.split:
        return f"moved from {_split_name(sample.own_split)} to {_split_name(record.split)}"
    if sample.split != "train" and record.label == UNLABELLED:
        return f"is of the {sample.split} split and has lost its label"
    return None


def _split_name(split: Split | None) -> str:
    return "no split" if split is None else f"split {split!r}"


def _dimensions(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
