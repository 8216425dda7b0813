"""Eleven families of small problems, four levels each, with worked solutions in steps of a few tokens.

Every step of a solution needs only a look-up and a copy, so that a model of under a million parameters can learn to
think but cannot answer the harder levels at a glance. Digits are one token each, letters are single and spaced.
The split hashes the *canonical* problem (operands of commutative ones sorted, order of digits ignored where the answer
ignores it), never its wording: see `split_of`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from numpy.random import Generator

from upslope.config import UsageError, canonical_json
from upslope.machine.rng import rng
from upslope.tasks.task import Task

Problem = tuple[Any, ...]
Split = Literal["train", "heldout"]
LEVELS = (1, 2, 3, 4)
LETTERS = "abcdefghij"
ANSWER = "answer: "
"""What stands before every answer, in texts and demonstrations alike: whether to think first is then one clear choice of a word."""
HELDOUT = 8
"""One canonical problem in eight is held out."""


class Solution(NamedTuple):
    """thought: the steps; answer: what the verifier wants."""

    thought: str
    answer: str


class Family(NamedTuple):
    """draw: a problem of a level. canon: the problem irrespective of order and wording. ask: its wordings. solve: its solution."""

    draw: Callable[[Generator, int], Problem]
    canon: Callable[[Problem], Problem]
    ask: Callable[[Problem], tuple[str, ...]]
    solve: Callable[[Problem], Solution]


def _digits(g: Generator, n: int) -> tuple[int, ...]:
    return tuple(g.integers(0, 10, n).tolist())


def _letters(g: Generator, n: int, kinds: int = len(LETTERS)) -> str:
    return "".join(LETTERS[i] for i in g.integers(0, kinds, n).tolist())


def _number(g: Generator, digits: int) -> int:
    return int(g.integers(1 if digits == 1 else 10 ** (digits - 1), 10**digits))


def _spaced(items: Any) -> str:
    return " ".join(str(i) for i in items)


def _same(problem: Problem) -> Problem:
    return problem


# ── arithmetic ────────────────────────────────────────────────────────────────────────────────────────────────────

WIDTHS = ((2, 1), (2, 2), (3, 2), (3, 3))
"""Digits of the operands of sums and differences, by level."""


def _draw_add(g: Generator, level: int) -> Problem:
    a, b = (_number(g, w) for w in WIDTHS[level - 1])
    return (b, a) if g.random() < 0.5 else (a, b)


def _solve_add(p: Problem) -> Solution:
    a, b = p
    steps, carry, left, right = [], 0, a, b
    while left or right:
        parts = [str(left % 10)] if left else []
        parts += [str(right % 10)] if right else []
        parts += [str(carry)] if carry else []
        total = left % 10 + right % 10 + carry
        steps.append(f"{'+'.join(parts)}={total}")
        carry, left, right = total // 10, left // 10, right // 10
    return Solution(_spaced(steps), str(a + b))


def _draw_sub(g: Generator, level: int) -> Problem:
    a, b = (_number(g, w) for w in WIDTHS[level - 1])
    return (a, b) if a >= b else (b, a)


def _solve_sub(p: Problem) -> Solution:
    a, b = p
    steps, borrow, left, right = [], 0, a, b
    while left:
        top = left % 10 - borrow
        borrow = int(top < right % 10)
        top += 10 * borrow
        steps.append(f"{top}-{right % 10}={top - right % 10}")
        left, right = left // 10, right // 10
    return Solution(_spaced(steps), str(a - b))


OPERATORS: Mapping[str, Callable[[int, int], int]] = {
    "+": lambda x, y: (x + y) % 10,
    "-": lambda x, y: (x - y) % 10,
    "*": lambda x, y: (x * y) % 10,
}


def _draw_chain(g: Generator, level: int) -> Problem:
    ops = "".join("+-*"[i] for i in g.integers(0, 3, level + 1).tolist())
    return (_digits(g, level + 2), ops)


def _ask_chain(p: Problem) -> tuple[str, ...]:
    text = str(p[0][0]) + "".join(f"{op}{d}" for op, d in zip(p[1], p[0][1:], strict=True))
    return (f"chain: {text}", f"left to right, mod 10: {text}")


def _solve_chain(p: Problem) -> Solution:
    value = p[0][0]
    text = str(value)
    for op, d in zip(p[1], p[0][1:], strict=True):
        value = OPERATORS[op](value, d)
        text += f"{op}{d}={value}"
    return Solution(text, str(value))


# ── digits ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _draw_extreme(g: Generator, level: int) -> Problem:
    return (("largest", "smallest")[int(g.integers(0, 2))], _digits(g, level + 2))


def _solve_extreme(p: Problem) -> Solution:
    pick = max if p[0] == "largest" else min
    running = [pick(p[1][: i + 1]) for i in range(len(p[1]))]
    return Solution(_spaced(running), str(running[-1]))


def _draw_digits(g: Generator, level: int) -> Problem:
    return (_digits(g, level + 2),)


def _solve_sort(p: Problem) -> Solution:
    prefixes = ["".join(map(str, sorted(p[0][: i + 1]))) for i in range(len(p[0]))]
    return Solution(_spaced(prefixes), _spaced(sorted(p[0])))


def _solve_parity(p: Problem) -> Solution:
    names = ["odd" if sum(p[0][: i + 1]) % 2 else "even" for i in range(len(p[0]))]
    return Solution(_spaced(f"{d} {name}" for d, name in zip(p[0], names, strict=True)), names[-1])


def _draw_compare(g: Generator, level: int) -> Problem:
    """Two different numbers of level + 1 digits that share a prefix of random length."""
    a = str(_number(g, level + 1))
    shared = int(g.integers(0, len(a)))
    while True:
        b = a[:shared] + str(_number(g, len(a)))[shared:]
        if b != a:
            return (int(a), int(b))


def _solve_compare(p: Problem) -> Solution:
    steps = []
    for x, y in zip(str(p[0]), str(p[1]), strict=True):
        steps.append(f"{x}{'=' if x == y else '>' if x > y else '<'}{y}")
        if x != y:
            break
    return Solution(_spaced(steps), str(max(p)))


# ── letters ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _draw_reverse(g: Generator, level: int) -> Problem:
    return (_letters(g, level + 2),)


def _solve_reverse(p: Problem) -> Solution:
    steps = [_spaced(reversed(p[0][: i + 1])) for i in range(len(p[0]))]
    return Solution(", ".join(steps), steps[-1])


def _draw_count(g: Generator, level: int) -> Problem:
    return (_letters(g, 1, 5), _letters(g, 2 * level + 2, 5))


def _solve_count(p: Problem) -> Solution:
    steps = [f"{c}{p[1][: i + 1].count(p[0])}" for i, c in enumerate(p[1])]
    return Solution(_spaced(steps), str(p[1].count(p[0])))


STEPS = ((2, 4), (3, 5), (4, 7), (5, 9))
"""Fewest and most steps along a cycle, by level."""


def _draw_cycle(g: Generator, level: int) -> Problem:
    ring = "".join(LETTERS[i] for i in g.permutation(len(LETTERS))[: level + 2].tolist())
    low, high = STEPS[level - 1]
    return (ring, ring[int(g.integers(0, len(ring)))], int(g.integers(low, high + 1)))


def _canon_cycle(p: Problem) -> Problem:
    at = p[0].index(p[1])
    return (p[0][at:] + p[0][:at], p[2])


def _solve_cycle(p: Problem) -> Solution:
    at = p[0].index(p[1])
    visited = [p[0][(at + i) % len(p[0])] for i in range(1, p[2] + 1)]
    return Solution(_spaced(f"{c}{i + 1}" for i, c in enumerate(visited)), visited[-1])


def _draw_nth(g: Generator, level: int) -> Problem:
    n = (4, 5, 6, 8)[level - 1]
    return (_letters(g, n), int(g.integers(1, n + 1)))


def _solve_nth(p: Problem) -> Solution:
    return Solution(_spaced(f"{c}{i + 1}" for i, c in enumerate(p[0][: p[1]])), p[0][p[1] - 1])


def _ask(*wordings: str) -> Callable[[Problem], tuple[str, ...]]:
    """Wordings from formats in which {0}, {1} are the parts of the problem; strings of letters and digits are spaced."""

    def ask(p: Problem) -> tuple[str, ...]:
        parts = [_spaced(x) if isinstance(x, tuple) or (isinstance(x, str) and x not in ("largest", "smallest")) else x for x in p]
        return tuple(w.format(*parts) for w in wordings)

    return ask


FAMILIES: Mapping[str, Family] = {
    "add": Family(_draw_add, lambda p: tuple(sorted(p)), _ask("add: {0} + {1}", "what is {0} + {1}?", "{0} plus {1}"), _solve_add),
    "sub": Family(_draw_sub, _same, _ask("sub: {0} - {1}", "what is {0} - {1}?", "{0} minus {1}"), _solve_sub),
    "extreme": Family(_draw_extreme, lambda p: (p[0], sorted(p[1])), _ask("{0}: {1}", "{0} digit of {1}"), _solve_extreme),
    "sort": Family(_draw_digits, lambda p: tuple(sorted(p[0])), _ask("sort: {0}", "put in order: {0}"), _solve_sort),
    "reverse": Family(_draw_reverse, _same, _ask("reverse: {0}", "write backwards: {0}"), _solve_reverse),
    "count": Family(_draw_count, lambda p: (p[0], sorted(p[1])), _ask("count {0}: {1}", "how many {0} in {1}?"), _solve_count),
    "compare": Family(
        _draw_compare, lambda p: tuple(sorted(p)), _ask("larger: {0} or {1}", "which is larger, {0} or {1}?"), _solve_compare
    ),
    "parity": Family(_draw_digits, lambda p: tuple(sorted(p[0])), _ask("parity: {0}", "odd or even sum: {0}"), _solve_parity),
    "cycle": Family(_draw_cycle, _canon_cycle, _ask("cycle {0}: {2} after {1}", "go {2} on from {1} in {0}"), _solve_cycle),
    "nth": Family(_draw_nth, _same, _ask("letter {1}: {0}", "letter {1} of {0}"), _solve_nth),
    "chain": Family(_draw_chain, _same, _ask_chain, _solve_chain),
}


# ── tasks ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Drawn(NamedTuple):
    """A task with its split and its canonical problem (JSON text)."""

    task: Task
    split: Split
    canonical: str


def split_of(canonical: str) -> Split:
    """The split of a canonical problem, by a keyed hash: the same for every seed, recipe and wording."""
    digest = hashlib.blake2b(canonical.encode(), digest_size=8, key=b"upslope.split").digest()
    return "heldout" if int.from_bytes(digest, "little") % HELDOUT == 0 else "train"


def canonical(family: str, problem: Problem) -> str:
    """The canonical problem as JSON text."""
    return canonical_json([family, *FAMILIES[family].canon(problem)]).decode()


def frozen(value: Any) -> Any:
    """A problem as it was before it went through JSON: lists are tuples again."""
    return tuple(frozen(v) for v in value) if isinstance(value, list | tuple) else value


def solve(task: Task) -> Solution:
    """Worked solution of a task of a built-in family, from its truth; for `secret`, the right reply."""
    truth: Any = task.truth
    if task.family == "secret":
        from upslope.tasks.secret import solve_secret

        return solve_secret(truth)
    if task.family not in FAMILIES:
        raise UsageError(f"family {task.family!r} (task {task.id}) has no worked solutions\nfamilies: {', '.join([*FAMILIES, 'secret'])}")
    return FAMILIES[task.family].solve(frozen(truth["problem"]))


def task_id(family: str, level: int, text: str) -> str:
    """A short id that names one prompt."""
    return f"{family}.{level}.{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"


def draw(family: str, level: int, split: Split, g: Generator) -> tuple[Problem, str]:
    """A random problem of a split with its canonical text."""
    while True:
        problem = FAMILIES[family].draw(g, level)
        name = canonical(family, problem)
        if split_of(name) == split:
            return problem, name


def cell(family: str, level: int, split: Split, count: int, seed: int) -> Iterator[Drawn]:
    """At most `count` tasks of one family, level and split, a prefix of those for any larger count.

    Train: no prompt twice (a problem may come back in another order or wording). Held-out: no *problem* twice.
    Ends early where 50 draws per task found so far (at least 2000) bring nothing new: the cell is exhausted.
    """
    g = rng(seed, "tasks", family, level, split)
    seen: set[str] = set()
    idle = 0
    while len(seen) < count and idle < max(2000, 50 * len(seen)):
        problem, name = draw(family, level, split, g)
        wordings = FAMILIES[family].ask(problem)
        text = wordings[int(g.integers(0, len(wordings)))]
        key = name if split == "heldout" else text
        if key in seen:
            idle += 1
            continue
        seen.add(key)
        idle = 0
        truth = {"answer": FAMILIES[family].solve(problem).answer, "problem": list(problem)}
        yield Drawn(Task(task_id(family, level, text), family, ({"role": "user", "content": text},), (), truth, float(level)), split, name)
