"""The estimate before a job starts: its certain part against tensors, its peak against processes, limits against written files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from upslope.config import UsageError, dump
from upslope.model.config import ModelConfig, dense
from upslope.model.transformer import Transformer
from upslope.optim.build import build
from upslope.optim.config import AdamW, Muon
from upslope.parallel.config import Mesh
from upslope.recipes.labs import get
from upslope.recipes.scale import scale
from upslope.train.rehearsal import local
from upslope.train.rehearsal.local import Settings, available, before, needed, tight, too_little_memory
from upslope.train.trainer import Trainer

SMALL = dense(64, 4, 4, 2, 16, 128, context=256, vocab=512)
STEP = Settings(AdamW(), tokens=2048, length=256, micro_tokens=1024)
OPTIMS = (AdamW(), Muon(), AdamW(state="bf16"), Muon(state="bf16"))


@pytest.mark.parametrize("optim", OPTIMS, ids=str)
@pytest.mark.parametrize("name", ["dense", "deepseek_v3", "qwen3_235b"])
def test_the_certain_part_is_what_a_step_holds(name: str, optim: AdamW | Muon) -> None:
    config = SMALL if name == "dense" else scale(get(name).model, "1M").replace(vocab=512)
    model = Transformer(config)
    optimizer = build(model.named_parameters(), optim)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step(1e-3)
    need = needed(config, STEP._replace(optim=optim))
    assert need.weights == need.gradients == sum(p.nbytes for p in model.parameters() if p.requires_grad)
    assert need.states == sum(t.nbytes for t in optimizer.state().values() if t.ndim)


def test_shards_hold_their_share() -> None:
    one, four = needed(SMALL, STEP), needed(SMALL, STEP, Mesh(fsdp=4))
    assert four.certain == one.certain / 4
    assert needed(SMALL, STEP, Mesh(pp=2)).certain > one.certain / 2, "the fuller stage"
    assert needed(SMALL, STEP, Mesh(dp=4)).certain == one.certain


CHANGED: dict[str, Any] = {
    "optim": Muon(),
    "tokens": 512,
    "length": 2048,
    "micro_tokens": 512,
    "products": "fp32",
    "recompute": "full",
    "chunk": 128,
    "weights": 1e5,
    "trained": 1000,
}


@pytest.mark.parametrize("field", Settings._fields)
def test_each_setting_changes_the_need(field: str) -> None:
    assert needed(SMALL, STEP._replace(**{field: CHANGED[field]})) != needed(SMALL, STEP)


def test_what_cannot_fit_is_refused_with_its_parts_and_a_way_out() -> None:
    model, step = get("llama3_8b").model, Settings(AdamW(), tokens=65536, length=8192)
    error = too_little_memory(model, step, Mesh(), 12e9)
    assert isinstance(error, UsageError) and len(str(error).splitlines()) <= 6
    for part in ("128 GB of it whatever the batch", "weights 32.1 GB", "optimizer states 64.2 GB", "12 GB are free", "way out:"):
        assert part in str(error)
    assert "a rank needs" in str(too_little_memory(model, step, Mesh(fsdp=2), 12e9))


def test_the_way_out_is_one_that_works() -> None:
    need = needed(SMALL, STEP)
    free = need.certain * 0.8
    error = too_little_memory(SMALL, STEP, Mesh(), free)
    assert 'optim.state = "bf16"' in str(error)
    assert too_little_memory(SMALL, STEP._replace(optim=AdamW(state="bf16")), Mesh(), free) is None
    narrow = STEP._replace(optim=AdamW(state="bf16"))
    assert "optim." not in str(too_little_memory(SMALL, narrow, Mesh(), need.certain * 0.3))


def test_what_is_certain_refuses_and_what_is_expected_warns() -> None:
    need = needed(SMALL, STEP)
    assert too_little_memory(SMALL, STEP, Mesh(), need.certain) is None
    assert too_little_memory(SMALL, STEP, Mesh(), need.certain - 1) is not None
    assert too_little_memory(SMALL, STEP, Mesh(), need.certain - need.weights, held=need.weights) is None
    assert tight(SMALL, STEP, Mesh(), need.expected) == "" == tight(SMALL, STEP, Mesh(), need.certain - 1)
    less = needed(SMALL, STEP._replace(micro_tokens=512)).expected
    assert "micro_tokens = 512 would do" in tight(SMALL, STEP, Mesh(), less)
    assert "activation checkpointing" in tight(SMALL, STEP, Mesh(), need.certain)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_trainer_is_judged_by_what_it_holds(frozen: bool) -> None:
    model = Transformer(SMALL)
    for name, p in model.named_parameters():
        p.requires_grad_(not frozen or name.startswith("blocks.0."))
    trainer = Trainer(model, AdamW(), numerics="bf16", micro_tokens=1024)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    states = sum(t.nbytes for t in trainer.optimizer.state().values() if t.ndim)
    assert states == 8 * trained, "the optimizer holds its states from the start"
    gradients = 4 * trained
    assert before(trainer, AdamW(), 2048, 256) == ""
    assert "micro_tokens" in before(trainer, AdamW(), 2048, 256, free=gradients + 1e6)
    assert before(trainer, AdamW(), 2048, 256, free=1e9) == ""
    with pytest.raises(UsageError, match="are free"):
        before(trainer, AdamW(), 2048, 256, free=gradients - 1e4)


def test_this_machine_has_memory() -> None:
    assert 0 < available() < 1e15


def test_system_memory_with_swap(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal: 8000 kB\nMemAvailable:    4000 kB\nSwapFree: 1000 kB\n")
    assert local._system(file) == 5000 * 1024
    assert local._system(tmp_path / "none") == float("inf")


@pytest.mark.parametrize("version", [1, 2])
def test_limits_of_control_groups(version: int, tmp_path: Path) -> None:
    base = tmp_path if version == 2 else tmp_path / "memory"
    names = ("memory.max", "memory.current", "inactive_file")
    names = names if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")

    def group(path: str, limit: str, used: int, cached: int) -> None:
        folder = base / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in zip(names, (limit, str(used), f"anon 3\n{names[2]} {cached}\n")):
            (folder / ("memory.stat" if name == names[2] else name)).write_text(value)

    own = tmp_path / "cgroup"
    own.write_text("0::/job/step\n" if version == 2 else "5:cpu,cpuacct:/job\n4:memory:/job/step\n")
    unlimited = "max" if version == 2 else str(2**63 - 4096)
    group("job/step", unlimited, 10, 0)
    assert local._groups(own, tmp_path) == float("inf")
    group("job", "5000", 3000, 500)
    assert local._groups(own, tmp_path) == 2500
    group("job/step", "2000", 1000, 0)
    assert local._groups(own, tmp_path) == 1000
    own.write_text("0::/elsewhere\n" if version == 2 else "4:memory:/elsewhere\n")  # a container, whose own root is the limit
    group("", "700", 100, 0)
    assert local._groups(own, tmp_path) == 600


MEASURE = """
import json, sys
import torch
from upslope.model.config import ModelConfig
from upslope.model.init import initialise
from upslope.model.transformer import Transformer
from upslope.optim.config import AdamW, Muon
from upslope.train.batch import Batch
from upslope.train.losses import Imitate
from upslope.train.trainer import Trainer

def memory(name):
    rows = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(rows[name].split()[0]) * 1024

def steps(config, rows, length, micro):
    trainer = Trainer(initialise(Transformer(config), 0), optim, numerics=case["numerics"], micro_tokens=micro)
    for _ in range(2):
        ids = [torch.randint(0, config.vocab, (length,)) for _ in range(rows)]
        trainer.step(Batch.of(ids, origin=list(range(rows)), imitate=torch.ones(length * rows)), Imitate(0.0), 1e-4)

torch.set_num_threads(1)
case = json.loads(sys.argv[1])
optim = {"adamw": AdamW, "muon": Muon}[case["optim"]]()
steps(ModelConfig.model_validate(case["warm"]), 2, 16, 0)
before = memory("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
steps(ModelConfig.model_validate(case["model"]), case["rows"], case["length"], case["micro"])
print(memory("VmHWM") - before)
"""


def _peak(config: ModelConfig, optim: str, numerics: str, rows: int, length: int, micro: int) -> float:
    """Bytes that two steps added to a fresh process at its highest."""
    warm = dense(16, 1, 1, 1, 16, 16, context=32, vocab=64)
    case = {"model": dump(config), "warm": dump(warm), "optim": optim, "numerics": numerics}
    argv = [sys.executable, "-c", MEASURE, json.dumps(case | {"rows": rows, "length": length, "micro": micro})]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


MODELS = {
    "activations": (dense(256, 8, 8, 4, 32, 768, context=512, vocab=4096), "adamw", 8, 512, 4096),
    "logits": (dense(128, 2, 4, 2, 32, 256, context=256, vocab=32_768), "adamw", 8, 256, 2048),
    "states": (dense(512, 12, 8, 8, 64, 1408, context=128, vocab=4096), "muon", 2, 128, 256),
}


@pytest.mark.slow
@pytest.mark.parametrize("numerics", ["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_the_expected_peak_is_near_that_of_a_process(name: str, numerics: str) -> None:
    """Resident memory, which holds what the allocator keeps as well: within 20 %; never below what is certain."""
    config, optim, rows, length, micro = MODELS[name]
    peak = _peak(config, optim, numerics, rows, length, micro)
    chosen = AdamW() if optim == "adamw" else Muon()
    need = needed(config, Settings(chosen, rows * length, length, micro, "fp32" if numerics == "fp32" else "half"))
    print(f"{name} {numerics}: expected {need.expected / 1e6:.0f} MB, measured {peak / 1e6:.0f} MB, {need.expected / peak - 1:+.0%}")
    assert need.certain <= peak
    assert need.expected == pytest.approx(peak, rel=0.2)
