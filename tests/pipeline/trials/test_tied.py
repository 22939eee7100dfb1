"""Two real processes over gloo, beside one that sees all rows."""

import os

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn

from pipeline.trials.tied import gathered, tied

ROWS, WORLD = 8, 2


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))


def rows():
    return torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(1))


def learn(module, seen):
    (module(seen) ** 2).mean().backward()


def process(rank, folder, bucket_mb):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    learn_together(rank, folder, bucket_mb)
    dist.barrier()  # a process that ends while its peer still listens to it aborts the peer
    dist.destroy_process_group()


def learn_together(rank, folder, bucket_mb):
    inner = network()
    module = tied(inner, world=WORLD, bucket_mb=bucket_mb)
    for step in range(2):  # buckets are put together anew after the first step
        inner.zero_grad()
        learn(module, rows()[rank::WORLD])
        buckets = {one.grad.untyped_storage().data_ptr() for one in inner.parameters()}
        told = gathered(torch.tensor([float(rank), step]), world=WORLD)
        assert told.tolist() == [[0.0, step], [1.0, step]]
    torch.save([one.grad.clone() for one in inner.parameters()], f"{folder}/gradients-{rank}.pt")
    (folder / f"buckets-{rank}").write_text(str(len(buckets)))


@pytest.mark.parametrize(("bucket_mb", "buckets"), [(25, 1), (1e-4, 2)])
def test_gradients_are_those_of_all_rows_whatever_the_buckets(tmp_path, bucket_mb, buckets):
    multiprocessing.spawn(process, (tmp_path, bucket_mb), nprocs=WORLD)
    whole = network()
    learn(whole, rows())
    for rank in range(WORLD):
        assert int((tmp_path / f"buckets-{rank}").read_text()) == buckets
        for own, one in zip(torch.load(tmp_path / f"gradients-{rank}.pt"), whole.parameters(), strict=True):
            torch.testing.assert_close(own, one.grad)


def test_one_process_is_left_alone():
    module = network()
    assert tied(module, world=1, bucket_mb=25) is module
    assert gathered(torch.tensor([1.0, 2.0]), world=1).tolist() == [[1.0, 2.0]]
