"""dedup: a corpus → the same corpus with edges between copies. It drops nothing; a curation chooses the winners."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from upslope.config import Input, Wants
from upslope.data.links import AnyLink, Exact, MinHash
from upslope.machine.context import Context, Shard
from upslope.machine.files import link as hard_link
from upslope.machine.files import write_json
from upslope.machine.stage import Artifact, Problem, Stage

if TYPE_CHECKING:
    from pathlib import Path

    from upslope.data.artifacts import Corpus

CLUSTER = {"id": "int64", "size": "int32"}


class Dedup(Stage):
    """Finds copies among the documents that still live, by each link in turn.

    The new column `cluster` says of every living document which cluster of copies it is in, by all edges of the corpus so far: id, its
    smallest document, and size, how many (1 without copies); so that a curation can ask for `cluster.size`, or keep it as a weight.
    bucket: how many documents may share a key before only neighbours in the bucket are compared.
    """

    kind: ClassVar[str] = "dedup"
    makes: ClassVar[str] = "Corpus"
    code: ClassVar[tuple[str, ...]] = ("upslope.data",)

    corpus: Annotated[Input, Wants("Corpus")]
    links: tuple[AnyLink, ...] = Field(default=(Exact(), MinHash()), min_length=1)
    bucket: int = Field(default=64, ge=2)

    def check(self, inputs: Mapping[str, Any]) -> list[Problem]:
        """Two links that give columns must not share a name."""
        names = [link.column if type(link).gives else "" for link in self.links]
        return [Problem(f"links.{i}.kind", f"two links give the columns {n!r}") for i, n in enumerate(names) if n and n in names[:i]]

    def run(self, ctx: Context) -> Artifact:
        """The view with one edge file a link, the links' columns, and the column `cluster`."""
        import numpy as np

        from upslope.data import shards
        from upslope.data.artifacts import Corpus
        from upslope.data.links import graph

        view = ctx.open(self.corpus, Corpus)
        files = [Shard(f.path, f.digest) for f in view.files()]
        docs, body = view.docs(), view.derive(ctx.out)
        counts: dict[str, dict[str, int]] = {}
        linked = np.zeros(view.rows, bool)
        for number, plain in enumerate(self.links):
            link, version = plain.bind(ctx, view), type(plain).version
            link.sketch(shards.rows_to_batch([{"url": "", "source": "", "text": "a"}], shards.TEXT))  # compiled before workers are forked
            folders = list(ctx.map(graph.SketchShard(link=link, link_version=version), files))
            edges = graph.search(link, folders, view, ctx.work / f"links-{number}", self.bucket, ctx.check_stop)
            a, b = graph.unpacked(edges.pairs)
            linked[a] = linked[b] = True
            kind = plain.column
            file = ctx.out / "edges" / f"{number}-{kind}@{version}.parquet"
            shards.write(file, graph.table(docs[a], docs[b], edges.similarity, kind))
            body["edges"].append(file.relative_to(ctx.out).as_posix())
            if type(plain).gives:
                made = [_target(ctx, kind, version, i) for i in range(len(folders))]
                for folder, target in zip(folders, made):
                    hard_link(folder / "columns.parquet", target)
                _add(body, ctx, kind, version, dict(type(plain).gives), made)
            counts[f"{number}-{kind}"] = {"candidates": edges.candidates, "edges": edges.pairs.size, "big_buckets": edges.big}
            if edges.big:
                what = f"{edges.big} buckets hold more than {self.bucket} documents; only neighbours in them were compared"
                ctx.events.alarm(what, link=kind)
        write_json(ctx.out / "corpus.json", body)
        sizes = self._clusters(ctx, Corpus(ctx.out), body)
        corpus = Corpus(ctx.out)
        living = len(corpus)
        ctx.fact(docs=living, linked=int(linked.sum()), links=counts, clusters=sizes, licences=list(corpus.licences()))
        total = sum(c["edges"] for c in counts.values())
        ctx.say(f"{total:,} pairs of copies among {living:,} documents; {int(linked.sum()):,} have at least one copy")
        return corpus

    def _clusters(self, ctx: Context, corpus: Corpus, body: dict[str, Any]) -> dict[str, int]:
        """Adds the column `cluster` to the corpus; gives how many clusters of two or more there are, and the size of the largest."""
        import numpy as np
        import pyarrow as pa

        from upslope.data import shards
        from upslope.data.links import graph

        number, size = graph.clusters(corpus)
        made, at = [], 0
        for i, file in enumerate(corpus.files()):
            rows = slice(at, at + file.rows)
            at += file.rows
            dead = size[rows] == 0
            table = pa.table({"id": pa.array(number[rows], mask=dead), "size": pa.array(size[rows], mask=dead)})
            made.append(_target(ctx, "cluster", 1, i))
            shards.write(made[-1], table, {"text": file.digest, "step": "cluster@1"})
        _add(body, ctx, "cluster", 1, CLUSTER, made)
        write_json(ctx.out / "corpus.json", body)
        return {"copied": int(np.unique(number[size > 1]).size), "largest": int(size.max(initial=0))}


def _target(ctx: Context, name: str, version: int, shard: int) -> Path:
    return ctx.out / "columns" / f"{name}@{version}" / f"{shard:05d}.parquet"


def _add(body: dict[str, Any], ctx: Context, name: str, version: int, fields: dict[str, str], files: list[Path]) -> None:
    """Adds a column to the body of a view; a name replaces its elder."""
    listed = [f.relative_to(ctx.out).as_posix() for f in files]
    entry = {"name": name, "version": version, "fields": fields, "files": listed}
    body["columns"] = [c for c in body["columns"] if c["name"] != name] + [entry]
