"""Near-duplicate detection beside datasketch, rensa and datatrove: speed, bias, recall and precision, memory.

Speed: MB of text a second on one core, from text to 256-hash signatures over runs of five words, all contenders in turn, several rounds;
the ratio is of medians, with its range over the rounds. Python shingles are `" ".join` of five lower-case words of `str.split`, as the
peers' documentation makes them; "flat" gives rensa our shingle hashes, so that only the hashing is compared. Absolute figures do not
travel between machines; run it on a quiet one.

    python benchmarks/data_dedup.py [--quick] [--rounds 5] [--json]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from upslope.data import hashing, shards
from upslope.data.links import MinHash, components
from upslope.data.links.exact import Exact

HASHES, GRAM = 256, 5


def vocabulary(generator: np.random.Generator, size: int = 20_000) -> list[str]:
    """Words of lower-case letters, short ones first, as in natural text."""
    lengths = np.clip(generator.poisson(2 + 5 * np.linspace(0.1, 1, size)), 1, 14)
    return ["".join(map(chr, generator.integers(97, 123, n))) for n in lengths]


def page(generator: np.random.Generator, words: list[str], count: int) -> list[str]:
    """Words drawn with Zipf's law."""
    return [words[i] for i in (len(words) ** generator.random(count)).astype(int) - 1]


# ── speed ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def shingles(text: str) -> list[str]:
    """Runs of five words, as a user of the peers writes it."""
    words = text.lower().split()
    return [" ".join(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)]


def contenders(texts: list[str]) -> dict[str, Callable[[], Any]]:
    """Name → the work on all texts."""
    link, array = MinHash(), pa.array(texts)
    batch = shards.rows_to_batch([{"text": t} for t in texts], shards.TEXT)
    work: dict[str, Callable[[], Any]] = {
        "upslope": lambda: link.signatures(array),
        "upslope, with keys": lambda: link.sketch(batch),
        "upslope exact": lambda: Exact().sketch(batch),
    }
    items = [hashing.shingles(hashing.words(np.frombuffer(t.encode(), np.uint8)), GRAM) for t in texts]
    flat, offsets = np.concatenate(items), np.cumsum([0, *map(len, items)]).astype(np.uint64)
    a, b = link.hashes()
    work["upslope, shingles given"] = lambda: [hashing.minhash(x, a, b) for x in items]
    try:
        from rensa import CMinHash, RMinHash

        work["rensa R, shingles given"] = lambda: RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, HASHES, 42)
        work["rensa R + Python shingles"] = lambda: RMinHash.digest_matrix_from_token_sets([shingles(t) for t in texts], HASHES, 42)

        def permuted() -> None:
            for t in texts:
                m = CMinHash(num_perm=HASHES, seed=42)
                m.update(shingles(t))
                m.digest()

        work["rensa C + Python shingles"] = permuted
    except ImportError:
        pass
    try:
        from datasketch import MinHash as Peer

        def sketched() -> None:
            for t in texts:
                Peer(num_perm=HASHES).update_batch([s.encode() for s in shingles(t)])

        work["datasketch + Python shingles"] = sketched
    except ImportError:
        pass
    step = datatrove_step()
    if step is not None:
        work["datatrove signature step"] = lambda: [step.get_signature(step.get_shingles(t)) for t in texts]
    return work


def datatrove_step() -> Any:
    """datatrove's signature step with 32 × 8 hashes, its word tokenizer replaced by `str.split` (which favours it), or None."""
    try:
        import xxhash
        from datatrove.pipeline.dedup import minhash
    except ImportError:
        return None

    class Split:
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

    before = minhash.load_word_tokenizer
    minhash.load_word_tokenizer = lambda language: Split()
    try:
        config = minhash.MinhashConfig(n_grams=GRAM, num_buckets=32, hashes_per_bucket=8)
        step = minhash.MinhashDedupSignature(tempfile.gettempdir(), config)
        step._hash_func = lambda text: xxhash.xxh64_intdigest(text.encode())  # its own fails on the str that it is given, with xxhash 4
        return step
    except (ImportError, TypeError):
        return None
    finally:
        minhash.load_word_tokenizer = before


def speed(rounds: int, docs: int) -> dict[str, Any]:
    """Medians in MB/s, and the ratio of ours to each."""
    generator = np.random.default_rng(0)
    words = vocabulary(generator)
    texts = [" ".join(page(generator, words, 1900)) for _ in range(docs)]
    size = sum(map(len, texts)) / 1e6
    work = contenders(texts)
    times: dict[str, list[float]] = {}
    for name, run in work.items():
        run()
        times[name] = []
    for _ in range(rounds):
        for name, run in work.items():
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    out = {}
    for name, found in times.items():
        base = "upslope, shingles given" if "given" in name else "upslope"
        ratios = sorted(t / o for t, o in zip(found, times[base]))
        ratio = statistics.median(found) / statistics.median(times[base])
        out[name] = {"mb_s": size / statistics.median(found), "ratio": ratio, "low": ratios[0], "high": ratios[-1]}
    return {"megabytes": size, "documents": docs, "rounds": rounds, "contenders": out}


# ── quality ───────────────────────────────────────────────────────────────────────────────────────────────────────


def planted(generator: np.random.Generator, words: int, target: float, serial: int) -> tuple[str, str, float]:
    """Two texts of `words` distinct words, and the exact Jaccard similarity of their runs of five, near `target`."""
    one = [f"t{serial}w{i}" for i in range(words)]
    two, total = list(one), words - GRAM + 1
    order = generator.permutation(words).tolist()
    wanted = total * (1 - target) / (1 + target)  # runs that differ, in each
    hit: set[int] = set()
    for i in order:
        more = hit | set(range(max(0, i - GRAM + 1), min(total, i + 1)))
        if len(more) > wanted + GRAM / 2:
            continue
        hit, two[i] = more, f"x{serial}w{i}"
        if len(hit) >= wanted - 1:
            break
    return " ".join(one), " ".join(two), (total - len(hit)) / (total + len(hit))


def bias(pairs: int) -> list[dict[str, float]]:
    """RMSE over theory, and mean error in standard errors, by length and similarity."""
    generator, out, link = np.random.default_rng(1), [], MinHash()
    for words in (50, 100, 300, 600, 2000):
        for target in (0.5, 0.8, 0.9):
            found = [planted(generator, words, target, i + 10_000 * words + round(1e7 * target)) for i in range(pairs)]
            left, right = (link.signatures(pa.array([f[i] for f in found]))[1] for i in (0, 1))
            true = np.array([f[2] for f in found])
            errors = (left == right).mean(axis=1) - true
            theory = float(np.sqrt((true * (1 - true) / HASHES).mean()))
            rmse = float(np.sqrt((errors**2).mean()))
            z = float(errors.mean()) / theory * pairs**0.5
            out.append({"words": words, "jaccard": target, "theory": theory, "rmse": rmse, "ratio": rmse / theory, "bias_z": z})
    return out


def recall(pairs: int) -> list[dict[str, float]]:
    """Share of planted pairs that become candidates (and by theory), that are linked, and of linked ones that are true copies (≥ 0.8)."""
    generator, out, link = np.random.default_rng(2), [], MinHash()
    tally = np.zeros(3, int)
    for target in (0.5, 0.6, 0.7, 0.75, 0.79, 0.81, 0.85, 0.9, 0.95):
        found = [planted(generator, 400, target, i + round(1e6 * target)) for i in range(pairs)]
        one, two = (link.sketch(shards.rows_to_batch([{"text": f[i]} for f in found], shards.TEXT)) for i in (0, 1))
        shared = (one.keys.reshape(pairs, -1) == two.keys.reshape(pairs, -1)).any(axis=1)
        kept = shared & (link.estimate(one.body, two.body) >= link.least - link.slack)
        texts = {2 * i + j: text for i, f in enumerate(found) for j, text in enumerate(f[:2])}
        measured = link.verify(texts, np.arange(2 * pairs, dtype=np.uint64).reshape(-1, 2))
        linked = kept & (measured >= np.float32(link.least))
        true = np.array([f[2] for f in found])
        theory = float((1 - (1 - true**link.rows) ** link.bands).mean())
        copies = true >= link.least
        tally += [int((linked & copies).sum()), int(copies.sum()), int(linked.sum())]
        out.append({"jaccard": float(true.mean()), "candidates": float(shared.mean()), "theory": theory, "linked": float(linked.mean())})
    return [*out, {"recall": tally[0] / tally[1], "precision": tally[0] / tally[2]}]


# ── graph and memory ──────────────────────────────────────────────────────────────────────────────────────────────


def graph_speed(edges: int) -> float:
    """Edges a second of union-find."""
    a, b = np.random.default_rng(3).integers(0, edges, (2, edges))
    components(2, a[:0], b[:0])
    began = time.perf_counter()
    components(edges, a, b)
    return edges / (time.perf_counter() - began)


CHILD = """
import resource, sys
from pathlib import Path
from upslope.config import Input
from upslope.data.artifacts import Corpus
from upslope.data.links import graph
from upslope.machine.context import Context
from upslope.stages.dedup import Dedup
graph.KEYS = int(sys.argv[2])
folder = Path(sys.argv[1])
made = Dedup(corpus=Input(stage="docs")).run(Context.scratch(folder / "made", docs=Corpus(folder / "corpus")))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, made.edges().num_rows)
"""


def memory(sizes: tuple[int, ...], keys: int) -> list[dict[str, float]]:
    """Peak memory (MB) of a whole dedup stage by the number of documents; a tenth are near copies. keys: at once."""
    from upslope.data.artifacts import Corpus

    out = []
    for docs in sizes:
        generator = np.random.default_rng(4)
        words = vocabulary(generator)
        with tempfile.TemporaryDirectory() as name:
            folder, files = Path(name), []
            for start in range(0, docs, 2048):
                pages = [page(generator, words, 100) for _ in range(min(2048, docs - start))]
                for i in range(0, len(pages) - 1, 10):
                    pages[i + 1] = [*pages[i][:97], "an", "other", "end"]
                rows = [{"url": "", "source": "s", "licence": "", "text": " ".join(p), "bytes": 1} for p in pages]
                files.append(folder / "corpus" / f"{start:07d}.parquet")
                shards.write(files[-1], shards.rows_to_table(rows, shards.TEXT))
            Corpus.create(folder / "corpus", files, [])
            began = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", CHILD, name, str(keys)], capture_output=True, text=True, check=True)
            peak, edges = map(float, done.stdout.split()[-2:])
            out.append({"documents": docs, "peak_mb": peak, "edges": edges, "seconds": time.perf_counter() - began})
    return out


def main() -> None:
    """Runs everything and prints tables, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less than a minute: fewer documents and pairs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = "1"  # rensa's
    peers = ("rensa", "datasketch", "datatrove", "numba", "numpy", "pyarrow")
    result: dict[str, Any] = {
        "versions": {p: importlib.metadata.version(p) for p in peers if importlib.util.find_spec(p)},
        "speed": speed(args.rounds, 40 if args.quick else 300),
        "bias": bias(100 if args.quick else 1000),
        "recall": recall(200 if args.quick else 1000),
        "union_edges_per_second": graph_speed(2_000_000 if args.quick else 20_000_000),
        "memory": memory((8_000, 32_000) if args.quick else (100_000, 400_000), 1 << 16 if args.quick else 1 << 20),
    }
    if args.json:
        print(json.dumps(result, indent=1))
        return
    print("versions:", ", ".join(f"{n} {v}" for n, v in result["versions"].items()))
    print(f"\n{'MB/s on one core':34}{'MB/s':>8}{'ours is faster by':>20}")
    for name, row in result["speed"]["contenders"].items():
        print(f"{name:34}{row['mb_s']:8.1f}{row['ratio']:12.2f} ({row['low']:.2f} to {row['high']:.2f})")
    print("\nwords   J    RMSE/theory   bias (standard errors)")
    for row in result["bias"]:
        print(f"{row['words']:5}  {row['jaccard']:.1f}  {row['ratio']:10.2f}  {row['bias_z']:12.1f}")
    print("\n    J   candidates  by theory  linked")
    for row in result["recall"][:-1]:
        print(f"{row['jaccard']:.3f}  {row['candidates']:9.3f}  {row['theory']:9.3f}  {row['linked']:6.3f}")
    print(f"recall {result['recall'][-1]['recall']:.4f}, precision {result['recall'][-1]['precision']:.4f} at J >= 0.8")
    print(f"\nunion-find: {result['union_edges_per_second'] / 1e6:.1f} M edges/s")
    for row in result["memory"]:
        print(f"{row['documents']:9,} documents: peak {row['peak_mb']:.0f} MB, {row['edges']:,.0f} edges, {row['seconds']:.1f} s")


if __name__ == "__main__":
    main()
