"""A small display of a run for notebooks: what it found, its stages, and its curves, with the report's own charts."""

from __future__ import annotations

import re

from upslope.machine.record import RunRecord
from upslope.report.html import asset, clean
from upslope.report.page import warnings
from upslope.report.sections import curves, pipeline
from upslope.report.verdict import sentence, warned
from upslope.report.words import esc


def repr_html(record: RunRecord) -> str:
    """HTML for `_repr_html_`: verdict, warnings, stages, curves. Styled inside its own box; no script."""
    record = clean(record)
    parts = [f"<p><b>{esc(record.name)}</b> {esc(sentence(record))}</p>", warnings("Warnings", warned(record))]
    for make in (pipeline, *curves):
        section = make(record)
        if section is not None:
            parts.append(f"<h2>{esc(section.title)}</h2>{section.html}")
    return f'<div class="upslope"><style>{scoped(asset("page.css"))}</style>{"".join(parts)}</div>'


def scoped(css: str) -> str:
    """The page's style, nested under `.upslope`, so that it cannot touch the notebook around it."""
    css = re.sub(r"@media print \{.*?\n\}\n", "", css, flags=re.S)
    css = re.sub(r":root(?=\s*\{)", "&", css)
    css = re.sub(r"^html \{[^}]*\}\n", "", css, flags=re.M)
    css = re.sub(r"^body \{", "& {", css, flags=re.M)
    return f".upslope {{\n{css}\n}}"
