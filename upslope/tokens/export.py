"""Token shards in the format that Megatron-LM, NeMo and datatrove read: `NAME.bin` (ids) and `NAME.idx` (`MMIDIDX`, version 1).

The index: magic, version (u64), dtype code (u8), number of sequences and of document bounds (u64), sequence lengths (i32), their
offsets in bytes (i64), document bounds (i64). One sequence a document. Source: Megatron-LM, core/datasets/indexed_dataset.py (layout).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upslope.config import UsageError
from upslope.machine.files import atomic
from upslope.tokens.shards import TokenShards

MAGIC = b"MMIDIDX\x00\x00"
CODES: dict[np.dtype[Any], int] = {np.dtype("<u2"): 8, np.dtype("<i4"): 4}
STEP = 1 << 22


def to_megatron(shards: TokenShards, source: str, folder: Path) -> Path:
    """Writes SOURCE.bin and SOURCE.idx below `folder` and returns the path without suffix. Ids of large vocabularies become int32."""
    offsets = shards.offsets(source)
    tokens = shards.tokens(source)
    dtype = np.dtype("<u2") if tokens.dtype == np.dtype("<u2") else np.dtype("<i4")
    stem = folder / source.replace("/", "_")
    with atomic(stem.with_name(stem.name + ".bin")) as temporary, open(temporary, "wb") as f:
        for at in range(0, len(tokens), STEP):
            f.write(tokens[at : at + STEP].astype(dtype).tobytes())
    lengths = np.diff(offsets)
    if lengths.size and lengths.max() > np.iinfo(np.int32).max:
        raise UsageError(f"source {source!r}: a document of {lengths.max():,} tokens is longer than the format's 32-bit lengths allow")
    with atomic(stem.with_name(stem.name + ".idx")) as temporary, open(temporary, "wb") as f:
        f.write(MAGIC + struct.pack("<QBQQ", 1, CODES[dtype], len(lengths), len(lengths) + 1))
        f.write(lengths.astype("<i4").tobytes())
        f.write((offsets[:-1] * dtype.itemsize).astype("<i8").tobytes())
        f.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())
    return stem


def read_megatron(stem: Path) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
    """(ids, memory-mapped; offsets (sequences + 1,)) of such a pair; UsageError where the files are not one."""
    index, ids = stem.with_name(stem.name + ".idx"), stem.with_name(stem.name + ".bin")
    data = index.read_bytes()
    head = len(MAGIC) + struct.calcsize("<QBQQ")
    if not data.startswith(MAGIC) or len(data) < head:
        raise UsageError(f"{index.name}: not a Megatron index: it starts with {data[:9]!r}, not {MAGIC!r}")
    version, code, count, bounds = struct.unpack_from("<QBQQ", data, len(MAGIC))
    dtype = next((d for d, c in CODES.items() if c == code), None)
    if version != 1 or dtype is None or len(data) != head + 12 * count + 8 * bounds:
        raise UsageError(f"{index.name}: version {version}, dtype code {code}, {len(data)} bytes for {count} sequences: not read here")
    lengths = np.frombuffer(data, "<i4", count, head)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    if ids.stat().st_size != offsets[-1] * dtype.itemsize:
        raise UsageError(f"{ids.name}: {ids.stat().st_size} bytes, where its index speaks of {offsets[-1]} ids of {dtype.itemsize}")
    return np.memmap(ids, dtype, "r", shape=(int(offsets[-1]),)) if offsets[-1] else np.zeros(0, dtype), offsets
