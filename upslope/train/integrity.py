"""Silent data corruption: digests of the state at rest, steps done twice, ranks compared; and an injector to prove that they see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import xxhash
from torch import Tensor

from upslope.machine.events import Events
from upslope.optim.shards import local

CHUNK = 1 << 24
_INTS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Corrupted(RuntimeError):
    """The state is not what the last step left, or a step done again never gives the same: reload a saved state."""


def digest(tensor: Tensor) -> int:
    """64 bits of a tensor's bytes, in order: xxh3 on CPU, `checksum` elsewhere. Compare only digests of one kind of device.

    Of a tensor that is cut over ranks, the part that this one holds.
    """
    tensor = local(tensor.detach())
    if tensor.device.type != "cpu":
        return checksum(tensor)
    return xxhash.xxh3_64_intdigest(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def checksum(tensor: Tensor) -> int:
    """sum_i (2 i + 1) x_i mod 2^64 over the elements as integers x_i: exact in any order of summation, on any device.

    One flipped bit b of element i adds ± 2^b (2 i + 1), never 0 mod 2^64: every single flip is seen.
    """
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    ints = flat.view(torch.uint8) if flat.dtype == torch.bool else flat.view(_INTS[flat.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for start in range(0, ints.numel(), CHUNK):
        part = ints[start : start + CHUNK].to(torch.int64)
        odd = torch.arange(2 * start + 1, 2 * (start + part.numel()) + 1, 2, dtype=torch.int64, device=flat.device)
        total += (part * odd).sum()
    return int(total) & (2**64 - 1)


def digests(state: Mapping[str, Tensor]) -> dict[str, int]:
    """`digest` of each tensor."""
    return {n: digest(t) for n, t in state.items()}


class Integrity:
    """Watches the state between steps: `after(k)` notes its digests, `before(k)` compares; each link is chained to the one before.

    every: distance in steps between watched pauses. chain: one number for the whole history of digests so far; two runs that agree
    on it went through the same bits at each watched step.
    """

    def __init__(self, every: int = 1, events: Events | None = None) -> None:
        self.every, self.events = every, events or Events()
        self.chain = 0
        self._noted: tuple[int, dict[str, int]] | None = None

    def after(self, step: int, state: Mapping[str, Tensor]) -> None:
        """Notes the state that `step` steps left, where the step is a watched one."""
        self._noted = None
        if step % self.every == 0:
            noted = digests(state)
            self._noted = step, noted
            link = f"{self.chain:x} {step} " + " ".join(f"{n}={d:x}" for n, d in sorted(noted.items()))
            self.chain = xxhash.xxh3_64_intdigest(link.encode())

    def before(self, step: int, state: Mapping[str, Tensor]) -> None:
        """Raises Corrupted, after an alarm, where the state after `step` steps is no longer the one that was noted."""
        if self._noted is None or self._noted[0] != step:
            return
        now, then = digests(state), self._noted[1]
        changed = sorted(n for n in now.keys() | then.keys() if now.get(n) != then.get(n))
        if changed:
            self.events.alarm("state changed between steps", step=step, tensors=changed[:8], count=len(changed))
            raise Corrupted(
                f"{len(changed)} tensors changed between steps, while nothing should touch them; after step {step}, first {changed[0]!r}\n"
                "way out: continue from the saved state; if it happens again, the memory of this machine is faulty"
            )

    def state(self) -> dict[str, Any]:
        """The chain, as JSON."""
        return {"chain": self.chain}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restores `state()`."""
        self.chain, self._noted = int(state["chain"]), None


class Replayed(NamedTuple):
    """A step done again. report: of the run that counts. runs: how often it was done. faulty: numbers of runs that were overruled."""

    report: Any
    runs: int
    faulty: tuple[int, ...]


def replay(trainer: Any, run: Callable[[], Any], events: Events | None = None) -> Replayed:
    """Does a step twice from the same state and compares all its bits; where they differ, a third time, and two that agree win.

    run: `lambda: trainer.step(batch, loss, lr)`, a function of the trainer's state alone. Compared: gradients as each backward pass
    leaves them, the state afterwards, the report. The state that stays is that of a run that was confirmed; Corrupted, after an alarm,
    where no two of three agree. Costs a copy of the state and one more step.
    Source: Megatron-LM `core/rerun_state_machine.py` (idea: run again in place; what is not reproducible is a transient fault).
    """
    events = events or Events()
    start = {n: t.clone() for n, t in trainer.state().items()}
    random = torch.random.get_rng_state()
    seen: list[str] = []
    for number in range(3):
        if number:
            trainer.load(start)
            torch.random.set_rng_state(random)
        report, gradients = _watched(trainer, run)
        mine = repr((report, sorted(gradients.items()), sorted(digests(trainer.state()).items())))
        seen.append(repr(trainer.ranks.together(xxhash.xxh3_64_intdigest(mine.encode()) >> 1)))
        verdict, votes = Counter(seen).most_common(1)[0]
        if votes == 2:
            faulty = tuple(i for i, s in enumerate(seen) if s != verdict)
            if faulty:
                events.alarm("a step done again gave other bits; the run that was confirmed counts", runs=len(seen), faulty=faulty)
            return Replayed(report, len(seen), faulty)
    events.alarm("a step done three times gave three results", runs=3)
    raise Corrupted("a step done three times gave three results\nway out: continue from the saved state on another machine")


def differing(by_rank: Sequence[Mapping[str, int]]) -> dict[str, tuple[int, ...]]:
    """Tensors whose digests differ between ranks that hold copies, with the ranks in the minority (all ranks where none has a majority).

    by_rank: `digests` of each rank, gathered by any collective that moves objects.
    """
    found = {}
    for name in sorted({n for d in by_rank for n in d}):
        values = [d.get(name) for d in by_rank]
        common, votes = Counter(values).most_common(1)[0]
        if votes < len(values):
            majority = 2 * votes > len(values)
            found[name] = tuple(r for r, v in enumerate(values) if v != common or not majority)
    return found


@torch.no_grad()
def flip(tensor: Tensor, index: int, bit: int) -> None:
    """Injects a fault: flips bit `bit` of element `index` (flat), in place and unseen by autograd. The tensor must be contiguous."""
    ints = tensor.data.view(-1).view(_INTS[tensor.element_size()])  # .data: its writes are not counted as changes
    mask = torch.tensor([1 << bit], dtype=torch.uint64).view(torch.int64)
    ints[index : index + 1] ^= mask.to(ints.dtype).to(ints.device)


def _watched(trainer: Any, run: Callable[[], Any]) -> tuple[Any, dict[str, int]]:
    """A step's report, and one number for each parameter of its gradients after each backward pass."""
    seen: dict[str, int] = {}

    def watch(name: str) -> Callable[[Tensor], None]:
        def note(p: Tensor) -> None:
            if p.grad is not None:
                seen[name] = xxhash.xxh3_64_intdigest(f"{seen.get(name, 0):x} {digest(p.grad):x}".encode())

        return note

    named = {n: p for n, p in trainer.named_parameters().items() if p.requires_grad}
    hooks = [p.register_post_accumulate_grad_hook(watch(n)) for n, p in named.items()]
    try:
        return run(), seen
    finally:
        for hook in hooks:
            hook.remove()
