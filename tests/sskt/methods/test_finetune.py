from dataclasses import replace

import pytest
import torch

from sskt.errors import InputError
from tests.sskt.learning import TARGET, method, source


def test_it_starts_from_the_source_under_a_new_head():
    wise = source()
    weights = {name: value.clone() for name, value in wise.network.network.state_dict().items()}
    model = method("finetune", wise)
    target = model.export()
    assert target.classes == 3
    for name, value in target.network.state_dict().items():
        if not name.startswith("fc"):
            assert torch.equal(value, weights[name]), name
    assert all(parameter.requires_grad for parameter in target.parameters())


def test_the_target_may_freeze_parts_of_the_source_without_weights_of_its_own():
    model = method("finetune", source(), target=replace(TARGET, frozen=("stage1", "stage2")))
    learns = {name for name, parameter in model.export().network.named_parameters() if parameter.requires_grad}
    assert learns == {"stage3.0.weight", "stage3.1.weight", "stage3.1.bias", "fc.weight", "fc.bias"}
    model.train(mode=True)
    assert [model.export().network.get_submodule(name).training for name in ("stage1", "stage3")] == [False, True]


@pytest.mark.parametrize(
    ("part", "message"), [("stage9", "part 'stage9' is unknown; did you mean"), ("fc", "part 'fc' holds the head 'fc'")]
)
def test_parts_that_the_source_cannot_freeze_are_named(part, message):
    with pytest.raises(InputError, match=rf"^target\.frozen {message}"):
        method("finetune", source(), target=replace(TARGET, frozen=(part,)))
