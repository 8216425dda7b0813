"""mix: how much of each source a run reads, checked against what there is."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from upslope.config import FrozenDict, Input, UsageError, Wants
from upslope.machine.context import Context
from upslope.machine.stage import Artifact, Stage

Share = Annotated[float, Field(ge=0)]


class Mix(Stage):
    """Weights per source, constant or as points (progress, weight) joined by straight lines, and repetition caps.

    tokens: what the run will read. cap: most epochs of any source; caps: of one source. over: whether a plan beyond a
    cap is refused or only reported.
    Source: repetition up to about 4 epochs is nearly as good as new data (Muennighoff et al., 2305.16264).
    """

    kind: ClassVar[str] = "mix"
    makes: ClassVar[str] = "Mixture"
    code: ClassVar[tuple[str, ...]] = ("upslope.tokens.mixture",)

    shards: Annotated[tuple[Input, ...], Wants("TokenShards"), Field(min_length=1)]
    weights: FrozenDict[str, Share | tuple[tuple[float, float], ...]]
    tokens: Annotated[int, Field(ge=1)]
    cap: Annotated[float, Field(gt=0)] = 4.0
    caps: FrozenDict[str, Annotated[float, Field(gt=0)]] = FrozenDict()
    over: Literal["refuse", "alarm"] = "refuse"

    def run(self, ctx: Context) -> Artifact:
        """UsageError for a source that the shards lack, and for a plan beyond a cap where that is refused."""
        from upslope.tokens.mixture import Mixture
        from upslope.tokens.shards import TokenShards, unknown_source

        there: dict[str, int] = {}
        for ref in self.shards:
            shards = ctx.open(ref, TokenShards)
            for source in shards.training():
                if source in there:
                    raise UsageError(f"source {source!r} is in two of {', '.join(r.stage for r in self.shards)}\nway out: tokenize it once")
                there[source] = shards.counts(source).tokens
        for source in (*self.weights, *self.caps):
            if source not in there:
                raise UsageError(f"mix: {unknown_source(source, sorted(there))}")
        caps = {s: self.caps.get(s, self.cap) for s in self.weights}
        mixture = Mixture.write(ctx.out, dict(self.weights), self.tokens, caps, self.over)
        asked = mixture.asked()
        empty = [s for s, n in asked.items() if n > 0 and not there[s]]
        if empty:
            raise UsageError(f"mix: source {empty[0]!r} has a weight but no tokens\nway out: leave it out of `weights`")
        epochs = {s: n / there[s] if n else 0.0 for s, n in asked.items()}
        beyond = [s for s in asked if epochs[s] > caps[s]]
        lines = [f"{s}: {asked[s]:,.0f} tokens asked, {there[s]:,} there: {epochs[s]:.2f} epochs, at most {caps[s]:g}" for s in beyond]
        if beyond and self.over == "refuse":
            way_out = "way out: fewer tokens, a lower weight, or a higher cap"
            raise UsageError("\n".join(["mix: the plan repeats sources too often", *lines[:4], way_out]))
        if beyond:
            ctx.events.alarm("sources are repeated more often than their caps", sources=lines)
        unused = sorted(set(there) - set(asked))
        ctx.fact(available=there, asked=asked, epochs=epochs, beyond=beyond, unused=unused)
        ranked = sorted(asked, key=lambda s: -asked[s])
        parts = [f"{asked[s] / self.tokens:.0%} {s} ({epochs[s]:.1f} epochs)" for s in ranked[:2]]
        if ranked[2:]:
            parts.append(f"{sum(asked[s] for s in ranked[2:]) / self.tokens:.0%} from {len(ranked) - 2} other sources")
        ctx.say(f"{self.tokens:,} tokens: {', '.join(parts)}" + (f"; {len(unused)} sources unused" if unused else ""))
        return mixture
