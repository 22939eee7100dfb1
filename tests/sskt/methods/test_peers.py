import copy

import pytest
import torch
from torch import nn

from sskt.methods.dml import DMLOptions
from sskt.methods.peers import Peer, PeerMethod, mutual_parts
from tests.sskt.learning import feed, method, training


class Told(PeerMethod):
    """Peers with a linear head, told how to make their losses."""

    lazy = False

    def build_heads(self, target):
        return nn.ModuleDict({"head": Sums(target.embedding_dim)})

    def made(self, batch):
        for peer in self.peers:
            self.seen.append([one.target.network.fc.weight.detach().clone() for one in self.peers])
            logits, heads = peer.student(batch.images)
            yield {"primary": self.task.primary_loss(logits, batch.labels), "own": heads["head"].square().mean()}

    def losses(self, batch):
        self.seen = []
        return self.made(batch) if self.lazy else list(self.made(batch))


class Sums(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc = nn.Linear(width, 2)

    def forward(self, features):
        return self.fc(features.embedding)


def told(*, lazy=False, seed=0, peers=3):
    model = Told(method("scratch", seed=seed).task, DMLOptions(peers=peers))
    model.lazy = lazy
    model.train(mode=True)
    return model


def equal(left, right):
    return all(torch.equal(*pair) for pair in zip(left.state_dict().values(), right.state_dict().values(), strict=True))


@pytest.mark.parametrize("lazy", [False, True])
def test_who_sees_steps_of_others_is_a_matter_of_when_losses_are_made(lazy):
    model = told(lazy=lazy)
    start = [peer.target.network.fc.weight.detach().clone() for peer in model.peers]
    model.step(feed(training()).batch(0))
    for number, seen in enumerate(model.seen):
        moved = [not torch.equal(*pair) for pair in zip(seen, start, strict=True)]
        assert moved == [lazy and other < number for other in range(3)]


def test_loss_is_the_sum_of_all_parts_of_all_peers():
    parts = told().step(feed(training()).batch(0))
    assert set(parts) == {"loss"} | {f"peer{number}/{name}" for number in range(3) for name in ("primary", "own")}
    assert parts["loss"].item() == pytest.approx(sum(value.item() for name, value in parts.items() if name != "loss"))
    assert not any(value.requires_grad for value in parts.values())


def test_a_head_learns_switches_mode_and_is_saved_with_its_peer():
    model, served = told(), feed(training())
    before = copy.deepcopy(model.peers[1].heads)
    model.step(served.batch(0))
    assert not equal(before, model.peers[1].heads)
    other = told(seed=4)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    assert model.step(served.batch(1)) == other.step(served.batch(1))
    assert all(equal(mine.student, its.student) for mine, its in zip(model.peers, other.peers, strict=True))
    model.train(mode=False)
    assert not any(part.training for module in model.modules().values() for part in module.modules())


def test_heads_leave_the_start_of_their_target_alone():
    plain = method("scratch", seed=2)
    heads = [peer.heads for peer in told(seed=2).peers]
    assert equal(told(seed=2).peers[0].target, plain.export())
    assert not any(equal(heads[a], heads[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_only_heads_that_are_there_are_saved():
    assert "peer0/heads" in told().state_dict()
    assert set(method("dml").state_dict()) == {
        f"peer{number}{part}" for number in (0, 1) for part in ("", "/optimizer", "/schedule")
    }


def test_target_and_heads_are_prepared_as_one_module():
    task, prepared = method("scratch").task, []
    known = vars(task) | {"prepare": lambda module: prepared.append(module) or module}
    peer = Peer(type(task)(**known), seed=1, build_heads=lambda target: nn.ModuleDict({"head": nn.Linear(1, 1)}))
    assert prepared == [peer.student]
    assert {*peer.target.parameters(), *peer.heads.parameters()} == set(prepared[0].parameters())
    assert set(peer.optimizer.param_groups[0]["params"]) == set(prepared[0].parameters())


@pytest.mark.parametrize("peers", [1, 2, 3])
def test_mutual_parts_are_the_mean_over_the_others_and_move_the_own(peers):
    spaces = [torch.tensor(float(number + 1), requires_grad=True) for number in range(peers)]
    parts = mutual_parts(spaces, lambda own, other: own * other, weight=0.5)
    if peers == 1:
        assert parts == [{}]
        return
    torch.stack([part["mutual"] for part in parts]).sum().backward()
    for number, part in enumerate(parts):
        mean = sum(other + 1 for other in range(peers) if other != number) / (peers - 1)
        assert part["mutual"].item() == pytest.approx(0.5 * (number + 1) * mean)
        assert spaces[number].grad.item() == pytest.approx(0.5 * mean)
