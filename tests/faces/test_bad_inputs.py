"""Bad inputs: each ends in at most six lines (what, where, value, way out), no traceback, the right exit code, nothing lost.

The expected texts are in `bad_inputs.txt`; `UPSLOPE_SNAPSHOT=1 pytest tests/faces/test_bad_inputs.py` writes them anew.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from upslope.cli import main

SNAPSHOT = Path(__file__).with_name("bad_inputs.txt")
CRAWL = Path(__file__).parents[2] / "upslope" / "assets" / "crawl.warc.gz"


def upslope(*argv: str) -> tuple[int, str]:
    """Exit code, and what was printed (errors last)."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["upslope", *argv]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
        code = 0
    except SystemExit as e:
        code = int(e.code or 0)
    finally:
        sys.argv = before
    return code, out.getvalue() + err.getvalue()


def toml(text: str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        (folder / "mine.toml").write_text(text)
        return ["plan", "mine.toml"]

    return make


def ingest(name: str, content: bytes) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        (folder / name).write_bytes(content)
        (folder / "mine.toml").write_text(f'schema = 1\n[stages.crawl]\nkind = "ingest"\nsources = ["{name}"]\n')
        return ["run", "mine.toml", "--inline"]

    return make


def say(*argv: str) -> Callable[[Path], list[str]]:
    return lambda folder: list(argv)


def with_file(name: str, content: str, *argv: str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
        return list(argv)

    return make


QWEN3 = json.dumps({
    "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
    "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 8, "vocab_size": 16, "max_position_embeddings": 32, "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "tie_word_embeddings": False, "hidden_act": "silu",
})  # fmt: skip
STAGE = 'schema = 1\n[stages.a]\nkind = "synthesize"\n'
COMMAND = 'schema = 1\n[stages.a]\nkind = "command"\nargv = ["sh", "-c", "{}"]\n'

CASES: dict[str, tuple[int, Callable[[Path], list[str]]]] = {
    "unknown recipe": (2, say("plan", "tinny")),
    "unknown recipe parameter": (2, say("run", "tiny", "--model", "x")),
    "missing recipe parameter": (2, say("run", "finetune")),
    "recipe file not there": (2, say("plan", "nowhere.toml")),
    "recipe file is not TOML": (2, toml("schema = = 1")),
    "recipe file without schema": (2, toml('extends = "tiny"')),
    "recipe file of a newer schema": (2, toml("schema = 99")),
    "unknown key in a recipe file": (2, toml("schema = 1\nstagse = 3")),
    "recipe without stages": (2, toml("schema = 1")),
    "stage without kind": (2, toml("schema = 1\n[stages.a]\nx = 1")),
    "unknown stage kind": (2, toml('schema = 1\n[stages.a]\nkind = "pretrian"')),
    "import path: no such module": (2, toml('schema = 1\n[stages.a]\nkind = "nowhere_lab.stages:Mine"')),
    "import path: no such attribute": (2, toml('schema = 1\n[stages.a]\nkind = "upslope.stages.mix:Mixx"')),
    "cycle": (2, toml('schema = 1\n[stages.a]\nkind = "extract"\npages = "b"\n[stages.b]\nkind = "extract"\npages = "a"')),
    "missing input stage": (2, toml('schema = 1\n[stages.text]\nkind = "extract"\npages = "crawl"')),
    "input of the wrong kind": (2, toml(STAGE + 'form = {kind = "problems"}\n[stages.text]\nkind = "extract"\npages = "a"')),
    "unknown key in --set": (2, say("plan", "tiny", "--set", "pretrain.optim.lrr=0.1")),
    "wrong type in --set": (2, say("plan", "tiny", "--set", "pretrain.rows=many")),
    "out of range in --set": (2, say("plan", "tiny", "--set", "pretrain.optim.lr=-0.1")),
    "NaN in --set": (2, say("plan", "tiny", "--set", "pretrain.optim.lr=nan")),
    "--set that matches nothing": (2, say("plan", "tiny", "--set", "pretrian.optim.lr=0.1")),
    "--set that fits several stages": (2, say("plan", "tiny", "--set", "optim.lr=0.1")),
    "--set without a value": (2, say("plan", "tiny", "--set", "pretrain.optim.lr")),
    "unknown optimizer": (2, say("plan", "tiny", "--set", "pretrain.optim.kind=muonn")),
    "bad duration": (2, say("plan", "tiny", "--set", "pretrain.length=500steps")),
    "seed on a stage that draws nothing": (2, say("plan", "tiny", "--set", "text.seed=1")),
    "unknown task family": (2, say("plan", "tiny", "--set", "problems.form.families=['addd']")),
    "rule that does not parse": (2, say("plan", "tiny", "--set", "corpus.rules=[{name='x', keep='bytes >'}]")),
    "secret in a recipe": (2, toml(COMMAND.format("curl -H sk-abcdefghijklmnopqrstuvwxyz"))),
    "undeclared script": (2, with_file("train.sh", "echo hi", "plan", "mine.toml")),
    "unknown stage for --to": (2, say("run", "tiny", "--to", "pretrian")),
    "bad budget": (2, say("run", "tiny", "--budget", "soon")),
    "outside data not there": (2, say("plan", "tiny", "--set", "crawl.sources=['nowhere.warc.gz']")),
    "WARC cut short": (0, ingest("cut.warc.gz", CRAWL.read_bytes()[:60_000])),
    "WARC that is empty": (2, ingest("empty.warc.gz", b"")),
    "WARC that is not gzip": (2, ingest("plain.warc.gz", b"this is not gzip at all " * 50)),
    "WARC of zeros": (2, ingest("zeros.warc", bytes(5000))),
    "JSON lines broken in the middle": (0, ingest("rows.jsonl", b'{"text": "one good row of text"}\n{"text": \n{"txet": "x"}\n')),
    "page of 50 MB": (0, ingest("huge.html", b"<p>" + b"x" * 50_000_000)),
    "wrong charset": (0, ingest("odd.html", '<meta charset="utf-8"><p>Grüße aus dem Süden, die Straße ist naß</p>'.encode("latin-1"))),
    "command that fails": (2, toml(COMMAND.format("echo reason; exit 3"))),
    "command without its output": (2, toml(COMMAND.format("true") + 'outputs = ["model"]\n')),
    "no such run": (2, say("show", "tiny-9")),
    "chat without a model": (2, say("chat", "-p", "hello")),
    "export without a model": (2, say("export", "tiny-1", "out")),
    "export to an unknown format": (2, say("export", "tiny-1", "out", "--to", "onnx")),
    "compare with nothing": (2, say("compare", "tiny", "tinny")),
    "why of an unknown stage": (2, say("why", "pretrian")),
    "import of pickled weights": (2, with_file("old/config.json", QWEN3, "import", "old", "--as", "base")),
    "import of a broken file": (2, with_file("rows.jsonl", '{"text": "ok"}\n{"text": \n', "import", "rows.jsonl", "--as", "x")),
    "data check of nothing": (2, say("data", "check", "nowhere.jsonl")),
    "unknown preset": (2, say("presets", "tinny")),
    "lab's preset without a size": (2, say("run", "deepseek_v3")),
    "lab's preset that is misspelt": (2, say("plan", "deepsek-v3", "--size", "tiny")),
    "size that is none": (2, say("plan", "kimi-k2", "--size", "huge")),
    "size too small for the model": (2, say("plan", "minimax_m1", "--size", "1k")),
    "size for a recipe that takes none": (2, say("plan", "tiny", "--size", "10M")),
    "heads that do not divide": (2, say("plan", "tiny", "--set", "pretrain.init.model.blocks.dense.mixer.kv_heads=2")),
    "unknown knob": (2, say("explain", "windw")),
    "gc of an unknown run": (2, say("gc", "--forget", "tiny-9")),
}  # fmt: skip

EXTRA: dict[str, Callable[[Path], object]] = {
    "undeclared script": lambda f: (f / "mine.toml").write_text('schema = 1\n[stages.a]\nkind = "command"\nargv = ["sh", "train.sh"]\n'),
    "import of pickled weights": lambda f: (f / "old" / "pytorch_model.bin").write_bytes(b"\x80\x04pickle"),
}


def shown(case: str, folder: Path) -> str:
    """What the case prints: exit code, then the text without times."""
    code, make = CASES[case]
    argv = make(folder)
    EXTRA.get(case, lambda f: None)(folder)
    if argv == ["plan", "mine.toml"] and case.startswith("command"):
        argv = ["run", "mine.toml", "--inline"]
    got, text = upslope(*argv)
    assert "Traceback" not in text, text
    assert got == code, f"exit code {got}:\n{text}"
    errors = [line for line in text.splitlines() if line.startswith(("error:", "  "))]
    assert len(errors) <= 8, text
    text = re.sub(r"\d+(\.\d+)? (s|min)\b( \d+ s)?", "‹time›", text).replace(str(folder), "‹here›")
    text = re.sub(r"(?m)^found: .*\n", "", text)  # this machine
    return re.sub(r"(?m)[ \t]+$", "", text).strip()


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    parts = re.split(r"(?m)^── (.*) ──$\n", SNAPSHOT.read_text()) if SNAPSHOT.exists() else [""]
    return {name: text.strip() for name, text in zip(parts[1::2], parts[2::2])}


@pytest.mark.parametrize("case", sorted(CASES))
def test_bad_input(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: dict[str, str]) -> None:
    monkeypatch.chdir(tmp_path)
    text = shown(case, tmp_path)
    if os.environ.get("UPSLOPE_SNAPSHOT"):
        expected[case] = text
        SNAPSHOT.write_text("\n\n".join(f"── {n} ──\n{expected[n]}" for n in sorted(expected)) + "\n")
    assert text == expected.get(case), f"{case}: the message changed"
