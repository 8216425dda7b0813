"""`check` recognises the shapes of training files and names the lines that are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.make import record, warc_gz
from upslope.config import UsageError
from upslope.data.check import check

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


@pytest.mark.parametrize(
    ("row", "shape", "mapping"),
    [
        ({"messages": CHAT}, "messages", {"messages": "messages"}),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]}, "messages", {"messages": "conversations"}),
        ({"prompt": "p", "completion": "c"}, "prompt/completion", {"prompt": "prompt", "completion": "completion"}),
        ({"instruction": "i", "input": "x", "output": "o"}, "prompt/completion", {"prompt": "instruction + input", "completion": "output"}),
        ({"question": "q", "answer": "a"}, "prompt/completion", {"prompt": "question", "completion": "answer"}),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "preference", {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}),
        (
            {"chosen": CHAT, "rejected": [CHAT[0], {"role": "assistant", "content": "go away"}]},
            "preference",
            {"prompt": "the common start of chosen and rejected", "chosen": "chosen", "rejected": "rejected"},
        ),
        ({"text": "t", "url": "u"}, "text", {"text": "text", "url": "url"}),
        ({"id": "1", "text": "t", "source": "s"}, "text", {"text": "text", "source": "source"}),
        ({"html": "<p>t"}, "html", {"html": "html"}),
        ({"input_ids": [1, 2]}, "tokens", {"ids": "input_ids"}),
    ],
)
def test_shapes(tmp_path: Path, row: dict[str, object], shape: str, mapping: dict[str, str]) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join([json.dumps(row)] * 4))
    (tmp_path / "a.json").write_text(json.dumps([row] * 4))
    pq.write_table(pa.Table.from_pylist([row] * 4), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "a.parquet"):
        found = check(tmp_path / name)
        assert (found.shape, found.mapping, found.rows, found.bad_rows, len(found.examples)) == (shape, mapping, 4, 0, 3)
        assert shape in found.render() and "4 rows" in found.render()


@pytest.mark.parametrize(
    ("good", "bad", "why"),
    [
        ({"messages": CHAT}, json.dumps({"messages": CHAT[:1]}), "no assistant message"),
        ({"messages": CHAT}, json.dumps({"messages": [*CHAT, CHAT[0]]}), "the last role is user"),
        ({"messages": CHAT}, json.dumps({"messages": [{"role": "narrator", "content": "x"}]}), "message 1 has the role 'narrator'"),
        ({"messages": CHAT}, json.dumps({"messages": []}), "is empty"),
        ({"text": "t"}, '{"text": "unfinished', "broken JSON"),
        ({"text": "t"}, json.dumps({"body": "t"}), "no 'text'"),
        ({"prompt": "p", "completion": "c"}, json.dumps({"prompt": "p", "completion": ""}), "'completion' is empty"),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, json.dumps({"prompt": "p", "chosen": "a", "rejected": "a"}), "are the same"),
        ({"input_ids": [1]}, json.dumps({"input_ids": [1, -3]}), "holds -3"),
        ({"text": "t"}, "[1]", "a list, not an object"),
    ],
)
def test_bad_rows_are_named_by_line(tmp_path: Path, good: dict[str, object], bad: str, why: str) -> None:
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(good)}\n{bad}\n\n{json.dumps(good)}\n")
    found = check(tmp_path / "a.jsonl")
    assert (found.rows, found.bad_rows, found.bad[0].where) == (3, 1, "2") and why in found.bad[0].why
    assert "1 bad (lines 2)" in found.render() and why in found.render()


def test_archives_and_what_is_no_data(tmp_path: Path) -> None:
    file = warc_gz(tmp_path / "a.warc.gz", [record("u/1", b"<p>x</p>"), record("u/2", b"", status=404)])
    found = check(file)
    assert (found.shape, found.format, found.rows, found.bad_rows) == ("pages", "warc", 2, 1)
    assert "u/1 text/html 8 bytes" in found.render()
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "odd.jsonl").write_text('{"x": 1, "y": 2}\n')
    (tmp_path / "broken.jsonl").write_text("{\n")
    (tmp_path / "what.bin").write_bytes(b"\x00\x01")
    for name, message in (
        ("empty.jsonl", "empty.jsonl is empty"),
        ("odd.jsonl", r"no known shape; its fields are 'x', 'y'\nwanted: messages"),
        ("broken.jsonl", "first bad row, 1: broken JSON"),
        ("what.bin", "unknown format"),
        ("emty.jsonl", r"no such file: 'emty.jsonl'\ndid you mean empty.jsonl"),
    ):
        with pytest.raises(UsageError, match=message):
            check(tmp_path / name)
