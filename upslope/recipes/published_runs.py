"""Published runs beside what the rehearsal predicts for them, misses included. Nothing is fitted to a single row."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Literal, NamedTuple

from upslope.parallel.config import Mesh
from upslope.recipes.labs import get
from upslope.train.rehearsal.job import Job
from upslope.train.rehearsal.machines import MACHINES, Machine
from upslope.train.rehearsal.plan import Rehearsal, rehearse

Mark = Literal["C", "M", "S"]
Quantity = Literal["tokens/s a rank", "GB a rank", "MFU", "rank-hours"]
_READ: dict[Quantity, Callable[[Rehearsal], float]] = {
    "tokens/s a rank": lambda r: r.tokens_per_second / r.ranks,
    "GB a rank": lambda r: r.memory.total / 1e9,
    "MFU": lambda r: r.mfu,
    "rank-hours": lambda r: r.hours or 0.0,
}
FAR = {"tokens/s a rank": 0.25, "GB a rank": 0.1, "MFU": 0.25, "rank-hours": 0.25}
"""Relative error beyond which a row must say why."""


class Row(NamedTuple):
    """One number of one run. quantity: what is compared. ratio: predicted / published. mark: C = read in its source, M = from memory of the
    paper, S = second-hand. assumed: what the source does not say and the prediction had to choose. why: the reason of an error beyond
    `FAR`, as far as it is known."""

    run: str
    quantity: Quantity
    published: float
    predicted: float
    ratio: float
    mark: Mark
    source: str
    assumed: str
    why: str

    @property
    def far(self) -> bool:
        """Whether the prediction is off by more than `FAR`."""
        return abs(self.ratio - 1) > FAR[self.quantity]


class _Run(NamedTuple):
    run: str
    preset: str
    machine: Machine
    mesh: Mesh
    job: Job
    values: dict[Quantity, float]
    mark: Mark
    source: str
    assumed: str = ""
    why: dict[Quantity, str] = {}


_S: Quantity = "tokens/s a rank"
_G: Quantity = "GB a rank"


def _speed(tokens: float, gib: float | None = None) -> dict[Quantity, float]:
    """Tokens/s of a rank and, where it is stated, the peak that torch's allocator reserved."""
    return {_S: tokens} | ({} if gib is None else {_G: gib * 2**30 / 1e9})


_RING = "the source passes keys and values round a ring, and its attention reached less than the 30 % of peak assumed here"
_OLDER = "not known: the same settings took 66 GB on 128 H100 half a year before"
_WHOLE = "the source's figure is all that the allocator reserved, fragments included; inputs gathered over tp are not counted"
_POWER = "the source's cards are limited in power, by how much it does not say; the next row is the same model on another such machine"


def _titan() -> list[_Run]:
    """torchtitan's own measurements: H100 with HBM2e at a limit of 500 W, whose peak the source puts between those of SXM and NVL."""
    h100 = MACHINES["h100"].replace(
        name="H100 500 W",
        bf16=(989.4e12 + 835.5e12) / 2,
        fp8=(1978.9e12 + 1671e12) / 2,
        memory=96e9,
        bandwidth=2.4e12,
        source="torchtitan (memory, limit); peak: the mean of H100 SXM's and NVL's data sheets",
    )
    one, page = Job(batch=16 * 8192, length=8192, micro=2, recompute="alternate", chunk=None), "torchtitan benchmarks/llama3_h100_202412"
    big, fp8 = one.replace(batch=256 * 8192), {"precision": "fp8"}
    long = Job(batch=262_144, length=262_144, recompute="full", precision="fp8", chunk=None)
    wide = Job(batch=512 * 8192, length=8192, micro=16, recompute="full", chunk=None)
    deep = Job(batch=256 * 8192, length=8192, micro=4, recompute="full", precision="fp8", chunk=None)
    tp, pp = Mesh(fsdp=32, tp=8), Mesh(fsdp=8, tp=8, pp=8, zero=1)
    pieces = "micro-batches: as many as pipeline pieces; FSDP reduces once a step"
    return [
        _Run("Llama 3.1 8B", "llama3_8b", h100, Mesh(fsdp=8), one, _speed(6667, 77.0), "C", page),
        _Run("Llama 3.1 8B, FP8", "llama3_8b", h100, Mesh(fsdp=8), one.replace(**fp8), _speed(8532, 76.8), "C", page),
        _Run("Llama 3.1 8B", "llama3_8b", h100, Mesh(fsdp=128), big, _speed(6514, 62.0), "C", page),
        _Run("Llama 3.1 8B, FP8", "llama3_8b", h100, Mesh(fsdp=128), big.replace(**fp8), _speed(8380, 61.8), "C", page),
        _Run("Llama 3.1 8B at 262,144, FP8", "llama3_8b", h100, Mesh(cp=8), long, _speed(548, 84.5), "C", page, "Ulysses", {_S: _RING}),
        _Run("Llama 3.1 70B", "llama3_70b", h100, tp, wide, _speed(597), "C", "torchtitan asyncTP_llama3_h100_2025-06"),
        _Run("Llama 3.1 70B, FP8", "llama3_70b", h100, tp, wide.replace(**fp8), _speed(829, 71.9), "C", page, "", {_G: _WHOLE}),
        _Run("Llama 3.1 405B, FP8, 1F1B", "llama3_405b", h100, pp, deep, _speed(100, 82.5), "C", page, pieces, {_G: _WHOLE}),
        _Run(
            "Llama 3.1 405B, FP8, interleaved",
            "llama3_405b",
            h100,
            pp.replace(virtual=2),
            deep.replace(micro=2),
            _speed(128, 72.7),
            "C",
            page,
            f"2 pieces a stage; {pieces}",
            {_G: _WHOLE},
        ),
    ]


def _others() -> list[_Run]:
    """Runs of other machines and other trainers."""
    h100, h200, b200 = MACHINES["h100"], MACHINES["h200"], MACHINES["b200"]
    h800 = h100.replace(name="H800", link=200e9, source="H100 with the fast link at 200 GB/s, from memory")
    short = Job(batch=8 * 8192, length=8192, recompute="alternate", chunk=None)
    two = short.replace(batch=64 * 8192, micro=2, precision="fp8", chunk=16_384)
    meta = Job(batch=8192 * 2048, length=8192)
    stages = Mesh(fsdp=128, tp=8, pp=16, virtual=4, zero=1)
    v3 = Job(batch=15_360 * 4096, tokens=14.8e12, precision="fp8", overlap="all", states="bf16")
    v3_mesh = Mesh(fsdp=128, pp=16, ep=64, zero=1)
    olmo = Job(batch=2048 * 4096, length=4096, recompute="full")
    page = "torchtitan benchmarks/llama3-8b_h200_202506"
    share: dict[Quantity, float] = {"MFU": 0.41}
    hours: dict[Quantity, float] = {"rank-hours": 2.788e6}
    return [
        _Run("Llama 3.1 8B, FP8", "llama3_8b", h200, Mesh(fsdp=32), two, _speed(10_938, 47.96), "C", page, "loss compiled", {_G: _OLDER}),
        _Run("Llama 3.1 8B", "llama3_8b", b200, Mesh(fsdp=8), short, _speed(8308), "C", "torchtitan docs/mxfp8.md", "", {_S: _POWER}),
        _Run("Llama 3.1 8B", "llama3_8b", b200, Mesh(fsdp=8), short, _speed(21_919), "S", "torchtitan nvfp4.md", "8 x B200, 1 sequence"),
        _Run(
            "Llama 3 405B", "llama3_405b", h100, stages, meta, share, "M", "arXiv 2407.21783: 41 % at this size", "4 pieces a stage, ZeRO-1"
        ),
        _Run(
            "DeepSeek-V3",
            "deepseek_v3",
            h800,
            v3_mesh,
            v3,
            hours,
            "S",
            "arXiv 2412.19437, post-training and context extension included",
            "full batch, 1F1B, all transfers hidden",
        ),
        _Run("OLMo 2 32B", "olmo2_32b", h100, Mesh(fsdp=1024), olmo, _speed(1800), "S", "Ai2 post (> 1,800)", "1,024 ranks, FSDP"),
    ]


def published() -> list[Row]:
    """Every number of every run: published, predicted, ratio."""
    out = []
    for r in [*_titan(), *_others()]:
        found = rehearse(get(r.preset).model, r.job, r.mesh.ranks, r.mesh, r.machine)
        for quantity, value in r.values.items():
            predicted = _READ[quantity](found)
            name = f"{r.run}, {r.mesh.ranks:,} x {r.machine.name}"
            out.append(Row(name, quantity, value, predicted, predicted / value, r.mark, r.source, r.assumed, r.why.get(quantity, "")))
    return out


def table(rows: list[Row]) -> str:
    """The rows for the terminal; below them, why those that are far off are."""
    head = f"{'run':<51} {'quantity':<16} {'published':>10} {'predicted':>10} {'error':>6}  mark"
    lines = [
        f"{r.run:<51} {r.quantity:<16} {_shown(r.published):>10} {_shown(r.predicted):>10} {r.ratio - 1:>+6.0%}  {r.mark}" for r in rows
    ]
    return "\n".join([head, *lines, "", *(f"{r.run}, {r.quantity}, {r.ratio - 1:+.0%}: {r.why}" for r in rows if r.far)])


def markdown(rows: list[Row]) -> str:
    """The rows for a document."""
    lines = ["| run | quantity | published | predicted | error | mark | assumed here; why it is off |", "|---|---|---:|---:|---:|---|---|"]
    for r in rows:
        said = "; ".join(t for t in (r.assumed, r.why if r.far else "") if t)
        lines.append(f"| {r.run} | {r.quantity} | {_shown(r.published)} | {_shown(r.predicted)} | {r.ratio - 1:+.0%} | {r.mark} | {said} |")
    return "\n".join(lines)


def _shown(x: float) -> str:
    return f"{x:,.0f}" if x >= 1000 else f"{x:.3g}"


def summary(rows: list[Row]) -> str:
    """How far the predictions are off, in one line."""
    said = []
    for name, kinds in (("speed", ("tokens/s a rank", "MFU", "rank-hours")), ("memory", ("GB a rank",))):
        errors = [abs(r.ratio - 1) for r in rows if r.quantity in kinds]
        said.append(f"{name} of {len(errors)} published runs, off by {median(errors):.0%} in the median, {max(errors):.0%} at worst")
    return "; ".join(said)


BEGIN, END = "<!-- published: written by `python -m upslope.recipes.published_runs` -->\n", "<!-- end -->"
"""Between these a document has the table."""


def written(document: str) -> str:
    """A document with the table of today between its marks."""
    head, rest = document.split(BEGIN, 1)
    return f"{head}{BEGIN}\n{markdown(published())}\n\n{END}{rest.split(END, 1)[1]}"


if __name__ == "__main__":
    from pathlib import Path

    page = Path("docs/howto/rehearse.md")
    page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
