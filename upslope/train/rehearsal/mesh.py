"""How ranks divide a model and a batch, which divisions are illegal, and all that are legal."""

from __future__ import annotations

from collections.abc import Iterator

from upslope.model.config import FFN, MLA, Attention, Compressed, Gated, Layer, Lightning, Mamba2, ModelConfig, MoE, Relu2
from upslope.parallel.config import Mesh
from upslope.parallel.stages import boundaries
from upslope.train.rehearsal.job import Job

TILE = 128
"""Channels that share a scale in FP8 training (DeepSeek-V3): every rank's part of a width must be whole tiles."""


def _heads(layer: Layer) -> tuple[int, int]:
    m = layer.mixer
    if isinstance(m, Attention):
        return m.heads, m.kv_heads
    if isinstance(m, MLA | Lightning):
        return m.heads, m.heads
    if isinstance(m, Compressed):
        return m.groups, m.groups  # the output projection is split by group
    if isinstance(m, Mamba2):
        return m.heads, m.groups
    return 0, 0


def _hidden(ffn: FFN) -> list[int]:
    if isinstance(ffn, MoE):
        return [ffn.expert.hidden] + ([ffn.shared.hidden] if ffn.shared else [])
    return [ffn.hidden] if isinstance(ffn, Gated | Relu2) else []


def problems(model: ModelConfig, job: Job, ranks: int, mesh: Mesh) -> tuple[str, ...]:
    """Every reason why a mesh is illegal, with the numbers that do not divide; empty = legal."""
    out: list[str] = []

    def divides(what: str, n: int, axis: str, by: int) -> None:
        if n % by:
            out.append(f"{what} = {n} is not divisible by {axis} = {by}")

    if mesh.ranks != ranks:
        out.append(f"dp x fsdp x tp x cp x pp = {mesh.ranks} is not ranks = {ranks}")
    pieces = mesh.pp * mesh.virtual
    if boundaries(model, pieces) is None:
        name = "pp" if mesh.virtual == 1 else "pp x virtual"
        out.append(f"layers = {model.depth} is not divisible by {name} = {pieces}, nor with embedding, head and MTP counted")
    divides("ranks of fsdp x cp", mesh.shards, "ep", mesh.ep)
    divides("length", job.length, "cp", mesh.cp)
    if mesh.sequence and job.length % mesh.cp == 0:
        divides("length / cp", job.length // mesh.cp, "tp", mesh.tp)
    one = job.length * job.micro * mesh.data
    divides("batch", job.batch, "length x micro x dp x fsdp", one)
    if mesh.virtual > 1 and job.batch % one == 0:
        divides("micro-steps", job.batch // one, "pp (virtual > 1)", mesh.pp)
    divides("d_model", model.d_model, "tp", mesh.tp)
    divides("vocab", model.vocab, "tp", mesh.tp)
    tile = TILE if job.precision == "fp8" else 1
    divides("d_model", model.d_model, "fp8 tile", tile)
    experts = False
    for name, layer in model.blocks.items():
        heads, kv = _heads(layer)
        split = mesh.tp * mesh.cp
        divides(f"{name}: heads", heads, "tp" if mesh.cp == 1 else "tp x cp", split)
        divides(f"{name}: kv_heads", kv, "tp", mesh.tp)
        if kv and kv % split and split % kv:
            out.append(f"{name}: kv_heads = {kv} and tp x cp = {split}: neither divides the other")
        for hidden in _hidden(layer.ffn):
            divides(f"{name}: hidden", hidden, "tp" if tile == 1 else f"tp x tile of {tile}", mesh.tp * tile)
        if isinstance(layer.ffn, MoE):
            experts = True
            divides(f"{name}: experts", layer.ffn.experts, "ep", mesh.ep)
    if mesh.ep > 1 and not experts:
        out.append(f"ep = {mesh.ep}: the model has no experts")
    return tuple(dict.fromkeys(out))


def divisors(n: int) -> list[int]:
    """All divisors of n, rising."""
    return [i for i in range(1, n + 1) if n % i == 0]


def candidates(model: ModelConfig, job: Job, ranks: int, node: int) -> Iterator[Mesh]:
    """All legal meshes: tp within a node, ep as wide as the experts allow, HSDP only where the shards fill at least a node."""
    experts = [layer.ffn.experts for layer in model.blocks.values() if isinstance(layer.ffn, MoE)]
    for tp in (n for n in divisors(ranks) if n <= node):
        for pp in (n for n in divisors(ranks // tp) if boundaries(model, n) is not None):
            for cp in (n for n in divisors(ranks // tp // pp) if tp * n <= max(_heads(b)[0] for b in model.blocks.values())):
                rest = ranks // tp // pp // cp
                if problems(model, job, ranks, Mesh(fsdp=rest, tp=tp, cp=cp, pp=pp)):
                    continue
                for fsdp in (n for n in divisors(rest) if n == rest or tp * cp * n >= node or n == 1):
                    for ep in (n for n in divisors(fsdp * cp) if n == 1 or (experts and all(e % n == 0 for e in experts))):
                        for zero in (1, 2, 3) if fsdp * cp > 1 else (3,):
                            yield Mesh(dp=rest // fsdp, fsdp=fsdp, tp=tp, cp=cp, pp=pp, ep=ep, zero=zero)
