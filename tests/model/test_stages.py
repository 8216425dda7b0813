"""The stages `merge` and `import`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.model.support import SMALL, loud, tokenizer, tokens
from upslope.chat.artifacts import Chats
from upslope.config import Input, UsageError, validated
from upslope.data.artifacts import Corpus
from upslope.evals.artifacts import Table
from upslope.machine.context import Context
from upslope.machine.files import digest_path
from upslope.machine.stage import Stage
from upslope.model.checkpoint import Checkpoint
from upslope.model.config import ModelConfig
from upslope.stages.import_ import Import
from upslope.stages.merge import Merge
from upslope.tasks.artifacts import Tasks

CONFIG = SMALL.replace(vocab=300)


def checkpoint(folder: Path, seed: int, config: ModelConfig = CONFIG) -> Checkpoint:
    return Checkpoint.write(folder, loud(config, seed), tokenizer())


def merged(tmp_path: Path, inputs: dict[str, Checkpoint], weights: tuple[float, ...] = ()) -> Checkpoint:
    stage = Merge(inputs=tuple(Input(stage=n) for n in inputs), weights=weights)
    out = stage.run(Context.scratch(tmp_path / "merge", 0, **inputs))
    assert isinstance(out, Checkpoint)
    return out


def test_merge_is_the_weighted_mean(tmp_path: Path) -> None:
    held = {name: checkpoint(tmp_path / name, seed) for seed, name in enumerate("ab")}
    a, b = (c.model().state_dict() for c in held.values())
    out = merged(tmp_path, held, (3.0, 1.0))
    assert all(torch.allclose(t, (3 * a[k] + b[k]) / 4, atol=1e-6) for k, t in out.model().state_dict().items())
    assert out.tokenizer().digest == tokenizer().digest
    stage = Merge(inputs=tuple(Input(stage=n) for n in held), decay="1-sqrt")
    cooled = stage.run(Context.scratch(tmp_path / "cooled", 0, **held))
    assert isinstance(cooled, Checkpoint)
    w = 0.5**0.5  # w_0 = sqrt(1 / 2), w_1 = 1 - w_0
    assert all(torch.allclose(t, w * a[k] + (1 - w) * b[k], atol=1e-6) for k, t in cooled.model().state_dict().items())
    with pytest.raises(ValueError, match="one of them"):
        Merge(inputs=stage.inputs, decay="linear", weights=(1.0, 2.0))
    even = merged(tmp_path / "even", held)
    assert all(torch.allclose(t, (a[k] + b[k]) / 2, atol=1e-6) for k, t in even.model().state_dict().items())


def test_merge_of_one_is_itself_and_repeats_in_bytes(tmp_path: Path) -> None:
    held = {"a": checkpoint(tmp_path / "a", 0)}
    one, two = merged(tmp_path / "1", held, (0.3,)), merged(tmp_path / "2", held, (0.3,))
    assert digest_path(one.path) == digest_path(two.path) == digest_path(held["a"].path)


def test_merge_refuses_what_does_not_fit(tmp_path: Path) -> None:
    a, b = checkpoint(tmp_path / "a", 0), checkpoint(tmp_path / "b", 1, CONFIG.replace(d_model=16))
    with pytest.raises(UsageError, match="'b' and 'a' differ in d_model"):
        merged(tmp_path, {"a": a, "b": b})
    with pytest.raises(UsageError, match="3 numbers for 1 inputs"):
        merged(tmp_path, {"a": a}, (1.0, 1.0, 1.0))
    with pytest.raises(UsageError, match="sum is 0"):
        merged(tmp_path, {"a": a, "c": a}, (1.0, -1.0))
    other = checkpoint(tmp_path / "c", 2)
    file = other.weights / "tokenizer.json"
    file.write_text(file.read_text() + " ")
    with pytest.raises(UsageError, match="different tokenizers"):
        merged(tmp_path, {"a": a, "c": other})


def bring(tmp_path: Path, form: dict[str, Any]) -> Any:
    """Runs an import given as a recipe file would give it."""
    return validated(Import, {"form": form}).run(Context.scratch(tmp_path / "import"))


def lines(file: Path, *rows: Any) -> str:
    file.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return str(file)


def test_import_is_found_by_its_kind() -> None:
    from upslope.config import find_kind

    assert find_kind(Stage, "import") is Import
    assert find_kind(Stage, "merge") is Merge


def test_import_of_a_checkpoint(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    held = checkpoint(tmp_path / "a", 0)
    outside = tmp_path / "outside"
    transformers.AutoModelForCausalLM.from_pretrained(held.weights).save_pretrained(outside)
    transformers.AutoTokenizer.from_pretrained(held.weights).save_pretrained(outside)
    out = bring(tmp_path, {"kind": "checkpoint", "source": str(outside)})
    assert isinstance(out, Checkpoint)
    assert torch.allclose(out.model()(tokens(7)), held.model()(tokens(7)), atol=1e-6)
    assert out.tokenizer().encode("add 12 and 7") == tokenizer().encode("add 12 and 7")
    assert out.tokenizer().im_end == tokenizer().im_end
    messages = [{"role": "user", "content": "hi"}]
    readers = [transformers.AutoTokenizer.from_pretrained(f) for f in (held.weights, out.weights)]
    renders = [r.apply_chat_template(messages, tokenize=False) for r in readers]
    assert renders[0] == renders[1] != ""
    (outside / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match=r"no tokenizer.json[\s\S]*way out"):
        bring(tmp_path, {"kind": "checkpoint", "source": str(outside)})


def test_import_of_a_corpus_from_lines_and_parquet(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    lines(folder / "a.jsonl", {"body": "one"}, {"body": "two"})
    pq.write_table(pa.table({"body": ["three"]}), folder / "b.parquet")
    out = bring(tmp_path, {"kind": "corpus", "source": str(folder), "text": "body", "name": "mine", "licence": "CC0"})
    assert isinstance(out, Corpus)
    assert list(out.texts()) == ["one", "two", "three"]
    assert out.sources() == ("mine",)
    assert out.licences() == ("CC0",)


def test_import_of_tasks(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"what is {i}?", "answer": str(i)} for i in range(40)]
    rows.append({"messages": [{"role": "user", "content": "hm"}], "truth": {"answer": "x"}, "id": "me", "level": 3, "split": "heldout"})
    out = bring(tmp_path, {"kind": "tasks", "source": lines(tmp_path / "t.jsonl", *rows), "family": "mine"})
    assert isinstance(out, Tasks)
    train, held = out.read("train"), out.read("heldout")
    assert len(train) + len(held) == 41
    assert 1 < len(held) < 20
    assert held[-1].id == "me"
    assert held[-1].level == 3.0
    assert train[0].family == "mine"
    from upslope.tasks.verify import verify

    task = next(t for t in train if t.prompt == "what is 7?")
    assert verify(task.family, task.truth, "<think>hm</think>7") == 1.0


def test_import_of_chats(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho", "reasoning_content": "well"}], "truth": 3}
    out = bring(tmp_path, {"kind": "chats", "source": lines(tmp_path / "c.jsonl", row), "name": "mine"})
    assert isinstance(out, Chats)
    (chat,) = list(out)
    assert chat.messages[1].reasoning == "well"
    assert chat.id == "mine-0"
    assert chat.meta["truth"] == 3


def test_import_of_evidence(tmp_path: Path) -> None:
    row = {"suite": "mmlu", "item": "law/1", "metric": "right", "value": 1}
    form = {"kind": "evidence", "source": lines(tmp_path / "e.jsonl", row), "weights": "0" * 32}
    out = bring(tmp_path, form)
    assert isinstance(out, Table)
    assert out.rows()[0].value == 1.0
    assert out.conditions()["mmlu"].subject.weights == "0" * 32
    with pytest.raises(UsageError, match="weights"):
        bring(tmp_path, form | {"weights": "latest"})


@pytest.mark.parametrize(
    ("form", "row", "said"),
    [
        ("corpus", {"txt": "a"}, r"x.jsonl line 1: text = 'None' is not a str\s+the row has: txt"),
        ("corpus", "{torn", "x.jsonl line 1: not JSON"),
        ("corpus", "[1]", "line 1: a list, not an object"),
        ("corpus", "", "holds no records"),
        ("tasks", {"prompt": "a"}, "answer = 'None' is not a str"),
        ("tasks", {"prompt": "a", "truth": {"x": 1}}, "truth has no 'answer' string"),
        ("tasks", {"prompt": "a", "answer": "b", "split": "test"}, "split = 'test'"),
        ("tasks", {"prompt": "a", "answer": "b", "level": "hard"}, "level = 'hard'"),
        ("chats", {"messages": [{"content": "a"}]}, r"line 1: message 1 has no role; found 'content'; wanted role"),
        ("chats", {"messages": [{"role": "alien", "content": "a"}]}, "line 1: message 1 has the role 'alien'"),
        ("evidence", {"suite": "s", "item": "i", "metric": "m", "value": "high"}, "value = 'high'"),
    ],
)
def test_bad_rows_are_refused_by_name(form: str, row: Any, said: str, tmp_path: Path) -> None:
    extra = {"weights": "0" * 32} if form == "evidence" else {}
    with pytest.raises(UsageError, match=said) as error:
        bring(tmp_path, {"kind": form, "source": lines(tmp_path / "x.jsonl", row), **extra})
    assert len(str(error.value).splitlines()) <= 6


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    file.write_bytes(b"PAR1 no")
    with pytest.raises(UsageError, match="not readable parquet"):
        bring(tmp_path, {"kind": "corpus", "source": str(file)})


def test_imports_repeat_in_bytes(tmp_path: Path) -> None:
    source = lines(tmp_path / "t.jsonl", {"prompt": "a", "answer": "b"})
    one = bring(tmp_path / "1", {"kind": "tasks", "source": source})
    two = bring(tmp_path / "2", {"kind": "tasks", "source": source})
    assert digest_path(one.path) == digest_path(two.path)


def test_chats_tasks_and_pairs_come_in_the_shapes_of_other_tools(tmp_path: Path) -> None:
    from upslope.chat.artifacts import Pairs

    turns = [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "so"}]
    nested = lines(tmp_path / "n.jsonl", {"data": {"turns": turns}, "id": "a"}, {"data": {"turns": turns[:1]}}, {"data": {"turns": turns}})
    form = {"kind": "chats", "source": nested, "map": {"messages": "data.turns"}}
    with pytest.raises(UsageError, match=r"n.jsonl line 2: no assistant message.*\s+way out: .*--drop-bad"):
        bring(tmp_path / "1", form)
    chats = bring(tmp_path / "2", form | {"drop_bad": True})
    assert isinstance(chats, Chats)
    assert [(c.id, [m.content for m in c.messages]) for c in chats] == [("a", ["why?", "so"]), ("import-1", ["why?", "so"])]
    alpaca = lines(tmp_path / "a.jsonl", {"instruction": "add", "input": "1 2", "output": "3", "system": "s", "history": [["q", "r"]]})
    chats = bring(tmp_path / "3", {"kind": "chats", "source": alpaca})
    assert isinstance(chats, Chats)
    assert [m.content for m in next(iter(chats)).messages] == ["s", "q", "r", "add\n1 2", "3"]
    tasks = bring(tmp_path / "4", {"kind": "tasks", "source": alpaca})
    assert isinstance(tasks, Tasks)
    (task,) = [*tasks.read("train"), *tasks.read("heldout")]
    assert task.truth == {"answer": "3"} and task.messages[-1]["content"] == "add\n1 2"
    pairs = lines(tmp_path / "p.jsonl", {"prompt": "q", "chosen": "a", "rejected": "b", "split": "heldout"})
    made = bring(tmp_path / "5", {"kind": "pairs", "source": pairs, "name": "mine"})
    assert isinstance(made, Pairs)
    (pair,) = made.read("heldout")
    assert (pair.prompt[0].content, pair.chosen.content, pair.rejected.content, pair.source) == ("q", "a", "b", "mine")
    with pytest.raises(UsageError, match="preference, where chats are wanted"):
        bring(tmp_path / "6", {"kind": "chats", "source": pairs})
