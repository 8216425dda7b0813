"""How long a decision over many labelled rows takes: `curation.decide` on a corpus whose texts are empty and whose labels are drawn.

    python benchmarks/data_curation.py [--rows 10000000] [--folder DIR] [--rounds 5] [--json]

Reads every label from disk each time, puts every rule to every row, and counts by language, kind and source, as the stage does.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from upslope.data import shards
from upslope.data.artifacts import Corpus
from upslope.data.curation import Rule, decide, write
from upslope.machine.files import digest_file

SHARD = 65_536
RULES = (
    Rule(name="language", keep="langid.lang in ('en', 'de', 'fr') and langid.score >= 0.65"),
    Rule(name="words", keep="gopher.words between 50 and 100000"),
    Rule(name="word length", keep="gopher.mean_word_length between 3 and 10"),
    Rule(name="symbols", keep="gopher.symbol_ratio <= 0.1"),
    Rule(name="repeated lines", keep="repetition.line_dup_bytes <= 0.2"),
    Rule(name="quality", keep="quality.score >= 0.2"),
    Rule(name="contamination", keep="overlap.coverage < 0.4"),
)
LANGS = np.array(["en", "de", "fr", "ja", "zh", "ru"])


def build(folder: Path, rows: int) -> Corpus:
    """A corpus of `rows` documents with drawn labels in five sidecars."""
    rng = np.random.default_rng(0)
    texts, sides = [], {n: [] for n in ("langid", "gopher", "repetition", "quality", "overlap")}
    empty = {f.name: None for f in shards.TEXT}
    for number in range(-(-rows // SHARD)):
        n = min(SHARD, rows - number * SHARD)
        size = rng.lognormal(8, 1, n).astype(np.int32)
        code = np.where(rng.random(n) < 0.2, size // 2, 0).astype(np.int32)
        columns = {**empty, "source": pa.array(LANGS[rng.integers(0, 3, n)]), "bytes": size, "code_bytes": code, "text": pa.array([""] * n)}
        table = pa.table(
            [pa.array(columns[f.name], f.type) if columns[f.name] is not None else pa.nulls(n, f.type) for f in shards.TEXT],
            schema=shards.TEXT,
        )
        file = folder / "text" / f"{number:05d}.parquet"
        shards.write(file, table)
        texts.append(file)
        labels = {
            "langid": {"lang": LANGS[rng.choice(6, n, p=[0.5, 0.1, 0.1, 0.1, 0.1, 0.1])], "score": rng.random(n, np.float32)},
            "gopher": {
                "words": rng.lognormal(6, 1.5, n).astype(np.int32),
                "mean_word_length": rng.normal(5, 1, n).astype(np.float32),
                "symbol_ratio": rng.exponential(0.03, n).astype(np.float32),
            },
            "repetition": {"line_dup_bytes": rng.exponential(0.05, n).astype(np.float32)},
            "quality": {"score": rng.random(n, np.float32)},
            "overlap": {"coverage": rng.exponential(0.05, n).astype(np.float32)},
        }
        for name, fields in labels.items():
            side = folder / name / f"{number:05d}.parquet"
            shards.write(side, pa.table({k: pa.array(v) for k, v in fields.items()}), {"text": digest_file(file)})
            sides[name].append(
                (side, {k: str(pa.array(v).type).replace("float", "float32").replace("float3232", "float32") for k, v in fields.items()})
            )
    base = Corpus.create(folder, texts, [{"step": "text", "docs": rows, "bytes": 0}])
    return Corpus.with_columns(base, folder, [(n, 1, found[0][1], [f for f, _ in found]) for n, found in sides.items()])


def main() -> None:
    """Builds (or reuses) the corpus and times decisions, each with another threshold."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=10_000_000)
    arguments.add_argument("--folder", type=Path, default=None)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--json", action="store_true")
    given = arguments.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="upslope-curation-"))
    corpus = Corpus.load(folder) if (folder / "corpus.json").is_file() else build(folder, given.rows)
    seconds, kept = [], []
    for i in range(given.rounds):
        rules = [*RULES[:-2], Rule(name="quality", keep=f"quality.score >= {0.1 + 0.05 * i}"), RULES[-1]]
        began = time.perf_counter()
        keep = decide(Corpus.load(folder), rules)
        write(corpus, folder / "decided", rules, "doc", keep)
        seconds.append(time.perf_counter() - began)
        kept.append(keep.funnel["docs"])
    result = {
        "rows": corpus.rows,
        "shards": len(corpus.files()),
        "rules": len(RULES),
        "seconds": [round(s, 3) for s in seconds],
        "median": round(float(np.median(seconds)), 3),
        "rows_per_second": round(corpus.rows / float(np.median(seconds))),
        "kept": kept,
        "versions": {"duckdb": duckdb.__version__, "pyarrow": pa.__version__, "python": platform.python_version()},
    }
    print(json.dumps(result, indent=1) if given.json else "\n".join(f"{k}: {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
