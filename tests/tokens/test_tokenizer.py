import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokens.conftest import TEXTS
from upslope.config import UsageError
from upslope.tokens.template import SPECIALS
from upslope.tokens.tokenizer import FILES, Tokenizer, train_bpe

TEXT = st.lists(
    st.text(max_size=20) | st.sampled_from([*SPECIALS, "<|im_end", "🙂👩‍👩‍👧", "\n\n", "  ", "١٢", "héllo", "12", "\r\n\t"]), max_size=8
).map("".join)


@given(text=TEXT)
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back_and_forges_no_special_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.special.values())
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_batches_equal_single_texts(tokenizer: Tokenizer) -> None:
    texts = [*TEXTS[:3], "", "<|im_end|> 12", "🙂"]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(t) for t in texts]
    assert tokenizer.encode("") == []


@given(number=st.integers(0, 10**12))
@settings(max_examples=50, deadline=None)
def test_every_digit_is_one_token(tokenizer: Tokenizer, number: int) -> None:
    ids = tokenizer.encode(f"x {number} + {number}.")
    assert [t for t in map(tokenizer.decode, ([i] for i in ids)) if any(c.isdigit() for c in t)] == [*str(number), *str(number)]


def test_special_ids_decode_and_skip(tokenizer: Tokenizer) -> None:
    t = tokenizer
    assert list(t.special) == list(SPECIALS)
    assert list(t.special.values()) == [0, 1, 2, 3, 4] == [t.eos, t.im_start, t.im_end, t.think, t.end_think]
    assert t.pad == t.eos
    ids = [t.im_start, *t.encode("hi"), t.think, *t.encode("so"), t.end_think, t.im_end, t.eos]
    assert t.decode(ids) == "<|im_start|>hi<think>so</think><|im_end|><|endoftext|>"
    assert t.decode(ids, skip_special=True) == "hi<think>so</think>"


def test_transformers_loads_the_folder_with_equal_ids(tokenizer: Tokenizer) -> None:
    """Peer: transformers 5.23."""
    transformers = pytest.importorskip("transformers")
    peer = transformers.AutoTokenizer.from_pretrained(str(tokenizer.path))
    for text in [*TEXTS[:2], "123 🙂  \n\n x", " lead", "naïve ١٢"]:
        assert peer(text)["input_ids"] == tokenizer.encode(text)
        assert peer.decode(tokenizer.encode(text)) == text
    assert (len(peer), peer.eos_token_id, peer.pad_token_id) == (tokenizer.vocab_size, tokenizer.eos, tokenizer.pad)
    assert peer("<|im_end|>")["input_ids"] == [tokenizer.im_end]  # there text can forge it; here it cannot
    assert peer.decode([tokenizer.im_end, tokenizer.think], skip_special_tokens=True) == "<think>"


def test_training_gives_the_same_bytes_in_another_process(tokenizer: Tokenizer, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; import sys; from tests.tokens.conftest import TEXTS; from upslope.tokens.tokenizer import train_bpe;"
        "train_bpe(TEXTS, 400, Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=Path(__file__).parents[2])
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (tokenizer.path / name).read_bytes()


def test_a_copy_is_the_same_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert tokenizer.copy_to(tmp_path / "copy").digest == tokenizer.digest


def test_errors_say_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 261"):
        train_bpe(["x"], 260, tmp_path)
    with pytest.raises(UsageError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path / "none").encode("x")


def test_vocabulary_is_full_where_pairs_repeat_and_smaller_where_they_do_not(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert train_bpe(TEXTS, 300, tmp_path / "a").vocab_size == 300
    assert train_bpe(["ab"], 300, tmp_path / "b").vocab_size == 261


def pieces(t: Tokenizer, text: str) -> list[str]:
    return [t.decode([i]) for i in t.encode(text)]


def test_words_of_code_keep_indentation_whole_and_digits_go_as_asked(tmp_path: Path) -> None:
    code = ["def f(x):\n        return x + 2024\n\n        if x:\n                y = 100\n"] * 50
    gpt2 = train_bpe(code, 420, tmp_path / "gpt2")
    kept = train_bpe(code, 420, tmp_path / "code", words="code", digits=3)
    whole = train_bpe(code, 420, tmp_path / "whole", digits=0)
    assert "\n       " in pieces(gpt2, code[0]) and "):\n" not in pieces(gpt2, code[0])
    assert "       " in pieces(kept, code[0]) and "):\n" in pieces(kept, code[0])
    assert [pieces(t, "2024") for t in (gpt2, kept, whole)] == [["2", "0", "2", "4"], ["202", "4"], ["2024"]]
    for t in (gpt2, kept, whole):
        assert t.decode(t.encode(code[0] + "\t\r\n naïve ١٢٣٤ 🙂")) == code[0] + "\t\r\n naïve ١٢٣٤ 🙂"
    peer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(kept.path)
    assert peer(code[0])["input_ids"] == kept.encode(code[0])
