"""A config says everything about a model: parameters and cost follow from it, and it has one spelling."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from tests.model.support import MIXERS, SMALL, segments, tokens, variant
from upslope.config import UsageError, dump, validated
from upslope.model.config import ModelConfig, tiny
from upslope.model.cost import kv_bytes
from upslope.model.transformer import Transformer

CONFIGS = {"small": SMALL, "tiny": tiny(1024), **{name: variant(name) for name in MIXERS}}


@pytest.mark.parametrize("name", CONFIGS)
def test_parameter_count_equals_the_meta_model(name: str) -> None:
    config = CONFIGS[name]
    model = Transformer(config, device="meta")
    assert config.params() == sum(p.numel() for p in model.parameters())
    tied = model.head is None
    assert config.params(embedding=False) == config.params() - (0 if tied else model.embed.weight.numel())


def test_tiny_is_the_measured_size() -> None:
    assert tiny(1024).params() == 640_096


@pytest.mark.parametrize("name", ["small", "mha", "nope"])
def test_flops_equal_those_counted_by_torch(name: str) -> None:
    """torch counts the full square of the eager attention; ours counts the causal half, so compare with it swapped in."""
    config, length = CONFIGS[name], 16
    model = Transformer(config, backend="eager")
    with FlopCounterMode(display=False) as counter:
        model.logits(model(tokens(length), segments(length)))
    square = sum(4.0 * layer.mixer.heads * layer.mixer.head_dim * length for layer in config.layers())
    causal = sum(4.0 * layer.mixer.heads * layer.mixer.head_dim * (length + 1) / 2 for layer in config.layers())
    assert counter.get_total_flops() / length == config.flops(length) - causal + square


def test_cache_bytes_are_those_of_the_cache() -> None:
    from upslope.model.cache import Cache

    held = Cache(SMALL, slots=3, capacity=5)
    assert kv_bytes(SMALL) * 15 == sum(x.nbytes for t in held.layers for x in t.data.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_survives_json(name: str) -> None:
    config = CONFIGS[name]
    assert validated(ModelConfig, json.loads(json.dumps(dump(config)))) == config


def test_a_pattern_has_one_spelling() -> None:
    a = SMALL.replace(pattern=("dense", "dense"))
    b = SMALL.replace(pattern=(("dense", 1), "dense"))
    assert a == b == SMALL.replace(pattern=(("dense", 2),))
    assert dump(a)["pattern"] == [["dense", 2]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pattern": ("dens",)}, "pattern names 'dens'"),
        ({"pattern": ()}, "pattern is empty"),
        ({"blocks": {**dict(SMALL.blocks), "spare": SMALL.blocks["dense"]}}, "'spare' is not used"),
        ({"d_model": 0}, "greater than or equal to 1"),
        ({"widht": 3}, "unknown key 'widht'"),
    ],
)
def test_a_wrong_config_is_refused(change: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ModelConfig(**{**dict(SMALL), **change})


def test_wrong_heads_are_refused() -> None:
    mixer = SMALL.blocks["dense"].mixer
    with pytest.raises(ValidationError, match="multiple of kv_heads"):
        mixer.replace(kv_heads=3)
    with pytest.raises(ValidationError, match="even number of channels"):
        mixer.replace(head_dim=7)


def test_a_model_needs_its_vocabulary() -> None:
    with pytest.raises(UsageError, match="vocab = 0"):
        Transformer(tiny())


def test_configs_and_stages_load_no_torch() -> None:
    modules = ("model.config", "model.checkpoint", "generate.engine", "generate.chat", "stages.merge", "stages.import_")
    names = ", ".join(f"upslope.{m}" for m in modules)
    code = f"import {names}, sys; sys.exit(bool({{'torch', 'pyarrow', 'numba', 'duckdb'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_undrawn_model_gives_nan() -> None:
    assert torch.isnan(Transformer(SMALL)(tokens(3))).all()
