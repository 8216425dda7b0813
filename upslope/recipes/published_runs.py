"""Published runs beside what the rehearsal predicts for them, misses included. Nothing is fitted to a single row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from upslope.parallel.config import Mesh
from upslope.recipes.labs import get
from upslope.train.rehearsal.job import Job
from upslope.train.rehearsal.machines import MACHINES, Machine
from upslope.train.rehearsal.plan import Rehearsal, rehearse

Mark = Literal["C", "M", "S"]
_READ: dict[str, Callable[[Rehearsal], float]] = {
    "tokens/s a rank": lambda r: r.tokens_per_second / r.ranks,
    "MFU": lambda r: r.mfu,
    "rank-hours": lambda r: r.hours or 0.0,
}


class Row(NamedTuple):
    """One run. quantity: what is compared. ratio: predicted / published. mark: C = read in its source, M = from memory of the paper,
    S = second-hand. assumed: what the source does not say and the prediction had to choose."""

    run: str
    quantity: str
    published: float
    predicted: float
    ratio: float
    mark: Mark
    source: str
    assumed: str


class _Run(NamedTuple):
    run: str
    preset: str
    machine: Machine
    mesh: Mesh
    job: Job
    quantity: str
    value: float
    mark: Mark
    source: str
    assumed: str


def _runs() -> list[_Run]:
    h100, h200, b200 = MACHINES["h100"], MACHINES["h200"], MACHINES["b200"]
    h800 = h100.replace(name="H800", link=200e9, source="H100 with the fast link at 200 GB/s, from memory")
    titan, speed, size = "torchtitan benchmarks/llama3_h100_202412", "tokens/s a rank", "micro-batch of 1 sequence"

    def short(ranks: int, **more: object) -> Job:
        return Job.model_validate({"batch": 8192 * ranks, "length": 8192, "gradients": "fp32", **more})

    rows = [
        _Run("Llama 3.1 8B", "llama3_8b", h100, Mesh(fsdp=8), short(8), speed, 6667, "C", titan, size),
        _Run("Llama 3.1 8B, FP8", "llama3_8b", h100, Mesh(fsdp=8), short(8, precision="fp8"), speed, 8532, "C", titan, size),
        _Run("Llama 3.1 8B", "llama3_8b", h100, Mesh(fsdp=128), short(128), speed, 6514, "C", titan, size),
        _Run("Llama 3.1 8B, FP8", "llama3_8b", h200, Mesh(fsdp=32), short(32, precision="fp8"), speed, 10_900, "C", "h200_202506", size),
        _Run("Llama 3.1 8B", "llama3_8b", b200, Mesh(fsdp=8), short(8), speed, 8308, "C", "torchtitan mxfp8.md", "8 ranks, " + size),
        _Run("Llama 3.1 8B", "llama3_8b", b200, Mesh(fsdp=8), short(8), speed, 21_919, "C", "torchtitan nvfp4.md", "8 x B200, " + size),
    ]
    long = Job(batch=262_144, length=262_144, recompute="full")
    rows.append(_Run("Llama 3.1 8B at 262,144", "llama3_8b", h100, Mesh(cp=8), long, speed, 548, "C", titan, "Ulysses, full recomputation"))
    wide = Job(batch=8192 * 32, length=8192)
    source = "asyncTP_llama3_h100_2025-06"
    rows.append(_Run("Llama 3.1 70B", "llama3_70b", h100, Mesh(fsdp=32, tp=8), wide, speed, 597, "C", source, size))
    deep = Job(batch=8192 * 8 * 16, length=8192, precision="fp8")
    mesh = Mesh(fsdp=8, tp=8, pp=8, virtual=2, zero=1)
    rows.append(_Run("Llama 3.1 405B, FP8", "llama3_405b", h100, mesh, deep, speed, 128, "C", titan, "8 x 8 x 8, 16 micro-steps"))
    job, mesh = Job(batch=8192 * 2048, length=8192), Mesh(fsdp=128, tp=8, pp=16, virtual=4, zero=1)
    source, assumed = "arXiv 2407.21783: 38-43 %, 41 % at this size", "4 pieces a stage, ZeRO-1"
    rows.append(_Run("Llama 3 405B", "llama3_405b", h100, mesh, job, "MFU", 0.41, "M", source, assumed))
    job = Job(batch=15_360 * 4096, tokens=14.8e12, precision="fp8", overlap="all", states="bf16")
    mesh, source = Mesh(fsdp=128, pp=16, ep=64, zero=1), "arXiv 2412.19437, post-training and context extension included"
    rows.append(_Run("DeepSeek-V3", "deepseek_v3", h800, mesh, job, "rank-hours", 2.788e6, "S", source, "full batch, 1F1B, all overlapped"))
    job = Job(batch=2048 * 4096, length=4096, recompute="full")
    rows.append(_Run("OLMo 2 32B", "olmo2_32b", h100, Mesh(fsdp=1024), job, speed, 1800, "S", "Ai2 post (> 1,800)", "1,024 ranks, FSDP"))
    return rows


def published() -> list[Row]:
    """Every run: published, predicted, ratio."""
    out = []
    for r in _runs():
        predicted = _READ[r.quantity](rehearse(get(r.preset).model, r.job, r.mesh.ranks, r.mesh, r.machine))
        name = f"{r.run}, {r.mesh.ranks:,} x {r.machine.name}"
        out.append(Row(name, r.quantity, r.value, predicted, predicted / r.value, r.mark, r.source, r.assumed))
    return out


def table(rows: list[Row]) -> str:
    """The rows for the terminal."""
    head = f"{'run':<44} {'quantity':<16} {'published':>11} {'predicted':>11} {'ratio':>6}  mark"
    lines = [f"{r.run:<44} {r.quantity:<16} {r.published:>11,.4g} {r.predicted:>11,.4g} {r.ratio:>6.2f}  {r.mark}" for r in rows]
    return "\n".join([head, *lines])
