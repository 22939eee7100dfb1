"""Graphs of nearest neighbours on storage: derived from a cache of embeddings, computed once, never trusted unread.

graphs/<id>.parquet   one row per sample: its neighbours' ids and similarities, each a fixed-size binary column
graphs/<id>.json      commit record, written after the file was read back
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.metrics import Traffic, Work, hear, tell, work, working
from cluster.near import nearby
from cluster.resources import cluster_nodes, concurrency
from cluster.session import start_session
from cluster.storage import Storage, open_storage
from pipeline.caches.segments import read_cache, require_cache
from pipeline.canonical import canonical, seal, unseal
from pipeline.columns import read_rows, write_columns
from pipeline.computing import compute_here
from pipeline.planning.settings import ResourceSettings
from pipeline.planning.specs import GraphSpec
from pipeline.progress import Progress
from pipeline.tensors import as_tensor
from sskt.errors import DamagedError, SsktError
from sskt.graphs import nearest_neighbours

COLUMNS = {"ids": np.dtype("<i4"), "similarity": np.dtype("<f4")}

GraphArrays = dict[str, np.ndarray]
"""By column: [P, k]."""


def ensure_graphs(storage: Storage, specs: Mapping[str, GraphSpec], *, resources: ResourceSettings) -> list[str]:
    """Make the graphs that are missing or damaged, from caches that are whole; return what they are called."""
    missing = {name: spec for name, spec in specs.items() if load_graph(storage, spec) is None}
    if not missing:
        return []
    storage.check(write="graphs")
    start_session()
    import ray  # only inside a session
    from ray.exceptions import RayError

    need, asked = resources.source_worker, {"resources": resources, "work": work()}
    concurrency(cluster_nodes(), need)  # refuses what would wait for ever
    make = ray.remote(max_retries=2, **need.options())(make_graph)
    with Progress("graphs", total=len(missing), unit="graphs") as progress:
        waiting = {name: make.remote(storage.uri, spec, **asked) for name, spec in missing.items()}
        for name, answer in waiting.items():
            try:
                hear(ray.get(answer))
            except RayError as error:
                raise SsktError(f"graph of {name}: {str(error).strip().splitlines()[-1]}") from error
            progress.advance()
    return list(missing)


def make_graph(storage_uri: str, spec: GraphSpec, *, resources: ResourceSettings, work: Work) -> Traffic:
    """Make a graph in a worker; return the requests that took."""
    compute_here(resources.source_threads)
    storage = open_storage(storage_uri)
    with working(*work):
        _make(storage, spec, near=nearby(storage, resources.node_cache_gb))
    return tell()


def _make(storage: Storage, spec: GraphSpec, *, near: Storage) -> None:
    """Find the neighbours, publish them, read them back, then record them."""
    labels = spec.embedding.labels
    first_views = replace(spec.embedding, view_count=1)
    stored = read_cache(near, require_cache(near, first_views, source=labels.name))
    embeddings = labels.encoder.decode(as_tensor(stored[:, 0]), labels.width).to(labels.numerics["device"])
    graph = nearest_neighbours(embeddings, spec.neighbours)
    columns = {name: tensor.cpu().numpy().astype(COLUMNS[name]) for name, tensor in graph._asdict().items()}
    data = write_columns(columns, statement=_statement(spec))
    storage.write(spec.key, data)
    record = {"id": spec.id, "sha256": hashlib.sha256(data).hexdigest()}
    _read(storage, spec, record["sha256"])
    storage.write(spec.record_key, seal(record))


def load_graph(storage: Storage, spec: GraphSpec) -> GraphArrays | None:
    """Return a graph's columns, or None where it has to be made: absent, or damaged and so not to be trusted."""
    record = storage.read(spec.record_key)
    try:
        return None if record is None else _read(storage, spec, unseal(record)["sha256"])
    except (ValueError, KeyError, TypeError, DamagedError):
        return None


def _read(storage: Storage, spec: GraphSpec, sha256: str) -> GraphArrays:
    data = storage.read(spec.key)
    if data is None or hashlib.sha256(data).hexdigest() != sha256:
        raise DamagedError(f"{spec.key} is missing or differs from its record; run `cache` to make it again")
    table = pq.read_table(pa.BufferReader(data))
    if table.schema.metadata[b"sskt"] != _statement(spec):
        raise DamagedError(f"{spec.key} says that it is another graph; run `cache` to make it again")
    shape = spec.embedding.rows, spec.neighbours
    return {name: read_rows(table.column(name)).view(kind).reshape(shape) for name, kind in COLUMNS.items()}


def _statement(spec: GraphSpec) -> bytes:
    """What a graph's file says of itself."""
    return canonical({"graph": spec.id}).encode()
