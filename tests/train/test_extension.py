"""Context extension: the rotations are those of the released code, nothing else changes, weights and state carry over to the bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.support import loud, tokenizer, tokens
from upslope.config import Duration, FrozenDict, Input, UsageError
from upslope.machine.context import Context
from upslope.model.checkpoint import Checkpoint
from upslope.model.config import (
    HCA,
    MLA,
    Attention,
    Compressed,
    Gated,
    Indexer,
    Layer,
    Lightning,
    Linear,
    Llama3,
    Mixer,
    ModelConfig,
    Nope,
    Normal,
    Rope,
    Yarn,
    dense,
)
from upslope.model.rope import angles, frequencies, temperature
from upslope.optim.config import AdamW
from upslope.optim.schedule import Constant
from upslope.stages.pretrain import Pretrain
from upslope.tokens.mixture import Mixture
from upslope.tokens.shards import TokenShards
from upslope.train.extension import NTK, Base, Extension, Interpolate, Keep, YaRN, ropes_of
from upslope.train.init import Continue, Load, Scratch, materialise

PLAIN = dense(64, 2, 2, 1, 32, 48, context=256, base=10_000.0, vocab=300, init=Normal(std=0.2))


def rope(model: ModelConfig, block: str = "dense") -> Rope:
    return ropes_of(model.blocks[block].mixer)[0]


def released(kind: str, context: int, head_dim: int = 32, **more: Any) -> tuple[torch.Tensor, float]:
    """(inverse frequencies, factor on cos and sin) of transformers' own code."""
    utils = pytest.importorskip("transformers.modeling_rope_utils")
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen3Config(
        hidden_size=64,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=context,
        rope_parameters={"rope_type": kind, "rope_theta": 10_000.0, **more},
    )
    inv, factor = utils.ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    return inv, float(factor)


@pytest.mark.parametrize(
    ("method", "ends"), [(YaRN(), {}), (YaRN(beta_fast=1.0), {"beta_fast": 1.0}), (YaRN(beta_slow=4.0), {"beta_slow": 4.0})]
)
def test_yarn_is_that_of_the_released_code(method: YaRN, ends: dict[str, Any]) -> None:
    made = rope(Extension(context=2048, method=method).extended(PLAIN))
    inv, factor = released("yarn", 2048, factor=8.0, original_max_position_embeddings=256, **ends)
    torch.testing.assert_close(frequencies(made, 32), inv, rtol=1e-6, atol=0)
    assert isinstance(made.scaling, Yarn) and made.scaling.factor == 8 and made.scaling.original == 256
    assert temperature(made.scaling) == pytest.approx(factor) == pytest.approx(1 + 0.1 * math.log(8))
    at = angles(torch.arange(2048), made, 32)
    turn = torch.outer(torch.arange(2048).float(), inv)
    torch.testing.assert_close(at.cos[:, 0], torch.cat((turn, turn), -1).cos() * factor, rtol=0, atol=3e-4)


def test_linear_and_base_are_those_of_the_released_code() -> None:
    inv, _ = released("linear", 1024, factor=4.0)
    torch.testing.assert_close(frequencies(rope(Extension(context=1024, method=Interpolate()).extended(PLAIN)), 32), inv, rtol=1e-6, atol=0)
    transformers = pytest.importorskip("transformers")
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

    config = transformers.Qwen3Config(
        hidden_size=64, num_attention_heads=2, head_dim=32, rope_parameters={"rope_type": "default", "rope_theta": 64e4}
    )
    made = rope(Extension(context=1024, method=Base(base=64e4)).extended(PLAIN))
    torch.testing.assert_close(frequencies(made, 32), Qwen3RotaryEmbedding(config).inv_freq, rtol=1e-6, atol=0)


def test_a_whole_extended_model_speaks_as_the_released_one(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from upslope.train.init import carried_over

    methods: tuple[Any, ...] = (YaRN(), Interpolate(), Base(base=5e5))
    for i, method in enumerate(methods):
        wanted = Extension(context=512, method=method).extended(PLAIN)
        mine = carried_over(loud(PLAIN), wanted, 0)
        made = Checkpoint.write(tmp_path / str(i), mine, tokenizer())
        theirs = transformers.AutoModelForCausalLM.from_pretrained(made.weights, dtype=torch.float32)
        assert theirs.config.max_position_embeddings == 512
        ids = tokens(400, 300)
        with torch.no_grad():
            torch.testing.assert_close(mine.logits(mine(ids)), theirs(ids[None]).logits[0], rtol=0, atol=2e-3)


def test_ntk_stretches_the_slowest_pair_by_the_factor_and_keeps_the_fastest() -> None:
    before, after = (frequencies(r, 32, torch.float64) for r in (rope(PLAIN), rope(Extension(context=1024, method=NTK()).extended(PLAIN))))
    assert float(before[-1] / after[-1]) == pytest.approx(4.0, rel=1e-12)
    assert float(before[0]) == float(after[0]) == 1.0
    assert bool((before[1:] > after[1:]).all())
    assert rope(Extension(context=1024, method=NTK(factor=2.0)).extended(PLAIN)).base == pytest.approx(10_000 * 2 ** (32 / 30))


def test_steps_of_a_chain_name_the_whole_stretch() -> None:
    def chain(method: Any) -> Rope:
        return rope(Extension(context=2048, method=method).extended(Extension(context=512, method=method).extended(PLAIN)))

    assert chain(YaRN()).scaling == Yarn(factor=8.0, original=256)
    assert chain(Interpolate()).scaling == Linear(factor=8.0)
    assert chain(YaRN(factor=40.0)).scaling == Yarn(factor=40.0, original=256)  # DeepSeek-V3: one factor over both steps
    assert chain(NTK()).base == pytest.approx(10_000 * 8 ** (32 / 30))


INDEX = Indexer(heads=2, dim=16, top_k=8, rope=Rope(base=50.0, fraction=0.5))
MIXERS: dict[str, Mixer] = {
    "global": Attention(heads=2, kv_heads=1, head_dim=16),
    "local": Attention(heads=2, kv_heads=1, head_dim=16, window=32),
    "nope": Attention(heads=2, kv_heads=1, head_dim=16, position=Nope()),
    "latent": MLA(heads=2, q_latent=8, kv_latent=8, nope_dim=8, rope_dim=8, value_dim=8, position=Rope(base=50.0), select=INDEX),
    "linear": Lightning(heads=2, head_dim=16),
    "window": Compressed(heads=2, head_dim=16, q_latent=8, window=16, history=None, position=Rope(base=50.0), groups=1, group_dim=8),
    "history": Compressed(
        heads=2, head_dim=16, q_latent=8, window=16, history=HCA(rate=8), position=Rope(base=50.0), groups=1, group_dim=8
    ),
}
MIXED = ModelConfig(
    d_model=32,
    blocks=FrozenDict({name: Layer(mixer=m, ffn=Gated(hidden=16)) for name, m in MIXERS.items()}),
    pattern=tuple((name, 1) for name in MIXERS),
    vocab=40,
    context=128,
    init=Normal(std=0.2),
)


@pytest.mark.parametrize(("layers", "untouched"), [("global", {"local", "nope", "linear", "window"}), ("all", {"nope", "linear"})])
def test_only_the_chosen_kinds_of_layer_change_and_nothing_but_their_rotation(layers: Any, untouched: set[str]) -> None:
    made = Extension(context=512, method=Base(base=777.0), layers=layers).extended(MIXED)
    for name, layer in MIXED.blocks.items():
        assert (made.blocks[name] == layer) == (name in untouched), name
        if name not in untouched:
            assert all(r.base == 777.0 for r in ropes_of(made.blocks[name].mixer))
            assert len(ropes_of(layer.mixer)) == (2 if name == "latent" else 1)
    back = made.replace(blocks=MIXED.blocks, context=MIXED.context)
    assert back == MIXED
    assert made.context == 512


FIELDS: dict[str, tuple[YaRN, YaRN]] = {
    "factor": (YaRN(), YaRN(factor=3.0)),
    "original": (YaRN(factor=4.0), YaRN(factor=4.0, original=64)),
    "beta_fast": (YaRN(), YaRN(beta_fast=2.0)),
    "beta_slow": (YaRN(), YaRN(beta_slow=3.0)),
    "temperature": (YaRN(), YaRN(temperature="none")),
    "softmax": (YaRN(temperature="none"), YaRN(temperature="softmax")),
    "mscale": (YaRN(), YaRN(mscale=2.0)),
    "truncate": (YaRN(), YaRN(truncate=False)),
}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_of_yarn_changes_the_logits(name: str) -> None:
    from upslope.train.init import carried_over

    ids = tokens(300, 300)
    outs = []
    for method in FIELDS[name]:
        model = carried_over(loud(PLAIN), Extension(context=1024, method=method).extended(PLAIN), 0)
        with torch.no_grad():
            outs.append(model(ids))
    assert (outs[0] - outs[1]).abs().max() > 1e-3


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UsageError, match="meant for 256 tokens already"):
        Extension(context=128).extended(PLAIN)
    scaled = Extension(context=512, method=YaRN()).extended(PLAIN)
    with pytest.raises(UsageError, match="scaled by 'yarn' already"):
        Extension(context=1024, method=Interpolate()).extended(scaled)
    for only, why in (("nope", "none rotates"), ("local", "have windows")):
        alone = MIXED.replace(blocks=FrozenDict({only: MIXED.blocks[only]}), pattern=((only, 1),))
        with pytest.raises(UsageError, match=why):
            Extension(context=512, method=Base(base=9.0)).extended(alone)
        assert Extension(context=512).extended(alone) == alone.replace(context=512)
    llama = PLAIN.replace(
        blocks=FrozenDict(
            dense=PLAIN.blocks["dense"].replace(mixer=Attention(heads=2, kv_heads=1, head_dim=32, position=Rope(scaling=Llama3())))
        )
    )
    with pytest.raises(UsageError, match="scaled by 'llama3' already"):
        Extension(context=512, method=YaRN()).extended(llama)
    narrow = dense(16, 1, 2, 2, 2, 8, context=64, vocab=9)
    with pytest.raises(UsageError, match="rotates 2 channels"):
        Extension(context=128, method=NTK()).extended(narrow)


def world(folder: Path) -> dict[str, Any]:
    texts = [f"the {i} red box is number {i * 7 % 11} of the row " * 8 for i in range(30)]
    return {
        "tokenizer": tokenizer(),
        "shards": TokenShards.write(folder / "shards", tokenizer(), {"boxes": texts}),
        "mix": Mixture.write(folder / "mixture", {"boxes": 1.0}, tokens=100_000),
    }


def stage(init: Any, steps: int, length: int, rows: int, **more: Any) -> Pretrain:
    return Pretrain(
        init=init,
        shards=(Input(stage="shards"),),
        mixture=Input(stage="mix"),
        length=Duration.of(f"{steps}st"),
        row_length=length,
        rows=rows,
        optim=AdamW(lr=3e-3),
        schedule=Constant(),
        numerics="fp32",
        **more,
    )


@pytest.mark.parametrize("way", [Load, Continue])
def test_weights_and_state_carry_over_to_the_bit_and_training_goes_on_longer(tmp_path: Path, way: Any) -> None:
    inputs = world(tmp_path)
    small = dense(32, 2, 2, 1, 16, 48, context=64, init=Normal(std=0.1))
    base = stage(Scratch(model=small), 6, 64, 8, tokenizer=Input(stage="tokenizer")).run(Context.scratch(tmp_path / "base", 0, **inputs))
    extend = Extension(context=256, method=YaRN())
    ctx = Context.scratch(tmp_path / "longer", 0, base=base, **inputs)
    model, _ = materialise(way(checkpoint=Input(stage="base"), extend=extend), ctx)
    own = base.model().tensors()
    assert own.keys() == model.tensors().keys()
    assert all(torch.equal(t, own[n]) for n, t in model.tensors().items())
    assert model.config == extend.extended(base.config())

    longer = stage(way(checkpoint=Input(stage="base"), extend=extend), 3, 256, 2).run(ctx)
    plain = stage(way(checkpoint=Input(stage="base")), 3, 256, 2).run(Context.scratch(tmp_path / "plain", 0, base=base, **inputs))
    assert longer.config() == model.config and plain.config().context == 256
    assert ctx.facts["tokens"] == 3 * 512  # tokens a step as before: two rows of 256 for eight of 64
    a, b = longer.model().tensors(), plain.model().tensors()
    assert any(not torch.equal(a[n], b[n]) for n in a)


def test_keep_is_the_default_and_old_recipes_are_what_they_were() -> None:
    from upslope.config import dump

    assert Extension(context=512).method == Keep()
    for init in (Load(checkpoint=Input(stage="a")), Continue(checkpoint=Input(stage="a"))):
        assert "extend" not in dump(init, identity=True)
        assert "extend" in dump(init.replace(extend=Extension(context=9)), identity=True)
