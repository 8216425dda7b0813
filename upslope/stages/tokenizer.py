"""tokenizer: a sample of corpora → a byte-level BPE tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from upslope.config import Input, Neutral, UsageError, Wants
from upslope.machine.context import Context
from upslope.machine.stage import Artifact, Stage

if TYPE_CHECKING:
    from upslope.data.artifacts import Corpus


class TrainTokenizer(Stage):
    """Learns `vocab_size` tokens from about `sample_bytes` of text.

    Corpora share the sample equally; what one cannot fill goes to the others. Within a corpus a document is taken if
    the hash of its text is small enough: no seed, no order, and the same documents when the corpus grows.
    words, digits: how text is cut before merges are learnt (`tokens.tokenizer.train_bpe`).
    """

    kind: ClassVar[str] = "tokenizer"
    makes: ClassVar[str] = "Tokenizer"
    code: ClassVar[tuple[str, ...]] = ("upslope.tokens.tokenizer", "upslope.tokens.template")

    corpora: Annotated[tuple[Input, ...], Wants("Corpus"), Field(min_length=1)]
    vocab_size: Annotated[int, Field(ge=261)] = 1024
    sample_bytes: Annotated[int, Field(ge=1)] = 3_000_000
    words: Annotated[Literal["gpt2", "code"], Neutral("gpt2")] = "gpt2"
    digits: Annotated[int, Field(ge=0), Neutral(1)] = 1

    def run(self, ctx: Context) -> Artifact:
        """UsageError if the corpora are empty."""
        from upslope.data.artifacts import Corpus
        from upslope.tokens.tokenizer import train_bpe

        corpora = [ctx.open(ref, Corpus) for ref in self.corpora]
        sizes = [sum(sum(b["bytes"].to_pylist()) for b in c.batches(("bytes",))) for c in corpora]
        if not sum(sizes):
            raise UsageError(f"nothing to learn a tokenizer from: {', '.join(r.stage for r in self.corpora)} hold no text")
        texts: list[str] = []
        for corpus, rate in zip(corpora, rates(sizes, self.sample_bytes), strict=True):
            for text in sample(corpus, rate):
                if len(texts) % 64 == 0:
                    ctx.check_stop()
                texts.append(text)
        if not texts:
            raise UsageError(f"sample_bytes = {self.sample_bytes}: no document was taken of {sum(sizes):,} bytes\nway out: raise it")
        tokenizer = train_bpe(texts, self.vocab_size, ctx.out, self.words, self.digits)
        probe = texts[:: 1 + len(texts) // 256]
        ratio = sum(len(t.encode()) for t in probe) / max(1, sum(map(len, tokenizer.encode_batch(probe))))
        if tokenizer.vocab_size < self.vocab_size:
            ctx.events.alarm("the sample has too few repeated pairs for the vocabulary", got=tokenizer.vocab_size, asked=self.vocab_size)
        ctx.fact(vocab_size=tokenizer.vocab_size, documents=len(texts), bytes_per_token=ratio)
        ctx.say(f"{tokenizer.vocab_size:,} tokens, {ratio:.2f} bytes of text per token")
        return tokenizer


def rates(sizes: list[int], budget: int) -> list[float]:
    """Share of each corpus to take, so that `budget` bytes are spread as evenly as the sizes allow."""
    given = [0.0] * len(sizes)
    left, open_ = float(budget), sorted(range(len(sizes)), key=lambda i: sizes[i])
    for n, i in enumerate(open_):  # the smallest first: what it cannot use is shared by the rest
        given[i] = min(float(sizes[i]), left / (len(open_) - n))
        left -= given[i]
    return [g / s if s else 0.0 for g, s in zip(given, sizes, strict=True)]


def sample(corpus: Corpus, rate: float) -> Iterator[str]:
    """Kept texts whose hash, read as a number in [0, 1), is below `rate`, in document order."""
    for text in corpus.texts():
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, key=b"upslope.tokenizer").digest()
        if int.from_bytes(digest, "little") < rate * 2**64:
            yield text
