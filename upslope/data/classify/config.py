"""What a classifier is trained with and on: models, examples, forms."""

from __future__ import annotations

import difflib
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from upslope.chat.model import Speaker
from upslope.config import Config, Input, Wants
from upslope.data.classify.taxonomy import FIELDS
from upslope.data.embed import Embedder

Share = Annotated[float, Field(gt=0, lt=1)]


class Ngrams(Config):
    """Hashed n-grams, averaged: fast, and blind to everything but wording.

    grams: runs of 1…grams words. chars: (shortest, longest) runs of characters, () for none. bits: the table has 2^bits rows.
    dim: of the embedding; 0 is a plain logistic regression. lr: at the first step, falling to 0 at the last of `epochs`;
    training stops after `patience` epochs without a better loss on the development split, and the best epoch is kept.
    limit: bytes of a text that are looked at, from its start; 0 takes all.
    """

    kind: Literal["ngrams"] = "ngrams"
    features: ClassVar[int] = 1  # of what a text is turned into: a model of another version cannot be used

    grams: Annotated[int, Field(ge=1, le=5)] = 2
    chars: tuple[int, int] | tuple[()] = ()
    bits: Annotated[int, Field(ge=4, le=26)] = 18
    dim: Annotated[int, Field(ge=0, le=1024)] = 16
    lr: Annotated[float, Field(gt=0)] = 0.2
    epochs: Annotated[int, Field(ge=1)] = 12
    patience: Annotated[int, Field(ge=1)] = 2
    limit: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _runs(self) -> Ngrams:
        if self.chars and not 1 <= self.chars[0] <= self.chars[1] <= 8:
            raise ValueError(f"chars = {list(self.chars)}: give (shortest, longest) with 1 ≤ shortest ≤ longest ≤ 8, or nothing")
        return self


class Embedding(Config):
    """A head on frozen embeddings: linear, or with one hidden layer of `hidden` rectified units.

    l2: penalty l2/2 · ‖weights‖² beside the mean loss. iterations: at most, of L-BFGS; with a hidden layer it also stops after
    `patience` checks (one each ten iterations) without a better loss on the development split.
    """

    kind: Literal["embedding"] = "embedding"

    embedder: Embedder
    hidden: Annotated[int, Field(ge=0, le=4096)] = 0
    l2: Annotated[float, Field(ge=0)] = 1e-4
    iterations: Annotated[int, Field(ge=1)] = 200
    patience: Annotated[int, Field(ge=1)] = 3


class Rubric(Config):
    """What a teacher is asked about each text. question: what to judge, and how. Then either `answers`, the classes, or `scale`, the
    lowest and highest whole number. several: more than one answer may be given. abstain: "none" may be given, and labels nothing.

    shown: characters of a text that the teacher sees, from its start.
    """

    question: Annotated[str, Field(min_length=1)]
    answers: tuple[Annotated[str, Field(min_length=1, pattern=r"^[^,\n]*$")], ...] = ()
    scale: tuple[int, int] | tuple[()] = ()
    several: bool = False
    abstain: bool = True
    shown: Annotated[int, Field(ge=1)] = 4000

    @model_validator(mode="after")
    def _one_kind(self) -> Rubric:
        if bool(self.answers) == bool(self.scale):
            raise ValueError("give either answers or a scale (lowest, highest)")
        if self.scale and self.scale[0] >= self.scale[1]:
            raise ValueError(f"scale = {list(self.scale)}: the lowest comes first")
        if len(set(self.answers)) < len(self.answers) or "none" in self.answers:
            raise ValueError(f"answers = {list(self.answers)}: they must differ, and none may be 'none', which abstains")
        if self.several and self.scale:
            raise ValueError("several = true goes with answers, not with a scale")
        return self


class Labelled(Config):
    """Documents of a corpus with labels: all `label`, or those in `column` (`source`, `edu.score`), or the teacher's, by a `rubric`.

    A column that is NULL or "" labels nothing; for the target `any` its labels are joined by commas, and "" is none of them.
    sources: only documents of these; () takes all. limit: at most so many, those whose texts have the smallest hashes; 0 takes all.
    """

    corpus: Annotated[Input, Wants("Corpus")]
    label: Annotated[str, Field(pattern=r"^[^,\n]*$")] = ""
    column: str = ""
    rubric: Rubric | None = None
    sources: tuple[str, ...] = ()
    limit: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_origin(self) -> Labelled:
        if bool(self.label) + bool(self.column) + (self.rubric is not None) != 1:
            raise ValueError("give one of label, column and rubric")
        return self


class Labels(Config):
    """A classifier for labels of any kind.

    target: `one` of the classes (softmax), `any` of them (a yes or no each), or a `number` (least squares). positive: the class whose
    probability is the score; "" takes the likeliest. balance: classes weigh the same however many examples they have.
    buckets: cut the score into so many, equally full on `over`, or where that is empty on the examples that were not learnt from.
    """

    kind: Literal["labels"] = "labels"

    examples: Annotated[tuple[Labelled, ...], Field(min_length=1)]
    target: Literal["one", "any", "number"] = "one"
    positive: str = ""
    balance: bool = False
    teacher: Speaker | None = None
    buckets: Annotated[int, Field(ge=0, le=100)] = 0
    over: Annotated[tuple[Input, ...], Wants("Corpus")] = ()

    @model_validator(mode="after")
    def _fits(self) -> Labels:
        asks = any(e.rubric for e in self.examples)
        if asks and self.teacher is None:
            raise ValueError("a rubric needs a teacher to answer it")
        if self.target == "number" and any(e.label for e in self.examples):
            raise ValueError("the target number needs a column or a rubric with a scale, not a label")
        for e in self.examples:
            if e.rubric and (self.target == "number") != bool(e.rubric.scale):
                raise ValueError("a rubric with a scale goes with the target number, and only with it")
            if e.rubric and e.rubric.several != (self.target == "any"):
                raise ValueError("several = true in a rubric goes with the target any, and only with it")
        _steady(self.teacher)
        if self.buckets == 1:
            raise ValueError("buckets = 1: one bucket says nothing; give 0 or at least 2")
        return self


def _steady(teacher: Speaker | None) -> None:
    temperature = getattr(teacher, "temperature", 0)
    if temperature:
        raise ValueError(f"teacher.temperature = {temperature}: labels are asked for at temperature 0, so that they can be had again")


class Taxonomy(Config):
    """One student for the fields of `classify.taxonomy`, taught by a chat model.

    fields: which; shown: characters of a document that the teacher sees; secondary: weight of the secondary code in the target;
    least: a code that fewer examples name is no class of the student. sources, limit: as in `Labelled`.
    """

    kind: Literal["taxonomy"] = "taxonomy"

    corpora: Annotated[tuple[Input, ...], Wants("Corpus"), Field(min_length=1)]
    teacher: Speaker
    fields: Annotated[tuple[str, ...], Field(min_length=1)] = FIELDS
    sources: tuple[str, ...] = ()
    limit: Annotated[int, Field(ge=0)] = 0
    shown: Annotated[int, Field(ge=1)] = 4000
    secondary: Annotated[float, Field(ge=0, le=0.5)] = 0.3
    least: Annotated[int, Field(ge=1)] = 2

    @model_validator(mode="after")
    def _steady_teacher(self) -> Taxonomy:
        _steady(self.teacher)
        return self

    @field_validator("fields")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in FIELDS:
                near = difflib.get_close_matches(name, FIELDS, n=2, cutoff=0.4)
                raise ValueError(
                    f"no field {name!r}; {'did you mean ' + ' or '.join(near) + '?' if near else 'fields: ' + ', '.join(FIELDS)}"
                )
        return tuple(f for f in FIELDS if f in value)


PHRASES = (
    "as an ai language model", "as a large language model", "as an ai assistant", "i cannot fulfill this request",
    "i'm sorry, but i can't", "i am sorry, but i cannot", "my knowledge cutoff", "as of my last update", "regenerate response",
    "certainly! here is", "certainly! here's", "sure! here is", "sure, here's", "i hope this helps! let me know",
    "in conclusion, it is important to",
)  # fmt: skip


class AiText(Config):
    """Triage of machine-written text from signals that are independent of one another; none of them decides alone.

    human, machine: corpora of either kind. cutoff: a page crawled before this date (ISO) is certainly human; of `human` only such pages
    are used, unless `trusted`, which vouches for the rest. phrases: boilerplate of assistants, in lower case. order: bytes of the
    longest n-gram of the two language models, which learn from lm_bytes of each kind. limit: bytes of a text that are looked at.
    fpr: the share of human pages that may be flagged; it decides the threshold. prior: how often a page that is not certainly human is
    machine-written, before anything else is known.
    """

    kind: Literal["aitext"] = "aitext"

    human: Annotated[tuple[Input, ...], Wants("Corpus"), Field(min_length=1)]
    machine: Annotated[tuple[Input, ...], Wants("Corpus"), Field(min_length=1)]
    cutoff: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")] = "2022-11-30"
    trusted: bool = False
    phrases: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)] = PHRASES
    order: Annotated[int, Field(ge=1, le=8)] = 5
    lm_bytes: Annotated[int, Field(ge=1)] = 4_000_000
    limit: Annotated[int, Field(ge=0)] = 4096
    fpr: Annotated[float, Field(gt=0, lt=0.5)] = 0.01
    prior: Share = 0.1
