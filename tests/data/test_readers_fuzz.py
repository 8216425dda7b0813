"""Readers: any part size gives the same rows; any bytes give rows and ledger rows that add up, and never an exception or a hang."""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import json
import random
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.make import record
from upslope.config import UsageError
from upslope.data.ingesting import join
from upslope.data.protocol import Reject
from upslope.data.readers import ReadFile, lost, sniff, streams
from upslope.data.readers.encodings import decode, unchunk
from upslope.data.readers.fields import clean, iso, pick
from upslope.data.readers.parts import cut
from upslope.data.readers.warc import Unfinished

QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], derandomize=True
)


def rows(file: Path, read: ReadFile | None = None) -> list[Any]:
    return list((read or ReadFile())(file))


def by_parts(file: Path, size: int) -> tuple[list[Any], int]:
    """What reading by parts gives, joined as ingest joins them; and how many parts it took."""
    groups = [[p] for p in cut(file, file.name, size)[0]]
    while True:
        found = [list(ReadFile().part(p.path, p.name, p.start, p.stop, p.first)) for [p] in groups]
        needs = [r[-1].upto if r and isinstance(r[-1], Unfinished) else 0 for r in found]
        if not any(needs):
            return [row for part in found for row in part], len(groups)
        joined = join(groups, needs)
        assert len(joined) < len(groups)
        groups = joined


def stored(data: bytes) -> bytes:
    """A gzip member that holds its data as it is, so that a member within it is there to be found."""
    z = zlib.compressobj(0, zlib.DEFLATED, 31)
    return z.compress(data) + z.flush()


def archive(packed: bool, bodies: list[bytes]) -> bytes:
    records = [record(f"u/{i}", body) for i, body in enumerate(bodies)]
    return b"".join(map(stored, records)) if packed else b"".join(records)


inner = st.builds(archive, st.booleans(), st.lists(st.binary(max_size=40), min_size=1, max_size=3))
bodies = st.lists(
    st.one_of(
        st.binary(max_size=300),
        inner,
        st.sampled_from([b"\x1f\x8b\x08", b"\r\n\r\nWARC/1.0\r\n", b"\r\n\r\nWARC/1.0\r\nContent-Length: 3\r\n\r\nabc\r\n\r\n", b""]),
    ),
    min_size=1,
    max_size=6,
)


@QUICK
@given(
    bodies=bodies,
    packed=st.booleans(),
    size=st.integers(1, 3000),
    broken=st.lists(st.tuples(st.integers(0, 5000), st.one_of(st.binary(min_size=1, max_size=2), st.integers(1, 60))), max_size=3),
)
def test_warc_parts_of_any_size_give_the_same_rows(
    tmp_path: Path, bodies: list[bytes], packed: bool, size: int, broken: list[tuple[int, bytes | int]]
) -> None:
    data = bytearray(archive(packed, bodies))
    for at, change in broken:
        at %= len(data) + 1
        data[at : at + (change if isinstance(change, int) else len(change))] = b"" if isinstance(change, int) else change
    file = tmp_path / ("a.warc.gz" if packed else "a.warc")
    file.write_bytes(data)
    assert by_parts(file, size)[0] == rows(file)


@QUICK
@given(
    lines=st.lists(st.one_of(st.text(max_size=30).map(lambda t: json.dumps({"text": t})), st.text("ab{\r ", max_size=9)), max_size=12),
    size=st.integers(1, 200),
)
def test_json_parts_of_any_size_give_the_same_rows(tmp_path: Path, lines: list[str], size: int) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(['{"text": "x"}', *lines]), newline="")
    assert by_parts(file, size)[0] == rows(file)


@pytest.mark.parametrize("form", ["parquet", "stream", "file"])
def test_tables_are_cut_at_groups_and_batches(tmp_path: Path, form: str) -> None:
    table = pa.table({"text": [f"text {i}" * 9 for i in range(600)]})
    file = tmp_path / ("a.parquet" if form == "parquet" else "a.arrow")
    if form == "parquet":
        pq.write_table(table, file, row_group_size=70)
    else:
        with (pa.ipc.new_stream if form == "stream" else pa.ipc.new_file)(file, table.schema) as out:
            out.write_table(table, max_chunksize=70)
    whole = rows(file)
    assert [r["record"] for r in whole] == [f"{file.name}#{i}" for i in range(1, 601)]
    mid = 3000 if form == "parquet" else 10_000
    counts = {size: by_parts(file, size)[1] for size in (1, mid, 10**9) if by_parts(file, size)[0] == whole}
    assert len(counts) == 3 and counts[10**9] == 1
    if form != "file":
        assert counts[1] == 9 and counts[1] > counts[mid] > 1
    first, second = cut(file, file.name, 1)[0][:2] if form != "file" else (None, None)
    if first and second:
        assert first.digest() != second.digest() and first.digest() == cut(file, file.name, 1)[0][0].digest()


def test_an_appended_file_has_the_old_parts(tmp_path: Path) -> None:
    for name, piece in (
        ("a.warc", record("u", b"x" * 500)),
        ("a.warc.gz", gzip.compress(record("u", random.Random(0).randbytes(500)))),
        ("a.jsonl", b'{"text": "%s"}\n' % (b"x" * 500)),
    ):
        file = tmp_path / name
        file.write_bytes(piece * 21)
        before = [p.digest() for p in cut(file, name, 2000)[0]]
        file.write_bytes(piece * 25)
        after = [p.digest() for p in cut(file, name, 2000)[0]]
        assert len(before) >= 4 and after[: len(before) - 1] == before[:-1]
        file.write_bytes(piece * 2 + piece.replace(b"u", b"v", 1).replace(b"x", b"y", 1) + piece * 18)
        changed = [p.digest() for p in cut(file, name, 2000)[0]]
        if name != "a.warc.gz":
            assert sum(a != b for a, b in zip(before, changed)) == 1


# ── any bytes ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _parquet() -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"text": ["one", "two", None], "date": ["2020", "x", ""], "url": ["a", "b", "c"]}), out)
    return out.getvalue()


def _arrow() -> bytes:
    out = io.BytesIO()
    table = pa.table({"text": ["one", "two", "three"]})
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    return out.getvalue()


VALID: dict[str, Callable[[], bytes]] = {
    "a.warc": lambda: archive(False, [b"<p>one</p>", b"two", b"\x1f\x8b\x08zzz"]),
    "a.warc.gz": lambda: b"".join(gzip.compress(record(f"u/{i}", b"<p>%d</p>" % i), mtime=0) for i in range(3)),
    "a.warc.zst": lambda: pa.Codec("zstd").compress(archive(False, [b"<p>one</p>", b"two"]), asbytes=True),
    "a.jsonl": lambda: b'{"text": "one", "date": "2020-01-01"}\n{"text": "two"}\n{"html": "<p>"}\n',
    "a.jsonl.gz": lambda: gzip.compress(b'{"text": "one"}\n', mtime=0) + gzip.compress(b'{"text": "two"}\n', mtime=0),
    "a.jsonl.zst": lambda: pa.Codec("zstd").compress(b'{"text": "one"}\n' * 9, asbytes=True),
    "a.json": lambda: b'[{"text": "one"},\n {"text": "two", "a": [1, {"b": null}]}]',
    "a.parquet": _parquet,
    "a.arrow": _arrow,
    "a.html": lambda: b"<p>one</p>",
    "a.html.gz": lambda: gzip.compress(b"<p>one</p>", mtime=0),
    "a.bin": lambda: b"\x00\x01",
}


def sound(file: Path) -> list[Any]:
    """Reads a file, and checks what must hold for any bytes."""
    started = time.monotonic()
    found = rows(file, ReadFile(max_bytes=1000, max_line=500))
    assert time.monotonic() - started < 5
    kept = [r for r in found if not isinstance(r, Reject)]
    assert all(set(r) == {"url", "date", "mime", "charset", "html", "source", "licence", "record"} for r in kept)
    assert all(0 < len(r["html"]) <= 1000 and r["record"].startswith(file.name) for r in kept)
    pa.Table.from_pylist([{k: v for k, v in r.items() if k != "html"} for r in kept]) if kept else None
    rejects = [r for r in found if isinstance(r, Reject)]
    places = [r.record for r in rejects]
    assert len(set(places)) == len(places) and all("\n" not in r.why and len(r.why) < 400 for r in rejects)
    alter = {r.record.partition(" ")[0] for r in rejects if not lost(r.why)}
    gone = {r.record.partition(" ")[0] for r in rejects if lost(r.why)}
    assert alter <= {r["record"] for r in kept} and not gone & {r["record"] for r in kept}
    assert kept or rejects or file.name.endswith((".jsonl", ".json", ".gz", ".zst", ".warc", ".arrow", ".parquet"))
    return found


@pytest.mark.parametrize("name", list(VALID))
@settings(QUICK, max_examples=40)
@given(data=st.data())
def test_mutated_files_never_break_the_reader(tmp_path: Path, name: str, data: st.DataObject) -> None:
    content = bytearray(VALID[name]())
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(content)))
        match data.draw(st.sampled_from(["flip", "insert", "drop", "cut"])):
            case "flip" if at < len(content):
                content[at] ^= data.draw(st.integers(1, 255))
            case "insert":
                content[at:at] = data.draw(st.binary(max_size=8))
            case "drop":
                del content[at : at + data.draw(st.integers(1, 30))]
            case "cut":
                del content[at:]
    file = tmp_path / name
    file.write_bytes(content)
    found = sound(file)
    if bytes(content) == VALID[name]() and name != "a.bin":
        assert sum(not isinstance(r, Reject) for r in found) >= 1


@settings(QUICK, max_examples=100)
@given(
    name=st.sampled_from(list(VALID)),
    content=st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(gzip.compress), st.text(max_size=60).map(lambda t: t.encode())),
)
def test_random_bytes_never_break_the_reader(tmp_path: Path, name: str, content: bytes) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    sound(file)
    with contextlib.suppress(UsageError):
        assert sniff(file)


# ── damage of one kind each ───────────────────────────────────────────────────────────────────────────────────────


def test_reading_goes_on_behind_damage(tmp_path: Path) -> None:
    records = [record(f"u/{i}", random.Random(i).randbytes(900)) for i in range(6)]
    members = [gzip.compress(r) for r in records]
    file = tmp_path / "a.warc.gz"
    broken = bytearray(members[3])
    broken[300] ^= 0xFF
    file.write_bytes(members[0] + members[1][:400] + members[2] + bytes(broken) + b"junk" * 50 + members[4] + b"\0" * 100 + members[5])
    found = rows(file)
    assert [r["url"] for r in found if not isinstance(r, Reject)] == ["u/0", "u/2", "u/4", "u/5"]
    rejects = [r for r in found if isinstance(r, Reject)]
    assert [r.record.rpartition(" ")[2] for r in rejects] == ["u/1", "u/3"]
    plain = tmp_path / "a.warc"
    longer = records[1].replace(b"Content-Length: ", b"Content-Length: 9", 1)
    shorter = records[3].replace(b"HTTP/1.1", b"HTTP/1.1 200 X\r\nX: y\r\n\r\nmore", 1)
    plain.write_bytes(records[0] + longer + records[2] + shorter + b"WARC/1.0\r\nno length\r\n\r\n" + records[4] + records[5][:-300])
    found = rows(plain)
    assert [r["url"] for r in found if not isinstance(r, Reject)] == ["u/0", "u/2", "u/4"]
    assert [r.why.partition(":")[0] for r in found if isinstance(r, Reject)] == [
        "wrong Content-Length",
        "wrong Content-Length",
        "broken record",
        "truncated record",
    ]


def test_records_over_several_members(tmp_path: Path) -> None:
    """As block compressors write them: members end anywhere."""
    data = archive(False, [bytes([65 + i]) * 700 for i in range(9)])
    file = tmp_path / "a.warc.gz"
    for size in (7, 100, 333, 1000, 5000):
        file.write_bytes(b"".join(gzip.compress(data[i : i + size]) for i in range(0, len(data), size)))
        assert [r["html"][:1] if isinstance(r, dict) else r for r in rows(file)] == [bytes([65 + i]) for i in range(9)]
        assert by_parts(file, 600)[0] == rows(file)


def test_false_lengths_cost_no_time(tmp_path: Path) -> None:
    file = tmp_path / "a.warc"
    for length in (3_000_000, 10**12):
        one = b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: %d\r\n\r\n" % length
        file.write_bytes(one * 20_000 + record("u/last", b"<p>"))
        started = time.process_time()
        found = rows(file)
        assert len(found) == 20_001 and isinstance(found[-1], dict) and time.process_time() - started < 8


def test_json_lines_go_on_at_the_next_member(tmp_path: Path) -> None:
    members = [gzip.compress("".join(json.dumps({"text": f"{i} {j}"}) + "\n" for j in range(50)).encode()) for i in range(3)]
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(members[0] + members[1][:90] + members[2])
    found = rows(file)
    kept = [r["html"].decode() for r in found if not isinstance(r, Reject)]
    assert kept[:50] == [f"0 {j}" for j in range(50)] and kept[-50:] == [f"2 {j}" for j in range(50)]
    assert [r.why.partition(":")[0] for r in found if isinstance(r, Reject)] == ["damaged gzip"]


def test_bombs_are_left_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BOMB_BYTES", 2 << 20)

    def bomb(size: int) -> bytes:
        z = zlib.compressobj(9, zlib.DEFLATED, 31)
        return b"".join([z.compress(b"\0" * (1 << 20)) for _ in range(size)] + [z.flush()])

    head = b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: u/bomb\r\nContent-Type: text/html\r\nContent-Length: 99999999999\r\n\r\n"
    z = zlib.compressobj(9, zlib.DEFLATED, 31)
    member = z.compress(head) + b"".join(z.compress(b"\0" * (1 << 20)) for _ in range(5)) + z.flush()
    file = tmp_path / "a.warc.gz"
    file.write_bytes(gzip.compress(record("u/0", b"<p>")) + member + gzip.compress(record("u/1", b"<p>")))
    found = rows(file)
    assert [r["url"] for r in found if not isinstance(r, Reject)] == ["u/0", "u/1"]
    assert [r.why.partition(":")[0] for r in found if isinstance(r, Reject)] == ["decompression bomb"]
    lines = tmp_path / "a.jsonl.gz"
    lines.write_bytes(gzip.compress(b'{"text": "x"}\n') + bomb(5))
    found = rows(lines)
    assert found[0]["html"] == b"x" and found[1].why.startswith("decompression bomb") and len(found) == 2
    frame = tmp_path / "a.jsonl.zst"
    frame.write_bytes(pa.Codec("zstd").compress(b'{"text": "x"}\n' + b"\0" * (9 << 20), asbytes=True))
    found = rows(frame)
    assert found[0]["html"] == b"x" and found[1].why.startswith("decompression bomb") and len(found) == 2
    page = tmp_path / "a.html.gz"
    page.write_bytes(bomb(3))
    found = rows(page, ReadFile(max_bytes=1000))
    assert found[0].why.startswith("cut: the page has more than 1000 bytes") or found[0].why.startswith("empty page")
    packed = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: gzip\r\n\r\n" + bomb(3)
    raw = b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: u\r\nContent-Type: application/http\r\nContent-Length: %d\r\n\r\n" % len(
        packed
    )
    inside = tmp_path / "b.warc"
    inside.write_bytes(raw + packed + b"\r\n\r\n" + record("u/1", b"<p>"))
    found = rows(inside, ReadFile(max_bytes=1000))
    assert found[-1]["url"] == "u/1" and len(found) <= 3


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "raw", "br", "zstd", "gzip, br", "twice", "undone", ""])
def test_bodies_are_decoded(encoding: str) -> None:
    page = b"<p>" + bytes(range(32, 127)) * 30
    codec = {"br": "brotli", "zstd": "zstd"}
    data, named = page, encoding
    match encoding:
        case "gzip":
            data = gzip.compress(page)
        case "deflate":
            data = zlib.compress(page)
        case "raw":
            z = zlib.compressobj(9, zlib.DEFLATED, -15)
            data, named = z.compress(page) + z.flush(), "deflate"
        case "br" | "zstd":
            data = pa.Codec(codec[encoding]).compress(page, asbytes=True)
        case "gzip, br":
            data = pa.Codec("brotli").compress(gzip.compress(page), asbytes=True)
        case "twice":
            data, named = gzip.compress(gzip.compress(page)), "gzip"
        case "undone":
            named = "gzip, br"
    chunked = b"".join(b"%x;q=1\r\n%s\r\n" % (len(data[i : i + 70]), data[i : i + 70]) for i in range(0, len(data), 70)) + b"0\r\n\r\n"
    assert decode(data, "", named, 10**6).data == decode(chunked, "chunked", named, 10**6).data == page
    cut_short = decode(data, "", named, 100)
    assert cut_short.more and cut_short.data and page[:100].startswith(cut_short.data) and not cut_short.problem
    assert unchunk(chunked) == (data, True) and unchunk(chunked[:-5])[1] is False and unchunk(page) == (page, True)
    if named and encoding != "undone":
        assert (
            decode(data[: len(data) // 2], "", named, 10**6).problem
            and not decode(data[: len(data) // 2], "", named, 10**6, whole=False).problem
        )


def test_lines_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    lines = [
        b'{"text": "caf\xe9 au lait"}',
        b'{"text": "a\\ud800b"}',
        b'{"text": "one", "text": "two"}',
        b'{"text": "nul \\u0000 byte"}',
        b'{"text": "' + b"x" * 2000 + b'"}',
        b"[" * 100_000,
        b'{"text": "dated", "date": "0000-13-45"}',
        b'{"text": "\\ud83d\\ude00"}',
        b'{"text": 12}',
    ]
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    found = rows(file, ReadFile(max_line=1500))
    kept = {r["record"]: r["html"].decode() for r in found if not isinstance(r, Reject)}
    assert kept == {
        f"a.jsonl:{i}": t for i, t in ((1, "café au lait"), (2, "a�b"), (3, "two"), (4, "nul \0 byte"), (7, "dated"), (8, "😀"))
    }
    why = {r.record: r.why.partition(":")[0] for r in found if isinstance(r, Reject)}
    kinds = ("bad characters", "bad characters", "repeated key", "line too long", "line too long", "bad date", "bad text")
    assert why == dict(zip((f"a.jsonl:{i}" for i in (1, 2, 3, 5, 6, 7, 9)), kinds))
    file.write_text('{"text": "x"}', encoding="utf-16")
    assert rows(file)[0].why.startswith("UTF-16")


def test_json_values_over_several_lines(tmp_path: Path) -> None:
    values = [{"text": f"t{i}", "n": [i, {"x": ']}\\"'}]} for i in range(500)]
    file = tmp_path / "a.json"
    for content in (
        json.dumps(values),
        json.dumps(values, indent=2),
        "\n".join(json.dumps(v, indent=1) for v in values),
        json.dumps(values) + "\n",
    ):
        file.write_text(content)
        assert [r["html"].decode() for r in rows(file)] == [f"t{i}" for i in range(500)]
    file.write_text(json.dumps(values)[:-3])
    assert len(rows(file)) == 500 and rows(file)[-1].why.startswith("broken JSON")
    file.write_text(json.dumps(values) + "[1]")
    assert len(rows(file)) == 501 and "behind the end" in rows(file)[-1].why
    file.write_text('[{"text": "a"}, {"text": oops}, {"text": "b"}]')
    assert rows(file)[0]["html"] == b"a" and rows(file)[1].why.startswith("broken JSON: Expecting value")


def test_what_is_no_file_is_a_ledger_row(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "gone.html").symlink_to(tmp_path / "nowhere")
    import os

    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "twice.jsonl.gz").write_bytes(gzip.compress(gzip.compress(b'{"text": "x"}')))
    reasons = {f.name: rows(f)[0].why.partition(":")[0] for f in sorted(tmp_path.iterdir())}
    assert reasons == {"loop": "not a file", "gone.html": "not a file", "pipe.jsonl": "not a file", "twice.jsonl.gz": "packed twice"}


@pytest.mark.parametrize(
    ("value", "want"),
    [
        ("2024-06-01T00:00:00Z", "2024-06-01T00:00:00Z"),
        ("2024-06-01T02:00:00+02:00", "2024-06-01T00:00:00Z"),
        ("2024-06-01 10:11:12.5", "2024-06-01T10:11:12Z"),
        ("Sat, 01 Jun 2024 00:00:00 GMT", "2024-06-01T00:00:00Z"),
        ("20240601", "2024-06-01"),
        ("20240601101112", "2024-06-01T10:11:12Z"),
        ("1717200000", "2024-06-01T00:00:00Z"),
        (1717200000, "2024-06-01T00:00:00Z"),
        (1717200000000, "2024-06-01T00:00:00Z"),
        ("2024", "2024"),
        (1999, "1999"),
        ("2024-06", "2024-06"),
        *(
            (bad, None)
            for bad in ("", "0000-00-00", "9999-12-31", "9999-12-31T23:59:59+00:00", "2024-02-30", "yesterday", "0001-01-01", -5, 1e300)
        ),
        *((bad, None) for bad in (float("nan"), True, [], {}, "99999999999999", "1" * 400, "inf", "0001-01-01T00:00:00+23:00")),
    ],
)
def test_dates(value: Any, want: str | None) -> None:
    assert iso(value) == want


@QUICK
@given(st.one_of(st.text(max_size=30), st.integers(), st.floats(), st.datetimes(), st.dates()))
def test_a_date_is_iso_or_nothing(value: Any) -> None:
    from datetime import datetime

    found = iso(value)
    assert found is None or (found == iso(found) and (len(found) < 10 or datetime.fromisoformat(found)))


@QUICK
@given(st.text(max_size=20), st.lists(st.integers(0xD800, 0xDFFF), max_size=3))
def test_cleaned_text_can_be_written(text: str, lone: list[int]) -> None:
    mixed = text + "".join(map(chr, lone))
    out, changed = clean(mixed)
    out.encode()
    assert changed == bool(lone) and (changed or out == mixed)


def test_paths_into_records() -> None:
    row = {"a": {"b": [{"c": 1}, 2]}, "x.y": 3}
    got = [pick(row, p) for p in ("a.b.0.c", "a.b.1", "x.y", "a.z", "a.b.9", "q.r", "a.b.-1")]
    assert got == [1, 2, 3, None, None, None, None]


@pytest.mark.slow
def test_memory_is_flat(tmp_path: Path) -> None:
    """300 MB of JSON lines, and an archive as big, in a process of its own: at most 120 MB over what an empty read takes."""
    import subprocess
    import sys

    line = json.dumps({"text": "word " * 400, "url": "u"}) + "\n"
    with open(tmp_path / "big.jsonl", "w") as f:
        f.writelines(itertools.repeat(line, 300_000_000 // len(line)))
    page = gzip.compress(record("u", random.Random(0).randbytes(30_000)))
    with open(tmp_path / "big.warc.gz", "wb") as f:
        f.writelines(itertools.repeat(page, 300_000_000 // len(page)))
    with open(tmp_path / "big.json", "w") as f:
        f.writelines(["[", *itertools.repeat(line.strip() + ",\n", 300_000_000 // len(line)), "{}]"])
    (tmp_path / "small.jsonl").write_text(line)
    code = (
        "import sys, resource; from pathlib import Path; from upslope.data.readers import ReadFile\n"
        "n = sum(1 for _ in ReadFile()(Path(sys.argv[1]))); print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )

    def run(name: str) -> tuple[int, int]:
        out = subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], capture_output=True, text=True, check=True).stdout.split()
        return int(out[0]), int(out[1])

    base = run("small.jsonl")[1]
    for name in ("big.jsonl", "big.warc.gz", "big.json"):
        count, peak = run(name)
        assert count > 9000 and peak < base + 120, (name, count, peak, base)
