"""The store: artifacts by fingerprint in a plain folder, safe for many processes, never losing a partial one.

store/<kind>/<fp12>/  data/            the artifact's files
                      work/            resumable state of an unfinished stage (gone once sealed)
                      events/*.jsonl   one file per process that worked on it
                      lease            who works on it now
                      manifest.json    written last, by rename: its presence means whole
store/memo/<step>/<shard>/             finished units of map work
store/runs/<name>/run.json, events/    what was asked for, and which artifacts answered it
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from upslope.config import UsageError
from upslope.machine import events as ev
from upslope.machine.files import digest_file, read_json, walk, write_json
from upslope.machine.identity import SHORT, Fp
from upslope.machine.lease import Lease, holder
from upslope.machine.privacy import redact
from upslope.machine.record import RunRecord, StageRecord
from upslope.machine.stage import Artifact, artifact_class

MANIFEST_SCHEMA = 1


@dataclass(frozen=True)
class Manifest:
    """The allow-listed facts about a sealed artifact; nothing about host, user or absolute places is among them."""

    fp: Fp
    kind: str
    version: int
    artifact: str
    config: dict[str, Any]
    inputs: dict[str, list[Fp]]
    seed: int | None
    headline: str
    facts: dict[str, Any]
    files: dict[str, dict[str, Any]]
    refs: list[Fp]
    bits: dict[str, Any]
    code: dict[str, str]
    seconds: float
    attempts: int
    flops: float
    bytes: int
    licences: list[str]
    finished: str
    schema: int = field(default=MANIFEST_SCHEMA)


class Store:
    """A folder of artifacts. Creating the object touches nothing; the folder appears with the first write."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    # ── artifacts ─────────────────────────────────────────────────────────────────────────────────────────────────

    def folder(self, kind: str, fp: Fp) -> Path:
        """Where an artifact of this kind and fingerprint lives, whether it exists or not."""
        safe = "".join(c if c.isalnum() or c in "_-" else "_" for c in kind.rpartition(":")[2])
        return self.root / safe / fp[:SHORT]

    def locate(self, fp: Fp) -> Path | None:
        """The folder of an artifact by fingerprint (or a prefix of ≥ 6 digits) alone."""
        found = [p for p in self.root.glob(f"*/{fp[:SHORT]}*") if p.is_dir() and p.parent.name not in ("runs", "memo", "jobs", "damaged")]
        return found[0] if len(found) == 1 else None

    def find(self, kind: str, fp: Fp) -> Manifest | None:
        """The manifest, if the artifact is whole; None if it is absent or partial."""
        return self.manifest(self.folder(kind, fp))

    def manifest(self, folder: Path) -> Manifest | None:
        """The manifest in a folder; UsageError if it cannot be read."""
        path = folder / "manifest.json"
        try:
            body = read_json(path)
            if body.get("schema", 0) > MANIFEST_SCHEMA:
                raise UsageError(f"{folder.parent.name}/{folder.name} was written by a newer upslope (manifest schema {body['schema']})")
            return Manifest(**body)
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, TypeError, UnicodeDecodeError):
            name = f"{folder.parent.name}/{folder.name}"
            raise UsageError(
                f"the manifest of {name} is damaged\nway out: `upslope gc --damaged` moves it aside; the next run rebuilds it"
            ) from None

    def state(self, kind: str, fp: Fp) -> str:
        """sealed, running (somebody alive holds the lease), partial or absent."""
        folder = self.folder(kind, fp)
        if (folder / "manifest.json").exists():
            return "sealed"
        if not folder.exists():
            return "absent"
        return "running" if holder(folder / "lease") else "partial"

    def lease(self, kind: str, fp: Fp) -> Lease:
        """Exclusive right to work on an artifact; raises Busy."""
        return Lease(self.folder(kind, fp) / "lease")

    def open(self, kind: str, fp: Fp) -> Artifact:
        """The artifact, its files (and those it points at) verified against their digests; UsageError if damaged."""
        folder = self.folder(kind, fp)
        manifest = self.find(kind, fp)
        if manifest is None:
            raise UsageError(f"artifact {kind}/{fp[:SHORT]} is not in the store (state: {self.state(kind, fp)})")
        self.verify(folder, manifest)
        artifact = artifact_class(manifest.artifact).load(folder / "data")
        for ref in artifact.refs():
            target = self.manifest(ref.parent)
            if target is None:
                raise UsageError(f"artifact {kind}/{fp[:SHORT]} points at {ref.parent.parent.name}/{ref.parent.name}, which is gone")
            self.verify(ref.parent, target)
        return artifact

    def verify(self, folder: Path, manifest: Manifest) -> None:
        """UsageError naming the first file whose bytes are not those that were sealed."""
        for name, entry in manifest.files.items():
            path = folder / "data" / name
            where = f"{folder.parent.name}/{folder.name}/data/{name}"
            if not path.is_file():
                problem = "is missing"
            elif path.stat().st_size != entry["bytes"]:
                problem = f"has {path.stat().st_size} bytes, not {entry['bytes']}"
            elif digest_file(path) != entry["digest"]:
                problem = "has other bytes than were sealed"
            else:
                continue
            raise UsageError(
                f"damaged artifact: {where} {problem}\nway out: `upslope gc --damaged` moves it aside; the next run rebuilds it"
            )

    def seal(self, lease: Lease, folder: Path, artifact: Artifact, facts: Mapping[str, Any]) -> Manifest:
        """Digests every file, then writes the manifest by rename; the work folder goes. Raises Lost if the lease is not ours."""
        data = folder / "data"
        for leftover in list(data.rglob(".tmp-*")):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        files: dict[str, dict[str, Any]] = {}
        for path in walk(data):
            with open(path, "rb") as f:
                os.fsync(f.fileno())
            files[path.relative_to(data).as_posix()] = {"digest": digest_file(path), "bytes": path.stat().st_size}
        total = sum(int(f["bytes"]) for f in files.values())
        refs = [m.fp for ref in artifact.refs() if (m := self.manifest(ref.parent)) is not None]
        manifest = Manifest(
            artifact=type(artifact).named(),
            files=files,
            refs=sorted(set(refs)),
            bytes=total,
            finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **facts,
        )
        lease.check()
        write_json(folder / "manifest.json", redact(asdict(manifest)))
        shutil.rmtree(folder / "work", ignore_errors=True)
        return manifest

    def set_aside(self, folder: Path) -> Path:
        """Moves a damaged artifact out of the way without deleting it. Its map work goes: the two may share files."""
        for row in ev.read(folder / "events"):
            if row["kind"] == "map":
                shutil.rmtree(self.root / "memo" / Path(str(row["memo"])).name, ignore_errors=True)
        target = self.root / "damaged" / f"{folder.parent.name}-{folder.name}-{time.time_ns():x}"
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(folder, target)
        return target

    def artifacts(self) -> Iterator[tuple[Path, Manifest | None]]:
        """All artifact folders with their manifests (None where partial or damaged)."""
        for folder in sorted(self.root.glob("*/*")):
            if folder.is_dir() and folder.parent.name not in ("runs", "memo", "jobs", "damaged"):
                try:
                    yield folder, self.manifest(folder)
                except UsageError:
                    yield folder, None

    # ── runs ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def runs(self) -> list[str]:
        """Names of all runs, oldest first."""
        folders = [p for p in (self.root / "runs").glob("*") if (p / "run.json").is_file()]
        return [p.name for p in sorted(folders, key=lambda p: (read_json(p / "run.json")["created"], p.name))]

    def run_name(self, recipe: str, fps: Mapping[str, Fp]) -> str:
        """The name of the run with exactly these artifacts, or the next free one: tiny-1, tiny-2 …"""
        mine = [n for n in self.runs() if n.rpartition("-")[0] == recipe]
        for name in mine:
            recorded: dict[str, Fp] = {s["name"]: s["fp"] for s in self.run_json(name)["stages"]}
            if recorded == dict(fps):
                return name
        numbers = [int(n.rpartition("-")[2]) for n in mine if n.rpartition("-")[2].isdigit()]
        return f"{recipe}-{max(numbers, default=0) + 1}"

    def run_json(self, name: str) -> dict[str, Any]:
        """What `run.json` holds; UsageError with the known names if there is none."""
        path = self.root / "runs" / name / "run.json"
        if not path.is_file():
            known = self.runs()
            raise UsageError(
                f"no run named {name!r} in {self.root.name}/\n"
                + (f"runs: {', '.join(known[-8:])}" if known else "there are no runs yet: `upslope run`")
            )
        body: dict[str, Any] = read_json(path)
        return body

    def write_run(self, name: str, body: Mapping[str, Any]) -> None:
        """Records what a run asked for."""
        write_json(self.root / "runs" / name / "run.json", redact(dict(body)))

    def record(self, name: str) -> RunRecord:
        """All that readers need to know of a run."""
        body = self.run_json(name)
        stages = []
        for entry in body["stages"]:
            folder = self.folder(entry["kind"], entry["fp"])
            try:
                manifest = self.manifest(folder)
            except UsageError:
                manifest = None
            rows = ev.read(folder / "events")
            state = self.state(entry["kind"], entry["fp"])
            if state == "partial" and rows and rows[-1]["kind"] == "end" and rows[-1].get("code") not in (0, 75, None):
                state = "failed"
            stages.append(
                StageRecord(entry["name"], entry["kind"], entry["fp"], state, asdict(manifest) if manifest else None, rows, folder / "data")
            )
        edges = {e["name"]: tuple(e["reads"]) for e in body["stages"]}
        return RunRecord(
            name,
            body["recipe"],
            tuple(stages),
            edges,
            ev.read(self.root / "runs" / name / "events"),
            body.get("command", ""),
            body.get("created", ""),
            body.get("overrides", {}),
        )
