"""Models that no published class expresses, reloaded by transformers from the folder alone, in a process without this package."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.model.support import SMALL, loud, segments, tokenizer, tokens
from upslope.config import FrozenDict, UsageError
from upslope.model import bundle
from upslope.model.config import (
    CSA,
    HCA,
    MLA,
    MTP,
    RMS,
    Attention,
    BiasBalance,
    Compressed,
    Gated,
    Hashed,
    HyperConnections,
    Indexer,
    Layer,
    Lightning,
    Linear,
    Mamba2,
    ModelConfig,
    MoE,
    Nope,
    Nothing,
    PreNorm,
    QKNorm,
    Relu2,
    Reuse,
    Rope,
    Router,
    SandwichNorm,
    Scaled,
    Tied,
    TopK,
)
from upslope.model.transformer import Transformer
from upslope.model.weights import export_hf, family_for, import_hf

pytest.importorskip("transformers")
ROPE = Rope(base=50.0)
GQA = Attention(heads=4, kv_heads=2, head_dim=8, position=ROPE, qk_norm=QKNorm(eps=1e-2))
FFN = Gated(hidden=20)
NORM = PreNorm(eps=1e-3)
LATENT = MoE(
    experts=8,
    expert=FFN,
    router=Router(score="sigmoid", select=TopK(k=2, groups=4, keep=2)),
    shared=Gated(hidden=12),
    latent=12,
    balance=(BiasBalance(),),
)


def model_of(pattern: str, *, vocab: int = 64, **blocks: Layer) -> ModelConfig:
    return ModelConfig(
        d_model=24,
        blocks=FrozenDict(blocks),
        pattern=tuple(pattern),
        vocab=vocab,
        context=64,
        final_norm=RMS(eps=1e-3),  # type: ignore[arg-type]
    )


def v4() -> ModelConfig:
    position = Rope(base=30.0, layout="interleaved", fraction=1 / 3, part="trailing")
    common: dict[str, Any] = {"heads": 4, "head_dim": 12, "q_latent": 10, "window": 5, "position": position, "groups": 2, "group_dim": 7}
    hashed = MoE(experts=4, expert=Gated(hidden=12, limit=2.0), router=Router(score="sqrtsoftplus", select=Hashed(k=2)))
    layers = {
        "h": Layer(mixer=Compressed(history=HCA(rate=4), **common), ffn=hashed, residual=HyperConnections(streams=3)),
        "c": Layer(
            mixer=Compressed(history=CSA(rate=3, index_heads=3, index_dim=6, top_k=2), **common),
            ffn=FFN,
            residual=HyperConnections(streams=3),
        ),
    }
    return model_of("hchc", **layers).replace(mtp=MTP(block="h"))


CONFIGS = {
    "cla": model_of(
        "abab", a=Layer(mixer=GQA, ffn=FFN, norm=NORM), b=Layer(mixer=GQA.replace(kv=Reuse(), gate=True), ffn=FFN, norm=NORM)
    ).replace(head=Tied(), vocab=300),
    "mai": model_of(
        "ldldgm",
        l=Layer(mixer=GQA.replace(window=6), ffn=LATENT, norm=NORM),
        d=Layer(mixer=GQA.replace(window=6), ffn=Gated(hidden=40), norm=NORM),
        g=Layer(mixer=GQA.replace(position=Nope()), ffn=LATENT, norm=NORM),
        m=Layer(mixer=Nothing(), ffn=Relu2(hidden=30), norm=NORM),
    ),
    "everything": model_of(
        "nmsix",
        n=Layer(mixer=Lightning(heads=3, head_dim=8), ffn=LATENT, residual=Scaled(mixer=(0.9, 1.2), ffn=(1.1, 0.8))),
        m=Layer(mixer=Mamba2(heads=4, head_dim=6, state=5, groups=2), ffn=Nothing(), norm=NORM),
        s=Layer(
            mixer=GQA.replace(position=ROPE.replace(scaling=Linear(factor=3.0)), sinks=True, softcap=2.0, bias="all"),
            ffn=FFN.replace(act="swish1702", bias=True, limit=3.0),
            norm=SandwichNorm(eps=1e-3, gain="zero"),
        ),
        i=Layer(
            mixer=MLA(
                heads=4,
                q_latent=10,
                kv_latent=12,
                nope_dim=6,
                rope_dim=4,
                value_dim=7,
                position=Rope(base=50.0, layout="interleaved"),
                select=Indexer(heads=2, dim=8, top_k=5, rope=Rope(base=50.0, fraction=0.5)),
            ),
            ffn=LATENT,
            norm=SandwichNorm(eps=1e-3),
        ),
        x=Layer(mixer=MLA(heads=4, q_latent=None, kv_latent=12, nope_dim=6, rope_dim=4, value_dim=7, select=Reuse()), ffn=FFN, norm=NORM),
    ).replace(embed_scale="sqrt_d", logit_softcap=4.0),
    "v4": v4(),
}
NEW = 12
CHILD = """
import json, sys
sys.modules["upslope"] = sys.modules["pydantic"] = None
import torch, transformers
out = {}
for name, case in json.load(open(sys.argv[1])).items():
    folder = case["folder"]
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    ids, mask = torch.tensor(case["ids"]), torch.tensor(case["mask"])
    def greedy(ids, mask):
        out = model.generate(ids, attention_mask=mask, max_new_tokens=case["new"], do_sample=False, pad_token_id=0)
        return out[:, ids.shape[1]:].tolist()
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
        right = torch.stack([torch.cat((i[m == 1], i[m == 0])) for i, m in zip(ids, mask)]), mask.flip(1)
        out[name] = {
            "logits": [l[m == 1].tolist() for l, m in zip(logits, mask)],
            "right": [l[m == 1].tolist() for l, m in zip(model(right[0], attention_mask=right[1]).logits, right[1])],
            "loss": model(ids[-1:], labels=ids[-1:]).loss.item(),
            "batch": greedy(ids, mask),
            "rows": [greedy(i[m == 1][None], m[m == 1][None])[0] for i, m in zip(ids, mask)],
            "vocab": config.vocab_size,
            "text": transformers.AutoTokenizer.from_pretrained(folder)("add 12 and 7:").input_ids if case["tokenizer"] else None,
        }
    model.save_pretrained(folder + "-again")
assert not [m for m in sys.modules if m.startswith(("upslope.", "pydantic."))]
json.dump(out, open(sys.argv[2], "w"))
"""


class Case(NamedTuple):
    """Our model, its folder, and what the child saw."""

    model: Transformer
    folder: Path
    seen: dict[str, Any]


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Three left-padded rows and their mask."""
    rows = [tokens(n, seed=n) for n in (9, 14, 17)]
    ids = torch.stack([torch.cat((torch.zeros(17 - len(r), dtype=torch.long), r)) for r in rows])
    return ids, torch.stack([torch.cat((torch.zeros(17 - len(r)), torch.ones(len(r)))) for r in rows]).long()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """All cases through one process, in which this package and pydantic cannot be imported."""
    home = tmp_path_factory.mktemp("bundles")
    ids, mask = batch()
    models = {name: loud(config) for name, config in CONFIGS.items()}
    jobs = {}
    for name, model in models.items():
        export_hf(model, tokenizer() if name == "cla" else None, home / name)
        job = {"folder": str(home / name), "ids": ids.tolist(), "mask": mask.tolist(), "new": NEW, "tokenizer": name == "cla"}
        jobs[name] = job
    (home / "jobs.json").write_text(json.dumps(jobs))
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "hf"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(home / "jobs.json"), str(home / "out.json")], cwd=home, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    out = json.loads((home / "out.json").read_text())
    return {name: Case(model, home / name, out[name]) for name, model in models.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_greedy_tokens_are_ours_after_reload(name: str, seen: dict[str, Case]) -> None:
    model, _, got = seen[name]
    assert family_for(model.config) is None, "a published class would do"
    ids, mask = batch()
    lengths = mask.sum(1).tolist()
    with torch.no_grad():
        packed = model.logits(model(ids[mask == 1], segments(*lengths))).split(lengths)
    for i, (row, real) in enumerate(zip(ids, mask)):
        mine = row[real == 1]
        with torch.no_grad():
            alone = model.logits(model(mine))
            assert float(alone.std()) > 0.3, "too quiet to mean anything"
            for side in ("logits", "right"):
                there = torch.tensor(got[side][i])
                assert float((there - packed[i]).abs().max()) <= 1e-6, side
                assert float((there - alone).abs().max()) <= 5e-5, side  # another order of sums
            text = mine
            for _ in range(NEW):
                text = torch.cat((text, model.logits(model(text)[-1:]).argmax(-1)))
        end = got["rows"][i]
        assert end == text[len(mine) :].tolist()[: len(end)]
        assert got["batch"][i][: len(end)] == end
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model.logits(model(ids[-1])[:-1]), ids[-1, 1:])
    assert abs(got["loss"] - float(loss)) < 1e-5
    assert got["vocab"] == model.config.vocab
    if got["text"] is not None:
        assert got["text"] == tokenizer().encode("add 12 and 7:")


@pytest.mark.parametrize("name", CONFIGS)
def test_both_folders_are_read_back(name: str, seen: dict[str, Case]) -> None:
    """Ours, and the one that transformers saved again."""
    model, folder, _ = seen[name]
    for again in (import_hf(folder), import_hf(folder.with_name(f"{name}-again"))):
        assert again.config == model.config
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


def test_a_name_belongs_to_one_module() -> None:
    clashes = bundle.clashes()
    assert not clashes, f"bound by several modules of the bundle: {clashes}"


def test_the_file_is_one_file(seen: dict[str, Case]) -> None:
    """It imports nothing that torch and transformers do not bring, says where it is from, and is the same for every model."""
    text = bundle.source()
    tree = ast.parse(text)
    imported = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    imported |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert {m.split(".")[0] for m in imported if m} <= {"torch", "transformers", "math", *sys.stdlib_module_names}
    assert text.splitlines()[0].startswith("# Generated by upslope 0.1.0: do not edit.")
    assert text.splitlines()[1] == "# SPDX-License-Identifier: Apache-2.0"
    assert {(case.folder / bundle.FILE).read_text() for case in seen.values()} == {text}
    bundle.source.cache_clear()
    assert bundle.source() == text


def test_a_broken_bundle_is_caught(seen: dict[str, Case]) -> None:
    """The comparison can fail: another rotation in the file shows in the logits."""
    name = "modeling_broken"
    text = bundle.source().replace("torch.addcmul(x * cos, _swap(x, layout), sin)", "torch.addcmul(x * cos, _swap(x, layout), -sin)")
    assert text != bundle.source()
    import types

    logits = []
    for source in (bundle.source(), text):
        module = sys.modules[name] = types.ModuleType(name)
        exec(compile(source, name, "exec"), module.__dict__)
        model = seen["cla"].model
        other = module.Transformer(module.ModelConfig(**json.loads((seen["cla"].folder / "config.json").read_text())["upslope"]))
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            logits.append(other.logits(other(tokens(9))) - model.logits(model(tokens(9))))
    del sys.modules[name]
    assert float(logits[0].abs().max()) <= 1e-5
    assert float(logits[1].abs().max()) > 1e-2


def test_masks_and_16_bit_weights_that_it_cannot_use_are_refused() -> None:
    from upslope.config import dump
    from upslope.model.remote import UpslopeConfig, UpslopeForCausalLM

    model = UpslopeForCausalLM(UpslopeConfig(upslope=dump(CONFIGS["mai"])))
    ids = tokens(4)[None]
    with pytest.raises(ValueError, match="in one piece"):
        model(ids, attention_mask=torch.tensor([[1, 0, 1, 1]]))
    with pytest.raises(ValueError, match="must be as input_ids"):
        model(ids, attention_mask=torch.ones(1, 1, 4, 4))
    with pytest.raises(ValueError, match="under torch"):
        model.bfloat16()(ids)
    with pytest.raises(ValueError, match="'upslope' is missing"):
        _ = UpslopeConfig().model


def test_a_folder_of_a_published_family_needs_none(tmp_path: Path) -> None:
    export_hf(loud(SMALL), None, tmp_path)
    assert not (tmp_path / bundle.FILE).exists()
    with pytest.raises(UsageError, match="has a class for it"):
        bundle.write(tmp_path)
