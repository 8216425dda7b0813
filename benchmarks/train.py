"""What is asked of the training engine, and what is measured: runs the other benchmarks and the proofs, and prints one table.

    python benchmarks/train.py [--quick] [--only invariance,learning] [--proofs] [--store FOLDER] [--json]

Every number comes from the JSON of a benchmark, every verdict of a proof from the exit code of pytest; only what is asked is written here.
--quick: minutes, with few steps and trials, so that figures say little. --proofs: also the tests that stand for a row (without --quick, the
slow ones too). --store: keeps the trained arms of `train_learning`, so that a run that was cut off goes on. Absolute figures do not travel
between machines; run it on a quiet one. GPU: `gpu_train.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bars import Measured, Row, Run, main
from train_data import card

RUNS = {
    "invariance": Run(quick=()),
    "learning": Run(quick=("--scale", "0.1"), stored=True),
    "flips": Run(quick=("--trials", "40", "--clean", "200")),
    "faults": Run(quick=("--kills", "3")),
    "speed": Run(quick=("--only", "1M", "--repeats", "2", "--seconds", "4", "--least", "20")),
}

PROOFS = {
    "1, 2, 4 ranks, every axis and mixes": ("curves <= 1e-9 over 20 steps", "tests/parallel"),
    "kill -9, resume, rewind": ("bit-identical", "tests/train/test_fit.py"),
    "saved states": ("damage never silent; any number of ranks", "tests/train/test_saving.py"),
    "silent corruption": ("every flip seen", "tests/train/test_integrity.py"),
    "out of memory": ("same result", "tests/train/test_oom.py"),
    "invariances": ("<= 1e-10", "tests/train/test_invariance.py"),
}


def invariance(d: Any) -> Measured:
    return Measured(f"{d['worst']['float64']:.1e} (fp32 {d['worst']['float32']:.1e})", d["worst"]["float64"] <= 1e-10)


def gap(name: str, judged: bool) -> Callable[[Any], Measured]:
    def read(d: Any) -> Measured:
        p = d["precision"]
        control = p["gaps"]["control"]
        return Measured(
            f"{100 * p['gaps'][name]:+.3f} % (control {100 * control:+.3f} %), {p['parameters'] / 1e6:.2f} M, {p['steps']:,} steps",
            p["good"] if judged else None,
        )

    return read


def muon(d: Any) -> Measured:
    m = d["muon"]
    rates = ", ".join(f"{kind} {lr:g}" for kind, lr in m["lr"].items())
    return Measured(f"{m['ratio']:.3f} ({m['low']:.3f} to {m['high']:.3f}), {len(m['seeds'])} seeds; rates {rates}")


def clip(d: Any) -> Measured:
    arms = d["clip"]["arms"]
    shown = []
    for name, arm in arms.items():
        over = "" if arm["after_over_tau"] is None else f" = {arm['after_over_tau']:.2f} tau after"
        shown.append(f"{name}: {arm['largest']:,.0f}{over}")
    worst = [arm["after_over_tau"] for name, arm in arms.items() if name.endswith(", clipped")]
    return Measured("; ".join(shown), all(w is not None and w <= 1.1 for w in worst))


def rest(d: Any) -> Measured:
    a, b = d["flips"]["at rest"], d["flips"]["fit"]
    good = a["found"] == a["injected"] and b["found"] == b["bit-identical in the end"] == b["injected"]
    shown = f"{a['found']} of {a['injected']}; in fit {b['found']} of {b['injected']}, same bits in the end {b['bit-identical in the end']}"
    return Measured(shown, good)


def twice(d: Any) -> Measured:
    rows = d["flips"]["replayed"].values()
    n, found, idle, wrong = (sum(r[k] for r in rows) for k in ("injected", "found", "without effect", "wrong in the end"))
    return Measured(f"{found} of {n - idle} that changed a bit ({idle} of {n} changed none)", found == n - idle and wrong == 0)


def once(d: Any) -> Measured:
    return Measured("; ".join(f"{kind} {r['found']}/{r['injected']}" for kind, r in d["flips"]["other steps"].items()))


def unharmed(d: Any) -> Measured:
    c = d["clean"]
    shown = f"{c['alarms of corruption']} in {c['steps']:,} (spikes skipped: {c['spikes by the skip rule']})"
    return Measured(shown, c["alarms of corruption"] == 0)


def files(d: Any) -> Measured:
    f = d["files"]
    shown = f"{f['loaded silently']} of {f['cases']} loaded silently; the older state was lost too in {f['older state lost too']}"
    return Measured(shown, not f["loaded silently"])


def memory(d: Any) -> Measured:
    m = d["memory"]
    good = m["micro_tokens"] * 4 == m["tokens"] and len(m["events"]) == 2 and m["first_loss_off"] <= 1e-6
    return Measured(f"{m['tokens']} to {m['micro_tokens']} tokens, loss off {m['first_loss_off']:.1e}, {len(m['events'])} events", good)


def kills(d: Any) -> Measured:
    k = d["kills"]
    return Measured(f"{k['kills']} kills: {'bit-identical' if k['bit-identical'] else 'DIFFERENT'}", k["bit-identical"])


def goodput(d: Any) -> Measured:
    return Measured(", ".join(f"{k} {100 * v:.0f} %" for k, v in d["kills"]["goodput"].items() if v >= 0.005))


def ratio(name: str, bar: float) -> Callable[[Any], Measured]:
    def read(d: Any) -> Measured:
        rows = [(r["case"], r["ours_over"][name]) for r in d["rows"] if name in r["ours_over"]]
        if not rows:
            return Measured("not measured: needs accelerate" if name == "HF Trainer" else "not measured")
        shown = "; ".join(f"{case} {r['median']:.3f} ({r['q1']:.3f} to {r['q3']:.3f})" for case, r in rows)
        return Measured(shown, all(r["median"] >= bar for _, r in rows))

    return read


def share(*categories: str) -> Callable[[Any], Measured]:
    def read(d: Any) -> Measured:
        rows = []
        for r in d["rows"]:
            seconds = sum(r["by_category"].get(c, {"seconds": 0.0})["seconds"] for c in categories)
            rows.append((r["case"], seconds, seconds / r["seconds"]))
        return Measured("; ".join(f"{c} {s:.2f} s = {100 * f:.2f} %" for c, s, f in rows), all(f < 0.03 for _, _, f in rows))

    return read


ROWS = (
    Row("split, pack, pad, order", "invariance", "<= 1e-10, float64, by norm", invariance),
    Row("FP8 of V3, emulated, against bf16", "learning", "gap < .25 %, control < .12 %", gap("fp8_v3 emulated", True)),
    Row("NVFP4 with layer rule, emulated", "learning", "", gap("nvfp4 emulated", False)),
    Row("Muon's tokens to AdamW's loss", "learning", "ratio with interval, >= 3 seeds", muon),
    Row("QK-Clip at 3 x the tuned rate", "learning", "max logit <= 1.1 tau", clip),
    Row("SIGKILL", "faults", "20: bit-identical", kills),
    Row("goodput of that run", "faults", "by category", goodput),
    Row("damaged checkpoint files", "faults", "100: never silently", files),
    Row("flips at rest", "flips", "100 %", rest),
    Row("flips in a replayed step", "flips", "100 %", twice),
    Row("flips in other steps", "flips", "rate by magnitude", once),
    Row("false alarms", "flips", "0 in 2,000 clean steps", unharmed),
    Row("out of memory twice", "faults", "quartered, loss <= 1e-6, shown", memory),
    Row("digests and replays", "speed", "< 3 %", share("verify", "replay")),
    Row("checkpoint stall", "speed", "< 3 %", share("checkpoint")),
    Row("logging and observers", "speed", "< 3 %", share("logging", "observers")),
    Row("against the plain loop", "speed", ">= 1.0 x", ratio("plain loop", 1.0)),
    Row("against transformers' model in it", "speed", "", ratio("plain loop, transformers", 0.0)),
    Row("against HF Trainer", "speed", ">= 1.3 x", ratio("HF Trainer", 1.3)),
)


if __name__ == "__main__":
    main(__doc__, "train", RUNS, ROWS, PROOFS, card())
