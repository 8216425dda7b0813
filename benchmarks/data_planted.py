"""Recall and precision of the data steps on a corpus with known contents (`tests/data/planted.py`), and the speed of the n-gram index.

    python benchmarks/data_planted.py [--scale 1.0] [--items 50000] [--repeats 3] [--json]

At scale 1: 600 real pages, in which 200 evaluation items of 600 stand (a third each word for word, with 2 to 10 % of the words edited, and
torn over lines, lists, tables or fences), 60 word problems with other numbers (which must not be found) and 90 pages with personal data;
500 near copies at Jaccard 0.82 to 0.99; 300 templated pages on three hosts. Precision is the share of what was flagged that was planted;
the rest is listed, to be looked at. Speed is text per second of processor time on the same pages, which does not travel between machines.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.data import planted
from upslope.config import Input
from upslope.data.ngrams import Index, Item


def drawn_items(texts: list[str], count: int, seed: int = 0) -> list[Item]:
    """Items of real words: every tenth is a sentence of the pages, so that there are hits; stems are shared by many."""
    r = random.Random(seed)
    words = [w for t in texts for w in re.findall(r"[A-Za-z]+", t)]
    stems = ("Which of the following is true about", "What is the best description of", "How many of the")
    found = []
    for i in range(count):
        size, at = r.randint(10, 50), r.randrange(len(words) - 60)
        body = words[at : at + size] if i % 10 == 0 else [r.choice(words) for _ in range(size)]
        options = tuple(" ".join(r.choice(words) for _ in range(r.randint(1, 6))) for _ in range(4)) if i % 2 else ()
        found.append(Item(f"i{i}", f"b{i % 20}", f"{r.choice(stems)} {' '.join(body)}?", r.choice(words), options))
    return found


def speed(texts: list[str], count: int, repeats: int) -> dict[str, Any]:
    """MB of page text a second, median and range of the repeats, against `count` items of which a tenth stand in the pages, or none."""
    raw = [t.encode() for t in texts]
    size = sum(map(len, raw)) / 1e6
    out: dict[str, Any] = {"items": count, "MB": round(size, 2)}
    for name, items in (("clean", drawn_items(texts, count)), ("dirty", drawn_items(texts, count))):
        items = [i for n, i in enumerate(items) if n % 10] if name == "clean" else items
        began = time.process_time()
        index = Index(items)
        out[f"{name}_build_s"] = round(time.process_time() - began, 2)
        index.look(raw[0])
        rates, matches = [], 0
        for _ in range(repeats):
            began = time.process_time()
            matches = sum(len(index.look(t)) for t in raw)
            rates.append(size / (time.process_time() - began))
        out[name] = {"MB/s": round(statistics.median(rates), 1), "range": [round(min(rates), 1), round(max(rates), 1)], "matches": matches}
    return out


def main() -> None:
    """Plants, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        truth = planted.plant(folder / "c", args.scale, args.seed)
        texts = list(truth.corpus.texts())
        result = {
            "documents": len(texts),
            "contamination": planted.contaminated(truth, folder / "o"),
            "contamination, with a background": planted.contaminated(truth, folder / "b", background=Input(stage="stock")),
            "copies": planted.deduplicated(truth, folder / "d"),
            "personal data": planted.personal_data(truth, folder / "p"),
            "speed": speed(texts[: len({c.of for c in truth.copies}) * 2], args.items, args.repeats),
        }
    if args.json:
        print(json.dumps(result, indent=1))
        return
    for name, values in result.items():
        if not isinstance(values, dict):
            print(f"{name}: {values}")
            continue
        print(f"\n{name}")
        for key, value in values.items():
            if isinstance(value, list):
                print(f"  {key}: {len(value)}")
                for row in value[:12]:
                    print(f"    {row}")
            else:
                print(f"  {key}: {round(value, 4) if isinstance(value, float) else value}")


if __name__ == "__main__":
    main()
