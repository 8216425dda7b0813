"""rephrase: the same content in other words and another form, so that knowledge is seen in more than one way.

Source: Maini et al. 2024, "Rephrasing the Web" (2401.16380): styles; Kimi K2 (2507.20534), section on rephrasing: long documents piece by
piece, each with what came before, and a check of fidelity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from upslope.data.synthesis import UNABLE, Asker, Made, Refused, SeedText, Synthesizer, overlap, words

Style = Literal["encyclopedic", "plain", "questions", "lecture", "terse"]
ASKED: dict[str, str] = {
    "encyclopedic": "Rewrite the passage in the sober style of an encyclopedia.",
    "plain": "Rewrite the passage in short, simple sentences that a child of twelve understands.",
    "questions": "Turn the passage into questions that it answers, each followed by its answer. Begin lines with Q: and A:.",
    "lecture": "Rewrite the passage as notes of a lecture that explains it step by step.",
    "terse": "Rewrite the passage as tersely as it can be said without losing a fact.",
}
FORM = (
    "{asked} Keep every fact, number, name, formula and piece of code; add nothing that is not in it. Write only the new text.{before}\n\n"
    "Passage:\n{passage}"
)
BEFORE = "\n\nThe passage goes on from this text, which must not be repeated:\n{tail}"


class Rephrase(Synthesizer):
    """styles: one new document each. piece: characters rewritten at once, cut at paragraphs; the end of what came before goes along.

    longest, shortest: words of the new text per word of the old one, outside which it is refused. copied: share of its 3-word runs that
    may stand in the old text word for word. least: words below which a text is no seed.
    """

    kind: ClassVar[str] = "rephrase"

    styles: Annotated[tuple[Style, ...], Field(min_length=1)] = ("encyclopedic",)
    piece: Annotated[int, Field(ge=200)] = 3000
    longest: Annotated[float, Field(gt=0)] = 2.0
    shortest: Annotated[float, Field(ge=0)] = 0.2
    copied: Annotated[float, Field(gt=0, le=1)] = 0.8
    least: Annotated[int, Field(ge=1)] = 30

    def __call__(self, seeds: Sequence[SeedText], ask: Asker) -> Iterator[Made | Refused]:
        """One document a style and seed, or why there is none."""
        for seed in seeds:
            if len(words(seed.text)) < self.least:
                yield Refused(seed.id, f"short seed: fewer than {self.least} words")
                continue
            for style in self.styles:
                yield self._one(seed, style, ask)

    def _one(self, seed: SeedText, style: str, ask: Asker) -> Made | Refused:
        parts: list[str] = []
        for passage in pieces(seed.text, self.piece):
            before = BEFORE.format(tail=parts[-1][-300:]) if parts else ""
            prompt = FORM.format(asked=ASKED[style], before=before, passage=passage)
            answer, why = ask.ask(f"rephrase/{style}", [(seed.id, prompt)], partial(self._unusable, passage))[0]
            if why:
                return Refused(seed.id, f"{style}: {why}")
            parts.append(answer)
        return Made("\n\n".join(parts), (), (seed.id,), (f"rephrase/{style}",))

    def _unusable(self, old: str, new: str) -> str:
        ratio = len(words(new)) / max(1, len(words(old)))
        if UNABLE.search(new[:200]) and not UNABLE.search(old):
            return "the model declined"
        if not self.shortest <= ratio <= self.longest:
            return f"length: {ratio:.2f} words for each of the passage"
        share = overlap(new, old)
        return f"copied: {share:.0%} of it stands in the passage" if share > self.copied else ""


def pieces(text: str, size: int) -> list[str]:
    """Runs of whole paragraphs of at most `size` characters; a longer paragraph is a piece of its own."""
    found: list[str] = []
    for paragraph in text.split("\n\n"):
        if found and len(found[-1]) + len(paragraph) + 2 <= size:
            found[-1] += "\n\n" + paragraph
        elif paragraph.strip():
            found.append(paragraph)
    return found
