"""One uninterrupted micro run, by the command line, in a home folder with planted secrets; the tests of this folder look at it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.micro import LENIENT, ROOT, small_crawl

PLANTED = {"HOSTNAME": "planted-host-name", "PLANTED_API_KEY": "planted-secret-0123456789"}


@dataclass(frozen=True)
class Home:
    """A working folder with everything that the micro recipe reads, and the environment that commands run in."""

    folder: Path
    env: dict[str, str]

    def upslope(self, *argv: str, code: int = 0) -> str:
        """Runs the command; stdout and stderr together. The exit code must be `code`."""
        done = subprocess.run([sys.executable, "-m", "upslope", *argv], cwd=self.folder, env=self.env, capture_output=True, text=True)
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """Starts the command in a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "upslope", *argv], cwd=self.folder, env=self.env, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def make_home(folder: Path, crawl: Path) -> Home:
    """A fresh home: mine.toml = the micro recipe on a small crawl with a lenient demonstration gate."""
    work = folder / "jane" / "work"
    work.mkdir(parents=True)
    os.link(crawl, work / "small.warc.gz")
    (work / "lenient.toml").write_text(LENIENT)
    (work / "mine.toml").write_text(
        f'schema = 1\nextends = "{ROOT}/tests/micro.toml"\nname = "micro"\n[set]\n'
        f'"crawl.sources" = ["{work}/small.warc.gz"]\n"gate.framework" = "lenient.toml"\n'
    )
    env = {**os.environ, **PLANTED, "HOME": str(folder / "jane"), "OMP_NUM_THREADS": "1"}
    return Home(work, env)


@pytest.fixture(scope="session")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_crawl(tmp_path_factory.mktemp("crawl"))


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory, crawl: Path) -> Home:
    """A home in which the micro recipe has run to its end."""
    home = make_home(tmp_path_factory.mktemp("done"), crawl)
    (home.folder / "log.txt").write_text(home.upslope("run", "mine.toml"))
    return home
