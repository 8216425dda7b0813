"""persona: documents → the people who might read, write or need them; a supply of personas for `instruct`.

Source: Ge et al. 2024, Persona Hub (2406.20094): text-to-persona.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from upslope.data.synthesis import SPACES, UNABLE, Asker, Made, Refused, SeedText, Synthesizer, words

FORM = (
    "Who would be likely to read, write, or need the text below? Describe one such person in one sentence: their work or situation, and "
    "what they care about. No name. Write only the description.\n\nText:\n{text}"
)


class Persona(Synthesizer):
    """One description a document, as a document of its own; the same one twice is refused. excerpt: characters of a document shown.
    longest: words of a description."""

    kind: ClassVar[str] = "persona"

    excerpt: Annotated[int, Field(ge=100)] = 2000
    longest: Annotated[int, Field(ge=5)] = 60

    def __call__(self, seeds: Sequence[SeedText], ask: Asker) -> Iterator[Made | Refused]:
        """One description a seed, or why there is none."""
        prompts = [(s.id, FORM.format(text=s.text[: self.excerpt])) for s in seeds]
        seen: set[str] = set()
        for seed, (text, why) in zip(seeds, ask.ask("persona", prompts, self._unusable)):
            key = SPACES.sub(" ", text.lower())
            if why or key in seen:
                yield Refused(seed.id, why or "repeated: the same person again")
                continue
            seen.add(key)
            yield Made(text, (), (seed.id,), ("persona",))

    def _unusable(self, reply: str) -> str:
        if UNABLE.search(reply[:120]):
            return "the model declined"
        return (
            "" if 3 <= len(words(reply)) <= self.longest and "\n" not in reply else f"form: {len(words(reply))} words, wanted one sentence"
        )
