"""Suites: what is measured about a model, as one row per item. An open family.

A suite of your own: subclass `Suite`, set `kind`, give rows in `run`, and say in `depends` on which parts of the object
(weights, numerics, tokenizer, template, system, sampling, engine) they depend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from upslope.config import Open, UsageError, dump
from upslope.evals.artifacts import NATS, Condition, Row
from upslope.evals.subject import LOCAL, Deployment, Subject
from upslope.machine.rng import seed_of
from upslope.model.checkpoint import Checkpoint
from upslope.tokens.shards import HELDOUT

if TYPE_CHECKING:
    from upslope.chat.render import ChatML
    from upslope.generate.engine import Engine
    from upslope.model.transformer import Transformer
    from upslope.tasks.task import Task
    from upslope.tokens.mixture import Mixture
    from upslope.tokens.shards import TokenShards
    from upslope.tokens.tokenizer import Tokenizer


@dataclass
class Bench:
    """What suites measure with: a checkpoint in its deployment, and the data. Everything heavy is loaded once, when first used.

    check: called often with (done, total, unit); may raise to stop.
    """

    checkpoint: Checkpoint
    deployment: Deployment = field(default_factory=Deployment)
    tasks: Sequence[Task] = ()
    shards: Sequence[TokenShards] = ()
    mixture: Mixture | None = None
    seed: int = 0
    check: Callable[[int, int, str], None] = lambda done, total, unit: None

    @cached_property
    def subject(self) -> Subject:
        """The object."""
        return Subject.of(self.checkpoint.weights, self.deployment, LOCAL)

    @cached_property
    def model(self) -> Transformer:
        """The model, in float32."""
        return self.checkpoint.model()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        return self.checkpoint.tokenizer()

    @cached_property
    def renderer(self) -> ChatML:
        """Its chat format."""
        from upslope.chat.render import ChatML

        return ChatML(self.tokenizer)

    @cached_property
    def engine(self) -> Engine:
        """A local engine with the deployment's numerics."""
        from upslope.generate.engine import LocalEngine

        return LocalEngine(self.model, self.tokenizer, numerics=self.deployment.numerics)

    def heldout(self, per_source: int) -> list[tuple[str, np.ndarray, int]]:
        """(source/document, token ids without end-of-text, UTF-8 bytes) of held-out documents, the first `per_source` of each source."""
        found = []
        eos = self.tokenizer.eos
        for shards in self.shards:
            for source in sorted(s for s in shards.sources() if s.endswith(HELDOUT)):
                tokens, offsets, docs = shards.tokens(source), shards.offsets(source), shards.docs(source)
                for i in range(min(per_source, len(docs))):
                    ids = np.asarray(tokens[int(offsets[i]) : int(offsets[i + 1])], dtype=np.int64)
                    ids = ids[:-1] if len(ids) and ids[-1] == eos else ids
                    size = len(self.tokenizer.decode(ids.tolist()).encode())
                    if size:
                        found.append((f"{source.removesuffix(HELDOUT)}/{int(docs[i]):016x}", ids, size))
        if not found:
            raise UsageError(
                f"no held-out documents: no source of the shards ends in {HELDOUT!r}\n"
                "way out: a tokenize stage with holdout > 0, and `shards` set in the evaluate stage"
            )
        return found


class Suite(Open):
    """A measurement. depends: the parts of the object that its rows depend on."""

    home: ClassVar[str | tuple[str, ...]] = ("upslope.evals.suites", "upslope.evals")
    version: ClassVar[int] = 1
    depends: ClassVar[tuple[str, ...]] = ("weights", "numerics", "tokenizer", "template", "system", "sampling", "engine")

    name: str = ""

    @property
    def label(self) -> str:
        """The name of the suite in tables."""
        return self.name or str(getattr(type(self), "kind", type(self).__name__))

    def run(self, bench: Bench) -> list[Row]:
        """One row per item and metric; suite, item, metric, value and bytes are to be filled."""
        raise NotImplementedError

    def condition(self, bench: Bench) -> Condition:
        """What the rows speak of, and the settings."""
        return Condition(bench.subject.only(*self.depends), dump(self))


class BitsPerByte(Suite):
    """Bits per byte of held-out documents: Σ nats / (ln 2 · UTF-8 bytes), document by document.

    documents: how many of each source. context: tokens in a window (no longer than trained, or the model extrapolates).
    overlap: least tokens of context of a token after the first window. The text must not have been trained on: only sources
    that the tokenize stage held out are read.
    Source: Gao et al. 2020 (The Pile, arXiv 2101.00027) section 3.1.
    """

    kind: ClassVar[str] = "bits_per_byte"
    depends: ClassVar[tuple[str, ...]] = ("weights", "numerics", "tokenizer")

    documents: Annotated[int, Field(ge=1)] = 100
    context: Annotated[int, Field(ge=2)] = 128
    overlap: Annotated[int, Field(ge=1)] = 32

    def run(self, bench: Bench) -> list[Row]:
        """Rows of metric `nats`."""
        from upslope.evals.nll import document_nats

        held = bench.heldout(self.documents)
        context = min(self.context, bench.checkpoint.config().context)
        nats = document_nats(
            bench.model,
            [ids for _, ids, _ in held],
            context=context,
            overlap=min(self.overlap, context - 1),
            numerics=bench.deployment.numerics,
            check=lambda done, total: bench.check(done, total, "windows"),
        )
        return [Row(self.label, item, NATS, float(x.sum()), size) for (item, _, size), x in zip(held, nats, strict=True)]


class BigramBaseline(Suite):
    """The same bits per byte under an interpolated bigram of exactly the token rows that training drew.

    steps, rows, row_length, train_seed: of the pretrain stage whose rows it is fitted on: `steps · rows` rows of the
    stream over (shards, mixture). train_seed None = the seed of this stage, which is the recipe's unless set otherwise.
    """

    kind: ClassVar[str] = "bigram"
    depends: ClassVar[tuple[str, ...]] = ("tokenizer",)

    steps: Annotated[int, Field(ge=1)]
    rows: Annotated[int, Field(ge=1)]
    row_length: Annotated[int, Field(ge=2)]
    train_seed: int | None = None
    documents: Annotated[int, Field(ge=1)] = 100

    def run(self, bench: Bench) -> list[Row]:
        """Rows of metric `nats`."""
        from upslope.evals.bigram import Bigram
        from upslope.tokens.stream import Stream

        if bench.mixture is None:
            raise UsageError(f"suite {self.label!r} needs the mixture that training drew from\nway out: `mixture` in the evaluate stage")
        held = bench.heldout(self.documents)
        total = self.steps * self.rows
        seed = seed_of(bench.seed if self.train_seed is None else self.train_seed, "stream")
        stream = Stream(bench.shards, bench.mixture, self.row_length, seed, total=total)

        def drawn(k: int) -> tuple[np.ndarray, np.ndarray]:
            if k % 256 == 0:
                bench.check(k, total, "rows")
            sample = stream.sample(k)
            return sample.ids, sample.seg

        bigram = Bigram.fit((drawn(k) for k in range(total)), bench.tokenizer.vocab_size)
        return [Row(self.label, item, NATS, float(bigram.nats(ids).sum()), size) for item, ids, size in held]


class Accuracy(Suite):
    """Share of held-out tasks answered correctly, by family and level; also the length of answers and whether they end.

    limit: how many tasks with distinct problems, spread over families and levels. families: only these (empty = all).
    skip: not these. think: `free`, or `forced` = the answer is made to begin with a thought: what the model could do if it chose to think.
    samples, temperature: answers per task at that temperature; None = as deployed. The value of a task is its mean score
    (pass@1).
    """

    kind: ClassVar[str] = "accuracy"

    limit: Annotated[int, Field(ge=1)] = 440
    families: tuple[str, ...] = ()
    skip: tuple[str, ...] = ("secret",)
    think: Literal["free", "forced"] = "free"
    samples: Annotated[int, Field(ge=1)] = 1
    temperature: Annotated[float, Field(ge=0)] | None = None

    @property
    def label(self) -> str:
        """accuracy, accuracy_forced, accuracy_sampled, or the given name."""
        return self.name or "accuracy" + ("_forced" if self.think == "forced" else "") + ("" if self.temperature is None else "_sampled")

    def run(self, bench: Bench) -> list[Row]:
        """Rows of metrics `correct`, `tokens` and `ended`, each the mean over samples."""
        from upslope.evals.accuracy import answers, group, select

        tasks = [t for t in bench.tasks if (not self.families or t.family in self.families) and t.family not in self.skip]
        chosen = select(tasks, self.limit)
        if not chosen:
            there = ", ".join(sorted({t.family for t in bench.tasks})) or "none"
            raise UsageError(
                f"suite {self.label!r}: no held-out task is left; families there: {there}\nway out: `tasks` in the evaluate stage"
            )
        found: dict[str, list[tuple[float, float, float, int]]] = {}
        graded_answers = answers(
            bench.engine,
            bench.renderer,
            chosen,
            self._deployed(bench).sampling(),
            system=bench.deployment.system,
            forced=self.think == "forced",
            samples=self.samples,
            seed=bench.seed,
            check=lambda done: bench.check(done, len(chosen), "tasks"),
        )
        for a in graded_answers:
            found.setdefault(group(a.task), []).append((a.score, a.tokens, a.ended, len(a.message.content.encode())))
        rows = []
        for item, graded in found.items():
            score, tokens, ended, size = np.mean(np.array(graded, dtype=float), axis=0)
            rows += [Row(self.label, item, m, float(v), round(size)) for m, v in (("correct", score), ("tokens", tokens), ("ended", ended))]
        return rows

    def condition(self, bench: Bench) -> Condition:
        """A forced thought is another template, another temperature another sampling: such rows speak of another object."""
        whole = Subject.of(bench.checkpoint.weights, self._deployed(bench))
        parts: dict[str, Any] = whole.only(*self.depends).json()
        if self.think == "forced":
            parts["template"] += "+forced thought"
        return Condition(Subject(**parts), dump(self))

    def _deployed(self, bench: Bench) -> Deployment:
        return bench.deployment if self.temperature is None else bench.deployment.replace(temperature=self.temperature)
