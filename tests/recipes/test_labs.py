"""The labs' presets: published sizes, sources and guesses, shrinking that keeps every knob, and no start at real size by accident."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.support import segments, tokens
from upslope.config import Config, UsageError, dump
from upslope.model.aux import Aux
from upslope.model.cache import Cache
from upslope.model.config import ModelConfig
from upslope.model.cost import BYTES, attention_flops, cache_elements, flops, kv_bytes, params, published, weight_bytes
from upslope.model.init import initialise
from upslope.model.transformer import Transformer
from upslope.model.weights import import_hf, save_weights
from upslope.recipes.knobs import lookup, model_knobs
from upslope.recipes.labs import PRESETS, get
from upslope.recipes.labs.page import page
from upslope.recipes.load import load
from upslope.recipes.scale import parse_size, period, scale

each = pytest.mark.parametrize("name", PRESETS)
DIMENSIONS = frozenset(
    ("d_model", "heads", "kv_heads", "head_dim", "value_dim", "hidden", "experts", "latent", "vocab", "context")
) | frozenset(
    ("window", "top_k", "rate", "k", "groups", "keep", "q_latent", "kv_latent", "nope_dim", "rope_dim", "dim", "index_heads", "index_dim")
)
DIMENSIONS |= {"group_dim", "state", "original", "scale"}


@each
def test_parameters_are_those_published(name: str) -> None:
    lab = get(name)
    total, active = published(lab.model)
    assert total / 1e9 == pytest.approx(lab.published.total, rel=0.02)
    if lab.published.active:
        assert active / 1e9 == pytest.approx(lab.published.active, rel=0.2)  # labs differ in which embeddings they count


@each
def test_parameters_are_those_of_the_modules_at_real_size(name: str) -> None:
    if get(name).model.depth > 64:
        pytest.skip("the meta model takes seconds; its scaled form is counted below")
    model = Transformer(get(name).model, device="meta")
    assert sum(p.numel() for p in model.parameters()) == params(get(name).model)


@each
def test_a_preset_is_short_sourced_and_says_what_it_guesses(name: str) -> None:
    lab = get(name)
    assert len(inspect.getsource(PRESETS[name]).splitlines()) <= 40
    assert lab.source and lab.date and lab.name == name
    paths = {".".join(p) for p, _ in _leaves(dump(lab.model))} | {"training"}
    for fact in lab.facts:
        head = fact.what.split(".")[0]
        assert head in {p.split(".")[0] for p in paths}, fact


@each
def test_scaling_keeps_every_knob(name: str) -> None:
    real, small = get(name).model, scale(get(name).model, "tiny")
    assert small.replace(vocab=1024).params() <= parse_size("tiny")
    assert set(small.blocks) == set(real.blocks)
    assert {n for n, _ in small.pattern} == {n for n, _ in real.pattern}
    for block in small.blocks:
        a, b = dict(_leaves(dump(small.blocks[block]))), dict(_leaves(dump(real.blocks[block])))
        assert a.keys() == b.keys()
        moved = {path for path in a if a[path] != b[path]}
        assert all(path[-1] in DIMENSIONS for path in moved), moved


@each
def test_smoke(name: str) -> None:
    """Forward, side losses, backward; decoding with a cache equals one shot; parameters and cache bytes as computed."""
    config = scale(get(name).model, "tiny", context=64, vocab=128).replace(vocab=128)
    model = initialise(Transformer(config), 0)
    assert sum(p.numel() for p in model.parameters()) == params(config)
    aux = Aux(frozenset(("router", "index", "mtp")))
    hidden = model(tokens(60, 128), segments(37, 23), aux=aux)
    (model.logits(hidden).square().mean() + sum(h.square().mean() for h in aux.mtp)).backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
    with torch.no_grad():
        cache, ids = Cache(config, 1), tokens(37, 128)
        rows = [model(ids[:30], cache=cache.at([0]))] + [model(ids[i : i + 1], cache=cache.at([0])) for i in range(30, 37)]
        assert torch.allclose(torch.cat(rows), hidden[:37], atol=1e-4)


@each
def test_weights_survive_a_folder(name: str, tmp_path: Path) -> None:
    config = scale(get(name).model, "tiny", context=64).replace(vocab=64)
    model = initialise(Transformer(config), 0)
    save_weights(model, None, tmp_path)
    again = import_hf(tmp_path)
    assert len(again.tensors()) == len(model.tensors())
    with torch.no_grad():
        assert torch.equal(again.logits(again(tokens(20))), model.logits(model(tokens(20))))


@each
def test_cache_bytes_are_those_of_the_caches(name: str) -> None:
    config = scale(get(name).model, "tiny", context=64).replace(vocab=16)
    held = Cache(config, 1, 48, slack=0)
    assert held.nbytes >= kv_bytes(config, 48) > 0
    if not any(getattr(b.mixer, "window", None) for b in config.blocks.values()):
        assert held.nbytes == kv_bytes(config, 48)


def test_flops_count_the_matrices_that_a_token_meets() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for name in ("kimi_k2", "llama3_8b", "nemotron3_nano", "minimax_m1"):
        config = scale(get(name).model, "tiny", context=64).replace(vocab=128)
        config = config.replace(mtp=None, blocks={n: b for n, b in config.blocks.items() if n in dict(config.pattern)})
        model = initialise(Transformer(config), 0)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.logits(model(tokens(64, 128)))
        mixing = sum(attention_flops(layer.mixer, 64) for layer in config.layers())
        matrices = flops(config, 64) - mixing
        assert matrices * 0.97 <= counter.get_total_flops() / 64 <= matrices + 4 * mixing + 1, name


def test_costs_of_a_hand_counted_model() -> None:
    lab = get("deepseek_v3").model
    per_token = 61 * 576
    assert cache_elements(lab, 1000) == 1000 * per_token
    gemma = get("gemma3_27b").model
    assert cache_elements(gemma, 10_000) == 2 * 16 * 128 * (10 * 10_000 + 52 * 1024)
    assert weight_bytes(lab, "fp32") == 4 * params(lab)
    assert weight_bytes(lab, "bf16") == 2 * params(lab)
    assert BYTES["nvfp4"] * 1e12 < weight_bytes(lab, "nvfp4") * 3


def test_period() -> None:
    assert period(["a"] * 9) == ["a"] * 4
    assert period(list("aab" * 3)) == list("aabaab")
    assert period(list("dddm") + ["m"] * 20) == list("dddm")
    assert period(list("dmmmm")) == list("dmmm")
    assert period(list("abcabcab")) == list("abcabc")


@pytest.mark.parametrize("size", ["", "tin", "0M", "1", "-1M", "1G", "1e6"])
def test_wrong_sizes_are_refused(size: str) -> None:
    with pytest.raises(UsageError, match="way out"):
        parse_size(size)


def test_too_small_a_size_names_the_least() -> None:
    with pytest.raises(UsageError, match="smallest form"):
        scale(get("minimax_m1").model, "1k")


@each
def test_a_preset_never_starts_at_real_size(name: str) -> None:
    with pytest.raises(UsageError, match="--size tiny") as refused:
        load(name)
    assert "H100" in str(refused.value) or "GPUs of 80 GB" in str(refused.value)
    assert len(str(refused.value).splitlines()) <= 6


@each
def test_at_a_size_it_is_a_recipe(name: str) -> None:
    recipe = load(name.replace("_", "-"), ["seed=3"], size="tiny").recipe
    model = recipe.stages["pretrain"].init.model  # type: ignore[attr-defined]
    assert isinstance(model, ModelConfig) and model.vocab == 0 and recipe.seed == 3
    kind = recipe.stages["pretrain"].optim.kind  # type: ignore[attr-defined]
    assert kind == get(name).training.optimizer


def test_a_wrong_name_is_met_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="deepseek_v3"):
        load("deepsek_v3")
    with pytest.raises(UsageError, match="kimi_k2"):
        get("kimi")


def test_every_knob_of_a_model_is_explained() -> None:
    silent = sorted({f"{k.cls.__name__}.{k.field}" for k in model_knobs() if len(k.meaning) < 4})
    assert silent == []
    assert len(model_knobs()) > 100
    (window, *_) = lookup("mixer.window")
    assert "tokens" in window.meaning and "2004.05150" in window.source
    with pytest.raises(UsageError, match="window"):
        lookup("windw")


def test_the_page_is_what_the_code_says() -> None:
    committed = Path(__file__).parents[2] / "docs" / "models.md"
    assert committed.read_text(encoding="utf-8") == page(), "python -m upslope.recipes.labs.page > docs/models.md"


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        for k, v in value.items():
            yield from _leaves(v, (*path, str(k)))
    elif isinstance(value, Config):
        yield from _leaves(dump(value), path)
    else:
        yield path, value
