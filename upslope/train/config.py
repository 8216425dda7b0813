"""What a fit does to stay right: checks against silent corruption, rules that end it early. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field

from upslope.config import Config


class Checks(Config):
    """Against silent data corruption; none changes a result.

    digests: steps between watched pauses, in which weights and optimizer state are compared with what the last step left; 0 = never.
    replay: steps between steps that are done twice and compared bit by bit; 0 = never. copies: steps between comparisons of ranks that
    hold copies of one another; 0 = never.
    """

    digests: Annotated[int, Field(ge=0)] = 1
    replay: Annotated[int, Field(ge=0)] = 200
    copies: Annotated[int, Field(ge=0)] = 100


class StopRule(NamedTuple):
    """name above (sign 1) or below (sign -1) factor x what, for `steps` steps in a row. of: "" (a number), "best" or "start"."""

    text: str
    name: str
    sign: int
    value: float
    of: str
    steps: int

    def fires(self, series: Mapping[str, Sequence[float]]) -> str:
        """Why the rule ends a run with these values, or "". A series that is not there does not fire; nan does not either."""
        values = series.get(self.name, ())
        if len(values) < self.steps:
            return ""
        limit = self.value
        if self.of:
            before = [v for v in values[: len(values) - self.steps] if v == v]
            if not before:
                return ""
            limit *= before[0] if self.of == "start" else min(before) if self.sign > 0 else max(before)
        if all(self.sign * (v - limit) > 0 for v in values[-self.steps :]):
            shown = f"{self.value:g} x {self.of} = {limit:g}" if self.of else f"{limit:g}"
            return f"stop_if {self.text!r}: {self.name} = {values[-1]:g}, limit {shown}"
        return ""


_RULE = re.compile(
    r"\s*([A-Za-z_][\w/.]*)\s*([<>])\s*([-+]?[\d.]+(?:e[-+]?\d+)?)\s*(?:[x×*]\s*(best|start))?\s*(?:for\s+(\d+)\s+steps?)?\s*"
)


def stop_rule(text: str) -> StopRule:
    """The rule that a sentence states: "loss > 2 x best for 200 steps", "entropy < 0.05", "hours > 5".

    Names: loss, grad_norm, statistics of the loss, tokens, hours (of computing, this attempt). best: lowest so far for ">", highest for
    "<", before the steps in question; start: the first value. ValueError for anything else.
    """
    found = _RULE.fullmatch(text)
    if found is None:
        way = "NAME > NUMBER [x best | x start] [for N steps], such as 'loss > 2 x best for 200 steps'"
        raise ValueError(f"stop_if {text!r}: not a rule\nway out: {way}")
    name, op, number, of, steps = found.groups()
    return StopRule(text, name, 1 if op == ">" else -1, float(number), of or "", max(1, int(steps or 1)))


def _checked(text: str) -> str:
    stop_rule(text)
    return text


StopIf = Annotated[str, AfterValidator(_checked)]
