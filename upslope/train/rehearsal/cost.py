"""Operations, bytes on the wires and seconds of a step: a roofline per pipeline stage, then the pipeline's bubble."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from upslope.config import UsageError
from upslope.optim.config import Muon
from upslope.parallel.config import Mesh
from upslope.train.rehearsal.job import WIDTH, Job
from upslope.train.rehearsal.machines import Machine
from upslope.train.rehearsal.memory import kept_bytes, shard, split, state_bytes
from upslope.train.rehearsal.sizes import Entry, Stage


class Collective(NamedTuple):
    """Transfers of one kind. size: ranks that take part. calls: of a step. sent: bytes that one rank sends in a step (rings: an
    all-gather or reduce-scatter of S bytes over n sends S(n-1)/n, an all-reduce twice that). seconds: of a step, were nothing hidden.
    within: all neighbours share a node. once: per step, not per micro-step."""

    name: str
    axis: str
    size: int
    calls: float
    sent: float
    seconds: float
    within: bool
    once: bool = False


def _rate(machine: Machine, mesh: Mesh, axis: str, size: int, exchange: bool) -> tuple[float, bool]:
    """(bytes/s of a rank, all in one node). Beyond a node, ranks of a ring share their ports; an exchange uses each rank's own."""
    stride = {"shards": mesh.tp, "ep": mesh.tp}.get(axis) or mesh.stride(axis)
    if stride * size <= machine.node:
        return machine.link * machine.wires, True
    if machine.network is None:
        raise UsageError(
            f"machine {machine.name}: {axis} = {size} reaches beyond a node of {machine.node} ranks, and `network` is not known\n"
            "way out: a --machine file with like = ... and network = bytes per second of a rank"
        )
    inside = max(1, min(size, machine.node // stride))
    if exchange:
        beyond = (size - inside) / (size - 1)
        return min(machine.link, machine.network / beyond) * machine.wires, False
    return min(machine.link, machine.network * inside) * machine.wires, False


def collectives(stage: Stage, micro_steps: int, job: Job, mesh: Mesh, machine: Machine, d: int) -> list[Collective]:
    """All transfers of a rank of a pipeline stage in one step."""
    out: list[Collective] = []
    tokens, width, repeat = job.micro * job.length / mesh.cp, WIDTH[job.precision], 1.5 if job.recompute == "full" else 1.0

    def add(name: str, axis: str, size: int, calls: float, payload: float, factor: float = 1.0, once: bool = False) -> None:
        """payload: bytes of all calls of a step; factor: what a rank sends / payload · (n-1)/n."""
        if size > 1 and payload > 0:
            sent = payload * factor * (size - 1) / size
            rate, within = _rate(machine, mesh, axis, size, "all-to-all" in name)
            out.append(Collective(name, axis, size, calls, sent, sent / rate, within, once))

    reduced, units = WIDTH[job.gradients], sum(n for _, n in stage)
    for label, axis, size, part in (
        ("", "shards", mesh.shards, sum(n * split(e, mesh)[0] for e, n in stage)),
        (" of experts", "shards", mesh.shards // mesh.ep, sum(n * split(e, mesh)[1] for e, n in stage)),
    ):
        gathers = 2 * micro_steps if mesh.zero == 3 else 1
        scatters = 1 if mesh.zero == 1 else micro_steps
        add(f"all-gather weights{label}", axis, size, gathers * units, gathers * part * width, once=mesh.zero != 3)
        add(f"reduce-scatter gradients{label}", axis, size, scatters * units, scatters * part * reduced, once=mesh.zero == 1)
    own = sum(n * shard(e, mesh) for e, n in stage)
    add("all-reduce gradients of replicas", "dp", mesh.dp, units, own * reduced, 2.0, once=True)
    joins = sum(n * e.joins for e, n in stage) * micro_steps * repeat
    name = "all-gather + reduce-scatter activations" if mesh.sequence else "all-reduce activations"
    add(name, "tp", mesh.tp, joins * (2 if mesh.sequence else 1), joins * tokens * d * width, 2.0)
    exchanges = 4 * repeat * micro_steps
    routed, layers = sum(n * e.routed for e, n in stage), sum(n for e, n in stage if e.routed)
    add("all-to-all experts", "ep", mesh.ep, exchanges * layers, exchanges * tokens * width * job.imbalance * routed)
    heads = mesh.tp * mesh.cp
    exchanged = sum(n * (e.qkvo[0] + e.qkvo[1] * max(1.0, heads / e.qkvo[2])) for e, n in stage if e.qkvo[2]) / mesh.tp
    layers = sum(n for e, n in stage if e.qkvo[2])
    passes = 2 * repeat * micro_steps
    add("all-to-all heads", "cp", mesh.cp, passes * 4 * layers, passes * tokens * width * exchanged)
    if isinstance(job.optim, Muon):
        whole = sum(n * shard(Entry(matrices=e.matrices, experts=e.experts), mesh) for e, n in stage)
        add("all-to-all updates of whole matrices", "shards", mesh.shards, 2, 2 * whole * 2, once=True)
    if mesh.pp > 1:
        sides = (2 if mesh.pp > 2 or mesh.virtual > 1 else 1) * mesh.virtual * micro_steps
        sent = sides * tokens * d * width / (mesh.tp if mesh.sequence else 1)
        rate, within = _rate(machine, mesh, "pp", mesh.pp, False)
        rate = rate if within else (machine.network or 0) * machine.wires
        out.append(Collective("send and receive activations", "pp", mesh.pp, sides, sent, sent / rate, within))
    return out


class Work(NamedTuple):
    """Operations of one rank in a step: products, attention (both with backward and recomputation), and Muon's orthogonalisation;
    traffic: bytes that activations and the optimizer move through memory."""

    products: float
    attention: float
    update: float
    traffic: float
    optimizer: float


def work(stage: Stage, micro_steps: int, job: Job, mesh: Mesh, d: int) -> Work:
    """What a rank of a stage does in a step. Every kept activation is written and read, as is its gradient; around FP8 products it is also
    read for its largest value, read to be cast, and written as one byte. A Newton-Schulz step on (m, n), m ≤ n, is
    4m²n + 2m³ ≤ 6dmn operations, shared by the ranks that shard the matrices."""
    tokens = micro_steps * job.micro * job.length / (mesh.cp * mesh.tp)
    times = 4.0 if job.recompute == "full" else 3.0
    kept = sum(n * kept_bytes(e, job, mesh, d, "none") for e, n in stage) * micro_steps
    moved = kept * (4 if job.recompute == "none" else 5) + (kept / WIDTH["fp8"] * 5 if job.precision == "fp8" else 0.0)
    owned = sum(n * shard(e, mesh) for e, n in stage)
    states = sum(n * state_bytes(e, job, mesh) for e, n in stage)
    optimizer = 2 * states + owned * (2 * WIDTH[job.weights] + WIDTH[job.gradients])
    update = 0.0
    if isinstance(job.optim, Muon):
        update = 6.0 * job.optim.ns_steps * d * sum(n * shard(Entry(matrices=e.matrices, experts=e.experts), mesh) for e, n in stage)
    products = sum(n * e.products * (3.0 if e.logits else times) for e, n in stage)  # a head is not recomputed
    products += sum(n * e.again for e, n in stage) if job.recompute == "alternate" else 0.0
    return Work(tokens * products, times * tokens * sum(n * e.attention for e, n in stage), update, moved, optimizer)


class Time(NamedTuple):
    """Seconds of a step: compute (products, attention, memory traffic), bubble, exposed transfers, optimizer; their sum is the step."""

    compute: float
    bubble: float
    exposed: float
    optimizer: float

    @property
    def step(self) -> float:
        """Of the whole step."""
        return sum(self)


def seconds(done: Work, moves: Sequence[Collective], micro_steps: int, job: Job, mesh: Mesh, machine: Machine) -> Time:
    """compute + transfers that the policy does not hide, stretched by the bubble (pp - 1)/virtual/m; then the optimizer."""
    peak = machine.peak(job.precision)
    half = machine.peak("bf16" if job.precision != "fp32" else "fp32")
    compute = done.products / (peak * machine.kernels) + done.attention / (half * machine.attention)
    compute += done.traffic / (machine.bandwidth * machine.wires)
    hidden = {"none": (), "data": ("shards", "dp"), "all": ("shards", "dp", "ep", "cp", "pp")}[job.overlap]
    behind = sum(c.seconds for c in moves if c.axis in hidden)
    front = sum(c.seconds for c in moves if c.axis not in hidden and not c.once)
    once = sum(c.seconds for c in moves if c.axis not in hidden and c.once)
    bubble = (compute + front) * (mesh.pp - 1) / mesh.virtual / micro_steps
    exposed = front + once + max(0.0, behind - compute)
    update = done.update / (half * machine.kernels) + done.optimizer / (machine.bandwidth * machine.wires)
    return Time(compute, bubble, exposed, update)
