"""Initial weights are a function of (seed, name, scheme): arms that differ in one part share all other draws."""

from __future__ import annotations

import pytest
import torch

from tests.model.support import SMALL, tokens
from upslope.model.config import Gated, ModelConfig, Normal, Tied, ZeroOut, tiny
from upslope.model.init import initialise, role
from upslope.model.transformer import Transformer


def drawn(config: ModelConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    return dict(initialise(Transformer(config), seed).state_dict())


def test_zero_out_starts_as_a_uniform_guess() -> None:
    model = initialise(Transformer(tiny(128)), 0)
    assert torch.count_nonzero(model.logits(model(tokens(5)))) == 0
    state = model.state_dict()
    assert float(state["embed.weight"].std()) == pytest.approx(0.5, rel=0.03)
    for name in ("mixer.q", "mixer.k", "mixer.v", "ffn.gate", "ffn.up"):
        assert float(state[f"blocks.0.{name}.weight"].std()) == pytest.approx(96**-0.5, rel=0.05)
    assert not any(state[f"blocks.3.{name}.weight"].any() for name in ("mixer.o", "ffn.down"))
    assert torch.equal(state["final_norm.weight"], torch.ones(96))


def test_scheme_numbers_are_read() -> None:
    a = drawn(SMALL.replace(init=ZeroOut(embed_std=0.25, gain=3.0)))
    b = drawn(SMALL.replace(init=ZeroOut()))
    assert torch.allclose(a["embed.weight"] * 2, b["embed.weight"])
    assert torch.allclose(a["blocks.0.mixer.q.weight"], b["blocks.0.mixer.q.weight"] * 3)
    c = drawn(SMALL.replace(init=Normal(std=0.02)))
    for name, tensor in c.items():
        if tensor.ndim == 2:
            assert float(tensor.std()) == pytest.approx(0.02, rel=0.15), name


def test_arms_share_all_draws_but_those_of_the_part_that_differs() -> None:
    layer = SMALL.blocks["dense"]
    a = drawn(SMALL)
    b = drawn(SMALL.replace(blocks={"other": layer.replace(ffn=Gated(hidden=24))}, pattern=(("other", 3),), head=Tied()))
    shared = [n for n in a if n in b and a[n].shape == b[n].shape]
    ffn = {f"blocks.{i}.ffn.{m}.weight" for i in (0, 1) for m in ("gate", "up", "down")}
    assert {n for n in a if n not in shared} == {"head.weight"} | ffn
    assert all(torch.equal(a[n], b[n]) for n in shared)


def test_seeds_differ_and_the_global_generator_is_untouched() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a, b, again = drawn(SMALL, 0), drawn(SMALL, 1), drawn(SMALL, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[n], again[n]) for n in a)
    assert not torch.equal(a["embed.weight"], b["embed.weight"])
    assert not torch.equal(a["blocks.0.mixer.q.weight"], a["blocks.1.mixer.q.weight"])


def test_roles_by_name() -> None:
    names = {n: role(n) for n, _ in Transformer(SMALL, device="meta").named_parameters()}
    assert names["embed.weight"] == "embed"
    assert names["head.weight"] == "head"
    assert names["blocks.0.mixer.o.weight"] == names["blocks.1.ffn.down.weight"] == "out"
    assert names["blocks.0.mixer.k_norm.weight"] == "gain"
    assert names["blocks.0.mixer.k.weight"] == "matrix"
