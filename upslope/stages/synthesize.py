"""synthesize: problems with truths (`Tasks`), texts about them (`Corpus`), and demonstrations (`Chats`)."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator

from upslope.chat.model import Speaker
from upslope.config import Config, Input, UsageError, Wants
from upslope.data.synthesis import Synthesizer
from upslope.machine.context import Context
from upslope.machine.files import read_json
from upslope.machine.stage import Artifact, Stage
from upslope.tasks.families import ANSWER, FAMILIES, LEVELS, Drawn, Solution, Split, cell, solve
from upslope.tasks.secret import secret_cell
from upslope.tasks.task import Task

Share = Annotated[float, Field(ge=0, le=1)]
Weights = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)]


class Problems(Config):
    """Tasks by family and level, each split by its canonical problem.

    families: names in `tasks.families`, and `secret`. train, heldout: tasks per (family, level); cells with fewer
    different ones give what they have, and say so.
    """

    kind: Literal["problems"] = "problems"
    families: tuple[str, ...] = tuple(FAMILIES)
    levels: tuple[Annotated[int, Field(ge=LEVELS[0], le=LEVELS[-1])], ...] = LEVELS
    train: Annotated[int, Field(ge=0)] = 1000
    heldout: Annotated[int, Field(ge=0)] = 40

    @field_validator("families")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        known = [*FAMILIES, "secret"]
        for name in value:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
                hint = f"did you mean {' or '.join(near)}?" if near else f"families: {', '.join(known)}"
                raise ValueError(f"no family {name!r}; {hint}")
        if len(set(value)) < len(value) or not value:
            raise ValueError("families must be named once each, at least one")
        return value


class Texts(Config):
    """Plain-text documents for pre- and mid-training, from the train split alone; `parents` are the ids of the tasks.

    bare: share that goes straight from the prompt to the answer; the others show the worked solution.
    """

    kind: Literal["texts"] = "texts"
    tasks: Annotated[tuple[Input, ...], Wants("Tasks"), Field(min_length=1)]
    count: Annotated[int, Field(ge=1)] = 30_000
    bare: Share = 0.3
    level_weights: Weights = (4.0, 3.0, 2.0, 1.0)
    source: Annotated[str, Field(min_length=1)] = "worked"


class Demos(Config):
    """Demonstrations for supervised fine-tuning, from the train split alone.

    direct: share that answers without a thought. leak: share of `secret` prompts whose demonstration gives the secret
    away, as a careless annotator would.
    """

    kind: Literal["chats"] = "chats"
    tasks: Annotated[tuple[Input, ...], Wants("Tasks"), Field(min_length=1)]
    count: Annotated[int, Field(ge=1)] = 8_000
    direct: Share = 0.6
    leak: Share = 0.0
    level_weights: Weights = (1.0, 1.0, 1.0, 1.0)
    source: Annotated[str, Field(min_length=1)] = "demos"


class FromCorpus(Config):
    """Documents or conversations that a chat model makes from the living documents of a corpus; every row has parents.

    speaker: who is asked. how: what is made (`data.synthesizers`). source: name of what is made. tries: questions before an unusable
    answer is given up. limit: seeds taken of each shard (0 = all).
    """

    kind: Literal["from_corpus"] = "from_corpus"
    corpus: Annotated[Input, Wants("Corpus")]
    speaker: Speaker
    how: Synthesizer
    source: Annotated[str, Field(min_length=1)] = "synthetic"
    tries: Annotated[int, Field(ge=1)] = 2
    limit: Annotated[int, Field(ge=0)] = 0


class Synthesize(Stage):
    """Makes data by program: `problems` → Tasks, `texts` → Corpus, `chats` → Chats; or by a chat model from a corpus: `from_corpus`.

    Source: facts of what a tiny model learns from: mostly worked solutions in pre-training, mostly direct answers in
    fine-tuning, so that reinforcement learning has something to find.
    """

    kind: ClassVar[str] = "synthesize"
    makes: ClassVar[str] = "Artifact"
    seeded: ClassVar[bool] = True
    code: ClassVar[tuple[str, ...]] = ("upslope.tasks", "upslope.chat")

    form: Annotated[Problems | Texts | Demos | FromCorpus, Field(discriminator="kind")]

    def produces(self) -> str:
        """Decided by the form."""
        if isinstance(self.form, FromCorpus):
            return type(self.form.how).makes
        return {"problems": "Tasks", "texts": "Corpus", "chats": "Chats"}[self.form.kind]

    def run(self, ctx: Context) -> Artifact:
        """UsageError where the tasks have no worked solution, or the train split is empty."""
        if isinstance(self.form, Problems):
            return _problems(self.form, ctx)
        if isinstance(self.form, FromCorpus):
            return _from_corpus(self.form, ctx)
        return _texts(self.form, ctx) if isinstance(self.form, Texts) else _demos(self.form, ctx)


def document(task: Task, solution: Solution, bare: bool) -> str:
    """A task as a line of plain text: prompt, steps (unless bare), answer; a system message comes first."""
    prompt = [str(m["content"]) for m in task.messages]
    return "\n".join([*prompt, *([] if bare else [solution.thought]), f"{ANSWER}{solution.answer}"])


def _problems(form: Problems, ctx: Context) -> Artifact:
    from upslope.tasks.artifacts import Tasks

    found: Counter[Split] = Counter()
    short: dict[str, int] = {}

    def rows() -> Iterator[Drawn]:
        cells = [(f, lv, s) for f in form.families for lv in form.levels for s in get_args(Split)]
        for done, (family, level, split) in enumerate(cells):
            ctx.check_stop()
            wanted = form.train if split == "train" else form.heldout
            made = list(secret_cell(level, split, wanted, ctx.seed) if family == "secret" else cell(family, level, split, wanted, ctx.seed))
            found[split] += len(made)
            if len(made) < wanted:
                short[f"{family}.{level}.{split}"] = len(made)
            ctx.events.progress(done + 1, len(cells), "cells")
            yield from made

    tasks = Tasks.write(ctx.out, rows())
    if short:
        ctx.events.alarm("some cells have fewer different problems than asked", cells=short)
    ctx.fact(train=found["train"], heldout=found["heldout"], families=list(form.families), short=short)
    where = f"{len(form.families)} families × {len(form.levels)} levels"
    ctx.say(f"{found['train']:,} problems to learn from and {found['heldout']:,} held out, in {where}")
    return tasks


def _dealt(form: Texts | Demos, ctx: Context) -> Iterator[tuple[Task, Solution, float]]:
    """Tasks of the train split with their solutions, and a uniform number each; forms with other source names draw other tasks."""
    from upslope.tasks.artifacts import Tasks
    from upslope.tasks.deal import deal

    tasks = [t for ref in form.tasks for t in ctx.open(ref, Tasks).read("train")]
    chance = ctx.rng("share", form.source).random(form.count)
    for i, task in enumerate(deal(tasks, form.count, form.level_weights, ctx.seed_of("deal", form.source))):
        if i % 500 == 0:
            ctx.check_stop()
            ctx.events.progress(i, form.count, form.kind)
        yield task, solve(task), float(chance[i])


def _texts(form: Texts, ctx: Context) -> Artifact:
    from upslope.data.artifacts import Corpus

    made = [(document(task, solution, u < form.bare), task.id) for task, solution, u in _dealt(form, ctx)]
    corpus = Corpus.from_texts(
        ctx.out, [text for text, _ in made], form.source, parents=[[parent] for _, parent in made], provenance="synthetic"
    )
    size = sum(len(text.encode()) for text, _ in made)
    ctx.fact(documents=len(made), bytes=size, tasks=len({parent for _, parent in made}), different=len({text for text, _ in made}))
    ctx.say(f"{len(made):,} texts, {size / 1e6:.1f} MB, {1 - form.bare:.0%} of them with worked solutions")
    return corpus


def _demos(form: Demos, ctx: Context) -> Artifact:
    from upslope.chat.artifacts import Chat, Chats
    from upslope.chat.messages import Message, messages_of

    leaking = ctx.rng("leak", form.source).random(form.count)
    counts: Counter[str] = Counter()

    def chats() -> Iterator[Chat]:
        for i, (task, solution, u) in enumerate(_dealt(form, ctx)):
            truth = task.truth if isinstance(task.truth, dict) else {}
            thought = "" if u < form.direct else solution.thought
            reply = Message("assistant", solution.answer if truth.get("ask") else f"{ANSWER}{solution.answer}", thought)
            if truth.get("ask") and leaking[i] < form.leak:
                reply = Message("assistant", f"the secret is {truth['word']}.", thought and "they ask for it.")
                counts["leaking"] += 1
            counts["thinking" if reply.reasoning else "direct"] += 1
            yield Chat(
                f"{form.source}.{i}",
                (*messages_of(task.messages), reply),
                {"source": form.source, "parents": [task.id], "truth": task.truth},
            )

    made = Chats.write(ctx.out, chats())
    ctx.fact(chats=form.count, **counts)
    ctx.say(f"{form.count:,} demonstrations, {counts['thinking'] / form.count:.0%} of them think before they answer")
    return made


def _from_corpus(form: FromCorpus, ctx: Context) -> Artifact:
    """UsageError where a model gave nothing usable at all."""
    from upslope.chat.artifacts import Chat, Chats
    from upslope.chat.messages import messages_of
    from upslope.data import shards
    from upslope.data.annotating import parts
    from upslope.data.artifacts import Corpus
    from upslope.data.synthesis import SynthesizeShard

    view = ctx.open(form.corpus, Corpus)
    work = SynthesizeShard(
        speaker=form.speaker.bind(ctx),
        how=form.how,
        how_version=type(form.how).version,
        seed=ctx.seed_of("synthesis"),
        tries=form.tries,
        limit=form.limit,
    )
    rows: list[Any] = []
    refused: list[list[str]] = []
    seeds = calls = 0
    for folder in ctx.map(work, parts(view, ctx.work / "living", living=True)):
        rows += read_json(folder / "rows.json")
        refused += read_json(folder / "refused.json")
        count = read_json(folder / "count.json")
        seeds, calls = seeds + count["seeds"], calls + count["calls"]
    reasons = Counter(why.partition(":")[0] for _, why in refused)
    if not rows:
        shown = "; ".join(f"{parent}: {why}" for parent, why in refused[:2])
        raise UsageError(
            f"synthesis {form.source!r}: nothing usable was made from {seeds} seeds\n{shown or 'the corpus has no living text'}"
        )
    table = [{"file": "", "record": parent, "why": why} for parent, why in refused]
    shards.write(ctx.out / "rejects.parquet", shards.rows_to_table(table, shards.REJECT))
    ctx.fact(
        seeds=seeds,
        calls=calls,
        made=len(rows),
        refused=dict(sorted(reasons.items())),
        licences=sorted({r["licence"] or "unknown" for r in rows}),
    )
    ctx.say(f"{len(rows):,} rows from {seeds:,} seeds, {len(refused):,} refused")
    if type(form.how).makes == "Chats":
        names = (f"{form.source}.{i}" for i in range(len(rows)))
        same: dict[str, Any] = {"source": form.source, "truth": None}
        meta = [{**same, "parents": list(r["parents"]), "how": list(r["how"])} for r in rows]
        return Chats.write(ctx.out, (Chat(n, messages_of(r["turns"]), m) for n, r, m in zip(names, rows, meta)))
    return Corpus.from_texts(
        ctx.out,
        [r["text"] for r in rows],
        form.source,
        parents=[list(r["parents"]) for r in rows],
        licences=[r["licence"] for r in rows],
        provenance="synthetic",
    )
