"""Exact verifiers: does an answer solve a task? No model, no tolerance, no partial credit."""

from __future__ import annotations

from typing import Any

from upslope.config import Json, UsageError
from upslope.tasks.families import ANSWER
from upslope.tasks.secret import verify_secret

OPEN, CLOSE = "<think>", "</think>"


def final_answer(text: str) -> str:
    """The text after the last `</think>`, stripped, without a leading "answer:"; "" where a thought was opened and never closed."""
    if CLOSE in text:
        text = text.rsplit(CLOSE, 1)[1]
    elif OPEN in text:
        return ""
    return text.strip().removeprefix(ANSWER.strip()).strip()


def verify(task_family: str, truth: Json, answer: str) -> float:
    """1.0 if the final answer is right, else 0.0.

    Equal up to blanks to `truth["answer"]`; for `secret`, see `tasks.secret`. A thought before the answer is ignored.
    UsageError for a truth without an answer: a task that cannot be verified is not worth 0.
    """
    said = final_answer(answer)
    data: Any = truth
    if task_family == "secret":
        return verify_secret(data, said)
    if not isinstance(data, dict) or not isinstance(data.get("answer"), str):
        raise UsageError(f"truth of a {task_family!r} task has no 'answer' string: {str(truth)[:80]}\nway out: truth = {{'answer': '...'}}")
    return float(" ".join(said.split()) == " ".join(final_answer(data["answer"]).split()))
