"""What to keep of graded traces: right answers as demonstrations, own right / wrong answers as preferences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from upslope.chat.artifacts import Chat, Pair
from upslope.chat.messages import Message
from upslope.config import canonical_json
from upslope.machine.rng import seed_of
from upslope.rl.objective import task_score
from upslope.rl.protocol import Trace


def keepers(traces: Sequence[Trace], per_prompt: int, at_least: float = 1.0) -> list[Chat]:
    """Rejection sampling: of each prompt the first `per_prompt` different answers whose task score reaches `at_least`.

    Invalid and truncated traces are never kept. Source: Yuan et al. 2023 (RFT); Singh et al. 2023 (ReST-EM, cap per prompt).
    """
    chats = []
    for trace, reply in _answers(traces, per_prompt, lambda s: s >= at_least):
        truth = trace.facts.get("truth") if isinstance(trace.facts, dict) else None
        chats.append(Chat(trace.id, (*trace.prompt, reply), {"source": "sample", "parents": [trace.task], "truth": truth}))
    return chats


def contrasts(traces: Sequence[Trace], per_prompt: int, at_least: float = 1.0, heldout: float = 0.2) -> list[Pair]:
    """Preferences from the model's own answers: of each prompt up to `per_prompt` pairs of a right and a wrong answer, no
    answer twice. The share `heldout` of *problems* is set aside, so that no problem is in both splits.
    """
    right: dict[str, list[tuple[Trace, Message]]] = {}
    wrong: dict[str, list[tuple[Trace, Message]]] = {}
    for trace, reply in _answers(traces, per_prompt, lambda s: s >= at_least):
        right.setdefault(trace.task, []).append((trace, reply))
    for trace, reply in _answers(traces, per_prompt, lambda s: s < at_least):
        wrong.setdefault(trace.task, []).append((trace, reply))
    return [
        Pair(f"{good.id}>{bad.id}", good.prompt, better, worse, "sample", problem_split(good, heldout))
        for task in right
        for (good, better), (bad, worse) in zip(right[task], wrong.get(task, []), strict=False)
    ]


def problem_split(trace: Trace, heldout: float) -> Literal["train", "heldout"]:
    """The split of a trace's problem: a hash of family and truth, which other wordings of the problem share."""
    facts = trace.facts if isinstance(trace.facts, dict) else {}
    problem = canonical_json([facts.get("family"), facts.get("truth")]).decode()
    return "heldout" if seed_of(0, "pairs", problem) / 2**63 < heldout else "train"


def _answers(traces: Sequence[Trace], per_prompt: int, wanted: Callable[[float], bool]) -> list[tuple[Trace, Message]]:
    """The first `per_prompt` different answers of each task whose task score is wanted, in order."""
    found: list[tuple[Trace, Message]] = []
    seen: dict[str, list[Message]] = {}
    for trace in traces:
        score = task_score(trace)
        if not trace.total.valid or not score.valid or trace.done.truncated or not wanted(score.value):
            continue
        kept = seen.setdefault(trace.task, [])
        if len(kept) < per_prompt and trace.reply not in kept:
            kept.append(trace.reply)
            found.append((trace, trace.reply))
    return found
