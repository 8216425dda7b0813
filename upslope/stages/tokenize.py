"""tokenize: corpora → token shards, one pair of files per source, with held-out documents set apart."""

from __future__ import annotations

import hashlib
import time
from typing import Annotated, Any, ClassVar

from pydantic import Field

from upslope.config import Exec, Input, Neutral, UsageError, Wants
from upslope.machine.context import Context
from upslope.machine.files import read_json, write_json
from upslope.machine.stage import Artifact, Paused, Stage

ROWS = 256


class Tokenize(Stage):
    """Encodes every kept document once; packing and mixing happen when samples are drawn.

    holdout: share of documents, by hash of the text (copies stay together), that goes to the source `NAME@heldout`,
    which no training stage reads. save_seconds: how often a long run writes down how far it is.

    repeat: a document that stands for a cluster of copies is written min(most, size^repeat) times (`cluster.size`, which a dedup stage
    gives), the fraction drawn by the hash of its text: what the web repeats is read more often, but no more than that (0 = once each).
    Source: D4 (2308.12284): repeating well-chosen documents beats fresh random ones.
    """

    kind: ClassVar[str] = "tokenize"
    makes: ClassVar[str] = "TokenShards"
    code: ClassVar[tuple[str, ...]] = ("upslope.tokens.tokenizer", "upslope.tokens.shards")

    tokenizer: Annotated[Input, Wants("Tokenizer")]
    corpora: Annotated[tuple[Input, ...], Wants("Corpus"), Field(min_length=1)]
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.02
    repeat: Annotated[float, Field(ge=0, le=1), Neutral(0.0)] = 0.0
    most: Annotated[float, Field(ge=1), Neutral(4.0)] = 4.0
    save_seconds: Annotated[float, Exec()] = 10.0

    def run(self, ctx: Context) -> Artifact:
        """UsageError where two corpora have a source of the same name, or a text cannot be encoded."""
        from upslope.data.artifacts import Corpus
        from upslope.tokens.shards import HELDOUT, ShardWriter
        from upslope.tokens.tokenizer import Tokenizer

        corpora = [ctx.open(ref, Corpus) for ref in self.corpora]
        owners: dict[str, str] = {}
        for ref, corpus in zip(self.corpora, corpora, strict=True):
            for source in corpus.sources():
                if owners.setdefault(source, ref.stage) != ref.stage:
                    raise UsageError(f"source {source!r} is in {owners[source]} and in {ref.stage}\nway out: rename one of them")
        saved = ctx.work / "state.json"
        state: dict[str, Any] = read_json(saved) if saved.is_file() else {"slices": 0, "sources": {}}
        writer = ShardWriter(ctx.out, ctx.open(self.tokenizer, Tokenizer), state["sources"])
        total, done, last = sum(len(c) for c in corpora), 0, time.monotonic()
        columns = ("doc", "text", "source", *(("cluster.size",) if self.repeat else ()))
        slices = (b.slice(at, ROWS) for c in corpora for b in c.batches(columns) for at in range(0, b.num_rows, ROWS))
        for number, rows in enumerate(slices):
            done += rows.num_rows
            if number < state["slices"]:
                continue
            groups: dict[str, tuple[list[int], list[str]]] = {}
            for i, (doc, text, source) in enumerate(zip(*(rows[c].to_pylist() for c in columns[:3]), strict=True)):
                docs, texts = groups.setdefault(place := self.place(text, source), ([], []))
                times = self.times(text, rows["cluster.size"][i].as_py()) if self.repeat and not place.endswith(HELDOUT) else 1
                docs += [doc] * times
                texts += [text] * times
            for name, (docs, texts) in groups.items():
                writer.add(name, docs, texts)
            ctx.events.progress(done, total, "documents")
            if ctx.stopping or time.monotonic() - last > self.save_seconds:
                with ctx.events.state("checkpoint"):
                    write_json(saved, {"slices": number + 1, "sources": writer.state()})
                last = time.monotonic()
                if ctx.stopping:
                    raise Paused
        known = {ref.stage: found for ref, corpus in zip(self.corpora, corpora, strict=True) if (found := corpus.contamination())}
        shards = writer.close(known)
        sizes = {s: shards.counts(s) for s in shards.sources()}
        tokens, size = sum(c.tokens for c in sizes.values()), sum(c.bytes for c in sizes.values())
        if not tokens:
            raise UsageError(f"no document to tokenize in {', '.join(r.stage for r in self.corpora)}")
        ctx.fact(tokens=tokens, bytes=size, sources={s: c._asdict() for s, c in sizes.items()})
        count = sum(c.docs for c in sizes.values())
        ctx.say(f"{tokens:,} tokens in {count:,} documents of {len(shards.training())} sources, {size / tokens:.2f} bytes per token")
        return shards

    def place(self, text: str, source: str) -> str:
        """The source that a document goes to: its own, or its held-out twin."""
        from upslope.tokens.shards import HELDOUT

        return source + HELDOUT if _uniform(text, b"upslope.holdout") < self.holdout else source

    def times(self, text: str, size: int | None) -> int:
        """How often a document is written; `size`: documents in its cluster."""
        return int(min(self.most, float(size or 1) ** self.repeat) + _uniform(text, b"upslope.repeat"))


def _uniform(text: str, key: bytes) -> float:
    """A number in [0, 1) that depends on a text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, key=key).digest(), "little") / 2**64
