"""Pictures: enlargement, pen, outlines drawn again, paper, colours and faults."""
import re

import cv2
import numpy as np
import pytest
from PIL import Image

from formula_gan.core import FormulaGanError, get_profile
from formula_gan.data import draw_ink
from formula_gan.faults import paper_lines, photo_faults
from formula_gan.pictures import Look, change_pen, colour, enlarge, outlines, path_data, picture, svg
from formula_gan.rendering import draw_svg
from formula_gan.demo_hands import demo_inks


@pytest.fixture(scope="module")
def small():
    ink, = demo_inks([r"\frac { x ^ { 2 } } { 8 } = \theta"], seed=1)
    return np.uint8(np.rint(255 * np.pad(draw_ink(ink, get_profile("laptop")), 3)))


def test_an_enlarged_disc_is_a_disc_with_a_sharp_edge():
    y, x = np.mgrid[:24, :24]
    disc = np.uint8(255 * np.clip(8.5 - np.hypot(x - 12, y - 12), 0, 1))  # radius 8
    large = enlarge(disc, 6)
    assert large.shape == (144, 144) and abs((large > 127).sum() / (np.pi * 48 ** 2) - 1) < 0.06
    assert ((large > 12) & (large < 243)).sum() / (2 * np.pi * 48) < 2  # px that the edge is wide
    assert enlarge(disc, 1) is disc and enlarge(disc, 0.5).shape == (12, 12)


def test_a_faint_stroke_stays_whole_beside_a_black_one():
    page = np.zeros((24, 60), "uint8")
    page[5:7, 5:55] = 255  # black
    page[16:18, 5:55] = 90  # faint
    page[10] = 20  # haze
    large = enlarge(page, 5)
    assert large[27:33, 50:250].min() > 200 and large[82:88, 50:250].min() > 200 and large[48:58].max() == 0


@pytest.mark.parametrize("scale", [1, 3, 6])
def test_a_pen_moves_every_edge_by_the_same_distance(scale):
    bar = np.zeros((20, 70), "uint8")
    bar[8:11, 8:62] = 255
    widths = [change_pen(bar, width, scale)[:, 35 * scale].sum() / 255 / scale for width in (2.5, 3.5, 4.5)]
    assert np.allclose(np.diff(widths), 1, atol=0.1) and abs(widths[0] - 2.5) < 0.3
    assert (change_pen(bar, 0.1, scale) > 127).any(0).sum() > 50 * scale  # what would be lost stays


def test_outlines_drawn_again_are_the_image(small):
    for scale in (6, 8):
        large = enlarge(small, scale)
        drawn = draw_svg(f'<path fill-rule="evenodd" d="{path_data(outlines(large))}"/>', *large.shape[::-1])
        assert np.abs(drawn - large / 255).mean() < 0.005
    assert abs(drawn.sum() / (large / 255).sum() - 1) < 0.04  # neither fatter nor thinner


def test_outlines_keep_holes_and_places():
    ring = np.zeros((90, 90), "uint8")
    cv2.circle(ring, (50, 40), 30, 255, -1)
    cv2.circle(ring, (50, 40), 15, 0, -1)
    outer, inner = sorted(outlines(ring), key=lambda points: -np.ptp(points[:, 0]))
    assert np.allclose([outer.mean(0), inner.mean(0)], [[50.5, 40.5]] * 2, atol=0.7)
    assert abs(np.ptp(outer[:, 0]) - 61) < 1.2 and abs(np.ptp(inner[:, 0]) - 29) < 1.2
    assert outlines(np.zeros((9, 9), "uint8")) == []


def test_svg_has_the_size_of_the_picture_and_its_colours(small):
    look = Look(scale=2, ink_colour="navy", paper_colour="#fffbe8", paper="squared")
    text = svg(enlarge(small, 6), look, height=72, seed=0, shrink=3)
    shown = picture(enlarge(small, 2), look, height=24, seed=0)
    width, height = (float(re.search(rf' {side}="([\d.]+)"', text)[1]) for side in ("width", "height"))
    assert abs(width - shown.width) < 4 and abs(height - shown.height) < 4
    assert text.count("<path") == 3 and 'fill="#0000' not in text and 'fill="navy"' in text and 'fill="#fffbe8"' in text
    with pytest.raises(FormulaGanError, match="pixels"): svg(small, Look(faults=True), 12, 0)


def test_plain_pictures_are_the_ink_on_white(small):
    shown = picture(small, Look(), 12, seed=5)
    assert shown.mode == "L" and np.array_equal(255 - np.asarray(shown)[4:-4, 4:-4], small)


def test_colours_and_lines(small):
    shown = np.asarray(picture(small, Look(ink_colour="#102030", paper_colour="rgb(250, 240, 230)"), 12, 0))
    assert shown[0, 0].tolist() == [250, 240, 230]
    assert np.abs(shown.reshape(-1, 3).astype(int) - (16, 32, 48)).sum(1).min() < 12
    ruled, squared = (np.asarray(picture(np.zeros((60, 200), "uint8"), Look(paper=paper), 20, 0))[..., 0] < 255
                      for paper in ("ruled", "squared"))
    assert ruled.all(1).sum() in (2, 3) and not ruled.all(0).any()
    assert squared.all(1).sum() >= 3 and squared.all(0).sum() >= 8


def test_faults_come_from_the_seed_and_grow_with_the_picture(small):
    def shown(seed, scale=3): return np.asarray(picture(enlarge(small, scale), Look(faults=True), 12 * scale, seed))
    assert np.array_equal(shown(1), shown(1)) and not np.array_equal(shown(1), shown(2))
    assert all(shown(seed).mean() < 255 - 10 for seed in range(4))  # shadows
    dot = np.zeros((200, 200), "uint8")
    dot[95:105, 95:105] = 255
    blurred = [min((photo_faults(dot, np.random.default_rng(seed), height)[100, 95:105].min() for seed in range(12)))
               for height in (24, 240)]
    assert blurred[1] < blurred[0]  # a blur of 0.9 px is 9 px where symbols are 240 px high


@pytest.mark.parametrize("wrong, message", [
    (dict(scale=9), "scale=9"),
    (dict(scale="x"), "scale"),
    (dict(pen=0.01), "pen=0.01"),
    (dict(slant=-0.7), "slant=-0.7"),
    (dict(slant="x"), "slant"),
    (dict(paper="torn"), "ruled or squared"),
    (dict(ink_colour="inky"), "no colour 'inky'"),
    (dict(paper_colour="#12"), "no colour"),
])
def test_looks_that_cannot_be(wrong, message):
    with pytest.raises(FormulaGanError, match=message): Look(**wrong)


def test_a_look_says_what_departs():
    assert Look().changes == {} and Look(scale="2", paper="ruled").changes == {"scale": 2.0, "paper": "ruled"}
    assert colour("") == (0, 0, 0) and colour("", "white") == (255, 255, 255) and colour("#FFA500") == colour("orange")
    assert paper_lines((10, 10), 4, 1).sum() == 30  # lines at 1, 5 and 9
