"""Bytes that the fullest rank holds at its peak, by kind."""

from __future__ import annotations

from typing import NamedTuple

from upslope.optim.config import Muon
from upslope.parallel.config import Mesh
from upslope.train.rehearsal.job import WIDTH, Job
from upslope.train.rehearsal.sizes import Entry, Stage


class Memory(NamedTuple):
    """Bytes of a rank by kind. weights: as the optimizer updates them. gathered: copies that products read. gradients, states: of the
    optimizer. activations: kept for backward, of all micro-steps in flight. logits: and their gradient. dispatch: expert buffers."""

    weights: float = 0
    gathered: float = 0
    gradients: float = 0
    states: float = 0
    activations: float = 0
    logits: float = 0
    dispatch: float = 0

    @property
    def total(self) -> float:
        """Their sum, bytes."""
        return sum(self)


def split(entry: Entry, mesh: Mesh) -> tuple[float, float]:
    """(dense, expert) parameters of an entry on one rank before FSDP: tp splits all but vectors, ep splits experts."""
    return entry.vectors + (entry.matrices + entry.tables) / mesh.tp, entry.experts / (mesh.tp * mesh.ep)


def shard(entry: Entry, mesh: Mesh) -> float:
    """Parameters of an entry whose states one rank owns."""
    dense, experts = split(entry, mesh)
    return dense / mesh.shards + experts / (mesh.shards / mesh.ep)


def state_bytes(entry: Entry, job: Job, mesh: Mesh) -> float:
    """Bytes of optimizer states that one rank owns: two moments for AdamW; Muon has one for the matrices of blocks and experts; a float32
    master where 16-bit weights are updated through one."""
    own = shard(entry, mesh)
    moments = 2 * own
    if isinstance(job.optim, Muon):
        moments -= shard(Entry(matrices=entry.matrices, experts=entry.experts), mesh)
    master = own * WIDTH["fp32"] if job.weights == "bf16" and job.optim.narrow_weights == "master" else 0.0
    return moments * WIDTH[job.states] + master


def kept_bytes(entry: Entry, job: Job, mesh: Mesh, d: int, policy: str | None = None) -> float:
    """Bytes that one micro-step leaves in an entry for backward, on one rank."""
    tokens, width = job.micro * job.length / mesh.cp, WIDTH[job.precision]
    policy, kept, stream_split = policy or job.recompute, entry.kept, mesh.tp if mesh.sequence else 1
    if policy == "full":
        return tokens * d * width / stream_split
    stream, inner = (kept.stream, kept.inner) if policy == "none" else (kept.stream_products, kept.inner_products)
    inner = kept.inner_second if policy == "alternate" else inner
    scores = 2 * kept.scores * job.length if job.attention == "eager" and policy == "none" else 0.0
    return tokens * width * (stream / stream_split + (inner + scores) / mesh.tp)


def logit_bytes(job: Job) -> float:
    """Of one logit at the peak. In chunks: itself, a float32 log-probability, its gradient. Unfused: three float32 tensors, the saved
    log-probabilities, their gradient, and that of the float32 logits."""
    return 12.0 if job.chunk is None else 2 * WIDTH[job.precision] + 4


def memory(stage: Stage, flying: float, job: Job, mesh: Mesh, vocab: int, d: int) -> Memory:
    """Bytes of a rank of a pipeline stage that has `flying` micro-steps in flight."""
    parameters = sum(n * shard(e, mesh) for e, n in stage)
    whole = [sum(split(e, mesh)) for e, n in stage for _ in range(n)]
    read, master = WIDTH[job.precision], WIDTH[job.weights]
    if mesh.zero == 3 and mesh.shards > 1:
        gathered = sum(sorted(whole)[-2:]) * read  # the one in use and the one being fetched
    elif mesh.shards > 1 or read != master:
        gathered = sum(whole) * read
    else:
        gathered = 0.0
    if mesh.zero == 1:
        gradients = sum(whole) * WIDTH[job.gradients]
    else:
        gradients = parameters * WIDTH[job.gradients]
        gradients += max(whole) * WIDTH[job.gradients] if mesh.shards > 1 else 0.0  # of one entry, before they are reduced
    activations = flying * sum(n * kept_bytes(e, job, mesh, d) for e, n in stage)
    if job.recompute != "none":  # one entry at a time is whole again in backward
        activations += max(kept_bytes(e, job, mesh, d, "none") for e, _ in stage)
    tokens, width = job.micro * job.length // mesh.cp, WIDTH[job.precision]
    logits = min(tokens, job.chunk or tokens) * vocab / mesh.tp * logit_bytes(job) if any(e.logits for e, _ in stage) else 0.0
    dispatch = 2 * max(e.routed for e, _ in stage) * tokens * width * job.imbalance if mesh.ep > 1 else 0.0
    return Memory(
        parameters * master, gathered, gradients, sum(n * state_bytes(e, job, mesh) for e, n in stage), activations, logits, dispatch
    )
