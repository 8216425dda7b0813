"""One function per section: a run record in, a `Section` out, or None where the run has nothing of that kind."""

from __future__ import annotations

from collections.abc import Callable

from upslope.machine.record import RunRecord
from upslope.report.page import Section
from upslope.report.sections.data import data, mixture
from upslope.report.sections.excluded import excluded
from upslope.report.sections.midtraining import long_context, readiness
from upslope.report.sections.pipeline import pipeline
from upslope.report.sections.provenance import conditions, lineage, reproduce, time
from upslope.report.sections.results import evaluation, pairs
from upslope.report.sections.safety import gate, redteam
from upslope.report.sections.training import climbing, training

SECTIONS: tuple[Callable[[RunRecord], Section | None], ...] = (
    evaluation,
    gate,
    redteam,
    excluded,
    pipeline,
    data,
    mixture,
    training,
    long_context,
    readiness,
    climbing,
    pairs,
    time,
    lineage,
    conditions,
    reproduce,
)
"""In the order of the page: what came out, whether it may leave, how it was made, and how to check it."""

curves = (training, climbing)
