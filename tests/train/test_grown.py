"""Going on as another model: dense attention gets an indexer, which warms up alone and then chooses; what is frozen stays."""

from __future__ import annotations

import pytest
import torch

from tests.model.support import tokens
from upslope.config import FrozenDict, UsageError
from upslope.model.config import MLA, Gated, Indexer, Layer, ModelConfig, Normal, Rope
from upslope.model.init import initialise
from upslope.model.transformer import Transformer
from upslope.optim.config import AdamW
from upslope.train.batch import Batch
from upslope.train.init import carried_over
from upslope.train.losses import Imitate
from upslope.train.stage import freeze
from upslope.train.trainer import Trainer

DENSE = MLA(heads=2, q_latent=12, kv_latent=8, nope_dim=8, rope_dim=4, value_dim=8, position=Rope(base=50.0, layout="interleaved"))
INDEX = Indexer(heads=4, dim=8, top_k=6, rope=Rope(base=50.0, fraction=0.5), stage="dense")


def described(select: Indexer | None) -> ModelConfig:
    block = Layer(mixer=DENSE.replace(select=select), ffn=Gated(hidden=24))
    return ModelConfig(d_model=16, blocks=FrozenDict(b=block), pattern=(("b", 2),), init=Normal(std=0.2), vocab=40, context=64)


def batch(step: int) -> Batch:
    weights = (torch.arange(48) % 24 > 0).float()
    return Batch.of(tokens(48, 40, seed=step).split(24), imitate=weights)


def test_an_indexer_is_added_warmed_up_alone_and_then_used() -> None:
    parent = initialise(Transformer(described(None)), 0)
    grown = carried_over(parent, described(INDEX), 1)
    ids = tokens(30, 40)
    with torch.no_grad():
        assert torch.equal(grown(ids), parent(ids))  # the warm-up stage attends to everything
    freeze(grown, ("*.indexer.*",))
    trainer = Trainer(grown, AdamW(lr=3e-3, weight_decay=0.0), clip=None)
    kls = [trainer.step(batch(i), Imitate(), 3e-3).sums["index_kl"] for i in range(60)]
    assert sum(kls[-10:]) < 0.8 * sum(kls[:10])
    own = parent.tensors()
    for name, tensor in grown.tensors().items():
        assert (name in own) != (".indexer." in name)
        if name in own:
            assert torch.equal(tensor, own[name])
    sparse = carried_over(grown, described(INDEX.replace(stage="sparse")), 2)
    with torch.no_grad():
        assert not torch.equal(sparse(ids), grown(ids))
        assert torch.equal(sparse(ids[:6]), grown(ids[:6]))  # up to top_k tokens there is nothing to choose


def test_what_finds_no_place_is_refused() -> None:
    parent = initialise(Transformer(described(INDEX)), 0)
    with pytest.raises(UsageError, match="no place for 10 tensors"):
        carried_over(parent, described(None), 0)
    with pytest.raises(UsageError, match="names no parameter"):
        freeze(parent, ("*.nothing.*",))
