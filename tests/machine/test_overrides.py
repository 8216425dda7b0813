"""Overrides and recipe files: addressed, typed, with origins; nothing is ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.machine.toy import Number
from upslope.config import Config, Duration, UsageError, Was, validated
from upslope.machine.graph import resolve
from upslope.machine.stage import Recipe
from upslope.recipes.load import _from_toml
from upslope.recipes.overrides import Draft, apply, parse_assignment


def draft() -> Draft:
    return Draft(
        Recipe(
            name="toy", stages={"sft_a": Number(value=2), "sft_b": Number(parents=("sft_a",)), "rl": Number(parents=("sft_b",), steps=5)}
        )
    )


def sets(*assignments: str) -> Recipe:
    return apply(draft(), [parse_assignment(a) for a in assignments]).recipe


def test_addressed_globbed_and_bare() -> None:
    assert sets("rl.inner.b=0.25").stages["rl"].inner.b == 0.25  # type: ignore[attr-defined]
    assert [s.value for s in sets("sft_*.value=7").stages.values()] == [7, 7, 1]  # type: ignore[attr-defined]
    assert sets("stages.rl.table.y=3").stages["rl"].table["y"] == 3  # type: ignore[attr-defined]
    assert sets("seed=5", "name=other").seed == 5
    assert sets("rl.parents=['sft_a']").stages["rl"].parents[0].stage == "sft_a"  # type: ignore[attr-defined]


def test_origins() -> None:
    assert apply(draft(), [("rl.value", 3)], origin="mine.toml").origins == {"rl.value": "mine.toml"}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("value=3", "fits 3 stages"),
        ("nothing.here=3", "matches nothing"),
        ("rl.inner.q=1", "unknown key 'q' in Inner"),
        ("rl.stepps=1", "did you mean 'steps'"),
        ("rl.steps=x", "valid integer"),
        ("rl=3", "whole stage"),
        ("rl.steps", "path=value"),
        ("rl.inner.b=nan", "finite"),
        ("rl.kind=toy", "no Stage of kind"),
        ("rl.parents.9=sft_a", "not among"),
        ("rl.steps.more=1", "plain value"),
        ("rl.value=true", "valid integer"),
    ],
)
def test_errors_name_what_is_wrong(assignment: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as e:
        sets(assignment)
    assert len(str(e.value).splitlines()) <= 6


def test_toml(tmp_path: Path) -> None:
    kind = "tests.machine.toy:Number"
    (tmp_path / "base.toml").write_text(
        f'schema = 1\nname = "base"\n[stages.a]\nkind = "{kind}"\nvalue = 3\n[stages.b]\nkind = "{kind}"\nparents = ["a"]\n'
    )
    (tmp_path / "mine.toml").write_text('schema = 1\nextends = "base.toml"\nseed = 4\n[set]\n"b.inner.a" = 9\n[stages.a]\nsteps = 6\n')
    mine = _from_toml(tmp_path / "mine.toml", ())
    assert (mine.recipe.name, mine.recipe.seed) == ("mine", 4)
    assert mine.recipe.stages["a"].steps == 6  # type: ignore[attr-defined]
    assert mine.recipe.stages["a"].value == 3  # type: ignore[attr-defined]
    assert mine.recipe.stages["b"].inner.a == 9  # type: ignore[attr-defined]
    assert mine.origins["b.inner.a"] == "mine.toml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = 'x'", "schema version"),
        ("schema = 99", "update upslope"),
        ("schema = 1\nextends = 'nope'", "no recipe named"),
        ("schema = 1\nstagse = 3", "did you mean 'stages'"),
        ("schema = 1\n[stages.a]\nvalue = 1", "no kind"),
        ("schema = = 1", "not valid TOML"),
        ("schema = 1\nextends = 'me.toml'", "extends itself"),
        ("schema = 1\n[stages]\na = 3", "not a table"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "me.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        _from_toml(tmp_path / "me.toml", ())


def test_cycles_and_unknown_inputs_are_named() -> None:
    with pytest.raises(UsageError, match=r"cycle: a → b → a|cycle: b → a → b"):
        resolve(Recipe(name="r", stages={"a": Number(parents=("b",)), "b": Number(parents=("a",))}))
    with pytest.raises(UsageError, match="did you mean base"):
        resolve(Recipe(name="r", stages={"base": Number(), "b": Number(parents=("bsae",))}))


def test_renamed_fields_load() -> None:
    from typing import Annotated

    class Knob(Config):
        learning_rate: Annotated[float, Was("lr")] = 0.1

    assert validated(Knob, {"lr": 0.3}).learning_rate == 0.3
    with pytest.raises(UsageError, match="unknown key"):
        validated(Knob, {"lr": 0.3, "learning_rate": 0.2})


@pytest.mark.parametrize(("text", "steps"), [("500st", 500), ("1e6tok", 1000), ("2ep", 20), ("20tpp", 2000)])
def test_durations(text: str, steps: int) -> None:
    assert Duration.of(text).steps(1000, tokens_per_epoch=10_000, params=100_000) == steps


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "abc", [1]])
def test_floats_are_finite_and_typed(value: Any) -> None:
    with pytest.raises(UsageError):
        validated(Number, {"inner": {"b": value}})
