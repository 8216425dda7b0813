"""What a model is: a torch-free description from which its parameters, cost and weights file follow.

A model is a pattern of named blocks; a block is a `Layer(mixer, ffn, norm, residual)`; each part is a sum type by `kind`, so
that a new mechanism is a new member and no existing one grows a flag. Two parts that compose are two fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from upslope.config import Config, FrozenDict, Neutral

Width = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


# ── position ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Linear(Config):
    """Position interpolation: positions divided by `factor`.

    factor: how many times longer the context becomes.
    Source: arXiv 2306.15595.
    """

    kind: Literal["linear"] = "linear"
    factor: Positive


class Llama3(Config):
    """Llama 3.1's scaling: wavelengths above original / low are divided by factor, below original / high kept, between them blended.
    factor: of the longest wavelengths. low, high: turns within the original context between which frequencies blend.
    original: the context that was trained, tokens.
    Source: arXiv 2407.21783 §3.4.2 and the released configuration.
    """

    kind: Literal["llama3"] = "llama3"
    factor: Positive = 8.0
    low: Positive = 1.0
    high: Positive = 4.0
    original: Width = 8192


class Yarn(Config):
    """NTK-by-parts interpolation with an attention temperature m = 0.1 · mscale · ln(factor) + 1.

    temperature: where m goes: "rotation" multiplies cos and sin by m, "softmax" multiplies the softmax scale by m² and leaves
    the rotation alone (DeepSeek-V3), "none" leaves it out (DeepSeek-V4). truncate: whether the ramp's ends are rounded to
    whole channels.
    factor: how many times longer the context becomes. original: the context that was trained, tokens. beta_fast, beta_slow: turns within
    the original context above which pairs are kept and below which they are interpolated. mscale: strength of the temperature.
    Source: arXiv 2309.00071; DeepSeek-V3 arXiv 2412.19437 §4.3.
    """

    kind: Literal["yarn"] = "yarn"
    factor: Positive
    original: Width
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    temperature: Literal["rotation", "softmax", "none"] = "rotation"
    mscale: Positive = 1.0
    truncate: bool = True


Scaling = Annotated[Linear | Llama3 | Yarn, Field(discriminator="kind")]


class Rope(Config):
    """Rotary position embedding: the angle of pair i at position m is m · base^(-2i/D), D = the rotated channels.

    layout: pairs are (i, i + D/2) for "half" (GPT-NeoX, Qwen, Llama as Hugging Face stores it), (2i, 2i + 1) for "interleaved"
    (GPT-J, DeepSeek).
    fraction: share of a head's channels that rotate. part: whether those are the leading or the trailing channels.
    scaling: stretches a trained context.
    base: the slowest pair turns once in about 2π · base tokens.
    Source: Su et al. 2021, arXiv 2104.09864; a larger base (ABF): arXiv 2309.16039.
    """

    kind: Literal["rope"] = "rope"
    base: Positive = 10_000.0
    layout: Annotated[Literal["half", "interleaved"], Neutral("half")] = "half"
    fraction: Annotated[float, Field(gt=0, le=1), Neutral(1.0)] = 1.0
    part: Annotated[Literal["leading", "trailing"], Neutral("leading")] = "leading"
    scaling: Annotated[Scaling | None, Neutral(None)] = None

    def width(self, head_dim: int) -> int:
        """Channels that rotate in a head of this width. ValueError where that is not a whole even number."""
        width = round(head_dim * self.fraction)
        if abs(width - head_dim * self.fraction) > 1e-6 or width % 2:
            raise ValueError(f"head_dim = {head_dim} × fraction = {self.fraction:g}: rope rotates an even number of channels")
        return width


class Nope(Config):
    """No position in the attention logits: order comes from the causal mask alone. Source: arXiv 2305.19466."""

    kind: Literal["nope"] = "nope"


Position = Annotated[Rope | Nope, Field(discriminator="kind")]


# ── norms ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


class RMS(Config):
    """Root-mean-square norm with a gain: y = x / sqrt(mean(x²) + eps) · g.

    gain: "one" stores g, starting at 1; "zero" stores g - 1, starting at 0 (Gemma), which weight decay pulls to a gain of one.
    eps: added to the mean square.
    Source: arXiv 1910.07467.
    """

    eps: Positive = 1e-6
    gain: Annotated[Literal["one", "zero"], Neutral("one")] = "one"


class QKNorm(RMS):
    """RMS norm of queries and keys. over: each "head" (one gain shared by all), or the "full" projection before it is split.

    place: before or after the rotation. Source: arXiv 2309.14322; full: OLMo 2, arXiv 2501.00656; after: Hunyuan, arXiv 2411.02265.
    """

    over: Annotated[Literal["head", "full"], Neutral("head")] = "head"
    place: Annotated[Literal["before", "after"], Neutral("before")] = "before"


# ── mixers ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Reuse(Config):
    """Takes what the nearest layer below that has its own computed: its keys and values (CLA), or its choice of tokens (IndexShare)."""

    kind: Literal["reuse"] = "reuse"


class Own(Config):
    """A layer's own keys and values."""

    kind: Literal["own"] = "own"


class Attention(Config):
    """Causal softmax attention with grouped queries: heads / kv_heads query heads share one key-value head.

    value_dim: width of a value head (None: head_dim). window: a query sees this many tokens, itself included (None: all).
    scale: factor of q·k (None: 1/sqrt(head_dim)). softcap: logits become c·tanh(logit/c). sinks: a learned logit per head joins the
    softmax's denominator. bias: which projections have one. gate: the output is multiplied by sigmoid(x W_g), one gate per channel.
    kv: own keys and values, or those of the layer below (CLA).
    heads: query heads. kv_heads: key-value heads. head_dim: width of a query and key head. position: where order comes from.
    qk_norm: of queries and keys (None: none).
    Sources: GQA arXiv 2305.13245; window arXiv 2004.05150; soft-cap Gemma 2, arXiv 2408.00118; sinks gpt-oss, arXiv 2508.10925;
    gate arXiv 2505.06708; CLA arXiv 2405.12981.
    """

    kind: Literal["gqa"] = "gqa"
    heads: Width
    kv_heads: Width
    head_dim: Width
    position: Position = Rope()
    qk_norm: QKNorm | None = QKNorm()
    value_dim: Annotated[Width | None, Neutral(None)] = None
    window: Annotated[Width | None, Neutral(None)] = None
    scale: Annotated[Positive | None, Neutral(None)] = None
    softcap: Annotated[Positive | None, Neutral(None)] = None
    sinks: Annotated[bool, Neutral(False)] = False
    bias: Annotated[Literal["none", "qkv", "all"], Neutral("none")] = "none"
    gate: Annotated[bool, Neutral(False)] = False
    kv: Annotated[Own | Reuse, Field(discriminator="kind"), Neutral(Own())] = Own()

    @model_validator(mode="after")
    def _shapes(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads = {self.heads} must be a multiple of kv_heads = {self.kv_heads}")
        if isinstance(self.position, Rope):
            self.position.width(self.head_dim)
        return self

    @property
    def value_width(self) -> int:
        """Channels of a value head."""
        return self.value_dim or self.head_dim


class Indexer(Config):
    """The lightning indexer of sparse attention: I(t,s) = Σ_j w_j(t) · relu(q_j(t)·k(s)); a query attends to its top_k tokens.

    heads, dim: of q_j and of the single key k. rope: rotates the leading rope_dim channels (a `dim`-wide head with that fraction).
    stage: "dense" leaves attention dense while the indexer learns its distribution (warm-up); "sparse" attends to the chosen tokens only.
    loss: weight of KL(attention ‖ softmax(I)); the indexer's inputs are detached, so it learns from nothing else.
    top_k: tokens that a query may attend to. eps: of the key's LayerNorm.
    Source: DeepSeek-V3.2, arXiv 2512.02556.
    """

    kind: Literal["indexer"] = "indexer"
    heads: Width
    dim: Width
    top_k: Width
    rope: Rope
    eps: Positive = 1e-6
    stage: Literal["dense", "sparse"] = "sparse"
    loss: Annotated[float, Field(ge=0)] = 1.0

    @model_validator(mode="after")
    def _shapes(self) -> Self:
        self.rope.width(self.dim)
        return self


class MLA(Config):
    """Multi-head latent attention: keys and values come from one latent per token, plus one rotary key shared by the heads.

    q_latent: width of the queries' latent (None: none). kv_latent: width of what is cached. nope_dim, rope_dim: channels of a query head
    without and with position. value_dim: of a value head. select: None = dense; an indexer; or the tokens chosen by the layer below.
    eps: of the latents' norms.
    heads: query heads. position: rotation of the rope_dim channels.
    Source: DeepSeek-V2, arXiv 2405.04434.
    """

    kind: Literal["mla"] = "mla"
    heads: Width
    q_latent: Width | None
    kv_latent: Width
    nope_dim: Width
    rope_dim: Width
    value_dim: Width
    position: Rope = Rope(layout="interleaved")
    select: Annotated[Indexer | Reuse, Field(discriminator="kind")] | None = None
    eps: Positive = 1e-6

    @model_validator(mode="after")
    def _shapes(self) -> Self:
        self.position.width(self.rope_dim)
        if isinstance(self.select, Indexer) and self.q_latent is None:
            raise ValueError("an indexer reads the queries' latent: give q_latent")
        return self


class HCA(Config):
    """Heavily compressed history: every `rate` tokens become one entry, all of which are attended to.

    rate: tokens of an entry.
    Source: arXiv 2606.19348 §2.3.2.
    """

    kind: Literal["hca"] = "hca"
    rate: Width = 128


class CSA(Config):
    """Compressed history read sparsely: overlapping entries of `rate` tokens, of which an indexer chooses top_k per query.

    index_heads, index_dim: of the indexer's queries; its keys are compressed in the same way. stage, loss: as of `Indexer`, over entries.
    rate: tokens of an entry. top_k: entries that a query may attend to.
    Source: arXiv 2606.19348 §2.3.1; the loss: arXiv 2512.02556.
    """

    kind: Literal["csa"] = "csa"
    rate: Width = 4
    index_heads: Width
    index_dim: Width
    top_k: Width
    stage: Literal["dense", "sparse"] = "sparse"
    loss: Annotated[float, Field(ge=0)] = 1.0


class Compressed(Config):
    """DeepSeek-V4's attention: one shared key-value head, read over a window and over compressed history in one softmax.

    q_latent: width of the queries' latent. window: tokens seen uncompressed. history: what stands for older tokens (None: nothing).
    position: interleaved, on trailing channels, entry i standing at i · rate; the output is rotated back. groups, group_dim: of the
    grouped output projection. eps: of its norms.
    heads: query heads. head_dim: width of a query head, and of the one key-value head.
    Source: arXiv 2606.19348 §2.3.
    """

    kind: Literal["compressed"] = "compressed"
    heads: Width
    head_dim: Width
    q_latent: Width
    window: Width
    history: Annotated[HCA | CSA, Field(discriminator="kind")] | None
    position: Rope
    groups: Width
    group_dim: Width
    eps: Positive = 1e-6

    @model_validator(mode="after")
    def _shapes(self) -> Self:
        if self.heads % self.groups:
            raise ValueError(f"heads = {self.heads} must be a multiple of groups = {self.groups}")
        width = self.position.width(self.head_dim)
        if isinstance(self.history, CSA) and self.history.index_dim < width:
            raise ValueError(f"history.index_dim = {self.history.index_dim}: the {width} rotating channels of a head rotate in it as well")
        return self


class Lightning(Config):
    """Linear attention with a fixed decay per head, S_t = e^{-λ} S_{t-1} + v_t k_tᵀ, o_t = S_t q_t; q, k, v = silu(x W).

    λ of head n (from 1) in layer l (from 0) of L: 2^(-8n/heads) · (1 - l/(L - 1 + 1e-5) + 1e-5). The heads' outputs are RMS-normed
    together and gated by sigmoid(x W_g).
    heads, head_dim: of queries, keys and values. eps: of the norm.
    Source: MiniMax-01, arXiv 2501.08313.
    """

    kind: Literal["lightning"] = "lightning"
    heads: Width
    head_dim: Width
    eps: Positive = 1e-5


class Mamba2(Config):
    """State-space layer with scalar decay: H_t = a_t H_{t-1} + Δ_t x_t B_tᵀ, y_t = H_t C_t + D x_t, gated norm per group.

    heads, head_dim: number and width of the heads of x. state: width n of B and C. groups: of heads that share B and C.
    conv: taps of the causal convolution. dt_min: least Δ; dt_min, dt_max: range of the initial Δ. eps: of the gated norm.
    Source: arXiv 2405.21060.
    """

    kind: Literal["mamba2"] = "mamba2"
    heads: Width
    head_dim: Width
    state: Width
    groups: Width
    conv: Annotated[int, Field(ge=2)] = 4
    eps: Positive = 1e-5
    dt_min: Positive = 1e-3
    dt_max: Positive = 0.1

    @model_validator(mode="after")
    def _shapes(self) -> Self:
        if self.heads % self.groups:
            raise ValueError(f"heads = {self.heads} must be a multiple of groups = {self.groups}")
        return self


class Nothing(Config):
    """This half of the block is left out, its norm included (Nemotron's blocks have a mixer or an FFN)."""

    kind: Literal["nothing"] = "nothing"


Mixer = Annotated[Attention | MLA | Compressed | Lightning | Mamba2 | Nothing, Field(discriminator="kind")]


# ── channel mixers ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Gated(Config):
    """A gated FFN: y = (act(x W_gate) ⊙ x W_up) W_down, W_gate and W_up (d, hidden).

    act: "silu" (SwiGLU), "gelu" (GeGLU, tanh form), "swish1702" (gpt-oss: g · sigmoid(1.702 g), and up + 1).
    limit: the gate is clamped to ≤ limit and up to ± limit.
    hidden: width between the projections. bias: all three projections have one.
    Sources: arXiv 2002.05202; clamp: gpt-oss, arXiv 2508.10925.
    """

    kind: Literal["swiglu"] = "swiglu"
    hidden: Width
    act: Annotated[Literal["silu", "gelu", "swish1702"], Neutral("silu")] = "silu"
    limit: Annotated[Positive | None, Neutral(None)] = None
    bias: Annotated[bool, Neutral(False)] = False


class Relu2(Config):
    """A plain FFN with squared ReLU: y = relu(x W_up)² W_down.

    hidden: width between the projections.
    Source: arXiv 2109.08668.
    """

    kind: Literal["relu2"] = "relu2"
    hidden: Width


Expert = Annotated[Gated | Relu2, Field(discriminator="kind")]


class TopK(Config):
    """The k experts of largest score. groups: the experts stand in this many groups, of which the best `keep` may be chosen from.

    group_score: a group's rank: its best score ("max", DeepSeek-V2) or the sum of its two best ("top2", V3).
    k: experts of a token. keep: groups that a token may choose from.
    """

    kind: Literal["topk"] = "topk"
    k: Width
    groups: Width = 1
    keep: Width = 1
    group_score: Literal["max", "top2"] = "top2"


class Hashed(Config):
    """k experts by a fixed table over token ids, drawn from the seed; the weights are still the scores.

    k: experts of a token.
    Source: arXiv 2606.19348.
    """

    kind: Literal["hash"] = "hash"
    k: Width


class Router(Config):
    """How a token finds its experts: score ∘ select ∘ weight.

    score: of x W over the experts: softmax, sigmoid, or sqrt(softplus). select: which experts a token gets. renorm: the chosen
    scores are divided by their sum (with softmax: the softmax over the k chosen logits). scale: the weights are then multiplied by this.
    bias: a bias of the logits. z_loss: weight of mean(logsumexp(logits)²). Sources: arXiv 2412.19437 §2.1.2; z-loss arXiv 2202.08906.
    """

    score: Literal["softmax", "sigmoid", "sqrtsoftplus"] = "softmax"
    select: Annotated[TopK | Hashed, Field(discriminator="kind")]
    renorm: bool = True
    scale: Positive = 1.0
    bias: bool = False
    z_loss: Annotated[float, Field(ge=0)] = 0.0


class AuxLoss(Config):
    """Load-balancing loss: weight · E · Σ_i f_i P_i, f_i = share of the choices that fell on expert i, P_i = mean normalised score.

    over: the tokens that f and P are taken over: each "sequence", each group of `group` consecutive sequences of the step ("micro"), or all
    tokens of the optimizer step ("global"). The loss is the mean over those populations weighted by their tokens, so it does not depend on
    how the step is split.
    weight: of the loss; it is this at perfect balance. group: sequences of a micro-batch.
    Sources: arXiv 2006.16668; sequence: arXiv 2412.19437; global: arXiv 2501.11873.
    """

    kind: Literal["aux"] = "aux"
    weight: Positive
    over: Literal["sequence", "micro", "global"] = "global"
    group: Width = 1


class BiasBalance(Config):
    """Loss-free balancing: a bias per expert, used in selection only, moves by `rate` · sign(mean load - load) after each optimizer step.
    rate: step of the bias.
    Source: arXiv 2408.15664.
    """

    kind: Literal["bias"] = "bias"
    rate: Annotated[float, Field(ge=0)] = 1e-3


Balance = Annotated[AuxLoss | BiasBalance, Field(discriminator="kind")]


class MoE(Config):
    """Mixture of experts: y = shared(x) + Σ_{i chosen} g_i expert_i(x); dropless.

    experts: number of routed experts. expert: the shape of one. shared: an FFN that every token takes (n shared experts = one of n times
    the width). latent: routed experts work at this width, between one down- and one up-projection (None: at d_model).
    balance: terms, in order. router: how a token finds its experts.
    Sources: fine-grained and shared: arXiv 2401.06066; LatentMoE: arXiv 2601.18089.
    """

    kind: Literal["moe"] = "moe"
    experts: Width
    expert: Expert
    router: Router
    shared: Expert | None = None
    latent: Width | None = None
    balance: tuple[Balance, ...] = ()

    @model_validator(mode="after")
    def _shapes(self) -> Self:
        select = self.router.select
        if select.k > self.experts:
            raise ValueError(f"router.select.k = {select.k} of experts = {self.experts}: more than there are")
        if isinstance(select, TopK):
            if self.experts % select.groups or select.keep > select.groups:
                raise ValueError(f"experts = {self.experts} in groups = {select.groups}, keep = {select.keep}: does not divide")
            if select.k > self.experts // select.groups * select.keep:
                raise ValueError(
                    f"k = {select.k}: the {select.keep} kept groups hold {self.experts // select.groups * select.keep} experts"
                )
        if sum(isinstance(b, BiasBalance) for b in self.balance) > 1:
            raise ValueError("balance: at most one term of kind 'bias'")
        return self


FFN = Annotated[Gated | Relu2 | MoE | Nothing, Field(discriminator="kind")]


# ── a block ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class PreNorm(RMS):
    """Norms before the mixer and before the FFN: x + f(norm(x)). Source: arXiv 2002.04745."""

    kind: Literal["pre"] = "pre"


class PostNorm(RMS):
    """Norms of the sub-layers' outputs, inside the residual branch: x + norm(f(x)) (OLMo 2). Source: arXiv 2501.00656 §3.3."""

    kind: Literal["post"] = "post"


class SandwichNorm(RMS):
    """Both: x + norm(f(norm(x))) (Gemma 2). Source: arXiv 2408.00118."""

    kind: Literal["sandwich"] = "sandwich"


Norm = Annotated[PreNorm | PostNorm | SandwichNorm, Field(discriminator="kind")]


class Add(Config):
    """The plain residual stream: x + branch."""

    kind: Literal["add"] = "add"


class Scaled(Config):
    """DeepNorm's stream as in MiniMax-01: the *normed* input is carried on: n = norm(x); x = skip · n + branch · f(n).

    mixer, ffn: (skip, branch) of each half. Sources: arXiv 2203.00555, 2501.08313.
    """

    kind: Literal["scaled"] = "scaled"
    mixer: tuple[Positive, Positive]
    ffn: tuple[Positive, Positive]


class HyperConnections(Config):
    """n residual streams X, X' = B X + C f(A X), whose coefficients come from the tokens; B is made doubly stochastic by Sinkhorn.

    streams: their number n. iterations: of Sinkhorn's normalisation. eps: floor of A and of Sinkhorn's sums.
    norm_eps: of the norm that the coefficients are read from.
    Source: mHC, arXiv 2512.24880; as in DeepSeek-V4, arXiv 2606.19348. All blocks of a model have it, or none.
    """

    kind: Literal["hyper"] = "hyper"
    streams: Annotated[int, Field(ge=2)] = 4
    iterations: Width = 20
    eps: Positive = 1e-6
    norm_eps: Positive = 1e-6


Residual = Annotated[Add | Scaled | HyperConnections, Field(discriminator="kind")]


class Layer(Config):
    """One block: token mixing, then channel mixing, each normed as `norm` says and joined as `residual` says.

    mixer: what mixes tokens. ffn: what mixes channels. norm: where the norms stand. residual: how a half joins the stream.
    """

    mixer: Mixer
    ffn: FFN
    norm: Norm = PreNorm()
    residual: Residual = Add()

    @model_validator(mode="after")
    def _shapes(self) -> Self:
        if isinstance(self.mixer, Nothing) and isinstance(self.ffn, Nothing):
            raise ValueError("a block of nothing: give it a mixer or an ffn")
        if isinstance(self.residual, Scaled) and not isinstance(self.norm, PreNorm):
            raise ValueError("residual 'scaled' carries the normed input on: it wants norm 'pre'")
        return self


# ── a model ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Untied(Config):
    """An output matrix of its own, (vocab, d)."""

    kind: Literal["untied"] = "untied"


class Tied(Config):
    """The embedding matrix is also the output matrix."""

    kind: Literal["tied"] = "tied"


Head = Annotated[Untied | Tied, Field(discriminator="kind")]


class MTP(Config):
    """Multi-token prediction: depth modules in a row, module k predicting token t+k+1 from h^{k-1}_t and the embedding of token t+k.

        h^k = block([norm(h^{k-1}); norm(embed(t+k))] M_k);  loss = weight · mean_k CE_k.

    block: the kind of block each module has, by name. shared: one module's weights serve all depths.
    depth: tokens predicted beyond the next. weight: of the mean loss of the depths.
    Source: DeepSeek-V3, arXiv 2412.19437 §2.2.
    """

    depth: Width = 1
    block: str
    weight: Annotated[float, Field(ge=0)] = 0.3
    shared: bool = False


Zeroed = Annotated[tuple[Literal["mixer", "ffn", "head"], ...], Neutral(())]
"""Output projections that start at zero: of the mixers (MAI: the net starts as a stack of FFNs), of the FFNs, the untied head."""


class ZeroOut(Config):
    """Attention output, FFN down projection and untied head start at zero, so the model starts as a uniform guess.

    The rest: normal with std gain / sqrt(fan_in); embeddings normal with std `embed_std`; norm gains 1.
    embed_std: of the embeddings. gain: of the matrices.
    Source: measured for tiny models (arXiv 2203.03466 gives the zero head and output init).
    """

    kind: Literal["zero_out"] = "zero_out"
    embed_std: Positive = 0.5
    gain: Positive = 1.0


class Normal(Config):
    """Every matrix normal with one std; norm gains 1.

    std: of every matrix. zero: halves whose output projections start at zero ("mixer", "ffn"), and the "head".
    Source: OLMo 2, arXiv 2501.00656 §3.2 (0.02); DeepSeek-V3: 0.006.
    """

    kind: Literal["normal"] = "normal"
    std: Positive = 0.02
    zero: Zeroed = ()


class DepthScaled(Config):
    """As `Normal`, with the projections into the residual stream divided by sqrt(number of branches).

    std: of every other matrix. zero: halves whose output projections start at zero, and the "head".
    Source: GPT-2; Nemotron-H.
    """

    kind: Literal["depth_scaled"] = "depth_scaled"
    std: Positive = 0.02
    zero: Zeroed = ()


class FanIn(Config):
    """Normal with std gain / sqrt(fan_in), cut at 3 std; embeddings normal with std `embed_std`.

    gain: of the matrices. embed_std: of the embeddings. zero: halves whose output projections start at zero, and the "head".
    Source: arXiv 2309.14322.
    """

    kind: Literal["fan_in"] = "fan_in"
    gain: Positive = 1.0
    embed_std: Positive = 1.0
    zero: Zeroed = ()


Init = Annotated[ZeroOut | Normal | DepthScaled | FanIn, Field(discriminator="kind")]


def _run_length(value: Any) -> Any:
    """Names and (name, repeat) pairs → merged pairs: one model has one spelling, so one identity."""
    if not isinstance(value, tuple | list):
        return value
    runs: list[list[Any]] = []
    for item in value:
        name, repeat = (item, 1) if isinstance(item, str) else item
        if runs and runs[-1][0] == name:
            runs[-1][1] += repeat
        else:
            runs.append([name, repeat])
    return tuple((name, repeat) for name, repeat in runs)


class ModelConfig(Config):
    """A decoder-only language model.

    d_model: width of the residual stream. blocks: the kinds of block by name. pattern: which block stands where, as names or
    (name, repeat) pairs, bottom up. final_norm: the norm before the head. vocab: rows of the embedding; 0 = to be filled from
    the tokenizer (`replace(vocab=...)`). context: the longest sequence that the model is meant for, tokens.
    embed_scale: "sqrt_d" multiplies embeddings by sqrt(d_model) (Gemma). logit_softcap: output logits become c·tanh(logit/c).
    mtp: predicts further tokens in training.
    head: the output matrix. init: how weights start.
    """

    d_model: Width
    blocks: FrozenDict[str, Layer]
    pattern: Annotated[tuple[tuple[str, Width], ...], BeforeValidator(_run_length)]
    head: Head = Untied()
    final_norm: RMS = RMS()
    init: Init = ZeroOut()
    vocab: Annotated[int, Field(ge=0)] = 0
    context: Width = 2048
    embed_scale: Annotated[Literal["one", "sqrt_d"], Neutral("one")] = "one"
    logit_softcap: Annotated[Positive | None, Neutral(None)] = None
    mtp: Annotated[MTP | None, Neutral(None)] = None

    @model_validator(mode="after")
    def _pattern(self) -> Self:
        if not self.pattern:
            raise ValueError("pattern is empty: name at least one block")
        used = {name for name, _ in self.pattern} | ({self.mtp.block} if self.mtp else set())
        if missing := sorted(used - set(self.blocks)):
            raise ValueError(f"pattern names {missing[0]!r}, which is not in blocks ({', '.join(self.blocks)})")
        if unused := sorted(set(self.blocks) - used):
            raise ValueError(f"block {unused[0]!r} is not used by the pattern")
        residuals = {b.residual if isinstance(b.residual, HyperConnections) else None for b in self.blocks.values()}
        if len(residuals) > 1:
            raise ValueError("residual: either all blocks have the same hyper-connections, or none has")
        self._reuse()
        return self

    def _reuse(self) -> None:
        """Whatever is reused must have been made below, in the same shape."""
        kv: Attention | None = None
        index = False
        ahead = [self.blocks[self.mtp.block]] if self.mtp else []
        for i, layer in enumerate([*self.layers(), *ahead]):
            m = layer.mixer
            if isinstance(m, Attention):
                if isinstance(m.kv, Own):
                    kv = m
                elif kv is None or (kv.kv_heads, kv.head_dim, kv.value_width) != (m.kv_heads, m.head_dim, m.value_width):
                    raise ValueError(f"layer {i} reuses keys and values, but no layer below has its own of the same shape")
                elif kv.window is not None and kv.window < (m.window or kv.window + 1):
                    raise ValueError(f"layer {i} reuses keys and values of a layer that keeps fewer tokens than it reads")
            if isinstance(m, MLA) and m.select is not None:
                if isinstance(m.select, Reuse) and not index:
                    raise ValueError(f"layer {i} reuses an index, but no layer below has an indexer")
                index = True

    def layers(self) -> Iterator[Layer]:
        """The blocks in order, bottom up."""
        for name, repeat in self.pattern:
            for _ in range(repeat):
                yield self.blocks[name]

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return sum(repeat for _, repeat in self.pattern)

    def params(self, embedding: bool = True) -> int:
        """Number of parameters, from the config alone; embedding=False leaves the input embedding out."""
        from upslope.model.cost import params

        return params(self, embedding)

    def flops(self, length: int) -> float:
        """Forward floating-point operations per token at sequence length `length` (training: three times that)."""
        from upslope.model.cost import flops

        return flops(self, length)


def dense(
    d_model: int,
    depth: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    hidden: int,
    *,
    context: int,
    base: float = 10_000.0,
    head: Untied | Tied | None = None,
    init: ZeroOut | Normal | None = None,
    vocab: int = 0,
    eps: float = 1e-6,
    qk_norm: bool = True,
) -> ModelConfig:
    """A Qwen3-shaped dense model (Llama-shaped without QK-norm): one block repeated `depth` times."""
    norm = QKNorm(eps=eps) if qk_norm else None
    mixer = Attention(heads=heads, kv_heads=kv_heads, head_dim=head_dim, position=Rope(base=base), qk_norm=norm)
    block = Layer(mixer=mixer, ffn=Gated(hidden=hidden), norm=PreNorm(eps=eps))
    return ModelConfig(
        d_model=d_model,
        blocks=FrozenDict(dense=block),
        pattern=(("dense", depth),),
        head=head or Untied(),
        final_norm=RMS(eps=eps),
        init=init or ZeroOut(),
        vocab=vocab,
        context=context,
    )


def tiny(vocab: int = 0, context: int = 512) -> ModelConfig:
    """The model of the tiny recipe: 0.64M parameters at a vocabulary of 1,024 (d 96, 4 layers, 3 heads of 32, SwiGLU 256)."""
    return dense(96, 4, 3, 3, 32, 256, context=context, vocab=vocab)
