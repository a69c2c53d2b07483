"""Pictures of any kind to what a recogniser expects, and test sets of them."""
import io

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from formula_gan.core import FormulaGanError, get_profile
from formula_gan.data import draw_ink, oracle_heights
from formula_gan.ink import Ink, rasterize
from formula_gan.captions import read_test_set
from formula_gan.scans import (dark_margin, drop_frame, drop_rules, find_ink, has_light_ink, paper_level, pen_width,
                               prepare_image, thicken)

LAPTOP = get_profile("laptop")
INK = Ink("xx=", tuple(np.array(s, "float32") for s in (
    [[0, 0], [8, 12]],
    [[8, 0], [0, 12]],
    [[14, 0], [22, 12]],
    [[22, 0], [14, 12]],
    [[28, 4], [38, 4]],
    [[28, 8], [38, 8]],
)))


@pytest.fixture(scope="module")
def page():
    "The ink as a float page, ink 1, symbols 48 px high, with a wide border."
    return np.pad(rasterize(INK, symbol_height=48), 30)


@pytest.fixture(scope="module")
def expected(page): return prepare_image(1 - page, LAPTOP)


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
    clear = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    clear.putalpha(black)
    white = Image.new("LA", picture.size, (255, 0))
    white.putalpha(black)
    return {
        "float": 1 - page,
        "inverted": page,
        "uint8": gray,
        "bool": page < 0.5,
        "uint16": np.uint16(gray) * 257,
        "int64": gray.astype("int64"),
        "negative": -page,
        "torch": torch.from_numpy(1 - page)[None],
        "rgb": np.repeat(gray[..., None], 3, 2),
        "rgb float": np.repeat((1 - page)[..., None], 3, 2),
        "one channel": gray[..., None],
        "L": picture,
        "inverted L": black,
        "RGB": picture.convert("RGB"),
        "P": picture.convert("P"),
        "CMYK": picture.convert("CMYK"),
        "1": picture.convert("1", dither=Image.Dither.NONE),
        "I;16": Image.fromarray(np.uint16(gray) * 256),
        "F": picture.convert("F"),
        "dark on nothing": clear,
        "white on nothing": white,
    }


def test_any_kind_of_picture(page, expected):
    for name, picture in kinds(page).items():
        image = prepare_image(picture, LAPTOP)
        assert image.dtype == np.uint8 and alike(image, expected, exact=name not in ("bool", "1", "P", "CMYK")), name


def test_files(page, expected, tmp_path):
    picture = Image.fromarray(np.uint8(255 - 255 * page))
    for name in ("a.png", "a.jpg", "a.bmp", "a.gif", "a.tif", "a.webp", "a.ppm"):
        picture.save(tmp_path / name)
        assert alike(prepare_image(tmp_path / name, LAPTOP), expected, exact=name not in ("a.jpg", "a.webp")), name
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    turned.save(tmp_path / "turned.jpg", exif=exif)
    for file in (Image.open(tmp_path / "turned.jpg"), io.BytesIO((tmp_path / "turned.jpg").read_bytes())):
        assert alike(prepare_image(file, LAPTOP), expected)
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


@pytest.mark.parametrize("picture, message", [
    (np.zeros((20, 20)), "no ink"),
    (np.full((20, 20), 3), "no ink"),
    (np.full((20, 20), np.nan), "NaN"),
    (np.zeros((2, 2, 2)), "array"),
    (np.zeros(5), "array"),
    (np.array([["a"]]), "array"),
    (None, "array"),
    (np.zeros((0, 4)), "px"),
    (np.broadcast_to(np.uint8(0), (2**14, 2**13)), "Mpx"),
    ("none.png", "none.png: no such file"),
    (__file__, "not a whole image"),
])
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
    with pytest.raises(FormulaGanError, match="giga.png has more than 64 Mpx"):
        prepare_image(tmp_path / "giga.png", LAPTOP)


@pytest.mark.parametrize("angle", [0, 30, 45, 80, 90, 150])
@pytest.mark.parametrize("ink", [0.4, 0.9])
def test_a_hard_shadow_leaves_no_trace(page, expected, angle, ink):
    "Whichever way its edge runs; of pale ink only a stroke along the edge loses a piece."
    h, w = page.shape
    y, x = np.mgrid[0:h, 0:w] - np.array([h, w])[:, None, None] / 2
    light = np.where(x * np.cos(np.deg2rad(angle)) + y * np.sin(np.deg2rad(angle)) > 0, 100, 220)
    photo = np.uint8(light * (1 - ink * page))
    assert not has_light_ink(photo)
    assert (np.abs(paper_level(photo).astype(int) - light) > 20).mean() < 0.01
    wrong = (find_ink(np.float32(photo)) > 0.5) != (page > 0.5)
    assert wrong.sum() < (0.02 if ink == 0.9 else 0.1) * (page > 0.5).sum()
    if ink == 0.9: assert alike(prepare_image(photo, LAPTOP), expected)


@pytest.mark.parametrize("thickness, gap", [(1, 0), (1, 12), (4, 0), (4, 9), (14, 0), (14, 5), (40, 0)])
def test_a_frame_is_left_out(page, expected, thickness, gap):
    framed = np.pad(np.pad(page, thickness, constant_values=1), gap)
    for picture in (1 - framed, 0.8 - 0.6 * framed): assert alike(prepare_image(picture, LAPTOP), expected)


def test_a_turned_frame_is_left_out(page, expected):
    framed = np.pad(np.pad(page, 4, constant_values=1), 30)
    h, w = framed.shape
    turned = cv2.warpAffine(np.float32(framed), cv2.getRotationMatrix2D((w / 2, h / 2), 3, 1), (w, h))
    ink = find_ink(255 - 255 * turned)
    assert 0.7 < drop_frame(ink).sum() / page.sum() < 1.3


def test_what_is_no_frame(page):
    "A lone box, a large ring around a symbol, and a root over everything."
    y, x = np.mgrid[-50:50, -50:50]
    ring = (np.abs(np.hypot(x, y) - 45) < 3) | (np.hypot(x, y) < 8)
    root = np.pad(page > 0.5, ((8, 0), (8, 0)), constant_values=True)
    box = np.pad(np.zeros((50, 50), bool), 4, constant_values=True)
    for picture in (ring, root, box):
        ink = np.float32(np.pad(picture, 10))
        assert np.array_equal(drop_frame(ink), ink)


@pytest.mark.parametrize("sides", ["t", "b", "l", "tb", "tl", "tlb", "tblr"])
@pytest.mark.parametrize("thickness, gap", [(1, 0), (5, 0), (2, 6)])
def test_part_of_a_frame_is_left_out(page, expected, sides, thickness, gap):
    "Along some sides, and rules that end only where the picture does."
    picture = np.pad(page, 20)
    line = slice(gap, gap + thickness)
    for turn, side in enumerate("trbl"):
        if side in sides: np.rot90(picture, turn)[line] = 0.9
    assert alike(prepare_image(1 - 0.8 * picture, LAPTOP), expected)


@pytest.mark.parametrize("sides", [1, 2, 4], ids=["two sides", "three sides", "all"])
def test_paper_on_a_black_table(page, expected, sides):
    "Askew, so that the margin has no even width; strokes in what is dark make it a shadow."
    picture = np.uint8(230 - 180 * np.pad(page, 30))
    h, w = picture.shape
    x, y = np.meshgrid(np.arange(w), np.arange(h))
    edges = [x < 14 + 0.04 * y, y < 20 - 0.05 * x, x > w - 18 + 0.03 * y, y > h - 12 - 0.03 * x]
    table = np.any(edges[:sides + 1], 0)
    assert alike(prepare_image(np.where(table, 25, picture), LAPTOP), expected)
    assert not dark_margin(picture).any()
    assert not dark_margin(np.where(table & (x % 9 > 1), 80, np.where(table, 10, picture)).astype("uint8")).any()


def bars_of_formulas():
    "Cropped to the ink, with all bars straight: name -> what is to stay whole."
    a = np.zeros((40, 30), "float32")
    a[:, :4] = a[:, -4:] = a[:4] = a[18:22] = 1
    gap, bar = np.zeros((12, 30), "float32"), np.ones((4, 30), "float32")
    fraction = np.vstack([a, gap, bar, gap, a])
    root = np.pad(np.vstack([bar, gap, a]), ((0, 0), (14, 4)))
    root[:4] = root[:, 10:14] = root[30:, :14:8] = 1
    stroke = np.ones((64, 4), "float32")
    upright = np.hstack([stroke, np.pad(a, ((12, 12), (14, 14))), stroke])
    low = np.pad(np.hstack([np.zeros((40, 20), "float32"), a[20:].repeat(2, 0)]), 0)
    return {
        "fraction": fraction,
        "root": root,
        "letter with a bar": np.vstack([bar, gap, a]),
        "absolute value": upright,
        "equals": np.vstack([bar, gap, bar]),
        "one": np.hstack([np.ones((40, 4), "float32"), low]),
        "under a bar": np.vstack([a, gap, bar]),
    }


@pytest.mark.parametrize("name", list(bars_of_formulas()))
@pytest.mark.parametrize("border", [0, 1, 20])
def test_bars_of_formulas_stay(name, border):
    ink = np.pad(bars_of_formulas()[name], border)
    assert np.array_equal(drop_rules(ink), ink)
    assert not dark_margin(np.uint8(255 - 200 * ink)).any()


def test_a_framed_fraction_keeps_its_bar():
    ink = np.pad(bars_of_formulas()["fraction"], 30)
    framed = np.pad(ink, 5, constant_values=1)
    kept = drop_rules(framed)[5:-5, 5:-5]
    assert np.array_equal(kept, ink)


def test_a_felt_pen_is_not_taken_for_shadow(page, expected):
    thick = cv2.dilate(np.float32(page), np.ones((13, 13)))
    ink = find_ink(230 - 200 * thick)
    assert 0.95 < (ink > 0.5).sum() / (thick > 0.5).sum() < 1.05


def test_pen_width():
    line = np.zeros((40, 100), "float32")
    line[10:14, 5:95] = 1
    assert abs(pen_width(line) - 4) < 0.4
    for reach in (0.0, 0.5, 1.0, 3.3): assert abs(pen_width(thicken(line, reach) / 255) - 4 - 2 * reach) < 1.1


@pytest.fixture
def ink():
    from formula_gan.demo_hands import demo_inks
    return demo_inks([r"\frac { a } { b } + x ^ { 2 }"], writers=1)[0]


def test_images_by_path(ink, tmp_path):
    drawn = np.uint8(255 * draw_ink(ink, get_profile("laptop")))
    Image.fromarray(np.pad(drawn, 9)).save(tmp_path / "white_on_black.bmp")
    Image.fromarray(255 - np.pad(drawn, 9)).save(tmp_path / "black_on_white.png")
    Image.fromarray(np.zeros((20, 20), "uint8")).save(tmp_path / "blank.png")
    (tmp_path / "labels.tsv").write_text("image\tfont\tlatex\n"
                                         "white_on_black\tx\ta b\n"
                                         "black_on_white.png\tx\ta b\n"
                                         "blank.png\tx\tc\n"
                                         "lost.png\tx\td\n")
    test_set = read_test_set(tmp_path, progress=False)
    for sizing in ("symbol", "height", "symbol-oracle"):
        profile = get_profile("laptop", sizing=sizing, workers=1)
        images = test_set.images(profile)
        assert len(images) == 2 and (images[0] == images[1]).all() and images.tokens == ["a b"] * 2
        if sizing == "height": assert images.shapes[0, 0] == 128
        if sizing == "symbol-oracle": assert images.shapes[0, 0] == oracle_heights(["a b"], profile)[0]
        if sizing == "symbol":
            assert abs(images.shapes[0, 1] / drawn.shape[1] - 1) < 0.4  # about the size it was drawn at
    assert test_set.skipped == [("lost", "its caption has no file")] and len(test_set.items) == 3
    huge = Image.fromarray(np.kron(np.pad(255 - drawn, 9, constant_values=255), np.ones((30, 30), "uint8")))
    assert prepare_image(huge, get_profile("laptop", symbol_height=600)).size <= 640_000


def test_test_sets_that_cannot_be_scored(tmp_path):
    with pytest.raises(FormulaGanError, match="no test set"): read_test_set(tmp_path / "none")
    with pytest.raises(FormulaGanError, match="holds nothing to score"): read_test_set(tmp_path, progress=False)
    (tmp_path / "x.zip").write_bytes(b"PK")
    with pytest.raises(FormulaGanError, match="no whole zip"): read_test_set(tmp_path / "x.zip")
    (tmp_path / "caption.txt").write_text("a\n")
    with pytest.raises(FormulaGanError, match="line 1 has no caption"): read_test_set(tmp_path, progress=False)
    (tmp_path / "labels.tsv").write_text("")
    with pytest.raises(FormulaGanError, match="several caption files"): read_test_set(tmp_path, progress=False)


def test_captions_find_files_by_folder_and_name(tmp_path):
    "With as many folders as both give; names may hold full stops."
    for name in ("a/1.png", "b/1.png", "f.1.png", "deep/er/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 9), 255).save(tmp_path / name)
    def truths(*lines):
        (tmp_path / "caption.txt").write_text("".join(f"{line}\n" for line in lines))
        found = read_test_set(tmp_path, progress=False)
        return {name: truth for name, truth, _ in found.items}, [name for name, _ in found.skipped]
    found = {"a/1.png": "x", "b/1.png": "y", "f.1.png": "z", "deep/er/2.png": "w"}
    assert truths("a/1\tx", "./b/1.png\ty", "f.1\tz", "2\tw") == (found, [])
    assert truths("c/2\tw", "d/3\tx") == ({"deep/er/2.png": "w"}, ["a/1.png", "b/1.png", "d/3", "f.1.png"])
    with pytest.raises(FormulaGanError, match="2 files for the one caption of 1"): truths("1\tx")
    with pytest.raises(FormulaGanError, match="two captions of f.1"): truths("f.1\tx", "f.1.png\ty")


@pytest.mark.parametrize("format", ["webdataset", "imagefolder", "captions"])
def test_own_sets_are_test_sets(tmp_path, format):
    from formula_gan.sagan import Generator
    from formula_gan.synthesis import synthesize
    torch.manual_seed(0)
    generator = Generator(8)
    generator.facts = {"profile": "demo"}
    formulas = ["x + 1", r"\frac { a } { b }", "y"]
    synthesize(formulas, tmp_path / "set", generator, format=format, shard_size=64, device="cpu", progress=False)
    found = read_test_set(tmp_path / "set", progress=False)
    assert sorted(truth for _, truth, _ in found.items) == sorted(formulas) and not found.skipped
    assert all(isinstance(source, Image.Image) for _, _, source in found.items)


@pytest.mark.parametrize("line", ['{"file": ', '{"file": "images/1.png"}', '["file"]', "\xff"])
def test_a_damaged_manifest_is_named(tmp_path, line):
    (tmp_path / "manifest").mkdir()
    (tmp_path / "manifest" / "shard-0.jsonl").write_bytes(line.encode("latin-1") + b"\n")
    Image.new("L", (9, 9), 255).save(tmp_path / "1.png")
    with pytest.raises(FormulaGanError, match="shard-0.jsonl is damaged"): read_test_set(tmp_path, progress=False)


def test_pictures_with_a_number_find_their_formula(tmp_path):
    (tmp_path / "caption.txt").write_text("18_em_0\tx\n18_em_1\ty\n")
    for name in ("18_em_0_0", "18_em_1_0"): Image.new("L", (9, 9), 255).save(tmp_path / f"{name}.bmp")
    assert [(name, truth) for name, truth, _ in read_test_set(tmp_path, progress=False).items] == [
        ("18_em_0_0.bmp", "x"),
        ("18_em_1_0.bmp", "y"),
    ]
