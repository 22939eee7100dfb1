import torch

from sskt.seeds import derive, seeded


def test_purposes_and_seeds_are_independent_and_stable():
    derived = {derive(seed, purpose) for seed in range(50) for purpose in ("target", "heads", "views")}
    assert len(derived) == 150
    assert derive(0, "target") == derive(0, "target")
    assert all(0 <= value < 2**63 for value in derived)


def test_drawing_for_a_purpose_disturbs_nobody():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with seeded(0, "target"):
        first = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with seeded(0, "target"):
        assert torch.equal(torch.rand(3), first)
