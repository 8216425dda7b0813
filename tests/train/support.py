"""A tiny model and batches with every kind of column, in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from upslope.model.config import ModelConfig, Normal, dense
from upslope.model.heads import ScalarHead
from upslope.model.init import initialise
from upslope.model.transformer import Transformer
from upslope.train.batch import Batch, Distil, Policy

VOCAB, WIDTH = 23, 16
CONFIG: ModelConfig = dense(WIDTH, 2, 2, 1, 8, 24, context=64, vocab=VOCAB, init=Normal(std=0.3))


def model(dtype: torch.dtype = torch.float64, seed: int = 0) -> Transformer:
    return initialise(Transformer(CONFIG), seed).to(dtype)


def scalar(dtype: torch.dtype = torch.float64) -> ScalarHead:
    head = ScalarHead(WIDTH)
    with torch.no_grad():
        head.weight.copy_(torch.linspace(-1, 1, WIDTH))
    return head.to(dtype)


def batch(
    sizes: tuple[int, ...] = (5, 9, 3, 7, 4, 6), seed: int = 0, dtype: torch.dtype = torch.float64, k: int = 4, full: bool = False
) -> Batch:
    """Segments with all columns; consecutive segments are pairs."""
    g = torch.Generator().manual_seed(seed)
    b = Batch.of([torch.randint(0, VOCAB, (n,), generator=g) for n in sizes])
    after = (b.pos > 0).to(dtype)
    t = len(b)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    teacher = torch.log_softmax(2 * noise(t, VOCAB), -1)
    ids = torch.arange(VOCAB).expand(t, VOCAB) if full else teacher.topk(k).indices
    logprobs = teacher.gather(-1, ids)
    rest = torch.full((t,), -torch.inf, dtype=dtype) if full else torch.log1p(-logprobs.exp().sum(-1))
    weight = after * (0.5 + torch.rand(t, generator=g, dtype=torch.float64).to(dtype))
    return replace(
        b,
        imitate=after * (noise(t) > -0.7),
        distil=Distil(weight, ids, logprobs, rest),
        policy=Policy(after, after * noise(t), after * noise(t), after * noise(t)),
        pairs=torch.arange(len(sizes)).view(-1, 2),
        ref=-noise(len(sizes)).abs(),
    )


def only(b: Batch, *names: str) -> Batch:
    """The batch with just some of its optional columns."""
    optional = ("imitate", "policy", "distil", "pairs", "ref", "replay")
    return replace(b, **{n: None for n in optional if n not in names})


def grads(trainer: Any) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in trainer.named_parameters().items() if p.grad is not None}
