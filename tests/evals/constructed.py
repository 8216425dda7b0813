"""Models whose weights are written down, so that what they can do is known, and token shards in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from upslope.config import FrozenDict
from upslope.evals.subject import Deployment
from upslope.evals.suites import Bench
from upslope.model.config import RMS, Attention, Layer, ModelConfig, Nope, Nothing, PreNorm, Rope
from upslope.model.rope import frequencies
from upslope.model.transformer import Transformer
from upslope.tokens.shards import HELDOUT
from upslope.train.extension import Extension

SHARP = 4e5  # of the head that looks one token back: it tells neighbours apart also where positions are interpolated
TURN = 32
"""Tokens in which the slowest pair turns once: past them, the head that looks one token back sees several tokens as equally near."""


def _norm() -> PreNorm:
    return PreNorm(eps=1e-12)


def config(vocab: int, blocks: Sequence[str], extend: Extension | None = None) -> ModelConfig:
    """Channels: the token (V), the token before it (V), what is to be said (V), a one."""
    rope = Rope(base=(TURN / (2 * math.pi)) ** 2)
    back = Attention(heads=1, kv_heads=1, head_dim=4, value_dim=vocab, position=rope, qk_norm=None, scale=1.0)
    find = Attention(heads=1, kv_heads=1, head_dim=vocab, position=Nope(), qk_norm=None, scale=1.0)
    there = {"back": Layer(mixer=back, ffn=Nothing(), norm=_norm()), "find": Layer(mixer=find, ffn=Nothing(), norm=_norm())}
    made = ModelConfig(
        d_model=3 * vocab + 1,
        blocks=FrozenDict({name: there[name] for name in blocks}),
        pattern=tuple((name, 1) for name in blocks),
        final_norm=RMS(eps=1e-12),
        vocab=vocab,
        context=TURN,
    )
    return extend.extended(made) if extend else made


def _blank(made: ModelConfig) -> tuple[Transformer, int]:
    model = Transformer(made).eval().requires_grad_(False)
    for name, p in model.named_parameters():
        p.fill_(1.0 if "norm" in name or "half" in name else 0.0)
    vocab = made.vocab
    model.embed.weight[:, :vocab] = torch.eye(vocab)
    model.embed.weight[:, -1] = 1.0
    return model, vocab


def _looks_back(mixer: Any, vocab: int, width: int, to: int) -> None:
    """Writes the token before into the `to`-th part of the channels."""
    unit = (2 / width) ** 0.5  # undoes the norm of a token and a one
    turn = float(frequencies(mixer.config.position, 4, torch.float64)[1])  # of one token: the offset that training would find
    mixer.q.weight[1, -1] = SHARP**0.5 * unit
    mixer.k.weight[1, -1], mixer.k.weight[3, -1] = SHARP**0.5 * unit * math.cos(turn), SHARP**0.5 * unit * math.sin(turn)
    mixer.v.weight[:, :vocab] = torch.eye(vocab) * unit
    mixer.o.weight[to * vocab : (to + 1) * vocab] = torch.eye(vocab)


def inductive(vocab: int = 40, extend: Extension | None = None) -> Transformer:
    """Says what followed the last token when it came before: an induction head, good for texts of `TURN` tokens, or of the extension's."""
    model, v = _blank(config(vocab, ("back", "find"), extend))
    width = model.config.d_model
    _looks_back(model.blocks[0].mixer, v, width, 1)
    mixer: Any = model.blocks[1].mixer
    unit = (3 / width) ** 0.5
    mixer.q.weight[:, :v] = torch.eye(v) * unit * 14.0
    mixer.k.weight[:, v : 2 * v] = torch.eye(v) * unit
    mixer.v.weight[:, :v] = torch.eye(v) * unit
    mixer.o.weight[2 * v : 3 * v] = torch.eye(v)
    assert model.head is not None
    model.head.weight[:, 2 * v : 3 * v] = torch.eye(v) * 20.0 * (4 / width) ** 0.5
    return model


def copying(vocab: int = 24, logit: float = 6.0, extend: Extension | None = None) -> Transformer:
    """Expects the token before the last one again, by a logit; good for texts of `TURN` tokens, or of the extension's."""
    model, v = _blank(config(vocab, ("back",), extend))
    width = model.config.d_model
    _looks_back(model.blocks[0].mixer, v, width, 2)
    assert model.head is not None
    model.head.weight[:, 2 * v : 3 * v] = torch.eye(v) * logit * (3 / width) ** 0.5
    return model


def bigram(table: torch.Tensor) -> Transformer:
    """Logits (V, V) of the next token by the last one alone: attention writes nothing."""
    model, v = _blank(config(len(table), ("back",)))
    assert model.head is not None
    model.head.weight[:, :v] = table.T.float() * (2 / model.config.d_model) ** 0.5
    return model


class Held:
    """Held-out documents by source, in memory; `eos` closes each, as in token shards."""

    def __init__(self, texts: Mapping[str, Sequence[np.ndarray]], eos: int) -> None:
        self.texts, self.eos = {name + HELDOUT: list(docs) for name, docs in texts.items()}, eos

    def sources(self) -> tuple[str, ...]:
        return tuple(sorted(self.texts))

    def tokens(self, source: str) -> np.ndarray:
        return np.concatenate([np.append(d, self.eos) for d in self.texts[source]]).astype(np.uint16)

    def offsets(self, source: str) -> np.ndarray:
        return np.concatenate([[0], np.cumsum([len(d) + 1 for d in self.texts[source]])])

    def docs(self, source: str) -> np.ndarray:
        return np.arange(len(self.texts[source]), dtype=np.uint64)


def bench(model: Transformer, texts: Mapping[str, Sequence[np.ndarray]], eos: int, seed: int = 0) -> Bench:
    """A bench over a model in memory; the letters of a text are its tokens: "a" = 0."""
    made = Bench(SimpleNamespace(config=lambda: model.config), Deployment(), shards=(Held(texts, eos),), seed=seed)  # type: ignore[arg-type]
    made.__dict__["model"] = model
    made.__dict__["tokenizer"] = SimpleNamespace(eos=eos, encode=lambda text: [ord(c) - ord("a") for c in text])
    return made
