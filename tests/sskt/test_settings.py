"""Values that make no sense are refused where they are made."""

import math

import pytest

from sskt.errors import InputError
from sskt.settings import InputSettings, SourceSettings


@pytest.mark.parametrize("scale", [0.0, -2.0, math.inf, math.nan])
def test_a_scale_is_a_number_above_zero(scale):
    with pytest.raises(InputError, match=rf"^input\.scale is {scale}; it has to be above 0 and finite$"):
        InputSettings(scale=scale)
    assert InputSettings(scale=0.5).size is None


def test_size_and_scale_are_two_ways_to_say_one_thing():
    with pytest.raises(InputError, match=r"^input\.size is 64 and input\.scale 2\.0; give one of them$"):
        InputSettings(size=64, scale=2.0)


def test_a_source_that_goes_by_batches_has_to_be_live():
    with pytest.raises(InputError, match=r"^batch_norm is 'batch' and live is false; .* it goes with `live: true`$"):
        SourceSettings(weights="a.pt", batch_norm="batch")
    assert SourceSettings(weights="a.pt", batch_norm="batch", live=True).live
    usual, live = SourceSettings(weights="a.pt"), SourceSettings(weights="a.pt", live=True)
    assert (usual.batch_norm, usual.live, live.batch_norm) == ("eval", False, "eval")
