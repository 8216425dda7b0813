"""The shipped crawl is what docs/howto/crawl.md says, and scripts/build_crawl.py makes it the same way every time."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fastwarc.warc import ArchiveIterator, WarcRecordType
from selectolax.lexbor import LexborHTMLParser

from upslope.config import UsageError
from upslope.machine.files import digest_file

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "upslope" / "assets"
ALLOWED = {"Apache-2.0", "BSD-3-Clause", "MPL-2.0", "PSF-2.0", "PostgreSQL", "public-domain"}
HOME = re.compile(r"(?<![\w.])/(?:home|root|Users|work|tmp|var)/")


@dataclass(frozen=True)
class Seen:
    url: str
    headers: dict[str, str]
    charset: str
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode(self.charset)


@pytest.fixture(scope="module")
def seen() -> list[Seen]:
    out = []
    with open(ASSETS / "crawl.warc.gz", "rb") as f:
        for record in ArchiveIterator(f, record_types=WarcRecordType.response, parse_http=True):
            kind = record.http_headers["Content-Type"]
            headers = dict(record.headers.items())
            out.append(Seen(headers["WARC-Target-URI"], headers, kind.partition("charset=")[2], record.reader.read()))
    return out


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return json.loads((ASSETS / "crawl.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def planted() -> dict[str, Any]:
    return json.loads((ASSETS / "planted.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_crawl", ROOT / "scripts" / "build_crawl.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_crawl"] = module
    spec.loader.exec_module(module)
    return module


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def test_it_leads_with_a_record_that_says_what_is_synthetic() -> None:
    with open(ASSETS / "crawl.warc.gz", "rb") as f:
        first = next(iter(ArchiveIterator(f, parse_http=False)))
        assert first.record_type == WarcRecordType.warcinfo
        assert "SYNTHETIC" in first.reader.read().decode()


def test_every_record_keeps_its_digest() -> None:
    with open(ASSETS / "crawl.warc.gz", "rb") as f:
        kept = [r.verify_block_digest(consume=True) for r in ArchiveIterator(f, parse_http=False)]
    assert len(kept) > 1_500
    assert all(kept)


def test_size_and_counts_are_the_manifest_s(seen: list[Seen], manifest: dict[str, Any]) -> None:
    size = (ASSETS / "crawl.warc.gz").stat().st_size
    assert 8_000_000 <= size <= 12_000_000
    assert size == manifest["warc_bytes"]
    assert digest_file(ASSETS / "crawl.warc.gz") == manifest["warc_blake2b"]
    assert len(seen) == manifest["records"] >= 1_500
    assert len({s.url for s in seen}) == len(seen)
    assert len({s.headers["WARC-Record-ID"] for s in seen}) == len(seen)
    pages = Counter(s.headers["WARC-Upslope-Package"] for s in seen)
    assert pages == {p["name"]: p["pages"] for p in manifest["packages"]}
    assert sum(len(s.body) for s in seen) == manifest["html_bytes"]
    assert all(2_000 <= len(s.body) <= 405_000 for s in seen)


def test_every_page_names_package_version_and_a_licence_that_allows_passing_it_on(seen: list[Seen], manifest: dict[str, Any]) -> None:
    known = {(p["name"], p["version"], p["licence"]) for p in manifest["packages"]}
    found = {tuple(s.headers[f"WARC-Upslope-{k}"] for k in ("Package", "Version", "Licence")) for s in seen}
    assert found == known
    assert {licence for _, _, licence in found} <= ALLOWED
    assert manifest["redistributable"] is True
    notes = (ASSETS / "LICENSES.md").read_text(encoding="utf-8")
    for package in manifest["packages"]:
        assert f"| {package['name']} | {package['version']} | {package['licence']} | `{package['deb_sha256']}` |" in notes
    assert "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION" in notes
    assert "Mozilla Public License Version 2.0" in notes
    assert "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2" in notes
    assert "UNIVERSITY OF CALIFORNIA" in notes
    bsd = [p["name"] for p in manifest["packages"] if p["licence"] == "BSD-3-Clause"]
    assert notes.count("Redistribution and use in source and binary forms") == len(bsd) == 3


def test_bytes_decode_strictly_as_the_charset_they_are_served_with(seen: list[Seen]) -> None:
    charsets = Counter(s.charset.lower() for s in seen if s.text)
    assert charsets["euc-kr"] >= 50
    assert charsets["iso-8859-1"] >= 30
    assert sum(charsets.values()) == len(seen)
    foreign = [s for s in seen if s.charset.lower() == "euc-kr"]
    with pytest.raises(UnicodeDecodeError):
        b"".join(s.body for s in foreign).decode("utf-8")


def test_at_least_five_languages_besides_english_are_claimed_and_are_real(seen: list[Seen]) -> None:
    script_of = {"de": r"\b(und|nicht|wird)\b", "fr": r"\b(les|une|pour)\b", "es": r"\b(los|una|para)\b", "ja": r"[\u3040-\u30ff]{3}",
                 "ru": r"[\u0430-\u044f]{4}", "zh-cn": r"[\u4e00-\u9fff]{4}", "ko": r"[\uac00-\ud7a3]{2}"}  # fmt: skip
    claimed: Counter[str] = Counter()
    real: Counter[str] = Counter()
    for s in seen:
        language = s.headers["WARC-Upslope-Language"]
        claimed[language] += 1
        if language in script_of and len(re.findall(script_of[language], re.sub(r"<[^>]+>", " ", s.text))) >= 5:
            real[language] += 1
    assert 0.58 <= claimed["en"] / len(seen) <= 0.72
    assert sum(real[k] >= 60 for k in script_of) >= 5, real


def test_it_has_math_code_tables_and_natural_near_duplicates(seen: list[Seen]) -> None:
    assert sum(re.search(r'class="math[^>]*>\s*\\[(\[]', s.text) is not None for s in seen) >= 60  # TeX between MathJax delimiters
    assert sum(re.search(r'<img class="math"[^>]*alt="[^"]*\\', s.text) is not None for s in seen) >= 20  # TeX as the text of an image
    assert sum("<pre" in s.text for s in seen) >= 500
    assert sum("<table" in s.text for s in seen) >= 500
    parallel = Counter(s.url.split("/", 5)[-1] for s in seen if "help.libreoffice.example" in s.url)
    assert sum(n >= 5 for n in parallel.values()) >= 50


def test_planted_items_stand_where_they_are_said_to_stand(seen: list[Seen], planted: dict[str, Any]) -> None:
    pages = {s.url: s for s in seen}
    items = planted["items"]
    assert len(items) == len({i["id"] for i in items}) == 40
    assert Counter(i["how"] for i in items) == {"exact": 14, "edited": 14, "split": 12}
    for item in items:
        page = pages[item["url"]]
        assert page.headers["WARC-Upslope-Planted"] == item["id"]
        assert item["base"] not in pages, "the original would make the planted page a near-duplicate"
        body = LexborHTMLParser(page.text).body
        assert body is not None
        read = " ".join(words(body.text(separator=" ")))
        assert " ".join(words(item["planted"])) in read, item["id"]
        assert len(words(item["text"])) == item["words"] >= 30
        assert (item["planted"] == item["text"]) == (item["how"] != "edited")
        if item["how"] == "split":
            assert item["planted"] not in page.text
    elsewhere = b"\n".join(s.body for s in seen if "WARC-Upslope-Planted" not in s.headers)
    for item in items:
        assert item["text"][:40].encode() not in elsewhere
    assert sum(i["longest_run"] >= 20 for i in items) == 37
    assert sum(i["longest_run"] >= 13 for i in items) == 38


def test_planted_copies_copy_pages_that_are_in_the_crawl(seen: list[Seen], planted: dict[str, Any]) -> None:
    pages = {s.url: s for s in seen}
    copies = planted["duplicates"]
    assert Counter(c["how"] for c in copies) == {"exact": 10, "edited": 10}
    for copy in copies:
        same = pages[copy["url"]].body == pages[copy["of"]].body
        assert same == (copy["how"] == "exact")
        assert 0.6 < copy["jaccard5"] <= 1.0
    assert {s.headers["WARC-Upslope-Planted"] for s in seen if "WARC-Upslope-Planted" in s.headers} == {
        x["id"] for x in (*planted["items"], *copies)
    }


def test_hosts_are_reserved_names_and_no_path_of_a_machine_is_inside(seen: list[Seen]) -> None:
    assert all(re.fullmatch(r"https://[a-z.]+\.example/\S+", s.url) for s in seen)
    for s in seen:
        assert not any(HOME.search(v) or str(ROOT) in v for k, v in s.headers.items() if k != "WARC-Target-URI")
    for name in ("crawl.json", "planted.json", "LICENSES.md"):
        text = (ASSETS / name).read_text(encoding="utf-8")
        assert not HOME.search(text), name
        assert str(ROOT) not in text, name


def test_the_guide_tells_the_numbers_of_the_manifest(manifest: dict[str, Any], seen: list[Seen]) -> None:
    guide = (ROOT / "docs" / "howto" / "crawl.md").read_text(encoding="utf-8")
    assert f"{manifest['records']:,} real HTML pages" in guide
    assert f"{manifest['warc_bytes'] / 1e6:.1f} MB ({manifest['html_bytes'] / 1e6:.1f} MB of HTML" in guide
    for package in manifest["packages"]:
        if "libreoffice" not in package["name"]:
            assert re.search(rf"\| {re.escape(package['name'])} \| [^|]+ \| {package['pages']} \|", guide), package["name"]
    for language, count in manifest["languages"].items():
        assert count < 20 or f"{language} {count}" in guide, language


# --- the script ------------------------------------------------------------------------------------------------------------------

COPYRIGHT = "Format: x\n\nFiles: *\nCopyright: somebody\nLicense: {}\n\nFiles: debian/*\nLicense: GPL-2\n"
CONTROL = "Package: tiny-doc\nVersion: 1.0-1\nArchitecture: all\nMaintainer: A <a@b.example>\nDescription: tiny\n"


def package(script: ModuleType, licence: str = "BSD-3-Clause", words: str = "^BSD-3-clause$") -> Any:
    root = "usr/share/doc/tiny-doc/html"
    return script.Package("tiny-doc", root, "https://tiny.example/", licence, words, "Somebody.", (script.Slice(3),))


def test_a_licence_that_is_not_the_claimed_one_is_refused(script: ModuleType) -> None:
    script.check_licence(package(script), COPYRIGHT.format("BSD-3-clause"), shipped=True)
    with pytest.raises(UsageError, match="expected"):
        script.check_licence(package(script), COPYRIGHT.format("GPL-2+"), shipped=True)
    gpl = package(script, "GPL-2.0-only", "^GPL-2$")
    script.check_licence(gpl, COPYRIGHT.format("GPL-2"), shipped=False)
    with pytest.raises(UsageError, match="may not go into the shipped crawl"):
        script.check_licence(gpl, COPYRIGHT.format("GPL-2"), shipped=True)
    mixed = package(script, "BSD-3-Clause", "BSD")
    with pytest.raises(UsageError, match="may not go"):
        script.check_licence(mixed, COPYRIGHT.format("BSD-3-clause and GPL-2+"), shipped=True)


def test_the_catalogue_of_the_shipped_set_holds_allowed_licences_only(script: ModuleType) -> None:
    assert {p.licence for p in script.SHIPPED} <= ALLOWED
    assert any(p.licence not in ALLOWED for p in script.BIG)
    assert len({p.name for p in script.BIG}) == len(script.BIG)


@pytest.mark.parametrize(
    ("body", "charset"),
    [
        (b'<meta content="text/html; charset=EUC-KR">' + "한국".encode("euc_kr"), "EUC-KR"),
        (b'<?xml version="1.0" encoding="ISO-8859-1"?>\xe9', "ISO-8859-1"),
        ("é".encode(), "utf-8"),
        (b"\xe9", None),
        (b'<meta charset="no-such-charset">', None),
    ],
)
def test_charset_is_the_declared_one_if_the_bytes_agree(script: ModuleType, body: bytes, charset: str | None) -> None:
    assert script.charset_of(body) == charset


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb to make a package")
def test_a_build_repeats_to_the_byte_skips_links_and_counts_what_it_left_out(script: ModuleType, tmp_path: Path) -> None:
    tree, debs = tmp_path / "tree", tmp_path / "debs"
    pages = tree / "usr/share/doc/tiny-doc/html"
    pages.mkdir(parents=True)
    debs.mkdir()
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(CONTROL)
    notice = "\nLicense: BSD-3-clause\n Keep this notice.\n"
    (tree / "usr/share/doc/tiny-doc/copyright").write_text(COPYRIGHT.format("BSD-3-clause") + notice)
    sentence = "A paragraph with enough words in it to be taken for running text by anybody who reads it closely. "
    for i in range(6):
        inside = "".join(f"<p>{sentence * 3}{i}-{j}</p>\n" for j in range(25))
        (pages / f"page{i}.html").write_text(f'<html lang="en"><body>{inside}</body></html>')
    (pages / "small.html").write_text("<p>x</p>")
    (pages / "bad.html").write_bytes(b"\xff\xfe" * 2_000)
    (pages / "link.html").symlink_to("page0.html")
    made_by = ["dpkg-deb", "--root-owner-group", "-b", str(tree), str(debs / "tiny-doc_1.0-1_all.deb")]
    subprocess.run(made_by, check=True, capture_output=True)
    item = {"id": "planted-01", "how": "split", "text": "seven brown hens", "planted": "seven brown hens", "split": "lines", "answer": "7"}
    made = []
    for name in ("a", "b"):
        out = tmp_path / name / "crawl.warc.gz"
        manifest = script.build([package(script)], out, debs, [item], shipped=True)
        made.append({p.name: p.read_bytes() for p in sorted(out.parent.iterdir())})
    assert made[0] == made[1]
    assert sorted(made[0]) == ["LICENSES.md", "crawl.json", "crawl.warc.gz", "planted.json"]
    assert "Keep this notice." in made[0]["LICENSES.md"].decode()
    assert manifest["packages"][0]["left_out"] == {"symlink": 1, "too small": 1, "bytes do not decode": 1, "over the cap": 2}
    assert manifest["records"] == 3 + 1 + 3  # three pages under the cap, one planted page, and all three copied
    assert list(debs.iterdir()) == [debs / "tiny-doc_1.0-1_all.deb"]
