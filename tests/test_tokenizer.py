"""The tokenizer: the normal form by hand and on random trees, bad input, the vocabulary, and the measured figures on
real data."""
import csv
import html
import json
import os
import pickle
import random
import re
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from formula_gan import characters, parser, symbols
from formula_gan.core import FormulaGanError
from formula_gan.corpora import read_wikipedia
from formula_gan.symbols import CROHME_SYMBOLS, END, PAD, START, UnknownSymbolError, Vocab
from formula_gan.tokenizer import TokenizeError, normalize, tokenize

CASES = {
    # scripts, arguments, braces
    r"x^2": r"x ^ { 2 }",
    r"x^{10}_i": r"x _ { i } ^ { 1 0 }",
    r"x^10": r"x ^ { 1 } 0",
    r"{ u } _ { \theta }": r"u _ { \theta }",
    r"{ \mbox { af } } _ { \mbox { Y } }": r"a f _ { Y }",
    r"\frac12": r"\frac { 1 } { 2 }",
    r"\frac \alpha {b}": r"\frac { \alpha } { b }",
    r"x^\frac12": r"x ^ { \frac { 1 } { 2 } }",
    r"\sqrt[n]2": r"\sqrt [ n ] { 2 }",
    r"\sqrt[{[a]}]{x}": r"\sqrt [ { [ a ] } ] { x }",
    r"{{{x}}}": r"x",
    r"{x_1}^2": r"x _ { 1 } ^ { 2 }",
    r"{x^2}^3": r"{ x ^ { 2 } } ^ { 3 }",
    r"{\sum}^2": r"{ \sum } ^ { 2 }",
    r"{\sum_i}^2": r"{ \sum _ { i } } ^ { 2 }",
    r"{\frac{a}{b} x}^2": r"{ \frac { a } { b } x } ^ { 2 }",
    r"{(\frac{a}{b})}^2": r"( \frac { a } { b } ) ^ { 2 }",
    r"{\frac{a}{b}}^2": r"\frac { a } { b } ^ { 2 }",
    r"{}_n C_r": r"{ } _ { n } C _ { r }",
    r"x{}_2": r"x { } _ { 2 }",
    r"x_{}^{}": r"x",
    r"\hat\mathbf x": r"\hat { x }",
    # primes
    r"f'": r"f ^ { \prime }",
    r"f''_n^2": None,
    r"f''^2_n": r"f _ { n } ^ { \prime \prime 2 }",
    r"f^{'}": r"f ^ { \prime }",
    r"f^'": r"f ^ { \prime }",
    r"f^{'2}": r"f ^ { \prime 2 }",
    r"x\prime": r"x \prime",
    # dropped
    r"$\left. \left( \frac{1}{2}\,\right) \right|_0$": r"( \frac { 1 } { 2 } ) | _ { 0 }",
    r"\left<x\right>": r"\langle x \rangle",
    r"\bigl\{x\Bigr]": r"\{ x ]",
    r"\displaystyle\sum\limits_{i=1}^n\nolimits": r"\sum _ { i = 1 } ^ { n }",
    r"a~b\ c\quad d\!\;\hspace{1em}\kern-3pt e\phantom{x}": r"a b c d e",
    r"{\color{red}x}\textcolor{blue}{y}\label{eq:1_a}": r"x y",
    r"\dfrac{\tfrac12}{\cfrac[l]{1}{2}}": r"\frac { \frac { 1 } { 2 } } { \frac { 1 } { 2 } }",
    r"x\\ y": r"x y",
    "a % note\n+ b": r"a + b",
    r"50%": r"5 0",
    r"50\%": r"5 0 \%",
    "x^2 % trailing comment": r"x ^ { 2 }",
    "a %\\frac{\n+ b % c": r"a + b",
    r"\text{50\%}\\% \% note": r"5 0 \%",
    r"-$50": r"- \$ 5 0",
    r"x\\"[:-1]: r"x",
    # synonyms, and names that only begin like one
    r"a\le b\ge c\ne d\to e\lt f\gt g": r"a \leq b \geq c \neq d \rightarrow e < f > g",
    r"\top\ltimes\gtrsim\leqslant\neg\topx"[:-5]: r"\top \ltimes \gtrsim \leqslant \neg",
    r"\lbrace\lvert x\rvert\rbrace\lbrack y\rbrack \Vert \mid": r"\{ | x | \} [ y ] \| |",
    r"\not=\not\in\not\sim\not{<}": r"\neq \notin \not \sim \not <",
    r"x_1,\dots,x_n": r"x _ { 1 } , \ldots , x _ { n }",
    r"x_1+\dots+x_n": r"x _ { 1 } + \cdots + x _ { n }",
    r"\Reals\and\lang\rang\O\part\Alpha": r"\mathbb{R} \wedge \langle \rangle \emptyset \partial A",
    r"90°≤α²": r"9 0 ^ { \circ } \leq \alpha ^ { 2 }",
    # infix
    r"a+b \over c": r"\frac { a + b } { c }",
    r"x{n \choose k}": r"x \binom { n } { k }",
    r"{a \atop b}": r"{ a \atop b }",
    r"\left[{n\atop k}\right]": r"[ { n \atop k } ]",
    # fonts and text
    r"\mathrm{tgh}": r"t g h",
    r"\mathbb{RP}^n {\cal L}\Bbb R \mathfrak g\mathscr{F}":
        r"\mathbb{R} \mathbb{P} ^ { n } \mathcal{L} \mathbb{R} \mathfrak{g} \mathscr{F}",
    r"\mathcal{\mathbf{A}}\boldsymbol{\mathcal{A}}\mathbb{1}": r"A \mathcal{A} 1",
    r"{\rm d}x\text{ if } y": r"d x i f y",
    r"\text{$a_1$ or b_2}": r"a _ { 1 } o r b \_ 2",
    r"\operatorname{sin}\operatorname{Ric}x": r"\sin R i c x",
    r"\operatorname*{argmax}_x f": r"\underset { x } { a r g m a x } f",
    r"\mathop{\rm lim}_{x} \mathop{A}_a^b": r"\lim _ { x } \overset { b } { \underset { a } { A } }",
    r"a\pmod{p}": r"a ( \bmod p )",
    # environments
    r"\begin{align*}a&=b\\[8pt] c&=d\\\end{align*}": r"\begin{aligned} a & = b \\ c & = d \end{aligned}",
    r"\begin{align}a&=b\end{align}": r"a = b",
    r"\begin{array}{l@{\quad}r|c} 1&2&3 \\ \hline 4&&5\end{array}":
        r"\begin{array} { l r | c } 1 & 2 & 3 \\ \hline 4 & & 5 \end{array}",
    r"\begin{smallmatrix}a\\ {[}b]\end{smallmatrix}": r"\begin{matrix} a \\ { } [ b ] \end{matrix}",
    r"\pmatrix{a & b \cr c & d}": r"\begin{pmatrix} a & b \\ c & d \end{pmatrix}",
    r"\begin{cases} 1 & \text{if }x\\ 0 \end{cases}": r"\begin{cases} 1 & i f x \\ 0 \end{cases}",
    r"\sum_{\substack{i\\j}}": r"\sum _ { \substack { i \\ j } }",
    # other commands
    r"\overset{a}{b}\stackrel{a}{=}\underbrace{x}_n\xrightarrow[a]{b}":
        r"\overset { a } { b } \overset { a } { = } \underbrace { x } _ { n } \xrightarrow [ a ] { b }",
    r"\root 3 \of x": r"\sqrt [ 3 ] { x }",
    r"\genfrac{[}{]}{0pt}{}{n}{k}\genfrac(){0pt}1{n}{k}\genfrac{}{}{}{}{a}{b}":
        r"[ { n \atop k } ] \binom { n } { k } \frac { a } { b }",
    r"\prescript{14}{2}{C}\smash[b]{y}\rule{0pt}{3ex}": r"{ } _ { 2 } ^ { 1 4 } C y",
    r"\text{10 m$^2$}": r"1 0 m ^ { 2 }",
    # Unicode: signs, scripts, styles, accents; what nobody sees is dropped
    "α + β ≤ γ ⋅ ∑ x²": r"\alpha + \beta \leq \gamma \cdot \sum x ^ { 2 }",
    "x⁻¹₂ = x^²_ₙ": None, "x⁻¹₂ = y^² f″²": r"x _ { 2 } ^ { - 1 } = y ^ { 2 } f ^ { \prime \prime 2 }",
    "𝑥 ∈ ℝ ∧ 𝐀𝒢𝔤𝟙": r"x \in \mathbb{R} \wedge A \mathcal{G} \mathfrak{g} 1",
    "½^½ ≢ x̂ ≔ ＋": r"\frac { 1 } { 2 } ^ { \frac { 1 } { 2 } } \not \equiv \hat { x } : = +",
    r"\text{café, 10 m² at 20 ℃}": r"c a f \acute { e } , 1 0 m ^ { 2 } a t 2 0 ^ { \circ } C",
    "\ufeffx\u200b+\u00a0\u202ey\u00ad\u2062z\u2028w": "x + y z w",
    "϶ ⊧ ⨉ ∷ a⋜b": r"\backepsilon \models \times : : a \eqslantless b", "“x” ‘ xʹ": r'" x " \backprime x ^ { \prime }',
    # boxes, shifts, and old or rare names of common things
    r"\bbox{x}\bbox[4px,border:1px solid red]{y}": r"x \boxed { y }",
    r"\colorbox{red}{x}\fcolorbox{red}{blue}{y}\framebox[1em][l]{z}": r"x \boxed { y } \boxed { z }",
    r"a\raise 2pt{x_1}^2\lower{.5ex}\mathmakebox[2em][l]{y}\kern{1pt}": r"a x _ { 1 } ^ { 2 } y",
    r"\eqalign{a&=b\cr c&=d}": r"\begin{aligned} a & = b \\ c & = d \end{aligned}",
    r"\begin{multlined}[c][2cm]x\\y\end{multlined}": r"\begin{gathered} x \\ y \end{gathered}",
    r"\begin{psmallmatrix*}[r]x\\y\end{psmallmatrix*}": r"\begin{pmatrix} x \\ y \end{pmatrix}",
    r"\overunderset{a}{b}{c}\textbullet\symbfcal{A}\mathbfsf x\texttwooldstyle":
        r"\overset { a } { \underset { b } { c } } \bullet \mathcal{A} x 2",
    # the typesetter's expansions: macros, chemistry, units
    r"\ce{H2O -> H2 + 1/2O2}": r"H _ { 2 } O \longrightarrow H _ { 2 } + \frac { 1 } { 2 } O _ { 2 }",
    r"\ce{SO4^2- + ^{227}_{90}Th}": r"S O _ { 4 } ^ { 2 - } + { } _ { 9 0 } ^ { 2 2 7 } T h",
    r"\text{in \ce{H2O}: }\pu{1.2e3 m/s^2}": r"i n H _ { 2 } O : 1 . 2 \cdot 1 0 ^ { 3 } m / s ^ { 2 }",
    r"a \coloneqq \bra{x}\ohm": r"a : = \langle x | \Omega",
    r"\newcommand{\R}[1]{\mathbb{R}^{#1}}\let\x=\xi \x\in\R{n}": r"\xi \in \mathbb{R} ^ { n }",
    r"\DeclareMathOperator{\tr}{tr}\renewcommand{\vec}[1]{\mathbf{#1}}\tr\vec{A}": r"t r A",
}


@pytest.mark.parametrize("latex", CASES)
def test_by_hand(latex):
    if CASES[latex] is None:
        with pytest.raises(TokenizeError): normalize(latex)
    else:
        assert normalize(latex) == CASES[latex]
        assert normalize(CASES[latex]) == CASES[latex]


@pytest.mark.parametrize("latex, position, reason", [
    ("", 0, "empty"),
    (r"\quad{}", 0, "empty"),
    ("x^", 2, "lacks an argument"),
    (r"a \foo b", 2, r"\foo"),
    (r"{x", 0, "ends before }"),
    ("x}", 1, "misplaced }"),
    ("x^2^3", 3, "second superscript"),
    ("x_1_2", 3, "second subscript"),
    ("x^2'", 3, "second superscript"),
    ("a & b", 2, "misplaced &"),
    (r"\left( x", 5, r"\right"),
    (r"x \right)", 2, r"\left"),
    (r"\begin{foo}x\end{foo}", 0, "foo"),
    (r"\begin{matrix}x\end{cases}", 15, r" \end{cases} without"[1:]),
    (r"\left x\right)", 6, "bracket"),
    ("a\x00b", 1, "U+0000"),
    ("x\u4e2d", 1, "U+4E2D"),
    (r"a\over b\over c", 8, "second"),
    (r"\kern x", 6, "3pt"),
    ("x#", 1, "misplaced #"),
    (r"\sqrt[3", 5, "ends before ]"),
    ("\ud800", 0, "U+D800"),
    ("x^ % a note", 2, "lacks an argument"),
    (r"\frac{50%}{2}", 5, "ends before }"),
    ("% a note", 0, "comment"),
    ("a % b\nc \\foo", 8, r"\foo"),
    ("½ + 中", 4, "the typesetter lacks the character 中 (U+4E2D)"),
    ("x² \ue000", 3, "lacks the character U+E000"),
    (r"α\rule{2em}{2pt}", 1, "a bar, which has no token"),
    (r"\ce{H2O}+\foo", 0, r"unknown command \foo"),
    (r"\newcommand{\a}{\a}\a", 0, "recursive"),
    (r"x \verb|y|", 2, r"\verb has no tokens: write the characters in \text{...}"),
    (r"\begin {CD}A@>f>>B\end{CD}", 0, r"\begin{CD} has no tokens: write \begin{array}"),
    (r"\begin{rcases*}x\end{rcases*}", 0, r"\begin{rcases} has no tokens"),
    (r"x\\\enclose{circle}y", 3, r"\boxed{...} or \cancel{...}"),
    ("5£x", 1, "£ has no tokens: leave it out"),
])
def test_errors_name_the_position(latex, position, reason):
    with pytest.raises(TokenizeError) as caught: tokenize(latex)
    assert caught.value.position == position and reason in str(caught.value)
    assert str(caught.value).isprintable() and isinstance(caught.value, FormulaGanError)
    again = pickle.loads(pickle.dumps(caught.value))  # errors come back from worker processes
    assert (str(again), again.position) == (str(caught.value), caught.value.position)


def test_comments_leave_spaces():
    for latex, bare in (
        ("x % y", "x    "),
        ("x % y\r\nz", "x    \r\nz"),
        (r"\\%x", r"\\  "),
        (r"\% %", r"\%  "),
        ("x", "x"),
        ("\\", "\\"),
    ):
        assert characters.strip_comments(latex) == bare and characters.strip_comments(bare) == bare


@pytest.mark.parametrize("latex", [None, b"x", 3, ["x"]])
def test_not_text(latex):
    with pytest.raises(TokenizeError, match="text"): tokenize(latex)


HOSTILE = [
    "{" * 5000 + "x" + "}" * 5000,
    r"\frac{" * 3000,
    "x" + "_{x" * 2000,
    r"\left(" * 2000,
    r"\begin{matrix}" * 2000,
    r"\mathrm" * 3000 + "x",
    r"\hat " * 3000 + "x",
    r"\sqrt[" * 3000,
    r"\text{$" * 2000,
    r"\not" * 3000,
    r"\root" * 3000,
    "x+" * 2_000_000,
    "x" * 150_000,
    "$" * 40_000,
    r"\color[" * 20_000,
    r"\begin{matrix}" + r"\\[" * 15_000,
    r"\phantom{" + "{" * 30_000,
    r"\text{" + "$" * 30_000,
    r"\kern" * 20_000,
    r"\begin" + " " * 100_000 + "{x}",
    r"\begin{" * 20_000,
    "\\" * 39_999,
    " " * 199_999,
]


@pytest.mark.parametrize("k", range(len(HOSTILE)))
def test_hostile_input_ends_quickly(k):
    start = time.process_time()
    with pytest.raises(TokenizeError): tokenize(HOSTILE[k])
    assert time.process_time() - start < 5  # the slowest takes 0.5 s


def test_deep_but_allowed():
    depth = parser.MAX_DEPTH - 2
    latex = "x" + "^{x" * depth + "}" * depth
    assert normalize(normalize(latex)) == normalize(latex)


def test_no_recursion_error_on_a_deep_stack():
    latex = r"\sqrt{" * 90 + "x" + "}" * 90
    def call(levels): return call(levels - 1) if levels else tokenize(latex)
    for levels in range(0, sys.getrecursionlimit() - 50, 20):
        try: assert call(levels)[0] == r"\sqrt"
        except TokenizeError: pass
        except RecursionError as error:  # only ever from this test's own frames
            assert levels > sys.getrecursionlimit() - 200, error


# random trees, written once in normal form and once as people might

SPELLINGS = {
    "<": ["<", r"\lt "],
    r"\leq": [r"\le ", r"\leq "],
    r"\rightarrow": [r"\to ", r"\rightarrow "],
    r"\neq": [r"\ne ", r"\not="],
    r"\{": [r"\{", r"\lbrace "],
    "|": ["|", r"\vert ", r"\mid "],
    "x": ["x", r"\mathrm{x}", r"\mathbf x", r"{\it x}", "{x}", r"\mbox{x}"],
    r"\mathbb{R}": [r"\mathbb R", r"\R ", r"\Bbb{R}"],
    r"\wedge": [r"\land ", r"\and "],
    r"\sum": [r"\sum ", r"\sum\limits "],
    r"\sin": [r"\sin ", r"\operatorname{sin}"],
}
SYMBOLS = list("abc1+=") + [r"\alpha", r"\top", r"\gtrsim", r"\int", r"\prime"] + list(SPELLINGS)


def spaced(rng): return rng.choice(["", " ", r"\,", r"\! ", r"\quad ", r"\displaystyle ", "~"])


def random_tree(rng, depth):
    "(normal tokens, a sloppy spelling) of a random list of nodes."
    normal, sloppy = [], ""
    for _ in range(rng.randint(1, 3)):
        kind = rng.random() if depth else 0
        if kind < 0.4:
            token = rng.choice(SYMBOLS)
            base = [token], rng.choice(SPELLINGS.get(token, [token + " "]))
        elif kind < 0.55:
            (a, x), (b, y) = random_tree(rng, depth - 1), random_tree(rng, depth - 1)
            written = rng.choice([rf"\frac{{{x}}}{{{y}}}", rf"\dfrac {{{x}}} {{{y}}}", rf"{{{x}\over {y}}}"])
            base = [r"\frac", "{", *a, "}", "{", *b, "}"], written
        elif kind < 0.65:
            a, x = random_tree(rng, depth - 1)
            base = ["(", *a, ")"], rng.choice([rf"\left({x}\right)", rf"({x})", rf"\bigl( {x}\bigr)"])
        else:
            a, x = random_tree(rng, depth - 1)
            heads = [([r"\sqrt"], r"\sqrt"), ([r"\hat"], r"\hat "), ([r"\sqrt", "[", "3", "]"], r"\sqrt[3]")]
            head, written = rng.choice(heads)
            base = [*head, "{", *a, "}"], f"{written}{{{x}}}"
        tokens, text = base
        scripts = []
        if depth and rng.random() < 0.3:
            a, x = random_tree(rng, depth - 1)
            tokens = [*tokens, "_", "{", *a, "}"]
            scripts.append(f"_{spaced(rng)}{{{x}}}")
        if depth and rng.random() < 0.3:
            a, x = random_tree(rng, depth - 1)
            prime = rng.random() < 0.3
            tokens = [*tokens, "^", "{", *([r"\prime"] if prime else []), *a, "}"]
            scripts.append(("'" if prime else "") + f"^{{{spaced(rng)}{x}}}")
        rng.shuffle(scripts)
        normal += tokens
        sloppy += spaced(rng) + text + "".join(scripts) + rng.choice(["", "", "{}", spaced(rng)])
    return normal, sloppy


def test_random_trees():
    rng = random.Random(0)
    for _ in range(3000):
        normal, sloppy = random_tree(rng, rng.randint(0, 3))
        assert tokenize(sloppy) == normal, sloppy
        assert tokenize(" ".join(normal)) == normal
        assert tokenize(f"$ {{{sloppy}}} $") == normal


def test_random_input_is_idempotent_or_an_error():
    "Any string of commands: a normal form that is a fixed point, or a TokenizeError; never anything else."
    rng = random.Random(1)
    pool = [
        *symbols.LEAVES,
        *symbols.DROPPED,
        *4 * list(parser.COMMANDS),
        *4 * list(symbols.INFIX),
        *25 * list("{}[]^_'&$*"),
        *10 * [r"\\", r"\hline", r"\of", "3pt"],
        *(rf"\{side}{{{name}}}" for side in ("begin", "end") for name in symbols.ENVIRONMENTS),
    ]
    accepted = 0
    for _ in range(15_000):
        latex = " ".join(rng.choice(pool) for _ in range(rng.randint(1, 8)))
        if rng.random() < 0.5: latex = "{" * latex.count("}") + latex + "}" * latex.count("{")
        try: normal = normalize(latex)
        except TokenizeError as error: assert 0 <= error.position <= len(latex)
        else:
            accepted += 1
            assert normalize(normal) == normal, latex
    assert accepted > 1000


def test_every_symbol_and_synonym():
    assert not set(symbols.SYNONYMS) & symbols.SYMBOLS
    for symbol in symbols.SYMBOLS: assert tokenize(symbol) == [symbol]
    for synonym, symbol in symbols.SYNONYMS.items():
        assert tokenize(synonym) == [symbol] and symbol not in symbols.SYNONYMS
    for sign, symbol in symbols.UNICODE.items(): assert tokenize(sign) == [symbol]


def test_signs_are_the_typesetters():
    "Each sign that the typesetter's font draws for one symbol is in the table; each sign is drawn as its symbol is."
    from formula_gan.rendering import typeset
    def drawn(latex): return [glyph.char for glyph in typeset(latex).glyphs]
    for symbol in symbols.SYMBOLS - {'"'}:
        if len(char := "".join(drawn(symbol))) == 1 and not char.isascii():
            assert char in symbols.UNICODE or symbols.spell(char)[0], (symbol, char)
    for sign in symbols.UNICODE: assert drawn(sign) == drawn(symbols.UNICODE[sign]), sign


ENTRIES = """(kind => {
    const names = new Set();
    for (const {item} of tex.parseOptions.handlers.get(kind)._configuration)
      if (item.map) for (const name of item.map.keys()) names.add(name);
    return JSON.stringify([...names]);
})"""


def drawn(latex):
    from formula_gan.mathjax import RenderError
    from formula_gan.rendering import typeset
    try: return typeset(latex)
    except RenderError: return None


def read(latex):
    try: return tokenize(latex)
    except TokenizeError: return None


def test_every_command_is_read_and_drawn_or_neither():
    "All commands and environments of the typesetter, each with the arguments with which it is drawn first."
    from formula_gan.mathjax import _DEFINES, _ready_engine
    engine = _ready_engine()
    def entries(kind): return json.loads(engine.v8.eval(f"{ENTRIES}('{kind}')"))
    internal = {r"\centerOver", r"\notChar"}
    tails = (" x", " ", "{a}", "{a}{b}", "{1pt}{b}", " 1pt b", "[a]{b}", "{a}{b}{c}", "() b")
    known = {*parser.COMMANDS, *symbols.LEAVES, *symbols.DROPPED, *symbols.INFIX, *internal}
    names = ["\\" + name for name in entries("macro")]
    names = [name for name in names if not _DEFINES.match(name)]  # those draw nothing, and cost a new engine each
    assert len(names) > 1000
    cases = [[f"u{name}{tail} v" for tail in tails] for name in set(names) - known]
    for name in entries("environment"):
        cases.append([rf"\begin{{{name}}}{body}\end{{{name}}}" for body in ("x", "{c}x", "{1}x")])
    first = [next(filter(drawn, spellings), None) for spellings in cases]
    assert not [latex for latex in first if latex and not read(latex)]


def test_every_character_is_read_and_drawn_or_neither():
    """A twentieth of Unicode's letters and signs up to U+2FFF and of the mathematical alphabets, and all that are
    refused by name."""
    from formula_gan.rendering import typeset
    refused = [ord(char) for char in symbols.REFUSED if len(char) == 1]
    for code in [*refused, *[*range(0x80, 0x3000), *range(0x1d400, 0x1d800)][::20]]:
        latex = f"x{chr(code)}y"
        try: tokens = normalize(latex)
        except TokenizeError as error:
            assert f"U+{code:04X}" in str(error) or code in refused, latex
            assert not drawn(latex), latex
            continue
        assert [g.char for g in typeset(latex).glyphs] == [g.char for g in typeset(tokens).glyphs], latex


# the vocabulary

def test_vocab():
    vocab = Vocab.from_tokens([tokenize("x^2"), tokenize(r"\frac{x}{y}")])
    assert (PAD, START, END) == (0, 1, 2) and len(vocab) == 3 + 7 == len(vocab.tokens)
    ids = vocab.encode(tokenize("y^x"))
    assert ids[0] == START and ids[-1] == END and vocab.decode([*ids, PAD, 5]) == tokenize("y^x")
    assert "x" in vocab and r"\pi" not in vocab and "<pad>" not in vocab
    assert Vocab.from_list(vocab.to_list()) == vocab and Vocab.from_list(vocab.to_list()).ids == vocab.ids
    assert pickle.loads(pickle.dumps(vocab)) == vocab and hash(vocab) == hash(Vocab.from_list(vocab.to_list()))


def test_vocab_decodes_arrays():
    import numpy as np
    vocab = Vocab.crohme()
    assert vocab.decode(np.array(vocab.encode(["x"]))) == ["x"]


def test_vocab_unknown():
    vocab = Vocab.crohme()
    counted = Counter()
    with pytest.raises(KeyError) as caught: vocab.encode(["x", r"\otimes"])
    assert caught.value.args == (r"\otimes",) and caught.value.symbol == r"\otimes" and "otimes" in str(caught.value)
    assert isinstance(caught.value, FormulaGanError)
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), UnknownSymbolError)
    assert vocab.decode(vocab.encode(["x", r"\otimes", "y", r"\otimes"], unknown="skip", skipped=counted)) == ["x", "y"]
    assert counted == {r"\otimes": 2}
    with pytest.raises(KeyError): vocab.encode(["<end>"])
    with pytest.raises(FormulaGanError, match="unknown"): vocab.encode(["x"], unknown="ignore")
    with pytest.raises(FormulaGanError, match="tokenize"): vocab.encode("x ^ { 2 }")
    with pytest.raises(FormulaGanError, match="once"): Vocab(["x", "x"])


def test_crohme_vocabulary():
    assert len(CROHME_SYMBOLS) == 110 and list(CROHME_SYMBOLS) == sorted(CROHME_SYMBOLS) and len(Vocab.crohme()) == 113
    never = [s for s in CROHME_SYMBOLS if s in ("'", r"\limits")]
    assert len(never) == 2
    for symbol in set(CROHME_SYMBOLS) - {*never, r"\frac", r"\sqrt", *"^_{}"}: assert tokenize(symbol) == [symbol]


# pictures: the normal form draws what its source draws

FOLD = str.maketrans({"‖": "∥", "∣": "|", "-": "−", " ": None, "\u2009": None, "–": None, "‾": None, "_": None})


def picture(latex):
    from formula_gan.rendering import typeset
    drawn = "".join(glyph.char for glyph in typeset(latex).glyphs)
    return drawn.replace("″", "′′").replace("‴", "′′′").translate(FOLD)


@pytest.mark.parametrize("latex", [
    r"\left({x^2}^3+\tfrac12\right)_n",
    r"{}_n C_r = {n \choose k}",
    r"\sum\limits_{i\ne j}\bigl|x_i\bigr|",
    r"f''(x)\not\equiv 0",
    r"\sqrt[3]{\mathrm d x\over\mathrm d t}",
    r"\begin{cases}1&\text{if }x\ge 0\\0&\text{otherwise}\end{cases}",
    r"\mathop{\rm argmax}_x\mathbb{P}(x\mid y)",
    r"\left\{{a\atop b}\right\}",
    r"\overset{!}{=}\underbrace{ab}_{n}",
    r"\sideset{}{'}\sum_{i} x",
    r"\begin{array}{c|c}1&2\\\hline 3&{[}4]\end{array}",
    r"A\xrightarrow[f]{g}B\pmod{p}",
    r"\ce{H2O -> H2 + 1/2O2}",
    r"\ce{Fe^{III} + 2 OH- ->[\Delta] Fe(OH)2 v}",
    r"\pu{123 kJ mol-1}",
    r"\Braket{a|b}\Set{x}a\coloneqq\prescript{2}{1}{H}",
    "½ ≤ 𝐱⁻¹ⁿ ⋅ â ≢ ∯"[:-1],
])
def test_same_picture(latex):
    assert picture(normalize(latex)) == picture(latex)


def test_every_symbol_typesets():
    from formula_gan.rendering import typeset
    names = symbols.SYMBOLS | {f"{alphabet}{{{letter}}}"
                               for alphabet, letters in symbols.STYLED.items()
                               for letter in letters}
    for name in sorted(names): typeset(normalize(name))


# figures on real data

def data_folder(): return Path(os.environ["FORMULA_GAN_DATA"])


def captions():
    with open(data_folder() / "crohme2014_captions.tsv", encoding="utf-8") as file:
        return {(row["split"], row["id"]): row["latex"]
                for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}


def in_normal_order(caption):
    """The stated folding, by substitution in the caption's tokens: `\\limits` goes, `'` is `\\prime`, a subscript goes
    before a superscript."""
    text = caption.replace(r"\limits ", "").replace("'", r"\prime")
    group = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
    return re.sub(rf"(\^ {group}) (_ {group})", r"\2 \1", text)


@pytest.mark.real_data
def test_captions_are_fixed_points():
    found = captions()
    assert {symbol for caption in found.values() for symbol in caption.split()} == set(CROHME_SYMBOLS)
    for caption in found.values(): assert normalize(caption) == in_normal_order(caption)
    assert sum(in_normal_order(c) != c.replace(r"\limits ", "").replace("'", r"\prime") for c in found.values()) == 36


@pytest.mark.real_data
def test_agreement_with_captions():
    found = captions()
    good = Counter()
    total = Counter()
    with zipfile.ZipFile(data_folder() / "crohme2014.zip") as archive:
        for name in archive.namelist():
            key = ("train" if "Train" in name else "test", Path(name).stem)
            if not name.endswith(".inkml") or key not in found: continue
            head = archive.read(name).decode("utf-8", "replace").split("<traceGroup")[0]
            truth = html.unescape(re.search(r'<annotation\s+type="truth"\s*>(.*?)</annotation>', head, re.S)[1])
            total[key[0]] += 1
            try: good[key[0]] += normalize(truth) == normalize(found[key])
            except TokenizeError: pass
    assert total == {"train": 8835, "test": 986}
    assert good["train"] / total["train"] >= 0.994 and good["test"] / total["test"] >= 0.984, good


@pytest.mark.real_data
def test_wikipedia():
    crohme = set(CROHME_SYMBOLS)
    errors = Counter()
    formulas = short = inside = both = 0
    lines = read_wikipedia()
    start = time.process_time()
    for line in lines:
        formulas += 1
        try: tokens = tokenize(line)
        except TokenizeError as error: errors[error.reason] += 1
        else:
            short += len(tokens) <= 50
            if crohme.issuperset(tokens):
                inside += 1
                both += len(tokens) <= 50
            if formulas % 10 == 0: assert tokenize(" ".join(tokens)) == tokens
    seconds = time.process_time() - start
    print(f"{formulas} formulas in {seconds:.1f} s; {sum(errors.values())} errors;",
          f"{short} short, {inside} in CROHME's symbols, {both} both", errors)
    assert formulas == 306_638 and sum(errors.values()) < 0.0005 * formulas
    assert 255_000 < short < 270_000 and 110_000 < both < 120_000 < inside
    assert formulas / seconds > 3000  # 40,000 on an idle core


@pytest.mark.real_data
def test_wikipedia_pictures():
    lines = read_wikipedia()
    from formula_gan.mathjax import RenderError
    same = different = 0
    for latex in random.Random(0).sample(lines, 250):
        drawn = picture(normalize(latex))  # a normal form always typesets
        try: source = picture(latex)
        except RenderError: continue  # MediaWiki takes what the typesetter does not
        same, different = same + (drawn == source), different + (drawn != source)
    assert same / (same + different) >= 0.96, different
