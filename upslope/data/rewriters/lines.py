"""lines: the C4 line rules, carried out: boilerplate lines of the prose go, and citation marks.

Lines that touch a code, math or table span are left alone. Where a paragraph goes, so does the empty line after it.

Source: Raffel et al. 2020 (JMLR 21/140), section 2.2; the counts behind the same rules are in `annotators/c4.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from upslope.data.protocol import Rewrite

if TYPE_CHECKING:
    import pyarrow as pa

    from upslope.data.edits import Edit, Spans

Name = Literal["javascript", "policy", "lorem_ipsum", "citations", "terminal", "short", "long"]
CITATIONS = re.compile(rb"\[(?:[0-9]{1,3}|edit|citation needed)\](?![(\[:])")


class Lines(Rewrite):
    """lines: how many were taken out; bytes: how much in all; citations: marks taken out of lines that stay.

    rules, by name: javascript, policy, lorem_ipsum: lines that mention it; terminal: lines that do not end in a sentence end or quotation
    mark; short, long: lines with fewer than `least` words, or a word of more than `longest` characters; citations: marks such as `[3]` and
    `[edit]` go, but links and what stands between backquotes do not.
    """

    kind: ClassVar[str] = "lines"
    version: ClassVar[int] = 1
    gives: ClassVar[Mapping[str, str]] = {"lines": "int32", "bytes": "int32", "citations": "int32"}

    rules: tuple[Name, ...] = Field(default=("javascript", "policy", "lorem_ipsum", "citations"), min_length=1)
    least: int = Field(default=3, ge=0)
    longest: int = Field(default=1000, ge=1)

    def __call__(self, batch: pa.RecordBatch) -> tuple[pa.Array, pa.Array | None, pa.RecordBatch]:
        """Needs the columns text and spans."""
        import numpy as np

        from upslope.data import edits, prose

        counts = np.zeros((batch.num_rows, 3))

        def cuts(row: int, text: bytes, spans: Spans) -> list[Edit]:
            found, counts[row] = self.cuts(text, spans)
            return found

        texts, spans = edits.rewrite(batch, cuts)
        return texts, spans, prose.frame(self.gives, counts)

    def cuts(self, text: bytes, spans: Spans) -> tuple[list[Edit], tuple[int, int, int]]:
        """What to take out of a text; and how many lines, bytes of them, and citation marks that is."""
        from upslope.data.edits import Edit
        from upslope.data.shards import PROSE

        fixed = [(s["start"], s["end"]) for s in spans or () if s["kind"] != PROSE]
        out: list[Edit] = []
        lines = marks = at = 0
        empty_before, gone = True, False  # gone: a line was taken out since the last that stays, so empty lines go until then
        for part in re.findall(rb"[^\n]*\n|[^\n]+", text):
            start, at = at, at + len(part)
            while fixed and fixed[0][1] <= start:
                fixed.pop(0)
            ours = not (fixed and fixed[0][0] < at)
            line = part.strip()
            if not line:
                if gone and empty_before and ours:
                    out.append(Edit(start, at, b""))
                elif not gone:
                    empty_before = True
                else:
                    empty_before, gone = True, False
            elif ours and self.drops(line.decode("utf-8", "replace")):
                out.append(Edit(start, at, b""))
                lines += 1
                gone = True
            else:
                if ours and "citations" in self.rules and b"[" in line:
                    found = [m for m in CITATIONS.finditer(part) if part.count(b"`", 0, m.start()) % 2 == 0]
                    out += [Edit(start + m.start(), start + m.end(), b"") for m in found]
                    marks += len(found)
                empty_before = gone = False
        if gone:  # nothing follows: the empty lines before go too
            last = len(out) - 1
            while last > 0 and out[last - 1].end == out[last].start:
                last -= 1
            floor = max([out[last - 1].end if last else 0, *(s["end"] for s in spans or () if s["kind"] != PROSE)])
            start = out[last].start
            while start > floor and text[start - 1 : start] in b"\n\t ":
                start -= 1
            out[last:] = [Edit(start, len(text), b"")]
        return out, (lines, sum(e.end - e.start for e in out), marks)

    def drops(self, line: str) -> bool:
        """Whether a line is to go."""
        from upslope.data import reference

        rules, low = self.rules, line.lower()
        return (
            ("javascript" in rules and "javascript" in low)
            or ("policy" in rules and any(phrase in low for phrase in reference.POLICY))
            or ("lorem_ipsum" in rules and "lorem ipsum" in low)
            or ("terminal" in rules and not reference.terminal(line))
            or ("short" in rules and len(reference.units(line)) < self.least)
            or ("long" in rules and max(map(len, reference.units(line))) > self.longest)
        )
