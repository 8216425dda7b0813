from pathlib import Path

import numpy as np
import pytest

from upslope.config import UsageError
from upslope.machine.files import digest_path
from upslope.tokens.shards import ShardWriter, TokenShards
from upslope.tokens.tokenizer import Tokenizer

TEXTS = ["one 1", "", "two 22 🙂", "three 333", "four"]


def test_documents_come_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    shards = TokenShards.write(tmp_path, tokenizer, {"web/en": TEXTS, "b@heldout": ["x"]})
    assert shards.sources() == ("b@heldout", "web/en")
    assert shards.training() == ("web/en",)
    tokens, offsets = shards.tokens("web/en"), shards.offsets("web/en")
    assert tokens.dtype == np.uint16
    assert offsets.dtype == np.int64
    assert shards.docs("web/en").tolist() == [0, 1, 2, 3, 4]
    for i, text in enumerate(TEXTS):
        ids = tokens[offsets[i] : offsets[i + 1]].tolist()
        assert ids == [*tokenizer.encode(text), tokenizer.eos]
    assert shards.counts("web/en") == (len(tokens), 5, sum(len(t.encode()) for t in TEXTS))
    assert shards.bytes("b@heldout") == 1
    assert shards.vocab_size == tokenizer.vocab_size
    assert shards.tokenizer_digest == tokenizer.digest
    with pytest.raises(UsageError, match="did you mean web/en"):
        shards.tokens("web/eng")


def test_a_killed_writer_goes_on_to_the_same_bytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    whole = ShardWriter(tmp_path / "whole", tokenizer)
    whole.add("a", [5, 6], TEXTS[:2])
    whole.add("b", [7], TEXTS[2:3])
    whole.add("a", [8, 9], TEXTS[3:])
    whole.close()
    first = ShardWriter(tmp_path / "cut", tokenizer)
    first.add("a", [5, 6], TEXTS[:2])
    state = first.state()
    first.add("b", [7], TEXTS[2:3])  # written after the saved state, then killed
    first.add("a", [8], TEXTS[3:4])
    first.state()
    second = ShardWriter(tmp_path / "cut", tokenizer, resume=state)
    second.add("b", [7], TEXTS[2:3])
    second.add("a", [8, 9], TEXTS[3:])
    second.close()
    assert digest_path(tmp_path / "cut") == digest_path(tmp_path / "whole")


def test_a_folder_without_shards_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'tokenize' stage"):
        TokenShards.load(tmp_path).sources()
