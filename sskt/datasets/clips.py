"""Video clips whose frames have been extracted: `path/frames/class/clip/*.jpg`, and the lists of a split."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from sskt.datasets.folder import SUFFIXES, load_image
from sskt.datasets.records import RawDataset, Record, Split, existing_path, files_signature
from sskt.datasets.settings import FRAMES, DatasetSettings
from sskt.errors import InputError

LISTS: dict[Split, str] = {"train": "trainlist01.txt", "test": "testlist01.txt"}
"""As UCF101 has them: a line is `class/clip.avi`, and a number in the first one, which is not needed."""
_HAD = (
    "clips and the lists of UCF101 are at https://www.crcv.ucf.edu/data/UCF101.php, those of HMDB51 at "
    "https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/; docs/experiments.md says how "
    "frames and lists are put there"
)


def read_clips(settings: DatasetSettings) -> RawDataset:
    """Read the first split of UCF101, or of what has the same layout. A clip is its middle 16 frames."""
    root = existing_path(settings.path or "")
    listed = {split: _listed(root, name) for split, name in LISTS.items()}
    classes = tuple(sorted({clip.parent.name for clip in listed["train"]}))
    records = [record for split, clips in listed.items() for record in _records(root, clips, classes, split)]
    folders = [root / "frames" / record.key for record in records]  # files are too many to be looked at each time
    signature = files_signature(root, [*folders, *(root / name for name in LISTS.values())])
    return RawDataset(root.resolve().name, classes, records, f"clips {signature}")


def _listed(root: Path, name: str) -> list[Path]:
    """Clips of a list, as class/clip."""
    file = root / name
    if not file.is_file():
        raise InputError(f"dataset.path is {str(root)!r}, which holds no {name}; {_HAD}")
    return [Path(line.split()[0]).with_suffix("") for line in file.read_text().splitlines() if line.strip()]


def _records(root: Path, clips: Sequence[Path], classes: tuple[str, ...], split: Split) -> Iterator[Record]:
    for clip in clips:
        if clip.parent.name not in classes:
            raise InputError(f"dataset.path: class {clip.parent.name!r} is only in {LISTS[split]!r}, not in 'train'")
        folder = root / "frames" / clip
        if not folder.is_dir():
            raise InputError(f"dataset.path: {LISTS[split]!r} names a clip without frames, {str(folder)!r}; {_HAD}")
        yield Record(clip.as_posix(), classes.index(clip.parent.name), split, partial(_load, folder))


def _load(folder: Path) -> tuple[Image.Image, ...]:
    """The frames in the middle; of a shorter clip all, and the last one again and again."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise OSError("the folder holds no frame")
    first = max(0, (len(files) - FRAMES) // 2)
    frames = [load_image(file) for file in files[first : first + FRAMES]]
    return (*frames, *[frames[-1]] * (FRAMES - len(frames)))
