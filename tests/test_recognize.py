"""Images of any kind to what a recogniser expects, and `recognize`."""
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from formula_gan import cli
from formula_gan.core import FormulaGanError, get_profile
from formula_gan.data import connected_parts, draw_ink, pen_width, prepare_image
from formula_gan.ink import Ink, rasterize
from formula_gan.rendering import render
from formula_gan.reading import Reading, recognize, recognize_many
from formula_gan.task_model import Recognizer, RecognizerConfig, save_recognizer
from formula_gan.tokenizer import Vocab

LAPTOP = get_profile("laptop")
INK = Ink("xx=", tuple(np.array(s, "float32") for s in (
    [[0, 0], [8, 12]], [[8, 0], [0, 12]], [[14, 0], [22, 12]], [[22, 0], [14, 12]], [[28, 4], [38, 4]], [[28, 8], [38, 8]])))


@pytest.fixture(scope="module")
def page():
    "The ink as a float page, ink 1, symbols 48 px high, with a wide border."
    return np.pad(rasterize(INK, symbol_height=48), 30)


@pytest.fixture(scope="module")
def expected(page): return prepare_image(1 - page, LAPTOP)


@pytest.fixture(scope="module")
def novice(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("recognizer") / "r.safetensors"
    save_recognizer(Recognizer(Vocab.crohme(), RecognizerConfig(layers=1, growth=4, hidden=16, embedding=16)), path, profile="laptop")
    return path


@pytest.mark.parametrize("symbol, pen", [(16, None), (30, 2), (48, None), (48, 1.2), (120, None), (120, 3)])
def test_any_size_comes_out_as_drawn_ink(symbol, pen):
    drawn = draw_ink(INK, LAPTOP)
    image = prepare_image(1 - rasterize(INK, symbol_height=symbol, stroke_width=pen), LAPTOP) / 255
    assert np.abs(np.subtract(image.shape, drawn.shape)).max() <= 5 and abs(image.sum() / drawn.sum() - 1) < 0.35
    assert image.max() == 1 and image[0].max() == 0


def alike(image, expected, exact=False):
    "The same picture; where pixels were lost on the way its size may differ by one, and its ink by a fifth."
    if exact: return image.shape == expected.shape and np.abs(image.astype(int) - expected).mean() < 2
    return np.abs(np.subtract(image.shape, expected.shape)).max() <= 1 and abs(image.sum() / expected.sum() - 1) < 0.2


def kinds(page):
    "The same picture in other shapes, types, modes, polarities."
    gray = np.uint8(255 - 255 * page)
    black, picture = Image.fromarray(255 - gray), Image.fromarray(gray)
    clear = Image.new("RGBA", picture.size, (0, 0, 0, 0)); clear.putalpha(black)
    white = Image.new("LA", picture.size, (255, 0)); white.putalpha(black)
    return {"float": 1 - page, "inverted": page, "uint8": gray, "bool": page < 0.5, "uint16": np.uint16(gray) * 257, "int64": gray.astype("int64"),
            "negative": -page, "torch": torch.from_numpy(1 - page)[None], "rgb": np.repeat(gray[..., None], 3, 2), "rgb float": np.repeat((1 - page)[..., None], 3, 2),
            "one channel": gray[..., None], "L": picture, "inverted L": black, "RGB": picture.convert("RGB"), "P": picture.convert("P"), "CMYK": picture.convert("CMYK"),
            "1": picture.convert("1", dither=Image.Dither.NONE), "I;16": Image.fromarray(np.uint16(gray) * 256), "F": picture.convert("F"), "dark on nothing": clear, "white on nothing": white}


def test_any_kind_of_picture(page, expected):
    for name, picture in kinds(page).items():
        image = prepare_image(picture, LAPTOP)
        assert image.dtype == np.uint8 and alike(image, expected, exact=name not in ("bool", "1", "P", "CMYK")), name


def test_files(page, expected, tmp_path):
    picture = Image.fromarray(np.uint8(255 - 255 * page))
    for name in ("a.png", "a.jpg", "a.bmp", "a.gif", "a.tif", "a.webp", "a.ppm"):
        picture.save(tmp_path / name)
        assert alike(prepare_image(tmp_path / name, LAPTOP), expected, exact=name not in ("a.jpg", "a.webp")), name
    turned, exif = picture.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    turned.save(tmp_path / "turned.jpg", exif=exif)
    for file in (Image.open(tmp_path / "turned.jpg"), io.BytesIO((tmp_path / "turned.jpg").read_bytes())): assert alike(prepare_image(file, LAPTOP), expected)
    half = (tmp_path / "a.png").read_bytes()[:-40]
    for file in (io.BytesIO(half), Image.open(io.BytesIO(half))):
        with pytest.raises(FormulaGanError, match="not a? ?whole"): prepare_image(file, LAPTOP)
    assert alike(prepare_image(tmp_path / "turned.jpg", LAPTOP), expected)


def test_shadow_noise_and_specks(page, expected):
    h, w = page.shape
    y, x = np.mgrid[0:h, 0:w] / w
    photo = (220 - 100 * x + 30 * y) * (1 - 0.6 * page) + np.random.default_rng(0).normal(0, 4, page.shape)
    photo[5:7, 5:7] = 0
    image = prepare_image(np.uint8(photo.clip(0, 255)), LAPTOP)
    assert np.abs(np.subtract(image.shape, expected.shape)).max() <= 2 and abs(image.sum() / expected.sum() - 1) < 0.3


def test_parts_and_pen():
    boxes, part = connected_parts(np.eye(5, dtype=bool) | np.eye(5, dtype=bool)[::-1])
    assert boxes.tolist() == [[0, 0, 5, 5]] and set(part) == {0}
    assert len(connected_parts(np.zeros((3, 3), bool))[0]) == 0
    line = np.zeros((40, 100), "float32"); line[10:14, 5:95] = 1
    assert abs(pen_width(line) - 4) < 0.4


@pytest.mark.parametrize("picture, message", [
    (np.zeros((20, 20)), "no ink"), (np.full((20, 20), 3), "no ink"), (np.full((20, 20), np.nan), "NaN"), (np.zeros((2, 2, 2)), "array"), (np.zeros(5), "array"),
    (np.array([["a"]]), "array"), (None, "array"), (np.zeros((0, 4)), "px"), (np.broadcast_to(np.uint8(0), (2**14, 2**13)), "Mpx"), ("none.png", "none.png: no such file"),
    (__file__, "not a whole image")])
def test_what_is_no_picture(picture, message):
    with pytest.raises(FormulaGanError, match=message): prepare_image(picture, LAPTOP)


def test_a_gigapixel_is_refused_before_it_is_decoded(tmp_path):
    content = io.BytesIO()
    Image.new("1", (16, 16)).save(content, "PNG")
    head = bytearray(content.getvalue())
    head[16:24] = (100_000).to_bytes(4, "big") * 2
    import zlib
    head[29:33] = zlib.crc32(head[12:29]).to_bytes(4, "big")
    (tmp_path / "giga.png").write_bytes(head)
    with pytest.raises(FormulaGanError, match="giga.png has more than 64 Mpx"): prepare_image(tmp_path / "giga.png", LAPTOP)


def test_recognize(page, novice):
    reading = recognize(1 - page, novice, beam_size=2)
    assert isinstance(reading, Reading) and 0 < reading.score < 1 and all(t in Vocab.crohme() for t in reading.latex.split())
    assert reading == recognize(page, novice, beam_size=2)
    with pytest.raises(FormulaGanError, match="no recognizer 'none'"): recognize(page, "none")


def test_shipped_recognizer_reads_print():
    "Plain print at another size than its own; it reads over half of such formulas without an error."
    formulas = ["x ^ { 2 } + 1", "a + b = c", "\\frac { 1 } { 2 }", "y = 3 x - 4", "\\sqrt { 2 }", "n ( n + 1 )"]
    right = [recognize(render(f, size=40)).latex == f for f in formulas]
    assert sum(right) >= 3, [recognize(render(f, size=40)).latex for f in formulas]


def test_command(page, novice, tmp_path, capsys):
    Image.fromarray(np.uint8(255 * page)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    a, b, options = str(tmp_path / "a.png"), str(tmp_path / "b.png"), ["--recognizer", str(novice), "--beam-size", "1"]
    assert cli.main(["recognize", a, *options]) == 0
    path, score, latex = capsys.readouterr().out.rstrip("\n").split("\t")
    assert path == a and 0 < float(score) < 1 and latex == recognize(a, novice, 1).latex
    assert cli.main(["recognize", a, b, "--json", *options]) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["file"] == a and "skipped" in shown.err and "b.png" in shown.err
    assert cli.main(["recognize", b, *options]) == 2 and "not a whole image" in capsys.readouterr().err


def test_many_are_read_in_order_and_mistakes_keep_their_place(page, novice):
    images = [1 - page, np.ones((9, 9)), 1 - np.pad(page, 40), "none.png", page]
    readings = list(recognize_many(images, novice, 1, together=2))
    assert [isinstance(r, FormulaGanError) for r in readings] == [False, True, False, True, False]
    assert "no ink" in str(readings[1]) and "no such file" in str(readings[3])
    assert readings[0] == recognize(1 - page, novice, 1) == readings[4]
    assert list(recognize_many([], novice)) == []


def test_ink_that_is_not_read_is_told():
    "A second line that no look touches; a part counts as a whole, however large."
    from formula_gan.reading import MOST_UNREAD, unread_share
    ink = np.zeros((32, 64), "float32")
    ink[2:12, 4:60] = 1  # one long stroke, looked at in one place
    ink[20:30, 4:18] = 1
    look = np.zeros((4, 8), "float32")
    look[0, 6] = 0.5
    share = unread_share(ink, [look])
    assert share == pytest.approx(140 / 700) and not Reading("x", 0.9, share).complete
    look[3, 1] = 0.5
    assert unread_share(ink, [look]) == 0 and Reading("x", 0.9, MOST_UNREAD).complete


def test_the_packaged_one_flags_a_page_of_two_lines(tmp_path, capsys):
    line = render("a + b = c", size=28)
    two = np.zeros((40 + 2 * line.shape[0], line.shape[1] + 20), "float32")
    two[10:10 + line.shape[0], 10:10 + line.shape[1]] = two[-10 - line.shape[0]:-10, 10:10 + line.shape[1]] = line
    (tmp_path / "deep").mkdir()
    for name, picture in (("a.png", line), ("deep/b.png", two)): Image.fromarray(np.uint8(255 - 255 * np.pad(picture, 8))).save(tmp_path / name)
    assert cli.main(["recognize", str(tmp_path), "--json"]) == 0
    shown = capsys.readouterr()
    one, other = map(json.loads, shown.out.splitlines())
    assert one["file"].endswith("a.png") and one["latex"] == "a + b = c" and one["complete"] and one["unread"] == 0
    assert other["file"].endswith("b.png") and not other["complete"] and other["unread"] > 0.12 and "of the ink is not in the reading" in shown.err
    (tmp_path / "empty").mkdir()
    assert cli.main(["recognize", str(tmp_path / "empty")]) == 2 and "holds no image" in capsys.readouterr().err
