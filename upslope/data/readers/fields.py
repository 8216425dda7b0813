"""Fields of foreign records: found by path, dates made ISO 8601, text made writable."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from upslope.config import FrozenDict, UsageError
from upslope.data.protocol import Reject

TEXT, HTML, URL = ("text", "content", "body", "markdown"), ("html", "raw_content"), ("url", "uri", "id", "path")
DATE, LICENCE = ("date", "timestamp", "created", "crawl_date"), ("licence", "license")
PAGE = ("text", "html", "url", "date", "source", "licence", "mime", "charset")
YEARS = range(1000, 2200)
ISO = re.compile(r"(\d{4})(?:-(\d{2})(?:-(\d{2}))?)?$")


def pick(record: Any, path: str) -> Any:
    """The value at a field name or a dotted path (`data.turns`, `choices.0.text`; `a|b`: the first of them that is there), or None."""
    if isinstance(record, Mapping) and path in record:
        return record[path]
    if "|" in path:
        return next((v for p in path.split("|") if (v := pick(record, p)) is not None), None)
    head, dot, rest = path.partition(".")
    if isinstance(record, Mapping):
        inner = record.get(head)
    elif isinstance(record, list) and head.isdigit() and len(head) < 7 and int(head) < len(record):
        inner = record[int(head)]
    else:
        return None
    return pick(inner, rest) if dot and inner is not None else inner


def parse_map(items: Sequence[str], known: Sequence[str]) -> FrozenDict[str, str]:
    """`OURS=THEIRS` of the command line as a mapping; UsageError for a field of ours that there is not."""
    out: dict[str, str] = {}
    for item in items:
        ours, sign, theirs = (part.strip() for part in item.partition("="))
        if not sign or not ours or not theirs:
            raise UsageError(f"--map {item!r}: write OURS=THEIRS, for example --map text=body")
        if ours not in known:
            near = difflib.get_close_matches(ours, list(known), n=3, cutoff=0.5)
            swapped = f"; ours comes first: --map {theirs}={ours}" if theirs in known else ""
            hint = swapped or (f"; did you mean {' or '.join(near)}?" if near else f"; known: {', '.join(known)}")
            raise UsageError(f"--map {item}: there is no field {ours!r}{hint}")
        out[ours] = theirs
    return FrozenDict(out)


def iso(value: Any) -> str | None:
    """A date as ISO 8601 (UTC; year and year-month stay short); None if it is none or of a year that no page has.

    Reads ISO 8601, RFC 5322 (HTTP), YYYYMMDD[hhmmss], and seconds or milliseconds since 1970.
    """
    if isinstance(value, datetime):
        return _stamp(value)
    if isinstance(value, date):
        return value.isoformat() if value.year in YEARS else None
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        text = value.strip()
        if len(text) > 64:
            return None
        if short := ISO.match(text):
            try:
                date(int(short[1]), int(short[2] or 1), int(short[3] or 1))
            except ValueError:
                return None
            return text if int(short[1]) in YEARS else None
        if text.isascii() and text.isdigit() and len(text) in (8, 14):
            try:
                found = datetime.strptime(text, "%Y%m%d%H%M%S" if len(text) == 14 else "%Y%m%d")
            except ValueError:
                return None
            return _stamp(found) if len(text) == 14 else iso(found.date())
        try:
            return _stamp(datetime.fromisoformat(text))
        except (ValueError, OverflowError):
            pass
        try:
            return _stamp(parsedate_to_datetime(text))
        except (ValueError, TypeError, IndexError, OverflowError):
            pass
        try:
            value = float(text)
        except ValueError:
            return None
    if isinstance(value, int | float):
        if 1000 <= value < 2200 and value == int(value):
            return str(int(value))
        try:
            return _stamp(datetime.fromtimestamp(value / 1000 if abs(value) >= 1e11 else value, UTC)) if abs(value) >= 1e7 else None
        except (ValueError, OverflowError, OSError):
            return None
    return None


def _stamp(value: datetime) -> str | None:
    try:
        value = value.astimezone(UTC) if value.tzinfo else value
    except (ValueError, OverflowError):
        return None
    return f"{value:%Y-%m-%dT%H:%M:%S}Z" if value.year in YEARS else None


def clean(text: str) -> tuple[str, bool]:
    """(text that UTF-8 can hold, whether it was changed): bytes that were smuggled through and lone surrogates become U+FFFD."""
    try:
        text.encode()
        return text, False
    except UnicodeEncodeError:
        pass
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), True


def page(record: Any, where: str, map: Mapping[str, str], source: str, licence: str) -> tuple[dict[str, Any], tuple[str, ...]] | Reject:
    """(row of a page shard, notes) from a JSON or parquet record, or why there is none.

    map: our field → theirs, by name or dotted path; fields that it does not name are found by their usual names, also below `metadata`.
    """
    if not isinstance(record, dict):
        return Reject(where, f"not an object: the record is a {type(record).__name__}")
    map = dict(map)
    named = {ours: theirs for ours, theirs in map.items() if ours in ("text", "html")}
    wanted = list(named.items()) or [("text", t) for t in TEXT] + [("html", h) for h in HTML]
    found = next(((ours, theirs, v) for ours, theirs in wanted if (v := pick(record, theirs)) is not None), None)
    if found is None:
        names, has = " or ".join(repr(t) for _, t in wanted), ", ".join(repr(k) for k in list(record)[:6])
        return Reject(where, f"no text: there is no field {names}; the record has {has or 'nothing'}; name it: --map text=FIELD")
    ours, theirs, value = found
    notes: list[str] = []
    if isinstance(value, str):
        value, changed = clean(value)
        notes += [f"bad characters: {theirs!r} holds lone surrogates"] if changed else []
        body = value.encode()
    elif isinstance(value, bytes):
        body = value
    else:
        return Reject(where, f"bad text: {theirs!r} is a {type(value).__name__}, not a string")
    within = record.get("metadata")

    def first(ours: str, *usual: str) -> Any:
        if ours in map:
            return pick(record, map[ours])
        places = (record, within) if isinstance(within, dict) else (record,)
        return next((of[n] for of in places for n in usual if of.get(n) not in (None, "")), None)

    def plain(value: Any) -> str:
        text, changed = clean("" if value is None else str(value))
        if changed and not any(n.startswith("bad characters") for n in notes):
            notes.append("bad characters: a field holds lone surrogates")
        return text

    day = first("date", *DATE)
    stamp = None if day in (None, "") else iso(day)
    if day not in (None, "") and stamp is None:
        notes.append(f"bad date: {str(day)[:40]!r} is not kept")
    url = first("url", "url", "uri") or (first("url", *URL) if "url" not in map else None)
    mime = plain(first("mime", "mime"))
    row = {
        "url": plain(url) or where,
        "date": stamp or "",
        "mime": "text/html" if ours == "html" or theirs in HTML or mime == "text/html" else "text/plain",
        "charset": "utf-8" if isinstance(found[2], str) else plain(first("charset", "charset")),
        "html": body,
        "source": plain(first("source", "source")) or source,
        "licence": plain(first("licence", *LICENCE)) or licence,
        "record": where,
    }
    return row, tuple(notes)
