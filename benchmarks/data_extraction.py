"""The extractor beside resiliparse and trafilatura: main content, what documentation must keep, speed on one core.

    python benchmarks/data_extraction.py [--cache FOLDER] [--rounds 5] [--only pages,docs,speed] [--json]

pages: macro F1 of 4-word shingles on benchmarks/pages, per layout. docs: shares of code lines, their indentation, TeX and table cells kept
on documentation pages (benchmarks/gold.py). speed: pages and megabytes of HTML per second on pages of the shipped crawl and on the gold
pages, rounds interleaved; a ratio is theirs over ours in time, median and range over the rounds. Each rival runs with the settings that
were best for it: resiliparse main content without comments, on the gold pages also without bullets, alternative texts and `h1` (gold has no
titles, ours leaves them out there by a setting); trafilatura fast, with tables, without comments, on documentation as Markdown and as text.
Absolute figures do not travel between machines; run it on a quiet one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from gold import PACKAGES, cache_folder, gold_pages, tally  # noqa: E402

from upslope.config import UsageError  # noqa: E402

PAGES = ROOT / "benchmarks" / "pages"
Extract = Callable[[str], str]


def ours(html: str) -> str:
    """The package's Markdown."""
    from upslope.data.extract.html import extract

    return extract(html).text


def resiliparse(html: str, **settings: Any) -> str:
    """Main content as plain text."""
    from resiliparse.extract.html2text import extract_plain_text

    text: str = extract_plain_text(html, main_content=True, comments=False, **settings)
    return text


def trafilatura(html: str, form: str = "txt") -> str:
    """Main content without the fallback extractors; None, where it finds nothing, is an empty text."""
    import trafilatura

    return trafilatura.extract(html, fast=True, include_tables=True, include_comments=False, output_format=form) or ""


CONTENDERS: dict[str, Extract] = {
    "upslope": ours,
    "resiliparse": lambda html: resiliparse(html, alt_texts=False, list_bullets=False),
    "trafilatura": trafilatura,
}
ARTICLES: dict[str, Extract] = CONTENDERS | {
    "resiliparse": lambda html: resiliparse(html, alt_texts=False, list_bullets=False, skip_elements=["h1"])
}
DOCS: dict[str, tuple[Extract, bool]] = {
    "upslope": (ours, True),
    "resiliparse": (resiliparse, False),
    "trafilatura": (trafilatura, False),
    "trafilatura Markdown": (lambda html: trafilatura(html, "markdown"), True),
}


def decoded(body: bytes) -> str:
    """A page in the charset that it declares, else UTF-8."""
    found = re.search(rb"charset=[\"']?([\w-]+)", body[:4096], re.I)
    return body.decode(found[1].decode() if found else "utf-8", "replace")


def crawl_pages(every: int = 5) -> list[str]:
    """Every fifth page of the shipped crawl."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    with open(ROOT / "upslope" / "assets" / "crawl.warc.gz", "rb") as f:
        bodies = [r.reader.read() for r in ArchiveIterator(f, record_types=WarcRecordType.response, parse_http=True)]
    return [decoded(body) for body in bodies[::every]]


def shingle_scores(names: Sequence[str], folder: Path = PAGES) -> dict[str, dict[str, float]]:
    """Mean F1 of the pages of each layout and of all pages (`all`), per contender; Markdown, bullets and list numbers are taken off all."""
    from upslope.data.extract.score import extractors, plain, score_folder

    truth = json.loads((folder / "ground-truth.json").read_text(encoding="utf-8"))
    out: dict[str, dict[str, float]] = {}
    for name in names:
        extract = extractors()[name] if name == "upslope" else ARTICLES[name]
        found: dict[str, list[float]] = {}
        for page in score_folder(folder, lambda html: plain(extract(html))).pages:  # noqa: B023
            for group in (truth[page.id]["layout"], "all"):
                found.setdefault(group, []).append(page.f1)
        out[name] = {group: statistics.fmean(found[group]) for group in [*sorted(found.keys() - {"all"}), "all"]}
    return out


def kept(cache: Path, names: Sequence[str], cap: int) -> dict[str, dict[str, dict[str, tuple[int, int]]]]:
    """(found, wanted) per contender, package (and `all`) and face of documentation gold."""
    pages = list(gold_pages(cache, cap))
    out: dict[str, dict[str, dict[str, tuple[int, int]]]] = {}
    for name in names:
        extract, markdown = DOCS[name]
        own = {package: tally([p for p in pages if p.package == package], extract, markdown) for package in PACKAGES}
        faces = own[PACKAGES[0]]
        total = {face: (sum(t[face][0] for t in own.values()), sum(t[face][1] for t in own.values())) for face in faces}
        out[name] = {**own, "all": total}
    return out


def seconds(pages: Sequence[str], extract: Extract) -> float:
    """Processor time of one pass over the pages: all three run on one thread, and other jobs disturb it less than they do the clock."""
    began = time.process_time()
    for html in pages:
        extract(html)
    return time.process_time() - began


def speed(pages: Sequence[str], names: Sequence[str], rounds: int) -> dict[str, dict[str, float]]:
    """pages/s, MB/s (bytes of UTF-8) and, against ours, the ratio's median and range; one round is a pass of everyone, in turning order."""
    size = sum(len(html.encode("utf-8", "replace")) for html in pages) / 1e6
    for name in names:
        seconds(pages[:8], CONTENDERS[name])
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        for name in [*names[i % len(names) :], *names[: i % len(names)]]:
            times[name].append(seconds(pages, CONTENDERS[name]))
    out = {}
    for name in names:
        middle = statistics.median(times[name])
        ratios = [theirs / own for theirs, own in zip(times[name], times["upslope"])]
        out[name] = {"pages/s": len(pages) / middle, "MB/s": size / middle, "ratio": statistics.median(ratios),
                     "ratio min": min(ratios), "ratio max": max(ratios)}  # fmt: skip
    return out


def cpu() -> str:
    """The processor's name."""
    file = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", file.read_text()) if file.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


def installed(names: Sequence[str]) -> list[str]:
    """Ours and the rivals that can be imported."""
    from importlib.util import find_spec

    return [x for x in names if x == "upslope" or find_spec(x.split()[0])]


def render(result: dict[str, Any]) -> str:
    """The tables."""
    lines = [", ".join(f"{k} {v}" for k, v in result["versions"].items()) + f"; {result['cpu']}"]
    if pages := result.get("pages"):
        names = list(pages)
        lines += ["", f"{'macro F1, gold pages':24}" + "".join(f"{x:>14}" for x in names)]
        lines += [f"{layout:24}" + "".join(f"{pages[x][layout]:14.3f}" for x in names) for layout in pages["upslope"]]
    for name, packages in result.get("docs", {}).items():
        faces = packages["all"]
        lines += ["", f"{'kept by ' + name:32}" + "".join(f"{x:>22}" for x in faces)]
        for package, found in packages.items():
            cells = (f"{a:>8} / {b:<5} {a / b:.3f}" if b else "-" for a, b in found.values())
            lines.append(f"{package:32}" + "".join(f"{x:>22}" for x in cells))
    for name, rows in result.get("speed", {}).items():
        lines += ["", f"{'one core, ' + name:32}{'pages/s':>10}{'MB/s':>8}   their time / our time (min-max)"]
        for x, row in rows.items():
            ratio = f"{row['ratio']:.2f} ({row['ratio min']:.2f}-{row['ratio max']:.2f})"
            lines.append(f"{x:32}{row['pages/s']:10.0f}{row['MB/s']:8.1f}   {ratio}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit code 2 for a usage error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", help="folder of Debian packages (UPSLOPE_GOLD, else ~/.cache/upslope/gold)")
    parser.add_argument("--cap", type=int, default=60, help="documentation pages per package")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="pages,docs,speed")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    only = given.only.split(",")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    names = installed(list(CONTENDERS))
    result: dict[str, Any] = {
        "versions": {"python": platform.python_version(), **{x: version(x) for x in (*names, "selectolax")}},
        "cpu": cpu(),
    }
    if "pages" in only:
        result["pages"] = shingle_scores(names)
    if "docs" in only:
        try:
            result["docs"] = kept(cache_folder(given.cache), installed(list(DOCS)), given.cap)
        except UsageError as error:
            print(error, file=sys.stderr)
            return 2
    if "speed" in only:
        gold = [decoded(f.read_bytes()) for f in sorted((PAGES / "html").glob("*.html"))]
        crawl = crawl_pages()
        result["speed"] = {
            f"{len(crawl)} pages of the crawl": speed(crawl, names, given.rounds),
            f"{len(gold)} gold pages": speed(gold, names, given.rounds),
        }
    print(json.dumps(result, indent=1) if given.json else render(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
