"""An album holds what the caches hold: the views a training shows, the answers of the source, the nearest images."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.caches.labels import manifest_key
from pipeline.caches.segments import segments_of
from pipeline.inspecting.album import NEIGHBOURS, _truth, compare_encodings, label_names, make_album
from pipeline.packing.packed import read_packed
from tests.pipeline.trials.test_trials import prepared, with_methods


@pytest.fixture
def made(experiment_file):
    file = with_methods(experiment_file, "method: sskt, sources: [wise]", "method: embed, sources: [wise]")
    return prepared(file, "cache.encoding=fp32")


def test_what_is_said_is_what_the_source_says_of_those_very_views(made):
    plan, storage = made
    album = make_album(plan, storage, samples=5)
    (said,) = album.said
    packed = read_packed(plan.packed, storage)
    images = torch.from_numpy(packed.images)
    assert len(album.ids) == 5
    assert album.ids[0] == 0
    for line, sample in enumerate(album.ids):
        for view in range(album.views.shape[1]):
            ids, views = torch.tensor([sample]), torch.tensor([view])
            shown = plan.recipe.apply(images[ids], ids=ids, views=views)
            assert torch.equal(shown[0], album.views[line, view])
            answer = F.softmax(plan.sources["wise"].outputs(shown, ("logits",))["logits"], dim=1)[0]
            assert torch.allclose(said.probabilities[album.rows[line], view], answer, atol=1e-5)
        label = packed.labels[sample]
        assert album.truth[line] == (plan.packed.classes[label] if label >= 0 else "unlabelled")
    assert torch.allclose(said.entropy, -(said.probabilities * said.probabilities.log()).sum(dim=-1), atol=1e-5)
    preprocess = plan.sources["wise"].network.preprocess
    wanted = preprocess(album.views[:, 0]) * preprocess.std + preprocess.mean
    assert torch.allclose(said.seen, wanted.clamp(0, 1), atol=1e-6)


def test_neighbours_are_the_nearest_by_the_embedding(made):
    plan, storage = made
    (said,) = make_album(plan, storage, samples=3).said
    count = len(said.probabilities)
    images = torch.from_numpy(read_packed(plan.packed, storage).images[:count])
    first = plan.recipe.apply(images, ids=torch.arange(count), views=torch.zeros(count, dtype=torch.int64))
    embedding = F.normalize(plan.sources["wise"].outputs(first, ("embedding",))["embedding"].double(), dim=1)
    similarity = (embedding @ embedding.T).fill_diagonal_(-2)
    found = similarity.gather(1, said.neighbours)
    assert said.neighbours.shape == (count, NEIGHBOURS)
    assert torch.allclose(found, similarity.topk(NEIGHBOURS, dim=1).values, atol=1e-5)


def test_a_source_whose_cache_is_not_whole_is_left_out(made):
    plan, storage = made
    spec = plan.caches["wise"]["logits"]
    storage.delete(manifest_key(segments_of(storage, spec)[0]))
    album = make_album(plan, storage, samples=100)
    assert album.said == ()
    assert len(album.ids) == len(album.first_views)
    assert len(set(album.ids)) == len(album.ids)


def test_encodings_are_compared_by_bytes_and_by_what_they_change():
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    compared = {one.encoding: one for one in compare_encodings(logits)}
    assert list(compared) == ["fp16", "u8", "top10", "top1"]
    assert [one.bytes for one in compared.values()] == sorted((one.bytes for one in compared.values()), reverse=True)
    changes = [one.change.total_variation for one in compared.values()]
    assert changes == sorted(changes)
    assert all(one.change.agreement == 1 for one in compared.values())
    assert [one.encoding for one in compare_encodings(logits[:, :4])] == ["fp16", "u8", "top1"]


def test_classes_of_imagenet_have_names():
    assert label_names(1000)[207] == "golden retriever"
    assert label_names(3) == ["class 0", "class 1", "class 2"]


def test_labels_are_named_one_or_several():
    classes = ("cat", "dog", "cow")
    assert [_truth(np.int64(label), classes) for label in (2, -1)] == ["cow", "unlabelled"]
    assert _truth(np.array([1, -1, 1], np.int8), classes) == "cat, cow"
