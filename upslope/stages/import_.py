"""import: outside checkpoints, corpora, tasks, chats and evidence → artifacts of ours."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from upslope.config import Config, Json, Source, UsageError, canonical_json
from upslope.machine.context import Context
from upslope.machine.files import digest_path
from upslope.machine.stage import Artifact, Stage


class ImportCheckpoint(Config):
    """A Hugging Face folder of a mapped family, with its tokenizer and chat template → Checkpoint."""

    kind: Literal["checkpoint"] = "checkpoint"
    source: Source


class ImportCorpus(Config):
    """JSON lines or parquet with a column of text → Corpus. name: the corpus's source name; licence: as declared by you."""

    kind: Literal["corpus"] = "corpus"
    source: Source
    name: str = "import"
    text: str = "text"
    licence: str = ""


class ImportTasks(Config):
    """JSON lines with a prompt and its truth → Tasks.

    A row has `prompt` (text) or `messages`, and `answer` (text) or `truth` (JSON with "answer"); where messages end with an answer,
    that is the truth. Optionally id, family, level, and split ("train" / "heldout"). family: of rows that name none. Rows without a
    split are split by a hash of their prompt.
    """

    kind: Literal["tasks"] = "tasks"
    source: Source
    family: str = "import"


class ImportChats(Config):
    """JSON lines with `messages` (and optionally id, truth) → Chats.

    name: their source name. split: `train` leaves out the conversations that a `tasks` import of the same file holds out.
    """

    kind: Literal["chats"] = "chats"
    source: Source
    name: str = "import"
    split: Literal["all", "train"] = "all"


class ImportEvidence(Config):
    """JSON lines or parquet rows of suite, item, metric, value (and optionally bytes, step, run) → Table.

    weights: digest of the weights that were measured, as `evals.subject.Subject` computes it: evidence speaks of one object.
    """

    kind: Literal["evidence"] = "evidence"
    source: Source
    weights: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


Form = Annotated[ImportCheckpoint | ImportCorpus | ImportTasks | ImportChats | ImportEvidence, Field(discriminator="kind")]


class Import(Stage):
    """Brings outside data in, once, checked; its identity is the content of the source."""

    kind: ClassVar[str] = "import"
    makes: ClassVar[str] = "Artifact"
    code: ClassVar[tuple[str, ...]] = ("upslope.model", "upslope.data", "upslope.chat", "upslope.tasks")

    form: Form

    def produces(self) -> str:
        """Decided by the form."""
        return {"checkpoint": "Checkpoint", "corpus": "Corpus", "tasks": "Tasks", "chats": "Chats", "evidence": "Table"}[self.form.kind]

    def run(self, ctx: Context) -> Artifact:
        """UsageError, with file and line, for what cannot be read; nothing is skipped."""
        form = self.form
        if isinstance(form, ImportCheckpoint):
            return _checkpoint(form, ctx)
        rows = read_rows(form.source.path())
        ctx.fact(rows=len(rows))
        if isinstance(form, ImportCorpus):
            return _corpus(form, rows, ctx)
        if isinstance(form, ImportTasks):
            return _tasks(form, rows, ctx)
        return _chats(form, rows, ctx) if isinstance(form, ImportChats) else _evidence(form, rows, ctx)


class Row(NamedTuple):
    """A record and where it stands, for messages."""

    where: str
    data: dict[str, Any]

    def need(self, key: str, kind: type) -> Any:
        """The value of a column, which must be of a type."""
        value = self.data.get(key)
        if not isinstance(value, kind):
            has = ", ".join(self.data) or "nothing"
            raise UsageError(f"{self.where}: {key} = {str(value)[:60]!r} is not a {kind.__name__}\nthe row has: {has}")
        return value


def read_rows(path: Path) -> list[Row]:
    """The records of a JSON lines or parquet file, or of all such files in a folder, in order of name."""
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.suffix in (".jsonl", ".parquet"))
    rows = [row for file in files for row in _rows(file)]
    if not rows:
        raise UsageError(f"{path.name!r} holds no records\nway out: give a .jsonl or .parquet file, or a folder of them")
    return rows


def _rows(file: Path) -> Iterator[Row]:
    if file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(file)
        except (pa.ArrowException, OSError) as e:
            raise UsageError(f"{file.name} is not readable parquet: {str(e).splitlines()[0]}") from None
        for i, data in enumerate(table.to_pylist()):
            yield Row(f"{file.name} row {i}", data)
        return
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                data = json.loads(line)
            except ValueError as e:
                raise UsageError(f"{file.name} line {number}: not JSON ({e})") from None
            if not isinstance(data, dict):
                raise UsageError(f"{file.name} line {number}: a {type(data).__name__}, not an object")
            yield Row(f"{file.name} line {number}", data)


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


def _messages(row: Row) -> tuple[dict[str, Any], ...]:
    """The row's messages as the chat format holds them, checked by it."""
    from upslope.chat.messages import Message

    try:
        return tuple(Message.from_json(m).to_json() for m in row.need("messages", list))
    except (LookupError, TypeError, AttributeError) as e:
        raise UsageError(f"{row.where}: a message needs role and content ({type(e).__name__}: {e})") from None
    except UsageError as e:
        raise UsageError(f"{row.where}: {e}") from None


def _tasks(form: ImportTasks, rows: list[Row], ctx: Context) -> Artifact:
    from upslope.tasks.artifacts import Split, Tasks
    from upslope.tasks.families import split_of
    from upslope.tasks.task import Task

    found: list[tuple[Task, Split, str]] = []
    for row in rows:
        data = row.data
        messages = _messages(row) if "messages" in data else ({"role": "user", "content": row.need("prompt", str)},)
        answer: Json = data.get("answer")
        if messages and messages[-1]["role"] == "assistant":  # a conversation: its last answer is the truth, what comes before is asked
            answer, messages = (messages[-1]["content"] if answer is None else answer), messages[:-1]
        if not messages:
            raise UsageError(f"{row.where}: there is no prompt: messages hold only an answer")
        truth: Json = (
            data["truth"] if data.get("truth") is not None else {"answer": answer if isinstance(answer, str) else row.need("answer", str)}
        )
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
    for i, row in enumerate(rows):
        if form.split == "train" and (row.data.get("split") or split_of(_problem(_messages(row)))) != "train":
            continue
        name, meta = str(row.data.get("id") or f"{form.name}-{i}"), {"source": form.name, "truth": row.data.get("truth")}
        chats.append(Chat(name, messages_of(_messages(row)), meta))
    if not chats:
        raise UsageError(f"all {len(rows)} conversations are held out: none is left to learn from")
    left = f"; {len(rows) - len(chats):,} held out" if len(chats) < len(rows) else ""
    ctx.say(f"{len(chats):,} conversations{left}")
    return Chats.write(ctx.out, chats)


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
