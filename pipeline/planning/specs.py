"""What label caches and graphs are called: a cache is what one source says of the views of one pool, in segments.

A pool that has grown was packed in blocks, and a cache may have been given more views; every block with every range of
views that was made at once is a segment, and neither kind of growth touches the segments that are there.
"""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from pipeline.canonical import digest
from pipeline.packing.packed import PoolBlock
from sskt.encodings import Encoding, get_encoding
from sskt.methods import Needs
from sskt.mixing import MIXTURES, group_range
from sskt.settings import TrainingSettings
from sskt.views import KINDS, TURN, Kind

FORMAT, GRAPH_FORMAT = 2, 1
SMALLEST_SHARD, LARGEST_SHARD, USUAL_SHARDS = 64, 16384, 16


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What is said, of whatever samples and views. Any difference is another cache."""

    source: dict[str, Any]
    views: dict[str, Any]
    """The recipe."""
    output: str
    kind: Kind
    """Of which kind of views."""
    width: int
    """Values per view."""
    encoding: str
    numerics: dict[str, Any]

    @property
    def name(self) -> str:
        """What such a cache is called among those of its source."""
        return cache_name(self.output, kind=self.kind)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Those n of whose views v + n * TURN it is."""
        return KINDS[self.kind]

    @property
    def encoder(self) -> Encoding:
        """How it is stored."""
        return get_encoding(self.encoding, self.output)

    @property
    def view_bytes(self) -> int:
        """Stored bytes of a view."""
        return self.encoder.row_bytes(self.width)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The part of a cache that is made at once: one block of the pool, one range of views."""

    labels: Labels
    pool: str
    """Fingerprint of the pool's images up to the end of the block."""
    first: int
    stop: int
    """Its samples are the ids first..stop-1."""
    first_view: int
    stop_view: int

    @cached_property
    def id(self) -> str:
        """The name of all segments that differ in their views only, which no other content can have."""
        return digest(self.identity())

    def identity(self) -> dict[str, Any]:
        """All that changes a stored byte."""
        return {"format": FORMAT, "pool": self.pool, "first": self.first, "stop": self.stop} | asdict(self.labels)

    @property
    def prefix(self) -> str:
        """Where its objects lie."""
        return f"caches/{self.id}/views-{self.first_view:05d}-{self.stop_view:05d}"

    @cached_property
    def view_ids(self) -> tuple[int, ...]:
        """The views it holds of every sample, in their order."""
        views = range(self.first_view, self.stop_view)
        return tuple(number * TURN + view for number in self.labels.numbers for view in views)

    @property
    def rows(self) -> int:
        """How many samples it holds."""
        return self.stop - self.first

    @property
    def shard_rows(self) -> int:
        """Samples per shard; fixed by the block, so that shards do not depend on the number of workers."""
        return min(max(-(-self.rows // USUAL_SHARDS), SMALLEST_SHARD), LARGEST_SHARD)

    @property
    def shards(self) -> int:
        """How many shards it has."""
        return -(-self.rows // self.shard_rows)

    def id_range(self, shard: int) -> range:
        """The sample ids a shard owns."""
        first = self.first + shard * self.shard_rows
        return range(first, min(first + self.shard_rows, self.stop))

    def shown_range(self, shard: int) -> range:
        """The samples that a shard's views show: its own, and those that they are mixed with."""
        ids = self.id_range(shard)
        return group_range(ids, range(self.first, self.stop)) if self.labels.kind in MIXTURES else ids

    @property
    def row_bytes(self) -> int:
        """Stored bytes for all of its views of one sample."""
        return len(self.view_ids) * self.labels.view_bytes


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """What one source says of the first views of a whole pool."""

    labels: Labels
    blocks: tuple[PoolBlock, ...]
    view_count: int

    @cached_property
    def id(self) -> str:
        """The name of what is said of this pool, of however many views."""
        return self.segment(len(self.blocks) - 1, 0, self.view_count).id

    @property
    def name(self) -> str:
        """What it is called among the caches of its source."""
        return self.labels.name

    @property
    def rows(self) -> int:
        """Samples labelled: the pool, ids 0..rows-1."""
        return self.blocks[-1].stop

    def segment(self, block: int, first_view: int, stop_view: int) -> Segment:
        """Return the segment of a block and a range of views."""
        return Segment(
            labels=self.labels,
            pool=self.blocks[block].fingerprint,
            first=self.blocks[block - 1].stop if block else 0,
            stop=self.blocks[block].stop,
            first_view=first_view,
            stop_view=stop_view,
        )


@dataclass(frozen=True, kw_only=True)
class GraphSpec:
    """The nearest neighbours of every sample by a source's embedding of its first view."""

    embedding: CacheSpec
    neighbours: int

    @cached_property
    def id(self) -> str:
        """The name of the graph, which no other content can have."""
        return graph_id(self.embedding.id, self.neighbours)

    @property
    def key(self) -> str:
        """Where its data lies."""
        return f"graphs/{self.id}.parquet"

    @property
    def record_key(self) -> str:
        """Where its commit record lies."""
        return f"graphs/{self.id}.json"


def graph_id(embedding: str, neighbours: int) -> str:
    """What the graph that is derived from the cache of that id is called."""
    return digest({"format": GRAPH_FORMAT, "embedding": embedding, "neighbours": neighbours})


def graph_name(source: str, neighbours: int) -> str:
    """What a graph is called among those of all sources."""
    return f"{source}, {neighbours} neighbours"


def cache_name(output: str, *, kind: Kind) -> str:
    """What a cache is called among those of its source."""
    return f"{kind} {output}" if kind else output


def kinds_of(needs: Needs, training: TrainingSettings) -> tuple[Kind, ...]:
    """The kinds of views that a training reads of every output its method asks for."""
    turned: list[Kind] = ["turned"] if needs.turned else []
    mixed: list[Kind] = [training.mix] if needs.pool and training.mix != "none" else []
    return ("", *turned, *mixed)


def caches_of(needs: Needs, training: TrainingSettings) -> tuple[str, ...]:
    """The caches of each source that a training depends on, by name; a graph comes from the embedding."""
    read = [cache_name(output, kind=kind) for kind in kinds_of(needs, training) for output in needs.outputs]
    graphs = ["embedding"] if needs.graph and "embedding" not in needs.outputs else []
    return (*read, *graphs)
