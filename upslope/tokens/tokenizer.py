"""Byte-level BPE: any text to ids and back without loss, one token per digit, special tokens that text cannot forge."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from upslope.config import UsageError
from upslope.machine.files import atomic, digest_file, read_json, write_json, write_text
from upslope.machine.stage import Artifact
from upslope.tokens.template import CHAT_TEMPLATE, END_THINK, EOS, IM_END, IM_START, SPECIALS, THINK

if TYPE_CHECKING:
    import tokenizers

CODE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class Tokenizer(Artifact):
    """A folder in HF format: `tokenizer.json`, `tokenizer_config.json` (with the chat template), `special_tokens_map.json`.

    `transformers.AutoTokenizer` loads the same folder and gives equal ids for text without special-token strings; with
    them the two differ on purpose: here such text is only text, so a user cannot open a turn or end one.
    """

    @cached_property
    def _full(self) -> tokenizers.Tokenizer:
        import tokenizers

        file = self.path / "tokenizer.json"
        if not file.is_file():
            raise UsageError(f"no tokenizer.json in {self.path.name!r}\nway out: give a folder that holds {', '.join(FILES)}")
        return tokenizers.Tokenizer.from_file(str(file))

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """The same merges without any added token: what outside text is encoded with."""
        import tokenizers

        data = json.loads(self._full.to_str()) | {"added_tokens": [], "post_processor": None}
        return tokenizers.Tokenizer.from_str(json.dumps(data))

    def encode(self, text: str) -> list[int]:
        """Ids of a text. Strings like `<|im_end|>` are encoded as the characters they are, never as the special id."""
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts, on all cores."""
        return [e.ids for e in self._plain.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD. skip_special drops control tokens, not `<think>` tags."""
        return str(self._full.decode([int(i) for i in ids], skip_special_tokens=skip_special))

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id: the rows that an embedding needs."""
        return 1 + max(self._full.get_vocab(with_added_tokens=True).values())

    @cached_property
    def special(self) -> Mapping[str, int]:
        """Added tokens by text."""
        return {token.content: int(i) for i, token in sorted(self._full.get_added_tokens_decoder().items())}

    def _id(self, text: str) -> int:
        if text not in self.special:
            raise UsageError(f"tokenizer {self.path.name!r} has no token {text!r}\nway out: use one with the tokens {', '.join(SPECIALS)}")
        return self.special[text]

    @cached_property
    def eos(self) -> int:
        """Id that ends a document: `<|endoftext|>`, or what an imported tokenizer's config calls `eos_token`."""
        if EOS in self.special:
            return self.special[EOS]
        config = read_json(self.path / "tokenizer_config.json")
        token = config.get("eos_token")
        return self._id(token.get("content", EOS) if isinstance(token, dict) else str(token or EOS))

    @cached_property
    def pad(self) -> int:
        """Id for filling; the same as `eos`, always masked."""
        return self.eos

    @cached_property
    def im_start(self) -> int:
        """Id of `<|im_start|>`."""
        return self._id(IM_START)

    @cached_property
    def im_end(self) -> int:
        """Id of `<|im_end|>`, which ends a chat turn."""
        return self._id(IM_END)

    @cached_property
    def think(self) -> int:
        """Id of `<think>`."""
        return self._id(THINK)

    @cached_property
    def end_think(self) -> int:
        """Id of `</think>`."""
        return self._id(END_THINK)

    @cached_property
    def digest(self) -> str:
        """Content digest of `tokenizer.json`: two tokenizers with equal digests give equal ids."""
        return digest_file(self.path / "tokenizer.json")

    def copy_to(self, folder: Path) -> Tokenizer:
        """Writes the same files into another folder (a checkpoint's, a release's)."""
        for name in FILES:
            if (self.path / name).is_file():
                with atomic(folder / name) as file:
                    file.write_bytes((self.path / name).read_bytes())
        return Tokenizer.load(folder)


Words = Literal["gpt2", "code"]


def train_bpe(texts: Iterable[str], vocab_size: int, folder: Path, words: Words = "gpt2", digits: int = 1) -> Tokenizer:
    """Learns byte-level BPE and writes the HF folder.

    Every text is cut into digits and words, no merge crosses a cut; merges are learnt by pair frequency until the vocabulary is full or no
    pair occurs twice, so `.vocab_size` may be smaller than asked. The result depends on the texts and the settings alone.

    vocab_size: at least 261 (256 bytes and 5 special tokens). words: `gpt2`, where of several blanks the last one joins the next word; or
    `code`, where indentation and line ends stay whole, and punctuation takes the line end that follows it. digits: digits a token, from
    the left: 1 (Llama 2, DeepSeek), 3 (GPT-4, Llama 3), or 0 = as many as are there.

    Source: Sennrich et al., 1508.07909; GPT-2's byte-level alphabet; the cuts of `code` are those of cl100k_base.
    """
    import tokenizers as hf
    from tokenizers import decoders, models, pre_tokenizers, trainers

    smallest = 256 + len(SPECIALS)
    if vocab_size < smallest:
        raise UsageError(f"vocab_size = {vocab_size}: must be at least {smallest} (256 bytes and {len(SPECIALS)} special tokens)")
    bpe = hf.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence([*_cuts(words, digits), pre_tokenizers.ByteLevel(False, use_regex=words == "gpt2")])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    data = json.loads(bpe.to_str())
    for token in data["added_tokens"]:  # <think> tags: a decoder that skips control tokens must not glue a thought to its answer
        token["special"] = token["content"].startswith("<|")
    write_text(folder / "tokenizer.json", json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    write_json(folder / "tokenizer_config.json", hf_config())
    write_json(folder / "special_tokens_map.json", {"eos_token": EOS, "pad_token": EOS, "additional_special_tokens": [IM_START, IM_END]})
    return Tokenizer.load(folder)


def _cuts(words: Words, digits: int) -> list[Any]:
    """What cuts a text before its bytes are looked at."""
    from tokenizers import Regex, pre_tokenizers

    if digits == 1:
        number: Any = pre_tokenizers.Digits(individual_digits=True)
    else:
        number = pre_tokenizers.Split(Regex(rf"\p{{N}}{{1,{digits}}}" if digits else r"\p{N}+"), "isolated")
    if words == "gpt2":
        return [number]
    return [number, pre_tokenizers.Split(Regex(CODE), "isolated")]


def hf_config() -> dict[str, Any]:
    """`tokenizer_config.json` of a trained tokenizer."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "bos_token": None,
        "eos_token": EOS,
        "pad_token": EOS,
        "unk_token": None,
        "additional_special_tokens": [IM_START, IM_END],
        "model_max_length": 1_000_000,
        "chat_template": CHAT_TEMPLATE,
    }
