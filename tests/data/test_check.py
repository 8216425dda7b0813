"""`check` recognises the shapes of training files and names the lines that are wrong."""

from __future__ import annotations

import contextlib
import gzip
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.make import record, warc_gz
from upslope.config import UsageError
from upslope.data.check import Bad, canonical, check, mapping, rows
from upslope.data.turns import Wrong

SHAPES = Path(__file__).parent / "shapes"

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


# ── the shapes of other tools, as files ───────────────────────────────────────────────────────────────────────────

GOOD = {
    "trl_messages": ("messages", "TRL conversational, OpenAI fine-tuning", {"messages": "messages"}),
    "trl_prompt_completion": ("prompt/completion", "TRL prompt-completion", {"prompt": "prompt", "completion": "completion"}),
    "trl_prompt_completion_conversational": (
        "prompt/completion",
        "TRL prompt-completion, conversational",
        {"prompt": "prompt", "completion": "completion"},
    ),
    "trl_preference_explicit": (
        "preference",
        "TRL preference, explicit prompt",
        {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
    ),
    "trl_preference_implicit": (
        "preference",
        "TRL preference, implicit prompt",
        {"chosen": "chosen", "rejected": "rejected", "prompt": "the common start of chosen and rejected"},
    ),
    "trl_unpaired_preference": (
        "unpaired preference",
        "TRL unpaired preference",
        {"prompt": "prompt", "completion": "completion", "label": "label"},
    ),
    "trl_prompt_only": ("prompts", "TRL prompt-only", {"prompt": "prompt"}),
    "trl_stepwise": ("stepwise", "TRL stepwise supervision", {"prompt": "prompt", "completions": "completions", "labels": "labels"}),
    "axolotl_alpaca": ("prompt/completion", "alpaca (axolotl, LLaMA-Factory)", {"prompt": "instruction + input", "completion": "output"}),
    "axolotl_sharegpt": ("messages", "ShareGPT (axolotl, LLaMA-Factory)", {"messages": "conversations"}),
    "axolotl_input_output": ("segments", "axolotl input_output", {"segments": "segments"}),
    "axolotl_completion": ("text", "plain text (axolotl completion, TRL language modelling)", {"text": "text"}),
    "llamafactory_alpaca": (
        "prompt/completion",
        "LLaMA-Factory alpaca",
        {"prompt": "instruction + input", "completion": "output", "system": "system", "history": "history"},
    ),
    "llamafactory_sharegpt_tools": (
        "messages",
        "LLaMA-Factory sharegpt",
        {"messages": "conversations", "system": "system", "tools": "tools"},
    ),
    "llamafactory_preference_alpaca": (
        "preference",
        "LLaMA-Factory preference, alpaca",
        {"prompt": "instruction + input", "chosen": "chosen", "rejected": "rejected"},
    ),
    "llamafactory_preference_sharegpt": (
        "preference",
        "LLaMA-Factory preference, sharegpt",
        {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
    ),
    "llamafactory_kto": ("unpaired preference", "LLaMA-Factory KTO", {"messages": "conversations", "label": "kto_tag"}),
    "openai_tools": ("messages", "OpenAI fine-tuning, with tools", {"messages": "messages", "tools": "tools"}),
}
BAD = {  # file: line, keys found, what is wanted, the flag, whether the flag alone mends it
    "misspelt_key": ("1", "'id', 'mesages'", "messages |", "--map messages=mesages"),
    "nested": ("1", "'data', 'id'", "messages |", "--map messages=data.turns"),
    "text_elsewhere": ("1", "'meta', 'paragraph'", "| text |", "--map text=paragraph"),
    "other_message_keys": ("1", "'speaker', 'text'", "role or from", "--map messages.role=speaker --map messages.content=text"),
    "unknown_role": ("2", "'role', 'content'", "a role: assistant,", "--map role.user=narrator"),
    "one_row_differs": ("3", "'prompt', 'choosen', 'rejected'", "'chosen' (a string", "--map 'chosen=chosen|choosen'"),
    "label_is_text": ("2", "'prompt', 'completion', 'label', 'liked'", "'label' (true or false)", "--map label=liked"),
    "ids_are_text": ("2", "'input_ids', 'labels'", "'input_ids' (a list of token ids)", "--drop-bad"),
    "last_role_is_user": ("2", "", "ends with the assistant", "--drop-bad"),
    "broken_json": ("2", "", "", "--drop-bad"),
}


def test_every_fixture_is_tried() -> None:
    assert {f.stem for f in (SHAPES / "good").iterdir()} == set(GOOD) and {f.stem for f in (SHAPES / "bad").iterdir()} == set(BAD)


@pytest.mark.parametrize("name", GOOD)
def test_shapes_of_other_tools(name: str) -> None:
    found = check(SHAPES / "good" / f"{name}.jsonl")
    assert (found.shape, found.known_as, dict(found.mapping)) == GOOD[name]
    assert found.rows == len(found.examples) == 2 and not found.bad_rows and found.uses
    canon = [row for _, row in rows(SHAPES / "good" / f"{name}.jsonl")]
    for row in canon:
        assert isinstance(row, dict)
        for key in ("messages", "prompt", "completion", "chosen", "rejected"):
            assert all(m["role"] in ("system", "user", "assistant", "tool") and isinstance(m["content"], str) for m in row.get(key, ()))
        if found.shape == "preference":
            assert row["prompt"] and [m["role"] for m in (*row["chosen"], *row["rejected"])] == ["assistant", "assistant"]
        if found.shape in ("messages", "prompt/completion"):
            assert row["messages"][-1]["role"] == "assistant"


def test_what_the_canonical_rows_hold() -> None:
    def row(name: str, number: int) -> dict[str, Any]:
        found = [r for _, r in rows(SHAPES / "good" / f"{name}.jsonl")][number]
        assert isinstance(found, dict)
        return found

    def said(messages: list[dict[str, Any]]) -> list[tuple[str, str]]:
        return [(m["role"], m["content"]) for m in messages]

    call = [{"type": "function", "function": {"name": "tide", "arguments": {"day": "today"}}}]
    for name in ("openai_tools", "llamafactory_sharegpt_tools"):
        assert [m["role"] for m in row(name, 0)["messages"]] == ["system", "user", "assistant", "tool", "assistant"]
        assert row(name, 0)["messages"][2]["tool_calls"] == call and row(name, 0)["tools"][0]["function"]["name"] == "tide"
    assert row("openai_tools", 1)["messages"][1]["train"] is False and row("openai_tools", 1)["messages"][2]["content"] == "c"
    assert said(row("llamafactory_alpaca", 0)["messages"]) == [
        ("system", "You know the tides."),
        ("user", "When was high tide yesterday?"),
        ("assistant", "At eleven."),
        ("user", "And today?"),
        ("assistant", "At noon."),
    ]
    assert said(row("axolotl_alpaca", 0)["prompt"]) == [("user", "Name the force.\nIt pulls on the sea.")]
    assert said(row("trl_preference_implicit", 1)["prompt"]) == [("system", "x"), ("user", "Why?")]
    assert said(row("llamafactory_kto", 1)["completion"]) == [("assistant", "Fish.")] and row("llamafactory_kto", 1)["label"] is False
    assert row("trl_stepwise", 0)["labels"] == [True, False] and row("axolotl_input_output", 0)["segments"][0]["label"] is False


@pytest.mark.parametrize("name", BAD)
def test_errors_name_line_keys_and_the_flag_that_mends_it(name: str) -> None:
    file, (line, found, wanted, fix) = SHAPES / "bad" / f"{name}.jsonl", BAD[name]
    try:
        shape = check(file)
    except UsageError as e:
        text = str(e)
        assert f"line {line}:" in text and len(text.splitlines()) <= 6
    else:
        assert [b.where for b in shape.bad] == [line] and shape.bad[0].fix == fix
        text = shape.render()
        assert f"bad {line}:" in text
    assert found in text and wanted in text and fix in text
    flags = [part.strip(" '") for part in fix.split("--map")[1:]]
    if flags:
        mended = check(file, mapping(flags))
        assert mended.bad_rows == 0 and mended.rows >= 1
        assert all(flag in use.command for flag in flags for use in mended.uses if "import" in use.command and mended.shape != "text")


def test_folders_of_other_tools(tmp_path: Path) -> None:
    table = pa.table({"text": [f"text {i}" for i in range(5)]})
    saved = tmp_path / "saved" / "train"
    saved.mkdir(parents=True)
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    for name in ("dataset_info.json", "state.json"):
        (saved / name).write_text("{}")
    for i in range(2):
        with pa.ipc.new_stream(saved / f"data-0000{i}-of-00002.arrow", table.schema) as out:
            out.write_table(table)
    hub = tmp_path / "hub"
    (hub / "data").mkdir(parents=True)
    (hub / "README.md").write_text("# a data set")
    pq.write_table(table, hub / "data" / "train-00000-of-00001.parquet")
    dolma = tmp_path / "dolma"
    for folder in ("documents", "attributes/lang"):
        (dolma / folder).mkdir(parents=True)
    document = {"id": "1", "text": "t", "source": "s", "added": "2024-01-01", "created": "2020", "metadata": {"url": "u"}}
    (dolma / "documents" / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps(document).encode()))
    (dolma / "attributes" / "lang" / "a.jsonl.gz").write_bytes(gzip.compress(b'{"id": "1", "attributes": {}}'))
    found = {f.name: check(f) for f in (tmp_path / "saved", hub, dolma)}
    assert {n: (s.shape, s.layout, s.rows, s.files, s.bad_rows) for n, s in found.items()} == {
        "saved": ("text", "folder saved by datasets", 10, 2, 0),
        "hub": ("text", "data set repository", 5, 1, 0),
        "dolma": ("text", "Dolma folder", 1, 1, 0),
    }
    assert found["dolma"].known_as == "Dolma document" and found["dolma"].skipped == ("attributes/lang/a.jsonl.gz",)
    assert "not data: README.md" in found["hub"].render() and "in 2 files of a folder saved by datasets" in found["saved"].render()
    (hub / "data" / "b.jsonl").write_text('{"body": 1}\n')
    assert check(hub).bad[0].where == "data/b.jsonl:1" or check(hub).bad_rows == 5


def test_token_files_are_measured(tmp_path: Path) -> None:
    from upslope.tokens.export import MAGIC

    ids = np.arange(10, dtype="<u2")
    (tmp_path / "a.bin").write_bytes(ids.tobytes())
    with pytest.raises(UsageError, match="unknown format"):
        check(tmp_path / "a.bin")
    head = MAGIC + struct.pack("<QBQQ", 1, 8, 2, 3) + np.array([4, 6], "<i4").tobytes()
    (tmp_path / "a.idx").write_bytes(head + np.array([0, 8], "<i8").tobytes() + np.array([0, 1, 2], "<i8").tobytes())
    for name in ("a.bin", "a.idx"):
        found = check(tmp_path / name)
        assert (found.shape, found.format, found.rows, found.examples[0]) == ("tokens", "megatron", 2, "4 ids: [0, 1, 2, 3]")
    (tmp_path / "b.ds").write_bytes(ids.astype("<u4").tobytes())
    (tmp_path / "b.ds.index").write_bytes(np.array([3, 10], "<u8").tobytes())
    (tmp_path / "b.ds.metadata").write_text("gpt2|4\n10\n10 T")
    found = check(tmp_path / "b.ds")
    assert (found.format, found.rows, found.examples[1]) == ("datatrove", 2, "7 ids: [3, 4, 5, 6, 7, 8, 9]")
    assert "u32, 10 ids, gpt2" in found.mapping["ids"]
    (tmp_path / "b.ds.index").write_bytes(np.array([3, 12], "<u8").tobytes())
    with pytest.raises(UsageError, match="document ends up to 12"):
        check(tmp_path / "b.ds")


def test_mappings(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"ask": {"text": "why?"}, "reply": "so", "n": 1}) + "\n")
    found = check(file, mapping(["prompt=ask.text", "completion=reply"]))
    assert (found.shape, found.mapping) == ("prompt/completion", {"prompt": "ask.text", "completion": "reply"})
    assert "--map prompt=ask.text --map completion=reply" in found.uses[1].command
    for flag, message in (
        ("txt=body", "did you mean text"),
        ("body=text", "ours comes first: --map text=body"),
        ("text", "write OURS=THEIRS"),
        ("role.usr=x", "did you mean role.user"),
    ):
        with pytest.raises(UsageError, match=message):
            mapping([flag])
    assert check(file, mapping(["text=ask.text"])).shape == "text"
    (tmp_path / ".gitattributes").write_text("* -text")
    assert check(tmp_path, mapping(["text=reply"])).skipped == (".gitattributes",)
    with pytest.raises(Wrong):
        canonical({"a": 1})
    assert canonical({"prompt": "p", "answer": "a"}) == ("prompts", {"prompt": [{"role": "user", "content": "p"}], "answer": "a"})


def test_the_answer_as_json_is_stable() -> None:
    body = check(SHAPES / "bad" / "one_row_differs.jsonl").json()
    assert json.loads(json.dumps(body)) == body
    assert list(body) == [
        *("path", "shape", "known_as", "format", "layout", "files", "rows", "bad_rows"),
        *("mapping", "examples", "skipped", "bad", "notes", "uses"),
    ]
    assert list(body["bad"][0]) == ["where", "why", "found", "wanted", "fix"] and list(body["uses"][0]) == ["what", "command"]


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.text("ab", max_size=3), st.sampled_from(["user", "assistant", "[{}]"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "text", "label", "tool_calls", "function", "name"]), inner, max_size=3
        ),
    ),
    max_leaves=12,
)
KEYS = ["messages", "conversations", "prompt", "completion", "chosen", "rejected", "label", "labels", "completions", "text", "input_ids"]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from([*KEYS, "history", "system", "tools", "segments", "input", "instruction", "x"]), values, max_size=5))
def test_any_row_is_canonical_or_wrong(row: dict[str, Any]) -> None:
    from upslope.chat.messages import messages_of

    found: dict[str, Any] = {}
    with contextlib.suppress(Wrong):
        found = canonical(row)[1]
    json.dumps(found)
    for key in ("messages", "prompt", "chosen", "rejected", "completion"):
        messages_of(found.get(key, ()))


def test_rows_of_a_file_are_held_to_one_shape(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"x": 1}, {"prompt": "p", "completion": "c"}, {"messages": CHAT}]))
    found = list(rows(file))
    assert [where for where, _ in found] == ["a.json#1", "a.json#2", "a.json#3"]
    assert [isinstance(r, Bad) for _, r in found] == [True, False, True]
