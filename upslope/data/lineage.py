"""Where a document came from: its page, the record it was read from, every decision about it, and every rewrite of its text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from upslope.config import UsageError
from upslope.data import fate
from upslope.machine.files import absolute

if TYPE_CHECKING:
    from upslope.data.artifacts import Corpus

OWN = ("url", "source", "date", "licence", "provenance", "parents", "bytes")


def origin(corpus: Corpus, doc: int) -> dict[str, Any]:
    """Everything known of document `doc`: its row, the record in the sources, rewrites, and its fate. UsageError if there is none."""
    from upslope.data.artifacts import Pages

    shard, row = doc >> 32, doc & 0xFFFFFFFF
    files = corpus.files()
    if shard >= len(files) or row >= files[shard].rows:
        raise UsageError(f"no document {doc} in this corpus: shard {shard}, row {row}; documents are numbered shard << 32 | row")
    found: dict[str, Any] = {"doc": doc, **corpus.take(np.array([doc], np.uint64), OWN).to_pylist()[0]}
    home, number = corpus.home(doc)
    if home.body["pages"]:
        page = Pages(absolute(home.path, home.body["pages"])).page(number, ("record", "charset"))
        found |= {"record": page["record"], "charset": page["charset"]}
    texts = [home, corpus] if home is not corpus else [corpus]
    found["rewrites"] = [r["what"] for c in texts for r in c.body.get("rewrites", [])]
    what = fate.of(corpus, [(doc, found["url"] or "")])[0]
    found |= {"kept": what.kept, "failed": [[f.rule, f.value] for f in what.failures]}
    return found


def before(corpus: Corpus) -> Iterator[Corpus]:
    """The corpora whose texts were rewritten on the way to this one, the latest first."""
    from upslope.data.artifacts import Corpus

    for step in reversed(corpus.body.get("rewrites", [])):
        yield Corpus(absolute(corpus.path, step["before"]))


def human_only(corpora: Sequence[Corpus]) -> list[str]:
    """The predicate "nothing here was made by a program": no kept document has parents or the provenance synthetic.

    Returns what contradicts it: up to 20 URLs; an empty list is the proof, over every row that is kept.
    """
    wrong: list[str] = []
    for corpus in corpora:
        for batch in corpus.batches(("url", "provenance", "parents")):
            for row in batch.to_pylist():
                if row["parents"] or row["provenance"] == "synthetic":
                    wrong.append(row["url"])
                    if len(wrong) == 20:
                        return wrong
    return wrong


def write_documents(corpus: Corpus, folder: Path, columns: bool = True) -> Mapping[str, int]:
    """Kept documents as Dolma writes them: documents/NNNNN.jsonl.gz with id, text, source, created, added, metadata; one file a shard.

    columns: also the columns of sidecars, as `metadata.NAME.FIELD`. Returns documents and bytes of text written.
    """
    import gzip
    import json

    from upslope.machine.files import atomic

    dotted = [f"{name}.{field}" for name, fields in corpus.fields().items() for field in fields] if columns else []
    names = ("doc", "text", *OWN, *dotted)
    docs = size = 0
    kept, at = corpus.kept(), 0
    for number, file in enumerate(corpus.files()):
        alive = np.flatnonzero(kept[at : at + file.rows])
        at += file.rows
        if not alive.size:
            continue
        with (
            atomic(folder / "documents" / f"{number:05d}.jsonl.gz") as temporary,
            open(temporary, "wb") as raw,
            gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="", compresslevel=6) as out,
        ):
            for row in corpus.shard(number, names).take(alive).to_pylist():
                more: dict[str, Any] = {k: row[k] for k in ("url", "licence", "provenance", "parents", *dotted)}
                body = {"id": str(row["doc"]), "text": row["text"], "source": row["source"], "created": row["date"] or "", "metadata": more}
                out.write(json.dumps(body, ensure_ascii=False).encode() + b"\n")
                docs, size = docs + 1, size + row["bytes"]
    return {"documents": docs, "bytes": size}
