"""Loss and gradients of one step, however it is split, packed, padded or ordered: by norm, in float64 and float32, over all columns.

    python benchmarks/train_invariance.py [--json]

The loss reads everything that a batch can hold: imitation with z-loss, a policy gradient with reference and entropy, a critic's returns and
old values, distillation, pairs with reference, scores, and replayed kept sets. The reference is one pass over the whole step.

split: parts of few tokens, and few rows of logits at a time. order: segments and pairs permuted. pack: each segment in a forward pass of
its own, without masks between segments. pad: tokens that nobody reads after each segment; there scores, which read a segment's last
token, and losses over all tokens (balance, indexer), which count every token, are left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from upslope.config import FrozenDict
from upslope.model.aux import Aux
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
    Rope,
    Router,
    TopK,
)
from upslope.model.heads import ScalarHead
from upslope.model.init import initialise
from upslope.model.transformer import Transformer
from upslope.optim.config import AdamW
from upslope.rl.kl import KL
from upslope.rl.objective import Objective
from upslope.train.batch import Batch, Distil, Policy, Replay, Totals
from upslope.train.losses import DPO, BradleyTerry, DistilLoss, Imitate
from upslope.train.protocol import Out, Sums
from upslope.train.trainer import Trainer

VOCAB, WIDTH = 23, 16
SIZES = (5, 9, 3, 7, 4, 6, 2, 8)
BAR = 1e-10


@dataclass(frozen=True)
class Everything:
    """A loss over every column. score: whether the scalar head's scores are part of it."""

    score: bool = True

    @property
    def wants(self) -> frozenset[str]:
        """Fields of `Out`."""
        return frozenset({"logprob", "entropy", "lse", "top", "value"} | ({"score"} if self.score else set()))

    def __call__(self, out: Out, b: Batch, total: Totals, sums: Sums | None) -> tuple[Tensor, Sums]:
        """The sum of all losses, each with its own denominator; the critic's is half the squared error, clipped around the old value."""
        policy = Objective(kl=KL(coefficient=0.3), entropy=0.2, mismatch=2.0).loss()
        terms = [Imitate(z_loss=0.1), policy, DistilLoss(beta=0.3), DPO(beta=0.5, nll=0.2)]
        terms += [BradleyTerry()] if self.score else []
        loss, stats = torch.zeros((), dtype=torch.float64), Sums()
        for term in terms:
            value, said = term(out, b, total, sums)  # type: ignore[operator]
            loss, stats = loss + value, stats.plus(said)
        p = b.policy
        assert p is not None and p.returns is not None and p.values is not None and out.value is not None
        near = p.values + (out.value - p.values).clamp(-0.2, 0.2)
        error = torch.maximum((out.value - p.returns).square(), (near - p.returns).square())
        return loss + 0.5 * (p.weight * error).sum() / total.policy, stats


def batch(dtype: torch.dtype, seed: int = 0) -> Batch:
    """Eight segments in four pairs with every column."""
    g = torch.Generator().manual_seed(seed)
    b = Batch.of([torch.randint(0, VOCAB, (n,), generator=g) for n in SIZES])
    tokens, after = len(b), (b.pos > 0).double()

    def noise() -> Tensor:
        return torch.randn(tokens, generator=g, dtype=torch.float64)

    teacher = torch.log_softmax(2 * torch.randn(tokens, VOCAB, generator=g, dtype=torch.float64), -1)
    ids = teacher.topk(4).indices
    logprobs = teacher.gather(-1, ids)
    weight = after * (0.5 + torch.rand(tokens, generator=g, dtype=torch.float64))
    policy = Policy(weight, *(after * noise() for _ in range(6)))
    kept = torch.stack([torch.randperm(VOCAB, generator=g)[:9] for _ in range(tokens)])
    kept[:, 0] = b.ids  # what was sampled was kept
    kept[torch.rand(tokens, generator=g) < 0.3] = -1
    given = replace(
        b,
        imitate=after * (noise() > -0.7),
        policy=policy,
        distil=Distil(weight, ids, logprobs, torch.log1p(-logprobs.exp().sum(-1))),
        pairs=torch.tensor([[0, 5], [3, 1], [2, 4], [6, 7]]),
        ref=-noise()[: len(SIZES)].abs(),
        replay=Replay(kept=kept),
    )
    return cast(given, dtype)


def cast(part: Any, dtype: torch.dtype) -> Any:
    """Floating-point columns in a dtype."""
    if isinstance(part, Tensor):
        return part.to(dtype) if part.is_floating_point() else part
    if hasattr(part, "__dataclass_fields__"):
        return replace(part, **{n: cast(getattr(part, n), dtype) for n in part.__dataclass_fields__})
    return part


def padded(b: Batch, extra: int = 3) -> Batch:
    """`extra` tokens that nobody reads after each segment."""
    place = torch.cat([torch.cat([(b.seg == s).nonzero()[:, 0], torch.full((extra,), -1)]) for s in range(b.segments)])
    lengths = b.lengths() + extra
    real = place >= 0

    def spread(part: Any) -> Any:
        if isinstance(part, Tensor):
            mask = real.view(-1, *[1] * (part.ndim - 1))
            return torch.where(mask, part[place.clamp_min(0)], torch.zeros((), dtype=part.dtype))
        if part is None:
            return None
        return replace(part, **{n: spread(getattr(part, n)) for n in part.__dataclass_fields__})

    return replace(
        b,
        ids=spread(b.ids),
        seg=torch.repeat_interleave(torch.arange(b.segments), lengths),
        pos=torch.cat([torch.arange(int(n)) for n in lengths]),
        imitate=spread(b.imitate),
        policy=spread(b.policy),
        distil=spread(b.distil),
        replay=spread(b.replay),
    )


class Alone(nn.Module):
    """A model that passes over one segment at a time, as if there were no others."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.inner, self.config, self.logits = model, model.config, model.logits

    def forward(self, ids: Tensor, seg: Tensor, pos: Tensor, aux: Aux | None = None) -> Tensor:
        """Hidden states (T, d)."""
        rows, merged, segments = [], None, int(seg[-1]) + 1
        for s in range(segments):
            one = None if aux is None else Aux(aux.wants)
            rows.append(self.inner(ids[seg == s], **({} if one is None else {"aux": one})))
            merged = one if merged is None or one is None else merged + one
        if aux is not None and merged is not None:
            aux.index, aux.mtp = merged.index, merged.mtp
            for (
                layer,
                stats,
            ) in merged.router.items():  # a layer that serves several depths passes several times: pass by pass, not by segment
                by_pass = torch.arange(len(stats.lengths)).view(segments, -1).T.flatten()
                aux.router[layer] = stats._replace(**{n: getattr(stats, n)[by_pass] for n in ("counts", "probs", "square", "lengths")})
        return torch.cat(rows)


def models(counting: bool = True) -> dict[str, ModelConfig]:
    """Dense; experts with balance losses; dense and experts with multi-token prediction; latent attention with an indexer.

    counting: whether there are losses over all tokens of the step.
    """
    rope = Rope(base=50.0, layout="interleaved")
    attention = Attention(heads=2, kv_heads=1, head_dim=8, position=rope)
    terms = (AuxLoss(weight=0.3, over="sequence"), AuxLoss(weight=0.5, over="global"), BiasBalance(rate=0.01)) if counting else ()
    router = Router(score="sigmoid", select=TopK(k=2), scale=1.5, z_loss=0.05 if counting else 0.0)
    moe = MoE(experts=4, expert=Gated(hidden=8), router=router, balance=terms, shared=Gated(hidden=6))
    select = Indexer(heads=2, dim=6, top_k=3, rope=Rope(base=50.0, fraction=2 / 3), loss=0.4 if counting else 0.0)
    latent = MLA(heads=2, q_latent=6, kv_latent=6, nope_dim=4, rope_dim=4, value_dim=4, position=rope, select=select)

    def config(*layers: Layer, mtp: MTP | None = None) -> ModelConfig:
        blocks = {f"b{i}": layer for i, layer in enumerate(layers)}
        pattern = tuple((name, 1) for name in blocks)
        return ModelConfig(d_model=WIDTH, blocks=FrozenDict(blocks), pattern=pattern, vocab=VOCAB, init=Normal(std=0.4), mtp=mtp)

    plain, mixed = Layer(mixer=attention, ffn=Gated(hidden=24)), Layer(mixer=attention, ffn=moe)
    return {
        "dense": config(plain, plain),
        "experts": config(mixed, mixed),
        "multi-token": config(plain, mixed, mtp=MTP(depth=2, block="b1", weight=0.6, shared=True)),
        "sparse attention": config(Layer(mixer=latent, ffn=Gated(hidden=24)), mixed),
    }


class Found(NamedTuple):
    """A step's loss, and its gradients by name."""

    loss: float
    grads: dict[str, Tensor]


def step(
    config: ModelConfig, b: Batch, dtype: torch.dtype, *, micro: int = 0, chunk: int = 4096, alone: bool = False, score: bool = True
) -> Found:
    """One step without its update."""
    model = initialise(Transformer(config), 0).to(dtype)
    head = ScalarHead(WIDTH).to(dtype)
    with torch.no_grad():
        head.weight.copy_(torch.linspace(-1, 1, WIDTH))
    trainer = Trainer(Alone(model) if alone else model, AdamW(), clip=None, micro_tokens=micro, chunk=chunk, scalar=head)
    seen: dict[str, Tensor] = {}

    def note(lr: float) -> None:
        named = trainer.named_parameters().items()
        seen.update({n.removeprefix("inner."): p.grad.clone() for n, p in named if p.grad is not None})

    trainer.optimizer.step = note  # type: ignore[method-assign]
    return Found(trainer.step(b, Everything(score), 1e-3).loss, seen)


def distance(a: Found, b: Found) -> dict[str, float]:
    """Relative differences: of the loss, of the gradients by norm over all parameters."""
    assert a.grads.keys() == b.grads.keys()
    off = torch.stack([(a.grads[n] - b.grads[n]).double().norm() for n in a.grads]).norm()
    return {
        "loss": abs(a.loss - b.loss) / abs(a.loss),
        "gradient": float(off / torch.stack([g.double().norm() for g in a.grads.values()]).norm()),
    }


def shuffled(b: Batch) -> Batch:
    """Segments in another order, pairs too."""
    found = b.select(torch.tensor([4, 0, 7, 3, 1, 6, 2, 5]))
    assert found.pairs is not None
    return replace(found, pairs=found.pairs.flip(0))


def measure(name: str, dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """Distances of each variant of one model."""
    config, b = models()[name], batch(dtype)
    whole = step(config, b, dtype)
    variants: dict[str, Callable[[], Found]] = {
        **{f"split {m}": lambda m=m: step(config, b, dtype, micro=m, chunk=7) for m in (1, 20, 30)},  # type: ignore[misc]
        "order": lambda: step(config, shuffled(b), dtype),
        "order, split 20": lambda: step(config, shuffled(b), dtype, micro=20),
        "pack": lambda: step(config, b, dtype, alone=True),
    }
    out = {variant: distance(whole, run()) for variant, run in variants.items()}
    plain = models(counting=False)[name]
    read = step(plain, b, dtype, score=False)
    out["pad"] = distance(read, step(plain, padded(b), dtype, score=False))
    out["pad, split 20"] = distance(read, step(plain, padded(b), dtype, micro=20, score=False))
    return out


def main() -> None:
    """All models in both dtypes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    out = {str(d).removeprefix("torch."): {n: measure(n, d) for n in models()} for d in (torch.float64, torch.float32)}
    worst = {d: max(v for m in found.values() for row in m.values() for v in row.values()) for d, found in out.items()}
    result = {"torch": torch.__version__, "worst": worst, "bar": BAR, "rows": out}
    if args.json:
        print(json.dumps(result, indent=1))
        return
    print({k: result[k] for k in ("torch", "worst", "bar")})
    for dtype, found in out.items():
        for name, rows in found.items():
            for variant, row in rows.items():
                print(f"{dtype}  {name:17} {variant:16} loss {row['loss']:.1e}  gradient {row['gradient']:.1e}")


if __name__ == "__main__":
    main()
