"""The labs' presets: published sizes, sources and guesses, shrinking that keeps every knob, and no start at real size by accident."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.support import segments, tokens
from upslope.config import Config, UsageError, dump
from upslope.model import config as model_config
from upslope.model.aux import Aux
from upslope.model.cache import Cache
from upslope.model.config import ModelConfig
from upslope.model.cost import params, published
from upslope.model.families import FAMILIES
from upslope.model.init import initialise
from upslope.model.transformer import Transformer
from upslope.model.weights import import_hf, save_weights
from upslope.recipes.knobs import lookup, model_knobs
from upslope.recipes.labs import PRESETS, get
from upslope.recipes.labs.page import page
from upslope.recipes.load import load
from upslope.recipes.scale import scale

each = pytest.mark.parametrize("name", PRESETS)


@each
def test_parameters_are_those_published(name: str) -> None:
    """Totals within 2 %; active ones within 3 % with both embedding matrices, one or none: labs differ in which they count."""
    lab = get(name)
    total, active = published(lab.model)
    assert total / 1e9 == pytest.approx(lab.published.total, rel=0.02)
    if lab.published.active:
        table = lab.model.vocab * lab.model.d_model
        off = [abs((active - n * table) / 1e9 / lab.published.active - 1) for n in range(3)]
        assert min(off) < 0.03, off


@each
def test_a_preset_is_short_sourced_and_its_facts_name_what_is_there(name: str) -> None:
    lab = get(name)
    assert len(inspect.getsource(PRESETS[name]).splitlines()) <= 40
    assert lab.name == name and lab.lab and lab.title and lab.source and re.fullmatch(r"20\d\d-[01]\d", lab.date)
    there = _paths({**dump(lab.model), "training": {k: _said(v) for k, v in lab.training._asdict().items()}})
    for fact in lab.facts:
        assert fact.source and any(fnmatch(path, fact.what) for path in there), fact
    assert len({f.what for f in lab.facts}) == len(lab.facts)


@each
def test_what_is_not_public_is_not_made_up(name: str) -> None:
    """A typed optimizer or schedule stands only beside a rate in words; an unknown rate, batch or count of tokens stays a question mark."""
    training = get(name).training
    if training.optim is not None:
        assert training.optim.kind == training.optimizer
        assert any(f"{training.optim.lr * 10**n:g}e-{n}" in training.rate for n in range(3, 6)), training.rate
    if training.rate == "?":
        assert training.optim is None and training.schedule is None
    assert (training.trillions > 0) == bool(re.match(r"[\d.]+T", training.tokens))


def test_guesses_are_listed() -> None:
    """What the facts sheet of the papers marks as not public or not found."""
    guessed = {name: {f.what for f in get(name).guesses} for name in PRESETS}
    for name, what in {
        "mai_thinking_1": "blocks.*.mixer.heads",
        "deepseek_v4_pro": "mtp.weight",
        "glm_5": "init",
        "gpt_oss_120b": "training.optimizer",
        "gemma3_27b": "training.optimizer",
        "nemotron3_super": "pattern",
        "nemotron3_ultra": "blocks.moe.ffn.expert.hidden",
        "minimax_m2": "blocks.moe.ffn.balance",
    }.items():
        assert what in guessed[name], name
    assert guessed["olmo2_32b"] == set()


DEFAULTS = {
    "deepseek_v3": ("DeepseekV3Config", {"scaling", "balance"}),
    "deepseek_v32": ("DeepseekV32Config", {"scaling", "balance"}),
    "glm_5": ("GlmMoeDsaConfig", {"base", "balance"}),
    "glm_52": ("GlmMoeDsaConfig", {"base", "balance"}),
    "gpt_oss_120b": ("GptOssConfig", set()),
    "gemma2_2b": ("Gemma2Config", set()),
    "minimax_m2": ("MiniMaxM2Config", {"fraction"}),
    "deepseek_v4_flash": ("DeepseekV4Config", {"scaling", "balance", "history", "base"}),
}
"""Presets whose numbers are the defaults of a released class, and the knobs that the class leaves to a checkpoint's config.json."""


@pytest.mark.parametrize("name", DEFAULTS)
def test_numbers_are_those_of_the_released_class(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    cls, open_knobs = DEFAULTS[name]
    released = getattr(transformers, cls)(**({"index_topk_freq": 4} if name == "glm_52" else {}))
    theirs, ours = FAMILIES[released.model_type].read(released.to_dict()), get(name).model
    assert (theirs.d_model, theirs.vocab, theirs.depth, theirs.head) == (ours.d_model, ours.vocab, ours.depth, ours.head)
    for a, b in zip(theirs.layers(), ours.layers()):
        left, right = dict(_leaves(dump(a))), dict(_leaves(dump(b)))
        moved = {path for path in left.keys() | right.keys() if left.get(path) != right.get(path)}
        assert all(set(path) & open_knobs for path in moved), moved


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
def test_a_preset_never_starts_at_real_size(name: str) -> None:
    with pytest.raises(UsageError, match="--size tiny") as refused:
        load(name)
    said = str(refused.value)
    assert "H100 hours at 40% of bf16 peak" in said and "FLOPs" in said and "GPUs of 80 GB" in said
    assert len(said.splitlines()) <= 6


@pytest.mark.parametrize("verb", ["run", "plan"])
def test_without_a_size_the_command_prices_and_stops(verb: str, tmp_path: Path) -> None:
    """Without torch, so in no time."""
    code = "import sys; from upslope.cli import main; sys.modules['torch'] = None; main()"
    done = subprocess.run([sys.executable, "-c", code, verb, "deepseek-v3"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "671B parameters" in done.stderr and "14.8T tokens" in done.stderr
    assert list(tmp_path.iterdir()) == []


@each
def test_at_a_size_it_is_a_recipe(name: str) -> None:
    recipe = load(name.replace("_", "-"), ["seed=3"], size="tiny").recipe
    model = recipe.stages["pretrain"].init.model  # type: ignore[attr-defined]
    assert isinstance(model, ModelConfig) and model.vocab == 0 and recipe.seed == 3
    kind = recipe.stages["pretrain"].optim.kind  # type: ignore[attr-defined]
    assert kind == recipe.stages["midtrain"].optim.kind == get(name).training.optimizer  # type: ignore[attr-defined]
    assert list(recipe.stages) == list(load("tiny").recipe.stages)


def test_a_wrong_name_is_met_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="deepseek_v3"):
        load("deepsek_v3")
    with pytest.raises(UsageError, match="kimi_k2"):
        get("kimi")


def test_every_knob_of_a_model_is_explained() -> None:
    silent = sorted({f"{k.cls.__name__}.{k.field}" for k in model_knobs() if len(k.meaning) < 4})
    assert silent == []
    described = {c for c in vars(model_config).values() if isinstance(c, type) and issubclass(c, Config) and set(c.model_fields) - {"kind"}}
    assert described - {Config} == {k.cls for k in model_knobs()}
    (window, *_) = lookup("mixer.window")
    assert "tokens" in window.meaning and "2004.05150" in window.source
    with pytest.raises(UsageError, match="window"):
        lookup("windw")


def test_the_page_is_what_the_code_says() -> None:
    committed = Path(__file__).parents[2] / "docs" / "models.md"
    assert committed.read_text(encoding="utf-8") == page(), "python -m upslope.recipes.labs.page > docs/models.md"


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict) and value:
        for k, v in value.items():
            yield from _leaves(v, (*path, str(k)))
    elif isinstance(value, list) and value:
        for i, v in enumerate(value):
            yield from _leaves(v, (*path, str(i)))
    else:
        yield path, value


def _said(value: Any) -> Any:
    return dump(value) if isinstance(value, Config) else value


def _paths(tree: Any) -> set[str]:
    """All paths, inner ones included."""
    return {".".join(path[:n]) for path, _ in _leaves(tree) for n in range(1, len(path) + 1)}
