"""Small models with every knob loud, and a tokenizer, for tests."""

from __future__ import annotations

import atexit
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch

from upslope.machine.rng import rng
from upslope.model.config import Attention, Gated, Layer, ModelConfig, Nope, Normal, QKNorm, Rope, Tied, Untied, dense
from upslope.model.transformer import Transformer
from upslope.tokens.tokenizer import Tokenizer, train_bpe

SMALL = dense(24, 2, 4, 2, 8, 40, context=64, base=50.0, vocab=64, init=Normal(std=0.3), eps=1e-3)


def variant(name: str) -> ModelConfig:
    """Configs by name: each mixer and head that exists."""
    layer = SMALL.blocks["dense"]
    mixers = {
        "gqa": layer.mixer,
        "mha": Attention(heads=3, kv_heads=3, head_dim=8, position=Rope(base=50.0), qk_norm=QKNorm()),
        "mqa": Attention(heads=4, kv_heads=1, head_dim=6, position=Rope(base=50.0), qk_norm=None),
        "nope": Attention(heads=2, kv_heads=2, head_dim=7, position=Nope(), qk_norm=None),
    }
    blocks = {"one": Layer(mixer=mixers[name], ffn=Gated(hidden=20)), "two": layer}
    head = Tied() if name == "mha" else Untied()
    return ModelConfig.model_validate({**dict(SMALL), "blocks": blocks, "pattern": ("one", "two"), "head": head})


MIXERS = ("gqa", "mha", "mqa", "nope")


def loud(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> Transformer:
    """A model whose weights, gains included, are all far from neutral: a wrong part shows in the logits."""
    model = Transformer(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.from_numpy(rng(seed, "loud", name).standard_normal(tuple(p.shape)))
            p.copy_(1 + 0.3 * noise if p.ndim == 1 else noise * (1.5 / p.shape[1] ** 0.5))
    return model.to(dtype).eval()


def tokens(count: int, vocab: int = 64, seed: int = 0) -> torch.Tensor:
    """Random ids (count,)."""
    return torch.from_numpy(rng(seed, "ids").integers(0, vocab, count))


def segments(*lengths: int) -> torch.Tensor:
    """Segment numbers of segments with these lengths."""
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


@cache
def tokenizer() -> Tokenizer:
    """A tokenizer of 300 tokens, trained once per process."""
    texts = ["add 12 and 7: 19", "sort 3 1 2: 1 2 3", "the quick brown fox jumps over the lazy dog"] * 20
    folder = Path(mkdtemp(prefix="upslope-test-tokenizer-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return train_bpe(texts, 300, folder)
