"""Identity: what changes a fingerprint and what must not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.machine.toy import Inner, Number
from upslope.config import Config, Exec, FrozenDict, Input, Neutral, Source, UsageError, dump
from upslope.machine.graph import resolve
from upslope.machine.identity import class_code, file_code, identity, pin_sources
from upslope.machine.stage import Recipe, Stage


def recipe(**changes: Any) -> Recipe:
    return Recipe(name="toy", stages={"a": Number(value=2), "b": Number(parents=("a",), **changes), "c": Number(parents=("a", "b"))})


def fps(r: Recipe) -> dict[str, str]:
    return {n.name: n.fp for n in resolve(r).nodes.values()}


def test_same_in_other_processes_with_other_hash_seeds_and_folders(tmp_path: Path) -> None:
    code = (
        "import sys, json; sys.path.insert(0, sys.argv[1])\n"
        "from tests.machine.test_identity import recipe, fps\nprint(json.dumps(fps(recipe())))"
    )
    root = Path(__file__).parents[2]
    seen = []
    for hash_seed in ("1", "271828"):
        for folder in ("x", "y/z", "store elsewhere"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            out = subprocess.run(
                [sys.executable, "-c", code, str(root)],
                cwd=tmp_path / folder,
                env={**os.environ, "PYTHONHASHSEED": hash_seed},
                capture_output=True,
                text=True,
                check=True,
            )
            seen.append(json.loads(out.stdout))
            if hash_seed == "1":
                break
    assert all(s == seen[0] == fps(recipe()) for s in seen)


def test_key_order_does_not_matter() -> None:
    a = Number(table={"x": 1, "y": 2})
    b = Number(table={"y": 2, "x": 1})
    assert identity(a, {}) == identity(b, {})


def test_stage_names_are_not_identity_but_order_of_inputs_is() -> None:
    one = Recipe(name="r", stages={"a": Number(value=2), "z": Number(value=3), "b": Number(parents=("a", "z"))})
    renamed = Recipe(name="q", stages={"p": Number(value=2), "q": Number(value=3), "b": Number(parents=("p", "q"))})
    swapped = Recipe(name="r", stages={"a": Number(value=2), "z": Number(value=3), "b": Number(parents=("z", "a"))})
    assert fps(one)["b"] == fps(renamed)["b"] != fps(swapped)["b"]


def test_exec_fields_are_not_identity() -> None:
    assert fps(recipe()) == fps(recipe(wait=9.0))


CHANGES: dict[str, Any] = {
    "seed": 7,
    "value": 5,
    "parents": (),
    "inner": Inner(a=2),
    "table": FrozenDict({"x": 2}),
    "steps": 4,
    "younger": 1.0,
}


@pytest.mark.parametrize("field", sorted(CHANGES))
def test_every_other_field_is_identity(field: str) -> None:
    assert set(CHANGES) == set(Number.model_fields) - {"wait"}, "a new field needs a change here"
    changed = Recipe(
        name="toy",
        stages={"a": Number(value=2), "b": Number(**{"parents": ("a",), field: CHANGES[field]}), "c": Number(parents=("a", "b"))},
    )
    before, after = fps(recipe()), fps(changed)
    assert before["a"] == after["a"]
    assert before["b"] != after["b"]
    assert before["c"] != after["c"], "whatever lies downstream changes too"


def test_a_new_neutral_field_changes_nothing_until_it_is_used() -> None:
    class Old(Config):
        x: int = 1

    class New(Config):
        x: int = 1
        extra: Annotated[float, Neutral(0.0)] = 0.0

    class Drifted(Config):
        x: int = 1
        extra: Annotated[float, Neutral(0.0)] = 0.3  # a later change of the default is a change

    assert dump(Old(), identity=True) == dump(New(), identity=True)
    assert dump(New(extra=0.1), identity=True) != dump(Old(), identity=True)
    assert dump(Drifted(), identity=True) != dump(Old(), identity=True)


@given(
    st.integers(-(10**6), 10**6),
    st.floats(-1e9, 1e9),
    st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(0, 9), max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_fingerprints_are_injective_on_values(value: int, b: float, table: dict[str, int]) -> None:
    mine = Number(value=value, inner=Inner(b=b), table=table)
    again = Number(value=value, inner=Inner(b=b), table=dict(reversed(table.items())))
    assert identity(mine, {}) == identity(again, {})
    assert identity(mine, {}) != identity(mine.replace(value=value + 1), {})


def test_sources_count_by_content_never_by_path_or_time(tmp_path: Path) -> None:
    class Reads(Stage):
        kind: ClassVar[str] = "reads"
        data: Source

    def fp(path: Path) -> str:
        return identity(pin_sources(Reads(data=Source(uri=str(path)))), {})

    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.txt").write_text("hello")
    assert fp(tmp_path / "a.txt") == fp(tmp_path / "deep" / "b.txt")
    before = fp(tmp_path / "a.txt")
    os.utime(tmp_path / "a.txt", (1, 1))
    assert fp(tmp_path / "a.txt") == before
    (tmp_path / "a.txt").write_text("hellO")
    assert fp(tmp_path / "a.txt") != before
    with pytest.raises(UsageError, match="has changed"):
        pin_sources(Reads(data=Source(uri=str(tmp_path / "a.txt"), digest="0" * 32)))


def _module(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_outside_code_is_identity_with_its_local_imports(tmp_path: Path) -> None:
    _module(tmp_path, "helper_mod.py", "LIMIT = 3\n")
    _module(tmp_path, "pkg/__init__.py", "")
    _module(tmp_path, "pkg/deep.py", "def f():\n    return 1\n")
    main = _module(
        tmp_path, "reward.py", "import json, helper_mod\nfrom pkg import deep\n\ndef score(t, a):\n    return float(helper_mod.LIMIT)\n"
    )
    before = file_code(main)
    main.write_text(
        "# a comment\nimport json, helper_mod\nfrom pkg import deep\n\n\ndef score(t, a):  # why\n    return float(helper_mod.LIMIT)\n"
    )
    assert file_code(main) == before, "comments and blank lines are not code"
    _module(tmp_path, "pkg/deep.py", "def f():\n    return 2\n")
    after = file_code(main)
    assert after != before, "a module that it imports is part of it"
    _module(tmp_path, "helper_mod.py", "LIMIT = 4\n")
    assert file_code(main) != after
    elsewhere = tmp_path / "moved"
    elsewhere.mkdir()
    for name in ("helper_mod.py", "reward.py"):
        (elsewhere / name).write_text((tmp_path / name).read_text())
    _module(elsewhere, "pkg/__init__.py", "")
    _module(elsewhere, "pkg/deep.py", (tmp_path / "pkg/deep.py").read_text())
    assert file_code(elsewhere / "reward.py") == file_code(main), "the same code in another folder is the same code"


def test_a_stage_class_outside_the_package_carries_its_code() -> None:
    assert "@" in class_code(Number)
    assert class_code(Number).startswith("Number@")


def test_a_seed_that_nothing_reads_is_refused() -> None:
    class Plain(Stage):
        kind: ClassVar[str] = "plain"
        up: tuple[Input, ...] = ()

    with pytest.raises(UsageError, match="would be ignored"):
        resolve(Recipe(name="r", stages={"p": Plain(seed=1)}))


def test_exec_marks_are_found_in_nested_unions() -> None:
    class A(Config):
        n: Annotated[int, Exec()] = 1
        m: int = 2

    class B(Config):
        a: A | None = None

    assert dump(B(a=A(n=5)), identity=True) == dump(B(a=A(n=6)), identity=True) == {"a": {"m": 2}}
