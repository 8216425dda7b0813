"""Tokens: encoding beside plain `tokenizers`, training a vocabulary, drawing samples beside plain memory-mapped reads, packing, injection.

    python benchmarks/data_tokens.py [--quick] [--vocab 32768] [--rounds 5] [--json]

Text is what the extractor makes of the shipped crawl. Encoding: MB of UTF-8 a second on one thread; `encode` gives lists of ids, `to
shards` also writes them with their index, `tokenizers` is `encode_batch_fast` of the same file on the same batches. Samples: tokens a
second of `Stream.sample`, beside rows of the same length cut from the memory-mapped ids in drawn order and made int32, which says nothing
of documents. Contenders run in turn; a ratio is to the plain one, median and range over the rounds. Packing: how full rows are, and which
share of the documents is cut, on the crawl and on a million documents of lognormal length. Absolute figures do not travel between machines.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import numpy as np  # noqa: E402
import tokenizers  # noqa: E402
from data_pipeline import CRAWL, archive  # noqa: E402

from upslope.config import Input, Source  # noqa: E402
from upslope.data.artifacts import Corpus, Pages  # noqa: E402
from upslope.machine.context import Context  # noqa: E402
from upslope.stages.extract import Extract  # noqa: E402
from upslope.stages.ingest import Ingest  # noqa: E402
from upslope.tokens.mixture import Mixture  # noqa: E402
from upslope.tokens.packing import best_fit  # noqa: E402
from upslope.tokens.shards import ShardWriter, TokenShards  # noqa: E402
from upslope.tokens.stream import Packing, Stream  # noqa: E402
from upslope.tokens.tokenizer import Tokenizer, train_bpe  # noqa: E402

BATCH = 256
LENGTHS = (2048, 8192)
DOCUMENTS, MU, SIGMA = 1_000_000, 6.3, 1.2
Texts = Mapping[str, Sequence[str]]


def crawl_texts(folder: Path, pages: int) -> dict[str, list[str]]:
    """Texts of pages of the crawl by source."""
    file = CRAWL
    if pages:
        file = folder / "few.warc.gz"
        archive(file, pages)
    found = Ingest(sources=(Source(uri=str(file)),)).run(Context.scratch(folder / "pages"))
    assert isinstance(found, Pages)
    corpus = Extract(pages=Input(stage="pages")).run(Context.scratch(folder / "text", pages=found))
    assert isinstance(corpus, Corpus)
    return {source: [t for t in corpus.texts(source) if t] for source in corpus.sources()}


def in_turn(work: Mapping[str, Callable[[], float]], rounds: int, base: str) -> dict[str, dict[str, float]]:
    """Amount a second of each (what it returns over its time): median, and the ratio to `base` with its range."""
    rates: dict[str, list[float]] = {name: [] for name in work}
    names = list(work)
    for name in names:
        work[name]()
    for number in range(rounds):
        for name in names if number % 2 == 0 else names[::-1]:
            began = time.perf_counter()
            amount = work[name]()
            rates[name].append(amount / (time.perf_counter() - began))
    out = {}
    for name, found in rates.items():
        ratios = [a / b for a, b in zip(found, rates[base])]
        out[name] = {"rate": statistics.median(found), "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    return out


def encoding(texts: Texts, tokenizer: Tokenizer, folder: Path, rounds: int) -> dict[str, Any]:
    """MB a second of each way to encode, against plain `tokenizers`."""
    raw = tokenizers.Tokenizer.from_file(str(tokenizer.path / "tokenizer.json"))
    every = [t for texts_of in texts.values() for t in texts_of]
    batches = [every[i : i + BATCH] for i in range(0, len(every), BATCH)]
    size = sum(len(t.encode()) for t in every) / 1e6
    number = 0

    def plain() -> float:
        for batch in batches:
            for e in raw.encode_batch_fast(batch, add_special_tokens=False):
                _ = e.ids
        return size

    def encode() -> float:
        for batch in batches:
            tokenizer.encode_batch(batch)
        return size

    def to_shards() -> float:
        nonlocal number
        number += 1
        writer = ShardWriter(folder / f"shards-{number}", tokenizer)
        for i, batch in enumerate(batches):
            writer.add("all", range(i * BATCH, i * BATCH + len(batch)), batch)
        writer.close()
        return size

    found = in_turn({"tokenizers": plain, "encode": encode, "to shards": to_shards}, rounds, "tokenizers")
    return {"megabytes": size, "documents": len(every), "rounds": rounds, "mb_per_second": found}


def sampling(shards: TokenShards, rounds: int, samples: int) -> dict[str, Any]:
    """Tokens a second of samples, of a stream over all sources and of plain reads."""
    sources = [s for s in shards.sources() if len(shards.tokens(s))]
    out: dict[str, Any] = {"samples": samples, "rounds": rounds}
    for length in LENGTHS:
        mixture = Mixture.write(shards.path / f"mixture-{length}", dict.fromkeys(sources, 1.0), samples * length)
        arrays = [shards.tokens(s) for s in sources if len(shards.tokens(s)) > length]
        order = np.random.default_rng(0).integers(0, 1 << 40, samples)

        def drawn(packing: Packing, length: int = length, mixture: Mixture = mixture) -> Callable[[], float]:
            stream = Stream([shards], mixture, length, 0, total=samples, packing=packing)
            return lambda: float(sum(len(stream.sample(k).ids) for k in range(samples)))

        def plain(length: int = length, arrays: Sequence[Any] = arrays, order: Any = order) -> float:
            total = 0
            for k, at in enumerate(order.tolist()):
                array = arrays[k % len(arrays)]
                start = at % (len(array) - length)
                total += len(np.asarray(array[start : start + length], np.int32))
            return float(total)

        work = {"memory map": plain, "concat": drawn("concat"), "best_fit": drawn("best_fit")}
        found = in_turn(work, rounds, "memory map")
        out[str(length)] = found
    return out


def packing(shards: TokenShards, documents: int) -> list[dict[str, Any]]:
    """Fill and share of cut documents for every length and both ways."""
    rng = np.random.default_rng(0)
    drawn = np.maximum(1, rng.lognormal(MU, SIGMA, documents).astype(np.int64))
    crawl = np.concatenate([np.diff(shards.offsets(s)) for s in shards.sources()])
    rows = []
    for name, lengths in (("crawl", crawl[crawl > 0]), (f"lognormal({MU}, {SIGMA})", drawn)):
        for length in LENGTHS:
            began = time.perf_counter()
            plan = best_fit(lengths, length)
            took = time.perf_counter() - began
            assert int(plan.tokens().sum()) == int(lengths.sum()) and int(plan.tokens().max()) <= length
            ends = np.cumsum(lengths)
            cut = float(((ends - lengths) // length != (ends - 1) // length).mean())
            over = float((lengths > length).mean())
            base = {"documents": len(lengths), "of": name, "length": length, "longer_than_a_row": over}
            rows.append({**base, "packing": "concat", "fill": 1.0, "cut": cut})
            fill = float(lengths.sum() / (plan.rows * length))
            rows.append({**base, "packing": "best_fit", "fill": fill, "cut": plan.cut() / len(lengths), "seconds": took})
    return rows


def injection(tokenizer: Tokenizer, folder: Path, count: int) -> dict[str, Any]:
    """Texts that hold the special tokens, whole, in pieces and within words: ids that they forge, here and with plain `tokenizers`."""
    r = random.Random(0)
    special = list(tokenizer.special)
    bits = [*special, *(s[i:] for s in special for i in (1, 2)), *(s[:-1] for s in special), " ", "\n", "a", "user\n", "é", "<", "|", "<|"]
    texts = [*special, *("".join(r.choice(bits) for _ in range(r.randint(1, 12))) for _ in range(count))]
    raw = tokenizers.Tokenizer.from_file(str(tokenizer.path / "tokenizer.json"))
    forbidden = set(tokenizer.special.values())
    ids = tokenizer.encode_batch(texts)
    shards = TokenShards.write(folder, tokenizer, {"all": texts})
    tokens, offsets = np.asarray(shards.tokens("all")), shards.offsets("all")
    return {
        "texts": len(texts),
        "forged": sum(bool(forbidden & set(i)) for i in ids),
        "forged_one_by_one": sum(bool(forbidden & set(tokenizer.encode(t))) for t in texts),
        "forged_in_shards": int(np.isin(tokens, list(forbidden)).sum()) - len(texts),
        "ends_in_place": bool((tokens[offsets[1:] - 1] == tokenizer.eos).all()),
        "round_trips": sum(tokenizer.decode(i) == t for i, t in zip(ids, texts)),
        "forged_by_tokenizers": sum(bool(forbidden & set(raw.encode(t, add_special_tokens=False).ids)) for t in texts),
    }


def main() -> None:
    """Measures, prints tables or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the crawl, a vocabulary of 4,096, two rounds")
    parser.add_argument("--vocab", type=int, default=32768)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    vocab, rounds = (4096, 2) if args.quick else (args.vocab, args.rounds)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = crawl_texts(folder, 190 if args.quick else 0)
        every = [t for texts_of in texts.values() for t in texts_of]
        began = time.perf_counter()
        tokenizer = train_bpe(every, vocab, folder / "tokenizer", "code")
        took = time.perf_counter() - began
        shards = TokenShards.write(folder / "shards", tokenizer, texts)
        counts = [shards.counts(s) for s in shards.sources()]
        result: dict[str, Any] = {
            "versions": {x: importlib.metadata.version(x) for x in ("tokenizers", "numpy")},
            "load": os.getloadavg()[0],
            "training": {
                "megabytes": sum(len(t.encode()) for t in every) / 1e6,
                "vocabulary": tokenizer.vocab_size,
                "seconds": took,
                "bytes_per_token": sum(c.bytes for c in counts) / sum(c.tokens for c in counts),
            },
            "encoding": encoding(texts, tokenizer, folder, rounds),
            "sampling": sampling(shards, rounds, 500 if args.quick else 4000),
            "packing": packing(shards, 100_000 if args.quick else DOCUMENTS),
            "injection": injection(tokenizer, folder / "forged", 500 if args.quick else 5000),
        }
    print(json.dumps(result, indent=1) if args.json else render(result))


def render(result: Mapping[str, Any]) -> str:
    """The tables."""
    training, encoded = result["training"], result["encoding"]
    lines = [
        ", ".join(f"{n} {v}" for n, v in result["versions"].items()),
        f"\nBPE: {training['vocabulary']:,} tokens from {training['megabytes']:.1f} MB in {training['seconds']:.1f} s on one thread, "
        f"{training['bytes_per_token']:.2f} bytes per token",
        f"\n{'one thread':14}{'MB/s':>8}   against tokenizers",
    ]
    for name, row in encoded["mb_per_second"].items():
        lines.append(f"{name:14}{row['rate']:8.2f}   {row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})")
    for length in LENGTHS:
        lines.append(f"\n{f'rows of {length:,}':14}{'M tokens/s':>12}   against a memory map")
        for name, row in result["sampling"][str(length)].items():
            lines.append(f"{name:14}{row['rate'] / 1e6:12.1f}   {row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})")
    lines.append(f"\n{'packing':44}{'fill':>9}{'cut':>9}{'longer':>9}")
    for row in result["packing"]:
        what = f"{row['documents']:,} documents, {row['of']}, {row['length']:,}, {row['packing']}"
        lines.append(f"{what:60}{row['fill']:9.4f}{row['cut']:9.4f}{row['longer_than_a_row']:9.4f}")
    found = result["injection"]
    lines.append(
        f"\n{found['texts']:,} texts with special tokens in them: {found['forged']} forged one, {found['round_trips']:,} come back whole "
        f"(plain tokenizers: {found['forged_by_tokenizers']:,} forged)"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
