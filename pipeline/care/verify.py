"""Verifying all that the trials of an experiment read, down to asking the sources again; what is bad is put aside."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from cluster.storage import Storage
from pipeline.caches.claims import claim_key
from pipeline.caches.graphs import load_graph
from pipeline.caches.labels import (
    ShardRecord,
    load_manifest,
    quarantine,
    read_record,
    read_shard,
    record_key,
    shard_key,
    view_hash,
)
from pipeline.caches.segments import segments_of
from pipeline.care.rerun import NOISE, Rerun, choose, run_again
from pipeline.computing import compute_here
from pipeline.packing.packed import read_packed
from pipeline.planning.plan import Plan
from pipeline.planning.specs import CacheSpec, GraphSpec, Segment
from pipeline.tensors import as_tensor
from sskt.errors import DamagedError, InputError
from sskt.gallery import Gallery
from sskt.golden import check_pixels
from sskt.sources import Source

SHOWN = 3
"""Problems of a cache that its line names."""


@dataclass(kw_only=True)
class Verdict:
    """What was found of one cache or graph."""

    name: str
    id: str
    problems: list[str] = field(default_factory=list)
    aside: int = 0
    """Shards that were put aside."""
    reruns: list[Rerun] = field(default_factory=list)
    held: np.ndarray | None = None
    """How often a sound shard holds each view of each sample: uint8 [rows, M]; once is right."""

    def __str__(self) -> str:
        """One line."""
        more = [f"and {len(self.problems) - SHOWN} more"] if len(self.problems) > SHOWN else []
        told = "; ".join([*self.problems[:SHOWN], *more]) or "sound"
        if self.problems and self.aside:
            told += f"; {self.aside} shards put aside, `cache` makes them again"
        return f"verify  {self.name}: {told}{self._counted()}{self._rerun()} [{self.id}]"

    def _counted(self) -> str:
        if self.held is None:
            return ""
        return f"; {int((self.held == 1).all(axis=1).sum())} of {len(self.held)} samples x {self.held.shape[1]} views"

    def _rerun(self) -> str:
        if not self.reruns:
            return ""
        samples, most = sum(rerun.samples for rerun in self.reruns), max(self.reruns, key=lambda one: one.beyond)
        told = f"off by {most.largest:.1e}, {most.beyond:.1e} beyond rounding, allowed {NOISE * most.noise:.1e}"
        return f"; {samples} samples run again: {told}"


@dataclass(frozen=True, kw_only=True)
class Verifier:
    """What verifying needs."""

    plan: Plan
    storage: Storage
    gallery: Gallery
    """The pool."""
    fraction: float
    """Of the samples of a segment, to be run again; 0 for none."""

    def cache(self, source: str, spec: CacheSpec) -> Verdict:
        """Verify a cache."""
        held = np.zeros((spec.rows, spec.view_count), np.uint8)
        verdict = Verdict(name=f"{source} {spec.name}", id=spec.id, held=held)
        for segment in segments_of(self.storage, spec):
            payloads = self._segment(segment, verdict)
            if self.fraction and payloads:
                self._run_again(self.plan.sources[source], segment, payloads, verdict)
            views = slice(segment.first_view, min(segment.stop_view, spec.view_count))
            for shard in payloads:
                ids = segment.id_range(shard)
                held[ids.start : ids.stop, views] += 1
        if not verdict.problems and not (held == 1).all():
            verdict.problems.append("BAD: not every view of every sample is there once")
        return verdict

    def _segment(self, segment: Segment, verdict: Verdict) -> dict[int, np.ndarray]:
        """Return what the sound shards hold, uint8 [rows, views, bytes]; put the others aside."""
        records, payloads, missing = dict[int, ShardRecord](), dict[int, np.ndarray](), 0
        for shard in range(segment.shards):
            record = read_record(self.storage, segment, shard)
            if record is None and not self._begun(segment, shard):
                missing += 1
                continue
            try:
                records[shard], payloads[shard] = self._shard(segment, shard, record)
            except (DamagedError, ValueError, KeyError) as error:  # the last two by foreign files
                self._put_aside(segment, shard, str(error), verdict)
        if missing:
            verdict.problems.append(f"BAD: not whole, {missing} of {segment.shards} shards are missing; run `cache`")
        self._manifest(segment, records, verdict)
        return payloads

    def _begun(self, segment: Segment, shard: int) -> bool:
        """Whether there is something of a shard, and nobody is making it right now."""
        claimed = self.storage.read(claim_key(segment, shard)) is not None
        keys = shard_key(segment, shard), record_key(segment, shard)
        return not claimed and any(self.storage.read(key) is not None for key in keys)

    def _shard(self, segment: Segment, shard: int, record: ShardRecord | None) -> tuple[ShardRecord, np.ndarray]:
        """Read a shard and check all that its record says of it."""
        where = f"cache {segment.id}, views {segment.first_view}..{segment.stop_view - 1}, shard {shard}"
        if record is None:
            raise DamagedError(f"{where}: its record is missing or damaged")
        payload, ids = read_shard(self.storage, segment, record, thoroughly=True), segment.id_range(shard)
        if record.rows != len(ids):
            raise DamagedError(f"{where}: its record is of {record.rows} samples, not {len(ids)}")
        if record.views != tuple(view_hash(payload[:, view]) for view in range(payload.shape[1])):
            raise DamagedError(f"{where}: its views are not those that its record names")
        known = {f"{one}/{view}" for one in ids for view in segment.view_ids}
        if not record.golden or not known.issuperset(record.golden):
            raise DamagedError(f"{where}: its record remembers the pixels of no view, or of another shard's")
        check_pixels(self.gallery, record.golden)
        return record, payload

    def _manifest(self, segment: Segment, records: dict[int, ShardRecord], verdict: Verdict) -> None:
        """Check a manifest against the records of the sound shards."""
        try:
            manifest = load_manifest(self.storage, segment)
        except DamagedError as error:
            verdict.problems.append(f"BAD: {error}")
            return
        if manifest is None:
            if len(records) == segment.shards:
                verdict.problems.append("BAD: its manifest is missing; run `cache`")
            return
        listed = {record.shard: record for record in manifest.shards}
        wrong = [shard for shard, record in records.items() if listed.get(shard) != record]
        if wrong or [record.shard for record in manifest.shards] != list(range(segment.shards)):
            verdict.problems.append(
                f"BAD: {segment.prefix}/manifest.json differs from the records of its shards; delete it and run `cache`"
            )

    def _run_again(self, source: Source, segment: Segment, payloads: dict[int, np.ndarray], verdict: Verdict) -> None:
        """Compare some samples of the sound shards with the source; what holds wrong ones is sound no longer."""
        shard_of = {sample: shard for shard in payloads for sample in segment.id_range(shard)}
        chosen = choose(range(segment.first, segment.stop), self.fraction).tolist()
        ids = [sample for sample in chosen if sample in shard_of]
        if not ids:
            return
        rows = [payloads[shard_of[one]][one - segment.id_range(shard_of[one]).start] for one in ids]
        rerun = run_again(
            source,
            self.gallery,
            as_tensor(np.stack(rows)),
            ids=torch.tensor(ids),
            view_ids=segment.view_ids,
            labels=segment.labels,
        )
        verdict.reruns.append(rerun)
        for shard in sorted({shard_of[sample] for sample in rerun.wrong}):
            samples = [sample for sample in rerun.wrong if shard_of[sample] == shard]
            told = f"{len(samples)} samples, the first {samples[0]}, are not what the source says"
            self._put_aside(segment, shard, f"cache {segment.id}, shard {shard}: {told}", verdict)
            del payloads[shard]

    def _put_aside(self, segment: Segment, shard: int, reason: str, verdict: Verdict) -> None:
        quarantine(self.storage, segment, shard)
        verdict.problems.append(f"BAD: {reason.removesuffix('; run `cache` to make it again')}")
        verdict.aside += 1

    def graph(self, name: str, spec: GraphSpec) -> Verdict:
        """Verify a graph: its bytes, and that it names as many different others of every sample as it should."""
        verdict, graph = Verdict(name=f"graph of {name}", id=spec.id), load_graph(self.storage, spec)
        if graph is None:
            verdict.problems.append("BAD: missing or damaged; `cache` makes it again")
            return verdict
        ids, rows = np.sort(graph["ids"], axis=1), spec.embedding.rows
        different = (np.diff(ids, axis=1) > 0).all() and not (graph["ids"] == np.arange(rows)[:, None]).any()
        if not different or ids.min() < 0 or ids.max() >= rows or not np.isfinite(graph["similarity"]).all():
            self.storage.write(f"quarantine/{spec.key}", self.storage.read(spec.key) or b"")
            self.storage.delete(spec.record_key)
            self.storage.delete(spec.key)
            verdict.problems.append("BAD: its neighbours are not different samples; put aside, `cache` makes it again")
        return verdict


def verify(plan: Plan, storage: Storage, *, fraction: float) -> Iterator[Verdict]:
    """Verify all caches and graphs that the trials of an experiment read, one after the other."""
    caches, graphs = plan.caches_for(), plan.graphs_for()
    _check(plan, fraction, cached=bool(caches))
    if not caches:
        return
    images = torch.from_numpy(read_packed(plan.packed, storage).images[: plan.packed.pool])
    gallery = Gallery(plan.recipe, images, plan.packed.edges)
    verifier = Verifier(plan=plan, storage=storage, gallery=gallery, fraction=fraction)
    for source, specs in caches.items():
        if fraction:
            plan.sources[source].place(next(iter(specs.values())).labels.numerics["device"])
        for spec in specs.values():
            yield verifier.cache(source, spec)
    for name, graph in graphs.items():
        yield verifier.graph(name, graph)


def _check(plan: Plan, fraction: float, *, cached: bool) -> None:
    """Refuse what cannot be run again here, and run sources as the cache stage does."""
    if not 0 <= fraction <= 1:
        raise InputError(f"--rerun is {fraction}; it has to be between 0 and 1")
    resources = plan.experiment.resources
    if cached and fraction and resources.gpus_per_source_worker and not torch.cuda.is_available():
        raise InputError("--rerun: the caches come from a GPU, and there is none here; use --rerun 0")
    compute_here(resources.source_threads)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
