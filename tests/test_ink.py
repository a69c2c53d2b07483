"""Ink: reading and writing InkML, sizes, drawing, tokens of symbols."""
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from formula_gan.ink import (Ink, InkError, Symbol, evenly_along, ink_tokens, rasterize, rasterize_many, read_inkml,
                             stroke_symbol_height, symbol_label, write_inkml, writer_key)
from formula_gan.ink_files import CROHME_FOLDERS, read_crohme
from formula_gan.inkml import parse_trace

HEAD = '<ink xmlns="http://www.w3.org/2003/InkML">'
GOOD = (HEAD + '<annotation type="truth">$a&lt;b$</annotation><annotation type="writer">w</annotation>'
        '<trace id="0">0 0, 3 10, 6 0</trace><trace id="1">9 2 171, 9 2 188</trace><trace id="2">12 9</trace>'
        '<traceGroup xml:id="9"><annotation type="truth">Segmentation</annotation>'
        '<traceGroup><annotation type="truth">a</annotation>'
        '<traceView traceDataRef="0"/><traceView traceDataRef="2"/></traceGroup>'
        '<traceGroup><annotation type="truth">\\lt</annotation>'
        '<traceView traceDataRef="#1"/></traceGroup></traceGroup></ink>')


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


def channels(*names, where="{}"):
    return where.format("<traceFormat>" + "".join(f'<channel name="{name}"/>' for name in names) + "</traceFormat>")


@pytest.mark.parametrize("declared, positions", [
    ("", [[1, 2], [5, 6]]),
    (channels("X", "Y", "T", "F"), [[1, 2], [5, 6]]),
    (channels("T", "X", "Y", "F"), [[2, 3], [6, 7]]),
    (channels("Y", "F", "T", "X"), [[4, 1], [8, 5]]),
    (channels("T", "F"), [[1, 2], [5, 6]]),
    (channels("T", "F") + channels("F", "T", "X", "Y"), [[3, 4], [7, 8]]),
    (channels("T", "X", "Y", where="<definitions><context><inkSource>{}</inkSource></context></definitions>"),
     [[2, 3], [6, 7]]),
])
def test_the_trace_format_says_which_numbers_are_x_and_y(declared, positions):
    ink = read_inkml((HEAD + declared + '<trace id="0">1 2 3 4, 5 6 7 8</trace></ink>').encode())
    assert [stroke.tolist() for stroke in ink.strokes] == [positions]


def test_points_without_a_declared_channel_are_refused():
    with pytest.raises(InkError, match="trace 0.*at least 3"):
        read_inkml((HEAD + channels("T", "X", "Y") + '<trace id="0">1 2, 5 6</trace></ink>').encode())


@pytest.mark.parametrize("kinds, latex", [
    (["label"], "label"),
    (["label", "normalizedLabel"], "normalizedLabel"),
    (["normalizedLabel", "label"], "normalizedLabel"),
    (["label", "normalizedLabel", "truth"], "truth"),
    (["splitTagOriginal"], ""),
])
def test_labels_of_mathwriting_are_read(kinds, latex):
    notes = "".join(f'<annotation type="{kind}"> {kind} </annotation>' for kind in kinds)
    trace = '<trace id="0">1 2</trace></ink>'
    assert read_inkml((HEAD + notes + trace).encode()).latex == latex
    notes = '<annotation type="truth"> </annotation>' + notes.replace("truth", "other")
    assert read_inkml((HEAD + notes + trace).encode()).latex == latex.replace("truth", "normalizedLabel")


def test_a_symbol_without_one_of_its_strokes_is_dropped_and_counted():
    whole, lacking = read_inkml(GOOD.encode()), read_inkml(GOOD.replace('Ref="0"', 'Ref="7"').encode())
    assert (whole.dropped, lacking.dropped) == (0, 1)
    assert lacking.symbols == (Symbol("\\lt", (1,)),) and len(lacking.strokes) == 3 and lacking.latex == whole.latex
    none = read_inkml(GOOD.replace("Ref=", "Ref_=").encode())  # a group that points to nothing at all
    assert none.symbols == () and none.dropped == 2


def test_symbols_are_read_in_the_order_of_their_mathml():
    tree = '<annotationXML><math><mfrac xml:id="bar"><mi xml:id="a"/><mi id="b"/></mfrac></math></annotationXML>'
    groups = [(0, "a", "a"), (1, "b", "b"), (2, "-", "#bar"), (3, "?", "nowhere")]
    links = [f'<traceGroup><annotation type="truth">{label}</annotation><traceView traceDataRef="{n}"/>'
             f'<annotationXML href="{leaf}"/></traceGroup>' for n, label, leaf in groups]
    traces = [f'<trace id="{n}">{n} 0</trace>' for n in range(4)]
    ink = read_inkml((HEAD + "".join(traces + links) + tree + "</ink>").encode())
    assert ink.symbols == (Symbol("-", (2,)), Symbol("a", (0,)), Symbol("b", (1,)), Symbol("?", (3,)))
    assert ink_tokens(ink.with_latex(r"\frac { a } { b }")).tolist() == [0, 2, 5, -1]


@pytest.mark.parametrize("change, cause", [
    (lambda t: "", "empty"),
    (lambda t: "  \n", "empty"),
    (lambda t: t[:300], "broken XML"),
    (lambda t: "no xml", "broken XML"),
    (lambda t: "<html/>", "not <ink>"),
    (lambda t: HEAD + "</ink>", "no strokes"),
    (lambda t: t.replace("3 10", "nan 10"), "NaN or infinite"),
    (lambda t: t.replace("3 10", "1e999 10"), "NaN or infinite"),
    (lambda t: t.replace("3 10", "3e9 10"), "beyond 1e+07"),
    (lambda t: t.replace("3 10", "3"), "same count of numbers, at least 2"),
    (lambda t: t.replace("3 10", "3 ten"), "could not convert"),
    (lambda t: t.replace('id="2"', 'id="1"'), "id 1"),
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
    deep = "<annotationXML>" + "<m>" * 50_000 + "</m>" * 50_000 + "</annotationXML>"
    ink = read_inkml((HEAD + '<trace id="0">0 0, 1 1</trace>' + deep + "</ink>").encode())
    assert len(ink.strokes) == 1


def test_parse_trace():
    assert parse_trace("1 2 3,4 5 6\n, 7 8 9,").tolist() == [[1, 2], [4, 5], [7, 8]]
    assert parse_trace(" -1.5 2e1 ").tolist() == [[-1.5, 20]]
    assert parse_trace("\n").shape == (0, 2)
    assert parse_trace("7 1 2, 8 3 4", (1, 2)).tolist() == [[1, 2], [3, 4]]
    assert parse_trace("2 1", (1, 0)).tolist() == [[1, 2]]
    for bad in ("1, 2", "1 2, 3 4 5, 6"):  # the second has as many numbers as three points of two
        with pytest.raises(ValueError, match="same count"): parse_trace(bad)
    with pytest.raises(ValueError, match="at least 3"): parse_trace("1 2, 3 4", (1, 2))


def test_write_and_read_again():
    ink = Ink("id<&>", (line((1.25, -3), (2, 1e5)), line((0, 0))), '$a<b & "c"$\x00', "Ren\u00e9e",
              (Symbol("<", (1,)), Symbol("x", (0, 1))), "src")
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
    for path, word in (
        (half, "download it again"),
        (tmp_path / "nowhere.zip", "no such file"),
        (tmp_path / "none", "no readable"),
        (tmp_path / "foreign.zip", "no readable"),
    ):
        with pytest.raises(InkError, match=word) as caught: read_crohme(path)
        assert path.name in str(caught.value) and "TC11" in str(caught.value)
    with pytest.raises(InkError, match="train, test"): read_crohme(small_crohme, "valid")


def test_a_damaged_member_is_skipped(small_crohme):
    data = bytearray(small_crohme.read_bytes())
    with zipfile.ZipFile(small_crohme) as archive:
        start = archive.getinfo("CROHME2014/TrainINKML/HAMEX/f1.inkml").header_offset
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
    # fraction bars have no vote
    assert stroke_symbol_height(Ink("", x + bar)) == stroke_symbol_height(Ink("", x + bar + bar)) == 20


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


@pytest.mark.parametrize("strokes", [
    (line((5, 5)),),
    (line((5, 5), (5, 5), (5, 5)),),
    (line((0, 3), (90, 3)),),
    (line((4, 0), (4, 70)),),
    (line((0, 0)), line((10, 0)), line((20, 0))),
])
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
    for sizes in (dict(height=0), dict(height=-3), dict(symbol_height=1e9), dict(stroke_width=0), dict(padding=-1),
                  dict(height=8), dict(height=9, symbol_height=9)):
        with pytest.raises(InkError): rasterize(Ink("x", (line((0, 0), (3, 4)),)), **sizes)
    with pytest.raises(InkError, match="no strokes"): rasterize(Ink("x", ()))


def test_many_in_processes_as_in_one():
    inks = [read_inkml(GOOD.encode()), Ink("none", ()), Ink("cross", (line((0, 0), (9, 9)), line((9, 0), (0, 9))))] * 25
    one, two = (rasterize_many(inks, workers=n, progress=False, symbol_height=12) for n in (1, 2))
    assert len(one) == len(two) == 75
    for a, b in zip(one, two): assert isinstance(a, InkError) and isinstance(b, InkError) or (a == b).all()
    assert (one[0] == rasterize(inks[0], symbol_height=12)).all() and one[0].dtype == np.float32


# -- symbols and tokens

def test_labels():
    written = (r"\lt", r"\cdot", r"$\cdots$", "COMMA", r"\frac", "x", r" \prime ")
    assert [symbol_label(s) for s in written] == ["<", ".", r"\ldots", ",", "-", "x", r"\prime"]


def test_letters_of_a_function_are_its_token():
    def tokens(latex, *labels):
        return ink_tokens(Ink("", (), latex, symbols=tuple(Symbol(label, ()) for label in labels))).tolist()
    assert tokens(r"\sin x < 2", "s", "i", "n", "x", r"\lt", "2") == [0, 0, 0, 1, 2, 3]
    assert tokens(r"\sin x < 2", r"\sin", "x", r"\gt", "2") == [0, 1, -1, 3]  # mislabelled
    assert tokens(r"x ^ { 2 }", "2", "x") == [-1, 0]  # out of order: one of the two is not found


def test_positions_along_a_stroke():
    assert evenly_along(line((0, 0), (1, 0), (4, 0), (4, 4)), 5).tolist() == [[0, 0], [2, 0], [4, 0], [4, 2], [4, 4]]
    assert evenly_along(line((3, 4)), 3).tolist() == [[3, 4]] * 3


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
    from formula_gan.layout import symbol_height
    ratios = []
    for ink in crohme["train"][0][::10]:
        spans = [np.concatenate([ink.strokes[i] for i in s.strokes]) for s in ink.symbols if s.label != r"\sqrt"]
        if spans:
            boxes = np.array([[*p.min(0), *np.ptp(p, 0)] for p in spans])
            ratios.append(stroke_symbol_height(ink) / symbol_height(boxes))
    assert abs(np.median(ratios) - 1) < 0.03
    low, high = np.quantile(ratios, [0.1, 0.9])
    assert low > 0.83 and high < 1.18
