"""Builds the crawl that the package ships: real HTML pages of Debian documentation packages, in one WARC file.

    python scripts/build_crawl.py                     upslope/assets/crawl.warc.gz, about 12 MB; licences that allow redistribution
    python scripts/build_crawl.py --big               ~/.cache/upslope/crawl-big/crawl.warc.gz; also GPL pages, not for redistribution

Pages are real and unchanged; URLs and dates are synthetic (hosts end in `.example`). Which pages are taken is a function of the
packages alone (hash order of names, a cap per slice), so equal packages give equal bytes. Needs Debian or Ubuntu with the bookworm archive
(`apt-get download`, `dpkg-deb`); no package is installed. Beside the WARC it writes crawl.json (packages and counts), planted.json
(pages with known evaluation items, copies with known originals) and LICENSES.md. docs/howto/crawl.md tells the whole story.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import html
import json
import re
import struct
import subprocess
import sys
import tempfile
import uuid
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from difflib import SequenceMatcher
from itertools import islice
from pathlib import Path

from upslope.config import UsageError
from upslope.machine.files import atomic, digest_file, read_json, write_json, write_text

ASSETS = Path(__file__).resolve().parent.parent / "upslope" / "assets"
CACHE = Path.home() / ".cache" / "upslope"
ALLOWED = ("Apache-2.0", "BSD-3-Clause", "MPL-2.0", "PSF-2.0", "PostgreSQL", "public-domain")
COPYLEFT = re.compile(r"\bA?L?GPL|\bGFDL|CC-BY-(SA|NC)", re.I)
SMALL, LARGE = 2_000, 400_000  # bytes: below are redirects and stubs, above are indices and change logs
ALL = 1_000_000
MIRROR = "https://mirror.planted.example/"
HEX = 8


@dataclass(frozen=True)
class Slice:
    """At most `cap` pages, in hash order, below the folder `under`, whose bytes match `where`; earlier slices choose first."""

    cap: int = ALL
    under: str = ""
    where: str = ""


@dataclass(frozen=True)
class Package:
    """A Debian package: `root` is the folder of its pages, `words` what its copyright statement must say, licence an SPDX name."""

    name: str
    root: str
    url: str
    licence: str
    words: str
    credit: str
    slices: tuple[Slice, ...] = (Slice(),)
    language: str = "en"
    folders: bool = False  # the first folder of a page's path names its language


_LIBREOFFICE = (
    "Copyright 2000, 2010 LibreOffice contributors and/or their affiliates. Some files incorporate work that was licensed to the Apache "
    "Software Foundation under Apache-2.0. Source form (XHP files): Debian source package `libreoffice`."
)


def _office(language: str, cap: int) -> Package:
    code, _, region = language.partition("-")
    root = f"usr/share/libreoffice/help/{code}{'-' + region.upper() if region else ''}"
    slices = (Slice(cap, under="text/"),)
    return Package(f"libreoffice-help-{language}", root, f"https://help.libreoffice.example/7.4/{language}/", "MPL-2.0",
                   r"^MPL-2\.0$", _LIBREOFFICE, slices, language)  # fmt: skip


_TEX = r"""class="math[^>]*>\s*\\[(\[]"""
_HTTPD = {"en": 120, "ko": 60, "ja": 40, "fr": 30, "tr": 30, "de": 20, "es": 20, "zh-cn": 15, "pt-br": 4, "ru": 2, "da": 1}
SHIPPED: tuple[Package, ...] = (
    Package("python3.11-doc", "usr/share/doc/python3.11/html", "https://docs.python.example/3/", "PSF-2.0",
            r"PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2",
            "Copyright 2001-2023 Python Software Foundation. Code in the documentation is also under the Zero-Clause BSD licence.",
            (Slice(160),)),
    Package("postgresql-doc-15", "usr/share/doc/postgresql-doc-15/html", "https://www.postgresql.example/docs/15/", "PostgreSQL",
            r"^PostgreSQL$", "Portions Copyright 1996-2026 PostgreSQL Global Development Group. "
            "Portions Copyright 1994 The Regents of the University of California.", (Slice(400),)),
    Package("sqlite3-doc", "usr/share/doc/sqlite3", "https://sqlite.example/docs/", "public-domain", r"^public-domain$",
            "Placed in the public domain by the SQLite contributors.", (Slice(320),)),
    Package("apache2-doc", "usr/share/doc/apache2-doc/manual", "https://httpd.apache.example/docs/2.4/", "Apache-2.0", r"^Apache-2\.0$",
            "Copyright The Apache Software Foundation. NOTICE: this product includes software developed at The Apache Software Foundation "
            "(https://www.apache.org/). Portions of this software were developed at the National Center for Supercomputing Applications "
            "(NCSA) at the University of Illinois at Urbana-Champaign.",
            tuple(Slice(cap, under=f"{name}/") for name, cap in _HTTPD.items()), folders=True),
    Package("python-sympy-doc", "usr/share/doc/python-sympy-doc/html", "https://docs.sympy.example/latest/", "BSD-3-Clause",
            r"^BSD-3-clause$", "Copyright 2006-2022 SymPy Development Team.", (Slice(35, where=r'class="math'), Slice(10))),
    Package("python-mpmath-doc", "usr/share/doc/python-mpmath-doc/html", "https://docs.mpmath.example/", "BSD-3-Clause", r"^BSD-3-clause$",
            "Copyright 2005-2021 Fredrik Johansson and mpmath contributors.", (Slice(36),)),
    Package("python-sklearn-doc", "usr/share/doc/python-sklearn-doc/html", "https://docs.sklearn.example/stable/", "BSD-3-Clause",
            r"^BSD-3-Clause$", "Copyright 2007-2019 The scikit-learn developers.", (Slice(60, where=_TEX), Slice(20))),
    *(_office(name, cap) for name, cap in {"de": 90, "es": 90, "fr": 75, "ja": 75, "ru": 75, "zh-cn": 75}.items()),
)  # fmt: skip


def _uncapped(package: Package) -> Package:
    return Package(package.name, package.root, package.url, package.licence, package.words, package.credit, (Slice(),), package.language,
                   package.folders)  # fmt: skip


BIG: tuple[Package, ...] = (
    *(_uncapped(p) for p in SHIPPED),
    *(_office(name, ALL) for name in ("it", "ko", "pt-br", "tr", "vi", "hi")),
    Package("debian-handbook", "usr/share/doc/debian-handbook/html", "https://handbook.debian.example/", "GPL-2.0-or-later",
            r"^GPL-2\.0\+ or CC-BY-SA-3\.0$", "Copyright Raphaël Hertzog and Roland Mas.", folders=True),
    Package("harden-doc", "usr/share/doc/harden-doc/html", "https://harden.debian.example/", "GPL-2.0-only", r"^GPL-2\.0$",
            "Copyright Javier Fernández-Sanguino Peña and others.", folders=True),
    Package("anarchism", "usr/share/doc/anarchism/html", "https://faq.anarchism.example/", "GPL-2.0-only", r"^GPL-2$",
            "Copyright 1995-2017 The Anarchist FAQ Editorial Collective."),
    Package("gap-doc", "usr/share/gap/doc", "https://docs.gap.example/", "GPL-2.0-or-later", r"Copyright: GPLv2 or later",
            "Copyright 1987-2022 by the GAP Group."),
    Package("maxima-doc", "usr/share/doc/maxima-doc/html", "https://maxima.example/docs/", "GPL-2.0-only",
            r"Maxima is under the GPL v2", "Copyright Bill Schelter and others."),
    Package("git-doc", "usr/share/doc/git-doc", "https://git.example/docs/", "GPL-2.0-only", r"^GPL-2$",
            "Copyright Linus Torvalds and others."),
)  # fmt: skip


@dataclass(frozen=True)
class Fetched:
    """A package at hand: its catalogue entry, Debian version, sha256 of the .deb and its text of copyright."""

    package: Package
    version: str
    sha256: str
    deb: Path
    copyright: str


@dataclass(frozen=True)
class Page:
    """One HTML file of a package; `path` is relative to the package's root, charset and language are what the page itself claims.

    The package's language stands in where a page claims none; some help pages are not translated and claim their language all the same.
    """

    source: Fetched
    file: Path
    path: str
    charset: str
    language: str

    @property
    def url(self) -> str:
        """Where the page pretends to have been fetched from."""
        return self.source.package.url + self.path

    @property
    def order(self) -> str:
        """Hash of the path without its language folder, so that translations of one page are taken together."""
        return _hash(self.path.split("/", 1)[1] if self.source.package.folders and "/" in self.path else self.path)

    def body(self) -> bytes:
        """The bytes as the package ships them."""
        return self.file.read_bytes()


@dataclass
class Record:
    """One response to write: `page` gives provenance and charset; `planted` names the item or copy when the body was made by us."""

    page: Page
    url: str
    body: bytes | None = None
    planted: str = ""
    facts: dict[str, str | int | float] = field(default_factory=dict)


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=HEX).hexdigest()


# --- packages and their licences -------------------------------------------------------------------------------------------------


def fetch(package: Package, debs: Path, shipped: bool) -> Fetched:
    """The .deb from the cache folder, downloaded with apt-get if it is not there; refused if its licence is not as claimed.

    Errors: UsageError if apt-get cannot find it, if the cache holds two versions, or if the licence differs (`check_licence`).
    """
    debs.mkdir(parents=True, exist_ok=True)
    found = sorted(debs.glob(f"{package.name}_*.deb"))
    if not found:
        done = subprocess.run(["apt-get", "download", package.name], cwd=debs, capture_output=True, text=True)
        found = sorted(debs.glob(f"{package.name}_*.deb"))
        if done.returncode or not found:
            raise UsageError(f"apt-get download {package.name} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}\n"
                             "way out: run `apt-get update` as root on Debian 12, or put the .deb into the cache folder")  # fmt: skip
    if len(found) > 1:
        raise UsageError(f"{len(found)} versions of {package.name} in {debs}\nway out: keep one of {', '.join(p.name for p in found)}")
    deb = found[0]
    version = subprocess.run(["dpkg-deb", "-f", str(deb), "Version"], check=True, capture_output=True, text=True).stdout.strip()
    tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(deb)], check=True, capture_output=True).stdout
    name = f"./usr/share/doc/{package.name}/copyright"
    text = subprocess.run(["tar", "-xO", "-f", "-", name], input=tar, check=True, capture_output=True).stdout.decode("utf-8", "replace")
    check_licence(package, text, shipped)
    return Fetched(package, version, hashlib.sha256(deb.read_bytes()).hexdigest(), deb, text)


def statement(text: str) -> str:
    """The licence of a package's files: the short name in the `Files: *` paragraph of a machine-readable copyright file, else all of it."""
    paragraph = re.search(r"^Files: ?\*[ \t]*\n(?:(?!^$).*\n)*?License: *(.+)$", text, re.M)
    return paragraph.group(1).strip() if paragraph else text


def check_licence(package: Package, text: str, shipped: bool) -> None:
    """UsageError unless the copyright file says `package.words`, and, for the shipped set, the licence is one that we may pass on."""
    claim = statement(text)
    if not re.search(package.words, claim):
        raise UsageError(f"{package.name}: copyright file says {claim[:60]!r}, expected {package.words!r} for {package.licence}\n"
                         "way out: read usr/share/doc/*/copyright in the .deb and correct the catalogue, or drop the package")  # fmt: skip
    if shipped and (package.licence not in ALLOWED or (claim != text and COPYLEFT.search(claim))):
        raise UsageError(f"{package.name}: {package.licence} may not go into the shipped crawl\nway out: list it under BIG only")


def licence_text(source: Fetched) -> str:
    """The full text that the licence asks to be passed on, from the copyright file or from /usr/share/common-licenses."""
    licence, text = source.package.licence, source.copyright
    common = Path("/usr/share/common-licenses") / licence
    if common.is_file():
        return common.read_text(encoding="utf-8").strip("\n")
    if licence == "PSF-2.0":
        start, end = text.index("A. HISTORY OF THE SOFTWARE"), text.index("Licenses and Acknowledgements for Incorporated Software")
        return text[start:end].strip()
    own = re.search(rf"^License: *{re.escape(licence)}[ \t]*\n((?:[ \t].*\n?)+)", text, re.M | re.I)
    lines = own.group(1).splitlines() if own else [" See the copyright file of the Debian package."]
    return "\n".join("" if line.strip() == "." else line[1:] for line in lines).strip()


# --- pages -----------------------------------------------------------------------------------------------------------------------


def charset_of(body: bytes) -> str | None:
    """The charset that a page declares (meta or XML declaration; UTF-8 if none) if its bytes decode strictly, else None."""
    declared = re.search(rb"""(?:charset|<\?xml[^>]*encoding)\s*=\s*["']?\s*([A-Za-z0-9_-]+)""", body[:2_048], re.I)
    name = declared.group(1).decode() if declared else "utf-8"
    try:
        body.decode(name)
    except (UnicodeDecodeError, LookupError):
        return None
    return name


def language_of(body: bytes) -> str | None:
    """The `lang` attribute of a page's root element in lower case, None if there is none."""
    found = re.search(rb"""<html\b[^>]*?\blang\s*=\s*["']?([A-Za-z-]+)""", body[:2_048], re.I)
    return found.group(1).decode().lower() if found else None


def pages_of(source: Fetched, folder: Path, counts: Counter[str]) -> list[Page]:
    """All usable pages below `folder` in hash order; `counts` says what was left out and why."""
    root = folder / source.package.root
    pages = []
    for file in sorted(root.rglob("*.html")):
        if file.is_symlink() or any(parent.is_symlink() for parent in file.parents if parent.is_relative_to(root)):
            counts["symlink"] += 1
        elif not file.is_file():
            counts["folder"] += 1
        elif not SMALL <= file.stat().st_size <= LARGE:
            counts["too small" if file.stat().st_size < SMALL else "too large"] += 1
        elif (charset := charset_of(body := file.read_bytes())) is None:
            counts["bytes do not decode"] += 1
        else:
            language = language_of(body) or source.package.language
            pages.append(Page(source, file, file.relative_to(root).as_posix(), charset, language))
    if not pages:
        where = f"{source.package.name} {source.version}: no page below {source.package.root}"
        raise UsageError(f"{where}\nway out: correct the catalogue's root")
    return sorted(pages, key=lambda p: (p.order, p.path))


def sample(pages: Sequence[Page], slices: Sequence[Slice]) -> list[Page]:
    """The pages that the slices take, each page once."""
    taken: dict[str, Page] = {}
    for part in slices:
        pattern, left = re.compile(part.where.encode()), part.cap
        for page in pages:
            if left == 0:
                break
            if page.path not in taken and page.path.startswith(part.under) and (not part.where or pattern.search(page.body())):
                taken[page.path] = page
                left -= 1
    return list(taken.values())


# --- planted pages ---------------------------------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """Lower-cased runs of letters and digits."""
    return re.findall(r"\w+", text.lower())


def visible(body: bytes, charset: str) -> list[str]:
    """Words of a page outside tags, scripts and styles; crude, used to describe copies."""
    text = re.sub(r"(?is)<(script|style)\b.*?</\1>|<!--.*?-->|<[^>]+>", " ", body.decode(charset))
    return words(html.unescape(text))


def shingles(tokens: Sequence[str], n: int = 5) -> set[tuple[str, ...]]:
    """The set of n consecutive words."""
    return {tuple(tokens[i : i + n]) for i in range(max(1, len(tokens) - n + 1))}


def _chunks(tokens: Sequence[str], size: int) -> list[str]:
    return [html.escape(" ".join(tokens[i : i + size]), quote=False) for i in range(0, len(tokens), size)]


def block(text: str, style: str) -> str:
    """HTML of one planted text: a paragraph, or split over lines, paragraphs, inline elements or list items."""
    tokens = text.split()
    third = -(-len(tokens) // 3)
    if style == "lines":
        return "<p>" + "<br>\n".join(_chunks(tokens, 7)) + "</p>"
    if style == "paragraphs":
        return "\n".join(f"<p>{c}</p>" for c in _chunks(tokens, third))
    if style == "inline":
        return "<p>" + " ".join(f"<{t}>{c}</{t}>" for t, c in zip(("em", "span", "b", "span") * len(tokens), _chunks(tokens, 4))) + "</p>"
    if style == "list":
        return "<ul>\n" + "\n".join(f"<li>{c}</li>" for c in _chunks(tokens, third)) + "\n</ul>"
    return f"<p>{html.escape(text, quote=False)}</p>"


_CLOSED = ("table", "pre", "nav", "aside", "footer", "header", "ul", "ol", "dl", "form", "blockquote", "script")


_TAIL = re.compile(r"""class="(?:sphinxsidebar|navfooter|bottomlang)|id="(?:footer|quickview)""")


def places(page: str) -> list[int]:
    """Offsets just behind a paragraph of at least 60 characters that lies in no table, list, code block, side bar or footer."""
    end = max((m.start() for m in _TAIL.finditer(page) if m.start() > len(page) // 2), default=len(page))
    found = []
    for match in re.finditer(r"<p(?:\s[^>]*)?>((?:(?!<p[\s>]).)*?)</p>", page, re.I | re.S):
        before = page[: match.end()]
        if (
            match.end() <= end
            and len(re.sub(r"<[^>]+>", "", match.group(1)).strip()) >= 60
            and all(len(re.findall(rf"<{t}\b", before, re.I)) == len(re.findall(rf"</{t}\s*>", before, re.I)) for t in _CLOSED)
        ):
            found.append(match.end())
    return found


def plant(page: Page, item: dict[str, str]) -> bytes:
    """A copy of the page with the item's planted text as extra text in its middle, marked by a comment."""
    text = page.body().decode(page.charset)
    spots = places(text)
    at = spots[len(spots) // 2]
    note = f"<!-- {item['id']}: text added by the upslope project, not part of the original page -->"
    return (text[:at] + f"\n{block(item['planted'], item['split'])}\n{note}\n" + text[at:]).encode(page.charset)


def edited_copy(page: Page, every: int) -> bytes:
    """A copy of the page that lacks every `every`-th word of its running text and carries a mirror's heading and footing."""
    text, counter = page.body().decode(page.charset), 0

    def thin(match: re.Match[str]) -> str:
        nonlocal counter
        counter += 1
        return "" if counter % every == 0 else match.group(0)

    pieces = re.split(r"(?is)(<(?:script|style|pre|title)\b.*?</(?:script|style|pre|title)>|<!--.*?-->|<[^>]+>)", text)
    body = "".join(p if p.startswith("<") else re.sub(r"(?<![&\w])\w+(?![\w;])", thin, p) for p in pieces)
    head = "\n<!-- changed by the upslope project: words removed, two lines added -->\n<div>Mirror of a documentation page</div>\n"
    body = re.sub(r"(<body\b[^>]*>)", lambda m: m.group(1) + head, body, count=1, flags=re.I)
    foot = "\n<div>This copy may be out of date.</div>\n"
    return re.sub(r"(</body>)", lambda m: foot + m.group(1), body, count=1, flags=re.I).encode(page.charset)


def hosts_for_items(pages: Sequence[Page], count: int) -> list[Page]:
    """`count` English pages of moderate size with room for a paragraph, round robin over the packages; they leave the normal sample."""
    packages: dict[str, list[Page]] = {}
    for page in pages:
        packages.setdefault(page.source.package.name, []).append(page)
    queues: dict[str, Iterator[Page]] = {name: iter(own) for name, own in packages.items()}
    chosen: list[Page] = []
    while queues and len(chosen) < count:
        for name in list(queues):
            sized = (p for p in queues[name] if 6_000 <= p.file.stat().st_size <= 60_000)
            fit = next((p for p in sized if len(places(p.body().decode(p.charset))) >= 4), None)
            if fit is None:
                del queues[name]
            elif len(chosen) < count:
                chosen.append(fit)
    return chosen


def planted_items(pages: Sequence[Page], items: Sequence[dict[str, str]]) -> list[Record]:
    """One record per evaluation item; `facts` describe it for planted.json."""
    records = []
    for page, item in zip(hosts_for_items(pages, len(items)), items, strict=True):
        a, b = words(item["text"]), words(item["planted"])
        run = SequenceMatcher(None, a, b, autojunk=False).find_longest_match().size
        url = f"{MIRROR}{item['id']}.html"
        facts: dict[str, str | int | float] = {**item, "url": url, "base": page.url, "words": len(a), "longest_run": run}
        records.append(Record(page, url, plant(page, item), item["id"], facts))
    return records


def copies(pages: Sequence[Page], exact: int = 10, every: Sequence[int] = (200, 200, 120, 120, 80, 80, 50, 50, 30, 30)) -> list[Record]:
    """Exact and edited copies of taken English pages of 5-60 kB; each edited copy states its Jaccard similarity to the original."""
    sized = [p for p in pages if p.language[:2] == "en" and 5_000 <= p.file.stat().st_size <= 60_000]
    wordy = (p for p in sorted(sized, key=lambda p: _hash("copy " + p.url)) if len(visible(p.body(), p.charset)) >= 300)
    records = []
    for i, page in enumerate(islice(wordy, exact + len(every))):
        step = every[i - exact] if i >= exact else 0
        body = edited_copy(page, step) if step else page.body()
        a, b = shingles(visible(page.body(), page.charset)), shingles(visible(body, page.charset))
        name = f"copy-{i + 1:02d}"
        facts: dict[str, str | int | float] = {"id": name, "how": "edited" if step else "exact", "of": page.url, "dropped_every": step}
        facts |= {"url": f"{MIRROR}{name}.html", "jaccard5": round(len(a & b) / len(a | b), 3)}
        records.append(Record(page, f"{MIRROR}{name}.html", body, name, facts))
    return records


# --- WARC ------------------------------------------------------------------------------------------------------------------------


def member(data: bytes) -> bytes:
    """One gzip member with a fixed header (no time, no name), so that equal data gives equal bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"
    return head + packer.compress(data) + packer.flush() + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)


def _record(headers: Sequence[tuple[str, str]], content: bytes) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in (*headers, ("Content-Length", str(len(content)))))
    return member(b"WARC/1.1\r\n" + lines.encode() + b"\r\n" + content + b"\r\n\r\n")


def _sha1(data: bytes) -> str:
    return "sha1:" + base64.b32encode(hashlib.sha1(data).digest()).decode()


def _uuid(*parts: bytes) -> str:
    return f"<urn:uuid:{uuid.UUID(bytes=hashlib.sha256(b'|'.join(parts)).digest()[:16], version=5)}>"


def _date(url: str) -> str:
    moment = datetime(2024, 6, 1, tzinfo=UTC) + timedelta(seconds=int(_hash("date " + url), 16) % (30 * 86_400))
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def warcinfo(shipped: bool) -> tuple[bytes, str]:
    """The leading record and its id: says what the file is and that URLs and dates are synthetic."""
    fields = {
        "software": "upslope scripts/build_crawl.py",
        "format": "WARC File Format 1.1",
        "description": "Real HTML pages of Debian documentation packages. URLs, hosts and dates are SYNTHETIC: nothing was crawled. "
        f"Pages under {MIRROR} were altered or copied on purpose (planted.json). "
        "Provenance of each page: WARC-Upslope-Package, -Version, -Licence, -Language, -Planted.",
        "isPartOf": "upslope shipped crawl" if shipped else "upslope big crawl; holds GPL pages, pass it on only under their terms",
    }
    content = "".join(f"{k}: {v}\r\n" for k, v in fields.items()).encode()
    name = _uuid(b"warcinfo", content)
    headers = (("WARC-Type", "warcinfo"), ("WARC-Record-ID", name), ("WARC-Date", "2024-06-01T00:00:00Z"),
               ("Content-Type", "application/warc-fields"), ("WARC-Block-Digest", _sha1(content)))  # fmt: skip
    return _record(headers, content), name


def response(record: Record, info: str) -> tuple[bytes, int]:
    """A response record in one gzip member, and the number of HTML bytes in it."""
    body = record.page.body() if record.body is None else record.body
    source = record.page.source
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset={record.page.charset}\r\nContent-Length: {len(body)}\r\n\r\n"
    content = head.encode() + body
    headers = [("WARC-Type", "response"), ("WARC-Record-ID", _uuid(record.url.encode(), body)), ("WARC-Date", _date(record.url)),
               ("WARC-Target-URI", record.url), ("WARC-Warcinfo-ID", info), ("WARC-Payload-Digest", _sha1(body)),
               ("WARC-Block-Digest", _sha1(content)), ("Content-Type", "application/http; msgtype=response"),
               ("WARC-Identified-Payload-Type", "text/html"), ("WARC-Upslope-Package", source.package.name),
               ("WARC-Upslope-Version", source.version), ("WARC-Upslope-Licence", source.package.licence),
               ("WARC-Upslope-Language", record.page.language)]  # fmt: skip
    if record.planted:
        headers.append(("WARC-Upslope-Planted", record.planted))
    return _record(headers, content), len(body)


# --- the whole -------------------------------------------------------------------------------------------------------------------


def licences_page(sources: Sequence[Fetched]) -> str:
    """LICENSES.md: a table of packages, the credits, and every licence text once (BSD texts differ in the names they hold)."""
    lines = [
        "# Licences of the pages in crawl.warc.gz", "",
        "The pages come from the Debian packages below and keep their own licences; the licence of upslope does not cover them. They are",
        f"unchanged, except those under `{MIRROR}`, where a paragraph was added or words were removed, and a comment in the",
        "page says so. URLs and dates in the file are synthetic. Names of projects are used only to say where pages come from.", "",
        "| package | version | licence | sha256 of the .deb |", "|---|---|---|---|",
        *(f"| {s.package.name} | {s.version} | {s.package.licence} | `{s.sha256}` |" for s in sources), "",
        "Sources: `apt-get source` of the packages above, or https://sources.debian.org/.", "", "## Credits and notices", "",
    ]  # fmt: skip
    credits = dict.fromkeys((s.package.licence, s.package.credit) for s in sources)
    lines += [f"- {licence}: {credit}" for licence, credit in credits]
    texts: dict[tuple[str, str], list[str]] = {}
    for source in sources:
        texts.setdefault((source.package.licence, licence_text(source)), []).append(source.package.name)
    for (licence, text), names in sorted(texts.items()):
        lines += ["", f"## {licence} ({', '.join(names)})", "", "```text"]
        lines += [*(line.rstrip().replace("\f", "") for line in text.splitlines()), "```"]
    return "\n".join(lines) + "\n"


def build(packages: Sequence[Package], out: Path, debs: Path, items: Sequence[dict[str, str]], shipped: bool) -> dict[str, object]:
    """Writes the WARC at `out` and its three companions beside it; returns the manifest (crawl.json).

    Errors: UsageError if a package is missing or its licence is not the one in the catalogue.
    """
    sources = [fetch(p, debs, shipped) for p in packages]
    with tempfile.TemporaryDirectory(prefix="crawl-", dir=debs) as scratch:
        found: dict[str, list[Page]] = {}
        left: dict[str, Counter[str]] = {}
        for source in sources:
            name = source.package.name
            subprocess.run(["dpkg-deb", "-x", str(source.deb), str(Path(scratch) / name)], check=True)
            left[name] = Counter()
            found[name] = pages_of(source, Path(scratch) / name, left[name])
        english = [p for pages in found.values() for p in pages if p.language[:2] == "en"]
        planted = planted_items(english, items)
        used = {r.page.url for r in planted}
        taken: list[Page] = []
        for source in sources:
            free = [p for p in found[source.package.name] if p.url not in used]
            chosen = sample(free, source.package.slices)
            left[source.package.name]["over the cap"] = len(free) - len(chosen)
            taken += chosen
        twins = copies(taken)
        records = sorted([*(Record(p, p.url) for p in taken), *planted, *twins], key=lambda r: (_hash(r.url), r.url))
        pages, size, languages = Counter[str](), Counter[str](), Counter[str]()
        with atomic(out) as temporary, open(temporary, "wb") as f:
            first, info = warcinfo(shipped)
            f.write(first)
            for record in records:
                data, length = response(record, info)
                f.write(data)
                pages[record.page.source.package.name] += 1
                size[record.page.source.package.name] += length
                languages[record.page.language] += 1
    manifest: dict[str, object] = {
        "about": "Real pages; URLs and dates are synthetic. Languages are the ones that pages or packages claim.",
        "redistributable": shipped, "records": len(records), "html_bytes": size.total(), "warc_bytes": out.stat().st_size,
        "warc_blake2b": digest_file(out), "languages": dict(languages), "planted": len(planted), "copies": len(twins),
        "packages": [{"name": s.package.name, "version": s.version, "licence": s.package.licence, "deb_sha256": s.sha256,
                      "pages": pages[s.package.name], "html_bytes": size[s.package.name],
                      "left_out": {k: v for k, v in left[s.package.name].items() if v}} for s in sources],
    }  # fmt: skip
    write_json(out.parent / "crawl.json", manifest)
    write_json(out.parent / "planted.json", {"about": PLANTED, "items": [r.facts for r in planted], "duplicates": [r.facts for r in twins]})
    write_text(out.parent / "LICENSES.md", licences_page(sources))
    return manifest


PLANTED = (
    "Evaluation items hidden in pages of the crawl, and copies of its pages. `text` is the item, `planted` what the page at `url` says, "
    "`longest_run` how many consecutive words both share, `base` the page it was put into (not in the crawl itself). `id`, `how`, `text`, "
    "`planted`, `split` and `answer` are written by hand; scripts/build_crawl.py fills in the rest."
)
AUTHORED = ("id", "how", "text", "planted", "split", "answer")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit code 2 for a usage error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--big", action="store_true", help="all pages of more packages, GPL ones too; not for redistribution")
    parser.add_argument("--out", type=Path, help="the WARC to write; crawl.json, planted.json and LICENSES.md go beside it")
    parser.add_argument("--cache", type=Path, default=CACHE / "crawl-debs", help="folder of .deb files, filled as needed")
    given = parser.parse_args(arguments)
    out = given.out or (CACHE / "crawl-big" if given.big else ASSETS) / "crawl.warc.gz"
    items = [{k: item[k] for k in AUTHORED} for item in read_json(ASSETS / "planted.json")["items"]]
    try:
        manifest = build(BIG if given.big else SHIPPED, out, given.cache, items, shipped=not given.big)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps({k: v for k, v in manifest.items() if k != "packages"}, indent=1, sort_keys=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
