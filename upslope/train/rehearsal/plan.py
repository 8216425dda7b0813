"""Rehearsing a run on ranks that are not there: memory, transfers, time, price, illegal splits, a mesh that fits."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from upslope.config import UsageError
from upslope.model.config import ModelConfig
from upslope.parallel.config import Mesh
from upslope.train.rehearsal.cost import Collective, Time, collectives, seconds, work
from upslope.train.rehearsal.job import Job
from upslope.train.rehearsal.machines import Machine
from upslope.train.rehearsal.memory import Memory, memory
from upslope.train.rehearsal.mesh import boundaries, candidates, problems
from upslope.train.rehearsal.sizes import Entry, Stage, counted, entries


@dataclass(frozen=True)
class Rehearsal:
    """What a step on `mesh` would take. flops: of a step, three forward passes, all ranks. executed: with recomputation. memory: of the
    fullest rank. collectives: of the slowest rank. mfu: flops / (ranks · peak of the precision · step). hours: rank-hours of the whole
    run, price: of them (None: unknown). fits: memory ≤ usable share. suggested: whether the mesh was searched for, among `tried`."""

    machine: Machine
    ranks: int
    mesh: Mesh
    batch: str
    parameters: int
    memory: Memory
    fits: bool
    flops: float
    executed: float
    collectives: tuple[Collective, ...]
    time: Time
    tokens_per_second: float
    mfu: float
    hours: float | None
    price: float | None
    tried: int | None

    def values(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {
            "machine": self.machine.model_dump(mode="json"),
            "mesh": self.mesh.model_dump(mode="json"),
            "memory": self.memory._asdict() | {"total": self.memory.total},
            "time": self.time._asdict() | {"step": self.time.step},
            "collectives": [c._asdict() for c in self.collectives],
        }

    def render(self) -> str:
        """For the terminal, at most 40 lines."""
        m, t, limit = self.machine, self.time, self.machine.memory * self.machine.usable
        unit, size_of = ("GB", 1e9) if self.memory.total >= 1e9 else ("MB", 1e6)
        second, of_step = ("s", 1.0) if t.step >= 0.1 else ("ms", 1e3)
        found = f"   (fastest of {self.tried:,} legal meshes{'' if self.fits else '; none fits: the smallest'})" if self.tried else ""
        lines = [f"{self.ranks:,} x {m.name}: {self.mesh}{found}", self.batch, "", f"memory of the fullest rank, {unit}"]
        lines += [f"  {kind:<12} {size / size_of:10.2f}" for kind, size in self.memory._asdict().items() if size]
        lines += [
            f"  {'total':<12} {self.memory.total / size_of:10.2f}   {'fits' if self.fits else 'DOES NOT FIT'} in {limit / 1e9:.1f} GB"
        ]
        if self.collectives:
            lines += ["", f"  {'sent by a rank in a step':<44} {'ranks':>6} {'calls':>8} {unit:>9} {second:>8}"]
        for c in self.collectives:
            lines.append(
                f"  {c.name:<44} {c.size:>6} {c.calls:>8,.0f} {c.sent / size_of:>9.3f} {c.seconds * of_step:>8.3f}"
                f"  {'node' if c.within else 'network'}"
            )
        shares = (("compute", t.compute), ("bubble", t.bubble), ("transfers", t.exposed), ("optimizer", t.optimizer))
        lines += ["", f"step {t.step * of_step:.3f} {second} = " + " + ".join(f"{n} {x * of_step:.3f}" for n, x in shares)]
        lines.append(f"{self.flops:.3g} FLOPs a step ({self.executed:.3g} with recomputation), MFU {self.mfu:.1%}")
        lines.append(f"{self.tokens_per_second:,.0f} tokens/s, {self.tokens_per_second / self.ranks:,.0f} a rank")
        if self.hours is not None:
            price = "price of a rank-hour not given" if self.price is None else f"{self.price:,.0f} in the machine's currency"
            lines.append(f"whole run: {_short(self.hours)} rank-hours, {_duration(self.hours / self.ranks)}; {price}")
        lines.append(f"assumed: kernels {m.kernels:.0%}, attention {m.attention:.0%} of peak, wires {m.wires:.0%}")
        lines.append(f"figures: {m.source}")
        return "\n".join(lines)


def sentence(job: Job, mesh: Mesh) -> str:
    """The arithmetic of a batch in one sentence."""
    steps = micro_steps(job, mesh)
    sequences = f"{job.micro:,} x {job.length:,} tokens" if job.micro > 1 else f"{job.length:,} tokens"
    groups = f"{mesh.data:,} data ranks" if mesh.ranks != mesh.data else f"{mesh.data:,} ranks"
    return f"global batch {_short(job.batch)} tokens = {groups} x {steps:,} micro-steps x {sequences}"


def _short(n: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if n >= size:
            return f"{n / size:.1f}{unit}"
    return f"{n:,.0f}" if n >= 100 else f"{n:.3g}"


def _duration(hours: float) -> str:
    return f"{hours / 24:,.1f} days" if hours >= 48 else f"{hours:.3g} hours" if hours >= 1 else f"{hours * 60:.2g} minutes"


def micro_steps(job: Job, mesh: Mesh) -> int:
    """Forward and backward passes of a data rank in one step."""
    return job.batch // (job.length * job.micro * mesh.data)


def cut(parts: list[Entry], model: ModelConfig, mesh: Mesh) -> list[Stage]:
    """Entries of each stage; with `virtual` pieces, stage s has pieces s, s + pp, ..."""
    starts = boundaries(model, mesh.pp * mesh.virtual) or [0]
    pieces = [parts[a:b] for a, b in zip(starts, [*starts[1:], len(parts)])]
    return [counted([e for piece in pieces[s :: mesh.pp] for e in piece]) for s in range(mesh.pp)]


def _fullest(stages: list[Stage], model: ModelConfig, job: Job, mesh: Mesh) -> Memory:
    """Memory of the fullest stage; under 1F1B stage s has pp - s micro-steps in flight, so the first of equal stages is fullest."""
    m = micro_steps(job, mesh)
    held, seen = Memory(), set[tuple[tuple[int, int], ...]]()
    for s, stage in enumerate(stages):
        key = tuple((id(e), n) for e, n in stage)
        if key in seen:
            continue
        seen.add(key)
        pieces = mesh.pp * mesh.virtual
        flying = min(m, mesh.pp - s) if mesh.virtual == 1 else min(m, mesh.pp) * (1 + (mesh.pp - 1) / pieces)
        mine = memory(stage, flying, job, mesh, model.vocab, model.d_model)
        held = mine if mine.total > held.total else held
    return held


def _rehearse(parts: list[Entry], stages: list[Stage], model: ModelConfig, job: Job, mesh: Mesh, machine: Machine) -> Rehearsal:
    m, d = micro_steps(job, mesh), model.d_model
    held = _fullest(stages, model, job, mesh)
    slowest: tuple[Time, tuple[Collective, ...]] | None = None
    executed = 0.0
    seen: dict[tuple[tuple[int, int], ...], float] = {}
    for stage in stages:
        key = tuple((id(e), n) for e, n in stage)
        if key not in seen:
            done, moves = work(stage, m, job, mesh, d), collectives(stage, m, job, mesh, machine, d)
            time = seconds(done, moves, m, job, mesh, machine)
            slowest = (time, tuple(moves)) if slowest is None or time.step > slowest[0].step else slowest
            seen[key] = (done.products + done.attention) * mesh.ranks / mesh.pp
        executed += seen[key]
    assert slowest is not None
    time, moves_of = slowest
    flops = 3.0 * job.batch * sum(e.products + e.attention for e in parts)
    hours = None if job.tokens is None else job.tokens / job.batch * time.step / 3600 * mesh.ranks
    return Rehearsal(
        machine=machine,
        ranks=mesh.ranks,
        mesh=mesh,
        batch=sentence(job, mesh),
        parameters=round(sum(e.parameters for e in parts)),
        memory=held,
        fits=held.total <= machine.memory * machine.usable,
        flops=flops,
        executed=executed,
        collectives=moves_of,
        time=time,
        tokens_per_second=job.batch / time.step,
        mfu=flops / (mesh.ranks * machine.peak(job.precision) * time.step),
        hours=hours,
        price=None if hours is None or machine.price is None else hours * machine.price,
        tried=None,
    )


def rehearse(model: ModelConfig, training: Job, ranks: int, mesh: Mesh | None, machine: Machine) -> Rehearsal:
    """A run's memory, transfers, time and price on `ranks` ranks; mesh None: the fastest legal one that fits, else the smallest.

    Estimates from arithmetic alone; nothing runs. UsageError for an illegal mesh (each division that fails is named) or where no mesh is
    legal.
    """
    if model.vocab == 0:
        raise UsageError("model.vocab = 0: the size of the tokenizer is not known yet\nway out: model.replace(vocab=...)")
    parts = entries(model, training.length)
    if mesh is not None:
        if wrong := problems(model, training, ranks, mesh):
            more = f"; {len(wrong) - 4} more" if len(wrong) > 4 else ""
            raise UsageError("mesh: illegal\n" + "\n".join(wrong[:4]) + more + "\nway out: leave the mesh out and a legal one is suggested")
        return _rehearse(parts, cut(parts, model, mesh), model, training, mesh, machine)
    best: tuple[bool, float, Mesh] | None = None
    tried, room = 0, machine.memory * machine.usable
    known: dict[int, list[Stage]] = {}
    for option in candidates(model, training, ranks, machine.node):
        tried += 1
        stages = known.get(option.pp) or known.setdefault(option.pp, cut(parts, model, option))
        held = _fullest(stages, model, training, option).total
        if held > room:
            if best is None or (best[0] and held < best[1]):
                best = (True, held, option)
            continue
        step = _rehearse(parts, stages, model, training, option, machine).time.step
        if best is None or (False, step) < best[:2]:
            best = (False, step, option)
    if best is None:
        reasons = problems(model, training, ranks, Mesh(fsdp=ranks))
        raise UsageError("ranks = {}: no legal mesh; plain FSDP: {}\nway out: another batch or ranks".format(ranks, "; ".join(reasons[:3])))
    return replace(_rehearse(parts, cut(parts, model, best[2]), model, training, best[2], machine), tried=tried)
