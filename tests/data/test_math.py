"""Formulas: MathML → TeX says what the TeX it came from said; every kind of source yields each formula once, unchanged."""

from __future__ import annotations

import html as entities
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selectolax.lexbor import LexborHTMLParser

from upslope.data.extract.html import extract
from upslope.data.extract.mathml import to_tex
from upslope.data.extract.tex import clean
from upslope.data.shards import MATH

FORMULAS = [line for line in (Path(__file__).parent / "formulas.txt").read_text(encoding="utf-8").splitlines() if line]

# ── a small TeX normaliser: two formulas are equal if they parse to the same tree ─────────────────────────────────

TOKEN = re.compile(r"\\(?:begin|end)\s*\{[A-Za-z]+\*?\}|\\operatorname\*?|\\[A-Za-z]+|\\.|[^\s]", re.S)
_SKIP = r"\, \; \: \! \  ~ \quad \qquad \enspace \limits \nolimits \displaystyle \left \right \middle"
SKIP = {*_SKIP.split(), "\\ "}
SIZES = {rf"\{b}{s}" for b in ("big", "Big", "bigg", "Bigg") for s in ("", "l", "r", "m")}
SAME = {
    r"\leq": r"\le", r"\geq": r"\ge", r"\neq": r"\ne", r"\rightarrow": r"\to", r"\gets": r"\leftarrow", r"\land": r"\wedge",
    r"\lor": r"\vee", r"\lnot": r"\neg", r"\iff": r"\Longleftrightarrow", r"\implies": r"\Longrightarrow", r"\colon": ":",
    r"\lbrace": r"\{", r"\rbrace": r"\}", r"\|": r"\Vert", r"\lVert": r"\Vert", r"\rVert": r"\Vert", r"\lvert": "|", r"\rvert": "|",
    r"\dots": r"\ldots", r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\stackrel": r"\overset", r"\ast": "*",
    r"\varprojlim": r"\projlim", r"\varinjlim": r"\injlim", r"\varnothing": r"\emptyset",
}  # fmt: skip
ARGUMENTS = {r"\frac": 2, r"\binom": 2, r"\overset": 2, r"\underset": 2, r"\sideset": 2}
_ONE = (
    r"\sqrt \hat \widehat \bar \overline \vec \overrightarrow \overleftarrow \overleftrightarrow \dot \ddot \dddot \tilde "
    r"\widetilde \acute \grave \breve \check \mathring \underline \overbrace \underbrace \overparen \overbracket \boxed \cancel "
    r"\xcancel \bcancel \pmod \substack \xrightarrow \xleftarrow \phantom"
)
ARGUMENTS |= dict.fromkeys(_ONE.split(), 1)
_FONTS = r"\mathbb \mathcal \mathfrak \mathbf \mathrm \mathsf \mathtt \mathit \boldsymbol"
FONTS = set(_FONTS.split())
INFIX = {r"\atop", r"\brace", r"\brack", r"\choose"}
BRACKETS = {"pmatrix": "()", "bmatrix": "[]", "Bmatrix": (r"\{", r"\}"), "vmatrix": "||", "Vmatrix": (r"\Vert", r"\Vert")}


class Parser:
    def __init__(self, tex: str) -> None:
        self.texts: list[str] = []
        tex = re.sub(r"(\\text(?:bf|it|tt)?|\\operatorname\*?)\s*\{([^{}]*)\}", self._keep, tex)
        self.tokens = [t for t in TOKEN.findall(tex) if t not in SKIP and t not in SIZES]
        self.at = 0

    def _keep(self, found: re.Match[str]) -> str:
        """Text is one token; `\\operatorname{sin}` is `\\sin`."""
        if found.group(1).startswith(r"\operatorname"):
            return "\\" + found.group(2) + " "
        self.texts.append(found.group(1) + " ".join(found.group(2).split()))
        return chr(0xE000 + len(self.texts))

    def row(self, ends: tuple[str, ...] = ()) -> tuple[Any, ...]:
        items: list[Any] = []
        while self.at < len(self.tokens) and self.tokens[self.at] not in ends:
            token = self.tokens[self.at]
            if token in INFIX:
                self.at += 1
                return ((token, tuple(items), self.row(ends)),)
            if token in "_^'":
                items.append(self._scripted(items.pop() if items else ("empty",)))
            else:
                items += self.item()
        return tuple(items)

    def _scripted(self, base: Any) -> Any:
        sub: tuple[Any, ...] = ()
        sup: tuple[Any, ...] = ()
        while self.at < len(self.tokens) and self.tokens[self.at] in "_^'":
            mark = self.tokens[self.at]
            self.at += 1
            if mark == "'":
                sup += ((r"\prime",),)
            elif mark == "_":
                sub += self.argument()
            else:
                sup += self.argument()
        return ("script", base, sub, sup)

    def argument(self) -> tuple[Any, ...]:
        if self.at < len(self.tokens) and self.tokens[self.at] == "{":
            self.at += 1
            inner = self.row(("}",))
            self.at += 1
            return inner
        return tuple(self.item())

    def item(self) -> list[Any]:
        token = SAME.get(self.tokens[self.at], self.tokens[self.at])
        self.at += 1
        if token == "{":
            self.at -= 1
            inner = self.argument()
            scripted = self.at < len(self.tokens) and self.tokens[self.at] in "_^'"
            return [("group", inner)] if scripted and len(inner) > 1 else list(inner) or ([("empty",)] if scripted else [])
        if token == ".":
            return []  # \left. and \right.; the decimal point goes on both sides alike
        if token in FONTS:
            inner = self.argument()
            if token == r"\mathit" or (token == r"\mathrm" and len(inner) == 1):
                return list(inner)  # a single letter in roman is what the oracle cannot say
            return [(token, i) for i in inner]
        if token in ARGUMENTS:
            option: tuple[Any, ...] = ()
            if self.at < len(self.tokens) and self.tokens[self.at] == "[" and token in (r"\sqrt", r"\xleftarrow", r"\xrightarrow"):
                self.at += 1
                option = self.row(("]",))
                self.at += 1
            inner = tuple(self.argument() for _ in range(ARGUMENTS[token]))
            return self._special(token, option, inner)
        if token.startswith(r"\begin"):
            return self._environment(token)
        if 0xE000 < ord(token[0]) < 0xF000:
            return [("text", self.texts[ord(token[0]) - 0xE001])]
        return [(token,)]

    def _special(self, token: str, option: tuple[Any, ...], inner: tuple[Any, ...]) -> list[Any]:
        if token == r"\phantom":
            return []
        if token == r"\widehat" and len(inner[0]) == 1:
            token = r"\hat"
        if token == r"\overset" and inner[1] == ((r"\to",),):
            token, inner = r"\xrightarrow", inner[:1]
        return [(token, option, inner)]

    def _environment(self, token: str) -> list[Any]:
        name = token[7:-1]
        if name == "array":
            self.argument()
        rows: list[list[Any]] = [[]]
        while True:
            rows[-1].append(self.row(("&", r"\\", token.replace("begin", "end"))))
            mark = self.tokens[self.at]
            self.at += 1
            if mark == r"\\":
                rows.append([])
            elif mark != "&":
                break
        kind = "matrix" if name in (*BRACKETS, "array", "smallmatrix") else "aligned" if name in ("align*", "split") else name
        left, right = BRACKETS.get(name, ("", ""))
        core: list[Any] = [(kind, tuple(map(tuple, rows)))]
        return [(left,), *core, (right,)] if left else core


def parse(tex: str) -> tuple[Any, ...]:
    return Parser(tex).row()


# ── the round trip ────────────────────────────────────────────────────────────────────────────────────────────────


def mathml_tree(tex: str) -> Any:
    """The oracle's MathML without wrappers, spaces, empty elements and attributes that only size or place."""
    convert_to_element = pytest.importorskip("latex2mathml.converter").convert_to_element
    tex = re.sub(r"(\\(?:begin|end))\{(?:aligned|split)\}", r"\1{align*}", tex)

    def walk(node: Any) -> Iterator[Any]:
        kids = [k for c in node for k in walk(c)]
        text = entities.unescape(node.text or "").strip()
        if node.tag in ("mrow", "mstyle", "math", "mpadded"):
            yield from kids
        elif node.tag == "mtd":
            yield ("mtd", tuple(kids))
        elif kids or text:
            keep = tuple(sorted((k, v) for k, v in node.attrib.items() if k in ("mathvariant", "linethickness", "notation")))
            tag = {"munder": "msub", "mover": "msup", "munderover": "msubsup", "mi": "m", "mo": "m"}.get(node.tag, node.tag)
            yield (tag, keep, text, tuple(kids))

    return tuple(walk(convert_to_element(tex)))


def back(tex: str) -> str:
    """TeX → the oracle's MathML → our TeX."""
    convert = pytest.importorskip("latex2mathml.converter").convert
    node = LexborHTMLParser(convert(tex)).css_first("math")
    assert node is not None and node.css_first("annotation") is None
    return to_tex(node)[0]


def test_the_round_trip_says_the_same() -> None:
    wrong = [(tex, ours) for tex in FORMULAS if parse(tex) != parse(ours := back(tex))]
    assert len(FORMULAS) >= 300 and len(set(FORMULAS)) == len(FORMULAS)
    assert len(wrong) <= 0.02 * len(FORMULAS), wrong


def test_the_oracle_reads_our_tex_as_it_reads_the_original() -> None:
    wrong = [(tex, ours) for tex in FORMULAS if mathml_tree(tex) != mathml_tree(ours := back(tex))]
    assert len(wrong) <= 0.02 * len(FORMULAS), wrong


def test_white_space_between_elements_changes_nothing() -> None:
    convert = pytest.importorskip("latex2mathml.converter").convert
    for tex in FORMULAS:
        assert of(convert(tex).replace("><", ">\n  <")) == back(tex)


# ── MathML written by hand ────────────────────────────────────────────────────────────────────────────────────────


def of(mathml: str) -> str:
    node = LexborHTMLParser(mathml).css_first("math")
    assert node is not None
    return to_tex(node)[0]


def row(*cells: str) -> str:
    return "<mtr>" + "".join(f"<mtd>{c}</mtd>" for c in cells) + "</mtr>"


@pytest.mark.parametrize(
    ("mathml", "tex"),
    [
        ('<munderover><mo movablelimits="true">⋆</mo><mi>i</mi><mi>n</mi></munderover>', r"\star_i^n"),
        ("<munderover><mo>∫</mo><mn>0</mn><mn>1</mn></munderover>", r"\int\limits_0^1"),
        ("<munder><mi>lim</mi><mrow><mi>x</mi><mo>→</mo><mn>0</mn></mrow></munder><mi>f</mi>", r"\lim_{x\to 0}f"),
        ("<munder><mi>rank</mi><mi>x</mi></munder>", r"\operatorname*{rank}_x"),
        ("<munder><mo>=</mo><mi>x</mi></munder><mover><mo>→</mo><mi>f</mi></mover>", r"\underset{x}{=}\xrightarrow{f}"),
        ('<mfenced open="[" close=")" separators=",;"><mi>a</mi><mi>b</mi><mi>c</mi><mi>d</mi></mfenced>', "[a,b;c;d)"),
        ("<mfenced><mfrac><mi>a</mi><mi>b</mi></mfrac></mfenced>", r"\left(\frac{a}{b}\right)"),
        ('<mfenced separators=""><mi>a</mi><mi>b</mi></mfenced>', "(ab)"),
        (f'<mfenced open="|" close="|"><mtable>{row("<mi>a</mi>")}</mtable></mfenced>', r"\begin{vmatrix} a \end{vmatrix}"),
        (f'<mfenced open="{{" close=""><mtable>{row("<mn>1</mn>") * 2}</mtable></mfenced>', r"\begin{cases} 1 \\ 1 \end{cases}"),
        ("<mmultiscripts><mi>X</mi><mi>a</mi><mi>b</mi><mprescripts/><mi>c</mi><none/></mmultiscripts>", "{}_c X_a^b"),
        ("<mmultiscripts><mi>R</mi><mi>i</mi><none/><none/><mi>j</mi></mmultiscripts>", "R_i{}^j"),
        (f'<mtable columnalign="left right">{row("<mi>a</mi>", "<mi>b</mi>")}</mtable>', r"\begin{array}{lr} a & b \end{array}"),
        (
            f'<mtable displaystyle="true" columnalign="right left">{row("<mi>a</mi>", "<mo>=</mo><mi>b</mi>")}</mtable>',
            r"\begin{aligned} a & =b \end{aligned}",
        ),
        (f"<mo>(</mo><mtable>{row('<mn>1</mn>', '<mn>2</mn>')}</mtable><mo>)</mo><mi>x</mi>", r"\begin{pmatrix} 1 & 2 \end{pmatrix}x"),
        ("<mtable><mlabeledtr><mtd><mtext>(1)</mtext></mtd><mtd><mi>x</mi></mtd></mlabeledtr></mtable>", "x"),
        ('<menclose notation="updiagonalstrike"><mi>x</mi></menclose>', r"\cancel{x}"),
        ('<menclose notation="box"><mi>y</mi></menclose>', r"\boxed{y}"),
        ('<menclose notation="radical"><mi>x</mi></menclose><menclose notation="odd"><mi>y</mi></menclose>', r"\sqrt{x}y"),
        ("<mi>a</mi><mphantom><mi>x</mi></mphantom><mi>b</mi>", "ab"),
        ('<mstyle displaystyle="true"><mfrac><mi>a</mi><mi>b</mi></mfrac></mstyle>', r"\frac{a}{b}"),
        ("<mn>2</mn><mo>&InvisibleTimes;</mo><mi>x</mi><mo>&le;</mo><mi>f</mi><mo>&ApplyFunction;</mo><mo>(</mo><mo>)</mo>", r"2x\le f()"),
        ("<mi>rank</mi><mo>&ApplyFunction;</mo><mi>A</mi><mi>speed</mi>", r"\operatorname{rank}A\mathrm{speed}"),
        ('<mi mathvariant="normal">d</mi><mi mathvariant="bold">x</mi><mi>ℝ</mi><mi>𝓛</mi><mi>𝔤</mi><mi>𝑒</mi><mi>𝜛</mi>',
         r"\mathrm{d}\mathbf{x}\mathbb{R}\boldsymbol{\mathcal{L}}\mathfrak{g}e\varpi"),
        ("<mi>a</mi><mo>=&#x338;</mo><mi>b</mi>", r"a\not=b"),
        ("<mtext>cost $5 &amp; 10%</mtext>", r"\text{cost \$5 \& 10\%}"),
        ("<mtext>if&nbsp;</mtext><mi>x</mi>", r"\text{if }x"),
        ('<mfrac linethickness="0"><mi>a</mi><mi>b</mi></mfrac>', r"{a \atop b}"),
        ('<mfrac bevelled="true"><mi>a</mi><mi>b</mi></mfrac>', "a/b"),
        ("<msup><mi>f</mi><mo>′</mo></msup><mo>(</mo><mi>x</mi><mo>)</mo><mi>g</mi><mo>′</mo>", "f'(x)g'"),
        ("<msup><mrow><mo>(</mo><mi>a</mi><mo>+</mo><mi>b</mi><mo>)</mo></mrow><mn>2</mn></msup>", "{(a+b)}^2"),
        ("<msup><mi>x</mi><mn>2</mn></msup><mi>y</mi>", "x^2 y"),
        ('<mrow><mo minsize="2.047em" maxsize="2.047em">(</mo></mrow><mfrac linethickness="0"><mi>n</mi><mi>k</mi></mfrac>'
         '<mrow><mo minsize="2.047em" maxsize="2.047em">)</mo></mrow>', r"\binom{n}{k}"),
        (f'<mrow><mo>{{</mo><mtable columnalign="left left">{row("<mn>1</mn>", "<mtext>if&nbsp;</mtext><mi>x</mi>")}</mtable>'
         '<mo fence="true" stretchy="true"></mo></mrow>', r"\begin{cases} 1 & \text{if }x \end{cases}"),
        ("<msup><mi>x</mi><mrow><msup><mi></mi><mo>′</mo></msup></mrow></msup>", "x'"),
        ("<munder><mi>lim</mi><mo>→</mo></munder><mover><mo>∑</mo><mo>―</mo></mover>", r"\varinjlim \overline{\sum}"),
        (f"<msub><mo>∑</mo><mtable>{row('<mi>a</mi>')}{row('<mi>b</mi>')}</mtable></msub>", r"\sum_{\substack{a \\ b}}"),
        ('<mi mathvariant="normal">$</mi><mi>a</mi><mo>⟨</mo><mfrac><mi>x</mi><mi>y</mi></mfrac><mo>|</mo>',
         r"\$a\left\langle \frac{x}{y}\right|"),
        ("<munder><munder><mi>a</mi><mo>⏟</mo></munder><mtext>n terms</mtext></munder>", r"\underbrace{a}_{\text{n terms}}"),
        ("<mover><mi>x</mi><mo>¯</mo></mover><mover><mrow><mi>x</mi><mi>y</mi></mrow><mo>¯</mo></mover>", r"\bar{x}\overline{xy}"),
        ("<mfrac><mi>a</mi></mfrac><msup><mi>x</mi></msup><munder></munder>x + y", r"\frac{a}{}xx + y"),
    ],
)  # fmt: skip
def test_presentation_markup(mathml: str, tex: str) -> None:
    assert of(f"<math>{mathml}</math>") == tex
    assert of(f"<math><mrow><mstyle>{mathml}</mstyle></mrow></math>") == tex


@pytest.mark.parametrize(
    ("content", "tex"),
    [
        ("<apply><eq/><apply><plus/><apply><power/><ci>a</ci><cn>2</cn></apply><ci>b</ci></apply><cn>0</cn></apply>", "a^{2}+b=0"),
        ("<apply><times/><apply><plus/><ci>a</ci><ci>b</ci></apply><ci>c</ci></apply>", r"(a+b)\,c"),
        ("<apply><minus/><ci>a</ci><apply><minus/><ci>b</ci><ci>c</ci></apply></apply>", "a-(b-c)"),
        ("<apply><minus/><apply><minus/><ci>a</ci><ci>b</ci></apply><ci>c</ci></apply>", "a-b-c"),
        ("<apply><minus/><ci>x</ci></apply>", "-x"),
        ("<apply><divide/><cn>1</cn><apply><root/><degree><cn>3</cn></degree><ci>x</ci></apply></apply>", r"\frac{1}{\sqrt[3]{x}}"),
        ("<apply><int/><bvar><ci>x</ci></bvar><lowlimit><cn>0</cn></lowlimit><uplimit><infinity/></uplimit><ci>x</ci></apply>",
         r"\int_{0}^{\infty} x\,dx"),
        ("<apply><sum/><bvar><ci>i</ci></bvar><lowlimit><cn>1</cn></lowlimit><uplimit><ci>n</ci></uplimit><ci>i</ci></apply>",
         r"\sum_{i=1}^{n} i"),
        ("<apply><diff/><bvar><ci>x</ci><degree><cn>2</cn></degree></bvar><apply><sin/><ci>x</ci></apply></apply>",
         r"\frac{d^{2} \sin x}{dx^{2}}"),
        ("<piecewise><piece><cn>1</cn><apply><gt/><ci>x</ci><cn>0</cn></apply></piece><otherwise><cn>0</cn></otherwise></piecewise>",
         r"\begin{cases} 1 & x>0 \\ 0 & \text{otherwise} \end{cases}"),
        ('<cn type="rational">1<sep/>2</cn>', r"\frac{1}{2}"),
        ('<cn type="e-notation">1.5<sep/>3</cn>', r"1.5 \times 10^{3}"),
        ("<apply><in/><ci>x</ci><reals/></apply>", r"x \in \mathbb{R}"),
        ("<apply><ci>f</ci><ci>x</ci><ci>y</ci></apply>", "f(x,y)"),
        ("<matrix><matrixrow><cn>1</cn><cn>2</cn></matrixrow></matrix>", r"\begin{pmatrix} 1 & 2 \end{pmatrix}"),
        ("<apply><unheard/><ci>x</ci></apply>", r"\operatorname{unheard}(x)"),
        ('<interval closure="open"><cn>0</cn><cn>1</cn></interval>', "(0,1)"),
    ],
)  # fmt: skip
def test_content_markup(content: str, tex: str) -> None:
    assert of(f"<math>{content}</math>") == tex


def test_the_order_of_trust() -> None:
    shown = "<mi>z</mi>"
    note = '<annotation encoding="application/x-tex">\\xi</annotation>'
    other = '<annotation encoding="text/plain">no</annotation><annotation-xml encoding="MathML-Content"><ci>no</ci></annotation-xml>'
    assert of(f'<math alttext="\\eta"><semantics>{shown}{other}{note}</semantics></math>') == r"\xi"
    assert of(f'<math alttext="\\eta"><semantics>{shown}{other}</semantics></math>') == r"\eta"
    assert of(f"<math><semantics>{shown}{other}</semantics></math>") == "z"
    assert of(f'<math alttext="\\eta" data-latex="\\tau"><semantics>{shown}{other}</semantics></math>') == r"\tau"
    assert of(f'<math alttext="the letter zed"><semantics>{shown}</semantics></math>') == "z"
    assert of('<math alttext="x squared"></math>') == "x squared"
    assert of(f"<math><mi>a</mi><mo>+</mo><semantics>{shown}{note}</semantics></math>") == r"a+{\xi}"  # of a part, not of the whole


@pytest.mark.parametrize(
    ("tex", "cleaned"),
    [
        (r"\(x\)", "x"),
        ("$$ x $$", "x"),
        (r"{\displaystyle a}+{b}", r"{\displaystyle a}+{b}"),
        (r"{\displaystyle {a}}", "{a}"),
        (r"\displaystyle x", "x"),
        (r"\displaystyles", r"\displaystyles"),
        ("a % why\n  + b", "a + b"),
        (r"10\% of x", r"10\% of x"),
        ("a\\ ", "a\\ "),
        ("", ""),
    ],
)
def test_cleaning_takes_only_what_is_around(tex: str, cleaned: str) -> None:
    assert clean(tex) == cleaned


# ── where formulas stand in pages ─────────────────────────────────────────────────────────────────────────────────

SAMPLE = [
    r"x^2",
    r"a_1 < b \le c",
    r"\frac{a}{b}",
    r"\sqrt[3]{x+1}",
    r"\sum_{i=1}^{n} a_i  \, b_i",
    r"\begin{pmatrix} a & b \\ c & d \end{pmatrix}",
    r"\left\{ x \in \mathbb{R} \mid x > 0 \right\}",
    r"|x| \cdot \|y\|",
    r"\text{if } x \neq 0",
    r"f'(x) \approx \$5 \times 10\%",
    r"a*b*c ~ [1](2) `x` #",
    r"\alpha",
]


def page(body: str, head: str = "") -> str:
    return f"<html><head>{head}</head><body><p>{'Words before all of it. ' * 20}</p>{body}</body></html>"


MATHJAX = '<script src="https://example.org/MathJax.js"></script>'


def annotated(tex: str, display: str) -> str:
    note = f'<annotation encoding="application/x-tex">{tex}</annotation>'
    return f'<math display="{display}"><semantics><mi>q</mi>{note}</semantics></math>'


def alttext(tex: str, display: str) -> str:
    return f'<math display="{display}" alttext="{tex}"><mi>q</mi></math>'


def image_alt(tex: str, display: str) -> str:
    return '<img class="tex" src="q.png" alt="%s">' % (rf"\[{tex}\]" if display == "block" else tex)


def image_data(tex: str, display: str) -> str:
    return '<img src="q.png" alt="equation" data-latex="%s">' % (f"$${tex}$$" if display == "block" else tex)


def mathjax_2(tex: str, display: str) -> str:
    drawn = '<span class="MathJax_Preview">q</span><span class="MathJax"><span class="math">qq</span></span>'
    return f"{drawn}<script type='math/tex{'; mode=display' if display == 'block' else ''}'>{entities.unescape(tex)}</script>"


def mathjax_3(tex: str, display: str) -> str:
    drawn = f"<mjx-math><mjx-mi>q</mjx-mi></mjx-math><mjx-assistive-mml>{alttext(tex, display)}</mjx-assistive-mml>"
    return f'<mjx-container class="MathJax" jax="CHTML" display="{str(display == "block").lower()}">{drawn}</mjx-container>'


def katex(tex: str, display: str) -> str:
    mathml = f'<span class="katex-mathml">{annotated(tex, "inline")}</span><span class="katex-html" aria-hidden="true">q</span>'
    return f'<span class="{"katex-display" if display == "block" else "q"}"><span class="katex">{mathml}</span></span>'


def delimiters(tex: str, display: str) -> str:
    return rf"\[{tex}\]" if display == "block" else rf"\({tex}\)"


def class_math(tex: str, display: str) -> str:
    tag = "div" if display == "block" else "span"
    return f'<{tag} class="math">{delimiters(tex, display)}</{tag}>'


def wikipedia(tex: str, display: str) -> str:
    wrapped = f"{{\\displaystyle {tex}}}"
    name = "mwe-math-mathml-display" if display == "block" else "mwe-math-mathml-inline"
    shown = f'<span class="{name}" style="display: none;">{alttext(wrapped, "inline")}</span>'
    return f'<span class="mwe-math-element">{shown}<img class="mwe-math-fallback-image-inline" alt="{wrapped}"></span>'


def data_tex(tex: str, display: str) -> str:
    tag = "div" if display == "block" else "span"
    return f'<{tag} data-tex="{tex}">q</{tag}>'


SOURCES = (
    *((f, "") for f in (annotated, alttext, image_alt, image_data, katex, class_math, wikipedia, data_tex)),
    *((f, MATHJAX) for f in (mathjax_2, mathjax_3, delimiters)),
)


@pytest.mark.parametrize(("source", "head"), SOURCES)
@pytest.mark.parametrize("display", ["inline", "block"])
def test_every_source_gives_each_formula_once_and_unchanged(source: Callable[[str, str], str], head: str, display: str) -> None:
    for tex in SAMPLE:
        found = extract(page(f"<p>see {source(entities.escape(tex), display)} here</p>", head))
        wanted = f"see\n\n$$\n{tex}\n$$\n\nhere" if display == "block" else f"see ${tex}$ here"
        assert found.text.endswith("\n\n" + wanted), (tex, found.text[-200:])
        assert found.formulas == 1
        assert (MATH in [kind for _, _, kind in found.spans]) == (display == "block")


def test_bare_mathml_in_a_page() -> None:
    """Without an annotation the translation counts: the oracle's MathML, also behind a namespace prefix and in KaTeX."""
    convert = pytest.importorskip("latex2mathml.converter").convert
    for tex in FORMULAS[:40]:
        mathml = convert(tex)
        prefixed = re.sub(r"<(/?)", r"<\1m:", mathml)
        katex = f'<span class="katex"><span class="katex-mathml">{mathml}</span><span class="katex-html">q</span></span>'
        for form in (
            mathml,
            prefixed,
            katex,
            f"<script type='math/mml'>{mathml}</script>",
            f'<span class="MathJax" data-mathml="{entities.escape(mathml)}"></span>',
        ):
            assert extract(page(f"<p>see {form} here</p>")).text.endswith(f"see ${back(tex)}$ here")


def test_environments_and_dollars_in_text() -> None:
    def text(body: str, head: str) -> str:
        return extract(page(f"<p>{body}</p>", head)).text.partition("\n\n")[2]

    equation = "so\n\\begin{equation}\n a % note\n  + b\n\\end{equation}\nas"
    assert text(equation, MATHJAX) == "so\n\n$$\na + b\n$$\n\nas"
    align = "\\begin{align}\n a &amp;= b \\\\[2pt]\n   &amp;= c\n\\end{align}"
    assert text(align, MATHJAX) == "$$\n" + entities.unescape(align) + "\n$$"
    assert text(align, "") == "\\begin{align} a &= b \\\\[2pt] &= c \\end{align}"
    dollars = MATHJAX + "<script>MathJax = {tex: {inlineMath: [['$', '$']]}}</script>"
    for body, count in (
        ("let $x  +  1$ be", 1),
        ("costs $5 and $10 more", 0),
        ("$a$ and $b$", 2),
        ("US$ 5 or $7 (AU$ 8)", 0),
        (r"\$5 and \$6", 0),
    ):
        found = extract(page(f"<p>{body}</p>", dollars))
        assert found.text.endswith(body) or count == 0
        assert found.formulas == count, body
    assert text("costs $$ and $$$", dollars) == "costs $$ and $$$"
    assert text("a&#4;b&#3;c \\(x  y\\)", MATHJAX) == "ab c $x  y$"
    assert extract(page(r"<h2>On \[x\]</h2><p>text</p>", MATHJAX)).text.endswith("## On $$ x $$\n\ntext")


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ('<img src="https://s0.wp.com/latex.php?latex=x%5E2%2B1&amp;bg=ffffff" alt="">', "$x^2+1$"),
        ('<img src="https://latex.codecogs.com/svg.image?\\frac{a}{b}">', r"$\frac{a}{b}$"),
        ('<img src="//www.zhihu.com/equation?tex=a_1%3Db" alt="a_1=b" eeimg="1">', "$a_1=b$"),
        ('<img class="equation" src="eq1.png" alt="eq1.png">', ""),
        ('<img class="math-icon" src="m.png" alt="Picture of several students">', ""),
        ('<img alt="$a$ and $b$">', ""),
        ('<img class="tex" title="\\beta">', r"$\beta$"),
    ],
)
def test_images(image: str, text: str) -> None:
    assert extract(page(f"<p>see {image} here</p>")).text.endswith(f"see {text} here" if text else "see here")


def test_katex_without_mathml_and_mathjax_glyphs() -> None:
    """Where only the drawing is left, its boxes are read: x^2 with a fraction, as KaTeX 0.16 writes them."""
    x, two, a, b = (f'<span class="mord">{c}</span>' for c in "x2ab")

    def stacked(name: str, *rows: str) -> str:
        boxes = "".join(f'<span><span class="pstrut"></span>{r}</span>' for r in rows)
        table = f'<span class="vlist-r"><span class="vlist">{boxes}</span><span class="vlist-s">\u200b</span></span>'
        return f'<span class="{name}"><span class="vlist-t {"vlist-t2" if len(rows) > 1 else ""}">{table}</span></span>'

    power = f'<span class="mord">{x}{stacked("msupsub", two)}</span>'
    fraction = stacked("mfrac", b, '<span class="frac-line"></span>', a)
    html = f'<span class="katex"><span class="katex-html">{power}<span class="mbin">+</span>{fraction}</span></span>'
    assert extract(page(f"<p>see {html} here</p>")).text.endswith(r"see $x^{2}+\frac{a}{b}$ here")
    glyphs = '<mjx-container class="MathJax"><mjx-math><mjx-mi><mjx-c class="mjx-c1D6FC TEX-I"></mjx-c></mjx-mi></mjx-math></mjx-container>'
    assert extract(page(f"<p>see {glyphs} here</p>")).text.endswith(r"see $\alpha$ here")


def test_pipes_in_cells_of_tables() -> None:
    html = r'<table><tr><th>a<th>b|c<tr><td><span class="math">\(|x| = \|y\|\)</span><td>$5 | $6</table>'
    assert r"| $\vert x\vert  = \Vert y\Vert $ | $5 \| $6 |" in extract(page(html)).text


LEAVES = ["<mi>x</mi>", "<mo>(</mo>", "<mo>|</mo>", "<mo></mo>", "<mn>1</mn>", "t", "<mprescripts/>", "<none/>", "<mspace/>", "<mi>𝔸</mi>"]
NODES = (
    "mrow mfrac msqrt mroot msup msub msubsup munder mover munderover mmultiscripts mtable mtr mtd mfenced menclose mstyle semantics "
    "apply piecewise interval matrix bvar cn mtext maction"
)


@settings(deadline=None, max_examples=100)
@given(
    st.recursive(
        st.sampled_from([*LEAVES, "<mo>\u0338</mo>"]),
        lambda kids: st.tuples(st.sampled_from(NODES.split()), st.lists(kids, max_size=5)).map(
            lambda n: f"<{n[0]}>{''.join(n[1])}</{n[0]}>"
        ),
        max_leaves=30,
    )
)
def test_no_tree_is_too_odd(mathml: str) -> None:
    tex = of(f"<math>{mathml}</math>")
    depth = 0
    for mark in re.findall(r"\\.|[{}]", tex):
        depth += (mark == "{") - (mark == "}")
        assert depth >= 0
    assert depth == 0  # braces of the TeX are balanced whatever the markup


def test_size_and_depth_are_bounded() -> None:
    start = time.process_time()
    assert len(of("<math>" + "<mo>(</mo><mfrac><mi>a</mi><mi>b</mi></mfrac>" * 3000 + "</math>")) > 3000
    assert of("<math>" + "<msup><mi>x</mi>" * 3000 + "</math>").startswith("x^")
    for body in (r"\(" * 20_000, "$" * 20_000, r"\begin{align}" * 2000, "$a" * 20_000, r"\[" * 20_000, r"\\" * 20_000):
        extract(page(f"<p>{body}</p>", MATHJAX + "<script>inlineMath: [['$','$']]</script>"))
    assert time.process_time() - start < 5
