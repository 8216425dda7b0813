"""Ingest reads every format, and what it cannot read it says."""

from __future__ import annotations

import gzip
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.make import extracted, files_of, ingested, record, warc_gz
from upslope.config import Input, Source, UsageError
from upslope.data.artifacts import Pages
from upslope.data.readers import ReadFile
from upslope.machine.context import Context
from upslope.stages.extract import Extract
from upslope.stages.ingest import Ingest


def whys(pages: Pages) -> list[tuple[str, str]]:
    return [(r["record"].rpartition(" ")[2], r["why"]) for r in pages.rejects().to_pylist()]


def test_warc_pages_keep_url_date_source_and_order(tmp_path: Path) -> None:
    records = [record(f"https://a.example/{i}", b"<p>page %d</p>" % i) for i in range(7)]
    pages, ctx = ingested(tmp_path / "i", warc_gz(tmp_path / "a.warc.gz", records), rows=3)
    assert [f.rows for f in pages.files()] == [3, 3, 1] and len(pages) == pages.records == 7
    rows = [r for b in pages.batches(("doc", "url", "date", "source", "charset", "html")) for r in b.to_pylist()]
    assert [r["doc"] for r in rows] == [0, 1, 2, 1 << 32, 1 << 32 | 1, 1 << 32 | 2, 2 << 32]
    assert rows[4] == {
        "doc": 1 << 32 | 1,
        "url": "https://a.example/4",
        "date": "2024-06-01T00:00:00Z",
        "source": "docs",
        "charset": "utf-8",
        "html": b"<p>page 4</p>",
    }
    assert ctx.facts["rejects"] == {}
    plain = tmp_path / "plain.warc"
    plain.write_bytes(b"".join(records))
    assert len(ingested(tmp_path / "p", plain)[0]) == 7


def test_records_that_are_not_pages_are_ledger_rows(tmp_path: Path) -> None:
    records = [record("u/ok", b"<p>x</p>"), record("u/404", b"<p>gone</p>", status=404), record("u/pdf", b"%PDF", "application/pdf")]
    records.append(record("u/empty", b" \n"))
    pages, _ = ingested(tmp_path / "i", warc_gz(tmp_path / "a.warc.gz", records))
    assert whys(pages) == [("u/404", "http status 404"), ("u/pdf", "not a page: application/pdf"), ("u/empty", "empty page")]
    assert pages.records == 4 and len(pages) == 1


def test_a_truncated_archive_gives_what_is_whole_and_says_what_is_not(tmp_path: Path) -> None:
    records = [record(f"u/{i}", bytes(range(32, 127)) * 200) for i in range(4)]
    whole = b"".join(gzip.compress(r) for r in records)
    file = tmp_path / "cut.warc.gz"
    file.write_bytes(whole[: len(whole) - len(gzip.compress(records[3])) // 2])
    pages, _ = ingested(tmp_path / "i", file)
    assert len(pages) == 3 and [r for r, _ in whys(pages)] == ["u/3"] and whys(pages)[0][1].startswith("truncated record")
    first = len(gzip.compress(records[0]))
    file.write_bytes(whole[: first + 40] + b"XXXXXXXXXXXX" + whole[first + 52 :])
    pages, _ = ingested(tmp_path / "j", file)
    assert len(pages) == 3 and [w.partition(":")[0] for _, w in whys(pages)] == ["damaged archive"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.warc.gz", b"", "empty file"),
        ("a.warc.gz", b"this is not gzip at all", "not gzip: the name ends in .gz, but it starts with b'this is not gzip'"),
        ("a.bin", b"\x00\x01\x02", "unknown format"),
        ("a.jsonl", b"{broken\n", "broken JSON: line 1"),
        ("a.parquet", b"PAR1 but no more", "damaged parquet"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 5)[:12], "gzip"),
    ],
)
def test_nothing_readable_is_an_error_that_says_why(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as e:
        ingested(tmp_path / "i", tmp_path / name)
    assert message in str(e.value) and str(e.value).startswith("no page could be read from") and len(str(e.value).splitlines()) <= 6


def test_json_lines_with_bad_lines(tmp_path: Path) -> None:
    lines = ['{"text": "one", "url": "u1", "licence": "MIT"}', "", "{oops", '{"body2": 1}', '{"text": 5}', "[1]"]
    lines.append('{"html": "<p>two</p>", "metadata": {"url": "u2"}}')
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(lines))
    pages, _ = ingested(tmp_path / "i", file)
    rows = [r for b in pages.batches(("url", "mime", "licence", "html")) for r in b.to_pylist()]
    assert rows == [
        {"url": "u1", "mime": "text/plain", "licence": "MIT", "html": b"one"},
        {"url": "u2", "mime": "text/html", "licence": "", "html": b"<p>two</p>"},
    ]
    assert [(where, why.split(":")[0]) for where, why in whys(pages)] == [
        ("a.jsonl:3", "broken JSON"),
        ("a.jsonl:4", "no text"),
        ("a.jsonl:5", "bad text"),
        ("a.jsonl:6", "not an object"),
    ]
    assert "'body2'" in whys(pages)[1][1] and "--map" in whys(pages)[1][1]
    packed = tmp_path / "b.jsonl.gz"
    data = gzip.compress(b"".join(b'{"body2": "%032x"}\n' % (i * 7919**9) for i in range(400)))
    packed.write_bytes(data[: len(data) // 2])
    pages, _ = ingested(tmp_path / "j", packed, read={"map": {"text": "body2"}})
    assert 50 < len(pages) < 400 and whys(pages)[0][1].startswith(f"truncated gzip: after line {len(pages)}")


def test_parquet_and_folders_of_html(tmp_path: Path) -> None:
    pq.write_table(pa.table({"content": ["a", "b", None], "id": ["1", "2", "3"]}), tmp_path / "a.parquet")
    pages, _ = ingested(tmp_path / "i", tmp_path / "a.parquet")
    assert len(pages) == 2 and whys(pages)[0][0] == "a.parquet#3"
    site = tmp_path / "site"
    (site / "sub").mkdir(parents=True)
    (site / "b.html").write_text("<p>b</p>")
    (site / "sub" / "a.htm").write_text("<p>a</p>")
    (site / "c.html").write_text("")
    (site / "notes.txt").write_text("t\r\nu")
    (site / "x.css").write_text("p {}")
    pages, _ = ingested(tmp_path / "j", site)
    assert [r["url"] for b in pages.batches(("url",)) for r in b.to_pylist()] == ["b.html", "notes.txt", "sub/a.htm"]
    assert {w for w, _ in whys(pages)} == {"c.html", "x.css"}
    corpus, _ = extracted(tmp_path / "e", pages)
    assert list(corpus.texts()) == ["b", "t\nu", "a"]


def test_a_huge_page_is_cut_with_a_ledger_row(tmp_path: Path) -> None:
    file = tmp_path / "big.html"
    file.write_bytes(b"<p>" + b"word " * 10_000_000)
    rows: list[Any] = list(ReadFile()(file))
    assert rows[0] == ("big.html", "cut: the page has 50000003 bytes, the first 8000000 are kept (max_bytes)")
    assert len(rows[1]["html"]) == 8_000_000
    pages, _ = ingested(tmp_path / "i", file, read={"max_bytes": 1000})
    assert pages.records == len(pages) == 1 and pages.reasons() == {"cut": 1}


def test_extraction_is_row_for_row_and_the_funnel_adds_up(tmp_path: Path) -> None:
    body = "<title>T</title><body><p>텍스트</p><pre>x</pre>".encode("euc-kr")
    records = [record("u/1", body, "text/html; charset=EUC-KR"), record("u/2", b"<nav>only</nav>"), record("u/3", b"x", status=500)]
    pages, _ = ingested(tmp_path / "i", warc_gz(tmp_path / "a.warc.gz", records))
    corpus, ctx = extracted(tmp_path / "e", pages)
    columns = ("doc", "url", "text", "bytes", "page.title", "page.codec", "code_bytes")
    rows = [r for b in corpus.batches(columns) for r in b.to_pylist()]
    text = "텍스트\n\n```\nx\n```"
    assert rows[0] == dict(zip(columns, (0, "u/1", text, len(text.encode()), "T", "cp949", 11)))
    assert rows[1]["text"] == "" and corpus.sources() == ("docs",)
    assert [(s["step"], s["docs"]) for s in corpus.funnel()] == [("records", 3), ("pages", 2), ("text", 2)]
    assert (
        str(corpus.why("u/3")[0]) == f"a.warc.gz@{sum(map(len, map(gzip.compress, records[:2])))} u/3: rejected at ingest: http status 500"
    )
    assert ctx.facts["empty"] == 1


def test_the_same_bytes_again_with_any_number_of_workers_and_after_a_kill(tmp_path: Path) -> None:
    files = [warc_gz(tmp_path / f"{n}.warc.gz", [record(f"u/{n}/{i}", b"<p>page %d</p>" % i) for i in range(9)]) for n in range(3)]
    pages, _ = ingested(tmp_path / "a", *files, rows=4)
    before = files_of(tmp_path / "a" / "data")
    memo = sorted((tmp_path / "a" / "memo").glob("*/*"))
    assert len(memo) == 3
    for folder in memo[::2]:  # as if it had been killed before these were done
        for f in folder.iterdir():
            f.unlink()
        folder.rmdir()
    for f in sorted((tmp_path / "a" / "data").rglob("*.parquet"))[::2]:
        f.unlink()
    (tmp_path / "a" / "data" / "pages.json").unlink()
    ingested(tmp_path / "a", *files, rows=4)
    assert files_of(tmp_path / "a" / "data") == before
    first, _ = extracted(tmp_path / "x", pages)
    ctx = Context.scratch(tmp_path / "y", crawl=pages)
    ctx.workers = 2
    second = Extract(pages=Input(stage="crawl")).run(ctx)
    one, two = files_of(first.path), files_of(second.path)
    assert len(pages.files()) == 9 and one == two and json.loads(one["corpus.json"])["refs"] == ["../../a/data"]


def contents(pages: Pages) -> list[dict[str, Any]]:
    return [r for b in pages.batches(("url", "record", "date", "html")) for r in b.to_pylist()]


def test_big_files_are_read_in_parts(tmp_path: Path) -> None:
    records = [record(f"u/{i}", b"<p>page %d</p>" % i * 40) for i in range(40)]
    nested = record("u/nested", b"".join(records[:6]))
    (tmp_path / "a.warc").write_bytes(b"".join([*records[:20], nested, *records[20:]]))
    warc_gz(tmp_path / "b.warc.gz", records)
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": f"line {i}" * 9}) + "\n" for i in range(120)))
    (tmp_path / "d.jsonl.gz").write_bytes(
        gzip.compress("".join(json.dumps({"text": f"{i * 7919**5:x}"}) + "\n" for i in range(500)).encode())
    )
    files = sorted(tmp_path.glob("[a-d].*"))
    whole, first = ingested(tmp_path / "1", *files)
    cut, second = ingested(tmp_path / "2", *files, part_bytes=4000)
    assert contents(whole) == contents(cut) and whole.records == cut.records and whole.rejects() == cut.rejects()
    assert len(list((tmp_path / "1" / "memo").glob("*/*"))) == 4 and len(list((tmp_path / "2" / "memo").glob("*/*"))) > 12
    assert "one_part" not in first.facts
    assert second.facts["one_part"] == {"d.jsonl.gz": "gzip cannot be entered in the middle"}
    ctx = Context.scratch(tmp_path / "3")
    ctx.workers = 2
    Ingest(sources=tuple(Source(uri=str(f)) for f in files), part_bytes=4000).run(ctx)
    assert files_of(tmp_path / "3" / "data") == files_of(tmp_path / "2" / "data")


def test_a_killed_ingest_and_a_longer_file_read_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [json.dumps({"text": f"line {i} " * 20}) + "\n" for i in range(100)]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(lines[:60]))
    read: list[int] = []
    part = ReadFile.part

    def counted(self: ReadFile, file: Path, name: str, start: int = 0, stop: int | None = None, first: int = 0) -> Any:
        read.append(start)
        if len(read) == 4:
            raise KeyboardInterrupt
        return part(self, file, name, start, stop, first)

    monkeypatch.setattr(ReadFile, "part", counted)
    with pytest.raises(KeyboardInterrupt):
        ingested(tmp_path / "i", file, part_bytes=1500)
    ingested(tmp_path / "i", file, part_bytes=1500)
    assert sorted(read) == sorted([*set(read), read[3]])  # the part in flight twice, every other once
    done = len(read)
    file.write_text("".join(lines))
    pages, _ = ingested(tmp_path / "i", file, part_bytes=1500)
    fresh = read[done:]
    assert len(pages) == 100 and min(fresh) >= len("".join(lines[:60])) - 3500
    assert [r["record"] for r in contents(pages)] == [f"a.jsonl:{i}" for i in range(1, 101)]


def test_layouts_links_and_order(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "b.html").write_text("<p>b</p>")
    (root / "a.jsonl").write_text('{"text": "a"}\n')
    (root / "z.txt").write_text("z")
    (root / "sub" / "loop").symlink_to(root)
    (root / "dead.html").symlink_to(tmp_path / "nowhere")
    pages, ctx = ingested(tmp_path / "1", root)
    assert [r["record"] for r in contents(pages)] == ["a.jsonl:1", "sub/b.html", "z.txt"]
    assert ctx.facts["skipped"] == ["sub/loop (a link to a folder)"] and whys(pages)[0][0] == "dead.html"
    hub = tmp_path / "hub"
    (hub / "data").mkdir(parents=True)
    (hub / "README.md").write_text("about")
    pq.write_table(pa.table({"text": ["a", "b"], "date": ["2020-01-01", "someday"]}), hub / "data" / "x.parquet")
    pages, ctx = ingested(tmp_path / "2", hub)
    assert [(r["record"], r["date"]) for r in contents(pages)] == [("data/x.parquet#1", "2020-01-01"), ("data/x.parquet#2", "")]
    assert pages.reasons() == {"bad date": 1} and pages.records == 2 and ctx.facts["skipped"] == ["README.md"]


@pytest.mark.parametrize(
    ("field", "value", "change"),
    [
        ("source", "mine", lambda r: r["source"] == "mine"),
        ("licence", "MIT", lambda r: r["licence"] == "MIT"),
        ("map", {"text": "other"}, lambda r: r["html"] == b"second"),
        ("map", {"text": "text", "url": "meta.link"}, lambda r: r["url"] == "here"),
        ("map", {"html": "text"}, lambda r: r["mime"] == "text/html"),
        ("max_bytes", 3, lambda r: r["html"] == b"fir"),
        ("max_line", 10, lambda r: r is None),
    ],
)
def test_each_field_of_the_reader_matters(tmp_path: Path, field: str, value: Any, change: Any) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"text": "first", "other": "second", "meta": {"link": "here"}}) + "\n")

    def row(**fields: Any) -> Any:
        return next((r for r in ReadFile(**fields)(file) if isinstance(r, dict)), None)

    assert not change(row()) and change(row(**{field: value}))
    with pytest.raises(ValueError, match="did you mean 'text'"):
        ReadFile(map={"txt": "x"})


def test_headers_of_an_archive_name_source_and_licence(tmp_path: Path) -> None:
    body = record("u", b"<p>").replace(b"WARC-Upslope-Package: docs", b"X-From: there\r\nX-May: CC0")
    (tmp_path / "a.warc").write_bytes(body)
    row: Any = next(iter(ReadFile(source_header="X-From", licence_header="X-May")(tmp_path / "a.warc")))
    assert (row["source"], row["licence"]) == ("there", "CC0")


@pytest.mark.parametrize("packed", [False, True])
def test_other_readers_read_the_same(tmp_path: Path, packed: bool) -> None:
    """warcio and FastWARC on a good archive: addresses, bodies, offsets."""
    pytest.importorskip("warcio")
    from fastwarc.warc import ArchiveIterator, WarcRecordType
    from warcio.archiveiterator import ArchiveIterator as Warcio
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    file = tmp_path / ("a.warc.gz" if packed else "a.warc")
    with open(file, "wb") as f:
        writer = WARCWriter(f, gzip=packed)
        f_info = writer.create_warcinfo_record("a.warc", {"software": "test"})
        writer.write_record(f_info)
        for i in range(20):
            body = gzip.compress(b"<p>page %d</p>" % i * 99) if i % 2 else b"<p>page %d</p>" % i
            fields = [("Content-Type", "text/html; charset=utf-8"), *([("Content-Encoding", "gzip")] if i % 2 else [])]
            headers = StatusAndHeaders("200 OK", fields, protocol="HTTP/1.1")
            writer.write_record(writer.create_warc_record(f"https://a/{i}", "response", payload=BytesIO(body), http_headers=headers))
    ours: list[Any] = list(ReadFile()(file))
    with open(file, "rb") as f:
        theirs = [(r.rec_headers["WARC-Target-URI"], r.content_stream().read()) for r in Warcio(f) if r.rec_type == "response"]
    assert [(r["url"], r["html"]) for r in ours] == theirs and len(ours) == 20
    with open(file, "rb") as f:
        places = [(r.headers["WARC-Target-URI"], r.stream_pos) for r in ArchiveIterator(f, record_types=WarcRecordType.response)]
    assert [(r["url"], int(r["record"].rpartition("@")[2])) for r in ours] == places
