"""The language in which a published family is written down: config.json and tensor names, each declared once and read both ways.

A family's blocks are a product of axes (which mixer, which FFN), each choice a skeleton of fixed values; keys bind entries of
config.json to paths in the config; rules bind tensors. Writing is proved by reading back: a config that a family cannot express is
refused, never bent.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from upslope.config import UsageError, dump, validated
from upslope.model.config import Layer, ModelConfig

Data = Mapping[str, Any]
Tree = dict[str, Any]


class Key(NamedTuple):
    """One entry of config.json ↔ the paths that hold its value. default: where the entry is null, or every path absent.

    A path is "d_model" or "BLOCKS.mixer.heads", BLOCKS being "*" or our names of axis choices joined by "|". of, to: value ↔ ours.
    also: other names by which the entry is read. absent: where config.json has no such entry, if that is not `default`.
    only: the values that the released code computes (empty: any).
    """

    paths: tuple[str, ...]
    default: Any = None
    of: Callable[[Any], Any] = lambda v: v
    to: Callable[[Any], Any] = lambda v: v
    also: tuple[str, ...] = ()
    absent: Any = None
    only: tuple[Any, ...] = ()


class Axis(NamedTuple):
    """One respect in which a family's blocks differ. choices: theirs → (our name, fixed values of a `Layer`), stricter first.

    read: config.json, layers → theirs per layer. write: theirs per layer → entries of config.json.
    """

    choices: Mapping[str, tuple[str, Tree]]
    read: Callable[[Data, int], Sequence[str]]
    write: Callable[[Sequence[str]], Tree]


def same(skeleton: Tree) -> Axis:
    """Every layer alike."""
    return Axis({"": ("", skeleton)}, lambda d, n: [""] * n, lambda names: {})


def listed(key: str, choices: Mapping[str, tuple[str, Tree]], default: Callable[[Data, int], Sequence[str]] | None = None) -> Axis:
    """A list in config.json with an entry per layer."""

    def read(d: Data, n: int) -> Sequence[str]:
        if d.get(key) is None:
            if default is None:
                raise UsageError(f"config.json: {key!r} is missing")
            return default(d, n)
        return list(d[key])

    return Axis(choices, read, lambda names: {key: list(names)})


def first(key: str, head: Tree, tail: Tree) -> Axis:
    """The first `key` layers are of one kind, the rest of another."""

    def write(names: Sequence[str]) -> Tree:
        count = sum(1 for _ in itertools.takewhile(lambda n: n == "dense", names))
        return {key: count}  # another order does not survive the reading back

    return Axis(
        {"dense": ("dense", head), "moe": ("moe", tail)}, lambda d, n: ["dense"] * d.get(key, 0) + ["moe"] * (n - d.get(key, 0)), write
    )


class Piece(NamedTuple):
    """What keys cannot say. read: config.json, the tree being built → changes the tree. write: the tree → entries of config.json."""

    read: Callable[[Data, Tree], None]
    write: Callable[[Tree], Tree]


class Rule(NamedTuple):
    """Tensors in both worlds. `{layer}` is a block number; `{expert}` in theirs stands for the slices of our stack.

    join: our tensors and the block's config → theirs; split: theirs → ours; both None = one tensor, as it is.
    only: the kind of mixer of the blocks that it holds for.
    """

    ours: tuple[str, ...]
    theirs: str
    join: Callable[[list[Tensor], Layer | None], Tensor] | None = None
    split: Callable[[Tensor, Layer | None], list[Tensor]] | None = None
    only: str | None = None


class Binding(NamedTuple):
    """A rule applied: ours ↔ theirs, with the two maps between lists of tensors."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    to: Callable[[list[Tensor]], list[Tensor]]
    of: Callable[[list[Tensor]], list[Tensor]]


class Family(NamedTuple):
    """kind: model_type. architecture: the class that loads it. top: fixed values of the ModelConfig. fixed: entries of config.json
    that we compute only for these values (the first is written). harmless: entries that change nothing here. derived: patterns of their
    tensors that follow from the config. layers_key: the number of
    layers, or a list with an entry per layer. last: pieces read after the keys. beyond: config.json of
    the model with one more layer, of the kind that MTP modules have (None: of the last layer's).
    """

    kind: str
    architecture: str
    axes: tuple[Axis, ...]
    keys: Mapping[str, Key]
    rules: tuple[Rule, ...]
    pieces: tuple[Piece, ...] = ()
    top: Tree = {}
    fixed: Mapping[str, tuple[Any, ...]] = {}
    harmless: frozenset[str] = frozenset()
    derived: tuple[str, ...] = ()
    layers_key: str = "num_hidden_layers"
    last: tuple[Piece, ...] = ()
    beyond: Callable[[Data], Data] | None = None

    def read(self, data: Data) -> ModelConfig:
        """config.json → config. UsageError for what is missing, unknown, not computed here, or of the wrong kind."""
        try:
            return self._read(data)
        except UsageError:
            raise
        except KeyError as e:
            raise UsageError(f"config.json: {e.args[0]!r} is missing") from e
        except (AttributeError, TypeError, ValueError, ZeroDivisionError) as e:
            raise UsageError(f"config.json: an entry is of the wrong kind ({e})") from e

    def _read(self, data: Data) -> ModelConfig:
        tree, names = self._tree(data)
        _refuse_unknown(self, data)
        for piece in self.pieces:
            piece.read(data, tree)
        for key, bound in self.keys.items():
            given = [data[k] for k in (key, *bound.also) if k in data]
            value = next((v for v in given if v is not None), None if given else bound.absent)
            if value is None:
                if bound.default is None and any(_holders(tree, path) for path in bound.paths):
                    raise UsageError(f"config.json: {key!r} is missing")
                value = bound.default
            if bound.only and value not in bound.only:
                raise UsageError(f"config.json: {key} = {value!r} is not supported\nsupported: {', '.join(map(repr, bound.only))}")
            for path in bound.paths if value is not None else ():
                _put(tree, path, bound.of(value))
        for piece in self.last:
            piece.read(data, tree)
        return validated(ModelConfig, {**tree, "pattern": names}, "config.json")

    def _tree(self, data: Data) -> tuple[Tree, list[str]]:
        per_axis = [axis.read(data, self._layers(data)) for axis in self.axes]
        for axis, names in zip(self.axes, per_axis):
            if wrong := [n for n in names if n not in axis.choices]:
                raise UsageError(f"config.json: a layer of kind {wrong[0]!r} is not supported\nsupported: {', '.join(axis.choices)}")
        layers = [self._name(choice) for choice in zip(*per_axis)]
        return {"final_norm": {}, **_copy(self.top), "blocks": {n: _copy(b) for n, b in self.skeletons().items() if n in layers}}, layers

    def _layers(self, data: Data) -> int:
        count = data.get(self.layers_key)
        if isinstance(count, list):
            return len(count)
        if not isinstance(count, int):
            raise UsageError(f"config.json: {self.layers_key!r} is missing")
        return count

    def skeletons(self) -> dict[str, Tree]:
        """Every block of the family by name: the product of its axes."""
        return {self._name(c): _merge([axis.choices[n][1] for axis, n in zip(self.axes, c)]) for c in self._combinations()}

    def _combinations(self) -> list[tuple[str, ...]]:
        return list(itertools.product(*(axis.choices for axis in self.axes)))

    def _name(self, choice: Sequence[str]) -> str:
        """Our name of a block, from theirs on each axis."""
        return "_".join(own for axis, n in zip(self.axes, choice) if (own := axis.choices[n][0])) or "block"

    def write(self, config: ModelConfig) -> Tree | str:
        """config → config.json, or why the family cannot express it."""
        skeletons = self.skeletons()
        dumped = dump(config)
        found: dict[str, tuple[str, ...]] = {}
        names = {self._name(c): c for c in self._combinations()}
        for ours, block in dumped["blocks"].items():
            reasons = {name: _misfit(skeleton, _comparable_block(block)) for name, skeleton in skeletons.items()}
            fit = next((name for name, why in reasons.items() if why is None), None)
            if fit is None:
                return f"block {ours!r}: {min((w for w in reasons.values() if w), key=lambda w: -w.count('.'))}"
            found[ours] = names[fit]
        layers = [found[name] for name, repeat in config.pattern for _ in range(repeat)]
        tree = {**dumped, "blocks": {self._name(found[n]): b for n, b in dumped["blocks"].items()}}
        out: Tree = {"architectures": [self.architecture], "model_type": self.kind, self.layers_key: len(layers)}
        out |= {key: values[0] for key, values in self.fixed.items() if values[0] is not None}
        for i, axis in enumerate(self.axes):
            out |= axis.write([layer[i] for layer in layers])
        for key, bound in self.keys.items():
            values = [bound.to(v) for path in bound.paths for v in _get(tree, path)]
            if any(v != values[0] for v in values):
                return f"{' and '.join(bound.paths)} differ ({values[0]!r}, {next(v for v in values if v != values[0])!r})"
            if values or bound.default is not None:
                out[key] = values[0] if values else bound.default
        for piece in self.pieces:
            try:
                out |= piece.write(tree)
            except UsageError as e:
                return str(e)
        try:
            back = self.read(out)
            if config.mtp is not None:
                wanted, (_, found_block) = config.blocks[config.mtp.block], self.predicts(out, back)
                if (why := _difference(_comparable_block(dump(wanted)), _comparable_block(dump(found_block)))) is not None:
                    return f"mtp.block = {config.mtp.block!r}: {why}"
        except UsageError as e:
            return str(e).replace("config.json: ", "")
        return _difference(comparable(config), comparable(back)) or out

    def predicts(self, data: Data, config: ModelConfig) -> tuple[str, Layer]:
        """The kind of block that MTP modules have beside a config.json that is read as `config`: its name, and what it is."""
        longer = config if self.beyond is None else self.read(self.beyond(data))
        name = longer.pattern[-1][0]
        return name, longer.blocks[name]


def _copy(tree: Any) -> Any:
    return {k: _copy(v) for k, v in tree.items()} if isinstance(tree, Mapping) else tree


def _merge(parts: Sequence[Tree]) -> Tree:
    out: Tree = {}
    for part in parts:
        for k, v in part.items():
            out[k] = _merge([out[k], dict(v)]) if isinstance(v, Mapping) and isinstance(out.get(k), Mapping) else _copy(v)
    return out


def _holders(tree: Tree, path: str) -> list[tuple[Tree, str]]:
    """The dictionaries that hold the last word of a path, in every block that it names and that has its parents."""
    words = path.split(".")
    start = [tree]
    if len(words) > 1 and words[0] not in ("final_norm", "head", "init"):
        wanted = words.pop(0)
        blocks = tree["blocks"]
        start = [b for name, b in blocks.items() if wanted == "*" or set(wanted.split("|")) & set(name.split("_"))]
    for word in words[:-1]:
        start = [s[word] for s in start if isinstance(s.get(word), Mapping)]
    return [(s, words[-1]) for s in start]


def _put(tree: Tree, path: str, value: Any) -> None:
    for holder, word in _holders(tree, path):
        holder[word] = value


def _get(tree: Tree, path: str) -> list[Any]:
    return [holder[word] for holder, word in _holders(tree, path) if word in holder]


def _comparable_block(block: Tree) -> Tree:
    """A dumped block without what only training reads; of the balance terms, only whether there is a selection bias."""
    out: Tree = _copy(block)
    ffn, mixer = out["ffn"], out["mixer"]
    if ffn["kind"] == "moe":
        ffn["balance"] = [{"kind": "bias"}] if any(b["kind"] == "bias" for b in ffn["balance"]) else []
        ffn["router"].pop("z_loss", None)
    mixer.pop("dt_max", None)
    if isinstance(mixer.get("select"), Mapping):
        mixer["select"].pop("loss", None)
    if isinstance(mixer.get("history"), Mapping):
        mixer["history"].pop("loss", None)
    return out


def comparable(config: ModelConfig) -> Tree:
    """What of a config a family must express: all that changes the logits."""
    dumped = dump(config)
    layers = [_comparable_block(dumped["blocks"][name]) for name, repeat in config.pattern for _ in range(repeat)]
    rest = {k: v for k, v in dumped.items() if k not in ("blocks", "pattern", "init", "mtp")}
    return {"layers": dict(enumerate(layers)), **rest}


def _misfit(skeleton: Any, block: Any, path: str = "") -> str | None:
    """Why a block is not one of the skeleton's; None where it is."""
    if isinstance(skeleton, Mapping):
        if not isinstance(block, Mapping):
            return f"{path} = {block!r}"
        for k, v in skeleton.items():
            if (why := _misfit(v, block.get(k), f"{path}.{k}".lstrip("."))) is not None:
                return why
        return None
    return None if list_like(block) == list_like(skeleton) else f"{path} = {block!r}, not {skeleton!r}"


def list_like(value: Any) -> Any:
    """Tuples and lists compare alike."""
    return [list_like(v) for v in value] if isinstance(value, tuple | list) else value


def _difference(a: Any, b: Any, path: str = "") -> str | None:
    """The first path at which two trees differ, with both values."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for k in [*a, *(k for k in b if k not in a)]:
            if (found := _difference(a.get(k), b.get(k), f"{path}.{k}".lstrip("."))) is not None:
                return found
        return None
    return None if list_like(a) == list_like(b) else f"{path} = {a!r}, which it reads as {b!r}"


# fmt: off
HARMLESS = frozenset((
    "architectures", "attention_dropout", "auto_map", "bos_token_id", "cache_implementation", "chunk_size_feed_forward", "dtype",
    "eod_token_id", "eos_token_id", "id2label", "initializer_range", "is_decoder", "is_encoder_decoder", "label2id", "max_window_layers",
    "model_type", "name_or_path", "num_nextn_predict_layers", "output_attentions", "output_hidden_states", "output_router_logits",
    "pad_token_id", "partial_rotary_factor", "pretraining_tp", "problem_type", "return_dict", "rope_parameters", "rope_scaling",
    "rope_theta", "router_aux_loss_coef", "router_jitter_noise", "sep_token_id", "torch_dtype", "transformers_version", "use_cache",
))
# fmt: on
NOT_COMPUTED: Mapping[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "add_cross_attention": (None, False),
    "hidden_act": ("silu", None),
}


def _refuse_unknown(family: Family, data: Data) -> None:
    fixed = {**NOT_COMPUTED, **family.fixed}
    written = {key for axis in family.axes for key in axis.write(axis.read(data, family._layers(data)))}
    pieces = {key for piece in family.pieces for key in getattr(piece.write, "keys", ())}
    known = (
        HARMLESS
        | family.harmless
        | set(fixed)
        | {k for key, b in family.keys.items() for k in (key, *b.also)}
        | written
        | pieces
        | {family.layers_key}
    )
    for key, value in data.items():
        if key in fixed and value not in fixed[key]:
            raise UsageError(f"config.json: {key} = {value!r} is not supported\nsupported: {', '.join(map(repr, fixed[key]))}")
        if key not in known and not key.startswith("_"):
            raise UsageError(f"config.json: {key!r} = {value!r} is unknown here\nway out: remove it if it does not change the model")


# ── pieces that many families share ────────────────────────────────────────────────────────────────────────────────────


def writes(*keys: str) -> Callable[[Callable[[Tree], Tree]], Callable[[Tree], Tree]]:
    """Marks which entries a piece writes, so that reading knows them."""

    def mark(f: Callable[[Tree], Tree]) -> Callable[[Tree], Tree]:
        f.keys = keys  # type: ignore[attr-defined]
        return f

    return mark


def tie(absent: bool) -> Piece:
    """tie_word_embeddings ↔ the head. absent: what holds where config.json does not say."""

    def read(d: Data, tree: Tree) -> None:
        tree["head"] = {"kind": "tied" if d.get("tie_word_embeddings", absent) else "untied"}
        tree["init"] = {"kind": "normal", "std": float(d.get("initializer_range") or 0.02)}

    @writes("tie_word_embeddings")
    def write(tree: Tree) -> Tree:
        init = tree["init"]
        return {"tie_word_embeddings": tree["head"]["kind"] == "tied", "initializer_range": init.get("std", 0.02)}

    return Piece(read, write)


TIE = tie(absent=False)


def common(*eps: str, eps_key: str = "rms_norm_eps") -> dict[str, Key]:
    """Width, vocabulary, context, and the one eps of all norms."""
    return {
        "hidden_size": Key(("d_model",)),
        "vocab_size": Key(("vocab",)),
        "max_position_embeddings": Key(("context",)),
        eps_key: Key(("final_norm.eps", "*.norm.eps", *eps), of=float),
    }


# ── tensors ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def rules(table: str, prefix: str = "blocks.{layer}.", theirs: str = "model.layers.{layer}.", only: str | None = None) -> tuple[Rule, ...]:
    """Plain rules from lines "ours theirs", both under a block's prefix."""
    pairs = (line.split() for line in table.strip().splitlines())
    return tuple(Rule((prefix + a,), theirs + b, only=only) for a, b in pairs)


def swapped_halves(parts: list[Tensor], layer: Layer | None) -> Tensor:
    """[A B] → [B A] along the columns: the hub joins (embedding, hidden state), the paper and we (hidden state, embedding)."""
    return torch.cat(parts[0].chunk(2, 1)[::-1], 1)


MTP_RULES = (
    Rule(("mtp.layers.{layer}.hidden_norm.weight",), "model.layers.{layer}.hnorm.weight"),
    Rule(("mtp.layers.{layer}.embed_norm.weight",), "model.layers.{layer}.enorm.weight"),
    Rule(("mtp.layers.{layer}.join.weight",), "model.layers.{layer}.eh_proj.weight", swapped_halves, lambda t, c: [swapped_halves([t], c)]),
    Rule(("mtp.layers.{layer}.final_norm.weight",), "model.layers.{layer}.shared_head.norm.weight"),
)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\{layer\}", r"(?P<layer>\d+)") + r"\Z")


def bindings(family: Family | None, config: ModelConfig, ours: Mapping[str, Tensor]) -> list[Binding]:
    """How all our tensors map to the family's (None: our own names). ValueError for a tensor that no rule covers."""
    if family is None:
        return [Binding((n,), (n,), lambda t: t, lambda t: t) for n in ours]
    compiled = [([_pattern(name) for name in rule.ours], rule) for rule in (*family.rules, *MTP_RULES)]
    layers = list(config.layers()) + ([config.blocks[config.mtp.block]] * config.mtp.depth if config.mtp else [])
    found, done = [], set()
    for name in ours:
        if name in done:
            continue
        lifted = _lift(name, config.depth)
        for patterns, rule in compiled:
            match = patterns[0].match(lifted)
            if match is None:
                continue
            number = match.groupdict().get("layer")
            at = None if number is None else int(number) + (config.depth if lifted.startswith("mtp.") else 0)
            layer = None if at is None else layers[at]
            parts = tuple(_lower(n.format(layer=number), name, lifted) for n in rule.ours)
            if all(p in ours for p in parts) and (rule.only is None or (layer is not None and layer.mixer.kind == rule.only)):
                found.append(_bind(rule, parts, at, layer, ours[name]))
                done |= set(parts)
                break
        else:
            raise ValueError(f"family {family.kind!r} has no rule for our tensor {name!r}")
    return found


def _lift(name: str, depth: int) -> str:
    """A tensor of an MTP module's block, named as one of the trunk's blocks above the last."""
    return re.sub(r"^mtp\.layers\.(\d+)\.block\.", lambda m: f"blocks.{depth + int(m[1])}.", name)


def _lower(lifted: str, name: str, lifted_name: str) -> str:
    if name == lifted_name:
        return lifted
    head = name[: name.index(".block.") + len(".block.")]
    return head + lifted.split(".", 2)[2]


def _bind(rule: Rule, ours: tuple[str, ...], number: int | None, layer: Layer | None, sample: Tensor) -> Binding:
    theirs = rule.theirs.replace("{layer}", str(number))
    if "{expert}" in theirs:
        names = tuple(theirs.replace("{expert}", str(e)) for e in range(sample.shape[0]))
        return Binding(ours, names, lambda t: list(t[0].unbind()), lambda t: [torch.stack(t)])
    if rule.join is None or rule.split is None:
        return Binding(ours, (theirs,), lambda t: t, lambda t: t)
    join, split = rule.join, rule.split
    return Binding(ours, (theirs,), lambda t: [join(t, layer)], lambda t: split(t[0], layer))


# ── rope ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def ropes(
    where: Mapping[str, str],
    path: str = "mixer.position",
    layout: str = "half",
    part: str = "leading",
    fraction: float | None = None,
    *,
    bases: Mapping[str, tuple[str, float]] = {},
    stretched: str | None = None,
    softmax: bool = False,
) -> Piece:
    """rope_parameters, and the older rope_theta and rope_scaling, ↔ the positions of blocks.

    where: key of a nested rope_parameters ("" = not nested) → blocks. fraction: where config.json names none; None = the released code
    rotates whole heads whatever config.json says. bases: key → the older entry of its base, and the base where there is none.
    stretched: the key that an older rope_scaling is for (None: all). softmax: mscale_all_dim multiplies the softmax scale (DeepSeek).
    """

    def read(d: Data, tree: Tree) -> None:
        modern, older = dict(d.get("rope_parameters") or {}), dict(d.get("rope_scaling") or {})
        if modern and "" not in where and not set(where) & set(modern):
            raise UsageError(f"config.json: rope_parameters wants an entry per kind of layer ({', '.join(where)})")
        for key, blocks in where.items():
            given = dict((modern.get(key) if key in modern else modern) or {})
            if stretched in (None, key):
                given |= dict((older.get(key) if key in older else older) or {})
            name, base = bases.get(key, ("rope_theta", 10_000.0))
            given.setdefault("rope_theta", d.get(name) or base)
            if key:
                given["truncate"] = modern.get("truncate", True)  # the released code looks for it one level up
            if fraction is None:
                given["partial_rotary_factor"] = 1.0
            given.setdefault("partial_rotary_factor", d.get("partial_rotary_factor") or fraction)
            _put(tree, f"{blocks}.{path}", _rope(given, layout, part, softmax))

    @writes("rope_parameters")
    def write(tree: Tree) -> Tree:
        out = {}
        for key, blocks in where.items():
            found = [p for p in _get(tree, f"{blocks}.{path}") if p["kind"] == "rope"]
            if any(p != found[0] for p in found):
                raise UsageError(f"rope differs between blocks {blocks!r}")
            if found:
                out[key] = _rope_parameters(found[0])
        return {"rope_parameters": out.get("", out)}

    return Piece(read, write)


_SCALING_NEEDS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}


def _rope(d: Data, layout: str, part: str, softmax: bool) -> Tree:
    kind = d.get("rope_type", d.get("type", "default"))
    fraction = float(d["partial_rotary_factor"])
    out: Tree = {"kind": "rope", "base": float(d["rope_theta"]), "layout": layout, "part": part, "fraction": fraction, "scaling": None}
    original = d.get("original_max_position_embeddings")
    if missing := [key for key in _SCALING_NEEDS.get(kind, ()) if d.get(key) is None]:
        raise UsageError(f"config.json: rope scaling {kind!r} without {missing[0]!r}\nway out: give it in rope_parameters")
    if kind == "linear":
        out["scaling"] = {"kind": "linear", "factor": float(d["factor"])}
    elif kind == "llama3":
        low, high = float(d["low_freq_factor"]), float(d["high_freq_factor"])
        out["scaling"] = {"kind": "llama3", "factor": float(d["factor"]), "low": low, "high": high, "original": original}
    elif kind == "yarn":
        out["scaling"] = _yarn(d, float(d["factor"]), softmax)
    elif kind != "default":
        raise UsageError(f"config.json: rope scaling {kind!r} is not supported\nsupported: 'default', 'linear', 'llama3', 'yarn'")
    return out


def _yarn(d: Data, factor: float, softmax: bool) -> Tree:
    """The rotation's temperature is attention_factor, or from mscale / mscale_all_dim, or from the factor alone."""

    def m(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0

    ends = {"beta_fast": float(d.get("beta_fast") or 32), "beta_slow": float(d.get("beta_slow") or 1), "truncate": d.get("truncate", True)}
    out: Tree = {"kind": "yarn", "factor": factor, "original": d["original_max_position_embeddings"], **ends}
    given, mscale, everywhere = d.get("attention_factor"), d.get("mscale"), d.get("mscale_all_dim")
    if given is None:
        given = m(float(mscale)) / m(float(everywhere)) if mscale and everywhere else m(1.0)
    if softmax and everywhere:
        if given != 1.0:
            raise UsageError(f"config.json: mscale = {mscale} and mscale_all_dim = {everywhere} differ, which is not supported")
        return out | {"temperature": "softmax", "mscale": float(everywhere)}
    if given == 1.0 and factor > 1:
        return out | {"temperature": "none"}
    strength = round((float(given) - 1) / (0.1 * math.log(factor)), 6) if factor > 1 else 1.0
    return out | {"temperature": "rotation", "mscale": strength}


def _rope_parameters(rope: Tree) -> Tree:
    out: Tree = {"rope_theta": rope["base"], "rope_type": "default"}
    if rope["fraction"] != 1.0:
        out["partial_rotary_factor"] = rope["fraction"]
    s = rope["scaling"]
    if s is None:
        return out
    out |= {"rope_type": s["kind"], "factor": s["factor"]}
    if s["kind"] == "llama3":
        out |= {"low_freq_factor": s["low"], "high_freq_factor": s["high"], "original_max_position_embeddings": s["original"]}
    if s["kind"] == "yarn":
        out |= {"original_max_position_embeddings": s["original"], "beta_fast": s["beta_fast"], "beta_slow": s["beta_slow"]}
        out |= {"truncate": s["truncate"]}
        if s["temperature"] == "softmax":
            out |= {"mscale": s["mscale"], "mscale_all_dim": s["mscale"]}
        elif s["temperature"] == "none":
            out["attention_factor"] = 1.0
        elif s["mscale"] != 1.0:
            out["attention_factor"] = 0.1 * s["mscale"] * math.log(s["factor"]) + 1
    return out
