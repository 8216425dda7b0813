"""What the verbs print: plain text tables, and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def table(rows: Sequence[Sequence[Any]], head: Sequence[str] = (), right: Sequence[int] = ()) -> str:
    """Aligned columns; `right` lists the columns that align right."""
    cells = [[str(c) for c in row] for row in ([head] if head else []) + list(rows)]
    if not cells:
        return ""
    widths = [max(len(r[i]) for r in cells if i < len(r)) for i in range(max(map(len, cells)))]
    lines = ["  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(r, widths))).rstrip() for r in cells]
    if head:
        lines.insert(1, "  ".join("─" * w for w in widths))
    return "\n".join(lines)


def size(count: float) -> str:
    """1.2 MB and the like."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def emit(value: Any) -> None:
    """A value as JSON on standard output, without secrets or private paths."""
    from upslope.machine.privacy import redact

    print(json.dumps(redact(value), indent=1, ensure_ascii=False, default=str))
