import pytest
import torch

from sskt.answers import CachedOutputs, Column, LiveOutputs
from sskt.encodings import get_encoding
from sskt.sources import OUTPUTS
from sskt.views import turned
from tests.sskt.learning import POOL, RECIPE, VIEWS, image_set, source


def column(one, output: str, quarters: tuple[int, ...], encoding: str) -> Column:
    """What a cache of the pool holds, made sample by sample: [P, quarters * M, bytes]."""
    images, rows, stored = image_set().images, [], get_encoding(encoding, output)
    for sample in range(POOL):
        views = torch.tensor([int(turned(torch.tensor(v), q)) for q in quarters for v in range(VIEWS)])
        ids = torch.full_like(views, sample)
        values = one.outputs(RECIPE.apply_turned(images[ids], ids=ids, views=views), (output,))[output]
        rows.append(stored.encode(values))
    return Column(torch.stack(rows), stored, values.shape[1])


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize(("encoding", "bound"), [("fp32", 1e-5), ("fp16", 2e-3)])
@pytest.mark.parametrize("sideways", [False, True])
def test_a_cache_says_what_the_source_says(output, encoding, bound, sideways):
    wise = source()
    upright = {output: column(wise, output, (0,), encoding)}
    cached = CachedOutputs(upright, {output: column(wise, output, (1, 2, 3), encoding)})
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, POOL, (40,), generator=generator)
    views = torch.randint(0, VIEWS, (40,), generator=generator)
    if sideways:
        views = turned(views, torch.randint(1, 4, (40,), generator=generator))
    images = RECIPE.apply_turned(image_set().images[ids], ids=ids, views=views)
    found = cached(images, ids=ids, views=views, turned=sideways)[output]
    expected = LiveOutputs(wise, (output,))(images, ids=ids, views=views, turned=sideways)[output]
    if output == "logits":  # stored relative to their largest, which a softmax does not see
        found, expected = torch.log_softmax(found, dim=1), torch.log_softmax(expected, dim=1)
    assert (found - expected).abs().max() <= bound * max(1.0, float(expected.abs().max()))
