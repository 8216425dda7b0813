"""Tiny models with every knob loud, an objective that reads all that a model gives, and its gradients put together from all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.model.support import loud, segments, tokens
from tests.parallel.support import distance
from upslope.config import FrozenDict
from upslope.machine.rng import rng
from upslope.model.aux import ALL, Aux
from upslope.model.config import (
    CSA,
    MLA,
    MTP,
    Attention,
    BiasBalance,
    Compressed,
    Gated,
    Hashed,
    HyperConnections,
    Indexer,
    Layer,
    Lightning,
    Mamba2,
    ModelConfig,
    MoE,
    QKNorm,
    Relu2,
    Reuse,
    Rope,
    Router,
    Tied,
    TopK,
)
from upslope.model.moe import Experts
from upslope.model.transformer import Transformer
from upslope.parallel.comm import joined, summed
from upslope.parallel.context import apply_context
from upslope.parallel.expert import apply_expert
from upslope.parallel.groups import Groups
from upslope.parallel.table import TABLE, Placement
from upslope.parallel.tensor import apply_tensor

ROPE, TURN = Rope(base=50.0), Rope(base=50.0, layout="interleaved")
VOCAB = 40


def model_of(blocks: dict[str, Layer], pattern: tuple[str, ...], **more: Any) -> ModelConfig:
    return ModelConfig(d_model=16, blocks=FrozenDict(blocks), pattern=pattern, vocab=VOCAB, context=64, **more)  # type: ignore[arg-type]


def gqa(**more: Any) -> Attention:
    return Attention(**{"heads": 8, "kv_heads": 4, "head_dim": 4, "position": ROPE, **more})


def mla(**more: Any) -> MLA:
    plain = {"heads": 4, "q_latent": 10, "kv_latent": 6, "nope_dim": 4, "rope_dim": 2, "value_dim": 5, "position": TURN}
    return MLA(**{**plain, **more})


def moe(**more: Any) -> MoE:
    router = Router(score="sigmoid", select=TopK(k=2), scale=1.3, bias=True)
    plain = {"experts": 4, "expert": Gated(hidden=8, bias=True), "router": router, "shared": Gated(hidden=12), "balance": (BiasBalance(),)}
    return MoE(**{**plain, **more})


FFN = Gated(hidden=24)
LOUD = gqa(window=5, gate=True, sinks=True, bias="all", value_dim=6)
HYPER = HyperConnections(streams=2, iterations=2)
HASHED = moe(experts=8, expert=Relu2(hidden=8), shared=Relu2(hidden=12), latent=12, router=Router(select=Hashed(k=3)))
CSA_MIXER = Compressed(
    heads=4,
    head_dim=8,
    q_latent=6,
    window=3,
    history=CSA(rate=2, index_heads=2, index_dim=6, top_k=2),
    position=TURN.replace(fraction=0.5, part="trailing"),
    groups=2,
    group_dim=5,
)
CASES: dict[str, ModelConfig] = {
    "dense": model_of(
        {
            "a": Layer(mixer=LOUD, ffn=Gated(hidden=24, bias=True)),
            "b": Layer(mixer=gqa(softcap=3.0, qk_norm=QKNorm(over="full", gain="zero", place="after")), ffn=Relu2(hidden=24)),
            "c": Layer(mixer=gqa(kv=Reuse()), ffn=FFN),
        },
        ("a", "b", "c"),
        logit_softcap=4.0,
    ),
    "tied": model_of({"a": Layer(mixer=gqa(qk_norm=None), ffn=FFN)}, ("a",), head=Tied(), embed_scale="sqrt_d"),
    "experts": model_of({"a": Layer(mixer=gqa(), ffn=moe()), "b": Layer(mixer=gqa(), ffn=HASHED)}, ("a", "b"), mtp=MTP(block="a", depth=2)),
    "latent": model_of(
        {
            "a": Layer(mixer=mla(select=Indexer(heads=3, dim=4, top_k=3, rope=TURN)), ffn=FFN),
            "b": Layer(mixer=mla(select=Reuse()), ffn=FFN),
            "c": Layer(mixer=mla(q_latent=None), ffn=moe()),
        },
        ("a", "b", "c"),
    ),
    "others": model_of(
        {
            "a": Layer(mixer=Lightning(heads=2, head_dim=4), ffn=FFN, residual=HYPER),
            "b": Layer(mixer=Mamba2(heads=4, head_dim=4, state=3, groups=2, conv=3), ffn=FFN, residual=HYPER),
            "c": Layer(mixer=CSA_MIXER, ffn=FFN, residual=HYPER),
            "d": Layer(mixer=gqa(), ffn=FFN, residual=HYPER),
        },
        ("a", "b", "c", "d"),
    ),
}


def made(config: ModelConfig) -> Transformer:
    """A whole model in float64, weights, selection biases and tables far from neutral; the same on every rank."""
    model = loud(config, dtype=torch.float64)
    for name, buffer in model.named_buffers():
        noise = rng(1, "buffer", name)
        if name.endswith("select_bias"):
            buffer.copy_(torch.from_numpy(noise.standard_normal(buffer.shape)) * 0.3)
        elif name.endswith("table"):
            buffer.copy_(torch.from_numpy(noise.random((len(buffer), 8)).argsort(1)[:, : buffer.shape[1]].copy()))
    return model


class Part:
    """Segments of these lengths: every `step`-th from `start`, with the columns and weights that they have in the whole."""

    def __init__(self, lengths: tuple[int, ...], start: int = 0, step: int = 1) -> None:
        total, seg = sum(lengths), segments(*lengths)
        at = (seg % step == start).nonzero()[:, 0]
        self.seg = seg[at] // step
        self.ids, self.target = tokens(total, VOCAB)[at], tokens(total, VOCAB, 1)[at]
        self.weight = torch.from_numpy(rng(2, "weight").standard_normal(total))[at]


def objective(model: Transformer, b: Part, wants: frozenset[Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """(a sum over tokens of something of all that the model says, what it said)."""
    aux = Aux(wants)
    hidden = model(b.ids, b.seg, aux=aux)
    loss, said = hidden.new_zeros(()), {"hidden": hidden}
    for name, h in (("logits", hidden), *((f"mtp.{k}", h) for k, h in enumerate(aux.mtp))):
        said[name] = model.logits(h)
        loss = loss - (torch.log_softmax(said[name], -1).gather(1, b.target[:, None])[:, 0] * b.weight).sum()
    for i, stats in aux.router.items():
        slope = torch.from_numpy(rng(3, "slope").standard_normal(stats.probs.shape[1]))
        loss = loss + (stats.probs @ slope).sum() + 0.1 * stats.square.sum()
        said |= {f"router.{i}.{k}": v for k, v in stats._asdict().items() if isinstance(v, Tensor)}
    for i, (total, _) in aux.index.items():
        loss, said[f"index.{i}"] = loss + 0.1 * total, total
    said |= {f"max_logit.{i}": v for i, v in aux.max_logit.items()}
    return loss, said


def whole(grad: Tensor, place: Placement, groups: Groups) -> Tensor:
    """A gradient of the whole model from all ranks' parts: summed over ranks with other tokens, joined over the axes that cut it."""
    grad = summed(grad, groups["replicas" if place.over("ep") else "tokens"])
    for cut in place.cuts:
        grad = joined(grad, groups[cut.axis], cut.dim, place.shape[cut.dim])  # type: ignore[index]
    return grad


def by_product(model: Transformer) -> None:
    """Experts take a product that is handed to them, here the plain one, as they do in emulated low precision."""
    for m in model.modules():
        if isinstance(m, Experts):
            m.product = lambda rows, matrix, leaf, expert: rows @ matrix.T


def installed(model: nn.Module, groups: Groups) -> None:
    """All axes that a model knows of."""
    apply_tensor(model, groups)
    apply_expert(model, groups)
    apply_context(model, groups)


def differences(
    config: ModelConfig,
    groups: Groups,
    lengths: tuple[int, ...],
    wants: frozenset[Any] = ALL,
    prepare: Callable[[Transformer], Any] = lambda model: None,
) -> dict[str, float]:
    """How far a model over ranks is from the same on one: what it says, loss, gradients, each by relative norm.

    prepare: changes the whole models first.
    """
    alone, over, data = made(config), made(config), groups["data"]
    prepare(alone)
    prepare(over)
    places = TABLE.placements(alone, groups)
    installed(over, groups)
    loss, _ = objective(alone, Part(lengths), wants)
    loss.backward()
    own = Part(lengths, data.index, data.size)
    share, said = objective(over, own, wants)
    share.backward()
    with torch.no_grad():
        _, expected = objective(alone, own, wants)
    out = {name: distance(value, expected[name]) for name, value in said.items()}
    out["loss"] = distance(summed(share, data), loss.detach())
    parameters = dict(alone.named_parameters())
    for name, p in over.named_parameters():
        grad = torch.zeros_like(p) if p.grad is None else p.grad
        wanted = parameters[name].grad
        out[f"grad {name}"] = distance(whole(grad, places[name], groups), torch.zeros_like(parameters[name]) if wanted is None else wanted)
    return out


Found = list[dict[str, dict[str, float]]]
"""By rank and case."""
LIMIT = 1e-10


def too_far(found: Found, case: str) -> dict[str, float]:
    """What differs by more than rounding on some rank; every rank found the same things."""
    assert all(rank[case].keys() == found[0][case].keys() for rank in found)
    return {f"rank {i}: {name}": d for i, rank in enumerate(found) for name, d in rank[case].items() if not d <= LIMIT}
