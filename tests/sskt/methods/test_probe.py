import torch

from tests.sskt.learning import feed, method, source, training


def test_only_the_head_learns():
    wise = source()
    model = method("probe", wise, settings=training(epochs=20, lr=0.5))
    before = {name: value.clone() for name, value in model.export().network.state_dict().items()}
    served = feed(training())
    model.train(mode=True)
    losses = [model.step(served.batch(step))["loss"].item() for step in range(20)]
    assert sum(losses[-4:]) < sum(losses[:4])
    changed = {
        name for name, value in model.export().network.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"fc.weight", "fc.bias"}


def test_it_is_logistic_regression_on_the_embedding():
    wise = source()
    model = method("probe", wise)
    batch = feed(training()).batch(0)
    embedding = wise.outputs(batch.images, ("embedding",))["embedding"].double()
    head = model.export().network.fc
    logits = embedding @ head.weight.detach().double().T + head.bias.detach().double()
    expected = torch.nn.functional.cross_entropy(logits, batch.labels)
    model.train(mode=True)
    assert abs(model.step(batch)["loss"].item() - expected.item()) < 1e-5
