"""What data, and the way they come to a training, have to have for it."""

from collections.abc import Set

from pipeline.packing.packed import PackedDataset
from sskt.errors import InputError
from sskt.methods import Needs
from sskt.settings import TrainingSettings


def check_labels(training: TrainingSettings, packed: PackedDataset) -> None:
    """Refuse more labels of a class than there are."""
    wanted = training.labels_per_class or 0
    for name, there in zip(packed.classes, packed.labelled, strict=True):
        if there < wanted:
            raise InputError(
                f"training.labels_per_class is {wanted}, but class {name!r} has {there} labelled training images"
            )


def check_streamed(training: TrainingSettings, needs: Needs, *, live: Set[str]) -> None:
    """Refuse what needs images of the whole pool at any moment."""
    wanted = ""
    if needs.near:
        wanted = f"the {needs.near} nearest neighbours of every image beside it"
    elif needs.pool and training.mix != "none":
        wanted = f"images mixed with others of the pool (training.mix is {training.mix!r})"
    elif needs.asks and live:
        wanted = f"what live sources ({', '.join(sorted(live))}) say of images of the whole pool"
    if wanted:
        raise InputError(
            f"images are streamed, and this method needs {wanted}; set resources.feed to 'resident' and have them in "
            "memory"
        )
