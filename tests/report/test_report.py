"""The page as a whole: complete, self-contained, honest about what is missing, safe whatever the run holds."""

from __future__ import annotations

import dataclasses
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.report.fixture import Builder, climb, evaluation, finetune, full, gate, partial, training
from upslope.evals.artifacts import Table
from upslope.machine.record import RunRecord
from upslope.report import html, notebook, text
from upslope.report.sections.training import spikes

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Reads a page: ids, text by section, scripts; fails on a tag that is closed wrongly."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.words: dict[str, str] = {"": ""}
        self.scripts: list[str] = []
        self.section = ""
        self.feed(source)
        self.close()
        assert not self.stack, self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if "id" in found:
            self.ids.append(str(found["id"]))
        self.links += [str(v) for k, v in attrs if k in ("href", "src", "srcset", "data", "action", "xlink:href", "poster")]
        if tag == "section":
            self.section = str(found.get("id"))
            self.words[self.section] = ""
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.stack.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack[-1] == tag, (tag, self.stack)
        self.stack.pop()
        if tag == "section":
            self.section = ""

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] in ("script", "style"):
            self.scripts += [data] if self.stack[-1] == "script" else []
        else:
            self.words[self.section] += data


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    return full(tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def source(record: RunRecord) -> str:
    return html.render(record)


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def data(page: Page) -> dict[str, Any]:
    """The embedded JSON."""
    found: dict[str, Any] = json.loads(page.scripts[0])
    return found


def test_every_section_is_there_and_the_menu_leads_to_it(page: Page) -> None:
    expected = [
        "results",
        "gate",
        "redteam",
        "excluded",
        "stages",
        "data",
        "mixture",
        "training",
        "rl",
        "pairs",
        "time",
        "lineage",
        "conditions",
        "reproduce",
    ]
    assert [s for s in page.words if s] == expected
    assert [x for x in page.links if x.startswith("#")] == [f"#{s}" for s in expected]
    assert len(page.ids) == len(set(page.ids))
    assert "could not be drawn" not in "".join(page.words.values())


def test_the_page_is_one_small_file_that_loads_nothing(source: str, page: Page) -> None:
    assert len(source.encode()) < 1_000_000
    assert all(x.startswith("#") for x in page.links)
    assert not re.search(r"@import|url\(|\bfetch\(|XMLHttpRequest|<link|<img|<iframe|<object|<embed", source)
    assert len(html.asset("page.js")) < 20_000
    assert "default-src 'none'" in source


def test_all_graphics_are_well_formed_and_described(source: str) -> None:
    graphics = re.findall(r"<svg.*?</svg>", source, re.S)
    assert len(graphics) > 100
    for graphic in graphics:
        root = ET.fromstring(graphic)
        assert root.get("aria-hidden") == "true" or root.get("role") == "img", graphic[:200]
        if root.get("data-chart"):
            names = {e.get("id") for e in root.iter()}
            assert set(str(root.get("aria-labelledby")).split()) <= names


def test_every_table_has_a_caption_and_scrolls_by_itself(source: str) -> None:
    assert source.count("<table") == source.count("<caption>") == source.count('<div class="scroll" tabindex="0"') > 10


def test_the_verdict_gives_both_ends_the_share_of_thinking_and_the_control(page: Page, record: RunRecord) -> None:
    said = page.words[""].replace("\u00a0", " ")
    before, after = (Table.load(s.data).summary() for s in record.stages if s.name in ("eval_sft", "eval_climb"))
    free = [next(e for e in t if e.suite == "accuracy" and e.metric == "correct") for t in (before, after)]
    forced = next(e for e in before if e.suite == "forced_thinking" and e.metric == "correct")
    for e in (*free, forced):
        assert e.interval is not None
        assert f"{100 * e.value:.1f} % [{100 * e.interval.low:.1f}, {100 * e.interval.high:.1f}]" in said
    assert "raised" in said and "n = 440" in said
    assert f"explains {100 * (forced.value - free[0].value):.1f} of the {100 * (free[1].value - free[0].value):.1f} points" in said
    assert "random rewards" in said and "says nothing about models of other sizes" in said


def test_a_gain_that_forced_thinking_explains_is_said_so(tmp_path: Path) -> None:
    b = Builder(tmp_path)
    checkpoint, table = "upslope.model.checkpoint:Checkpoint", "upslope.evals.artifacts:Table"
    b.add("sft", "sft", artifact=checkpoint)
    b.add("climb", "rl", ["sft"], artifact=checkpoint, events=climb(6, (0.3, 0.6), (6, 20), 1))
    b.add("before", "evaluate", ["sft"], artifact=table, write=evaluation(0.3, 0.9, 1))
    b.add("after", "evaluate", ["climb"], artifact=table, write=evaluation(0.6, None, 1))
    assert "explains the whole gain" in text.summary(b.record(), 10_000)


def test_a_drop_is_called_a_drop_and_an_unmeasured_split_unknown(tmp_path: Path) -> None:
    b = Builder(tmp_path)
    checkpoint, table = "upslope.model.checkpoint:Checkpoint", "upslope.evals.artifacts:Table"
    b.add("sft", "sft", artifact=checkpoint)
    b.add("climb", "rl", ["sft"], artifact=checkpoint)
    b.add("before", "evaluate", ["sft"], artifact=table, write=evaluation(0.6, None, 1))
    b.add("after", "evaluate", ["climb"], artifact=table, write=evaluation(0.3, None, 1))
    said = text.summary(b.record(), 10_000)
    assert "RL lowered" in said and "learning to think is unknown" in said


def test_a_demo_decision_never_reads_as_approval(page: Page, source: str) -> None:
    said = page.words["gate"]
    assert "DEMO: rules satisfied" in said and "not a safety evaluation" in said and 'class="gate demo"' in source
    assert "hazardous capabilities: not measured" in said and "worst-case fine-tuning" in said
    assert not re.search(r"\b(PASS|PASSED|APPROVE|APPROVED|SAFE)\b", "".join(page.words.values()))


@pytest.mark.parametrize(
    ("demo", "threshold", "word"), [(False, 0.2, "APPROVE"), (False, 0.99, "REFUSE"), (True, 0.99, "DEMO: rules not satisfied")]
)
def test_the_gate_box_prints_the_decision(tmp_path: Path, demo: bool, threshold: float, word: str) -> None:
    b = Builder(tmp_path)
    b.add("eval", "evaluate", artifact="upslope.evals.artifacts:Table", write=evaluation(0.7, None, 1))
    b.add("gate", "gate", ["eval"], artifact="upslope.safety.gate:Decision", write=gate(b.stages[0].data, demo, threshold))
    said = Page(html.render(b.record())).words
    assert word in said["gate"] and word in said[""]
    assert ("Reasons" in said["gate"]) == (threshold > 0.9)


def test_a_decision_file_with_an_invented_label_is_no_decision(tmp_path: Path) -> None:
    b = Builder(tmp_path)
    b.add(
        "gate",
        "gate",
        artifact="upslope.safety.gate:Decision",
        write=lambda d: (d / "decision.json").write_text('{"demo": true, "label": "PASS", "outcome": "satisfied"}'),
    )
    b.add(
        "other",
        "gate",
        artifact="upslope.safety.gate:Decision",
        write=lambda d: (d / "decision.json").write_text('{"demo": false, "label": "PASS"}'),
    )
    said = Page(html.render(b.record())).words
    assert "PASS" not in "".join(said.values()) and "no valid decision" in said["gate"]


def test_a_run_without_safety_stages_says_not_gated(tmp_path: Path) -> None:
    said = Page(html.render(finetune(tmp_path))).words
    assert "not gated" in said[""] and "not gated" in said["gate"]
    assert "redteam" not in said and "data" not in said and "rl" not in said
    assert "against base, on the same items" in said[""].replace("\u00a0", " ")


def test_what_was_left_out_is_as_prominent_as_what_was_kept(page: Page) -> None:
    said = page.words["excluded"]
    for phrase in (
        "not HTML",
        "without any text",
        "741",
        "longer than the context",
        "no signal",
        "replies were lost",
        "not finite",
        "3,194",
    ):
        assert phrase in said, phrase
    assert list(page.words).index("excluded") < list(page.words).index("stages")


def test_alarms_stand_at_the_top_and_cannot_be_folded(page: Page, source: str) -> None:
    said = page.words[""]
    assert "some records are damaged" in said and "step refused: not finite at step 60" in said and "replies lost" in said
    assert "<details" not in source


def test_the_data_section_gives_each_rule_its_own_and_its_lone_kills(page: Page) -> None:
    said = page.words["data"]
    for phrase in ("1,655", "871", "−741", "312", "96", "langid.lang = 'en'", "bytes desc, doc", "zh", "67 %", "CC-BY-4.0"):
        assert phrase in said, phrase


def test_mixture_and_epochs(page: Page) -> None:
    said = page.words["mixture"]
    assert "1.8M tokens" in said and "62.0 %" in said and "0.51" in said and "There but not read: reasoning" in said


def test_loss_marks_its_spike_and_its_restart(page: Page, source: str) -> None:
    charts = data(page)["charts"]
    marks = {(m["label"], m["x"]) for m in charts["pretrain-loss"]["marks"]}
    assert ("spike", 605.0) in marks and any(label == "resumed" for label, _ in marks)
    assert ">spike</text>" in source and ">resumed</text>" in source
    assert max(charts["pretrain-loss"]["series"][0]["y"]) > 6 and 4.9 in charts["pretrain-loss"]["series"][0]["y"]
    assert {m["label"] for m in charts["midtrain-loss"]["marks"]} == {"refused"}


def test_spikes_are_found_where_they_were_planted() -> None:
    line = [1.0 + 0.01 * (-1) ** i for i in range(100)]
    assert spikes(line) == []
    line[70] = 3.0
    assert spikes(line) == [70]
    assert spikes([1.0] * 50) == []


def test_rl_curves_lengths_entropy_and_truncation(page: Page) -> None:
    charts = data(page)["charts"]
    assert {
        "climb-reward",
        "climb-thinking",
        "climb-length",
        "climb-entropy",
        "climb-idle",
        "climb_align-reward",
        "control-reward",
    } <= charts.keys()
    assert [s["name"] for s in charts["climb-thinking"]["series"]] == ["thinking", "truncated"]
    y = charts["climb-length"]["series"][0]["y"]
    assert y[0] < 9 < 18 < y[-1]


def test_results_show_interval_and_n_and_compare_with_the_ancestor(page: Page) -> None:
    said = page.words["results"]
    assert "sft → climb" in said and "sft → control" in said and "climb → final" in said and "control → final" not in said
    assert "random-reward control" in said and "bits_per_byte" in said and "10 / 10" in said


def test_pairs_red_team_time_lineage(page: Page, record: RunRecord) -> None:
    assert "66.4\u00a0%" in page.words["pairs"] and "longer answer" in page.words["pairs"] and "Chance is 50 %" in page.words["pairs"]
    red = page.words["redteam"]
    leaked = sum(
        r.value
        for r in Table.load(next(s.data for s in record.stages if s.name == "redteam")).rows()
        if (r.suite, r.metric) == ("redteam", "leaked")
    )
    assert f"{leaked:.0f} / 24" in red and "crescendo" in red and "Over-refusal" in red and "of constructed leaks are found" in red
    assert "1 restart (pretrain: 1)" in page.words["time"]
    lineage = page.words["lineage"]
    assert all(s.fp[:12] in lineage and s.name in lineage for s in record.stages)
    assert "Apache-2.0, CC-BY-4.0" in lineage
    assert "2.13.0+cpu" in page.words["conditions"] and "--set pretrain.optim.lr" in page.words["conditions"]
    assert "upslope run tiny --seed 0" in page.words["reproduce"]


def test_the_page_is_a_data_set(page: Page, record: RunRecord) -> None:
    found = data(page)
    assert found["recipe"] == record.recipe and found["command"] == record.command
    stages = {s["name"]: s for s in found["stages"]}
    assert (
        stages["pretrain"]["how"] == "resumed" and stages["crawl"]["how"] == "reused" and stages["sft"]["facts"]["left_out_too_long"] == 14
    )
    assert stages["climb"]["reads"] == ["sft", "problems"]


def test_an_unfinished_run_is_told_as_it_is(tmp_path: Path) -> None:
    page = Page(html.render(partial(tmp_path)))
    top = page.words[""]
    assert "not complete" in top and "failed: corpus" in top and "corpus failed: UsageError: no page could be read" in top
    assert "loss was not finite at step 55" in top and "not decided" in top
    assert "its table cannot be read" in page.words["results"] and "No corpus of this run can be read yet" in page.words["data"]
    assert "could not be drawn" not in "".join(page.words.values())
    assert {s["name"]: s["how"] for s in data(page)["stages"]}["sft"] == "running"


@pytest.mark.parametrize("keep", [0, 1])
def test_runs_of_nothing_and_of_one_stage(tmp_path: Path, keep: int) -> None:
    b = Builder(tmp_path)
    for _ in range(keep):
        b.add("only", "command", state="absent")
    page = Page(html.render(b.record(command="", overrides={})))
    assert "could not be drawn" not in "".join(page.words.values())
    assert ("no stages" if not keep else "Nothing is finished yet") in page.words[""]
    assert text.summary(b.record())


def test_any_damage_to_facts_events_and_manifests_leaves_a_report(tmp_path: Path) -> None:
    record = full(tmp_path)
    for wrong in (
        None,
        "x",
        {
            "leaked": 3,
            "epochs": [1],
            "funnel": 1,
            "available": {"docs": "many"},
            "heldout_accuracy": {"value": "nan"},
            "rejects": 1,
            "short": 2,
        },
    ):
        stages = tuple(
            dataclasses.replace(s, manifest={**(s.manifest or {}), "facts": wrong, "bits": {}, "files": {}, "seconds": None})
            for s in record.stages
        )
        said = "".join(Page(html.render(dataclasses.replace(record, stages=stages))).words.values())
        assert "could not be drawn" not in said, re.findall("could not be drawn[^<]{0,200}", said)
    torn = [
        {"t": 1.0, "kind": "metric", "step": "x", "values": {"loss": 1}},
        {"t": 2.0, "kind": "metric", "step": 1, "values": None},
        {"t": 3.0, "kind": "alarm"},
        {"t": 4.0, "kind": "end"},
    ]
    stages = tuple(dataclasses.replace(s, manifest=None, state="partial", events=torn) for s in record.stages)
    assert "could not be drawn" not in "".join(Page(html.render(dataclasses.replace(record, stages=stages))).words.values())


def test_hostile_names_and_texts_stay_text(tmp_path: Path) -> None:
    bad = '</script><script>alert(1)</script><img src="http://evil.example/x" onerror=alert(1)>\u202e\x1b[31m'
    b = Builder(tmp_path)
    alarm = {"kind": "alarm", "what": bad, "why": bad, "step": 3}
    b.add(
        bad,
        bad,
        headline=bad,
        facts={bad: bad, "rejects": {bad: 3}},
        events=[alarm, *training(20, 2, 1, 1e-3, 1, every=1)],
        licences=[bad],
        artifact=bad,
    )
    b.add(
        "climb",
        "rl",
        [bad],
        config={"kind": bad},
        events=[{"kind": "metric", "step": i, "values": {bad: float(i), "reward": 1.0}} for i in range(4)],
    )
    record = b.record(name=bad, command=bad, started=bad, overrides={bad: bad})
    source = html.render(record)
    page = Page(source)
    assert len(page.scripts) == 2 and json.loads(page.scripts[0])["run"] == bad
    assert all(x.startswith("#") for x in page.links)
    assert "<img" not in source and "alert(1)</script>" not in source and "\u202e" not in "".join(page.words.values())
    assert "\x1b" not in text.summary(record) and "\u202e" not in text.summary(record)
    shown = notebook.repr_html(record)
    assert "<script" not in shown and "<img" not in shown


def test_secrets_and_places_do_not_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "very-secret-value-1")
    b = Builder(tmp_path)
    b.add("sft", "sft", headline=f"very-secret-value-1 in {Path.cwd()}/x", events=[{"kind": "alarm", "what": "very-secret-value-1"}])
    source = html.render(b.record(command=f"upslope run --data {Path.cwd()}/chats.jsonl"))
    assert "very-secret-value-1" not in source and str(Path.cwd()) not in source


def test_a_huge_run_stays_below_the_limit_and_says_what_it_left_out(tmp_path: Path) -> None:
    b = Builder(tmp_path)
    events = training(2000, 7, 2, 1e-3, 1, every=1)
    for i in range(60):
        b.add(f"train{i}", "sft", [f"train{i - 1}"] if i else [], events=events)
    source = html.render(b.record())
    assert len(source.encode()) < html.LIMIT
    assert "not embedded as data" in source and data(Page(source))["charts"] == {} and "train59: loss" in source


def test_rendering_twice_gives_the_same_bytes(record: RunRecord, source: str, tmp_path: Path) -> None:
    path = html.write(record, tmp_path / "runs" / "report.html")
    assert path.read_text(encoding="utf-8") == source


def test_the_terminal_summary_names_every_stage_with_state_seconds_and_headline(record: RunRecord) -> None:
    lines = text.summary(record).splitlines()
    assert all(any(line.startswith(s.name) for line in lines) for s in record.stages)
    assert any("resumed ×2" in line and "91 s" in line and "0.64M parameters" in line for line in lines)
    assert any(line.startswith("  midtrain: step refused") for line in lines) and max(map(len, lines)) <= 124
    stage = record.stage("pretrain")
    assert stage is not None
    detail = text.details(record, stage)
    assert "876" in detail and "loss" in detail and "reads    tokenizer, shards, mix" in detail


def test_the_notebook_display_is_scoped(record: RunRecord) -> None:
    shown = notebook.repr_html(record)
    style = re.findall(r"<style>(.*?)</style>", shown, re.S)[0]
    assert style.startswith(".upslope {") and "@media print" not in style and ":root" not in style
    assert style.count("{") == style.count("}")
    assert "pretrain: loss" in shown and "<script" not in shown
