from pathlib import Path

import pytest
from pydantic import ValidationError

from upslope.chat.artifacts import Chats
from upslope.config import Input, UsageError, dump, validated
from upslope.data.artifacts import Corpus
from upslope.machine.context import Context
from upslope.machine.files import digest_path
from upslope.machine.stage import Artifact, Paused
from upslope.stages.synthesize import Demos, Problems, Synthesize, Texts
from upslope.tasks.artifacts import Tasks
from upslope.tasks.secret import leaks
from upslope.tasks.verify import verify


def run(folder: Path, form: Problems | Texts | Demos, seed: int = 0, **inputs: Artifact) -> tuple[Artifact, Context]:
    ctx = Context.scratch(folder, seed=seed, **inputs)
    return Synthesize(form=form).run(ctx), ctx


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Tasks:
    form = Problems(families=("add", "sort", "parity", "secret"), train=60, heldout=30)
    made, ctx = run(tmp_path_factory.mktemp("problems"), form)
    assert isinstance(made, Tasks)
    assert ctx.facts["short"]["parity.1.heldout"] == 26
    assert ctx.facts["train"] == len(made.read("train"))
    return made


def test_problems_split_without_overlap(tasks: Tasks) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(tasks.path / "tasks.parquet").to_pylist()
    problems = {s: {r["canonical"] for r in table if r["split"] == s} for s in ("train", "heldout")}
    assert not problems["train"] & problems["heldout"]
    assert {r["family"] for r in table} == {"add", "sort", "parity", "secret"}
    assert {r["level"] for r in table} == {1.0, 2.0, 3.0, 4.0}


def test_texts_teach_the_train_split_alone(tmp_path: Path, tasks: Tasks) -> None:
    form = Texts(tasks=(Input(stage="p"),), count=800, bare=0.3, source="worked")
    corpus, ctx = run(tmp_path / "1", form, p=tasks)
    run(tmp_path / "2", form, p=tasks)
    assert digest_path(tmp_path / "1" / "data") == digest_path(tmp_path / "2" / "data")
    assert isinstance(corpus, Corpus)
    rows = [r for b in corpus.batches(("text", "source", "provenance", "parents")) for r in b.to_pylist()]
    train = {t.id: t for t in tasks.read("train")}
    bare = 0
    for row in rows:
        (parent,) = row["parents"]
        task = train[parent]
        lines = row["text"].split("\n")
        assert lines[: len(task.messages)] == [m["content"] for m in task.messages]
        assert verify(task.family, task.truth, lines[-1].removeprefix("answer: ")) == 1.0
        bare += len(lines) == len(task.messages) + 1
        assert row["source"] == "worked"
        assert row["provenance"] == "synthetic"
    assert len(rows) == ctx.facts["documents"] == 800
    assert bare / 800 == pytest.approx(0.3, abs=0.06)
    held = {t.prompt for t in tasks.read("heldout") if t.family != "secret"}
    assert not any(row["text"].split("\n")[0] in held for row in rows)
    levels = [train[row["parents"][0]].level for row in rows]
    assert levels.count(1.0) > levels.count(2.0) > levels.count(3.0) > levels.count(4.0)
    hard = Texts(tasks=(Input(stage="p"),), count=50, bare=0.0, level_weights=(0.0, 0.0, 0.0, 1.0), source="hard")
    others, _ = run(tmp_path / "3", hard, p=tasks)
    assert isinstance(others, Corpus)
    assert others.sources() == ("hard",)
    parents = [r["parents"][0] for b in others.batches(("parents",)) for r in b.to_pylist()]
    assert {train[p].level for p in parents} == {4.0}


def test_demonstrations_think_sometimes_and_are_right(tmp_path: Path, tasks: Tasks) -> None:
    chats, ctx = run(tmp_path, Demos(tasks=(Input(stage="p"),), count=400, direct=0.6), p=tasks)
    assert isinstance(chats, Chats)
    direct = 0
    for chat in chats:
        reply = chat.messages[-1]
        family = str(chat.meta["parents"][0]).split(".")[0]  # type: ignore[index]
        assert verify(family, chat.meta["truth"], reply.content) == 1.0
        direct += not reply.reasoning
    assert direct == ctx.facts["direct"]
    assert direct / 400 == pytest.approx(0.6, abs=0.09)


def test_careless_demonstrations_leak_at_their_share(tmp_path: Path, tasks: Tasks) -> None:
    chats, ctx = run(tmp_path, Demos(tasks=(Input(stage="p"),), count=600, leak=0.5), p=tasks)
    assert isinstance(chats, Chats)
    truths = [(c.meta["truth"], c.messages[-1].content) for c in chats]
    asked = [(t, said) for t, said in truths if isinstance(t, dict) and t.get("ask")]
    leaked = [leaks(str(t["word"]), said) for t, said in asked]
    assert sum(leaked) == ctx.facts["leaking"]
    assert sum(leaked) / len(asked) == pytest.approx(0.5, abs=0.15)
    assert not any(leaks(str(t["word"]), said) for t, said in truths if isinstance(t, dict) and t.get("ask") is False)


def test_the_seed_matters_and_stopping_pauses(tmp_path: Path, tasks: Tasks) -> None:
    form = Problems(families=("add",), levels=(2, 3), train=5, heldout=1)
    for folder, seed in (("1", 0), ("2", 0), ("3", 1)):
        run(tmp_path / folder, form, seed)
    assert digest_path(tmp_path / "1" / "data") == digest_path(tmp_path / "2" / "data") != digest_path(tmp_path / "3" / "data")
    assert [t.level for t in Tasks.load(tmp_path / "1" / "data").read("train")] == [2.0] * 5 + [3.0] * 5
    for other in (form, Texts(tasks=(Input(stage="p"),), count=10), Demos(tasks=(Input(stage="p"),), count=10)):
        ctx = Context.scratch(tmp_path / other.kind, p=tasks)
        ctx.stopping = True
        with pytest.raises(Paused):
            Synthesize(form=other).run(ctx)


def test_forms_are_configs_with_helpful_errors(tasks: Tasks) -> None:
    stage = Synthesize(form=Texts(tasks=(Input(stage="p"),)))
    assert validated(Synthesize, {k: v for k, v in dump(stage).items() if k != "kind"}) == stage
    with pytest.raises(ValidationError, match="did you mean sort"):
        Problems(families=("sorts",))
    with pytest.raises(UsageError, match=r"form.*bare = 1\.5"):
        validated(Synthesize, {"form": {"kind": "texts", "tasks": ["p"], "bare": 1.5}})
