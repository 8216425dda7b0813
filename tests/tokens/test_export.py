"""What Megatron-LM reads: checked byte by byte against the layout, and against datatrove's writer where it is installed."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from tests.tokens.conftest import Setup
from upslope.config import UsageError
from upslope.tokens.export import read_megatron, to_megatron


def test_the_index_has_the_layout_of_megatron_and_reads_back(setup: Setup, tmp_path: Path) -> None:
    shards, _ = setup({"a": 30}, {"a": 1.0})
    stem = to_megatron(shards, "a", tmp_path)
    tokens, offsets = read_megatron(stem)
    np.testing.assert_array_equal(tokens, shards.tokens("a"))
    np.testing.assert_array_equal(offsets, shards.offsets("a"))
    data = stem.with_name("a.idx").read_bytes()
    n = len(offsets) - 1
    assert data[:9] == b"MMIDIDX\x00\x00" and struct.unpack("<QBQQ", data[9:34]) == (1, 8, n, n + 1)
    assert len(data) == 34 + 4 * n + 8 * n + 8 * (n + 1)
    assert list(struct.unpack(f"<{n}q", data[34 + 4 * n : 34 + 12 * n])) == [2 * int(o) for o in offsets[:-1]]


def test_datatrove_writes_the_same_bytes(setup: Setup, tmp_path: Path) -> None:
    peer = pytest.importorskip("datatrove.pipeline.tokens.megatron_tokenizer")
    shards, _ = setup({"a": 20}, {"a": 1.0})
    stem = to_megatron(shards, "a", tmp_path / "ours")
    file = peer.MegatronTokenizedFile(str(tmp_path / "theirs"), "a", token_size=2)
    offsets = shards.offsets("a")
    for a, b in zip(offsets[:-1], offsets[1:]):
        file.write(shards.tokens("a")[a:b].tolist())
    file.close()
    for suffix in (".bin", ".idx"):
        assert (tmp_path / "theirs" / f"a{suffix}").read_bytes() == stem.with_name(f"a{suffix}").read_bytes()


def test_damaged_pairs_are_refused(setup: Setup, tmp_path: Path) -> None:
    shards, _ = setup({"a": 5}, {"a": 1.0})
    stem = to_megatron(shards, "a", tmp_path)
    index, ids = stem.with_name("a.idx"), stem.with_name("a.bin")
    whole, body = index.read_bytes(), ids.read_bytes()
    for bad, message in ((b"TOKENIDX" + whole[8:], "not a Megatron index"), (whole[:-3], "not read here"), (whole[:20], "not a Megatron")):
        index.write_bytes(bad)
        with pytest.raises(UsageError, match=message):
            read_megatron(stem)
    index.write_bytes(whole)
    ids.write_bytes(body[:-2])
    with pytest.raises(UsageError, match="where its index speaks of"):
        read_megatron(stem)
