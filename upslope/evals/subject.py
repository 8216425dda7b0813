"""The object that evidence is about: weights, numerics, tokenizer, template, system prompt, sampling, engine.

Another quantisation, chat template or system prompt is another object. Evidence and decisions name the object they
speak of, field by field, so that neither can be used for another one.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from upslope.config import Config, UsageError, canonical_json, dump
from upslope.machine.files import digest_file
from upslope.precision.config import Numerics

if TYPE_CHECKING:
    from upslope.generate.engine import Sampling

LOCAL = "upslope local engine"


class Deployment(Config):
    """How the weights are meant to be used: what a release covers and what its evidence must have been measured with.

    system: system prompt put before every conversation ("" = none). max_new: most tokens of an answer.
    temperature: 0 = greedy. numerics: arithmetic of the forward pass.
    """

    system: str = ""
    max_new: Annotated[int, Field(ge=1)] = 64
    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    numerics: Numerics = "fp32"

    def sampling(self) -> Sampling:
        """The engine's form of it."""
        from upslope.generate.engine import Sampling

        return Sampling(max_new=self.max_new, temperature=self.temperature, top_p=self.top_p, top_k=self.top_k)


@dataclass(frozen=True)
class Subject:
    """One object, or as much of it as a measurement depends on: None = "the same whatever this is".

    weights, tokenizer, template, system: content digests. numerics, sampling, engine: their description.
    """

    weights: str | None = None
    numerics: str | None = None
    tokenizer: str | None = None
    template: str | None = None
    system: str | None = None
    sampling: str | None = None
    engine: str | None = None

    def digest(self) -> str:
        """blake2b-128 of all fields, in hex."""
        return hashlib.blake2b(canonical_json(asdict(self)), digest_size=16).hexdigest()

    def only(self, *fields: str) -> Subject:
        """The same with all other fields left open."""
        return Subject(**{f: getattr(self, f) for f in fields})

    def conflicts(self, whole: Subject) -> list[str]:
        """Fields of this (partial) subject that differ from the whole object; empty = speaks about it."""
        return [name for name, value in asdict(self).items() if value is not None and value != getattr(whole, name)]

    def missing(self) -> list[str]:
        """Fields that are left open."""
        return [name for name, value in asdict(self).items() if value is None]

    def json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def of(cls, weights: Path, deployment: Deployment, engine: str = LOCAL) -> Subject:
        """The object made of a Hugging Face folder and a deployment.

        weights: digest over every `*.safetensors` and `config.json` (an architecture setting is part of the weights'
        meaning). tokenizer: `tokenizer.json`. template: the chat template's text. UsageError where a file is missing.
        """
        tensors = sorted(weights.glob("*.safetensors"))
        if not tensors:
            raise UsageError(f"no *.safetensors in {weights.name!r}: not a folder of weights")
        for name in ("config.json", "tokenizer.json"):
            if not (weights / name).is_file():
                raise UsageError(f"{weights.name!r} has no {name}: what would be evaluated is not fully described")
        sampling = dump(deployment.sampling())
        return cls(
            weights=_digest_all([*tensors, weights / "config.json"]),
            numerics=deployment.numerics,
            tokenizer=digest_file(weights / "tokenizer.json"),
            template=_text_digest(chat_template(weights)),
            system=_text_digest(deployment.system),
            sampling=canonical_json(sampling).decode(),
            engine=engine,
        )


def chat_template(weights: Path) -> str:
    """The chat template of a Hugging Face folder: `chat_template.jinja`, else the key in `tokenizer_config.json`; "" if none."""
    if (weights / "chat_template.jinja").is_file():
        return (weights / "chat_template.jinja").read_text(encoding="utf-8")
    config = weights / "tokenizer_config.json"
    return str(json.loads(config.read_text(encoding="utf-8")).get("chat_template") or "") if config.is_file() else ""


def _text_digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _digest_all(files: list[Path]) -> str:
    return _text_digest("".join(f"{file.name}\0{digest_file(file)}\n" for file in files))
