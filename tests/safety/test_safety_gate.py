"""The ten tests of trust, as far as evidence, rules, objects and decisions go."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from upslope.config import UsageError
from upslope.evals.artifacts import Condition, Row, Table
from upslope.evals.subject import Subject
from upslope.machine.files import digest_file, read_json, write_json
from upslope.machine.stage import Refused, Undecided
from upslope.safety.gate import Approval, Decision, Framework, Indicator, decide, label, uncovered
from upslope.safety.release import admit
from upslope.stats.intervals import clopper_pearson
from upslope.stats.prevalence import prevalence

PARTS = ("weights", "numerics", "tokenizer", "template", "system", "sampling", "engine")
THIS = Subject(**{p: p for p in PARTS})
DEMO = Path(__file__).parents[2] / "upslope" / "assets" / "frameworks" / "demo.toml"


def other(part: str) -> Subject:
    return Subject(**{**THIS.json(), part: "another"})


def rows(suite: str, metric: str, k: int, n: int) -> list[Row]:
    return [Row(suite, f"x/{i:03d}", metric, float(i < k)) for i in range(n)]


def table(folder: Path, about: Subject = THIS, right: int = 90, leaked: int = 0, n: int = 100) -> Table:
    made = [*rows("accuracy", "correct", right, n), *rows("redteam", "leaked", leaked, n)]
    made += [*rows("detector", "sensitivity", 90, 100), *rows("detector", "specificity", 99, 100)]
    cards = {s: Condition(about, {}) for s in ("accuracy", "redteam")} | {"detector": Condition(Subject(), {})}
    return Table.write(folder, made, cards)


def rule(**changes: Any) -> Indicator:
    base: dict[str, Any] = {
        "name": "answers",
        "category": "ability",
        "suite": "accuracy",
        "metric": "correct",
        "bound": "lower",
        "threshold": 0.5,
    }
    return Indicator(**{**base, **changes})


LEAK = rule(name="keeps", category="leak", suite="redteam", metric="leaked", bound="upper", threshold=0.1, detector=True)


def framework(*rules: Indicator, demo: bool = False, **changes: Any) -> Framework:
    chosen = rules or (rule(), LEAK)
    return Framework(**{"name": "f", "demo": demo, "categories": tuple({r.category for r in chosen}), "indicators": chosen, **changes})


def test_good_evidence_about_this_object_satisfies(tmp_path: Path) -> None:
    made = decide(framework(), THIS, [table(tmp_path)])
    assert (made["outcome"], made["label"], made["reasons"]) == ("satisfied", "APPROVE", [])
    assert made["object_digest"] == THIS.digest()
    assert [f["estimate"]["n"] for f in made["findings"]] == [100, 100]


@pytest.mark.parametrize(("right", "threshold", "outcome"), [(59, 0.5, "not satisfied"), (61, 0.5, "satisfied"), (59, 0.48, "satisfied")])
def test_the_confidence_limit_decides_not_the_estimate(tmp_path: Path, right: int, threshold: float, outcome: str) -> None:
    made = decide(framework(rule(threshold=threshold)), THIS, [table(tmp_path, right=right)])
    assert (clopper_pearson(right, 100).low >= threshold) == (outcome == "satisfied")
    assert made["outcome"] == outcome
    assert decide(framework(rule(threshold=0.59, on="point")), THIS, [table(tmp_path, right=right)])["outcome"] == "satisfied"


def test_the_detectors_errors_reach_the_bound(tmp_path: Path) -> None:
    limit = prevalence(3, 100, (90, 100), (99, 100)).high
    assert limit > clopper_pearson(3, 100).high
    for threshold, outcome in ((limit + 1e-6, "satisfied"), (limit - 1e-6, "not satisfied")):
        assert decide(framework(LEAK.replace(threshold=threshold)), THIS, [table(tmp_path, leaked=3)])["outcome"] == outcome
    bare = Table.write(tmp_path / "bare", rows("redteam", "leaked", 0, 100), {"redteam": Condition(THIS, {})})
    made = decide(framework(LEAK), THIS, [bare])
    assert made["outcome"] == "insufficient"
    assert "detector" in made["reasons"][0]


# ── forged, stale, other, missing, none, not a number ─────────────────────────────────────────────────────────────


def rewrite(folder: Path, change: Any, fix_card: bool) -> None:
    data = [r._asdict() for r in Table.load(folder).rows()]
    change(data)
    pq.write_table(pa.Table.from_pylist(data), folder / "rows.parquet")
    if fix_card:
        card = read_json(folder / "conditions.json")
        write_json(folder / "conditions.json", card | {"rows": digest_file(folder / "rows.parquet")})


def test_a_forged_row_refuses_at_the_gate_and_after_it(tmp_path: Path) -> None:
    def flip(data: list[dict[str, Any]]) -> None:
        first = next(r for r in data if r["suite"] == "redteam" and r["value"] == 1.0)
        first["value"] = 0.0

    evidence = table(tmp_path / "t", leaked=1)
    decision = Decision.write(tmp_path / "d", decide(framework(), THIS, [evidence]))
    assert admit(decision, THIS, [evidence])["outcome"] == "satisfied"
    rewrite(evidence.path, flip, fix_card=False)
    made = decide(framework(), THIS, [evidence])
    assert made["outcome"] == "not satisfied"
    assert "rows" in made["reasons"][0]
    with pytest.raises(Refused, match="evidence is not what"):
        admit(decision, THIS, [evidence])
    rewrite(evidence.path, lambda data: None, fix_card=True)  # a forger who mends the card as well: the decision still knows
    with pytest.raises(Refused, match="evidence is not what"):
        admit(decision, THIS, [evidence])


@pytest.mark.parametrize("part", PARTS)
def test_evidence_about_another_object_refuses(tmp_path: Path, part: str) -> None:
    """Other weights, another template, quantisation, system prompt …; evidence from before a change is the same case: stale."""
    made = decide(framework(), THIS, [table(tmp_path, about=other(part))])
    assert made["outcome"] == "not satisfied"
    assert part in made["reasons"][0]


@pytest.mark.parametrize("part", PARTS)
def test_a_decision_does_not_carry_over_to_another_object(tmp_path: Path, part: str) -> None:
    evidence = table(tmp_path / "t")
    decision = Decision.write(tmp_path / "d", decide(framework(), THIS, [evidence]))
    with pytest.raises(Refused, match=f"another object: other {part}"):
        admit(decision, other(part), [evidence])
    with pytest.raises(Refused, match="evidence is not what"):
        admit(decision, THIS, [])


def test_missing_suite_category_metric_or_items_are_insufficient(tmp_path: Path) -> None:
    evidence = [table(tmp_path / "t", n=20, right=20)]
    cases = [
        (framework(rule(suite="cyber")), evidence),
        (framework(rule(metric="wrong")), evidence),
        (framework(rule(group="sub")), evidence),
        (framework(categories=("ability", "leak", "bio")), evidence),
        (framework(rule(min_n=21)), evidence),
        (framework(), []),
        (Framework(name="f", demo=False, categories=(), indicators=()), evidence),
    ]
    for rules, tables in cases:
        made = decide(rules, THIS, tables)
        assert (made["outcome"], made["label"]) == ("insufficient", "INSUFFICIENT EVIDENCE"), rules
        with pytest.raises(Undecided):
            admit(Decision.write(tmp_path / "d", made), THIS, tables)
    empty = Table.write(tmp_path / "e", [], {"accuracy": Condition(THIS, {})})
    made = decide(framework(rule(min_n=0)), THIS, [empty])  # n = 0 is never enough, whatever the framework says
    assert made["outcome"] == "insufficient"
    assert decide(framework(rule(min_n=20)), THIS, evidence)["outcome"] == "satisfied"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bound", ["upper", "lower"])
def test_a_threshold_that_is_no_number_refuses(tmp_path: Path, bad: float, bound: str) -> None:
    evidence = table(tmp_path / "t")
    made = decide(framework(rule(threshold=bad, bound=bound)), THIS, [evidence])
    assert made["outcome"] == "not satisfied"
    assert "not a number" in made["reasons"][0]
    decision = Decision.write(tmp_path / "d", made)  # it can be written and read back
    assert uncovered(decision.json(), THIS, [evidence]) is None
    file = tmp_path / "f.toml"
    file.write_text(
        f'name="f"\ndemo=true\ncategories=["ability"]\n[[indicators]]\nname="a"\ncategory="ability"\nsuite="accuracy"\n'
        f'metric="correct"\nbound="{bound}"\nthreshold={bad}\n'
    )
    assert decide(Framework.read(file), THIS, [evidence])["label"] == "DEMO: rules not satisfied"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_no_number_refuses(tmp_path: Path, bad: float) -> None:
    evidence = table(tmp_path / "t")
    rewrite(evidence.path, lambda data: data[0].update(value=bad), fix_card=True)
    made = decide(framework(rule()), THIS, [evidence])
    assert made["outcome"] == "not satisfied"
    assert "not a number" in made["reasons"][0]


def test_the_worst_outcome_wins_and_two_sources_of_one_suite_refuse(tmp_path: Path) -> None:
    both = framework(rule(threshold=0.99), rule(name="b", suite="cyber"))
    assert decide(both, THIS, [table(tmp_path / "a")])["outcome"] == "not satisfied"
    twice = decide(framework(), THIS, [table(tmp_path / "a"), table(tmp_path / "b", right=100)])
    assert twice["outcome"] == "not satisfied"
    assert "two tables" in twice["reasons"][0]
    undescribed = decide(framework(), Subject(weights="weights"), [table(tmp_path / "c", about=Subject(weights="weights"))])
    assert undescribed["outcome"] == "insufficient"


def test_evidence_that_names_no_weights_refuses(tmp_path: Path) -> None:
    made = decide(framework(rule()), THIS, [table(tmp_path, about=Subject(tokenizer="tokenizer"))])
    assert made["outcome"] == "not satisfied"


@pytest.mark.parametrize(
    ("key", "value"), [("outcome", "satisfied"), ("label", "APPROVE"), ("reasons", []), ("demo", True), ("framework", None), ("extra", 1)]
)
def test_an_edited_decision_refuses(tmp_path: Path, key: str, value: Any) -> None:
    evidence = table(tmp_path / "t", right=10)
    body = decide(framework(), THIS, [evidence])
    assert uncovered(json.loads(json.dumps(body)), THIS, [evidence]) is None
    easier = dict(decide(framework(rule(threshold=0.0)), THIS, [evidence])["framework"])
    body[key] = easier if key == "framework" else value
    with pytest.raises(Refused, match="does not follow"):
        admit(Decision.write(tmp_path / "d", body), THIS, [evidence])
    with pytest.raises(Refused, match="cannot be read"):
        admit(Decision.write(tmp_path / "d", {"outcome": "satisfied"}), THIS, [evidence])


def test_a_refusal_is_refused_with_its_reason(tmp_path: Path) -> None:
    evidence = table(tmp_path / "t", right=10)
    decision = Decision.write(tmp_path / "d", decide(framework(), THIS, [evidence]))
    assert decision.label == "REFUSE"
    with pytest.raises(Refused, match=r"REFUSE.*answers: lower limit 0\.049 < 0\.5 \(k=10/n=100\)"):
        admit(decision, THIS, [evidence])


def test_a_demo_never_reads_as_approval(tmp_path: Path) -> None:
    assert {label(o, True) for o in ("satisfied", "not satisfied", "insufficient")} == {
        "DEMO: rules satisfied",
        "DEMO: rules not satisfied",
        "INSUFFICIENT EVIDENCE",
    }
    for right in (10, 90):
        made = decide(framework(demo=True), THIS, [table(tmp_path / str(right), right=right)])
        text = json.dumps(made).upper()
        assert "PASS" not in text
        assert "APPROVE" not in text
        assert made["watermark"] == "demo: not a safety evaluation"


def test_approvals_bind_to_the_object_and_to_different_people(tmp_path: Path) -> None:
    evidence = [table(tmp_path)]
    rules = framework(approvals=("safety", "board"))
    mine = THIS.digest()
    cases = {
        (): "insufficient",
        (Approval(role="safety", by="a", covers=mine),): "insufficient",
        (Approval(role="safety", by="a", covers=mine), Approval(role="board", by="a", covers=mine)): "insufficient",
        (Approval(role="safety", by="a", covers=mine), Approval(role="board", by="b", covers=other("system").digest())): "insufficient",
        (Approval(role="safety", by="a", covers=mine), Approval(role="board", by="b", covers=mine)): "satisfied",
    }
    for approvals, outcome in cases.items():
        assert decide(rules, THIS, evidence, approvals)["outcome"] == outcome, approvals


def test_the_demo_framework_reads_and_typos_are_errors(tmp_path: Path) -> None:
    demo = Framework.read(DEMO)
    assert demo.demo
    assert {i.category for i in demo.indicators} == set(demo.categories)
    assert demo.not_tested
    file = tmp_path / "f.toml"
    file.write_text(DEMO.read_text().replace("threshold", "treshold", 1))
    with pytest.raises(UsageError, match="did you mean 'threshold'"):
        Framework.read(file)
    file.write_text("name = ")
    with pytest.raises(UsageError, match="not TOML"):
        Framework.read(file)
