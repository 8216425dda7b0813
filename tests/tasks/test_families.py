"""Every family against an independent reading of its *prompt*: the reference parses the words, not the problem tuple."""

import re
from collections import Counter
from collections.abc import Callable

import pytest

from upslope.machine.rng import rng
from upslope.tasks.families import FAMILIES, LEVELS, Drawn, canonical, cell, draw, frozen, solve, split_of
from upslope.tasks.verify import final_answer, verify


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def letters(text: str) -> list[str]:
    return re.findall(r"\b[a-j]\b", text)


def chain(text: str) -> str:
    value, rest = 0, "+" + text.split(": ")[1]
    for op, d in re.findall(r"([+*-])(\d)", rest):
        value = eval(f"({value} {op} {d}) % 10")
    return str(value)


def after(text: str) -> str:
    steps = numbers(text)[0]
    if text.startswith("cycle"):
        ring, start = letters(text.split(":")[0]), letters(text.split(":")[1])[0]
    else:
        start, ring = letters(text.split(" in ")[0])[0], letters(text.split(" in ")[1])
    for _ in range(steps):
        start = ring[0] if start == ring[-1] else ring[ring.index(start) + 1]
    return start


def counted(text: str) -> str:
    target, *items = letters(text)
    return str(len([c for c in items if c == target]))


BRUTE: dict[str, Callable[[str], str]] = {
    "add": lambda t: str(sum(numbers(t))),
    "sub": lambda t: str(numbers(t)[0] - numbers(t)[1]),
    "extreme": lambda t: str((max if "largest" in t else min)(numbers(t))),
    "sort": lambda t: " ".join(map(str, sorted(numbers(t)))),
    "reverse": lambda t: " ".join(letters(t.split("reverse: ")[-1].split("backwards: ")[-1])[::-1]),
    "count": counted,
    "compare": lambda t: str(max(numbers(t))),
    "parity": lambda t: ["even", "odd"][sum(numbers(t)) % 2],
    "cycle": after,
    "nth": lambda t: letters(re.split(": | of ", t)[1])[numbers(t)[0] - 1],
    "chain": chain,
}


@pytest.fixture(scope="module")
def held() -> list[Drawn]:
    return [d for f in FAMILIES for level in LEVELS for d in cell(f, level, "heldout", 40, seed=0)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("level", LEVELS)
def test_answers_match_brute_force_and_verify(family: str, level: int) -> None:
    answers: Counter[str] = Counter()
    for d in cell(family, level, "train", 80, seed=3):
        task = d.task
        solution = solve(task)
        answers[solution.answer] += 1
        truth = task.truth
        assert isinstance(truth, dict)
        assert truth["answer"] == solution.answer == BRUTE[family](task.prompt), task.prompt
        assert verify(family, truth, solution.answer) == 1.0
        assert verify(family, truth, f"<think>\n{solution.thought}\n</think>\n\n{solution.answer}") == 1.0
        assert verify(family, truth, f"  {solution.answer}\n") == 1.0
        for wrong in ("", solution.answer + " 1", "x" + solution.answer, f"<think>\n{solution.answer}", f"{solution.answer}</think> no"):
            assert verify(family, truth, wrong) == 0.0
    assert answers.most_common(1)[0][1] < 80 * 0.7  # no constant answer solves a cell


@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_answers_of_the_same_shape_fail(family: str) -> None:
    tasks = [d.task for d in cell(family, 2, "train", 60, seed=1)]
    for a, b in zip(tasks, tasks[1:], strict=False):
        if solve(a).answer != solve(b).answer:
            assert verify(family, a.truth, solve(b).answer) == 0.0


STEPS_HOLD: dict[str, Callable[[str], bool]] = {
    "add": lambda s: all(eval(step.replace("=", "==")) for step in s.split()),
    "sub": lambda s: all(eval(step.replace("=", "==")) for step in s.split()),
    "compare": lambda s: all(eval(step.replace("=", "==")) for step in s.split()),
    "chain": lambda s: all(eval(f"({x}{op}{y}) % 10 == {z}") for x, op, y, z in re.findall(r"(?=(\d)([+*-])(\d)=(\d))", s)),
}


@pytest.mark.parametrize("family", STEPS_HOLD)
def test_each_step_of_a_thought_is_true(family: str) -> None:
    for level in LEVELS:
        for d in cell(family, level, "train", 60, seed=4):
            assert STEPS_HOLD[family](solve(d.task).thought), solve(d.task).thought


def test_thoughts_are_short(held: list[Drawn]) -> None:
    """In characters, blanks aside: with one token per digit and letter this bounds the tokens of a reply below 48."""
    for d in held:
        solution = solve(d.task)
        assert len(solution.thought.replace("even", "e").replace("odd", "o").replace(" ", "")) <= 34
        assert len(d.task.prompt) <= 50


def test_goldens() -> None:
    """Worked by hand."""
    expected = {
        ("add", (47, 85)): ("7+5=12 4+8+1=13", "132"),
        ("add", (9, 95)): ("9+5=14 9+1=10", "104"),
        ("sub", (503, 28)): ("13-8=5 9-2=7 4-0=4", "475"),
        ("sub", (53, 48)): ("13-8=5 4-4=0", "5"),
        ("sort", ((9, 3, 7),)): ("9 39 379", "3 7 9"),
        ("reverse", ("cab",)): ("c, a c, b a c", "b a c"),
        ("count", ("a", "baca")): ("b0 a1 c1 a2", "2"),
        ("compare", (473, 495)): ("4=4 7<9", "495"),
        ("parity", ((4, 7, 1),)): ("4 even 7 odd 1 even", "even"),
        ("cycle", ("dgbj", "g", 5)): ("b1 j2 d3 g4 b5", "b"),
        ("nth", ("cdab", 3)): ("c1 d2 a3", "a"),
        ("chain", ((3, 4, 2, 8), "+*-")): ("3+4=7*2=4-8=6", "6"),
        ("extreme", ("smallest", (3, 9, 2))): ("3 3 2", "2"),
    }
    for (family, problem), solution in expected.items():
        assert FAMILIES[family].solve(problem) == solution


def test_canonical_ignores_wording_and_order() -> None:
    assert canonical("add", (12, 7)) == canonical("add", (7, 12)) == '["add",7,12]'
    assert canonical("sub", (12, 7)) != canonical("sub", (7, 12))
    assert canonical("sort", ((9, 3, 7),)) == canonical("sort", ((3, 7, 9),))
    assert canonical("parity", ((9, 3, 7),)) == canonical("parity", ((7, 9, 3),))
    assert canonical("cycle", ("abcd", "b", 2)) == canonical("cycle", ("cdab", "b", 2)) != canonical("cycle", ("abcd", "c", 2))
    assert canonical("count", ("a", "bac")) == canonical("count", ("a", "abc")) != canonical("count", ("b", "abc"))


def test_split_is_an_eighth_and_does_not_depend_on_the_seed() -> None:
    g = rng(0, "test")
    names = {canonical("chain", FAMILIES["chain"].draw(g, 4)) for _ in range(4000)}
    share = sum(split_of(n) == "heldout" for n in names) / len(names)
    assert 0.105 < share < 0.145  # 4 standard deviations
    assert {split_of(n) for n in sorted(names)[:1]} == {split_of(sorted(names)[0])}


def test_heldout_problems_are_unique_many_and_never_trained_on(held: list[Drawn]) -> None:
    names = [d.canonical for d in held]
    assert len(set(names)) == len(names) >= 400
    per_cell = Counter((d.task.family, d.task.level) for d in held)
    assert len(per_cell) == 44
    assert min(per_cell.values()) >= 20
    for seed in (0, 1):
        trained = [d for f in FAMILIES for level in LEVELS for d in cell(f, level, "train", 150, seed)]
        assert not {d.canonical for d in trained} & set(names)
        assert len({d.task.prompt for d in trained}) == len(trained)
        assert {d.task.id for d in trained}.isdisjoint(d.task.id for d in held)
    assert all(split_of(n) == "heldout" for n in names)
    for d in held[::40]:  # the canonical problem is recomputed from the truth
        assert isinstance(d.task.truth, dict)
        assert canonical(d.task.family, frozen(d.task.truth["problem"])) == d.canonical


def test_a_cell_is_a_prefix_of_a_larger_one_and_ends_when_exhausted() -> None:
    assert list(cell("add", 2, "train", 10, 5)) == list(cell("add", 2, "train", 30, 5))[:10]
    assert list(cell("add", 2, "train", 10, 5)) != list(cell("add", 2, "train", 10, 6))
    exhausted = list(cell("parity", 1, "heldout", 10_000, 5))
    everything = {canonical("parity", ((a, b, c),)) for a in range(10) for b in range(10) for c in range(10)}
    assert {d.canonical for d in exhausted} == {n for n in everything if split_of(n) == "heldout"}


def test_draw_keeps_to_the_split() -> None:
    for split in ("train", "heldout"):
        assert split_of(draw("sort", 2, split, rng(0, "x"))[1]) == split  # type: ignore[arg-type]


def test_final_answer() -> None:
    assert final_answer("<think>\na\n</think>\n\n 3 7 ") == "3 7"
    assert final_answer("<think>\n3 7") == ""
    assert final_answer("a</think>b</think>c") == "c"
    assert final_answer(" 3 7\n") == "3 7"
