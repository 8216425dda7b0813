"""instruct: documents → instructions with answers, in four steps: generate, evolve, answer, filter; optionally asked by a persona.

1. *generate*: an instruction that a reader of the document might pose, in words that stand alone. 2. *evolve* (`rounds`): in depth
(a constraint more, a deeper question, a concrete case, more steps of reasoning) or in breadth (another task of the same field); an
evolution that is no gain is given up and the instruction before it stays. 3. *answer*, `samples` times. 4. *filter*: a critic grades each
answer 1 to 10; the best one stays if it reaches `grade`, and, where `agree` > 0, if so large a share of the answers end alike.

Source: Xu et al. 2023, Evol-Instruct (2304.12244): operators and eliminations; Ge et al. 2024, Persona Hub (2406.20094); Hunyuan-Large
(2411.02265), section 2.1: the four steps; Wang et al. 2022, self-consistency (2203.11171).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from upslope.chat.messages import Message
from upslope.data.synthesis import SPACES, UNABLE, Asker, Made, Refused, SeedText, Synthesizer, overlap, words
from upslope.machine.rng import rng

Operator = Literal["constrain", "deepen", "concretise", "reason", "breadth"]
GENERATE = (
    "Read the text and write one instruction or question whose answer needs knowledge or a skill that the text is about. It must stand "
    "alone: do not mention the text. {persona}Write only the instruction.\n\nText:\n{text}"
)
PERSONA = "It is asked by this person, in their own voice and for a need of theirs: {persona}. "
EVOLVE: dict[str, str] = {
    "constrain": "Rewrite the instruction so that one more constraint or requirement must be met.",
    "deepen": "Rewrite the instruction so that it asks the same matter in more depth and breadth.",
    "concretise": "Rewrite the instruction so that general notions in it become concrete ones.",
    "reason": "Rewrite the instruction so that more steps of reasoning are needed to answer it.",
    "breadth": "Write another instruction of the same field and about equal length and difficulty, on something rarer.",
}
EVOLVED = "{asked} It must stay reasonable and answerable by a person, and grow by at most 30 words. Write only the instruction.\n\n{text}"
GAIN = (
    "Do these two instructions ask for the same, with the same constraints and at the same depth? Answer only with the word same or "
    "different.\n\nFirst: {old}\n\nSecond: {new}"
)
ANSWER = "{text}"
CRITIC = (
    "Grade the answer to the instruction from 1 (wrong or useless) to 10 (right, complete, well said). Judge what is true above how it "
    "sounds. Write only the number.\n\nInstruction: {text}\n\nAnswer: {answer}"
)
GRADE = re.compile(r"\s*(10|[1-9])(?:\s*/\s*10)?\s*[.!]?\s*", re.ASCII)
FINAL = re.compile(r"(?:answer(?: is)?\s*:?|=)\s*\**([^\n.*]{1,60})\**\.?\s*$", re.I)


class Instruct(Synthesizer):
    """personas: people who ask, one drawn for each seed (none = nobody in particular). operators, rounds: how and how often an
    instruction is evolved. check: whether the model is asked if an evolution is a gain. samples, grade, agree: see above. excerpt:
    characters of a document shown. longest: words of an instruction.
    """

    kind: ClassVar[str] = "instruct"
    makes: ClassVar[str] = "Chats"

    personas: tuple[str, ...] = ()
    operators: Annotated[tuple[Operator, ...], Field(min_length=1)] = ("constrain", "deepen", "concretise", "reason", "breadth")
    rounds: Annotated[int, Field(ge=0)] = 1
    check: bool = True
    samples: Annotated[int, Field(ge=1)] = 1
    grade: Annotated[int, Field(ge=1, le=10)] = 7
    agree: Annotated[float, Field(ge=0, le=1)] = 0.0
    excerpt: Annotated[int, Field(ge=100)] = 3000
    longest: Annotated[int, Field(ge=5)] = 300

    def __call__(self, seeds: Sequence[SeedText], ask: Asker) -> Iterator[Made | Refused]:
        """One conversation a seed, or why there is none."""
        who = [self._persona(seed, ask) for seed in seeds]
        said = [PERSONA.format(persona=p) if p else "" for p in who]
        prompts = [(s.id, GENERATE.format(persona=p, text=s.text[: self.excerpt])) for s, p in zip(seeds, said)]
        for seed, persona, (text, why) in zip(seeds, who, ask.ask("generate", prompts, self._no_instruction)):
            how = ["generate" + ("/persona" if persona else "")]
            if why:
                yield Refused(seed.id, f"generate: {why}")
                continue
            for turn in range(self.rounds):
                operator = str(rng(ask.seed, "operator", seed.id, turn).choice(self.operators))
                evolved = self._evolve(seed, text, operator, ask)
                if evolved:
                    text, how = evolved, [*how, f"evolve/{operator}"]
            yield self._answered(seed, text, how, ask)

    def _persona(self, seed: SeedText, ask: Asker) -> str:
        return str(rng(ask.seed, "persona", seed.id).choice(self.personas)) if self.personas else ""

    def _no_instruction(self, reply: str) -> str:
        if UNABLE.search(reply[:120]):
            return "the model declined"
        if not 3 <= len(words(reply)) <= self.longest:
            return f"length: {len(words(reply))} words"
        return "mentions the text" if re.search(r"\b(the|this) (text|passage|article|document)\b", reply, re.I) else ""

    def _evolve(self, seed: SeedText, text: str, operator: str, ask: Asker) -> str:
        """The evolved instruction, or "" where it is no gain: a copy, no instruction, or (asked) the same."""
        prompt = EVOLVED.format(asked=EVOLVE[operator], text=text)
        new, why = ask.ask(f"evolve/{operator}", [(seed.id, prompt)], self._no_instruction)[0]
        if why or SPACES.sub(" ", new.lower()) == SPACES.sub(" ", text.lower()) or (operator == "breadth" and overlap(new, text) > 0.7):
            return ""
        if self.check:
            question = (seed.id, GAIN.format(old=text, new=new))
            verdict, _ = ask.ask("gain", [question], lambda r: "" if r.lower().strip(". ") in SAME else "odd")[0]
            if verdict.lower().strip(". ") != "different":
                return ""
        return new

    def _answered(self, seed: SeedText, text: str, how: list[str], ask: Asker) -> Made | Refused:
        asked = [(f"{seed.id}#{i}", ANSWER.format(text=text)) for i in range(self.samples)]
        answers = [a for a, why in ask.ask("answer", asked, lambda r: "the model declined" if UNABLE.search(r[:120]) else "") if not why]
        if not answers:
            return Refused(seed.id, "answer: none was usable")
        if self.agree:
            ends = Counter(final(a) for a in answers)
            most, count = max(ends.items(), key=lambda e: (e[1], e[0]))
            if count / self.samples < self.agree:
                return Refused(seed.id, f"disagreement: {count} of {self.samples} answers end alike")
            answers = [a for a in answers if final(a) == most]
        prompts = [(f"{seed.id}#{i}", CRITIC.format(text=text, answer=a)) for i, a in enumerate(answers)]
        grades = [int(m.group(1)) if (m := GRADE.fullmatch(g)) else 0 for g, _ in ask.ask("critic", prompts, _no_grade)]
        best = max(range(len(answers)), key=lambda i: (grades[i], -i))
        if grades[best] < self.grade:
            return Refused(seed.id, f"grade: {grades[best]} of 10, {self.grade} wanted" if grades[best] else "critic: no grade")
        turns = (Message("user", text), Message("assistant", answers[best]))
        return Made("", turns, (seed.id,), (*how, f"grade/{grades[best]}"))


SAME = ("same", "different")


def _no_grade(reply: str) -> str:
    return "" if GRADE.fullmatch(reply) else "no grade"


def final(answer: str) -> str:
    """What an answer comes to: what follows `answer:` or `=` at its end, else its last line, without case and blanks."""
    found = FINAL.search(answer.strip())
    return SPACES.sub("", (found.group(1) if found else answer.strip().rpartition("\n")[2]).lower()).strip(".*")
