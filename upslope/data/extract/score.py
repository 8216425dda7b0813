"""How well an extractor finds the body of an article: F1 of word shingles against gold bodies, page by page.

A folder holds `ground-truth.json` (id → {"articleBody": text, "url": address}) and `html/ID.html` or `html/ID.html.gz`. Tokens are runs of
word characters in lower case, and single characters of Chinese, Japanese and Korean, which write no spaces. With M(x) the multiset of the
shingles of N tokens of a text (the whole text if it has fewer) and |·| counting repeats,

    precision = |M(found) ∩ M(gold)| / |M(found)|,   recall = |M(found) ∩ M(gold)| / |M(gold)|,   F1 = their harmonic mean;

a page where both are empty scores 1. Reported are means over pages (macro averages) and a bootstrap interval of the mean F1.
What an extractor gives is compared without Markdown's markup (`plain`), since gold bodies are plain text.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from upslope.config import UsageError

N = 4
CJK = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
TOKEN = re.compile(rf"[{CJK}]|[^\W{CJK}]+")
LINES = re.compile(r"^ *(?:> *)*(?:`{3,}[^\n`]*|\$\$|\|(?: *:?-+:? *\|)+) *$", re.M)
LEADS = re.compile(r"^(?: *> ?)*(?: *(?:[-*+]|\d+\.) (?= *\S))*(?:#{1,6} )?", re.M)
MARKS = re.compile(r"(?<!\\)[|`$]")
RESAMPLES, SEED = 2000, 1

Extractor = Callable[[str], str]
"""HTML → the text of the page's main content."""


@dataclass(frozen=True)
class PageScore:
    """Precision, recall and F1 of one page."""

    id: str
    url: str
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Score:
    """Macro means over pages; `interval`: 95 % of bootstrap means of F1; `pages`: the worst F1 first."""

    precision: float
    recall: float
    f1: float
    interval: tuple[float, float]
    pages: tuple[PageScore, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def render(self, worst: int = 10) -> str:
        """A line of means, and a table of the worst pages."""
        low, high = self.interval
        head = (
            f"{len(self.pages)} pages: F1 {self.f1:.3f} [{low:.3f}, {high:.3f}], precision {self.precision:.3f}, recall {self.recall:.3f}"
        )
        rows = [f"{p.f1:6.3f} {p.precision:9.3f} {p.recall:6.3f}  {p.id}  {p.url}".rstrip() for p in self.pages[:worst]]
        return "\n".join([head, "", f"{'F1':>6} {'precision':>9} {'recall':>6}  worst pages", *rows])


def plain(markdown: str) -> str:
    """Markdown without its markup: fences, table rules and pipes, list markers, quote marks, heading signs, backticks and dollars."""
    return MARKS.sub(" ", LEADS.sub("", LINES.sub("", markdown))).replace("\\|", "|")


def shingles(text: str) -> Counter[tuple[str, ...]]:
    """The multiset of N-token shingles of a text; of all its tokens, if there are fewer than N; empty without tokens."""
    tokens = TOKEN.findall(text.lower())
    if len(tokens) < N:
        return Counter([tuple(tokens)] if tokens else [])
    return Counter(zip(*(tokens[i:] for i in range(N))))


def score(found: str, gold: str) -> tuple[float, float, float]:
    """(precision, recall, F1) of a text against the gold."""
    a, b = shingles(found), shingles(gold)
    if not a and not b:
        return 1.0, 1.0, 1.0
    both = (a & b).total()
    precision = both / a.total() if a else 0.0
    recall = both / b.total() if b else 0.0
    return precision, recall, 2 * both / (a.total() + b.total())


def score_folder(folder: Path, extractor: Extractor | None = None) -> Score:
    """Scores an extractor (this package's, if none is given) on a folder of pages with gold bodies. Raises UsageError for bad folders."""
    extractor = extractor or extractors()["upslope"]
    gold = _gold(folder)
    pages = sorted(
        (
            PageScore(name, str(page.get("url") or ""), *score(plain(extractor(_html(folder, name))), page["articleBody"]))
            for name, page in gold.items()
        ),
        key=lambda p: (p.f1, p.id),
    )
    f1 = [p.f1 for p in pages]
    n = len(f1)
    rng = random.Random(SEED)
    means = sorted(sum(rng.choices(f1, k=n)) / n for _ in range(RESAMPLES))
    interval = means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES) - 1]
    return Score(sum(p.precision for p in pages) / n, sum(p.recall for p in pages) / n, sum(f1) / n, interval, tuple(pages))


class _Extractors(dict[str, Extractor]):
    def __missing__(self, name: str) -> Extractor:
        raise UsageError(f"no extractor {name!r}: there are {', '.join(self)}\nway out: name one of them")


def extractors() -> dict[str, Extractor]:
    """Name → extractor; a UsageError for other names. Peers are imported when they are called; a UsageError names a missing package."""
    return _Extractors(upslope=_upslope, resiliparse=_resiliparse, trafilatura=_trafilatura)


def _upslope(html: str) -> str:
    """The body without the heading that names the page: gold bodies leave titles out."""
    from upslope.data.extract.html import extract

    return extract(html, title=False).text


def _resiliparse(html: str) -> str:
    try:
        from resiliparse.extract.html2text import extract_plain_text
    except ImportError as e:
        raise _missing("resiliparse") from e
    return str(extract_plain_text(html, main_content=True))


def _trafilatura(html: str) -> str:
    try:
        import trafilatura
    except ImportError as e:
        raise _missing("trafilatura") from e
    return trafilatura.extract(html, include_comments=False) or ""


def _missing(package: str) -> UsageError:
    return UsageError(f"the extractor {package} needs a package that is not installed: {package}\nway out: pip install {package}")


def _gold(folder: Path) -> dict[str, dict[str, Any]]:
    file = folder / "ground-truth.json"
    if not file.is_file():
        raise UsageError(
            f"no gold file: {file}\nA folder to score on holds it, and html/ID.html or html/ID.html.gz.\nway out: name such a folder"
        )
    try:
        gold = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as e:
        raise UsageError(f'{file} is not JSON: {e}\nway out: write it as an object: id → {{"articleBody": text, "url": address}}') from e
    if not isinstance(gold, dict) or not gold:
        raise UsageError(f'{file} holds no pages\nway out: write it as an object: id → {{"articleBody": text, "url": address}}')
    for name, page in gold.items():
        if not isinstance(page, dict) or not isinstance(page.get("articleBody"), str):
            raise UsageError(
                f"{file}: page {name!r} has no text `articleBody`\nway out: give it one; the empty text says that there is no body"
            )
    return gold


def _html(folder: Path, name: str) -> str:
    from upslope.data.extract.charset import decode

    plain_file, packed = folder / "html" / f"{name}.html", folder / "html" / f"{name}.html.gz"
    try:
        body = plain_file.read_bytes() if plain_file.is_file() else gzip.decompress(packed.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"no page {plain_file} (nor {packed.name})\nway out: add it, or take {name!r} out of ground-truth.json") from None
    except (OSError, EOFError) as e:
        raise UsageError(f"{packed} cannot be read: {e}\nway out: pack it again with gzip") from e
    return decode(body).text
