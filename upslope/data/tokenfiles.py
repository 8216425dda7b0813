"""Files of token ids that other tools wrote: what they hold. They belong to one tokenizer, so nothing trains on them here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from upslope.config import UsageError


class Tokens(NamedTuple):
    """format: megatron or datatrove. rows: documents. examples: the first ids of three. ids: file, type and number of ids."""

    format: str
    rows: int
    examples: tuple[str, ...]
    ids: str
    known_as: str


def measure(path: Path) -> Tokens | None:
    """A Megatron pair (.bin and .idx) or a datatrove file (.ds); None if it is neither. UsageError where its parts do not fit together."""
    if path.suffix == ".ds":
        return _datatrove(path)
    from upslope.tokens.export import MAGIC, read_megatron

    index, ids = path.with_suffix(".idx"), path.with_suffix(".bin")
    if not index.is_file():
        return None
    with open(index, "rb") as f:
        if f.read(len(MAGIC)) != MAGIC:
            return None
    if not ids.is_file():
        raise UsageError(f"{index.name}: the ids that it points into are missing\nway out: put {ids.name} beside it")
    tokens, offsets = read_megatron(path.with_suffix(""))
    said = f"{ids.name}, {tokens.dtype}, {len(tokens):,} ids"
    return Tokens("megatron", len(offsets) - 1, _shown(tokens, offsets[:4].tolist()), said, "Megatron-LM")


def _datatrove(path: Path) -> Tokens:
    """Ids of u16 or u32, as `.metadata` says (TOKENIZER|BYTES); `.index`: where documents end, u64, in ids. Source: datatrove."""
    import numpy as np

    meta, index = Path(f"{path}.metadata"), Path(f"{path}.index")
    said = meta.read_text(encoding="utf-8", errors="replace").partition("\n")[0] if meta.is_file() else ""
    size = {"2": 2, "4": 4}.get(said.rpartition("|")[2], 2)
    total, odd = divmod(path.stat().st_size, size)
    if odd:
        raise UsageError(f"{path.name}: {path.stat().st_size} bytes are no whole number of {size}-byte ids")
    tokens = np.memmap(path, "<u2" if size == 2 else "<u4", "r") if total else np.zeros(0, np.uint16)
    ends = np.fromfile(index, "<u8").tolist() if index.is_file() else [total]
    if ends != sorted(ends) or (ends and ends[-1] != total):
        raise UsageError(f"{index.name}: document ends up to {max(ends):,}, where {path.name} has {total:,} ids")
    ids = f"{path.name}, u{size * 8}, {total:,} ids" + (f", {said.rpartition('|')[0]}" if said else "")
    return Tokens("datatrove", len(ends), _shown(tokens, [0, *ends[:3]]), ids, "datatrove")


def _shown(tokens: Any, bounds: Sequence[int]) -> tuple[str, ...]:
    return tuple(f"{b - a} ids: {tokens[a : min(b, a + 12)].tolist()}" for a, b in zip(bounds, bounds[1:]))
