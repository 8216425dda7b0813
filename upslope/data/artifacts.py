"""What the data stages make: `Pages` (raw records) and `Corpus` (a view over text, columns about it, and decisions)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset

from upslope.config import Json, UsageError
from upslope.data import shards
from upslope.machine.files import absolute, atomic, digest_file, read_json, relative, write_json
from upslope.machine.stage import Artifact

if TYPE_CHECKING:
    from upslope.data.fate import Fate

SHARD_ROWS = 1024


class File(NamedTuple):
    """A parquet file: where it is, how many rows it has, and the digest of its bytes."""

    path: Path
    rows: int
    digest: str


def doc_id(shard: int, row: int) -> int:
    """The number of a document in a view: shard << 32 | row."""
    return shard << 32 | row


class Pages(Artifact):
    """Raw records as they came, in parquet shards (`shards.PAGE`), with a ledger of what could not be read.

    pages.json: shards [{file, rows, digest}], records read, rejects by reason. rejects.parquet: (file, record, why).
    """

    @cached_property
    def _body(self) -> dict[str, Any]:
        file = self.path / "pages.json"
        if not file.is_file():
            raise UsageError(f"{self.path.name!r} holds no pages: it has no pages.json\nway out: make it with a stage of kind 'ingest'")
        body: dict[str, Any] = read_json(file)
        return body

    @classmethod
    def write(cls, folder: Path, files: Sequence[Path], rejects: pa.Table, records: int) -> Pages:
        """Describes page shards that already lie below `folder`. rejects: `shards.REJECT`; records: read, good or bad."""
        listed = [{"file": relative(f, folder), "rows": shards.read(f, ["url"]).num_rows, "digest": digest_file(f)} for f in files]
        reasons: dict[str, int] = {}
        for why in rejects["why"].to_pylist():
            reasons[reason(why)] = reasons.get(reason(why), 0) + 1
        shards.write(folder / "rejects.parquet", rejects)
        write_json(folder / "pages.json", {"shards": listed, "records": records, "rejects": reasons})
        return cls(folder)

    def files(self) -> list[File]:
        """The page shards, in order; shard number = position."""
        return [File(self.path / s["file"], s["rows"], s["digest"]) for s in self._body["shards"]]

    def __len__(self) -> int:
        return sum(s["rows"] for s in self._body["shards"])

    @property
    def records(self) -> int:
        """Records seen in the sources, readable or not."""
        return int(self._body["records"])

    def reasons(self) -> dict[str, int]:
        """Rejected (or only partly kept) records by reason."""
        return dict(self._body["rejects"])

    def rejects(self) -> pa.Table:
        """The reject ledger: file, record, why."""
        return shards.read(self.path / "rejects.parquet")

    def licences(self) -> tuple[str, ...]:
        """The licences of the pages, sorted; "unknown" where a page names none."""
        return _licences(self.batches(("licence",)))

    def page(self, doc: int, columns: Sequence[str]) -> dict[str, Any]:
        """Columns of one page, by the number that its document has."""
        table = shards.read(self.files()[doc >> 32].path, columns)
        row: dict[str, Any] = table.slice(doc & 0xFFFFFFFF, 1).to_pylist()[0]
        return row

    def batches(self, columns: Sequence[str] = ("doc", "url", "html")) -> Iterator[pa.RecordBatch]:
        """Pages in document order."""
        for number, file in enumerate(self.files()):
            yield from _batches(shards.read(file.path, [c for c in columns if c != "doc"] or ["url"]), number, columns, None)


def reason(why: str) -> str:
    """The class of a reject: the message up to the first colon."""
    return why.partition(":")[0]


class Corpus(Artifact):
    """A view: text shards, columns about them, edges between copies, and decisions, all by reference; it copies nothing.

    corpus.json holds relative paths only, from its own folder into this or other artifacts' folders (`refs`). Documents are
    numbered by the view: shard << 32 | row. A sidecar is row-aligned with its text shard and carries the shard's digest;
    one that belongs to other bytes is an error, never a silent misalignment.
    """

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def body(self) -> dict[str, Any]:
        """What corpus.json says."""
        file = self.path / "corpus.json"
        if not file.is_file():
            raise UsageError(
                f"{self.path.name!r} holds no corpus: it has no corpus.json\nway out: Corpus.from_texts, or the stages ingest and extract"
            )
        body: dict[str, Any] = read_json(file)
        return body

    def refs(self) -> tuple[Path, ...]:
        """The folders of the artifacts that this view points at."""
        return tuple(absolute(self.path, r) for r in self.body["refs"])

    @cached_property
    def _files(self) -> list[File]:
        return [File(absolute(self.path, s["file"]), s["rows"], s["digest"]) for s in self.body["text"]]

    def files(self) -> list[File]:
        """The text shards, in order; shard number = position."""
        return self._files

    @property
    def rows(self) -> int:
        """Documents in the view, kept or not."""
        return sum(s["rows"] for s in self.body["text"])

    def __len__(self) -> int:
        return int(self.kept().sum()) if self.body["keep"] else self.rows

    @cached_property
    def _kept(self) -> np.ndarray:
        if not self.body["keep"]:
            return np.ones(self.rows, dtype=bool)
        bits = np.load(absolute(self.path, self.body["keep"]))
        return np.unpackbits(bits, count=self.rows).astype(bool)

    def kept(self) -> np.ndarray:
        """Which documents live, (rows,) bool, in document order."""
        return self._kept

    def docs(self) -> np.ndarray:
        """The numbers of all documents, kept or not, (rows,) uint64, ascending."""
        parts = [np.arange(f.rows, dtype=np.uint64) | np.uint64(doc_id(i, 0)) for i, f in enumerate(self.files())]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)

    def fields(self) -> dict[str, dict[str, str]]:
        """The columns that steps added: name → {field: type}."""
        return {c["name"]: dict(c["fields"]) for c in self.body["columns"]}

    def shard(self, number: int, columns: Sequence[str]) -> pa.Table:
        """One text shard with columns of the text (`url`), of sidecars (`gopher.words`, or `gopher` for a struct), and `doc`."""
        file = self.files()[number]
        own = [c for c in columns if c in shards.TEXT.names]
        table = shards.read(file.path, own or ["bytes"])
        out: dict[str, Any] = {c: table[c] for c in own}
        loaded: dict[str, pa.Table] = {}
        for c in columns:
            if c == "doc":
                out[c] = pa.array(np.arange(file.rows, dtype=np.uint64) | np.uint64(doc_id(number, 0)))
            elif c not in own:
                name, _, field = c.partition(".")
                side = loaded.setdefault(name, self._sidecar(name, number, file))
                if field and field not in side.column_names:
                    raise UsageError(f"column {c!r}: {name} has no field {field!r}; it has {', '.join(side.column_names)}")
                out[c] = (
                    side[field]
                    if field
                    else pa.StructArray.from_arrays([side[n].combine_chunks() for n in side.column_names], names=side.column_names)
                )
        return pa.table({c: out[c] for c in columns})

    def _column(self, name: str) -> dict[str, Any]:
        for entry in self.body["columns"]:
            if entry["name"] == name:
                return dict(entry)
        known = [*shards.TEXT.names, *(f"{n}.{f}" for n, fs in self.fields().items() for f in fs)]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has: {', '.join(known)}"
        raise UsageError(f"this corpus has no column {name!r}; {hint}")

    def _sidecar(self, name: str, number: int, file: File) -> pa.Table:
        path = absolute(self.path, self._column(name)["files"][number])
        _belongs(name, number, path, file)
        return shards.read(path)

    def table(self, columns: Sequence[str], every: bool = False, coded: Sequence[str] = ()) -> pa.Table:
        """Columns of all kept rows (with every=True, of all rows) at once, in document order, read in parallel; dotted names stay flat.

        coded: string columns of few different values, which come as dictionaries.
        """
        table = self._table(columns, coded, range(len(self.files())))
        return table if every or not self.body["keep"] else table.filter(pa.array(self.kept()))

    def slices(self, columns: Sequence[str], rows: int, coded: Sequence[str] = ()) -> Iterator[pa.Table]:
        """`table` of kept rows, in slices of whole shards that hold at least `rows` rows (the last one may hold fewer)."""
        groups: list[list[int]] = [[]]
        size = 0
        for number, file in enumerate(self.files()):
            groups[-1].append(number)
            size += file.rows
            if size >= rows:
                groups.append([])
                size = 0
        at = 0
        with ThreadPoolExecutor(1) as ahead:  # the next slice is read while this one is looked at
            coming = [ahead.submit(self._table, columns, coded, g) for g in groups[:1] if g]
            for i in range(len(groups)):
                if not groups[i]:
                    break
                table = coming.pop().result()
                if i + 1 < len(groups) and groups[i + 1]:
                    coming.append(ahead.submit(self._table, columns, coded, groups[i + 1]))
                alive = self.kept()[at : at + table.num_rows] if self.body["keep"] else None
                at += table.num_rows
                yield table if alive is None else table.filter(pa.array(alive))

    def _table(self, columns: Sequence[str], coded: Sequence[str], numbers: Sequence[int]) -> pa.Table:
        """Columns of whole shards."""
        out: dict[str, pa.ChunkedArray] = {}
        files = [self.files()[n] for n in numbers]
        own = [c for c in columns if c in shards.TEXT.names]
        homes: dict[str, list[str]] = {}
        for c in columns:
            if c not in own:
                homes.setdefault(c.partition(".")[0], []).append(c)
        if own:
            found = _scan([f.path for f in files], own, shards.TEXT, coded)
            out.update({c: found[c] for c in own})
        for name, dotted in homes.items():
            entry = self._column(name)
            paths = [absolute(self.path, entry["files"][n]) for n in numbers]
            for number, path, file in zip(numbers, paths, files):
                _belongs(name, number, path, file)
            schema = pa.schema([(f, pa.type_for_alias(t)) for f, t in entry["fields"].items()])
            found = _scan(paths, [c.partition(".")[2] for c in dotted], schema, [c.partition(".")[2] for c in coded if c in dotted])
            out.update({c: found[c.partition(".")[2]] for c in dotted})
        return pa.table({c: out[c] for c in columns})

    def take(self, docs: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Columns of some documents (n,) uint64, kept or not, in the order asked; dotted names stay flat. Reads only their shards."""
        parts, where = [], []
        high = docs >> np.uint64(32)
        for number in np.unique(high).tolist():
            mine = np.flatnonzero(high == np.uint64(number))
            rows = (docs[mine] & np.uint64(0xFFFFFFFF)).astype(np.int64)
            parts.append(self.shard(int(number), columns).take(pa.array(rows)))
            where.append(mine)
        if not parts:
            return self.table(columns, every=True).slice(0, 0) if self.rows else pa.table({c: pa.array([], pa.int32()) for c in columns})
        back = np.argsort(np.concatenate(where), kind="stable")
        return pa.concat_tables(parts).take(pa.array(back))

    def batches(self, columns: Sequence[str] = ("doc", "text", "source"), every: bool = False) -> Iterator[pa.RecordBatch]:
        """Kept rows (with every=True, all rows) in document order; columns as for `shard`."""
        at = 0
        for number, file in enumerate(self.files()):
            mask = None if every else self.kept()[at : at + file.rows]
            at += file.rows
            if mask is None or mask.any():
                yield from _batches(self.shard(number, columns), number, columns, mask)

    def texts(self, source: str | None = None) -> Iterator[str]:
        """Kept texts in document order, of one source if named."""
        for batch in self.batches(("text", "source")):
            for text, of in zip(batch["text"].to_pylist(), batch["source"].to_pylist()):
                if source is None or of == source:
                    yield text

    def lookup(self, docs: np.ndarray) -> dict[int, str]:
        """The texts of documents (n,) uint64, kept or not, by number; reads only the shards that they are in."""
        return dict(zip(docs.tolist(), self.take(docs, ("text",))["text"].to_pylist()))

    def sources(self) -> tuple[str, ...]:
        """The sources that kept documents come from, sorted."""
        found: set[str] = set()
        for batch in self.batches(("source",)):
            found.update(batch["source"].unique().to_pylist())
        return tuple(sorted(found))

    def licences(self) -> tuple[str, ...]:
        """The licences of kept documents, sorted; "unknown" where a document names none."""
        return _licences(self.batches(("licence",)))

    def contamination(self) -> dict[str, Any]:
        """What overlap columns said at curations: column → benchmark → `contamination.verdict`; of the parts, if gathered."""
        found: dict[str, Any] = dict(self.body.get("contamination", {}))
        for part in self.body.get("parts", []):
            inner = Corpus(absolute(self.path, part["corpus"])).contamination()
            found.update({f"{Path(part['corpus']).parent.name}/{column}": verdict for column, verdict in inner.items()})
        return found

    def edges(self) -> pa.Table:
        """Edges between copies: a < b, similarity, kind (`shards.EDGE`)."""
        tables = [shards.read(absolute(self.path, e)) for e in self.body["edges"]]
        return pa.concat_tables(tables) if tables else shards.EDGE.empty_table()

    # ── decisions ─────────────────────────────────────────────────────────────────────────────────────────────────

    def funnel(self) -> list[dict[str, Any]]:
        """The life of the corpus, one dictionary a step, in order: pages (records, rejected), text, then each curation with its rules."""
        return list(self.body["funnel"])

    def why(self, what: str | int) -> list[Fate]:
        """What became of a page, by URL or document number: the rules that it failed, or kept. UsageError if unknown."""
        from upslope.data.fate import why

        return why(self, what)

    # ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────

    @classmethod
    def create(cls, folder: Path, text: Sequence[Path], funnel: Sequence[Mapping[str, Json]], pages: Pages | None = None) -> Corpus:
        """A corpus over text shards that lie below `folder`."""
        body = {
            "text": [{"file": relative(f, folder), "rows": shards.read(f, ["bytes"]).num_rows, "digest": digest_file(f)} for f in text],
            "columns": [],
            "edges": [],
            "keep": None,
            "decisions": [],
            "funnel": list(funnel),
            "pages": relative(pages.path, folder) if pages else None,
            "refs": [relative(pages.path, folder)] if pages else [],
        }
        write_json(folder / "corpus.json", body)
        return cls(folder)

    def derive(self, folder: Path) -> dict[str, Any]:
        """The body of a new view in `folder` that points at everything that this one points at; to be changed and written."""

        def move(path: str) -> str:
            return relative(absolute(self.path, path), folder)

        old = self.body
        return {
            "text": [{**s, "file": move(s["file"])} for s in old["text"]],
            "columns": [{**c, "files": [move(f) for f in c["files"]]} for c in old["columns"]],
            "edges": [move(e) for e in old["edges"]],
            "keep": move(old["keep"]) if old["keep"] else None,
            "decisions": [{**d, **{k: move(d[k]) for k in ("failed", "copies", "view")}} for d in old["decisions"]],
            "funnel": list(old["funnel"]),
            "pages": move(old["pages"]) if old["pages"] else None,
            "rewrites": [{**r, "before": move(r["before"])} for r in old.get("rewrites", [])],
            "parts": [{**p, "corpus": move(p["corpus"])} for p in old.get("parts", [])],
            "contamination": old.get("contamination", {}),
            "refs": [r for r in dict.fromkeys([relative(self.path, folder), *(move(r) for r in old["refs"])]) if r != "."],
        }

    @classmethod
    def with_columns(cls, view: Corpus, folder: Path, columns: Sequence[tuple[str, int, Mapping[str, str], Sequence[Path]]]) -> Corpus:
        """A view with more columns: (name, version, {field: type}, one parquet file a shard, below `folder`). A name replaces its elder."""
        body = view.derive(folder)
        for name, version, fields, files in columns:
            entry = {"name": name, "version": version, "fields": dict(fields), "files": [relative(f, folder) for f in files]}
            body["columns"] = [c for c in body["columns"] if c["name"] != name] + [entry]
        write_json(folder / "corpus.json", body)
        return cls(folder)

    @classmethod
    def gathered(cls, views: Sequence[Corpus], folder: Path) -> Corpus:
        """One view of several, one after the other, with the columns that all of them have (same version, same fields) and what each kept.

        Edges are left behind: copies across the parts must be looked for anew, and then those within them are found too.
        """
        text, parts, steps = [], [], []
        for view in views:
            body = view.derive(folder)
            text += body["text"]
            parts.append({"corpus": relative(view.path, folder), "shards": len(body["text"])})
            steps.append(len(view))
        columns = []
        for entry in views[0].body["columns"]:
            same = [next((c for c in v.derive(folder)["columns"] if c["name"] == entry["name"]), None) for v in views]
            if all(c is not None and (c["version"], c["fields"]) == (entry["version"], entry["fields"]) for c in same):
                columns.append({**entry, "files": [f for c in same if c is not None for f in c["files"]]})
        keep = None
        if any(v.body["keep"] for v in views):
            keep = "keep.npy"
            with atomic(folder / keep) as temporary, open(temporary, "wb") as f:
                np.save(f, np.packbits(np.concatenate([v.kept() for v in views])))
        size = sum(int(pyarrow.compute.sum(v.table(("bytes",))["bytes"]).as_py() or 0) for v in views)
        refs = dict.fromkeys(r for v in views for r in [relative(v.path, folder), *v.derive(folder)["refs"]] if r != ".")
        made = {"text": text, "columns": columns, "edges": [], "keep": keep, "decisions": [], "pages": None, "rewrites": [], "parts": parts}
        step = {"step": "gather", "docs": sum(steps), "bytes": size, "parts": steps}
        write_json(folder / "corpus.json", {**made, "funnel": [step], "refs": list(refs)})
        return cls(folder)

    def home(self, doc: int) -> tuple[Corpus, int]:
        """The corpus that a document was gathered from, and its number there; itself where nothing was gathered."""
        shard = doc >> 32
        for part in self.body.get("parts", []):
            if shard < part["shards"]:
                return Corpus(absolute(self.path, part["corpus"])).home(doc_id(shard, doc & 0xFFFFFFFF))
            shard -= part["shards"]
        return self, doc

    @classmethod
    def rewritten(
        cls, view: Corpus, folder: Path, texts: Sequence[Path], note: tuple[str, int, Mapping[str, str], Sequence[Path]]
    ) -> Corpus:
        """A view whose rows have other texts: shards below `folder`, row for row, and a column (name, version, fields, files) about it.

        Columns about the old text are left behind, but `page`, which is about the page. The old view stays among `refs`.
        """
        body = view.derive(folder)
        files = [File(t, f.rows, digest_file(t)) for t, f in zip(texts, view.files(), strict=True)]
        pages = []
        for entry in (c for c in view.body["columns"] if c["name"] == "page"):
            for number, file in enumerate(files):
                target = folder / "page" / f"{number:05d}.parquet"
                shards.write(target, view._sidecar("page", number, view.files()[number]), {"text": file.digest})
                pages.append(target)
            body["columns"] = [{**entry, "files": [relative(p, folder) for p in pages]}]
        if not pages:
            body["columns"] = []
        name, version, fields, notes = note
        body["columns"].append({"name": name, "version": version, "fields": dict(fields), "files": [relative(f, folder) for f in notes]})
        body["text"] = [{"file": relative(f.path, folder), "rows": f.rows, "digest": f.digest} for f in files]
        write_json(folder / "corpus.json", body)
        made = cls(folder)
        before, after = (np.asarray(v.table(("bytes",))["bytes"].to_numpy(), np.int64).sum() for v in (view, made))
        changed = sum(
            pyarrow.compute.sum(pyarrow.compute.not_equal(old["text"], new["text"])).as_py() or 0
            for old, new in zip(view.batches(("text",)), made.batches(("text",)), strict=True)
        )
        step = {"step": "rewrite", "what": name, "docs": len(made), "bytes_in": int(before), "bytes": int(after), "changed": changed}
        body["funnel"].append(step)
        body["rewrites"] = [*body.get("rewrites", []), {"what": name, "before": relative(view.path, folder)}]
        write_json(folder / "corpus.json", body)
        return cls(folder)

    @classmethod
    def from_texts(
        cls,
        folder: Path | str,
        texts: Iterable[str],
        source: str,
        *,
        urls: Sequence[str] | None = None,
        licence: str = "",
        licences: Sequence[str] | None = None,
        parents: Sequence[Sequence[str]] | None = None,
        provenance: str = "synthetic",
    ) -> Corpus:
        """Writes a corpus from Python strings, in order.

        urls: a name for each text (default `SOURCE/NUMBER`); licences: of each (default `licence`); parents: what each was made from;
        provenance: synthetic, import or crawl.
        Raises UsageError if a sequence has another length, or a text is not a str.
        """
        folder = Path(folder)
        listed = list(texts)
        for label, other in (("urls", urls), ("parents", parents), ("licences", licences)):
            if other is not None and len(other) != len(listed):
                raise UsageError(f"Corpus.from_texts: {len(listed)} texts but {len(other)} {label}")
        rows: list[dict[str, Any]] = []
        for i, text in enumerate(listed):
            if not isinstance(text, str):
                raise UsageError(f"Corpus.from_texts: text {i} is a {type(text).__name__}, not a str")
            rows.append(
                {
                    "url": urls[i] if urls is not None else f"{source}/{i}",
                    "source": source,
                    "date": "",
                    "licence": licences[i] if licences is not None else licence,
                    "text": text,
                    "provenance": provenance,
                    "parents": list(parents[i]) if parents is not None else None,
                    **shards.sizes(_size(text, i), None),
                }
            )
        files = []
        for start in range(0, len(rows), SHARD_ROWS):
            file = folder / "text" / f"{start // SHARD_ROWS:05d}.parquet"
            shards.write(file, shards.rows_to_table(rows[start : start + SHARD_ROWS], shards.TEXT))
            files.append(file)
        return cls.create(folder, files, [{"step": "text", "docs": len(rows), "bytes": sum(r["bytes"] for r in rows)}])


def _scan(paths: Sequence[Path], columns: Sequence[str], schema: pa.Schema, coded: Sequence[str]) -> pa.Table:
    """Columns of many parquet files, in order, read by all cores."""
    few = pa.dictionary(pa.int32(), pa.string())
    wanted = pa.schema([(c, few if c in coded and schema.field(c).type == pa.string() else schema.field(c).type) for c in columns])
    if not paths:
        return wanted.empty_table()
    form = pyarrow.dataset.ParquetFileFormat(dictionary_columns={c for c in columns if c in coded})
    try:
        return pyarrow.dataset.dataset([str(p) for p in paths], schema=wanted, format=form).to_table()
    except (pa.ArrowInvalid, OSError) as e:
        raise UsageError(f"{paths[0].parent.name}: not readable parquet files ({str(e).splitlines()[0][:120]})") from None


def _belongs(name: str, number: int, path: Path, file: File) -> None:
    """UsageError unless a sidecar belongs to the bytes of its text."""
    belongs, rows = shards.guard(path)
    if belongs != file.digest or rows != file.rows:
        raise UsageError(
            f"columns {name!r} of shard {number} do not belong to its text: computed on {belongs[:12]}, the text is {file.digest[:12]}\n"
            "way out: run the annotation again on this corpus"
        )


def _licences(batches: Iterable[pa.RecordBatch]) -> tuple[str, ...]:
    return tuple(sorted({x or "unknown" for batch in batches for x in batch["licence"].unique().to_pylist()}))


def _size(text: str, number: int) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise UsageError(f"Corpus.from_texts: text {number} holds a lone surrogate, which no UTF-8 file can hold") from None


def _batches(table: pa.Table, number: int, columns: Sequence[str], mask: np.ndarray | None) -> Iterator[pa.RecordBatch]:
    if "doc" in columns and "doc" not in table.column_names:
        docs = np.arange(table.num_rows, dtype=np.uint64) | np.uint64(doc_id(number, 0))
        table = table.append_column("doc", pa.array(docs))
    table = table.select(list(columns))
    if mask is not None and not mask.all():
        table = table.filter(pa.array(mask))
    if table.num_rows:
        yield from table.combine_chunks().to_batches()
