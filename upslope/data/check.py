"""What a data file or folder holds: its shape, how its fields map onto ours, three rows, the bad rows by line, and what it is good for.

Shapes of training rows are those of `data.shapes`; archives and pages are read as ingest reads them; token files (Megatron, datatrove)
are measured.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from upslope.config import UsageError
from upslope.data.protocol import Reject
from upslope.data.readers import TOKENS, ReadFile, lost, sniff
from upslope.data.readers.fields import PAGE, parse_map
from upslope.data.readers.records import items
from upslope.data.shapes import CARRIED, KEYS, WANTED, Form, recognise, suggest
from upslope.data.tokenfiles import measure
from upslope.data.turns import DROP, Wrong

SHOWN_BAD = 20
PAGES = ("warc", "html", "text")


class Bad(NamedTuple):
    """A row that cannot be used. where: line or row number, from 1 (FILE:LINE in a folder), or a URL.

    found: the keys that the row has; wanted: the key that it should have, and of what kind; fix: the flag that mends it.
    """

    where: str
    why: str
    found: tuple[str, ...] = ()
    wanted: str = ""
    fix: str = ""

    def __str__(self) -> str:
        found = f"; found {', '.join(map(repr, self.found[:6]))}" if self.found else ""
        return (
            f"{self.where}: {self.why}{found}" + (f"; wanted {self.wanted}" if self.wanted else "") + (f"; {self.fix}" if self.fix else "")
        )


class Use(NamedTuple):
    """What a file is good for (pretraining, sft, preference, rl prompts), and the command that does it; "" where nothing here does."""

    what: str
    command: str


@dataclass(frozen=True)
class Shape:
    """What `check` found.

    known_as: what the shape is called elsewhere. mapping: our field → theirs. rows: read, good and bad. examples: three good rows as we
    would see them. bad: the first of them; bad_rows: how many there are. notes: rows that were altered to be read (the first).
    layout: of a folder. files: how many were read; skipped: files beside the data. uses: what can be done with it.
    """

    path: Path
    shape: str
    format: str
    mapping: Mapping[str, str]
    rows: int
    examples: tuple[str, ...]
    bad: tuple[Bad, ...] = ()
    bad_rows: int = 0
    known_as: str = ""
    notes: tuple[Bad, ...] = ()
    layout: str = ""
    files: int = 1
    skipped: tuple[str, ...] = ()
    uses: tuple[Use, ...] = ()

    def render(self) -> str:
        """A few lines for the terminal."""
        known = f", {self.known_as}" if self.known_as else ""
        inside = f" in {self.files:,} files" + (f" of a {self.layout}" if self.layout else "") if self.files > 1 or self.layout else ""
        what = f"{self.path.name}: {self.shape} ({self.format}{known}), {self.rows:,} rows{inside}"
        if self.bad_rows:
            unit, which = "lines" if self.format == "jsonl" else "rows", ", ".join(b.where for b in self.bad[:6])
            what += f", {self.bad_rows:,} bad ({unit} {which}{' …' if self.bad_rows > 6 else ''})"
        lines = [what, "mapping: " + ", ".join(f"{ours} ← {theirs}" for ours, theirs in self.mapping.items())]
        lines += [f"  {i}. {e}" for i, e in enumerate(self.examples, 1)]
        lines += [f"  bad {b}" for b in self.bad[:6]]
        lines += [f"  altered {b}" for b in self.notes[:3]]
        if self.skipped:
            lines.append(f"not data: {', '.join(self.skipped[:6])}{' …' if len(self.skipped) > 6 else ''}")
        lines += [f"{use.what}: {use.command}" if use.command else use.what for use in self.uses]
        return "\n".join(lines)

    def json(self) -> dict[str, Any]:
        """The same as plain values; keys are only ever added."""
        out = {name: getattr(self, name) for name in ("shape", "known_as", "format", "layout", "files", "rows", "bad_rows")}
        listed = {name: list(getattr(self, name)) for name in ("examples", "skipped")}
        rows = {name: [row._asdict() | {"found": list(row.found)} for row in getattr(self, name)] for name in ("bad", "notes")}
        return {"path": self.path.name, **out, "mapping": dict(self.mapping), **listed, **rows, "uses": [u._asdict() for u in self.uses]}


def mapping(flags: Sequence[str]) -> Mapping[str, str]:
    """`--map OURS=THEIRS` flags as the `names` of `check` and `rows`; UsageError for a field of ours that there is not."""
    return parse_map(flags, KEYS)


def rows(path: Path | str, names: Mapping[str, str] | None = None) -> Iterator[tuple[str, dict[str, Any] | Bad]]:
    """(where, canonical row of `data.shapes` or why it is none) of a file or folder, all held to the shape of the first that has one.

    names: our field → theirs. where: FILE:LINE or FILE#ROW. UsageError if the file cannot be opened or is of another format.
    """
    for found in _walk(_data(Path(path))[0], names or {}):
        yield found.where, found.value


def canonical(row: Mapping[str, Any], names: Mapping[str, str] | None = None) -> tuple[str, dict[str, Any]]:
    """(shape, canonical form) of one row, whatever the shape of others; Wrong if it has none or is not whole."""
    form = recognise(row, names or {})
    if form is None:
        keys = tuple(map(str, row))
        raise Wrong(f"no known fields among {_keys(dict.fromkeys(keys, 1))}", WANTED, keys, suggest(row))
    return form.shape, form.read(row)


def check(path: Path | str, names: Mapping[str, str] | None = None) -> Shape:
    """Reads a file or folder and says what it is. names: our field → theirs (`mapping` makes it from flags).

    UsageError if it is missing, empty, of no known format or of no known shape.
    """
    path, names = Path(path), names or {}
    if path.suffix in TOKENS and path.is_file() and (tokens := measure(path)):
        form, count, shown, said, known = tokens
        return Shape(path, "tokens", form, {"ids": said}, count, shown, known_as=known, uses=uses(path, "tokens", {}, {}))
    files, layout, skipped = _data(path)
    form, files, skipped = _known(files, skipped)
    if form in PAGES:
        return _pages(path, form, files, layout, skipped, names)
    seen = _Seen()
    for item in _walk(files, names):
        seen.add(item, single=not path.is_dir())
    if seen.form is None:
        first = seen.bad[0] if seen.bad else None
        if first is None or not seen.keys:
            what = f"first bad row, {first.where}: {first.why}" if first else "it holds no rows"
            raise UsageError(f"{path.name}: no known shape; {what}\nwanted: {WANTED}\nway out: one JSON object a line, with one of these")
        raise UsageError(
            f"{path.name}, {'line' if form == 'jsonl' else 'row'} {first.where}: no known shape; its fields are {_keys(seen.keys)}\n"
            f"wanted: {WANTED}\nway out: {first.fix or '--map OURS=THEIRS, for example --map text=FIELD'}"
        )
    return Shape(
        path,
        seen.form.shape,
        form,
        seen.form.mapping,
        seen.count,
        tuple(seen.examples),
        tuple(seen.bad[:SHOWN_BAD]),
        seen.bad_rows,
        seen.form.known_as,
        tuple(seen.notes),
        layout,
        len(files),
        tuple(skipped),
        uses(path, seen.form.shape, seen.form.mapping, names, bool(seen.bad_rows)) if seen.examples else (),
    )


def uses(path: Path, shape: str, mapping: Mapping[str, str], names: Mapping[str, str], bad: bool = False) -> tuple[Use, ...]:
    """What can be done with a shape, as command lines."""
    file = shlex.quote(str(path))
    flags = "".join(f" --map {shlex.quote(f'{ours}={theirs}')}" for ours, theirs in names.items()) + f" {DROP}" * bad
    inline = ", ".join(f'"{ours}" = "{theirs}"' for ours, theirs in names.items())
    sets = f" --set '*.form.map={{{inline}}}'" * bool(names) + " --set '*.form.drop_bad=true'" * bad
    chats = Use("sft", f"upslope import {file} --as chats --what chats{flags}")
    tune = Use("sft, then rl", f"upslope run finetune --model MODEL --data {file}{sets}")
    match shape:
        case "messages" | "prompt/completion":
            return (tune, chats)
        case "preference":
            return (Use("preference", f"upslope import {file} --as pairs --what pairs{flags}"),)
        case "prompts" if {"truth", "answer"} & set(mapping):
            return (Use("rl prompts", f"upslope import {file} --as tasks --what tasks{flags}"),)
        case "prompts":
            return (Use("rl prompts: each needs an answer to be graded by (a field 'answer')", ""),)
        case "text":
            ours = "".join(f" --map text={names['text']}" for _ in range("text" in names))
            return (
                Use("pretrain", f"upslope data run {file}{ours}"),
                Use("pretrain, as it is", f"upslope import {file} --as texts --what corpus{ours}"),
            )
        case "html" | "pages":
            return (Use("pretrain", f"upslope data run {file}" + "".join(f" --map {shlex.quote(f'{o}={t}')}" for o, t in names.items())),)
        case "tokens":
            return (Use("pretrain: token ids belong to one tokenizer; bring the texts to train on them here", ""),)
    return (Use(f"{shape}: no stage trains on it", ""),)


# ── records ───────────────────────────────────────────────────────────────────────────────────────────────────────


class _Item(NamedTuple):
    where: str
    value: dict[str, Any] | Bad
    form: Form | None = None
    notes: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()


@dataclass
class _Seen:
    count: int = 0
    bad_rows: int = 0
    form: Form | None = None
    bad: list[Bad] = field(default_factory=list)
    notes: list[Bad] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)
    keys: dict[str, int] = field(default_factory=dict)

    def add(self, item: _Item, single: bool) -> None:
        self.count += 1
        self.form = item.form or self.form
        where = item.where.replace("#", ":").rpartition(":")[2] if single else item.where
        for key in item.keys:
            self.keys[key] = self.keys.get(key, 0) + 1
        if item.notes and len(self.notes) < SHOWN_BAD:
            self.notes.append(Bad(where, "; ".join(item.notes)))
        if isinstance(item.value, Bad):
            self.bad_rows += 1
            if len(self.bad) < SHOWN_BAD:
                self.bad.append(item.value._replace(where=where))
        elif len(self.examples) < 3:
            self.examples.append(_short(show(item.value)))


def _walk(files: list[tuple[str, Path]], names: Mapping[str, str]) -> Iterator[_Item]:
    """Every row of the files; the first that has a shape says which one all must have."""
    form: Form | None = None
    for name, file in files:
        try:
            kind = sniff(file) if file.stat().st_size else "jsonl"
            if kind in PAGES:
                raise UsageError(f"{kind}, among rows")
        except UsageError as e:
            yield _Item(name, Bad(name, str(e)))
            continue
        for item in items(file, kind, name):
            if item.lost:
                yield _Item(item.where, Bad(item.where, "; ".join(item.notes), fix=DROP), form)
                continue
            row = item.value
            if not isinstance(row, dict):
                yield _Item(item.where, Bad(item.where, f"a {type(row).__name__}, not an object with fields", fix=DROP), form)
                continue
            form = form or recognise(row, names)
            keys = tuple(map(str, row))
            try:
                yield _Item(item.where, form.read(row) if form else canonical(row, names)[1], form, item.notes, keys)
            except Wrong as e:
                yield _Item(item.where, Bad(item.where, e.why, e.found, e.wanted, e.fix), form, item.notes, keys)


def _keys(counts: Mapping[str, int]) -> str:
    return ", ".join(repr(k) for k in sorted(counts, key=lambda k: (-counts[k], k))[:8]) or "none"


def _data(path: Path) -> tuple[list[tuple[str, Path]], str, list[str]]:
    """(files of data, layout of the folder, what is skipped)."""
    from upslope.data.ingesting import files_of, layout

    if not path.exists():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else [], n=2)
        raise UsageError(f"no such file: {path.name!r}" + (f"\ndid you mean {' or '.join(near)}?" if near else ""))
    files, skipped = files_of(path)
    files = [(n, f) for n, f in files if f.is_file()]
    if not files or (len(files) == 1 and files[0][1].stat().st_size == 0):
        raise UsageError(f"{path.name} is empty" if files or path.is_dir() else f"{path.name} is not a file")
    known = layout([n for n, _ in files] + skipped)[0] if path.is_dir() else ""
    return files, known, skipped


def _known(files: list[tuple[str, Path]], skipped: list[str]) -> tuple[str, list[tuple[str, Path]], list[str]]:
    """(format of the first file that has one, the files from there on, what is skipped); UsageError if none has."""
    first: UsageError | None = None
    for i, (_, file) in enumerate(files):
        try:
            return sniff(file), files[i:], [*skipped, *(name for name, _ in files[:i])]
        except UsageError as e:
            first = first or e
    assert first is not None
    raise first


def show(row: Mapping[str, Any]) -> str:
    """A canonical row as one line."""
    if "ids" in row:
        return f"{len(row['ids'])} ids: {row['ids'][:12]}"
    if "segments" in row:
        return " ".join(("+" if s["label"] else "−") + repr(s["text"]) for s in row["segments"])
    if "chosen" in row:
        return f"{_flat(row['prompt'])} → + {_flat(row['chosen'])}  − {_flat(row['rejected'])}"
    if "completions" in row:
        return f"{_flat(row['prompt'])} → " + " ".join(("+ " if ok else "− ") + text for text, ok in zip(row["completions"], row["labels"]))
    if "completion" in row:
        mark = "" if "label" not in row else "+ " if row["label"] else "− "
        return f"{_flat(row['prompt'])} → {mark}{_flat(row['completion'])}"
    if "messages" in row:
        return " · ".join(f"{m['role']}: {_said(m)}" for m in row["messages"])
    if "prompt" in row:
        answers = [str(row[k]) for k in ("truth", "answer") if k in row]
        return " → ".join([_flat(row["prompt"]), *answers[:1]])
    return str(next(v for k, v in row.items() if k not in CARRIED))


def _said(message: Mapping[str, Any]) -> str:
    return message["content"] or " ".join(f"{c['function']['name']}({c['function']['arguments']})" for c in message.get("tool_calls", ()))


def _flat(messages: list[dict[str, Any]]) -> str:
    return " · ".join(map(_said, messages))


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 140 else text[:139] + "…"


# ── pages ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _pages(path: Path, form: str, files: list[tuple[str, Path]], layout: str, skipped: list[str], names: Mapping[str, str]) -> Shape:
    """Archives and pages: through the reader that ingest uses."""
    from upslope.config import FrozenDict

    good = count = bad_rows = 0
    bad: list[Bad] = []
    notes: list[Bad] = []
    examples: list[str] = []
    read = ReadFile(map=FrozenDict({k: v for k, v in names.items() if k in PAGE}))
    for row in (row for name, file in files for row in read(file, name)):
        if isinstance(row, Reject):
            gone = lost(row.why)
            count, bad_rows = count + gone, bad_rows + gone
            kept = bad if gone else notes
            if len(kept) < SHOWN_BAD:
                kept.append(Bad(row.record, row.why))
            continue
        count, good = count + 1, good + 1
        if len(examples) < 3:
            examples.append(_short(f"{row['url']}  {row['mime']}  {len(row['html']):,} bytes"))  # type: ignore[arg-type]
    if not good:
        raise UsageError(f"{path.name}: {form}, but no page in it can be read" + (f"\n{bad[0].where}: {bad[0].why}" if bad else ""))
    mapping = {"html": "the body of each record"}
    use = uses(path, "pages", mapping, names)
    return Shape(
        path,
        "pages",
        form,
        mapping,
        count,
        tuple(examples),
        tuple(bad),
        bad_rows,
        "",
        tuple(notes),
        layout,
        len(files),
        tuple(skipped),
        use,
    )
