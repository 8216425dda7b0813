"""The whole recipe, small: every stage runs, is reused, is released, is explained, and leaks nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.e2e.conftest import PLANTED, Home
from tests.micro import ROOT
from upslope.config import kinds
from upslope.machine.run import record
from upslope.machine.stage import Stage
from upslope.machine.store import Store

pytestmark = pytest.mark.xdist_group("e2e")


def test_every_stage_ends_and_says_a_number(done: Home) -> None:
    seen = record(Store(done.folder / "store"))
    assert all(s.state == "sealed" for s in seen.stages)
    elsewhere = {"import", "command", "rewrite", "gather", "classifier"}  # other people's files and programs; data at more than one source
    elsewhere |= {"long_context", "readiness"}  # the recipe `midtrain` asks these
    assert {s.kind for s in seen.stages} == set(kinds(Stage)) - elsewhere
    log = (done.folder / "log.txt").read_text()
    for stage in seen.stages:
        assert re.search(rf"(?m)^  {re.escape(stage.name)} +\S.*·", log), f"{stage.name} printed no line"
        assert (stage.manifest or {})["headline"]
    assert "PASS" not in log
    assert "DEMO: rules satisfied" in log
    assert "next:" in log


def test_the_second_run_reuses_everything(done: Home) -> None:
    out = done.upslope("run", "mine.toml")
    total = len(record(Store(done.folder / "store")).stages)
    assert out.startswith(f"{total} of {total} reused")


def test_nothing_written_holds_secret_home_host(done: Home) -> None:
    planted = [*PLANTED.values(), str(done.folder.parent)]
    files = [p for p in (done.folder / "store").rglob("*") if p.is_file()]
    assert len(files) > 200
    for path in files:
        body = path.read_bytes()
        for text in planted:
            assert text.encode() not in body, f"{text} in {path.relative_to(done.folder)}"


def test_report(done: Home) -> None:
    report = next((done.folder / "store" / "runs").glob("*/report.html"))
    body = report.read_text()
    assert report.stat().st_size < 1_000_000
    assert not re.search(r"""(src|href)=["']https?://""", body)
    assert "PASS" not in body
    assert "could not be drawn" not in body


def test_release_opens_as_a_stock_qwen3_with_equal_logits_and_greedy_tokens(done: Home, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    import upslope
    from upslope.cli.models import find_model, verify_export
    from upslope.model.weights import import_hf

    found = find_model(None, Store(done.folder / "store"))
    assert found.label.endswith("/release")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(found.folder, dtype=torch.float32)
    assert type(theirs).__name__ == "Qwen3ForCausalLM"
    ours = upslope.load(str(found.folder))
    ids = ours.tokenizer.encode("sort: 9 3 7, and some more text to look at")
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).logits[0]
        model = import_hf(found.folder)
        mine = model.logits(model(torch.tensor(ids)))
    assert (logits - mine).abs().max() <= 1e-4
    tokenizer = transformers.AutoTokenizer.from_pretrained(found.folder)
    messages = [{"role": "user", "content": "sort: 9 3 7"}]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
    assert rendered == ours.renderer.open(messages).ids.tolist()
    done.upslope("export", "micro-1", str(tmp_path / "out"))
    assert verify_export(found.folder, tmp_path / "out") > 0


def test_exports_are_stamped(done: Home, tmp_path: Path) -> None:
    assert "ungated" in done.upslope("export", "micro-1/sft", str(tmp_path / "sft"))
    assert "ungated: true" in (tmp_path / "sft" / "README.md").read_text()
    assert "ungated" not in done.upslope("export", "micro-1", str(tmp_path / "released"))
    assert "demo: not a safety evaluation" in (tmp_path / "released" / "README.md").read_text()


def test_looking_verbs(done: Home) -> None:
    assert json.loads(done.upslope("ls", "--json"))[0]["run"] == "micro-1"
    assert json.loads(done.upslope("show", "--json"))["name"] == "micro-1"
    assert json.loads(done.upslope("plan", "mine.toml", "--json"))["stages"][0]["state"] == "reuse"
    assert json.loads(done.upslope("data", "funnel", "--json"))[-1]["step"] == "curate"
    assert "english" in done.upslope("data", "funnel")
    assert done.upslope("show", "--samples", "worst").strip()
    assert "knobs" in done.upslope("compare", "micro-1", "micro-1")
    assert json.loads(done.upslope("gc", "--json"))["applied"] is False
    assert "reused" in done.upslope("why", "sft", "--recipe", "mine.toml")
    assert "pretrain.rows" in done.upslope("plan", "mine.toml", "--origins")


def test_python_face(done: Home) -> None:
    import upslope

    run = upslope.open("micro-1", store=done.folder / "store")
    steps, values = run.metrics("climb/reward")
    assert len(steps) == len(values) == 2
    assert run.facts("problems")["train"] > 0
    assert "<" in run._repr_html_()
    with pytest.raises(Exception, match="no metric"):
        run.metrics("climb/rewrad")
    model = upslope.load("micro-1", store=done.folder / "store")
    assert isinstance(model.generate("parity: 1 2 3", max_new=8), str)
    assert model.logprobs("some text").shape[0] > 1


def test_finetune_on_the_exported_model(done: Home, tmp_path: Path) -> None:
    done.upslope("export", "micro-1", str(tmp_path / "base"))
    rows = [
        {"messages": [{"role": "user", "content": f"say {w} {i}"}, {"role": "assistant", "content": w}]}
        for w in ("yes", "no")
        for i in range(30)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "score.py").write_text("def score(task, answer):\n    return float(answer == task.truth['answer'])\n")
    small = ["--set", "sft.length=4st", "--set", "rl.steps=2", "--set", "rl.prompts=4", "--set", "rl.samples=4", "--set", "rl.max_new=8"]
    argv = [
        "run",
        "finetune",
        "--model",
        str(tmp_path / "base"),
        "--data",
        str(tmp_path / "chats.jsonl"),
        "--reward",
        f"{tmp_path}/score.py:score",
        *small,
    ]
    assert "done in" in done.upslope(*argv)
    assert "reused" in done.upslope(*argv)
    (tmp_path / "score.py").write_text("# only a comment\ndef score(task, answer):\n    return float(answer == task.truth['answer'])\n")
    assert "reused" in done.upslope(*argv), "a comment is not code"
    (tmp_path / "score.py").write_text("def score(task, answer):\n    return float(answer != task.truth['answer'])\n")
    out = done.upslope(*argv)
    assert re.search(r"(?m)^  rl ", out), "an edited reward rebuilds rl"
    assert not re.search(r"(?m)^  sft ", out), "and nothing before it"
    done.upslope("export", "finetune-1", str(tmp_path / "mine"), "--verify")


@pytest.mark.parametrize("name", [pytest.param("r1_micro", marks=pytest.mark.slow), "tulu3_micro"])
def test_other_orders_run(done: Home, name: str) -> None:
    """Their own stages, on the micro run's data and base."""
    (done.folder / f"{name}.toml").write_text(
        f'schema = 1\nextends = "{ROOT}/tests/{name}.toml"\n[set]\n"crawl.sources" = ["small.warc.gz"]\n'
    )
    out = done.upslope("run", f"{name}.toml")
    assert "done in" in out
    assert not re.search(r"(?m)^  pretrain ", out), "the base of the micro run is reused"
