"""Whether a job fits into the memory of this machine, before it starts.

Certain: weights, gradients and optimizer states, which are all held at once in every step, in this engine's dtypes. Expected: also what a
forward pass leaves for backward, a chunk of logits, 16-bit copies of the weights, and Muon's stack. Only the certain part refuses a job.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

from upslope.config import UsageError
from upslope.model.config import ModelConfig
from upslope.optim.config import AdamW, Muon
from upslope.parallel.config import Mesh
from upslope.train.rehearsal.job import Job, Recompute, Stored
from upslope.train.rehearsal.memory import kept_bytes, shard, split, state_bytes
from upslope.train.rehearsal.plan import cut
from upslope.train.rehearsal.sizes import Entry, Stage, entries

ALONE = Mesh()
STATES: dict[str, Stored] = {"fp32": "fp32", "bf16": "bf16", "bf16-sr": "bf16"}
"""Moments as optimizers name them, and as jobs do."""

WIDE = {"fp32": 1.4, "half": 2.1}
"""Bytes that this engine keeps for backward / those of the count in which each kept element has the width of the products: it is not
fused, and norms, rotations and the residual stream are float32 under 16-bit products. Measured on dense models on a CPU."""

ROWS = {"fp32": 8, "half": 10}
"""Bytes of a logit while its chunk is turned into gradients: logits, float32 log-probabilities, gradient in the logits' dtype. Measured."""


class Settings(NamedTuple):
    """What a training step holds. tokens: of a step on a rank. length: of its longest segment, which is never split. micro_tokens: most
    tokens of one forward and backward; 0 = the whole step. products: "half" = bf16 or fp16 under autocast. chunk: rows of logits at a
    time. weights, trained: bytes of the weights and number of trained parameters where they are known (adapters, frozen or quantised
    weights); None: float32 and all."""

    optim: AdamW | Muon
    tokens: int
    length: int
    micro_tokens: int = 16384
    products: Literal["fp32", "half"] = "half"
    recompute: Recompute = "none"
    chunk: int = 4096
    weights: float | None = None
    trained: int | None = None


class Need(NamedTuple):
    """Bytes on the fullest rank. certain: the first three."""

    weights: float
    gradients: float
    states: float
    copies: float
    activations: float
    logits: float
    update: float

    @property
    def certain(self) -> float:
        """Held at once in every step, whatever the batch."""
        return self.weights + self.gradients + self.states

    @property
    def expected(self) -> float:
        """At the peak: of backward, or of the update."""
        return self.certain + max(self.copies + self.activations + self.logits, self.update)


def needed(model: ModelConfig, settings: Settings, mesh: Mesh = ALONE) -> Need:
    """What a step of a model needs on each rank of a mesh."""
    s = settings
    size = max(s.length, min(s.micro_tokens or s.tokens, s.tokens))
    job = Job(
        optim=s.optim,
        batch=s.length,
        length=s.length,
        precision="fp32" if s.products == "fp32" else "bf16",
        states=STATES[s.optim.state],
        recompute=s.recompute,
    )
    parts = entries(model, s.length)
    found = [_of_stage(stage, parts, model, settings, job, mesh, size) for stage in cut(parts, model, mesh)]
    return max(found, key=lambda need: need.expected)


def _of_stage(stage: Stage, parts: list[Entry], model: ModelConfig, s: Settings, job: Job, mesh: Mesh, size: int) -> Need:
    own = sum(n * shard(e, mesh) for e, n in stage)
    whole = sum(e.parameters for e in parts)
    trained = own if s.trained is None else own * s.trained / whole
    states = sum(n * state_bytes(e, job, mesh) for e, n in stage)
    if s.trained is not None:  # which of them Muon takes is not known: at least one moment each
        states = trained * (1 if isinstance(s.optim, Muon) else 2) * {"fp32": 4, "bf16": 2, "int8": 1}[job.states]
    share = size / s.length
    kept = share * sum(n * kept_bytes(e, job, mesh, model.d_model) for e, n in stage)
    if job.recompute != "none":
        kept += share * max(kept_bytes(e, job, mesh, model.d_model, "none") for e, _ in stage)
    rows = min(s.chunk, size) if any(e.logits for e, _ in stage) else 0
    copies = sum(n * sum(split(e, mesh)) for e, n in stage) * 2 if s.products == "half" else 0.0
    return Need(
        weights=4 * own if s.weights is None else s.weights * own / whole,
        gradients=4 * trained,
        states=states,
        copies=copies,
        activations=kept * mesh.pp * WIDE[s.products],
        logits=rows * model.vocab / mesh.tp * ROWS[s.products],
        update=_update(stage, s, mesh),
    )


def _update(stage: Stage, s: Settings, mesh: Mesh) -> float:
    """Bytes of Muon's largest stack: float32 updates and their stack, its 16-bit copy with two products, and the result."""
    if not isinstance(s.optim, Muon):
        return 0.0
    stacked = sum(n * shard(Entry(matrices=e.matrices, experts=e.experts), mesh) for e, n in stage)
    return stacked * (4 + 4 + 3 * (2 if s.optim.ns_dtype == "bf16" else 4) + 4)


def too_little_memory(model: ModelConfig, settings: Settings, mesh: Mesh, available: float, held: float = 0.0) -> UsageError | None:
    """Why a job cannot fit, or None. available: free bytes; held: bytes of the job that are allocated already.

    Only what is certain refuses, so a job that fits is never refused; see `tight` for the rest.
    """
    need = needed(model, settings, mesh)
    if need.certain <= available + held:
        return None
    who, free = "a rank" if mesh.ranks > 1 else "this job", available + held
    kinds = f"weights {_gb(need.weights)}, gradients {_gb(need.gradients)}, optimizer states {_gb(need.states)}"
    return UsageError(
        f"{who} needs about {_gb(need.expected)}, {_gb(need.certain)} of it whatever the batch ({kinds}); {_gb(free)} are free\n"
        f"way out: {_ways(settings, need, free)}a smaller model, an adapter, or more ranks (upslope plan RECIPE --ranks N)"
    )


def tight(model: ModelConfig, settings: Settings, mesh: Mesh, available: float, held: float = 0.0) -> str:
    """A warning where the certain part fits and the expected peak does not; "" otherwise."""
    need, free = needed(model, settings, mesh), available + held
    if need.certain > free or need.expected <= free:
        return ""
    smaller = _smaller(model, settings, mesh, free)
    way = f"micro_tokens = {smaller} would do" if smaller else "activation checkpointing or shorter rows would help"
    return f"needs about {_gb(need.expected)} at its peak, {_gb(free)} are free; the result does not depend on micro_tokens: {way}"


def before(trainer: Any, optim: AdamW | Muon, tokens: int, length: int, mesh: Mesh = ALONE, free: float | None = None) -> str:
    """Checks a trainer before its first step: raises what `too_little_memory` says, returns what `tight` says.

    tokens: of a step on this rank. length: of its longest segment. free: bytes; None: what its device has. On one rank weights and trained
    parameters are those of the trainer, so frozen, quantised and adapted models are judged by what they hold.
    """
    own = dict(trainer.named_parameters())
    alone = mesh.ranks == 1
    settings = Settings(
        optim,
        tokens,
        length,
        trainer.micro_tokens,
        "half" if trainer.numerics in ("bf16", "fp16") else "fp32",
        chunk=trainer.chunk,
        weights=float(sum(p.nbytes for p in own.values())) if alone else None,
        trained=sum(p.numel() for p in trainer.trained.values()) if alone and len(trainer.trained) < len(own) else None,
    )
    held = float(sum(t.nbytes for t in (*own.values(), *trainer.optimizer.state().values())))
    room = available(next(iter(own.values())).device.type) if free is None else free
    if error := too_little_memory(trainer.config, settings, mesh, room, held):
        raise error
    return tight(trainer.config, settings, mesh, room, held)


def _smaller(model: ModelConfig, s: Settings, mesh: Mesh, free: float) -> int:
    """The largest half, quarter, ... of micro_tokens with which the job is expected to fit; 0 where none is."""
    size = min(s.micro_tokens or s.tokens, s.tokens)
    while size // 2 >= s.length:
        size //= 2
        if needed(model, s._replace(micro_tokens=size), mesh).expected <= free:
            return size
    return 0


def _ways(s: Settings, need: Need, free: float) -> str:
    """Changes to the optimizer alone that would make the certain part fit."""
    if s.optim.state == "fp32" and need.certain - need.states / 2 <= free:
        return 'optim.state = "bf16", '
    if isinstance(s.optim, AdamW) and need.certain - need.states / 2 <= free:
        return 'optim.kind = "muon", '
    return ""


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def available(device: str = "cpu") -> float:
    """Bytes that can still be allocated: on a GPU the driver's figure; on the host what the system can free, with swap, within the limits
    of every control group around this process. infinity where nothing is known."""
    if device.startswith("cuda"):
        import torch

        return float(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return min(_system(Path("/proc/meminfo")), _groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))


def _system(file: Path) -> float:
    """MemAvailable and SwapFree of /proc/meminfo."""
    rows = dict(line.split(":", 1) for line in _text(file).splitlines() if ":" in line)
    if "MemAvailable" not in rows:
        return float("inf")
    return sum(float(rows[name].split()[0]) * 1024 for name in ("MemAvailable", "SwapFree") if name in rows)


def _groups(own: Path, root: Path) -> float:
    """What the tightest control group (version 1 or 2) lets this process add; files it holds in its cache can be dropped."""
    free = float("inf")
    for line in _text(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        base = root if controllers == "" else root / "memory"
        names = ("memory.max", "memory.current", "inactive_file")
        if controllers:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        for folder in _upwards(base, path):
            limit, used = (_number(folder / name) for name in names[:2])
            rows = dict(row.split(" ", 1) for row in _text(folder / "memory.stat").splitlines() if " " in row)
            if limit is not None and used is not None:
                free = min(free, limit - used + float(rows.get(names[2], 0)))
    return free


def _upwards(base: Path, path: str) -> list[Path]:
    """A group's folder and all above it; in a container, where the path may not be there, the root alone."""
    folder = base / path.lstrip("/")
    return [f for f in (folder, *folder.parents) if f == base or base in f.parents]


def _number(file: Path) -> float | None:
    text = _text(file).strip()
    return float(text) if text.isdigit() and float(text) < 2**60 else None  # "max", and version 1's huge "no limit"


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
