import torch

from tests.sskt.learning import method, source


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
