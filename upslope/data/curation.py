"""Curation: the one place where documents are dropped, and the record that says why.

Every rule is a DuckDB predicate over the view's columns; all rules are put to all living documents (no early exit), so that every
reason is known and the funnel says what each rule alone is worth. A decision is bits; the values that a rule saw are looked up in the
columns when somebody asks. Among copies (connected components of edges), the winner
is the first by: passes every rule, then the `winner` order, then the document number.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from upslope.config import UsageError
from upslope.data import shards
from upslope.data.links import components
from upslope.data.protocol import Rule
from upslope.data.tally import kinds, tally
from upslope.machine.files import relative

if TYPE_CHECKING:
    from upslope.data.artifacts import Corpus

DUPLICATE = "duplicate"
UNSTABLE = frozenset(
    {
        "random",
        "uuid",
        "gen_random_uuid",
        "uuidv4",
        "uuidv7",
        "now",
        "current_timestamp",
        "get_current_timestamp",
        "current_date",
        "current_time",
        "today",
        "transaction_timestamp",
        "current_localtimestamp",
        "current_localtime",
        "age",
        "getenv",
        "nextval",
    }
)
SHOWN = 80
SLICE = 1 << 20


class Keep(NamedTuple):
    """What a curation decided. kept: (rows,) bool over the whole view. failed: (rules + 1, rows) bool, every failure of a living document,
    no early exit; the last one is `duplicate`. copies: doc → the document that it lost to. funnel: see `decide`."""

    kept: np.ndarray
    failed: np.ndarray
    copies: pa.Table
    funnel: dict[str, Any]


def parse(rules: Sequence[Rule], winner: str = "doc") -> list[list[tuple[str, ...]]]:
    """The columns that each rule mentions (and last, those of the winner order), as dotted names. UsageError for what does not parse."""
    names = [r.name for r in rules]
    for name in names:
        if names.count(name) > 1 or name == DUPLICATE or not name:
            raise UsageError(f"rule {name!r}: every rule needs a name of its own, other than {DUPLICATE!r}")
    with duckdb.connect(":memory:") as db:
        found = [_columns(db, f"rule {r.name!r}", r.keep, f"SELECT ({r.keep}\n)") for r in rules]
        return [*found, _columns(db, "winner", winner, f"SELECT 1 ORDER BY {winner}\n")]


def _columns(db: duckdb.DuckDBPyConnection, what: str, text: str, statement: str) -> list[tuple[str, ...]]:
    tree = json.loads(db.execute("SELECT json_serialize_sql(?)", [statement]).fetchall()[0][0])
    if tree.get("error") or len(tree.get("statements", [])) != 1:
        message = str(tree.get("error_message", "one expression is expected")).splitlines()[0]
        raise UsageError(f'{what}: {text!r} is not a DuckDB expression\n{message}\nway out: e.g. "gopher.words between 50 and 100000"')
    if len(tree["statements"][0]["node"].get("select_list", ())) != 1:
        raise UsageError(f"{what}: {text!r} is not one expression")
    found: list[tuple[str, ...]] = []
    todo: list[Any] = [tree["statements"][0]["node"]]
    while todo:
        node = todo.pop()
        if isinstance(node, list):
            todo += reversed(node)
        elif isinstance(node, dict):
            if node.get("class") == "SUBQUERY":
                raise UsageError(f"{what}: {text!r} holds a subquery; a rule is one predicate over the columns of one document")
            if node.get("class") == "WINDOW":
                raise UsageError(f"{what}: {text!r} holds a window function; a rule looks at one document only")
            name = str(node.get("function_name", "")).lower()
            if name in UNSTABLE:
                raise UsageError(f"{what}: {text!r} calls {name}(), which gives another answer every time\nway out: decide by columns only")
            if node.get("class") == "COLUMN_REF":
                column = tuple(node["column_names"])
                if column not in found:
                    found.append(column)
            todo += reversed(list(node.values()))
    return found


def _resolve(view: Corpus, what: str, columns: Sequence[tuple[str, ...]]) -> list[str]:
    """Dotted names as columns of the view. UsageError with the nearest names for one that does not exist."""
    own = ["doc", *(n for n in shards.TEXT.names if n != "spans")]
    fields = view.fields()
    known = [*own, *(f"{n}.{f}" for n, fs in fields.items() for f in fs)]
    for column in columns:
        name = ".".join(column)
        if (len(column) == 1 and (name in own or name in fields)) or (len(column) == 2 and column[1] in fields.get(column[0], {})):
            continue
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or [k for k in known if k.endswith("." + column[-1])]
        hint = f"did you mean {' or '.join(near)}?" if near else f"columns: {', '.join(known)}"
        raise UsageError(f"{what}: this corpus has no column {name!r}\n{hint}")
    return [".".join(c) for c in columns]


def decide(view: Corpus, rules: Sequence[Rule], winner: str = "doc") -> Keep:
    """Puts all rules to all living documents and chooses the winners among copies.

    FALSE drops, NULL keeps and is counted as `unknown`. The funnel: docs and bytes in and kept; per rule `failed` (documents), `only`
    (failed no other rule), `first` (not failed by an earlier one), `unknown`, `bytes` (of `first`); and for each language, kind and source:
    docs in and kept, and which rules took how many, alone or not.
    Raises UsageError for a predicate that does not parse, names a column that is not there, is not true or false, or fails on a value.
    """
    parsed = parse(rules, winner)
    refs = [_resolve(view, f"rule {r.name!r}", columns) for r, columns in zip(rules, parsed)]
    order = _resolve(view, "winner", parsed[-1])
    docs = view.docs() if view.body["keep"] is None else view.docs()[view.kept()]
    judged = _judge(view, docs, rules, refs)
    losers, winners = _copies(view, docs, judged.failed, winner, order)
    reasons, names = judged.failed, [r.name for r in rules] + [DUPLICATE]
    reasons[-1, losers] = True
    groups = max(len(KINDS), *map(len, judged.labels))
    by_rule, by_group, docs_of, alive = tally(reasons, judged.codes, groups, judged.size)
    kept, everywhere = alive, reasons
    if docs.size < view.rows:
        place = np.flatnonzero(view.kept())
        kept, everywhere = np.zeros(view.rows, bool), np.zeros((len(names), view.rows), bool)
        kept[place], everywhere[:, place] = alive, reasons
    funnel = {
        "step": "curate",
        "docs_in": int(docs.size),
        "docs": int(alive.sum()),
        "bytes_in": int(judged.size.sum(dtype=np.int64)),
        "bytes": int(judged.size.sum(dtype=np.int64) - by_rule[:, 3].sum()),
        "rules": [
            {"rule": n, "failed": f, "only": o, "first": first, "bytes": b, "unknown": u}
            for n, (f, o, first, b), u in zip(names, by_rule.tolist(), [*judged.unknown.tolist(), 0])
        ],
        "languages": _group(judged.labels[0], by_group[0], docs_of[0], names),
        "kinds": _group(KINDS, by_group[1], docs_of[1], names),
        "sources": _group(judged.labels[1], by_group[2], docs_of[2], names),
    }
    copies = pa.table({"doc": docs[losers], "of": winners}, schema=COPY)
    return Keep(kept, everywhere, copies, funnel)


KINDS = ("prose", "code", "math", "table")
COPY = pa.schema([("doc", pa.uint64()), ("of", pa.uint64())])


def nested(table: pa.Table, docs: np.ndarray) -> pa.Table:
    """A table of dotted columns as DuckDB sees it in a rule: the fields of a sidecar are one struct; `doc` is signed, so that `doc - 4` is
    no overflow."""
    out: dict[str, Any] = {"doc": pa.array(docs.astype(np.int64))}
    sides: dict[str, dict[str, Any]] = {}
    for name in table.column_names:
        side, _, field = name.partition(".")
        if field:
            sides.setdefault(side, {})[field] = table[name].combine_chunks()
        else:
            out[name] = table[name]
    for side, fields in sides.items():
        arrays = [c.chunk(0) if isinstance(c, pa.ChunkedArray) else c for c in fields.values()]
        out[side] = pa.StructArray.from_arrays(arrays, names=list(fields))
    return pa.table(out)


def _lock(db: duckdb.DuckDBPyConnection) -> None:
    db.execute("SET enable_external_access = false")
    db.execute("SET lock_configuration = true")


class _Judged(NamedTuple):
    """What the rules say of the living, in document order. failed: (rules + 1, n) bool, the last row still empty. unknown: NULLs of each
    rule. codes: (3, n) int32, language, kind and source. labels: of languages and sources. size: (n,) int32, bytes."""

    failed: np.ndarray
    unknown: np.ndarray
    codes: np.ndarray
    labels: tuple[list[str], list[str]]
    size: np.ndarray


def _judge(view: Corpus, docs: np.ndarray, rules: Sequence[Rule], refs: Sequence[Sequence[str]]) -> _Judged:
    """Puts the rules to a slice of shards at a time, so that memory does not grow with the columns."""
    language = "langid.lang" if "lang" in view.fields().get("langid", {}) else "lang"
    sizes = ("bytes", "code_bytes", "math_bytes", "table_bytes")
    wanted = [c for c in dict.fromkeys([*sizes, "source", language, *(c for columns in refs for c in columns)]) if c != "doc"]
    n = docs.size
    failed, unknown = np.zeros((len(rules) + 1, n), bool), np.zeros(len(rules), np.int64)
    found = _Judged(failed, unknown, np.empty((3, n), np.int32), ([], []), np.empty(n, np.int32))
    at = 0
    with duckdb.connect(":memory:") as db:
        _lock(db)
        for table in view.slices(wanted, SLICE, ("source", language)):
            end = at + table.num_rows
            db.register("documents", nested(table, docs[at:end]))
            if not at:
                for rule in rules:
                    _typed(db, rule)
            _evaluate(db, rules, found.failed[:, at:end], found.unknown)
            size = [(pc.fill_null(table[c], 0) if table[c].null_count else table[c]).to_numpy() for c in sizes]
            found.size[at:end] = size[0]
            found.codes[1, at:end] = kinds(*size)
            for row, column, labels in zip((0, 2), (table[language], table["source"]), found.labels):
                found.codes[row, at:end] = _codes(column, labels)
            db.unregister("documents")
            at = end
    return found


def _evaluate(db: duckdb.DuckDBPyConnection, rules: Sequence[Rule], failed: np.ndarray, unknown: np.ndarray) -> None:
    """Fills in which of the registered documents fail each rule, and adds for how many each is NULL."""
    count = failed.shape[1]
    if not count or not rules:
        return
    said = [f"CAST(coalesce(CAST(({r.keep}\n) AS TINYINT), 2) AS TINYINT) AS v{i}" for i, r in enumerate(rules)]
    try:
        rows = db.sql(f"SELECT {', '.join(said)}, doc FROM documents").to_arrow_table()
    except duckdb.Error:
        for rule, text in zip(rules, said):  # one of them fails on a value: which?
            try:
                db.sql(f"SELECT {text} FROM documents").to_arrow_table()
            except duckdb.Error as e:
                raise _fails(rule, e) from None
        raise
    if rows.num_rows != count:
        raise UsageError(f"the rules gave {rows.num_rows} answers for {count} documents; a rule looks at one document only")
    at = rows["doc"].to_numpy()
    sort = None if count < 2 or bool((at[1:] > at[:-1]).all()) else np.argsort(at)
    for i in range(len(rules)):
        verdict = rows[f"v{i}"].to_numpy() if sort is None else rows[f"v{i}"].to_numpy()[sort]
        np.equal(verdict, 0, out=failed[i])
        unknown[i] += np.count_nonzero(verdict == 2)


def _typed(db: duckdb.DuckDBPyConnection, rule: Rule) -> None:
    """UsageError unless a rule is true or false."""
    try:
        rows = db.execute(f"SELECT typeof(({rule.keep}\n)) FROM documents LIMIT 2").fetchall()
    except duckdb.Error as e:
        raise _fails(rule, e) from None
    if rows[0][0] not in ("BOOLEAN", '"NULL"'):
        where = f"rule {rule.name!r}: {rule.keep!r}"
        raise UsageError(f"{where} is of type {rows[0][0]}, not true or false\nway out: compare it with something")
    if len(rows) < 2 and db.execute("SELECT count(*) FROM (SELECT 1 FROM documents LIMIT 2)").fetchall()[0][0] == 2:
        raise UsageError(f"rule {rule.name!r}: {rule.keep!r} gave one answer for all documents; a rule looks at one document only")


def _fails(rule: Rule, error: duckdb.Error) -> UsageError:
    return UsageError(f"rule {rule.name!r}: {rule.keep!r} fails\n{str(error).splitlines()[0][:200]}")


def values(view: Corpus, rules: Sequence[Rule], docs: np.ndarray) -> list[list[str]]:
    """What each rule saw of some documents (n,) uint64, as `field=value` texts: one list a document, one text a rule."""
    parsed = parse(rules)
    refs = [_resolve(view, f"rule {r.name!r}", columns) for r, columns in zip(rules, parsed)]
    wanted = list(dict.fromkeys(c for columns in refs for c in columns if c != "doc")) or ["bytes"]
    table = view.take(docs, wanted)
    shown: list[list[str]] = []
    with duckdb.connect(":memory:") as db:
        _lock(db)
        db.register("documents", nested(table, docs).append_column("place", pa.array(range(len(docs)))))
        for columns in refs:
            said = [f"'{c.rpartition('.')[2]}=' || coalesce(substr(CAST({_quoted(c)} AS VARCHAR), 1, {SHOWN}), 'NULL')" for c in columns]
            text = " || ', ' || ".join(said) if said else "''"
            shown.append([row[0] for row in db.sql(f"SELECT {text} FROM documents ORDER BY place").fetchall()])
    return [list(row) for row in zip(*shown)] if rules else [[] for _ in docs]


def _quoted(column: str) -> str:
    return ".".join('"' + part.replace('"', '""') + '"' for part in column.split("."))


def _copies(view: Corpus, docs: np.ndarray, reasons: np.ndarray, winner: str, order: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(places of the living documents that lose to a copy, ascending; the document that each loses to). Only linked ones are ranked."""
    edges = view.edges()
    a, b = edges["a"].to_numpy(), edges["b"].to_numpy()
    none = np.zeros(0, np.int64), np.zeros(0, np.uint64)
    if not docs.size:
        return none
    alive: np.ndarray = np.logical_and.reduce([docs[np.minimum(np.searchsorted(docs, x), docs.size - 1)] == x for x in (a, b)])
    if not alive.any():
        return none
    linked = np.unique(np.concatenate([a[alive], b[alive]]))
    at = np.searchsorted(docs, linked)
    component = components(linked.size, np.searchsorted(linked, a[alive]), np.searchsorted(linked, b[alive]))
    with duckdb.connect(":memory:") as db:
        _lock(db)
        db.register("documents", nested(view.take(linked, [c for c in order if c != "doc"] or ["bytes"]), linked))
        db.register("judged", pa.table({"doc": linked.astype(np.int64), "failed": reasons[:, at].any(axis=0)}))
        try:
            ranked = db.sql(
                "SELECT documents.doc FROM documents JOIN judged ON documents.doc = judged.doc "
                f"ORDER BY judged.failed, {_qualified(winner)}\n, documents.doc"
            ).to_arrow_table()
        except duckdb.Error as e:
            raise UsageError(f"winner: {winner!r} fails\n{str(e).splitlines()[0][:200]}") from None
    best_first = np.searchsorted(linked, np.asarray(ranked["doc"].to_numpy(), np.uint64))
    best = np.empty(linked.size, np.int64)
    best[component[best_first[::-1]]] = best_first[::-1]  # the last one written, the best of its component, stays
    first = best[component]
    lost = first != np.arange(linked.size)
    return at[lost], linked[first[lost]]


def _qualified(winner: str) -> str:
    """`doc` is in both joined tables; in the order it means the document's number."""
    return re.sub(r"(?<![\w.\"])doc(?![\w(\".])", "documents.doc", winner)


def _codes(column: pa.ChunkedArray, labels: list[str]) -> np.ndarray:
    """A column of dictionaries as numbers of `labels` (n,) int32, which grows as needed; NULL and "" are called unknown."""
    coded = column.unify_dictionaries().combine_chunks()
    coded = coded.chunk(0) if isinstance(coded, pa.ChunkedArray) else coded
    names = [str(v) or "unknown" for v in coded.dictionary.to_pylist()] + ["unknown"]
    labels += [n for n in dict.fromkeys(names) if n not in labels]
    one = np.array([labels.index(n) for n in names], np.int32)
    return one[pc.fill_null(coded.indices, len(names) - 1).to_numpy()]


def _group(labels: Sequence[str], counts: np.ndarray, docs: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """For each label: documents in and kept, and for each rule that took some: (failed, failed alone)."""
    found: dict[str, Any] = {}
    for i in sorted(range(len(labels)), key=lambda i: labels[i]):
        came, left = docs[i].tolist()
        if came:
            rules = {name: counts[i, r].tolist() for r, name in enumerate(names) if counts[i, r, 0]}
            found[labels[i]] = {"docs_in": came, "docs": left, "rules": rules}
    return found


def write(view: Corpus, folder: Path, rules: Sequence[Rule], winner: str, keep: Keep) -> None:
    """Writes a decision beside the view it makes: keep.npy, failed.npy (both packed bits), copies.parquet, corpus.json."""
    from upslope.machine.files import atomic, write_json

    body = view.derive(folder)
    for name, bits in (("keep.npy", keep.kept), ("failed.npy", keep.failed)):
        with atomic(folder / name) as temporary, open(temporary, "wb") as f:
            np.save(f, np.packbits(bits, axis=-1))
    shards.write(folder / "copies.parquet", keep.copies)
    body["keep"], before = "keep.npy", relative(view.path, folder)
    said = [{"name": r.name, "keep": r.keep} for r in rules]
    body["decisions"].append({"failed": "failed.npy", "copies": "copies.parquet", "view": before, "rules": said, "winner": winner})
    body["funnel"].append(keep.funnel)
    write_json(folder / "corpus.json", body)
