"""Characters of mathematics and the TeX commands that print them: LaTeX, amssymb and amsmath names, most usual name first."""

from __future__ import annotations

_TABLE = """
α alpha β beta γ gamma δ delta ϵ epsilon ε varepsilon ζ zeta η eta θ theta ϑ vartheta ι iota κ kappa ϰ varkappa λ lambda μ mu ν nu ξ xi
π pi ϖ varpi ρ rho ϱ varrho σ sigma ς varsigma τ tau υ upsilon ϕ phi φ varphi χ chi ψ psi ω omega ϝ digamma Γ Gamma Δ Delta Θ Theta
Λ Lambda Ξ Xi Π Pi Σ Sigma Υ Upsilon ϒ Upsilon Φ Phi Ψ Psi Ω Omega ℵ aleph ℶ beth ℷ gimel ℸ daleth ℏ hbar ħ hbar ℓ ell ℘ wp ℜ Re ℑ Im
ı imath ȷ jmath 𝚤 imath 𝚥 jmath ð eth ℧ mho Ⅎ Finv ⅁ Game ∂ partial ∇ nabla ∞ infty ∅ emptyset ∀ forall ∃ exists ∄ nexists ¬ neg
∁ complement ⊤ top ⊥ bot ⟂ perp ∠ angle ∡ measuredangle ∢ sphericalangle √ surd △ triangle ▽ triangledown ▿ triangledown □ square ◻ square
■ blacksquare ◊ lozenge ⧫ blacklozenge ★ bigstar ♯ sharp ♭ flat ♮ natural ♠ spadesuit ♡ heartsuit ♢ diamondsuit ♣ clubsuit † dagger
‡ ddagger § S ¶ P © copyright £ pounds ✓ checkmark ∎ blacksquare ° degree ∑ sum ∏ prod ∐ coprod ∫ int ∬ iint ∭ iiint ⨌ iiiint ∮ oint
∯ oiint ⋃ bigcup ⋂ bigcap ⋁ bigvee ⋀ bigwedge ⨁ bigoplus ⨂ bigotimes ⨀ bigodot ⨄ biguplus ⨆ bigsqcup ± pm ∓ mp × times ÷ div ⋅ cdot · cdot
∗ ast ⋆ star ∘ circ ∙ bullet • bullet ∪ cup ∩ cap ⊎ uplus ⊓ sqcap ⊔ sqcup ∨ vee ∧ wedge ∖ setminus ≀ wr ⊕ oplus ⊖ ominus ⊗ otimes ⊘ oslash
⊙ odot ◯ bigcirc ⨿ amalg ⋄ diamond ◃ triangleleft ◁ triangleleft ▹ triangleright ▷ triangleright ⊲ vartriangleleft ⊳ vartriangleright
⊴ trianglelefteq ⊵ trianglerighteq ∔ dotplus ⋉ ltimes ⋊ rtimes ⋈ bowtie ⊠ boxtimes ⊞ boxplus ⊟ boxminus ⊡ boxdot ⊚ circledcirc
⊛ circledast ⊝ circleddash ⋏ curlywedge ⋎ curlyvee ⊻ veebar ⊼ barwedge ⋒ Cap ⋓ Cup ⊺ intercal ⋇ divideontimes ⋋ leftthreetimes
⋌ rightthreetimes ≤ le ≥ ge ≠ ne ≡ equiv ∼ sim ≃ simeq ≈ approx ≅ cong ≍ asymp ≐ doteq ≑ doteqdot ∝ propto ⊧ models ⊨ vDash ⊢ vdash
⊣ dashv ⊩ Vdash ⊪ Vvdash ∥ parallel ∣ mid ∤ nmid ∦ nparallel ≺ prec ≻ succ ⪯ preceq ⪰ succeq ≼ preccurlyeq ≽ succcurlyeq ≪ ll ≫ gg ⋘ lll
⋙ ggg ⊂ subset ⊃ supset ⊆ subseteq ⊇ supseteq ⊊ subsetneq ⊋ supsetneq ⫅ subseteqq ⫆ supseteqq ⋐ Subset ⋑ Supset ⊏ sqsubset ⊐ sqsupset
⊑ sqsubseteq ⊒ sqsupseteq ∈ in ∋ ni ∉ notin ⌣ smile ⌢ frown ⩽ leqslant ⩾ geqslant ≦ leqq ≧ geqq ≲ lesssim ≳ gtrsim ⪅ lessapprox
⪆ gtrapprox ≶ lessgtr ≷ gtrless ⋚ lesseqgtr ⋛ gtreqless ≜ triangleq ≗ circeq ≖ eqcirc ≏ bumpeq ≎ Bumpeq ≊ approxeq ∽ backsim ⋍ backsimeq
⋔ pitchfork ∵ because ∴ therefore ≬ between ≔ coloneqq ≕ eqqcolon ≓ risingdotseq ≒ fallingdotseq ≾ precsim ≿ succsim ⋞ curlyeqprec
⋟ curlyeqsucc ≮ nless ≯ ngtr ≰ nleq ≱ ngeq ≨ lneqq ≩ gneqq ⪇ lneq ⪈ gneq ⋦ lnsim ⋧ gnsim ≁ nsim ≇ ncong ⊀ nprec ⊁ nsucc ⋠ npreceq
⋡ nsucceq ⊈ nsubseteq ⊉ nsupseteq ⊬ nvdash ⊭ nvDash ⊮ nVdash ⊯ nVDash ⋪ ntriangleleft ⋫ ntriangleright ⋬ ntrianglelefteq
⋭ ntrianglerighteq → to ← leftarrow ↔ leftrightarrow ↑ uparrow ↓ downarrow ↕ updownarrow ⇒ Rightarrow ⇐ Leftarrow ⇔ Leftrightarrow
⇑ Uparrow ⇓ Downarrow ⇕ Updownarrow ⟶ longrightarrow ⟵ longleftarrow ⟷ longleftrightarrow ⟹ Longrightarrow ⟸ Longleftarrow
⟺ Longleftrightarrow ↦ mapsto ⟼ longmapsto ↪ hookrightarrow ↩ hookleftarrow ⇀ rightharpoonup ⇁ rightharpoondown ↼ leftharpoonup
↽ leftharpoondown ⇌ rightleftharpoons ⇋ leftrightharpoons ↗ nearrow ↘ searrow ↙ swarrow ↖ nwarrow ⇝ rightsquigarrow ↭ leftrightsquigarrow
↠ twoheadrightarrow ↞ twoheadleftarrow ↣ rightarrowtail ↢ leftarrowtail ⇉ rightrightarrows ⇇ leftleftarrows ⇄ rightleftarrows
⇆ leftrightarrows ⇈ upuparrows ⇊ downdownarrows ↛ nrightarrow ↚ nleftarrow ↮ nleftrightarrow ⇏ nRightarrow ⇍ nLeftarrow ⇎ nLeftrightarrow
⊸ multimap ↺ circlearrowleft ↻ circlearrowright ↶ curvearrowleft ↷ curvearrowright ⇛ Rrightarrow ⇚ Lleftarrow ↰ Lsh ↱ Rsh ↾ upharpoonright
↿ upharpoonleft ⇂ downharpoonright ⇃ downharpoonleft ↬ looparrowright ↫ looparrowleft ⟨ langle ⟩ rangle 〈 langle 〉 rangle ⌊ lfloor
⌋ rfloor ⌈ lceil ⌉ rceil ‖ Vert ⟦ llbracket ⟧ rrbracket ⌜ ulcorner ⌝ urcorner ⌞ llcorner ⌟ lrcorner ⟮ lgroup ⟯ rgroup ⎰ lmoustache
⎱ rmoustache … ldots ⋯ cdots ⋮ vdots ⋱ ddots ⧵ setminus \\ backslash ▴ blacktriangle ▾ blacktriangledown ◼ blacksquare Ⓢ circledS ╱ diagup
╲ diagdown ¥ yen ® circledR ✠ maltese ⩞ doublebarwedge ⪕ eqslantless ⪖ eqslantgtr ⋖ lessdot ⋗ gtrdot ⪋ lesseqqgtr ⪌ gtreqqless
⪷ precapprox ⪸ succapprox ∍ backepsilon ◂ blacktriangleleft ▸ blacktriangleright ≂ eqsim ⪉ lnapprox ⪊ gnapprox ⪵ precneqq ⪶ succneqq
⋨ precnsim ⋩ succnsim ⪹ precnapprox ⪺ succnapprox ⫋ subsetneqq ⫌ supsetneqq ⇢ dashrightarrow ⇠ dashleftarrow ∰ oiiint
"""
_WORDS = _TABLE.split()
NAMES = {ch: f"\\{name}" for ch, name in zip(_WORDS[::2], _WORDS[1::2], strict=True)}
"""Character → command."""

SYMBOLS = NAMES | {
    **dict(zip("{}%#&$_", (r"\{", r"\}", r"\%", r"\#", r"\&", r"\$", r"\_"), strict=True)),
    **dict.fromkeys("\u2061\u2062\u2063\u2064\u200b\u200c\u200d\u2060\ufeff\ufe00", ""),
    **dict.fromkeys("\u00a0\u2002\u2003\u2004\u2005\u2007\u3000", r"\ "),
    **dict.fromkeys("\u2006\u2009\u200a\u202f\u205f", r"\,"),
    **dict.fromkeys("−‐‑–—", "-"),
    "′": "'",
    "″": "''",
    "‴": "'''",
    "⁗": "''''",
    "‵": r"\backprime",
    "∕": "/",
    "⁄": "/",
    "∶": ":",
    "⏐": "|",
    "⎪": "|",
    "~": r"\sim",
    "^": r"\wedge",
    "µ": r"\mu",
    "Å": r"\mathrm{\mathring{A}}",
    "ℯ": "e",
    "ℊ": "g",
    "ℴ": "o",
    "⅋": r"\&",
    "ⅆ": "d",
    "ⅅ": "D",
    "ⅇ": "e",
    "ⅈ": "i",
    "ⅉ": "j",
    "½": r"\frac{1}{2}",
    "¼": r"\frac{1}{4}",
    "¾": r"\frac{3}{4}",
    "⅓": r"\frac{1}{3}",
    "⅔": r"\frac{2}{3}",
}
"""Character → TeX in mathematics; `\\ ` and `\\,` for spaces, nothing for what is not seen."""

NEGATED = {"≢": r"\not\equiv", "≄": r"\not\simeq", "≉": r"\not\approx", "∌": r"\not\ni", "⊄": r"\not\subset", "⊅": r"\not\supset"}
SYMBOLS |= NEGATED

_FUNCTIONS = """
arccos arcsin arctan arg cos cosh cot coth csc deg det dim exp gcd hom inf ker lg lim ln log max min Pr sec sin sinh sup tan tanh
"""
FUNCTIONS = frozenset(_FUNCTIONS.split())
"""Names that TeX knows as commands."""

LIMITS = {"lim sup": r"\limsup", "lim inf": r"\liminf", "limsup": r"\limsup", "liminf": r"\liminf", "inj lim": r"\injlim"}
LIMITS |= {"proj lim": r"\projlim", **{n: f"\\{n}" for n in ("lim", "max", "min", "sup", "inf", "det", "gcd", "Pr")}}
"""Names that take their limits below."""

OVER = {
    **dict.fromkeys("^\u02c6\u0302", ("hat", "widehat")),
    **dict.fromkeys("~\u02dc\u223c\u0303", ("tilde", "widetilde")),
    **dict.fromkeys("\u02c7\u030c", ("check", "widecheck")),
    **dict.fromkeys("\u00af\u02c9\u0304", ("bar", "overline")),
    **dict.fromkeys("\u2192\u20d7", ("vec", "overrightarrow")),
    **dict.fromkeys("\u203e\u2015_\u0305\u2212-\u23ba", ("overline", "overline")),
    **dict.fromkeys("\u02d9.\u0307", ("dot", "dot")),
    **dict.fromkeys("\u00a8\u0308", ("ddot", "ddot")),
    **dict.fromkeys("\u00b4\u0301", ("acute", "acute")),
    **dict.fromkeys("`\u0300", ("grave", "grave")),
    **dict.fromkeys("\u02da\u00b0\u030a", ("mathring", "mathring")),
    "\u02d8": ("breve", "breve"),
    "\u20db": ("dddot", "dddot"),
    "\u20dc": ("ddddot", "ddddot"),
    "←": ("overleftarrow", "overleftarrow"),
    "↔": ("overleftrightarrow", "overleftrightarrow"),
    "⏞": ("overbrace", "overbrace"),
    "⎴": ("overbracket", "overbracket"),
    "⏜": ("overparen", "overparen"),
}
"""Character over something → (command over one symbol, command over more)."""

UNDER = {
    **dict.fromkeys("_\u203e\u2015\u0332\u00af\u2212-\u23bd", "underline"),
    "⏟": "underbrace",
    "⎵": "underbracket",
    "⏝": "underparen",
    "→": "underrightarrow",
    "←": "underleftarrow",
    "↔": "underleftrightarrow",
    "~": "utilde",
}
"""Character under something → command."""

XARROWS = {
    "→": "xrightarrow",
    "⟶": "xrightarrow",
    "←": "xleftarrow",
    "⟵": "xleftarrow",
    "↔": "xleftrightarrow",
    "⇒": "xRightarrow",
    "⟹": "xRightarrow",
    "⇐": "xLeftarrow",
    "⇔": "xLeftrightarrow",
    "↦": "xmapsto",
    "↪": "xhookrightarrow",
    "↩": "xhookleftarrow",
    "⇌": "xrightleftharpoons",
    "⇀": "xrightharpoonup",
    "⇁": "xrightharpoondown",
    "↼": "xleftharpoonup",
    "↽": "xleftharpoondown",
    "⇋": "xleftrightharpoons",
    "⇄": "xtofrom",
    "↠": "xtwoheadrightarrow",
    "↞": "xtwoheadleftarrow",
}
"""Arrow that carries text → command with `[below]{above}`."""
