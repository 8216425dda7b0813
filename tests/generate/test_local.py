"""What is particular to the engine of this package: prompts read once, rows that move, memory that grows, numerics."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import torch

from tests.model.support import SMALL, loud, tokenizer, tokens
from upslope.generate import local
from upslope.generate.engine import LocalEngine, Request, Sampling, generate
from upslope.model.transformer import Transformer


def group(size: int, sampling: Sampling, prompt: int = 9) -> list[Request]:
    return [Request(f"{prompt}.{j}", tokens(prompt, seed=prompt).tolist(), sampling, j) for j in range(size)]


def test_a_distinct_prompt_is_read_once() -> None:
    engine = LocalEngine(loud(SMALL))
    sizes = []
    forward = Transformer.forward

    def counting(self: Transformer, ids: torch.Tensor, *args: object, **more: object) -> torch.Tensor:
        sizes.append(len(ids))
        return forward(self, ids, *args, **more)  # type: ignore[arg-type]

    with patch.object(Transformer, "forward", counting):
        generate(engine, group(8, Sampling(max_new=2)) + group(4, Sampling(max_new=2), prompt=5))
    assert sizes == [9 + 5, 12]


def test_prompts_are_read_in_pieces_of_bounded_size() -> None:
    asked = [r for n in (5, 9, 13, 7) for r in group(2, Sampling(max_new=4), n)]
    whole = generate(LocalEngine(loud(SMALL)), asked)
    with patch.object(local, "PREFILL", 12), patch.object(local, "LOGITS", 5):
        engine = LocalEngine(loud(SMALL))
        parts = generate(engine, asked)
        scores = engine.score([r.ids for r in asked], top=2)
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(whole, parts))
    for a, b in zip(scores, LocalEngine(loud(SMALL)).score([r.ids for r in asked], top=2)):
        assert np.abs(a.logprobs - b.logprobs).max() < 1e-5
        assert a.top_ids is not None
        assert b.top_ids is not None
        assert np.array_equal(a.top_ids, b.top_ids)


def test_rows_are_reused_over_many_rounds() -> None:
    engine = LocalEngine(loud(SMALL), eos=range(8), slots=5)
    asked = [r for n in range(3, 12) for r in group(3, Sampling(max_new=25), n)]
    done = generate(engine, asked)
    again = generate(LocalEngine(loud(SMALL), eos=range(8), slots=27), asked)
    assert [c.ids.tolist() for c in done] == [c.ids.tolist() for c in again]
    assert len({len(c.ids) for c in done}) > 3
    assert engine._rows.count == 0
    assert not engine._in_flight
    assert engine._cache.slots == 5


def test_the_ends_are_the_tokenizers() -> None:
    ours = tokenizer()
    model = loud(SMALL.replace(vocab=ours.vocab_size))
    engine = LocalEngine(model, ours)
    assert set(np.flatnonzero(engine._is_eos).tolist()) == {ours.im_end, ours.eos}


def test_bf16_is_near_fp32_and_equals_the_trainers_autocast() -> None:
    model = loud(SMALL).requires_grad_(False)
    engine = LocalEngine(model, numerics="bf16")
    ids = tokens(30)
    (rough,), (exact,) = engine.score([ids.tolist()]), LocalEngine(model).score([ids.tolist()])
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.logits(model(ids)).float()
    trained = torch.log_softmax(logits, -1)[:-1].gather(1, ids[1:, None])[:, 0].numpy()
    assert np.array_equal(rough.logprobs[1:], trained)
    assert 0 < np.abs(rough.logprobs - exact.logprobs).mean() < 0.2
    assert len(generate(engine, group(4, Sampling(max_new=6)))) == 4


def test_big_and_negative_seeds_are_seeds() -> None:
    prompt = tokens(4).tolist()
    seeds = (0, 1, 2**63 - 1, 2**63, -5)
    done = generate(LocalEngine(loud(SMALL)), [Request(str(s), prompt, Sampling(max_new=12), s) for s in seeds])
    assert len({tuple(c.ids.tolist()) for c in done}) == len(seeds)
