import numpy as np
import torch

from sskt.view_grids import Grid, bounded_by, gather, identity


def test_the_identity_shows_every_pixel():
    images = torch.randint(0, 256, (3, 2, 5, 5), dtype=torch.uint8)
    assert torch.equal(gather(images, identity(5, images.device)), images)


def test_a_grid_shows_the_pixels_it_names_and_black_elsewhere():
    images = torch.from_numpy(np.random.default_rng(0).integers(1, 256, (4, 3, 6, 6), dtype=np.uint8))
    y, x = (torch.from_numpy(np.random.default_rng(seed).integers(-3, 9, (4, 1, 6, 6))) for seed in (1, 2))
    visible = torch.from_numpy(np.random.default_rng(3).random((4, 1, 6, 6)) < 0.8)
    shown = gather(images, bounded_by(Grid(y, x, visible), 6))
    for place in np.ndindex(4, 3, 6, 6):
        batch, channel, *rest = place
        at = (batch, 0, *rest)
        down, right = int(y[at]), int(x[at])
        inside = 0 <= down < 6 and 0 <= right < 6 and bool(visible[at])
        assert int(shown[place]) == (int(images[batch, channel, down, right]) if inside else 0)
