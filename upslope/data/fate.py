"""What became of a page: rejected at ingest, dropped (by which rules, with which values, as a copy of what), or kept."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from upslope.config import UsageError
from upslope.data import shards
from upslope.machine.files import absolute
from upslope.machine.rng import rng

if TYPE_CHECKING:
    from upslope.data.artifacts import Corpus


@dataclass(frozen=True)
class Failure:
    """One rule that a document failed: the rule's predicate and the values it saw."""

    rule: str
    keep: str
    value: str


@dataclass(frozen=True)
class Fate:
    """What became of a page. doc: None where it never became a row (rejected at ingest)."""

    doc: int | None
    url: str
    kept: bool
    failures: tuple[Failure, ...] = ()
    rejected: str = ""

    def __str__(self) -> str:
        name = f"{self.url or '(no url)'}" + (f" · document {self.doc}" if self.doc is not None else "")
        if self.rejected:
            return f"{name}: {'kept in part' if self.doc is not None else 'rejected at ingest'}: {self.rejected}"
        if self.kept:
            return f"{name}: kept; it failed no rule"
        lines = [f"{name}: dropped by {len(self.failures)} rule{'s' * (len(self.failures) != 1)}"]
        return "\n".join(lines + [f"  {f.rule}: {f.value} where it must hold that {f.keep}" for f in self.failures])


def why(corpus: Corpus, what: str | int) -> list[Fate]:
    """The fates of a page, by URL or document number; UsageError with the nearest URL where there is none."""
    from upslope.data.artifacts import doc_id

    found: list[tuple[int, str]] = []
    wanted = int(what) if isinstance(what, int) or what.isdigit() else None
    urls: list[str] = []
    for number, file in enumerate(corpus.files()):
        column = shards.read(file.path, ["url"])["url"].to_pylist()
        for row, url in enumerate(column):
            doc = doc_id(number, row)
            if doc == wanted or (wanted is None and url == what):
                found.append((doc, url or ""))
        urls += [u for u in column if u]
    fates = of(corpus, found) + _rejected(corpus, str(what))
    if not fates:
        near = difflib.get_close_matches(str(what), urls[:50000], n=2, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else f"{corpus.rows} documents are numbered shard << 32 | row"
        raise UsageError(f"no page {what!r} in this corpus\n{hint}")
    return fates


def of(corpus: Corpus, pages: list[tuple[int, str]]) -> list[Fate]:
    """The fates of documents (number, URL)."""
    if not pages:
        return []
    earlier = [corpus.home(doc) for doc, _ in pages]
    docs = np.array([doc for doc, _ in pages], np.uint64)
    at = np.searchsorted(corpus.docs(), docs)
    failures: list[list[Failure]] = [[] for _ in pages]
    for found, (home, doc), (_, url) in zip(failures, earlier, pages):
        if home is not corpus:
            found += of(home, [(doc, url)])[0].failures
    for decision in corpus.body["decisions"]:
        for found, more in zip(failures, _failures(corpus, decision, docs, at)):
            found += more
    kept = corpus.kept()[at]
    return [Fate(doc, url, bool(k), tuple(f)) for (doc, url), k, f in zip(pages, kept, failures)]


def _failures(corpus: Corpus, decision: dict[str, Any], docs: np.ndarray, at: np.ndarray) -> list[list[Failure]]:
    """What one decision says of documents at places `at` of the view."""
    from upslope.data.artifacts import Corpus
    from upslope.data.curation import DUPLICATE, Rule, values

    packed = np.load(absolute(corpus.path, decision["failed"]), mmap_mode="r")
    bits = (packed[:, at // 8] >> (7 - at % 8).astype(np.uint8)) & 1
    rules = [Rule(**r) for r in decision["rules"]]
    said = values(Corpus(absolute(corpus.path, decision["view"])), rules, docs) if bits[:-1].any() else [[""] * len(rules)] * len(docs)
    copies = shards.read(absolute(corpus.path, decision["copies"]))
    found: list[list[Failure]] = []
    for i, doc in enumerate(docs.tolist()):
        mine = [Failure(r.name, r.keep, said[i][k]) for k, r in enumerate(rules) if bits[k, i]]
        if bits[-1, i]:
            other = copies["of"][pc.index(copies["doc"], doc).as_py()].as_py()
            mine.append(Failure(DUPLICATE, f"it is the first of its copies by {decision['winner']}", f"copy of {other}"))
        found.append(mine)
    return found


def _rejected(corpus: Corpus, url: str) -> list[Fate]:
    from upslope.data.artifacts import Corpus, Pages

    if parts := corpus.body.get("parts"):
        return [f for p in parts for f in _rejected(Corpus(absolute(corpus.path, p["corpus"])), url)]
    if not corpus.body["pages"]:
        return []
    rows = Pages(absolute(corpus.path, corpus.body["pages"])).rejects().to_pylist()
    return [Fate(None, r["record"], False, rejected=r["why"]) for r in rows if r["record"].rpartition(" ")[2] == url]


class Sampled(NamedTuple):
    """Documents drawn at random. docs: (n,) uint64; of: how many there are to draw from; alone: how many of them a rule took alone."""

    docs: np.ndarray
    of: int
    alone: int


def sample(corpus: Corpus, count: int, rule: str | None = None, source: str | None = None, seed: int = 0) -> Sampled:
    """Kept documents, or victims of a rule (those it alone took first), of one source if named; UsageError where there is none such."""
    pool, alone = corpus.kept(), np.zeros(corpus.rows, bool)
    if rule is not None:
        pool, known = np.zeros(corpus.rows, bool), []
        for decision in corpus.body["decisions"]:
            bits = np.unpackbits(np.load(absolute(corpus.path, decision["failed"])), axis=1, count=corpus.rows).astype(bool)
            names = [*(r["name"] for r in decision["rules"]), "duplicate"]
            known += names
            if rule in names:
                mine = bits[names.index(rule)]
                pool |= mine
                alone |= mine & (bits.sum(axis=0) == 1)
        if rule not in known:
            raise UsageError(f"no rule {rule!r} in this corpus\nrules: {', '.join(dict.fromkeys(known)) or 'none'}")
    if source is not None:
        of_each = corpus.table(("source",), every=True)["source"].to_numpy(zero_copy_only=False)
        if source not in (known_sources := sorted(set(of_each))):
            raise UsageError(f"no source {source!r} in this corpus\nsources: {', '.join(known_sources[:20])}")
        pool = pool & (of_each == source)
    places, alone = np.flatnonzero(pool), alone & pool
    order = rng(seed, "sample").permutation(places)
    order = np.concatenate([order[alone[order]], order[~alone[order]]])[:count]
    return Sampled(corpus.docs()[order], int(places.size), int(alone.sum()))


def excerpts(corpus: Corpus, docs: np.ndarray, length: int = 160) -> list[dict[str, Any]]:
    """Number, URL, first words, and what every rule that failed saw, of documents."""
    rows = corpus.take(docs, ("url", "text")).to_pylist()
    fates = of(corpus, [(int(d), r["url"] or "") for d, r in zip(docs, rows)])
    return [
        {
            "doc": int(d),
            "url": r["url"],
            "head": " ".join(r["text"][: 4 * length].split())[:length],
            "failed": [[f.rule, f.value] for f in what.failures],
        }
        for d, r, what in zip(docs, rows, fates)
    ]
