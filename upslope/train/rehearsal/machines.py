"""Machines as data: what a rank computes, holds, moves and costs. Figures are of data sheets; the rest is the user's."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from upslope.config import Config, UsageError, validated

Compute = Literal["fp32", "bf16", "fp8"]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]


class Machine(Config):
    """One rank's accelerator and its links.

    name: how it is shown. bf16, fp8, fp32: dense peak of matrix products, FLOP/s (None: the machine has no such unit). memory: bytes of
    a rank. bandwidth: of that memory, bytes/s. node: ranks that share the fast link. link: bytes/s that a rank sends to its node, one
    direction. network: bytes/s that a rank sends beyond it (None: no second node). price: of a rank-hour, in the user's currency
    (None: unknown; no vendor prints one). source: where the figures stand.

    Assumed, not on any data sheet: kernels: share of the peak that matrix products reach; attention: share that softmax attention
    reaches; wires: share of link, network and bandwidth that transfers reach; usable: share of memory left by the driver and by
    fragmentation.
    """

    name: str
    bf16: Rate
    fp8: Rate | None = None
    fp32: Rate
    memory: Rate
    bandwidth: Rate
    node: Annotated[int, Field(ge=1)] = 8
    link: Rate
    network: Rate | None = None
    price: Annotated[float, Field(ge=0)] | None = None
    kernels: Share = 0.55
    attention: Share = 0.3
    wires: Share = 0.75
    usable: Share = 0.92
    source: str = "the user"

    def peak(self, precision: Compute) -> float:
        """Dense peak of matrix products, FLOP/s. UsageError where the machine has no unit of that precision."""
        value = {"fp32": self.fp32, "bf16": self.bf16, "fp8": self.fp8}[precision]
        if value is None:
            raise UsageError(
                f"machine {self.name}: no peak for precision = {precision!r}\nway out: precision = 'bf16', or give {precision}"
            )
        return value


_NVIDIA = "NVIDIA {} data sheet (dense = half of the figure with sparsity); network: {} data sheet, one {} Gb/s port a GPU"
_T, _G = 1e12, 1e9

MACHINES: Mapping[str, Machine] = {
    "h100": Machine(
        name="H100 SXM",
        bf16=989.4 * _T,
        fp8=1978.9 * _T,
        fp32=66.9 * _T,
        memory=80 * _G,
        bandwidth=3.35 * _T,
        link=450 * _G,
        network=50 * _G,
        source=_NVIDIA.format("H100", "DGX H100", 400),
    ),
    "h200": Machine(
        name="H200 SXM",
        bf16=989.4 * _T,
        fp8=1978.9 * _T,
        fp32=66.9 * _T,
        memory=141 * _G,
        bandwidth=4.8 * _T,
        link=450 * _G,
        network=50 * _G,
        source=_NVIDIA.format("H200", "DGX H200", 400),
    ),
    "a100": Machine(
        name="A100 SXM 80 GB",
        bf16=312 * _T,
        fp32=19.5 * _T,
        memory=80 * _G,
        bandwidth=2.039 * _T,
        link=300 * _G,
        network=25 * _G,
        source=_NVIDIA.format("A100", "DGX A100", 200),
    ),
    "b200": Machine(
        name="B200 SXM",
        bf16=2250 * _T,
        fp8=4500 * _T,
        fp32=75 * _T,
        memory=180 * _G,
        bandwidth=8 * _T,
        link=900 * _G,
        network=50 * _G,
        source=_NVIDIA.format("B200", "DGX B200", 400),
    ),
    "mi300x": Machine(
        name="MI300X",
        bf16=1307.4 * _T,
        fp8=2614.9 * _T,
        fp32=163.4 * _T,
        memory=192 * _G,
        bandwidth=5.3 * _T,
        link=448 * _G,
        source="AMD MI300X data sheet (7 Infinity Fabric links of 64 GB/s a direction); the network is not on it: give `network`",
    ),
}
"""Machines by name."""


UNITS: Mapping[str, str] = {
    "name": "how it is shown",
    "bf16": "FLOP/s, dense peak of bf16 matrix products",
    "fp8": "FLOP/s, dense peak of fp8 matrix products; leave out where there is no such unit",
    "fp32": "FLOP/s, dense peak of fp32 matrix products",
    "memory": "bytes of a rank",
    "bandwidth": "bytes/s of that memory",
    "node": "ranks that share the fast link",
    "link": "bytes/s that a rank sends within its node, one direction",
    "network": "bytes/s that a rank sends beyond its node; leave out where there is one node",
    "price": "of a rank-hour, in your currency; leave out where it is not known",
    "kernels": "share of the peak that matrix products reach; measure it",
    "attention": "share of the peak that softmax attention reaches; measure it",
    "wires": "share of bandwidth, link and network that transfers reach; measure it",
    "usable": "share of memory that the driver and fragmentation leave",
    "source": "where the figures stand",
}
"""What each field of `Machine` means, with its unit."""


def template(like: Machine = MACHINES["h100"]) -> str:
    """A machine file with every field, its unit beside it; fields without a value are commented out."""
    lines = []
    for name, unit in UNITS.items():
        value = getattr(like, name)
        shown = json.dumps(value) if isinstance(value, str) else "..." if value is None else f"{value:g}" if value < 1e6 else f"{value:.5g}"
        lines.append(f"{'# ' if value is None else ''}{name} = {shown}".ljust(36) + f"  # {unit}")
    return "\n".join(lines) + "\n"


def machine(name: str) -> Machine:
    """A machine of the table ("h100"; "h100x4" = 4 ranks a node), or of a TOML or JSON file by its ending. UsageError for any other."""
    if Path(name).suffix.lower() in (".toml", ".json"):
        return from_file(Path(name))
    key = name.lower()
    if key in MACHINES:
        return MACHINES[key]
    sized = re.fullmatch(r"(.+)x([1-9]\d*)", key)
    if sized and sized[1] in MACHINES:
        return MACHINES[sized[1]].replace(node=int(sized[2]))
    raise UsageError(
        f"machine = {name!r}: unknown\nway out: one of {', '.join(MACHINES)}, with its ranks a node as in h100x8; or a TOML or JSON file "
        "(upslope plan --machine-template prints one)"
    )


def from_file(path: Path | str) -> Machine:
    """A machine of a file: all fields of `Machine`, or `like = "h100"` and the fields that differ. UsageError names the field."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        given = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise UsageError(
            f"machine file {path.name!r}: there is no such file\n"
            f"way out: upslope plan --machine-template > {path.with_suffix('.toml').name}"
        ) from None
    except (OSError, ValueError) as error:  # both formats' errors are ValueErrors
        raise UsageError(f"machine file {path.name!r}: {error}\nway out: upslope plan --machine-template shows a whole one") from None
    if not isinstance(given, dict):
        raise UsageError(f'machine file {path.name!r}: a {type(given).__name__}, not a table of fields\nway out: {{"like": "h100"}}')
    like = str(given.pop("like", ""))
    if Path(like).suffix:
        raise UsageError(f"machine file {path.name!r}: like = {like!r} is a file\nway out: like = one of {', '.join(MACHINES)}")
    base = machine(like).model_dump() if like else {}
    try:
        return validated(Machine, base | {"source": f"file {path.name}"} | given, f"machine file {path.name!r}")
    except UsageError as error:
        raise UsageError(
            f"{error}\nway out: upslope plan --machine-template shows every field; like = 'h100' fills those left out"
        ) from None
