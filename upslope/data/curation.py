"""Curation: the one place where documents are dropped, and the ledger that says why.

Every rule is a DuckDB predicate over the view's columns; all rules are put to all living documents (no early exit), so that the
ledger holds every reason and the funnel knows what each rule alone is worth. Among copies (connected components of edges), the winner
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

from upslope.config import UsageError
from upslope.data import shards
from upslope.data.links import components
from upslope.data.protocol import Rule

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


class Keep(NamedTuple):
    """What a curation decided. kept: (rows,) bool over the whole view; ledger: `shards.LEDGER`, every failure; funnel: see `decide`."""

    kept: np.ndarray
    ledger: pa.Table
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
    (failed no other rule), `first` (not failed by an earlier one), `unknown`, `bytes` (of `first`); and docs in and kept by language and
    by source.
    Raises UsageError for a predicate that does not parse, names a column that is not there, is not true or false, or fails on a value.
    """
    parsed = parse(rules, winner)
    refs = [_resolve(view, f"rule {r.name!r}", columns) for r, columns in zip(rules, parsed)]
    _resolve(view, "winner", parsed[-1])
    living = view.kept()
    docs = view.docs()[living]
    languages = "langid.lang" if "lang" in view.fields().get("langid", {}) else "lang"
    tops = list(dict.fromkeys(c[0] for columns in parsed for c in columns))
    with duckdb.connect(":memory:") as db:
        table = _table(view, list(dict.fromkeys(["doc", "bytes", "source", *tops])))
        language = _table(view, [languages])[languages]
        db.register("documents", table.set_column(0, "doc", table["doc"].cast(pa.int64())))  # signed, so that `doc - 4` is no overflow
        db.execute("SET enable_external_access = false")
        db.execute("SET lock_configuration = true")
        verdicts, values = [], []
        for rule, mentioned in zip(rules, refs):
            verdict, value = _evaluate(db, rule, mentioned, docs.size)
            verdicts.append(verdict)
            values.append(value)
        failed = np.stack([v == 0 for v in verdicts]) if verdicts else np.zeros((0, docs.size), bool)
        losers, winners = _copies(view, db, docs, np.asarray(failed.any(axis=0)), winner)
    reasons = np.concatenate([failed, losers[None]])
    names = [r.name for r in rules] + [DUPLICATE]
    values.append([f"copy of {w}" for w in winners.tolist()])
    kept = np.zeros(view.rows, bool)
    kept[np.flatnonzero(living)[~reasons.any(axis=0)]] = True
    at, which = np.nonzero(reasons.T)
    shown = [values[i][d] for d, i in zip(at.tolist(), which.tolist())]
    ledger = pa.table({"doc": docs[at], "rule": [names[i] for i in which.tolist()], "value": shown}, schema=shards.LEDGER)
    size = np.asarray(table["bytes"].to_numpy(zero_copy_only=False), np.int64)
    alive: np.ndarray = np.asarray(~reasons.any(axis=0))
    funnel = {
        "step": "curate",
        "docs_in": int(docs.size),
        "docs": int(alive.sum()),
        "bytes_in": int(size.sum()),
        "bytes": int(size[alive].sum()),
        "rules": [_count(names[i], reasons, i, size, verdicts[i] if i < len(rules) else None) for i in range(len(names))],
        "languages": _by(language, alive),
        "sources": _by(table["source"], alive),
    }
    return Keep(kept, ledger, funnel)


def _table(view: Corpus, columns: Sequence[str]) -> pa.Table:
    """Columns of all living documents as one table; sidecars are structs."""
    batches = list(view.batches(columns))
    return pa.Table.from_batches(batches) if batches else pa.table({c: pa.array([], pa.int32()) for c in columns})


def _evaluate(db: duckdb.DuckDBPyConnection, rule: Rule, columns: Sequence[str], count: int) -> tuple[np.ndarray, list[str]]:
    """(1 true, 0 false, 2 NULL for each living document; the values of the columns it mentions, where it is false)."""
    where = f"rule {rule.name!r}: {rule.keep!r}"
    try:
        if not count:
            return np.zeros(0, np.int8), []
        kind = db.execute(f"SELECT typeof(({rule.keep}\n)) FROM documents LIMIT 1").fetchall()[0][0]
        if kind not in ("BOOLEAN", '"NULL"'):
            raise UsageError(f"{where} is of type {kind}, not true or false\nway out: compare it with something")
        shown = [f"'{c.rpartition('.')[2]}=' || coalesce(substr(CAST({_quoted(c)} AS VARCHAR), 1, {SHOWN}), 'NULL')" for c in columns]
        text = " || ', ' || ".join(shown) if shown else "''"
        rows = db.sql(
            f"SELECT CAST(coalesce(CAST(({rule.keep}\n) AS TINYINT), 2) AS TINYINT) AS verdict, "
            f"CASE WHEN NOT ({rule.keep}\n) THEN {text} ELSE '' END AS value FROM documents ORDER BY doc"
        ).to_arrow_table()
    except duckdb.Error as e:
        raise UsageError(f"{where} fails\n{str(e).splitlines()[0][:200]}") from None
    if rows.num_rows != count:
        raise UsageError(f"{where} gave {rows.num_rows} answers for {count} documents; a rule looks at one document only")
    return np.asarray(rows["verdict"].to_numpy(), np.int8), rows["value"].to_pylist()


def _quoted(column: str) -> str:
    return ".".join('"' + part.replace('"', '""') + '"' for part in column.split("."))


def _copies(
    view: Corpus, db: duckdb.DuckDBPyConnection, docs: np.ndarray, failed: np.ndarray, winner: str
) -> tuple[np.ndarray, np.ndarray]:
    """(which living documents lose to a copy, the document that each loses to), in document order."""
    edges = view.edges()
    a, b = edges["a"].to_numpy(), edges["b"].to_numpy()
    alive = np.isin(a, docs) & np.isin(b, docs)
    losers, winners = np.zeros(docs.size, bool), docs.copy()
    if not alive.any():
        return losers, winners
    component = components(docs.size, np.searchsorted(docs, a[alive]), np.searchsorted(docs, b[alive]))
    db.register("judged", pa.table({"doc": docs.astype(np.int64), "failed": failed}))
    try:
        order = db.sql(
            "SELECT documents.doc FROM documents JOIN judged ON documents.doc = judged.doc "
            f"ORDER BY judged.failed, {_qualified(winner)}\n, documents.doc"
        )
        ranked = np.asarray(order.to_arrow_table()["doc"].to_numpy(), np.uint64)
    except duckdb.Error as e:
        raise UsageError(f"winner: {winner!r} fails\n{str(e).splitlines()[0][:200]}") from None
    rank = np.empty(docs.size, np.int64)
    rank[np.searchsorted(docs, ranked)] = np.arange(docs.size)
    best: dict[int, int] = {}
    for i in np.argsort(rank, kind="stable").tolist():
        best.setdefault(int(component[i]), i)
    first = np.array([best[int(c)] for c in component], np.int64)
    return first != np.arange(docs.size), docs[first]


def _qualified(winner: str) -> str:
    """`doc` is in both joined tables; in the order it means the document's number."""
    return re.sub(r"(?<![\w.\"])doc(?![\w(\".])", "documents.doc", winner)


def _count(name: str, reasons: np.ndarray, i: int, size: np.ndarray, verdict: np.ndarray | None) -> dict[str, Any]:
    first = reasons[i] & ~reasons[:i].any(axis=0)
    return {
        "rule": name,
        "failed": int(reasons[i].sum()),
        "only": int((reasons[i] & (reasons.sum(axis=0) == 1)).sum()),
        "first": int(first.sum()),
        "bytes": int(size[first].sum()),
        "unknown": 0 if verdict is None else int((verdict == 2).sum()),
    }


def _by(column: pa.ChunkedArray, alive: np.ndarray) -> dict[str, dict[str, int]]:
    """Documents in and kept by the value of a column; NULL is called unknown."""
    found: dict[str, dict[str, int]] = {}
    for value, lives in zip(column.to_pylist(), alive.tolist()):
        entry = found.setdefault(value or "unknown", {"docs_in": 0, "docs": 0})
        entry["docs_in"] += 1
        entry["docs"] += lives
    return dict(sorted(found.items()))


def write(view: Corpus, folder: Path, rules: Sequence[Rule], winner: str, keep: Keep) -> None:
    """Writes a decision beside the view it makes: keep.npy, ledger.parquet, corpus.json."""
    from upslope.machine.files import atomic, write_json

    body = view.derive(folder)
    with atomic(folder / "keep.npy") as temporary, open(temporary, "wb") as f:
        np.save(f, np.packbits(keep.kept))
    shards.write(folder / "ledger.parquet", keep.ledger)
    body["keep"] = "keep.npy"
    body["decisions"].append({"ledger": "ledger.parquet", "rules": [{"name": r.name, "keep": r.keep} for r in rules], "winner": winner})
    body["funnel"].append(keep.funnel)
    write_json(folder / "corpus.json", body)
