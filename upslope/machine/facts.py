"""What a manifest says of how an artifact came about."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import time
from pathlib import Path
from typing import Any

from upslope.config import dump
from upslope.machine.context import Context
from upslope.machine.identity import advisory
from upslope.machine.stage import Stage


def gathered(
    job: dict[str, Any], fp: str, stage: Stage, context: Context, rows: list[dict[str, Any]], began: float, made: dict[str, Any]
) -> dict[str, Any]:
    """The fields of a manifest that do not follow from its files. rows: the events of all attempts; began: unix time of this one;
    made: its `bits`, taken while its ranks were together."""
    starts = [r["t"] for r in rows if r["kind"] == "start"]
    # time of earlier attempts counts up to their last sign of life
    earlier = sum(max((r["t"] for r in rows if s <= r["t"] < n), default=s) - s for s, n in zip(starts[:-1], starts[1:]))
    facts = dict(context.facts)
    return {
        "fp": fp,
        "kind": job["kind"],
        "version": type(stage).version,
        "config": _public(dump(stage)),
        "inputs": {field: [i["fp"] for i in items] for field, items in job["inputs"].items()},
        "seed": stage.seed,
        "headline": context.headline,
        "flops": float(facts.pop("flops", 0.0)),
        "licences": sorted(facts.pop("licences", [])),
        "facts": facts,
        "bits": made,
        "code": advisory(type(stage).code),
        "seconds": round(time.time() - began + earlier, 2),
        "attempts": len(starts),
    }


def _public(value: Any) -> Any:
    """A config as a manifest shows it: places of outside data and code shrink to their names."""
    if isinstance(value, dict):
        out = {k: _public(v) for k, v in value.items()}
        if isinstance(out.get("uri"), str) and "digest" in out and not out["uri"].startswith("package:"):
            out["uri"] = Path(out["uri"]).name
        if isinstance(out.get("kind"), str) and ".py:" in out["kind"]:
            out["kind"] = out["kind"].rpartition("/")[2]
        return out
    return [_public(v) for v in value] if isinstance(value, list) else value


def bits(world: int = 1) -> dict[str, Any]:
    """What the exact bits of a result depend on besides the identity; world: ranks that made it. device: "cuda" once CUDA was used."""
    found: dict[str, Any] = {"python": platform.python_version(), "machine": platform.machine(), "world": world, "device": "cpu"}
    torch = sys.modules.get("torch")
    if torch is not None:
        if torch.cuda.is_initialized():
            found |= {"device": "cuda", "gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
        found |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "cpu": torch.backends.cpu.get_cpu_capability()}
    for name in ("numpy", "pyarrow", "tokenizers"):
        if name in sys.modules:
            found[name] = importlib.metadata.version(name)
    return found
