"""import: outside checkpoints, corpora, tasks, chats and evidence → artifacts of ours."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from upslope.config import Config, FrozenDict, Json, Neutral, Source, UsageError, canonical_json
from upslope.machine.context import Context
from upslope.machine.files import digest_path
from upslope.machine.stage import Artifact, Stage

Map = Annotated[FrozenDict[str, str], Neutral(FrozenDict())]
Drop = Annotated[bool, Neutral(False)]


class ImportCheckpoint(Config):
    """A Hugging Face folder of a mapped family, with its tokenizer and chat template → Checkpoint."""

    kind: Literal["checkpoint"] = "checkpoint"
    source: Source


class ImportCorpus(Config):
    """JSON (lines or an array), parquet or Arrow with a column of text → Corpus.

    name: the corpus's source name; text: the column, or a dotted path; licence: as declared by you.
    """

    kind: Literal["corpus"] = "corpus"
    source: Source
    name: str = "import"
    text: str = "text"
    licence: str = ""


class ImportTasks(Config):
    """Rows with a prompt and its truth → Tasks.

    A row has `prompt` (text) or `messages`, and `answer` (text) or `truth` (JSON with "answer"); where messages end with an answer,
    that is the truth. Optionally id, family, level, and split ("train" / "heldout"). family: of rows that name none. Rows without a
    split are split by a hash of their prompt. Any shape of `data.shapes` that holds a prompt is read. map: our field → theirs, as for
    `upslope data check`. drop_bad: leave out rows that cannot be used, instead of refusing them all.
    """

    kind: Literal["tasks"] = "tasks"
    source: Source
    family: str = "import"
    map: Map = FrozenDict()
    drop_bad: Drop = False


class ImportChats(Config):
    """Rows with `messages`, or a prompt and its completion (and optionally id, truth) → Chats, in any shape of `data.shapes`.

    name: their source name. split: `train` leaves out the conversations that a `tasks` import of the same file holds out. map, drop_bad:
    as for tasks.
    """

    kind: Literal["chats"] = "chats"
    source: Source
    name: str = "import"
    split: Literal["all", "train"] = "all"
    map: Map = FrozenDict()
    drop_bad: Drop = False


class ImportPairs(Config):
    """Rows with a chosen and a rejected answer → Pairs. Only answers of one message are read. name, map, drop_bad: as for chats.

    Rows without a `split` ("train" / "heldout") are split by a hash of their prompt.
    """

    kind: Literal["pairs"] = "pairs"
    source: Source
    name: str = "import"
    map: Map = FrozenDict()
    drop_bad: Drop = False


class ImportEvidence(Config):
    """JSON lines or parquet rows of suite, item, metric, value (and optionally bytes, step, run) → Table.

    weights: digest of the weights that were measured, as `evals.subject.Subject` computes it: evidence speaks of one object.
    """

    kind: Literal["evidence"] = "evidence"
    source: Source
    weights: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


Form = Annotated[ImportCheckpoint | ImportCorpus | ImportTasks | ImportChats | ImportPairs | ImportEvidence, Field(discriminator="kind")]


class Import(Stage):
    """Brings outside data in, once, checked; its identity is the content of the source."""

    kind: ClassVar[str] = "import"
    makes: ClassVar[str] = "Artifact"
    code: ClassVar[tuple[str, ...]] = ("upslope.model", "upslope.data", "upslope.chat", "upslope.tasks")

    form: Form

    def produces(self) -> str:
        """Decided by the form."""
        made = {"checkpoint": "Checkpoint", "corpus": "Corpus", "tasks": "Tasks", "chats": "Chats", "pairs": "Pairs", "evidence": "Table"}
        return made[self.form.kind]

    def run(self, ctx: Context) -> Artifact:
        """UsageError, with file and line, for what cannot be read; nothing is skipped unless `drop_bad` says so."""
        form = self.form
        if isinstance(form, ImportCheckpoint):
            return _checkpoint(form, ctx)
        rows = read_rows(form.source.path())
        ctx.fact(rows=len(rows))
        if isinstance(form, ImportCorpus):
            return _corpus(form, rows, ctx)
        if isinstance(form, ImportTasks):
            return _tasks(form, rows, ctx)
        if isinstance(form, ImportChats):
            return _chats(form, rows, ctx)
        return _pairs(form, rows, ctx) if isinstance(form, ImportPairs) else _evidence(form, rows, ctx)


class Row(NamedTuple):
    """A record and where it stands, for messages."""

    where: str
    data: dict[str, Any]

    def need(self, key: str, kind: type) -> Any:
        """The value of a column (or at a dotted path), which must be of a type."""
        from upslope.data.readers.fields import pick

        value = pick(self.data, key)
        if not isinstance(value, kind):
            has = ", ".join(self.data) or "nothing"
            raise UsageError(f"{self.where}: {key} = {str(value)[:60]!r} is not a {kind.__name__}\nthe row has: {has}")
        return value


def read_rows(path: Path) -> list[Row]:
    """The records of a JSON (lines, array), parquet or Arrow file, packed or not, or of all such files in a folder, in order of name."""
    from upslope.data.ingesting import files_of
    from upslope.data.readers import named

    files = [f for _, f in files_of(path)[0]]
    rows = [row for file in files if path.is_file() or named(file) in ("jsonl", "parquet", "arrow") for row in _rows(file)]
    if not rows:
        raise UsageError(f"{path.name!r} holds no records\nway out: give a .jsonl or .parquet file, or a folder of them")
    return rows


def _rows(file: Path) -> Iterator[Row]:
    from upslope.data.readers import sniff
    from upslope.data.readers.records import items

    form = sniff(file) if file.stat().st_size else "jsonl"
    if form not in ("jsonl", "json", "parquet", "arrow"):
        raise UsageError(f"{file.name} holds {form}, not records\nway out: `upslope data check {file.name}` says what it is good for")
    for item in items(file, form, file.name):
        where = f"{file.name} " + ("line " if form == "jsonl" else "row ") + item.where.replace("#", ":").rpartition(":")[2]
        if item.lost:
            damaged = f"{file.name} is not readable {form}: {item.notes[0]}"
            raise UsageError(damaged if form in ("parquet", "arrow") else f"{where}: not JSON ({item.notes[0].rpartition(': ')[2]})")
        if not isinstance(item.value, dict):
            raise UsageError(f"{where}: a {type(item.value).__name__}, not an object")
        yield Row(where, item.value)


def _usable(form: ImportTasks | ImportChats | ImportPairs, rows: list[Row], ctx: Context, *shapes: str) -> list[Row]:
    """The rows in canonical form (`data.shapes`); UsageError for the first that is none of these shapes, unless such rows are dropped."""
    from upslope.data.check import Bad, canonical
    from upslope.data.turns import Wrong

    good: list[Row] = []
    dropped: list[str] = []
    for row in rows:
        try:
            shape, data = canonical(row.data, form.map)
            if shape not in shapes:
                raise Wrong(f"{shape}, where {form.kind} are wanted: {' or '.join(shapes)}", found=tuple(row.data))
            good.append(Row(row.where, data))
        except Wrong as e:
            bad = Bad(row.where, e.why, e.found, e.wanted)
            if not form.drop_bad:
                fix = (
                    f"{e.fix}\nor leave such rows out: --drop-bad"
                    if e.fix not in ("", "--drop-bad")
                    else "mend it, or leave such rows out: --drop-bad"
                )
                raise UsageError(f"{bad}\nway out: {fix} (in a recipe: form.map, form.drop_bad)") from None
            dropped.append(str(bad))
    if dropped:
        ctx.fact(dropped=len(dropped))
        ctx.events.alarm("some rows could not be used and were left out", rows=len(dropped), first=dropped[:3])
    if not good:
        raise UsageError(f"none of {len(rows)} rows can be used\n{dropped[0]}")
    return good


def _checkpoint(form: ImportCheckpoint, ctx: Context) -> Artifact:
    from upslope.model.checkpoint import Checkpoint
    from upslope.model.weights import import_hf
    from upslope.tokens.tokenizer import Tokenizer

    folder = form.source.path()
    with ctx.events.state("load"):
        model = import_hf(folder)
    if not (folder / "tokenizer.json").is_file():
        raise UsageError(f"{folder.name!r} has no tokenizer.json\nway out: AutoTokenizer.from_pretrained(A).save_pretrained(B) writes it")
    count = model.config.params()
    ctx.fact(params=count, vocab=model.config.vocab, context=model.config.context)
    ctx.say(f"a model of {count / 1e6:,.2f}M parameters, vocabulary {model.config.vocab:,}")
    return Checkpoint.write(ctx.out, model, Tokenizer.load(folder))


def _corpus(form: ImportCorpus, rows: list[Row], ctx: Context) -> Artifact:
    from upslope.data.artifacts import Corpus

    texts = [row.need(form.text, str) for row in rows]
    ctx.say(f"{len(texts):,} documents, {sum(map(len, texts)):,} characters")
    return Corpus.from_texts(ctx.out, texts, form.name, licence=form.licence, provenance="import")


def _tasks(form: ImportTasks, rows: list[Row], ctx: Context) -> Artifact:
    from upslope.tasks.artifacts import Split, Tasks
    from upslope.tasks.families import split_of
    from upslope.tasks.task import Task

    found: list[tuple[Task, Split, str]] = []
    for row in _usable(form, rows, ctx, "messages", "prompt/completion", "prompts"):
        data = row.data
        messages = tuple(data["messages"] if "messages" in data else data["prompt"])
        answer: Json = data.get("answer")
        if messages[-1]["role"] == "assistant":  # a conversation: its last answer is the truth, what comes before is asked
            answer, messages = (messages[-1]["content"] if answer is None else answer), messages[:-1]
        if not messages:
            raise UsageError(f"{row.where}: there is no prompt: messages hold only an answer")
        truth: Json = data.get("truth")
        if truth is None:
            truth = {"answer": answer if isinstance(answer, str) else row.need("answer", str)}
        if not isinstance(truth, dict) or not isinstance(truth.get("answer"), str):
            raise UsageError(f"{row.where}: truth has no 'answer' string: {str(truth)[:60]}\nway out: truth = {{'answer': '...'}}")
        problem = _problem(messages)
        split: Any = data.get("split") or split_of(problem)
        if split not in ("train", "heldout"):
            raise UsageError(f"{row.where}: split = {split!r}: must be 'train' or 'heldout'")
        name = str(data.get("id") or hashlib.blake2b(problem.encode(), digest_size=8).hexdigest())
        level = data.get("level", 1)
        if isinstance(level, bool) or not isinstance(level, int | float):
            raise UsageError(f"{row.where}: level = {level!r} is not a number")
        found.append((Task(name, str(data.get("family") or form.family), messages, (), truth, float(level)), split, problem))
    held = sum(split == "heldout" for _, split, _ in found)
    ctx.say(f"{len(found):,} tasks, {held:,} of them held out")
    return Tasks.write(ctx.out, found)


def _problem(messages: Sequence[Mapping[str, Any]]) -> str:
    """What is asked, as the text whose hash decides the split: all messages before the last answer."""
    asked = messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages
    return canonical_json([m["content"] for m in asked]).decode()


def _chats(form: ImportChats, rows: list[Row], ctx: Context) -> Artifact:
    from upslope.chat.artifacts import Chat, Chats
    from upslope.chat.messages import messages_of
    from upslope.tasks.families import split_of

    chats = []
    usable = _usable(form, rows, ctx, "messages", "prompt/completion")
    for i, row in enumerate(usable):
        messages = row.data["messages"]
        if form.split == "train" and (row.data.get("split") or split_of(_problem(messages))) != "train":
            continue
        name, meta = str(row.data.get("id") or f"{form.name}-{i}"), {"source": form.name, "truth": row.data.get("truth")}
        chats.append(Chat(name, messages_of(messages), meta))
    if not chats:
        raise UsageError(f"all {len(usable)} conversations are held out: none is left to learn from")
    left = f"; {len(usable) - len(chats):,} held out" if len(chats) < len(usable) else ""
    ctx.say(f"{len(chats):,} conversations{left}")
    return Chats.write(ctx.out, chats)


def _pairs(form: ImportPairs, rows: list[Row], ctx: Context) -> Artifact:
    from upslope.chat.artifacts import Pair, Pairs
    from upslope.chat.messages import messages_of
    from upslope.tasks.families import split_of

    pairs = []
    for i, row in enumerate(_usable(form, rows, ctx, "preference")):
        data = row.data
        chosen, rejected = messages_of(data["chosen"]), messages_of(data["rejected"])
        if len(chosen) != 1 or len(rejected) != 1:
            raise UsageError(
                f"{row.where}: the answers have {len(chosen)} and {len(rejected)} messages behind what they share; one each is read"
            )
        split: Any = data.get("split") or split_of(_problem(data["prompt"]))
        name = str(data.get("id") or f"{form.name}-{i}")
        pairs.append(Pair(name, messages_of(data["prompt"]), chosen[0], rejected[0], form.name, split))
    held = sum(p.split == "heldout" for p in pairs)
    ctx.say(f"{len(pairs):,} pairs, {held:,} of them held out")
    return Pairs.write(ctx.out, pairs)


def _evidence(form: ImportEvidence, rows: list[Row], ctx: Context) -> Artifact:
    from upslope.evals.artifacts import Condition, Table
    from upslope.evals.artifacts import Row as Measured
    from upslope.evals.subject import Subject

    found = []
    for row in rows:
        suite, item, metric = (row.need(key, str) for key in ("suite", "item", "metric"))
        value = row.data.get("value")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"{row.where}: value = {value!r} is not a number")
        extra = {key: int(row.data.get(key) or 0) for key in ("bytes", "step")}
        found.append(Measured(suite, item, metric, float(value), run=str(row.data.get("run") or ""), **extra))
    path = form.source.path()
    origin = digest_path(path)
    card = Condition(Subject(weights=form.weights, engine="outside"), {"imported": True, "source": origin})
    ctx.say(f"{len(found):,} measurements of {len({r.suite for r in found})} suites, from outside")
    return Table.write(ctx.out, found, dict.fromkeys(sorted({r.suite for r in found}), card))
