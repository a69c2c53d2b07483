"""Stitching: pieces of a layout, symbol banks, formulas written with them, demo handwriting."""
import os
from pathlib import Path

import numpy as np
import pytest

from formula_gan.ink import Ink, InkError, Symbol, ink_tokens, rasterize, stroke_symbol_height, writer_key
from formula_gan.ink_files import read_crohme
from formula_gan.rendering import draw, typeset
from formula_gan.demo_hands import demo_bank, demo_inks
from formula_gan.stitching import UNITS_PER_EM, WORDS, SymbolBank, _pieces, stitch

# one formula for each of CROHME's 110 symbols but the six that draw nothing of their own
DRAWN = (r"! ( ) + , - . / 0 1 2 3 4 5 6 7 8 9 < = > A B C E F G H I L M N P R S T V X Y [ "
         r"\Delta \alpha \beta \cdot \cdots \cos \div \exists \forall \gamma \geq \in \infty \int \lambda \ldots "
         r"\leq \lim \log \mu \neq \phi \pi \pm \prime \rightarrow \sigma \sin \sum \tan \theta \times \{ \} ] "
         r"a b c d e f g h i j k l m n o p q r s t u v w x y z |").split()
DRAWN += [r"\sqrt { x }", r"\frac { 1 } { x }"]


def line(*points): return np.array(points, np.float32)


# -- banks and stitching

def test_bank_from_inks_keeps_writers_apart_and_drops_the_mislabelled():
    def plus(w, h, writer):
        strokes = (line((0, h / 2), (w, h / 2)), line((w / 2, 0), (w / 2, h)))
        return Ink("i", strokes, writer=writer, symbols=(Symbol("+", (0, 1)),), source="s")
    bank = SymbolBank.from_inks([plus(10, 10, "a"), plus(12, 10, "a"), plus(9, 10, "b"), plus(200, 5, "c")])
    assert bank.labels == ("+",) and bank.writers == ("s/a", "s/b") and len(bank) == 3
    rng = np.random.default_rng(0)
    assert all(np.ptp(bank.pick("+", rng, "s/b")[0][:, 0]) == 9 for _ in range(5))
    assert bank.pick("+", rng, "s/nobody") is not None


@pytest.fixture(scope="module")
def bank(): return demo_bank(seed=3, writers=3)


@pytest.mark.parametrize("token", DRAWN)
def test_demo_bank_writes_all_of_crohme(bank, token):
    layout = typeset(token)
    assert not bank.missing(layout)
    ink = stitch(layout, bank, np.random.default_rng(0), latex=token)
    assert ink.latex == token and rasterize(ink, height=32).max() > 0.5


def test_every_symbol_of_crohme_is_in_the_list():
    from formula_gan.tokenizer import CROHME_SYMBOLS
    assert set(CROHME_SYMBOLS) - set(" ".join(DRAWN).split()) <= {"{", "}", "^", "_", r"\limits", "'"}
    assert len(CROHME_SYMBOLS) == 110


@pytest.mark.parametrize("latex", [
    r"\frac { \frac { a } { b } } { c } + x",
    r"\sqrt { \frac { 1 } { 2 } x + \sqrt { y } } - 3",
    r"\sum _ { i = 1 } ^ { n } ( \frac { i } { 2 } ) ^ { 2 }",
])
def test_without_jitter_symbols_lie_in_their_boxes(bank, latex):
    layout = typeset(latex)
    ink = stitch(layout, bank, np.random.default_rng(1), jitter=0, latex=latex)
    pieces = {piece.place: piece for piece in _pieces(layout)}
    assert sorted(symbol.place for symbol in ink.symbols) == sorted(pieces)
    assert (np.diff(ink_tokens(ink)) > 0).all() and ink_tokens(ink)[0] >= 0  # in the order of the LaTeX
    assert sorted(i for symbol in ink.symbols for i in symbol.strokes) == list(range(len(ink.strokes)))
    for symbol in ink.symbols:
        piece = pieces[symbol.place]
        assert symbol.label == piece.label
        points = np.concatenate([ink.strokes[i] for i in symbol.strokes]) / UNITS_PER_EM
        slack = 0.2 * max(piece.width, piece.height) + 0.1
        assert (points.min(0) >= np.array([piece.x, piece.y]) - slack).all()
        assert (points.max(0) <= np.array([piece.right, piece.bottom]) + slack).all()


def test_radicals_take_their_bar_and_span_their_content():
    pieces = _pieces(typeset(r"\sqrt { a + \sqrt { b } } \frac { 1 } { 2 }"))
    roots, bars = ([piece for piece in pieces if piece.label == label] for label in (r"\sqrt", "-"))
    inner, outer = sorted(roots, key=lambda piece: piece.width)
    assert len(bars) == 1 and outer.x < inner.x and outer.right >= inner.right
    a, b = next(p for p in pieces if p.label == "a"), next(p for p in pieces if p.label == "b")
    assert outer.x + outer.knee <= a.x + 0.01 and inner.right >= b.right
    assert len([p for p in _pieces(typeset("f''")) if p.label == r"\prime"]) == 2


def test_stitched_words_come_whole_where_the_bank_has_them(bank):
    sin = (line((0, 0), (30, 10), (60, 0)),)
    rich = SymbolBank({**bank.symbols, r"\sin": {writer: [sin] for writer in bank.writers}})
    labels = [[s.label for s in stitch(typeset(r"\sin x"), rich, np.random.default_rng(i)).symbols] for i in range(20)]
    assert [r"\sin", "x"] in labels and ["s", "i", "n", "x"] in labels
    assert r"\sin" in WORDS
    for i in range(3):
        ink = stitch(typeset(r"\sin x"), bank, np.random.default_rng(i))
        assert [s.label for s in ink.symbols] == ["s", "i", "n", "x"]


def test_stitching_is_reproducible_and_varied(bank):
    layout = typeset("a + b = c")
    write = lambda seed, **k: stitch(layout, bank, np.random.default_rng(seed), **k)
    assert all((a == b).all() for a, b in zip(write(0).strokes, write(0).strokes))
    assert any(a.shape != b.shape or (a != b).any() for a, b in zip(write(0).strokes, write(1).strokes))
    assert write(0, writer=bank.writers[2]).writer == bank.writers[2]


def test_what_the_bank_lacks_is_named(bank):
    poor = SymbolBank({label: hands for label, hands in bank.symbols.items() if label != r"\sqrt"})
    layout = typeset(r"\sqrt { \frac { x } { 2 } }")
    assert poor.missing(layout) == {r"\sqrt"}
    with pytest.raises(InkError, match=r"\\sqrt"): stitch(layout, poor, np.random.default_rng(0))


def test_print_and_stitched_ink_have_one_symbol_size(bank):
    ratios = []
    for i, latex in enumerate([
        r"a + b = c",
        r"\frac { x ^ { 2 } + 1 } { y _ { k } }",
        r"\sqrt { 2 n } - 7",
        r"\lim _ { n \rightarrow \infty } f ( n ) = 0",
        r"\sum _ { k = 0 } ^ { 9 } k !",
        r"A B \times 3 \leq 4 \pi",
        r"x \cdots + z",
        r"\int _ { 0 } ^ { 1 } \sin \theta d \theta",
    ] * 3):
        layout = typeset(latex)
        ink = stitch(layout, bank, np.random.default_rng(i))
        ratios.append(stroke_symbol_height(ink) / UNITS_PER_EM / (0.9 * layout.symbol_height))
        a, b = draw(layout, 24 / layout.symbol_height), rasterize(ink, symbol_height=24)
        assert 0.5 < b.shape[0] / a.shape[0] < 2
    assert 0.93 < np.median(ratios) < 1.07 and np.quantile(np.abs(np.log(ratios)), 0.75) < 0.15


# -- demo handwriting

def test_demo_bank_is_reproducible_and_hands_differ():
    a, b, c = demo_bank(seed=1, writers=2), demo_bank(seed=1, writers=2), demo_bank(seed=2, writers=2)
    x = lambda bank, hand, n=0: np.concatenate(bank.symbols["x"][bank.writers[hand]][n])
    assert (x(a, 0) == x(b, 0)).all()
    for other in (x(a, 1), x(c, 0), x(a, 0, 1)): assert other.shape != x(a, 0).shape or (other != x(a, 0)).any()
    assert not set(a.writers) & set(c.writers)


def test_demo_inks_are_whole_documents():
    formulas = [r"x ^ { 2 } + \frac { 1 } { y }", r"\sqrt { a < b }", r"| z |"] * 3
    inks = demo_inks(formulas, seed=5, writers=3)
    assert [i.latex for i in inks] == formulas and len({i.id for i in inks}) == 9 and len({i.writer for i in inks}) > 1
    assert all(i.source == "demo" and i.symbols and writer_key(i).startswith("demo/hand5-") for i in inks)
    again = demo_inks(formulas, seed=5, writers=3)
    assert all((a == b).all() for i, j in zip(inks, again) for a, b in zip(i.strokes, j.strokes))
    # demo ink feeds a bank like real ink
    assert len(SymbolBank.from_inks(inks).writers) == len({i.writer for i in inks})


# -- the real files

@pytest.mark.real_data
def test_the_training_bank_covers_crohme():
    folder = os.environ.get("FORMULA_GAN_DATA")
    if not folder: pytest.skip("FORMULA_GAN_DATA is not set")
    bank = SymbolBank.from_inks(read_crohme(Path(folder), "train")[0])
    assert len(bank) > 80_000 and set(WORDS) <= set(bank.labels)
    for token in DRAWN: assert not bank.missing(typeset(token)), token
    ink = stitch(typeset(r"\frac { \sin x } { \sqrt { 2 } }"), bank, np.random.default_rng(0))
    assert ink.writer in bank.writers and rasterize(ink, height=64).max() > 0.9
