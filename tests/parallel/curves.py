"""Tiny models and steps for comparing meshes with one process, in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from upslope.config import FrozenDict
from upslope.model.config import (
    MLA,
    MTP,
    Attention,
    AuxLoss,
    BiasBalance,
    Gated,
    Indexer,
    Layer,
    ModelConfig,
    MoE,
    Normal,
    Reuse,
    Rope,
    Router,
    Tied,
    TopK,
    Untied,
)
from upslope.model.heads import ScalarHead
from upslope.model.init import initialise
from upslope.model.transformer import Transformer
from upslope.optim.config import AdamW, Muon
from upslope.parallel.assemble import assemble
from upslope.parallel.config import Mesh, Recompute
from upslope.parallel.groups import Groups
from upslope.train.batch import Batch
from upslope.train.losses import Imitate
from upslope.train.many import Many
from upslope.train.trainer import Trainer

VOCAB, WIDTH = 24, 16
ROPE = Rope(base=50.0)
ATTENTION = Attention(heads=4, kv_heads=2, head_dim=8, position=ROPE)
TERMS = (AuxLoss(weight=0.3, over="sequence"), AuxLoss(weight=0.5, over="global"), BiasBalance(rate=0.01))
EXPERTS = MoE(experts=4, expert=Gated(hidden=8), router=Router(score="sigmoid", select=TopK(k=2), z_loss=0.01), balance=TERMS)


LATENT = MLA(
    heads=4,
    q_latent=8,
    kv_latent=8,
    nope_dim=4,
    rope_dim=4,
    value_dim=4,
    position=ROPE,
    select=Indexer(heads=2, dim=6, top_k=3, rope=Rope(base=50.0, fraction=2 / 3), loss=0.4),
)


def config_of(kind: str) -> ModelConfig:
    """dense: two blocks; plain: without QK-norm; reuse: every other one reads keys and values of the one below; moe: a dense and a routed
    block, tied; mtp: with latent attention, indexers and predictors.
    """
    mixer = ATTENTION.replace(qk_norm=None) if kind == "plain" else ATTENTION
    routed = Layer(mixer=LATENT if kind == "mtp" else mixer, ffn=EXPERTS)
    layers = {"d": Layer(mixer=mixer, ffn=Gated(hidden=24)), "e": routed, "r": Layer(mixer=mixer.replace(kv=Reuse()), ffn=Gated(hidden=24))}
    names = {"dense": "dd", "plain": "dd", "reuse": "drdr", "moe": "de", "mtp": "de"}[kind]
    blocks: FrozenDict[str, Layer] = FrozenDict({n: layers[n] for n in dict.fromkeys(names)})
    head = Tied() if kind == "moe" else Untied()
    mtp = MTP(depth=2, block="e", weight=0.3, shared=True) if kind == "mtp" else None
    pattern = tuple((n, 1) for n in names)
    return ModelConfig(d_model=WIDTH, blocks=blocks, pattern=pattern, vocab=VOCAB, head=head, init=Normal(std=0.3), mtp=mtp)


def model_of(kind: str) -> Transformer:
    """The whole model, the same in every process."""
    return initialise(Transformer(config_of(kind)), 0).double()


def batch_of(step: int, segments: int = 7) -> Batch:
    """Segments of 3 … 12 tokens, a function of the step."""
    g = torch.Generator().manual_seed(step)
    sizes = torch.randint(3, 13, (segments,), generator=g).tolist()
    b = Batch.of([torch.randint(0, VOCAB, (n,), generator=g) for n in sizes])
    return b.__class__(**{**b.__dict__, "imitate": (b.pos > 0).double()})


def optim_of(name: str) -> AdamW | Muon:
    """Optimizers whose products stay in float64."""
    return AdamW(lr=3e-3) if name == "adamw" else Muon(lr=3e-3, ns_dtype="fp32", split="heads" if name == "heads" else "none")


class Curve(NamedTuple):
    """Loss and gradient norm of each step, and the whole final state by name."""

    losses: list[float]
    norms: list[float]
    state: dict[str, Tensor]


def trained(kind: str, optim: str, mesh: Mesh | None, steps: int, micro: int = 20, recomputed: Recompute | None = None) -> Curve:
    """Trains on this rank's share of each step; without a mesh alone."""
    model = model_of(kind)
    config = optim_of(optim)
    if mesh is None:
        trainer = Trainer(model, config, clip=0.5, micro_tokens=micro, chunk=8)
    else:
        trainer = trainer_on(model, config, mesh, micro, recomputed)
    losses, norms = [], []
    for step in range(steps):
        report = trainer.step(batch_of(step), Imitate(), 3e-3)
        losses.append(report.loss)
        norms.append(report.grad_norm)
    state = trainer.state()
    return Curve(losses, norms, {n: t.clone() for n, t in state.items()} if mesh is None else gathered(trainer, state))


def trainer_on(
    model: Transformer, config: AdamW | Muon, mesh: Mesh, micro: int, recomputed: Recompute | None = None, scalar: ScalarHead | None = None
) -> Trainer:
    """A trainer on a mesh."""
    ranks = Many(assemble(model, Groups.of(mesh), recomputed), scalar)
    return Trainer(model, config, clip=0.5, micro_tokens=micro, chunk=8, ranks=ranks, scalar=scalar)


def gathered(trainer: Trainer, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The whole state, on every rank, from the pieces that the ranks would save."""
    import torch.distributed as dist

    every: list[Any] = [None] * trainer.ranks.world
    dist.all_gather_object(every, trainer.ranks.pieces(state))
    found: dict[str, list[Any]] = {}
    for piece in (p for one in every for p in one):
        found.setdefault(piece.name, []).append(piece)
    whole = {}
    for name, parts in found.items():
        parts.sort(key=lambda p: p.start)
        whole[name] = torch.cat([p.data for p in parts]) if parts[0].shape else parts[0].data
        assert tuple(whole[name].shape) == parts[0].shape, name
        assert [p.start for p in parts] == [0, *(p.stop for p in parts[:-1])], name
    return whole
