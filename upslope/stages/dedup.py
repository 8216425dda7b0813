"""dedup: a corpus → the same corpus with edges between copies. It drops nothing; a curation chooses the winners."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from upslope.config import Input, Wants
from upslope.data.links import AnyLink, Exact, KeyShard, MinHash, candidates
from upslope.machine.context import Context, Shard
from upslope.machine.files import write_json
from upslope.machine.stage import Artifact, Stage

CHUNK = 50_000


class Dedup(Stage):
    """Finds copies among the documents that still live, by each link in turn.

    bucket: how many documents may share a key before only neighbours in the bucket are compared.
    """

    kind: ClassVar[str] = "dedup"
    makes: ClassVar[str] = "Corpus"
    code: ClassVar[tuple[str, ...]] = ("upslope.data",)

    corpus: Annotated[Input, Wants("Corpus")]
    links: tuple[AnyLink, ...] = Field(default=(Exact(), MinHash()), min_length=1)
    bucket: int = Field(default=64, ge=2)

    def run(self, ctx: Context) -> Artifact:
        """The view with one edge file a link."""
        import numpy as np
        import pyarrow as pa

        from upslope.data import shards
        from upslope.data.artifacts import Corpus

        view = ctx.open(self.corpus, Corpus)
        files = [Shard(f.path, f.digest) for f in view.files()]
        living = view.docs()[view.kept()]
        body = view.derive(ctx.out)
        counts: dict[str, dict[str, int]] = {}
        linked = np.zeros(0, np.uint64)
        for number, link in enumerate(self.links):
            link.keys(shards.rows_to_batch([{"text": "a"}], shards.TEXT))  # compiled before workers are forked
            docs, keys = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
            for shard, folder in enumerate(ctx.map(KeyShard(link=link, link_version=type(link).version), files)):
                rows, key = np.load(folder / "keys.npy")
                docs.append(rows | np.uint64(shard << 32))
                keys.append(key)
            doc, key = np.concatenate(docs), np.concatenate(keys)
            alive = np.isin(doc, living)
            pairs, big = candidates(doc[alive], key[alive], self.bucket)
            similarity = np.zeros(len(pairs), np.float32)
            for at in range(0, len(pairs), CHUNK):
                ctx.check_stop()
                some = pairs[at : at + CHUNK]
                similarity[at : at + CHUNK] = link.verify(view.lookup(np.unique(some)), some)
            good = similarity >= np.float32(link.threshold)
            table = {"a": pairs[good, 0], "b": pairs[good, 1], "similarity": similarity[good], "kind": [link.kind] * int(good.sum())}
            file = ctx.out / "edges" / f"{number}-{link.kind}@{type(link).version}.parquet"
            shards.write(file, pa.table(table, schema=shards.EDGE))
            body["edges"].append(file.relative_to(ctx.out).as_posix())
            linked = np.union1d(linked, pairs[good].ravel())
            counts[f"{number}-{link.kind}"] = {"candidates": len(pairs), "edges": int(good.sum()), "big_buckets": big}
            if big:
                what = f"{big} buckets hold more than {self.bucket} documents; only neighbours in them were compared"
                ctx.events.alarm(what, link=link.kind)
        write_json(ctx.out / "corpus.json", body)
        corpus = Corpus(ctx.out)
        ctx.fact(docs=len(living), linked=int(linked.size), links=counts, licences=list(corpus.licences()))
        edges = sum(c["edges"] for c in counts.values())
        ctx.say(f"{edges:,} pairs of copies among {len(living):,} documents; {linked.size:,} have at least one copy")
        return corpus
