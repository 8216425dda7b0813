"""W1: a newcomer's first fifteen minutes, offline, as a script: run, interrupt, go on, chat, why, show, run again."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import Home, make_home
from upslope.data.artifacts import Corpus
from upslope.machine.run import record
from upslope.machine.store import Store

pytestmark = pytest.mark.xdist_group("e2e")


def test_ctrl_c_in_the_middle_then_the_same_command_continues(done: Home, crawl: Path, tmp_path: Path) -> None:
    home = make_home(tmp_path, crawl)
    process = home.start("run", "mine.toml")
    store = Store(home.folder / "store")
    deadline = time.time() + 120
    while not list(store.root.glob("pretrain/*/events/*.jsonl")) and time.time() < deadline:
        time.sleep(0.1)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75, out
    assert "the same command continues" in out
    again = home.upslope("run", "mine.toml", "--to", "midtrain")
    assert re.search(r"(?m)^  pretrain +continues where it stopped", again)
    mine = {s.name: s.manifest["files"] for s in record(store).stages if s.manifest}
    reference = {s.name: s.manifest["files"] for s in record(Store(done.folder / "store")).stages if s.manifest}
    assert mine and all(files == reference[name] for name, files in mine.items()), "to the same bits"


def test_chat_says_what_it_can_and_answers(done: Home) -> None:
    from upslope.cli.models import find_model
    from upslope.cli.talk import banner

    text = banner(find_model(None, Store(done.folder / "store")))
    assert "does not know the world" in text
    assert text.count("·") >= 2, "three prompts to try"
    done.upslope("chat", "-p", "parity: 1 2 3")
    assert '"answer"' in done.upslope("chat", "-p", "parity: 1 2 3", "--json")


def test_why_of_a_dropped_page_names_rule_value_threshold(done: Home) -> None:
    seen = record(Store(done.folder / "store"))
    stage = seen.stage("corpus")
    assert stage is not None
    corpus = Corpus.load(stage.data)
    urls = [u for b in corpus.batches(("url",), every=True) for u in b["url"].to_pylist()]
    dropped = next(u for u, k in zip(urls, corpus.kept().tolist()) if not k)
    out = done.upslope("why", dropped)
    assert re.search(r"dropped by \d+ rule", out)
    assert re.search(r"where it must hold that", out)


def test_show_writes_one_file_and_the_run_is_reused(done: Home) -> None:
    assert "report: " in done.upslope("show", "--open")
    assert "reused" in done.upslope("run", "mine.toml")


def test_doctor_names_what_is_there(done: Home) -> None:
    out = done.upslope("doctor")
    assert "cores" in out
    assert "sandbox" in out
    assert "torch" in out
