import pytest
import torch

from sskt.answers import CachedOutputs, Column, LiveOutputs
from sskt.encodings import get_encoding
from sskt.gallery import Gallery
from sskt.sources import OUTPUTS
from sskt.views import KINDS, TURN
from tests.sskt.learning import POOL, RECIPE, VIEWS, image_set, source

GALLERY = Gallery(RECIPE, image_set().images, (0, POOL))


def column(one, output: str, kind: str, encoding: str) -> Column:
    """What a cache of the pool holds, made sample by sample: [P, numbers * M, bytes]."""
    rows, stored = [], get_encoding(encoding, output)
    for sample in range(POOL):
        views = torch.tensor([view + number * TURN for number in KINDS[kind] for view in range(VIEWS)])
        ids = torch.full_like(views, sample)
        values = one.outputs(GALLERY.show(ids, views=views, kind=kind), (output,))[output]
        rows.append(stored.encode(values))
    return Column(torch.stack(rows), stored, values.shape[1])


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize(("encoding", "bound"), [("fp32", 1e-5), ("fp16", 2e-3)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_says_what_the_source_says(output, encoding, bound, kind):
    wise = source()
    cached = CachedOutputs({kind: {output: column(wise, output, kind, encoding)} for kind in KINDS})
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, POOL, (40,), generator=generator)
    views = torch.randint(0, VIEWS, (40,), generator=generator)
    numbers = torch.tensor(KINDS[kind])
    views = views + numbers[torch.randint(0, len(numbers), (40,), generator=generator)] * TURN
    images = GALLERY.show(ids, views=views, kind=kind)
    found = cached(images, ids=ids, views=views, kind=kind)[output]
    expected = LiveOutputs(wise, (output,))(images, ids=ids, views=views, kind=kind)[output]
    if output == "logits":  # stored relative to their largest, which a softmax does not see
        found, expected = torch.log_softmax(found, dim=1), torch.log_softmax(expected, dim=1)
    assert (found - expected).abs().max() <= bound * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(("batch_norm", "seen"), [("eval", [32, 8]), ("batch", [40])])
def test_a_live_source_sees_as_many_views_at_once_as_are_quick_unless_they_make_its_statistics(batch_norm, seen):
    sizes: list[int] = []

    class Noting:
        """A source that says how many views it is shown."""

        def __init__(self):
            self.batch_norm = batch_norm

        def outputs(self, images, wanted):
            sizes.append(len(images))
            return {name: images.flatten(1).float() for name in wanted}

    images = torch.arange(80, dtype=torch.uint8).view(40, 1, 1, 2)
    ids = torch.arange(40)
    said = LiveOutputs(Noting(), ("logits",))(images, ids=ids, views=torch.zeros_like(ids))
    assert sizes == seen
    assert torch.equal(said["logits"], images.flatten(1).float())
