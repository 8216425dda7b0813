"""Shrinking keeps every knob, fits the size, and is the same each time; what does not fit is refused with the way out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from upslope.config import UsageError, dump
from upslope.model.config import MLA, Attention, Compressed, Mamba2, MoE, TopK, tiny
from upslope.recipes.labs import PRESETS, get
from upslope.recipes.labs.recipe import lab_recipe
from upslope.recipes.scale import NAMED, parse_size, period, scale
from upslope.recipes.tiny import tiny as tiny_recipe

each = pytest.mark.parametrize("name", PRESETS)
WIDTHS = {"heads", "kv_heads", "head_dim", "value_dim", "hidden", "latent", "q_latent", "kv_latent", "nope_dim", "rope_dim", "group_dim"}
WIDTHS |= {"experts", "k", "groups", "keep", "state", "dim", "index_heads", "index_dim"}
LENGTHS = {"window", "top_k", "rate", "original"}
DERIVED = {"scale"}  # of attention logits: follows the head's width


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        for k, v in value.items():
            yield from leaves(v, (*path, str(k)))
    else:
        yield path, value


@each
@pytest.mark.parametrize("size", ["tiny", "1M", "10M", "100M"])
def test_what_moves_is_dimensions_alone(name: str, size: str) -> None:
    real, small = get(name).model, scale(get(name).model, size)
    for block in small.blocks:
        a, b = dict(leaves(dump(small.blocks[block]))), dict(leaves(dump(real.blocks[block])))
        assert a.keys() == b.keys()
        moved = {path for path in a if a[path] != b[path]}
        assert all(path[-1] in WIDTHS | LENGTHS | DERIVED for path in moved), moved
        assert all(a[path] < b[path] for path in moved if path[-1] not in DERIVED)
        assert all(path[-2] == "mixer" for path in moved if path[-1] in DERIVED)  # a router's scale is a knob
    kept = {k: v for k, v in dump(real).items() if k not in ("d_model", "blocks", "pattern", "vocab", "context")}
    assert {k: dump(small)[k] for k in kept} == kept


@each
def test_every_kind_of_block_stays_in_the_order_of_the_real_pattern(name: str) -> None:
    real, small = get(name).model, scale(get(name).model, "tiny")
    assert set(small.blocks) == set(real.blocks)
    order = [n for n, repeat in real.pattern for _ in range(repeat)]
    short = [n for n, repeat in small.pattern for _ in range(repeat)]
    assert set(short) == set(order) and order[: len(short)] == short and len(short) >= 4


@each
@pytest.mark.parametrize(("size", "least"), [("tiny", 0.55), ("1M", 0.6), ("10M", 0.85), ("100M", 0.95)])
def test_it_fits_and_fills_the_size(name: str, size: str, least: float) -> None:
    small = scale(get(name).model, size)
    assert least * parse_size(size) <= small.replace(vocab=1024).params() <= parse_size(size)
    assert small.vocab == 0 and small.context == 512
    assert small == scale(get(name).model, parse_size(size))


def test_ratios_are_kept() -> None:
    for name in PRESETS:
        real, small = get(name).model, scale(get(name).model, "100M")
        for block, was in real.blocks.items():
            now = small.blocks[block]
            if isinstance(was.mixer, Attention) and isinstance(now.mixer, Attention):
                share = was.mixer.heads // was.mixer.kv_heads
                assert now.mixer.heads == now.mixer.kv_heads * share or (now.mixer.heads < share and now.mixer.kv_heads == 1), name
            if isinstance(was.mixer, MLA) and isinstance(now.mixer, MLA):
                assert now.mixer.nope_dim / now.mixer.rope_dim == was.mixer.nope_dim / was.mixer.rope_dim
                assert now.mixer.value_dim / now.mixer.rope_dim == was.mixer.value_dim / was.mixer.rope_dim
            if isinstance(now.mixer, Compressed | Mamba2):
                assert now.mixer.heads % now.mixer.groups == 0
            if isinstance(was.ffn, MoE) and isinstance(now.ffn, MoE):
                assert now.ffn.experts > now.ffn.router.select.k and (now.ffn.latent or 1) < small.d_model
                if isinstance(was.ffn.router.select, TopK) and isinstance(now.ffn.router.select, TopK):
                    a, b = was.ffn.router.select, now.ffn.router.select
                    assert (a.groups > 1) == (b.groups > 1) and a.keep / a.groups == b.keep / b.groups


def test_windows_and_choices_bind_within_the_context() -> None:
    for name in PRESETS:
        for size in ("tiny", "10M"):
            for path, value in leaves({n: dump(b) for n, b in scale(get(name).model, size).blocks.items()}):
                if path[-1] in ("window", "top_k") and value is not None:
                    assert value < 512, (name, path)


def test_period() -> None:
    assert period(["a"] * 9) == ["a"] * 4
    assert period(["a"] * 2) == ["a"] * 2
    assert period(list("aab" * 3)) == list("aabaab")
    assert period(list("aaaaaab" * 3)) == list("aaaaaab")
    assert period(list("dddm") + ["m"] * 20) == list("dddm")
    assert period(list("dmmmm")) == list("dmmm")
    assert period(list("abcabcab")) == list("abcabc")


@pytest.mark.parametrize(
    ("text", "count"),
    [("tiny", NAMED["tiny"]), ("600k", 600_000), ("1M", 10**6), ("1.5m", 1_500_000), ("2B", 2 * 10**9), ("1.2e14flops", 10**6)],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("size", ["", "tin", "0M", "1", "-1M", "1G", "1e6", "0flops", "M", "1 M"])
def test_wrong_sizes_are_refused(size: str) -> None:
    with pytest.raises(UsageError, match="way out"):
        parse_size(size)


def test_a_larger_budget_is_never_a_smaller_model() -> None:
    for name in ("deepseek_v4_flash", "nemotron3_super", "gemma3_27b"):
        sizes = [scale(get(name).model, f"{c}flops").replace(vocab=1024).params() for c in ("1e14", "1e15", "1e16", "1e17")]
        assert sizes == sorted(set(sizes))


def test_too_small_a_size_names_the_least() -> None:
    with pytest.raises(UsageError, match=r"smallest form has ([\d,]+)\nway out: --size (\d+)k") as refused:
        scale(get("minimax_m1").model, "1k")
    least = str(refused.value).split("--size ")[1]
    assert scale(get("minimax_m1").model, least).d_model == 16


def test_a_model_that_fits_stays() -> None:
    assert scale(tiny(), "1M") == tiny()


def test_a_recipe_is_scaled_where_it_draws_a_model() -> None:
    recipe = lab_recipe("kimi_k2", "10M")
    small, large = scale(recipe, "1M"), recipe.stages["pretrain"].init.model  # type: ignore[attr-defined]
    assert small.stages["pretrain"].init.model == scale(large, "1M") != large  # type: ignore[attr-defined]
    assert {n: s for n, s in small.stages.items() if n != "pretrain"} == {n: s for n, s in recipe.stages.items() if n != "pretrain"}
    with pytest.raises(UsageError, match="nothing to shrink"):
        scale(tiny_recipe(), "1M")
