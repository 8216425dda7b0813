"""Chat in the terminal: says first what the model can and cannot do, and offers prompts that work."""

from __future__ import annotations

import sys
from typing import Any

from upslope.cli.models import Found, find_model
from upslope.machine.store import Store

HISTORY = 6  # messages kept; small models have small contexts


class Talker:
    """A loaded model with a renderer: messages in, answer and reasoning out."""

    def __init__(self, found: Found, think: bool, temperature: float) -> None:
        from upslope.chat.render import ChatML
        from upslope.generate.engine import LocalEngine
        from upslope.model.weights import import_hf
        from upslope.tokens.tokenizer import Tokenizer

        self.tokenizer = Tokenizer.load(found.folder)
        self.renderer = ChatML(self.tokenizer)
        self.engine = LocalEngine(import_hf(found.folder), self.tokenizer, numerics="fp32")
        self.think, self.temperature, self.turn = think, temperature, 0

    def reply(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        """The assistant's next message: answer, reasoning, tokens, whether it was cut."""
        from upslope.generate.engine import Request, Sampling, Stop, generate

        prompt = self.renderer.open(messages, think=self.think).ids
        room = max(1, min(256, self.engine.info.context - len(prompt) - 1))
        self.turn += 1
        request = Request(f"chat-{self.turn}", prompt.tolist(), Sampling(max_new=room, temperature=self.temperature), seed=self.turn)
        done = generate(self.engine, [request])[0]
        ids = done.ids.tolist()
        opened = [self.tokenizer.think, *self.tokenizer.encode("\n")] if self.think else []
        message = self.renderer.parse([*opened, *ids])
        return {
            "answer": message.content,
            "reasoning": message.reasoning,
            "tokens": len(ids),
            "cut": done.stop in (Stop.LENGTH, Stop.CONTEXT),
        }


def answer_once(model: str | None, prompt: str, system: str, think: bool, temperature: float, store: Store) -> dict[str, Any]:
    """One prompt, one reply."""
    found = find_model(model, store)
    messages = ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": prompt}]
    return {"model": found.label, "prompt": prompt, **Talker(found, think, temperature).reply(messages)}


def talk(model: str | None, system: str, think: bool, temperature: float, store: Store) -> None:
    """A conversation, until end of input or /quit."""
    found = find_model(model, store)
    print(banner(found))
    talker = Talker(found, think, temperature)
    opening = [{"role": "system", "content": system}] if system else []
    history: list[dict[str, str]] = []
    while True:
        try:
            text = input("\nyou: " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if text in ("/quit", "/exit"):
            return
        if text == "/new":
            history = []
            continue
        if not text:
            continue
        history.append({"role": "user", "content": text})
        reply = talker.reply(opening + history[-HISTORY:])
        if reply["reasoning"]:
            print("  thinks: " + " ".join(reply["reasoning"].split()))
        print(
            (f"{found.label}: " if sys.stdin.isatty() else "")
            + (reply["answer"] or "(nothing)")
            + ("  … (cut: out of room)" if reply["cut"] else "")
        )
        # each problem is asked on its own: a model this small does not follow a conversation
        history = [] if small(found) else [*history, {"role": "assistant", "content": reply["answer"]}]


def small(found: Found) -> bool:
    """Whether the model has fewer than ten million parameters, by the size of its weights."""
    return sum(p.stat().st_size for p in found.folder.glob("*.safetensors")) < 40_000_000


def banner(found: Found) -> str:
    """What this model can and cannot do, from its run's measurements, and prompts to try."""
    lines = [f"{found.label}" + ("" if found.gated else " (ungated: no release gate decided on it)")]
    lines.append(f"{sum(p.stat().st_size for p in found.folder.glob('*.safetensors')) / 4 / 1e6:.2f}M parameters (fp32)")
    families = accuracies(found)
    if families:
        best = [f for f, a in sorted(families.items(), key=lambda x: -x[1]) if a >= 0.5]
        worst = [f for f, a in families.items() if a < 0.5]
        lines.append("can: " + ", ".join(f"{f.replace('_', ' ')} ({families[f]:.0%})" for f in best))
        if worst:
            lines.append("mostly cannot: " + ", ".join(f"{f.replace('_', ' ')} ({families[f]:.0%})" for f in worst))
    if small(found):
        lines.append("it solves small generated problems; it does not know the world and cannot hold a conversation")
        lines.append("try: " + "  ·  ".join(prompts(found, families)))
    lines.append("/new starts over, /quit ends")
    return "\n".join(lines)


def accuracies(found: Found) -> dict[str, float]:
    """Held-out accuracy by family, from the newest evaluation in the model's run; empty where there is none."""
    if found.run is None:
        return {}
    for stage in reversed(found.run.stages):
        facts = (stage.manifest or {}).get("facts", {})
        by_family = facts.get("families")
        if stage.kind == "evaluate" and isinstance(by_family, dict) and by_family:
            return {k: float(v) for k, v in by_family.items()}
    return {}


def prompts(found: Found, families: dict[str, float], count: int = 3) -> list[str]:
    """Prompts of the families that it does best."""
    from upslope.machine.rng import rng
    from upslope.tasks.families import FAMILIES, draw

    ranked = [f for f, _ in sorted(families.items(), key=lambda x: -x[1])] or ["sort", "add", "reverse"]
    known = [f for f in ranked if f in FAMILIES][:count]
    return [FAMILIES[f].ask(draw(f, 2, "heldout", rng(0, "example", f))[0])[0] for f in known]
