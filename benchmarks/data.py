"""What is asked of data from pages to tokens, and what is measured: runs the other benchmarks and the proofs, and prints one table.

    python benchmarks/data.py [--quick] [--only pipeline,tokens] [--proofs] [--json]

Every number comes from the JSON of a benchmark, every verdict of a proof from the exit code of pytest; only what is asked is written here.
--quick: minutes, on little data, so that figures of speed say little. --proofs: also the tests that stand for a row (without --quick, the
slow ones too). Absolute figures do not travel between machines; run it on a quiet one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bars import Measured, Row, Run, main

RUNS = {
    "extraction": Run(quick=("--only", "pages,speed", "--rounds", "2")),
    "pipeline": Run(),
    "dedup": Run(),
    "planted": Run(quick=("--scale", "0.2", "--items", "5000", "--repeats", "1")),
    "curation": Run(quick=("--rows", "500000", "--rounds", "3")),
    "tokens": Run(),
}

PROOFS = {
    "kill -9 anywhere; 1 worker, 2 workers, Slurm array, Ray": ("identical digests; a unit a worker lost", "tests/e2e/test_data_kill.py"),
    "bad inputs through the whole pipeline": ("each costs itself and is in the ledger", "tests/e2e/test_data.py"),
    "readers fuzzed": ("no crash, no hang", "tests/data/test_readers_fuzz.py"),
    "math probes and round trips": (">= .98 equivalent TeX", "tests/data/test_math.py"),
    "rules equal a plain reference": ("equal", "tests/data/test_rules.py"),
    "spans cut by a model": ("every text is a slice of its source", "tests/data/test_spans.py"),
    "shapes of training rows, broken ones": ("recognised; line, key, mend", "tests/data/test_check.py"),
    "the verbs": ("true, and the same with --json", "tests/faces/test_data_verbs.py"),
}


def least(value: float, bar: float, digits: int = 2, unit: str = "") -> Measured:
    """At least `bar`."""
    return Measured(f"{value:,.{digits}f}{unit}", value >= bar)


def ratio(row: dict[str, Any], bar: float | None = None, low: str = "low", high: str = "high") -> Measured:
    """A ratio with its range."""
    return Measured(f"{row['ratio']:.2f} ({row[low]:.2f} to {row[high]:.2f})", None if bar is None else row["ratio"] >= bar)


def peer_of_pipeline(name: str) -> Callable[[Any], Measured]:
    def read(d: Any) -> Measured:
        row = d["speed"]["contenders"][name]
        return Measured(f"{row['ratio']:.2f} ({row['ratio_range'][0]:.2f} to {row['ratio_range'][1]:.2f})", row["ratio"] >= 8)

    return read


def gold(d: Any) -> Measured:
    """The shares of all faces of documentation gold."""
    shares = {face: a / b for face, (a, b) in d["docs"]["upslope"]["all"].items() if b}
    bars = {face: 0.98 if "cell" in face or "table" in face else 0.99 for face in shares}
    return Measured(", ".join(f"{face} {share:.3f}" for face, share in shares.items()), all(shares[f] >= bars[f] for f in shares))


def article(d: Any) -> Measured:
    pages = d["pages"]
    mine, theirs = pages["upslope"]["all"], {n: p["all"] for n, p in pages.items() if n != "upslope"}
    shown = ", ".join(f"{n} {v:.3f}" for n, v in theirs.items())
    return Measured(f"{mine:.3f} ({shown})", mine >= 0.95 and mine > max(theirs.values(), default=0))


def of_crawl(d: Any) -> dict[str, Any]:
    """The speeds on pages of the crawl."""
    found: dict[str, Any] = next(rows for name, rows in d["speed"].items() if "crawl" in name)
    return found


def memory(d: Any) -> Measured:
    few, many = d["memory"][0], d["memory"][-1]
    grown = many["peak_mb"] / few["peak_mb"]
    return Measured(f"{few['pages']:,} pages {few['peak_mb']:.0f} MB, {many['pages']:,} pages {many['peak_mb']:.0f} MB", grown < 1.25)


def bias(d: Any) -> Measured:
    worst = max(abs(row["bias_z"]) for row in d["bias"])
    words = sorted({row["words"] for row in d["bias"]})
    return Measured(f"at most {worst:.1f} standard errors, {words[0]:,} to {words[-1]:,} words", worst < 4)


def pairs(d: Any) -> Measured:
    last = d["recall"][-1]
    return Measured(f"recall {last['recall']:.4f}, precision {last['precision']:.4f}", last["recall"] >= 0.99 and last["precision"] >= 0.95)


def packing(d: Any) -> Measured:
    rows = [r for r in d["packing"] if r["packing"] == "best_fit"]
    shown = "; ".join(f"{r['of']} at {r['length']:,}: {r['fill']:.3f}, cut {r['cut']:.3f}" for r in rows)
    return Measured(shown, min(r["fill"] for r in rows) >= 0.98)


def injection(d: Any) -> Measured:
    found = d["injection"]
    forged = found["forged"] + found["forged_one_by_one"] + found["forged_in_shards"]
    return Measured(f"{forged} of {found['texts']:,} (plain tokenizers: {found['forged_by_tokenizers']:,})", forged == 0)


def samples(d: Any) -> Measured:
    speeds = {n: {how: row["rate"] / 1e6 for how, row in rows.items()} for n, rows in d["sampling"].items() if n.isdigit()}
    return Measured("; ".join(f"rows of {n}: {r['concat']:.0f} M, best fit {r['best_fit']:.0f} M" for n, r in speeds.items()))


def personal(d: Any) -> Measured:
    return Measured("recall {recall:.3f}, precision {precision:.3f}".format(**d["personal data"]))


def trained(d: Any) -> Measured:
    return Measured("{vocabulary:,} tokens, {megabytes:.1f} MB, {seconds:.1f} s".format(**d["training"]))


def contamination(d: Any) -> Measured:
    found = d["contamination"]
    recall = found["recall"]
    shown = ", ".join(f"{how} {share:.3f}" for how, share in recall.items())
    return Measured(f"recall {shown}; precision {found['precision']:.3f}", recall["exact"] >= 0.95 and recall["edited"] >= 0.8)


def planted_copies(d: Any) -> Measured:
    found = d["copies"]
    shown = f"recall {found['recall']:.3f}, precision {found['precision']:.3f}; templates {found['template_recall']:.3f}, "
    return Measured(shown + f"precision {found['template_precision']:.3f}", found["recall"] >= 0.98)


ROWS = (
    Row("documentation gold", "extraction", "code, indentation, TeX >= .99, cells >= .98", gold),
    Row("main content, macro F1", "extraction", ">= .95, above resiliparse", article),
    Row("extraction, one core, crawl", "extraction", ">= 450 pages/s", lambda d: least(of_crawl(d)["upslope"]["pages/s"], 450, 0)),
    Row(
        "extraction against trafilatura", "extraction", ">= 10 x",
        lambda d: ratio(of_crawl(d)["trafilatura"], 10, "ratio min", "ratio max"),
    ),
    Row("extraction against resiliparse", "extraction", "", lambda d: ratio(of_crawl(d)["resiliparse"], None, "ratio min", "ratio max")),
    Row("rules, documents of 11 KB", "pipeline", ">= 1,500 /s", lambda d: least(d["rules"]["documents_per_second"], 1500, 0)),
    Row(
        "WARC to labelled shards", "pipeline", ">= 200 pages/s",
        lambda d: least(d["speed"]["contenders"]["upslope"]["pages_per_second"], 200, 0),
    ),
    Row("against datatrove, defaults", "pipeline", ">= 8 x", peer_of_pipeline("datatrove, defaults")),
    Row("against datatrove, fastest", "pipeline", ">= 8 x", peer_of_pipeline("datatrove, fast")),
    Row("peak memory", "pipeline", "flat", memory),
    Row("MinHash", "dedup", ">= 60 MB/s", lambda d: least(d["speed"]["contenders"]["upslope"]["mb_s"], 60, 0)),
    Row("MinHash against rensa", "dedup", "", lambda d: ratio(d["speed"]["contenders"]["rensa R + Python shingles"])),
    Row("MinHash against datasketch", "dedup", "", lambda d: ratio(d["speed"]["contenders"]["datasketch + Python shingles"])),
    Row("MinHash against datatrove", "dedup", "", lambda d: ratio(d["speed"]["contenders"]["datatrove signature step"])),
    Row("MinHash bias", "dedup", "none, 50 to 2,000 words", bias),
    Row("verified pairs at J = .8", "dedup", "recall >= .99, precision >= .95", pairs),
    Row("planted evaluation items", "planted", "recall >= .95 exact, >= .80 edited", contamination),
    Row("planted copies", "planted", "recall >= .98", planted_copies),
    Row("planted personal data", "planted", "", personal),
    Row(
        "curation run again", "curation", "10 M rows < 2 s",
        lambda d: Measured(f"{d['rows'] / 1e6:g} M rows {d['median']:.2f} s", d["rows_per_second"] >= 5e6),
    ),
    Row("encoding", "tokens", "", lambda d: Measured(f"{d['encoding']['mb_per_second']['to shards']['rate']:.2f} MB/s to shards")),
    Row("encoding against tokenizers", "tokens", "", lambda d: ratio(d["encoding"]["mb_per_second"]["encode"])),
    Row("BPE training", "tokens", "", trained),
    Row("Stream.sample, tokens/s", "tokens", "", samples),
    Row("packing, best fit", "tokens", "fill >= .98", packing),
    Row("special tokens forged by text", "tokens", "0", injection),
)  # fmt: skip


if __name__ == "__main__":
    main(__doc__, "data", RUNS, ROWS, PROOFS)
