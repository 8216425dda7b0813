"""`upslope plan --ranks`: what is rehearsed, how meshes, jobs and machines are written, and what is refused."""

from __future__ import annotations

import json
import platform
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tests.faces.test_bad_inputs import upslope
from upslope import api
from upslope.cli.prices import expected
from upslope.cli.rehearse import parse_job, parse_mesh
from upslope.config import FrozenDict, UsageError
from upslope.machine.stage import Recipe
from upslope.machine.store import Manifest, Store
from upslope.optim.config import AdamW
from upslope.parallel.config import Mesh
from upslope.recipes.labs import PRESETS, get
from upslope.recipes.labs.recipe import lab_recipe
from upslope.recipes.published_runs import written
from upslope.recipes.rehearsals import of_lab, of_recipe, stages
from upslope.recipes.tiny import tiny
from upslope.stages.pretrain import Pretrain
from upslope.train.init import Scratch
from upslope.train.rehearsal.machines import MACHINES, UNITS, Machine, machine, template

H100 = MACHINES["h100"]


def ok(*argv: str) -> str:
    code, text = upslope(*argv)
    assert code == 0, text
    return text


def test_a_preset_at_its_real_size_by_its_spoken_name() -> None:
    text = ok("plan", "llama3-8b", "--ranks", "64", "--machine", "h100x8")
    lines = text.splitlines()
    assert "Llama 3 8B at its real size: 8.03B parameters, vocabulary 128,256" in lines[0] and len(lines) <= 40
    assert "global batch 4.2M tokens = 64 ranks x" in text and "fits in 73.6 GB" in text
    assert "assumed: kernels 55%" in text and "checked against: speed of 15 published runs" in text
    values = json.loads(ok("plan", "llama3-8b", "--ranks", "64", "--machine", "h100x8", "--json"))
    assert values["parameters"] == get("llama3_8b").model.params() and values["job"]["batch"] == 512 * 8192
    assert values["mesh"] and values["time"]["step"] > 0 and values["assumed"]


def test_a_stage_is_rehearsed_as_it_is_set() -> None:
    recipe = tiny()
    stage = recipe.stages["pretrain"]
    assert isinstance(stage, Pretrain) and isinstance(stage.init, Scratch)
    found = of_recipe(recipe)
    assert found.title.startswith("stage pretrain of tiny")
    assert found.model == stage.init.model.replace(vocab=1024) and any("1,024" in note for note in found.assumed)
    job = found.job
    assert (job.batch, job.length, job.optim, job.precision) == (16 * 128, 128, stage.optim, "bf16")
    assert job.tokens == 840 * 16 * 128
    narrow = AdamW(state="bf16")
    changed = recipe.replace(stages=FrozenDict({**recipe.stages, "pretrain": stage.replace(optim=narrow, numerics="fp32")}))
    assert (of_recipe(changed).job.states, of_recipe(changed).job.precision) == ("bf16", "fp32")


def test_what_is_not_counted_is_said() -> None:
    notes = {
        "pretrain.ema=0.99": "moving average",
        "pretrain.only=['*.mixer.*']": "counted too much",
        "pretrain.precision.kind=fp8_v3": "run as FP8",
    }
    for change, note in notes.items():
        found = of_recipe(api.recipe("tiny", [change]))
        assert any(note in n for n in found.assumed), change
    assert of_recipe(api.recipe("tiny", ["pretrain.precision.kind=fp8_v3"])).job.precision == "fp8"
    assert of_recipe(api.recipe("tiny", ["pretrain.precision={kind='plain', numerics='fp32'}"])).job.precision == "fp32"


def test_every_stage_with_a_model_known_before_it_runs() -> None:
    known = {name: (model, assumed) for name, _, model, assumed in stages(tiny())}
    assert list(known) == ["pretrain", "midtrain", "sft", "savepoint", "reward_model", "preference"]
    assert known["midtrain"][0].vocab == known["pretrain"][0].vocab
    midtrain, sft = of_recipe(tiny(), "midtrain"), of_recipe(tiny(), "sft")
    assert (midtrain.job.batch, midtrain.job.length) == (8 * 256, 256)
    assert sft.job.length == sft.model.context and any("fills the context" in note for note in sft.assumed)
    assert of_recipe(tiny(), "reward_model").job.batch == 2 * 32 * sft.model.context, "a pair is two sequences"


def test_a_vocabulary_that_nobody_knows_yet_is_said(tmp_path: Path) -> None:
    stage = tiny().stages["pretrain"]
    assert isinstance(stage, Pretrain)
    alone = Recipe(name="mine", stages=FrozenDict({"pretrain": stage}))
    assert of_recipe(alone).model.vocab == 32_768
    assert any("--set pretrain.init.model.vocab=N" in note for note in of_recipe(alone).assumed)
    text = ok("plan", "tiny", "--ranks", "1", "--set", "pretrain.init.model.vocab=4096", "--store", str(tmp_path))
    assert "vocabulary 4,096" in text.splitlines()[0] and "asked for" not in text


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_rehearsed(name: str) -> None:
    found = of_lab(get(name), H100)
    rows = found.job.batch // found.job.length
    assert found.job.batch == rows * found.job.length
    assert api.rehearse(name, 1, "fsdp 1").rehearsal.tokens_per_second > 0


def test_published_batches_are_met() -> None:
    """From the reports: Llama 3 8B 4M, OLMo 2 7B 1,024 x 4,096, V3's first 3,072 x 4,096, Nemotron 3 Nano 3,072 x 8,192."""
    batches = {"llama3_8b": 2**22, "olmo2_7b": 2**22, "deepseek_v3": 3072 * 4096, "nemotron3_nano": 3072 * 8192}
    assert {n: of_lab(get(n), H100).job.batch for n in batches} == batches
    assert of_lab(get("deepseek_v3"), H100).job.precision == "fp8" and of_lab(get("kimi_k2"), H100).job.precision == "bf16"
    assert any("no FP8 unit" in note for note in of_lab(get("deepseek_v3"), MACHINES["a100"]).assumed)


def test_a_scaled_preset_and_its_recipe_agree() -> None:
    text = ok("plan", "qwen3-235b", "--size", "tiny", "--ranks", "2")
    assert "stage pretrain of qwen3_235b_tiny" in text
    assert of_recipe(lab_recipe("qwen3_235b", "tiny")).model.vocab == 1024


@pytest.mark.parametrize(
    ("text", "ranks", "mesh"),
    [
        ("dp=2,tp=8,pp=4", 64, Mesh(dp=2, tp=8, pp=4)),
        ("tp 8, pp 2", 64, Mesh(fsdp=4, tp=8, pp=2)),
        ("dp 2 x fsdp 4 x tp 8", 64, Mesh(dp=2, fsdp=4, tp=8)),
        ("tp 8 , virtual=2, pp 4, zero 1, sequence=false", 32, Mesh(tp=8, pp=4, virtual=2, zero=1, sequence=False)),
        ("fsdp 16, ep 8", 16, Mesh(fsdp=16, ep=8)),
    ],
)
def test_meshes_as_they_are_written(text: str, ranks: int, mesh: Mesh) -> None:
    assert parse_mesh(text, ranks) == mesh and mesh.ranks == ranks


def test_a_mesh_that_was_printed_can_be_given_back() -> None:
    found = api.rehearse("llama3-8b", 64).rehearsal
    axes = str(found.mesh).replace(", zero", " x zero").replace(", virtual", " x virtual")
    assert parse_mesh(axes, 64) == found.mesh


def test_changes_to_the_job() -> None:
    assert parse_job("batch 512x8192, length=8192, tokens 15e12, recompute full") == {
        "batch": 512 * 8192,
        "length": 8192,
        "tokens": 15e12,
        "recompute": "full",
    }
    a, b = (api.rehearse("llama3-8b", 8, "fsdp 8", recompute=r).rehearsal for r in ("selective", "full"))
    assert b.memory.activations < a.memory.activations and b.time.step > a.time.step
    micro = json.loads(ok("plan", "llama3-8b", "--ranks", "8", "--mesh", "fsdp 8", "--job", "micro 4", "--json"))
    assert micro["job"]["micro"] == 4


def test_a_micro_step_takes_what_the_stage_lets_a_rank_take() -> None:
    one = api.rehearse("tiny", 1, "fsdp 1").job
    assert one.micro == 16, "all 16 rows are within micro_tokens"
    assert api.rehearse("tiny", 4, "dp 2").job.micro == 4
    small = api.change(api.recipe("tiny"), {"pretrain.micro_tokens": 300})
    assert api.rehearse(small, 1, "fsdp 1").job.micro == 2


def test_the_machine_template_is_a_machine_file(tmp_path: Path) -> None:
    assert set(UNITS) == set(Machine.model_fields)
    (tmp_path / "ours.toml").write_text(ok("plan", "--machine-template"))
    ours = machine(str(tmp_path / "ours.toml"))
    for name, value in H100:
        assert getattr(ours, name) == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value)
    (tmp_path / "ours.json").write_text(json.dumps(tomllib.loads(template()) | {"node": 4, "price": 2.5}))
    ours = machine(str(tmp_path / "ours.json"))
    assert (ours.node, ours.price) == (4, 2.5)
    text = ok("plan", "llama3-8b", "--ranks", "8", "--machine", str(tmp_path / "ours.json"))
    assert "in the machine's currency" in text


def test_machines_with_their_ranks_a_node() -> None:
    assert (machine("h100x4").node, machine("H200").node, machine("mi300xx4").node) == (4, 8, 4)


def test_published_runs_are_shown() -> None:
    assert "OLMo 2 32B" in ok("plan", "--published")
    rows = json.loads(ok("plan", "--published", "--json"))
    assert len({r["run"] for r in rows}) >= 6 and all(r["predicted"] > 0 for r in rows)


def test_the_table_in_the_guide_is_todays() -> None:
    page = (Path(__file__).parents[2] / "docs" / "howto" / "rehearse.md").read_text(encoding="utf-8")
    assert page == written(page), "run: python -m upslope.recipes.published_runs"
    assert "OLMo 2 32B" in page


def _manifest(kind: str, flops: float, took: float, **bits: Any) -> Manifest:
    empty: dict[str, Any] = {key: {} for key in ("config", "inputs", "facts", "files", "code")}
    plain = {"machine": platform.machine(), "world": 1} | bits
    return Manifest(
        **{f.name: "" for f in fields(Manifest)} | empty | {"kind": kind, "flops": flops, "seconds": took, "bits": plain, "fp": "0" * 64}
    )


def test_a_stage_is_priced_at_the_speed_of_earlier_ones() -> None:
    known = [_manifest("pretrain", 1e12 * n, 1.0 * n) for n in (1, 2, 3)]
    assert expected(5e12, "pretrain", known) == (5.0, 3)
    far = [_manifest("pretrain", 1e3, 1e3)] * 4
    near = [_manifest("pretrain", 4e12, 2.0)] * 5
    assert expected(5e12, "pretrain", [*far, *near]) == (2.5, 5), "the nearest count"
    others = [_manifest("sft", 1e12, 1.0), _manifest("pretrain", 1e12, 1.0, machine="other"), _manifest("pretrain", 1e12, 1.0, world=4)]
    assert expected(5e12, "pretrain", others) is None is expected(0.0, "pretrain", known)


def test_the_price_stands_under_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ok("plan", "tiny", "--store", str(tmp_path))
    assert "earlier" not in before
    (tmp_path / "pretrain" / "x").mkdir(parents=True)
    monkeypatch.setattr(Store, "manifest", lambda self, folder: _manifest("pretrain", 1e12, 1.0))
    after = ok("plan", "tiny", "--store", str(tmp_path))
    assert after.startswith(before) and "pretrain: about " in after and "from 1 earlier run of its kind in this store" in after


def test_without_ranks_nothing_changes(tmp_path: Path) -> None:
    values = json.loads(ok("plan", "tiny", "--json", "--store", str(tmp_path)))
    assert sorted(values) == ["notes", "origins", "recipe", "seed", "stages"]


REFUSED: dict[str, tuple[list[str], str]] = {
    "no ranks": (["llama3-8b", "--ranks", "0"], "there must be one at least"),
    "axes that do not divide the ranks": (["llama3-8b", "--ranks", "64", "--mesh", "tp 8, pp 3"], "64 is not divisible by tp x pp = 24"),
    "heads that tp does not divide": (["llama3-8b", "--ranks", "3", "--mesh", "tp 3"], "heads = 32 is not divisible by tp = 3"),
    "layers that pp does not divide": (["llama3-8b", "--ranks", "5", "--mesh", "pp 5"], "layers = 32 is not divisible by pp = 5"),
    "too many ranks named": (["llama3-8b", "--ranks", "8", "--mesh", "fsdp 16"], "= 16 is not ranks = 8"),
    "unknown axis": (["llama3-8b", "--ranks", "8", "--mesh", "fdsp 8"], "did you mean fsdp?"),
    "axis without a size": (["llama3-8b", "--ranks", "8", "--mesh", "tp"], "'tp' is not a name and a value"),
    "axis of size 0": (["llama3-8b", "--ranks", "8", "--mesh", "tp 0"], "tp = 0"),
    "axis twice": (["llama3-8b", "--ranks", "8", "--mesh", "tp 2, tp 4"], "tp is given twice"),
    "unknown machine": (["llama3-8b", "--ranks", "8", "--machine", "h1000"], "one of h100, h200"),
    "machine file not there": (["llama3-8b", "--ranks", "8", "--machine", "nowhere.toml"], "there is no such file"),
    "machine file that is not TOML": (["llama3-8b", "--ranks", "8", "--machine", "bad.toml"], "--machine-template"),
    "machine file that is not JSON": (["llama3-8b", "--ranks", "8", "--machine", "bad.json"], "--machine-template"),
    "machine file that is a list": (["llama3-8b", "--ranks", "8", "--machine", "list.json"], "not a table"),
    "machine file without a peak": (["llama3-8b", "--ranks", "8", "--machine", "half.toml"], "bf16"),
    "machine file with an unknown field": (["llama3-8b", "--ranks", "8", "--machine", "typo.toml"], "'memory'"),
    "machine file with a negative rate": (["llama3-8b", "--ranks", "8", "--machine", "below.toml"], "link = -1"),
    "machine file like itself": (["llama3-8b", "--ranks", "8", "--machine", "loop.toml"], "is a file"),
    "unknown stage": (["tiny", "--ranks", "8", "--stage", "pretrian"], "one of pretrain, midtrain"),
    "stage that trains nothing": (["tiny", "--ranks", "8", "--stage", "crawl"], "no model that is known"),
    "stage of a real size": (["llama3-8b", "--ranks", "8", "--stage", "sft"], "--size tiny"),
    "recipe that trains nothing": (["data.toml", "--ranks", "8"], "no stage trains a model"),
    "unknown preset": (["llama3-9b", "--ranks", "8"], "did you mean llama3_8b"),  # the loader's own words
    "unknown field of the job": (["llama3-8b", "--ranks", "8", "--job", "rows 3"], "known: "),
    "bad value of the job": (["llama3-8b", "--ranks", "8", "--job", "recompute some"], "recompute = 'some'"),
    "batch that no mesh divides": (["llama3-8b", "--ranks", "7"], "no legal mesh"),
    "a mesh without ranks": (["llama3-8b", "--mesh", "tp 8"], "--ranks N"),
    "a price where the network is not known": (["llama3-8b", "--ranks", "16", "--machine", "mi300x", "--mesh", "fsdp 16"], "network"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = {
        "bad.toml": "bf16 = = 1",
        "bad.json": "{",
        "list.json": "[1]",
        "half.toml": 'name = "x"\n',
        "typo.toml": 'like = "h100"\nmemroy = 1\n',
        "below.toml": 'like = "h100"\nlink = -1\n',
        "loop.toml": 'like = "loop.toml"\n',
        "data.toml": 'schema = 1\n[stages.a]\nkind = "synthesize"\nform = {kind = "problems"}\n',
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    argv, says = REFUSED[case]
    code, text = upslope("plan", *argv)
    assert code == 2 and says in text, text
    assert ("way out" in text or case == "unknown preset") and len(text.strip().splitlines()) <= 6 and "Traceback" not in text


def test_the_python_face_refuses_the_same() -> None:
    with pytest.raises(UsageError, match="at least"):
        api.rehearse("llama3-8b", 0)
    wrong: dict[str, Any] = {"recompute": "some"}
    with pytest.raises(UsageError, match="recompute"):
        api.rehearse("llama3-8b", 8, **wrong)
