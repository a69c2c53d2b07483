"""Ink: reading and writing InkML, sizes, drawing, symbol banks, stitching, demo handwriting."""
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from formula_gan.ink import (CROHME_FOLDERS, Ink, InkError, Symbol, SymbolBank, UNITS_PER_EM, WORDS, _pieces, demo_bank, demo_inks,
                             parse_trace, rasterize, rasterize_many, read_crohme, read_inkml, stitch, stroke_symbol_height,
                             symbol_label, write_inkml, writer_key)
from formula_gan.rendering import draw, typeset

HEAD = '<ink xmlns="http://www.w3.org/2003/InkML">'
GOOD = (HEAD + '<annotation type="truth">$a&lt;b$</annotation><annotation type="writer">w</annotation>'
        '<trace id="0">0 0, 3 10, 6 0</trace><trace id="1">9 2 171, 9 2 188</trace><trace id="2">12 9</trace>'
        '<traceGroup xml:id="9"><annotation type="truth">Segmentation</annotation>'
        '<traceGroup><annotation type="truth">a</annotation><traceView traceDataRef="0"/><traceView traceDataRef="2"/></traceGroup>'
        '<traceGroup><annotation type="truth">\\lt</annotation><traceView traceDataRef="#1"/></traceGroup></traceGroup></ink>')
# one formula for each of CROHME's 110 symbols but the six that draw nothing of their own
DRAWN = (r"! ( ) + , - . / 0 1 2 3 4 5 6 7 8 9 < = > A B C E F G H I L M N P R S T V X Y [ \Delta \alpha \beta \cdot \cdots \cos "
         r"\div \exists \forall \gamma \geq \in \infty \int \lambda \ldots \leq \lim \log \mu \neq \phi \pi \pm \prime \rightarrow "
         r"\sigma \sin \sum \tan \theta \times \{ \} ] a b c d e f g h i j k l m n o p q r s t u v w x y z |").split() + [r"\sqrt { x }", r"\frac { 1 } { x }"]


def line(*points): return np.array(points, np.float32)


# -- InkML

def test_reading_keeps_what_the_file_says():
    ink = read_inkml(GOOD.encode(), id="f", source="HAMEX")
    assert (ink.id, ink.latex, ink.writer, ink.source) == ("f", "$a<b$", "w", "HAMEX")  # $ stays, the escape does not
    assert [s.tolist() for s in ink.strokes] == [[[0, 0], [3, 10], [6, 0]], [[9, 2], [9, 2]], [[12, 9]]]
    assert all(s.dtype == np.float32 for s in ink.strokes)
    assert ink.symbols == (Symbol("a", (0, 2)), Symbol("\\lt", (1,)))


def test_path_gives_id_and_source(tmp_path):
    folder = tmp_path / "KAIST"
    folder.mkdir()
    (folder / "K1.inkml").write_text(GOOD)
    ink = read_inkml(folder / "K1.inkml")
    assert (ink.id, ink.source) == ("K1", "KAIST")
    assert read_inkml(str(folder / "K1.inkml")).id == "K1"


def test_empty_traces_are_skipped_without_shifting_symbols():
    text = GOOD.replace('<trace id="0">', '<trace id="x"></trace><trace id="0">')
    ink = read_inkml(text.encode())
    assert len(ink.strokes) == 3 and ink.symbols[0].strokes == (0, 2)


def test_latin1_bytes_under_a_utf8_header_are_read():
    data = GOOD.replace("$a", "$\u00b7a").encode("latin-1")
    with pytest.raises(UnicodeDecodeError): data.decode()
    assert read_inkml(data).latex == "$\u00b7a<b$"


@pytest.mark.parametrize("change, cause", [
    (lambda t: "", "empty"), (lambda t: "  \n", "empty"), (lambda t: t[:300], "broken XML"), (lambda t: "no xml", "broken XML"),
    (lambda t: "<html/>", "not <ink>"), (lambda t: HEAD + "</ink>", "no strokes"), (lambda t: t.replace("3 10", "nan 10"), "NaN or infinite"),
    (lambda t: t.replace("3 10", "1e999 10"), "NaN or infinite"), (lambda t: t.replace("3 10", "3e9 10"), "beyond 1e+07"),
    (lambda t: t.replace("3 10", "3"), "2 or 3 numbers"), (lambda t: t.replace("3 10", "3 ten"), "could not convert"),
    (lambda t: t.replace('Ref="0"', 'Ref="7"'), "trace '7'"), (lambda t: t.replace('id="2"', 'id="1"'), "id 1"),
    (lambda t: '<!DOCTYPE ink [<!ENTITY a "aa"><!ENTITY b "&a;&a;&a;">]>' + t.replace("$a", "&b;"), "document type"),
    (lambda t: '<!DOCTYPE ink [<!ENTITY a SYSTEM "file:///etc/passwd">]>' + t.replace("$a", "&a;"), "document type"),
])
def test_bad_documents_are_refused_in_one_line(change, cause):
    with pytest.raises(InkError) as caught: read_inkml(change(GOOD).encode(), id="broken.inkml")
    message = str(caught.value)
    assert "broken.inkml" in message and cause in message and "\n" not in message


def test_missing_file_and_folder_are_named(tmp_path):
    for path in (tmp_path / "no.inkml", tmp_path):
        with pytest.raises(InkError, match=path.name): read_inkml(path)


def test_deep_nesting_does_no_harm():
    deep = HEAD + '<trace id="0">0 0, 1 1</trace><annotationXML>' + "<m>" * 50_000 + "</m>" * 50_000 + "</annotationXML></ink>"
    assert len(read_inkml(deep.encode()).strokes) == 1


def test_parse_trace():
    assert parse_trace("1 2 3,4 5 6\n, 7 8 9,").tolist() == [[1, 2], [4, 5], [7, 8]]
    assert parse_trace(" -1.5 2e1 ").tolist() == [[-1.5, 20]]
    assert parse_trace("\n").shape == (0, 2)
    with pytest.raises(ValueError): parse_trace("1, 2")


def test_write_and_read_again():
    ink = Ink("id<&>", (line((1.25, -3), (2, 1e5)), line((0, 0))), '$a<b & "c"$\x00', "Ren\u00e9e", (Symbol("<", (1,)), Symbol("x", (0, 1))), "src")
    again = read_inkml(write_inkml(ink))
    assert (again.id, again.writer, again.source, again.symbols) == (ink.id, ink.writer, ink.source, ink.symbols)
    assert again.latex == '$a<b & "c"$'  # what XML cannot hold is gone
    for a, b in zip(again.strokes, ink.strokes): np.testing.assert_allclose(a, b, atol=0.005)


def test_writer_key():
    key = lambda **k: writer_key(Ink(k.pop("id", "x"), (), **k))
    assert key(writer="depart001", source="HAMEX") == "HAMEX/depart001"
    assert key(id="2009210-947-105", source="MathBrush") == "MathBrush/2009210-947"
    assert key(writer="Unknown", source="MfrDB") == key(source="MfrDB") == "MfrDB/Unknown"


# -- CROHME's layout

@pytest.fixture()
def small_crohme(tmp_path):
    path = tmp_path / "crohme2014.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(3): archive.writestr(f"CROHME2014/TrainINKML/HAMEX/f{i}.inkml", GOOD)
        archive.writestr("CROHME2014/TrainINKML/MfrDB/empty.inkml", "")
        archive.writestr("CROHME2014/TestEM2014GT/t.inkml", GOOD)
        archive.writestr("CROHME2014/readme.txt", "no ink")
    return path


def test_zip_and_folder_give_the_same(small_crohme, tmp_path):
    inks, skipped = read_crohme(small_crohme)
    assert [(i.source, i.id) for i in inks] == [("HAMEX", "f0"), ("HAMEX", "f1"), ("HAMEX", "f2")]
    assert [name for name, _ in skipped] == ["empty"] and "empty" in skipped[0][1]
    assert [i.id for i in read_crohme(small_crohme, "test")[0]] == ["t"]
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(small_crohme) as archive: archive.extractall(unpacked)
    for path in (unpacked, unpacked / "CROHME2014", unpacked / "CROHME2014" / "TrainINKML", str(small_crohme.parent)):
        assert [(i.source, i.id) for i in read_crohme(path)[0]] == [("HAMEX", "f0"), ("HAMEX", "f1"), ("HAMEX", "f2")]


def test_missing_truncated_and_foreign_archives(small_crohme, tmp_path):
    half = tmp_path / "half.zip"
    half.write_bytes(small_crohme.read_bytes()[:400])
    (tmp_path / "none").mkdir()
    with zipfile.ZipFile(tmp_path / "foreign.zip", "w") as archive: archive.writestr("x.inkml", GOOD)
    for path, word in ((half, "download it again"), (tmp_path / "nowhere.zip", "no such file"), (tmp_path / "none", "no readable"), (tmp_path / "foreign.zip", "no readable")):
        with pytest.raises(InkError, match=word) as caught: read_crohme(path)
        assert path.name in str(caught.value) and "TC11" in str(caught.value)
    with pytest.raises(InkError, match="train, test"): read_crohme(small_crohme, "valid")


def test_a_damaged_member_is_skipped(small_crohme):
    data = bytearray(small_crohme.read_bytes())
    with zipfile.ZipFile(small_crohme) as archive: start = archive.getinfo("CROHME2014/TrainINKML/HAMEX/f1.inkml").header_offset
    data[start + 90:start + 120] = bytes(30)
    small_crohme.write_bytes(data)
    inks, skipped = read_crohme(small_crohme)
    assert [i.id for i in inks] == ["f0", "f2"] and [name for name, _ in skipped] == ["f1", "empty"]


# -- sizes

def test_symbol_height_joins_touching_strokes_and_dots():
    x = (line((0, 0), (10, 20)), line((10, 0), (0, 20)))
    i = (line((20, 8), (20, 20)), line((20, 2), (20.5, 2.5)))
    assert stroke_symbol_height(Ink("", x)) == 20
    assert stroke_symbol_height(Ink("", i)) == 18  # from the dot's top to the stem's foot
    five = (line((40, 0), (40, 8), (46, 14), (40, 20)), line((40, 0), (47, 0)))
    assert stroke_symbol_height(Ink("", five)) == 20
    bar = (line((-50, 30), (150, 30)),)
    assert stroke_symbol_height(Ink("", x + bar)) == stroke_symbol_height(Ink("", x + bar + bar)) == 20  # fraction bars have no vote


def test_symbol_height_ignores_a_majority_of_dots():
    dots = tuple(line((30 + 8 * i, 20), (30.5 + 8 * i, 20.5)) for i in range(6))
    assert stroke_symbol_height(Ink("", (line((0, 0), (10, 20)),) + dots)) == 20


def test_symbol_height_follows_scale_and_not_place():
    ink = read_inkml(GOOD.encode())
    for factor, shift in ((1, 500), (0.01, 0), (2000, -3000)):
        moved = Ink("", tuple(s * factor + shift for s in ink.strokes))
        assert stroke_symbol_height(moved) == pytest.approx(factor * stroke_symbol_height(ink), rel=1e-3)


# -- drawing

def test_drawn_sizes():
    ink = Ink("", (line((0, 0), (30, 0), (30, 30), (0, 30), (0, 0)),))
    image = rasterize(ink, symbol_height=40)
    rows = np.flatnonzero(image.max(1) > 0.5)
    assert image.dtype == np.float32 and 0 <= image.min() and image.max() == 1
    assert rows[-1] - rows[0] + 1 == 40 and rows[0] == 4  # the pen's width is part of the symbol's height
    assert (image[:, image.shape[1] // 2] > 0.5).sum() == 2 * 4  # two lines of a tenth of 40 px
    assert rasterize(ink).shape[0] == 64 and rasterize(ink, height=90).shape[0] == 90
    assert not rasterize(ink, height=64, padding=7)[:7].any()
    assert (rasterize(ink, symbol_height=40, stroke_width=8)[:, 24] > 0.5).sum() == 16


def test_the_image_does_not_depend_on_units():
    ink = read_inkml(GOOD.encode())
    a = rasterize(ink, height=48)
    b = rasterize(Ink("", tuple(s * 0.015625 + 3 for s in ink.strokes)), height=48)
    assert a.shape == b.shape and np.abs(a - b).mean() < 0.005


@pytest.mark.parametrize("strokes", [(line((5, 5)),), (line((5, 5), (5, 5), (5, 5)),), (line((0, 3), (90, 3)),), (line((4, 0), (4, 70)),),
                                     (line((0, 0)), line((10, 0)), line((20, 0)))])
def test_degenerate_inks_are_drawn(strokes):
    for size in (dict(height=32), dict(symbol_height=12), dict(height=128), dict(symbol_height=3)):
        image = rasterize(Ink("", strokes), **size)
        assert image.max() > 0.5 and image.size < 500_000
        assert size.get("height", image.shape[0]) == image.shape[0]


def test_dots_are_as_wide_as_the_pen():
    image = rasterize(Ink("", (line((0, 0), (0, 100)), line((50, 50)))), symbol_height=50)
    dot = image[:, image.shape[1] // 2:]
    assert dot.sum() == pytest.approx(np.pi * 2.5**2, rel=0.1)


def test_absurd_sizes_are_refused_before_memory_is_taken():
    wide = Ink("wide", tuple(line((x, 0), (x, 1)) for x in (0, 1, 2, 9e6)))
    with pytest.raises(InkError, match="wide"): rasterize(wide, symbol_height=20)
    for bad in (np.nan, np.inf):  # cannot come from a file
        with pytest.raises(InkError): rasterize(Ink("n", (line((0, 0), (bad, 1)),)), height=20)
    for sizes in (dict(height=0), dict(height=-3), dict(symbol_height=1e9), dict(stroke_width=0), dict(padding=-1), dict(height=8), dict(height=9, symbol_height=9)):
        with pytest.raises(InkError): rasterize(Ink("x", (line((0, 0), (3, 4)),)), **sizes)
    with pytest.raises(InkError, match="no strokes"): rasterize(Ink("x", ()))


def test_many_in_processes_as_in_one():
    inks = [read_inkml(GOOD.encode()), Ink("none", ()), *demo_inks(["a + b"], writers=1)] * 25
    one, two = (rasterize_many(inks, workers=n, progress=False, symbol_height=12) for n in (1, 2))
    assert len(one) == len(two) == 75
    for a, b in zip(one, two): assert isinstance(a, InkError) and isinstance(b, InkError) or (a == b).all()
    assert (one[0] == rasterize(inks[0], symbol_height=12)).all() and one[0].dtype == np.float32


# -- banks and stitching

def test_labels():
    assert [symbol_label(s) for s in (r"\lt", r"\cdot", r"$\cdots$", "COMMA", r"\frac", "x", r" \prime ")] == ["<", ".", r"\ldots", ",", "-", "x", r"\prime"]


def test_bank_from_inks_keeps_writers_apart_and_drops_the_mislabelled():
    def plus(w, h, writer): return Ink("i", (line((0, h / 2), (w, h / 2)), line((w / 2, 0), (w / 2, h))), writer=writer, symbols=(Symbol("+", (0, 1)),), source="s")
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
    assert set(CROHME_SYMBOLS) - set(" ".join(DRAWN).split()) <= {"{", "}", "^", "_", r"\limits", "'"} and len(CROHME_SYMBOLS) == 110


@pytest.mark.parametrize("latex", [r"\frac { \frac { a } { b } } { c } + x", r"\sqrt { \frac { 1 } { 2 } x + \sqrt { y } } - 3", r"\sum _ { i = 1 } ^ { n } ( \frac { i } { 2 } ) ^ { 2 }"])
def test_without_jitter_symbols_lie_in_their_boxes(bank, latex):
    layout = typeset(latex)
    ink = stitch(layout, bank, np.random.default_rng(1), jitter=0, latex=latex)
    pieces = _pieces(layout)
    assert [symbol.label for symbol in ink.symbols] == [piece.label for piece in pieces]
    assert sorted(i for symbol in ink.symbols for i in symbol.strokes) == list(range(len(ink.strokes)))
    for piece, symbol in zip(pieces, ink.symbols):
        points = np.concatenate([ink.strokes[i] for i in symbol.strokes]) / UNITS_PER_EM
        slack = 0.2 * max(piece.width, piece.height) + 0.1
        assert (points.min(0) >= np.array([piece.x, piece.y]) - slack).all() and (points.max(0) <= np.array([piece.right, piece.bottom]) + slack).all()


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
    assert r"\sin" in WORDS and all([s.label for s in stitch(typeset(r"\sin x"), bank, np.random.default_rng(i)).symbols] == ["s", "i", "n", "x"] for i in range(3))


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
    for i, latex in enumerate([r"a + b = c", r"\frac { x ^ { 2 } + 1 } { y _ { k } }", r"\sqrt { 2 n } - 7", r"\lim _ { n \rightarrow \infty } f ( n ) = 0",
                               r"\sum _ { k = 0 } ^ { 9 } k !", r"A B \times 3 \leq 4 \pi", r"x \cdots + z", r"\int _ { 0 } ^ { 1 } \sin \theta d \theta"] * 3):
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
    assert len(SymbolBank.from_inks(inks).writers) == len({i.writer for i in inks})  # demo ink feeds a bank like real ink


# -- the real files

@pytest.fixture(scope="module")
def crohme():
    folder = os.environ.get("FORMULA_GAN_DATA")
    if not folder: pytest.skip("FORMULA_GAN_DATA is not set")
    return {split: read_crohme(Path(folder), split) for split in CROHME_FOLDERS}


@pytest.mark.real_data
def test_all_of_crohme_is_read(crohme):
    (train, skipped), (test, none) = crohme["train"], crohme["test"]
    assert (len(train), len(test), [name for name, _ in skipped], none) == (8835, 986, ["MfrDB3088"], [])
    everyone = train + test
    assert len({(i.source, i.id) for i in everyone}) == 9821 and all(i.latex and i.symbols for i in everyone)
    assert sum(len(i.strokes) for i in everyone) == 135_125
    assert sum(len(s) == 1 for i in everyone for s in i.strokes) == 1_711
    unmarked = sum(len({j for s in i.symbols for j in s.strokes}) < len(i.strokes) for i in everyone)
    assert unmarked == 115
    assert len({writer_key(i) for i in train if i.source == "MathBrush"}) == 21
    assert {i.source for i in train} == {"HAMEX", "KAIST", "MathBrush", "MfrDB", "expressmatch", "extension"}


@pytest.mark.real_data
def test_real_ink_is_drawn_at_height_64(crohme):
    sample = crohme["train"][0][::40] + crohme["test"][0][::20] + [i for i in crohme["train"][0] if i.id == "MfrDB0104"]
    for ink, image in zip(sample, rasterize_many(sample, workers=1, progress=False, height=64)):
        assert not isinstance(image, InkError) and image.shape[0] == 64 and image.max() > 0.9, ink.id
        assert image[:2].max() == image[-2:].max() == 0, ink.id


@pytest.mark.real_data
def test_estimated_symbol_height_agrees_with_the_marked_symbols(crohme):
    from formula_gan.rendering import symbol_height
    ratios = []
    for ink in crohme["train"][0][::10]:
        spans = [np.concatenate([ink.strokes[i] for i in s.strokes]) for s in ink.symbols if s.label != r"\sqrt"]
        if spans: ratios.append(stroke_symbol_height(ink) / symbol_height(np.array([[*p.min(0), *np.ptp(p, 0)] for p in spans])))
    assert abs(np.median(ratios) - 1) < 0.03
    low, high = np.quantile(ratios, [0.1, 0.9])
    assert low > 0.83 and high < 1.18


@pytest.mark.real_data
def test_the_training_bank_covers_crohme(crohme):
    bank = SymbolBank.from_inks(crohme["train"][0])
    assert len(bank) > 80_000 and set(WORDS) <= set(bank.labels)
    for token in DRAWN: assert not bank.missing(typeset(token)), token
    ink = stitch(typeset(r"\frac { \sin x } { \sqrt { 2 } }"), bank, np.random.default_rng(0))
    assert ink.writer in bank.writers and rasterize(ink, height=64).max() > 0.9
