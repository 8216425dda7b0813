"""Against transformers 5.23.0: logits, gradients and greedy tokens; and every knob of the config is caught when it is wrong."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.model import cases_dense, cases_linear, cases_mla, cases_moe, cases_v4
from tests.model.parity import build
from tests.model.support import SMALL, loud, segments, tokenizer, tokens
from upslope.config import UsageError
from upslope.model.config import MTP, ModelConfig, Tied, dense
from upslope.model.families import FAMILIES, bindings, family_of
from upslope.model.families.dsl import comparable
from upslope.model.transformer import Transformer
from upslope.model.weights import export_hf, import_hf

transformers = pytest.importorskip("transformers")
PARITY = (*cases_dense.CASES, *cases_moe.CASES, *cases_mla.CASES, *cases_linear.CASES, *cases_v4.CASES)
LLAMA = dense(24, 2, 4, 2, 8, 40, context=64, base=50.0, vocab=64, eps=1e-3, qk_norm=False)
CASES = {"qwen3": SMALL, "llama": LLAMA, "tied": SMALL.replace(head=Tied())}


def theirs(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Transformer, Any, Path]:
    """Our model, theirs, and the folder between them."""
    folder = tmp_path_factory.mktemp("hf")
    model = loud(CASES[request.param])
    export_hf(model, None, folder)
    return model, theirs(folder), folder


def test_logits_equal(pair: tuple[Transformer, Any, Path]) -> None:
    model, other, _ = pair
    ids = tokens(40)
    ours = model.logits(model(ids, segments(13, 20, 7)))
    wanted = torch.cat([other(part[None]).logits[0] for part in ids.split([13, 20, 7])])
    assert float(wanted.detach().std()) > 0.5, "weights too quiet for this test to mean anything"
    assert (ours - wanted).abs().max() <= 1e-5


def test_gradients_equal(pair: tuple[Transformer, Any, Path]) -> None:
    model, other, _ = pair
    model.zero_grad()
    other.zero_grad()
    ids = tokens(15, seed=2)
    F.cross_entropy(model.logits(model(ids))[:-1], ids[1:]).backward()
    F.cross_entropy(other(ids[None]).logits[0, :-1], ids[1:]).backward()
    gradients = {n: p.grad for n, p in other.named_parameters()}
    parameters = dict(model.named_parameters())
    for bound in bindings(FAMILIES[other.config.model_type], model.config, parameters):
        for mine, wanted in zip(bound.ours, bound.of([gradients[n] for n in bound.theirs])):
            ours = parameters[mine].grad
            assert ours is not None
            assert ours.norm() > 1e-6, mine
            assert (ours - wanted).norm() <= 1e-4 * wanted.norm(), mine


def test_back_from_the_folder(pair: tuple[Transformer, Any, Path]) -> None:
    model, _, folder = pair
    again = import_hf(folder)
    assert comparable(again.config) == comparable(model.config)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


def test_a_folder_that_they_wrote_is_read(pair: tuple[Transformer, Any, Path], tmp_path: Path) -> None:
    model, other, _ = pair
    other.save_pretrained(tmp_path, max_shard_size="10KB")
    ids = tokens(9)
    assert torch.allclose(import_hf(tmp_path)(ids), model(ids), atol=1e-5)


MUTATIONS = {
    "rope base": {"rope_parameters": {"rope_type": "default", "rope_theta": 60.0}, "rope_theta": 60.0},
    "eps": {"rms_norm_eps": 2e-3},
    "activation": {"hidden_act": "gelu"},
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_changed_setting_shows_in_the_logits(name: str, tmp_path: Path) -> None:
    """The oracle can fail: with one setting of their config changed, the two no longer agree."""
    model = loud(SMALL)
    export_hf(model, None, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | MUTATIONS[name]))
    ids = tokens(20)
    assert (model.logits(model(ids)) - theirs(tmp_path)(ids[None]).logits[0]).abs().max() > 1e-3


def _half_to_pairs(x: torch.Tensor, at: Any) -> torch.Tensor:
    """The other rotary layout: neighbouring channels are a pair."""
    half = x.shape[-1] // 2
    cos, sin = at.cos[..., :half], at.sin[..., half:]
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)


def test_a_changed_forward_shows_in_the_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part of our forward pass, broken in turn, breaks the agreement."""
    import upslope.model.attention as attention

    model, ids = loud(SMALL), tokens(20)
    export_hf(model, None, tmp_path)
    wanted = theirs(tmp_path)(ids[None]).logits[0]

    def off() -> float:
        return float((model.logits(model(ids)) - wanted).detach().abs().max())

    assert off() <= 1e-4
    with monkeypatch.context() as m:
        m.setattr(attention, "rotate", _half_to_pairs)
        assert off() > 1e-3
    blocks: Any = model.blocks
    mixer = blocks[0].mixer
    with monkeypatch.context() as m:
        m.setitem(mixer._modules, "q_norm", torch.nn.Identity())
        assert off() > 1e-3
    with monkeypatch.context() as m:
        m.setitem(mixer.k_norm._parameters, "weight", torch.nn.Parameter(torch.ones(8)))
        assert off() > 1e-3
    for norm in (blocks[1].mixer_half.before, blocks[1].ffn_half.before, model.final_norm, mixer.k_norm):
        with monkeypatch.context() as m:
            m.setattr(norm, "eps", 1e-2)
            assert off() > 1e-4
    with monkeypatch.context() as m:
        m.setattr(model, "backend", "eager")
        m.setattr(torch.Tensor, "repeat_interleave", lambda t, n, dim: torch.cat([t] * n, dim))  # heads share the wrong keys
        assert off() > 1e-3
    assert off() <= 1e-4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_key_value_heads": 1}, "misshapen: model.layers.0.self_attn.k_proj.weight"),
        ({"intermediate_size": 41}, "misshapen"),
        ({"num_hidden_layers": 3}, "missing: model.layers.2"),
        ({"num_hidden_layers": 1}, "unexpected: model.layers.1"),
        ({"tie_word_embeddings": True}, "lm_head.weight is another matrix"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 50.0, "factor": 4.0}}, "rope scaling 'yarn'"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"use_sliding_window": True, "sliding_window": 8}, "use_sliding_window = True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "'sliding_attention' are not supported"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 50.0}}, "rope scaling 'linear' without 'factor'"),
        ({"rope_parameters": "fast"}, "wrong kind"),
        ({"rms_norm_eps": "small"}, "wrong kind"),
        ({"num_hidden_layers": None}, "'num_hidden_layers' is missing"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"logit_scale": 2.0}, "'logit_scale' = 2.0 is unknown"),
        ({"model_type": "gpt2"}, "mapped: qwen3, llama, qwen2"),
        ({"hidden_size": None}, "hidden_size"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    export_hf(loud(SMALL), None, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(UsageError, match=said) as error:
        import_hf(tmp_path)
    assert len(str(error.value).splitlines()) <= 6


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("olmo3", {"rope_parameters": {"rope_type": "default", "rope_theta": 9.0}}, "full_attention, sliding_attention"),
        ("gemma3_text", {"attn_logit_softcapping": 9.0}, "attn_logit_softcapping = 9.0"),
        ("gemma3_text", {"query_pre_attn_scalar": 9.5}, "whole number"),
        ("llama", {"hidden_size": 33}, "no multiple of num_attention_heads"),
        ("deepseek_v4", {"scoring_func": "softmax"}, "'sqrtsoftplus', 'sigmoid'"),
        ("nemotron_h", {"tie_word_embeddings": True}, "tie_word_embeddings = True"),
    ],
)
def test_what_the_released_code_does_not_compute_is_refused(kind: str, change: dict[str, Any], said: str) -> None:
    case = next(c for c in PARITY if c.kind == kind)
    entries = json.loads((build(case).folder / "config.json").read_text())
    FAMILIES[kind].read(entries)
    with pytest.raises(UsageError, match=said):
        FAMILIES[kind].read(entries | change)


@pytest.mark.parametrize(("kind", "block"), [("deepseek_v3", "moe"), ("deepseek_v3", "dense"), ("qwen3_moe", "dense"), ("qwen3", "block")])
def test_predictors_come_back_or_the_family_says_why(kind: str, block: str, tmp_path: Path) -> None:
    """The hub's MTP modules are of the last layer's kind; of others, a folder would be written that is not read."""
    config = build(next(c for c in PARITY if c.kind == kind)).ours.config
    model = loud(config.replace(mtp=MTP(depth=2, block=block)))
    last = config.pattern[-1][0] == block
    why = FAMILIES[kind].write(model.config)
    assert last or (isinstance(why, str) and why.startswith(f"mtp.block = {block!r}: "))
    export_hf(model, None, tmp_path)
    again = import_hf(tmp_path)
    assert again.config.mtp == model.config.mtp
    assert (json.loads((tmp_path / "config.json").read_text())["model_type"] == kind) == last
    assert again.tensors().keys() == model.tensors().keys()
    assert all(torch.equal(t, again.tensors()[n]) for n, t in model.tensors().items())


def test_a_folder_of_ours_without_its_description_is_refused(tmp_path: Path) -> None:
    export_hf(loud(SMALL.replace(final_norm=SMALL.final_norm.replace(eps=1e-5))), None, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for broken in ({**config, "upslope": "gone"}, {k: v for k, v in config.items() if k != "upslope"}):
        (tmp_path / "config.json").write_text(json.dumps(broken))
        with pytest.raises(UsageError, match="no description"):
            import_hf(tmp_path)


def test_weights_are_not_written_beside_others(tmp_path: Path) -> None:
    export_hf(loud(SMALL), None, tmp_path)
    export_hf(loud(SMALL, seed=1), None, tmp_path)  # in their place
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
    with pytest.raises(UsageError, match="holds other weights"):
        export_hf(loud(SMALL), None, tmp_path)


def test_pickles_are_refused_with_a_way_out(tmp_path: Path) -> None:
    export_hf(loud(SMALL), None, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"pickle \(pytorch_model.bin\)[\s\S]*save_pretrained"):
        import_hf(tmp_path)


def test_cut_and_poisoned_weights_are_refused(tmp_path: Path) -> None:
    model = loud(SMALL)
    export_hf(model, None, tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(UsageError, match="cannot be read"):
        import_hf(tmp_path)
    from safetensors.torch import load, save_file

    state = load(whole)
    state["model.norm.weight"][3] = torch.nan
    save_file(state, file)
    with pytest.raises(UsageError, match=r"'model.norm.weight' holds NaN"):
        import_hf(tmp_path)
    with torch.no_grad():
        model.embed.weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match="embed_tokens"):
        export_hf(model, None, tmp_path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (SMALL.replace(final_norm=SMALL.final_norm.replace(eps=1e-5)), r"final_norm.eps .* differ"),
        (SMALL.replace(blocks={**SMALL.blocks, "b": LLAMA.blocks["dense"]}, pattern=("dense", "b")), "block 'b': mixer.qk_norm = None"),
    ],
)
def test_what_no_family_expresses_says_why_and_is_written_as_a_bundle(
    config: ModelConfig, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "modules"  # not the user's own
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(cache))
    monkeypatch.setattr("sys.path", [*sys.path])
    why = family_of(config)
    assert isinstance(why, str)
    assert re.search(rf"Qwen3ForCausalLM: .*{said}", why)
    model, ids = loud(config), tokens(20)
    export_hf(model, None, tmp_path / "bundle")
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "bundle", trust_remote_code=True)
    assert type(other).__name__ == "UpslopeForCausalLM"
    assert (model.logits(model(ids)) - other(ids[None]).logits[0]).abs().max() <= 1e-5


def test_a_rule_must_cover_every_tensor() -> None:
    with pytest.raises(ValueError, match=r"no rule for our tensor 'blocks.0.mixer.q_norm.weight'"):
        bindings(FAMILIES["llama"], LLAMA, {"blocks.0.mixer.q_norm.weight": torch.ones(1)})


def test_greedy_tokens_after_reloading_model_and_tokenizer(tmp_path: Path) -> None:
    from upslope.generate.engine import LocalEngine, Request, Sampling, generate

    ours = tokenizer()
    model = loud(SMALL.replace(vocab=ours.vocab_size))
    export_hf(model, ours, tmp_path)
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path)
    other = theirs(tmp_path)
    assert other.generation_config.eos_token_id == [ours.im_end, ours.eos]
    prompts = [ours.encode(text) for text in ("add 12 and 7:", "sort 3 1 2:", "the quick")]
    requests = [Request(str(i), p, Sampling(max_new=12, temperature=0.0), 0) for i, p in enumerate(prompts)]
    done = generate(LocalEngine(model, ours), requests)
    for prompt, text, completion in zip(prompts, ("add 12 and 7:", "sort 3 1 2:", "the quick"), done):
        assert reader(text).input_ids == prompt
        out = other.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :]
        assert completion.ids.tolist() == out.tolist()
