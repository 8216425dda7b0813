"""The engine over mixtures of experts: routers keep their precision, and new weights bring the selection biases along."""

from __future__ import annotations

import torch

from tests.model.support import tokens
from upslope.generate.engine import Request, Sampling
from upslope.generate.local import LocalEngine
from upslope.model.config import Normal
from upslope.model.init import initialise
from upslope.model.transformer import Transformer
from upslope.model.weights import live
from upslope.recipes.labs import get
from upslope.recipes.scale import scale


def mixture(name: str = "kimi_k2") -> Transformer:
    config = scale(get(name).model, "200k", context=64, vocab=64).replace(vocab=64, init=Normal(std=0.3))
    return initialise(Transformer(config), 0).eval()


def test_routers_stay_in_float32_where_matrices_run_in_bf16() -> None:
    model = mixture()
    inside = dict(LocalEngine(model, numerics="bf16", eos=())._model.named_parameters())
    assert inside["blocks.1.ffn.router.weight"].dtype == torch.float32
    assert torch.equal(inside["blocks.1.ffn.router.weight"], model.blocks[1].ffn.router.weight)  # type: ignore[union-attr]
    assert inside["blocks.1.mixer.q_b.weight"].dtype == torch.bfloat16
    assert inside["blocks.1.ffn.experts.up"].dtype == torch.bfloat16  # cast once a version, not once a step


def test_bf16_engine_scores_as_the_model_under_autocast() -> None:
    model, ids = mixture(), tokens(20)
    got = LocalEngine(model, numerics="bf16", eos=()).score([ids.tolist()])[0].logprobs
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model.logits(model(ids)).float()
    wanted = torch.log_softmax(logits, -1)[:-1].gather(1, ids[1:, None].long())[:, 0]
    assert torch.allclose(torch.from_numpy(got[1:]), wanted, atol=1e-5)


def test_new_weights_bring_selection_biases() -> None:
    model = mixture()
    engine = LocalEngine(model, eos=())
    with torch.no_grad():
        model.blocks[1].ffn.select_bias.copy_(torch.linspace(-9, 9, 16))  # type: ignore[union-attr]
    before = engine.score([tokens(20).tolist()])[0].logprobs
    engine.load(live(model), 1)
    after = engine.score([tokens(20).tolist()])[0].logprobs
    hidden = model(tokens(20))
    wanted = torch.log_softmax(model.logits(hidden), -1)[:-1].gather(1, tokens(20)[1:, None].long())[:, 0]
    assert torch.allclose(torch.from_numpy(after[1:]), wanted.detach(), atol=1e-4)
    assert abs(before - after).max() > 1e-3


def test_sampling_does_not_depend_on_the_batch() -> None:
    for name in ("deepseek_v4_flash", "minimax_m1", "nemotron3_nano", "glm_52"):
        model = mixture(name)
        with torch.no_grad():
            for p in model.parameters():
                if p.ndim > 1 and not p.any():
                    p.normal_(0, 0.3, generator=torch.Generator().manual_seed(p.numel()))
        requests = [Request(str(i), tokens(3 + i, seed=i).tolist(), Sampling(max_new=20), i) for i in range(5)]
        together = _all(model, requests)
        alone = {r.id: _all(model, [r])[r.id] for r in requests}
        assert together == alone, name


def _all(model: Transformer, requests: list[Request]) -> dict[str, list[int]]:
    engine = LocalEngine(model, eos=())
    engine.submit(requests)
    done: dict[str, list[int]] = {}
    while len(done) < len(requests):
        done |= {c.id: c.ids.tolist() for c in engine.step()}
    return done
