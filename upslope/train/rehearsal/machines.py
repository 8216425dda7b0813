"""Machines as data: what a rank computes, holds, moves and costs. Figures are of data sheets; the rest is the user's."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from upslope.config import Config, UsageError

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


def machine(name: str) -> Machine:
    """A machine of the table, or of a TOML file where the name ends in .toml. UsageError for any other."""
    if name.endswith(".toml"):
        return from_toml(Path(name))
    if name.lower() not in MACHINES:
        raise UsageError(f"machine = {name!r}: unknown\nway out: one of {', '.join(MACHINES)}, or a TOML file with the fields of `Machine`")
    return MACHINES[name.lower()]


def from_toml(path: Path | str) -> Machine:
    """A machine of a TOML file: all fields of `Machine`, or `like = "h100"` and the fields that differ. UsageError names the field."""
    try:
        given = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"machine file {str(path)!r}: {error}\nway out: a TOML file with the fields of `Machine`") from error
    base = machine(str(given.pop("like"))).model_dump() if "like" in given else {}
    try:
        return Machine.model_validate(base | {"source": f"file {Path(path).name}"} | given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"machine file {str(path)!r}: {where}: {first['msg']}\nway out: fields {', '.join(Machine.model_fields)}"
        ) from error
