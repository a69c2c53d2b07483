from dataclasses import replace

import numpy as np
import pytest
import torch

from formula_gan.core import get_profile
from formula_gan.data import HANDWRITTEN, PRINTED, ImageSet, margin
from formula_gan.reading import trained_profile
from formula_gan.sagan import Generator
from formula_gan.writing import handwrite, noise, trim

PROFILE = get_profile("demo")


@pytest.fixture(scope="module")
def prints():
    rng = np.random.default_rng(0)
    images = [(rng.random((int(h), int(w))) > 0.7).astype("float32") for h, w in rng.integers(10, 60, (12, 2))]
    return ImageSet(images, [f"x _ {{ {i} }}" for i in range(12)], PRINTED, [{"font": "mathit"}] * 12)


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return Generator(8)


def test_every_image_is_written_once_with_its_label(generator, prints):
    written = handwrite(generator, prints, PROFILE, seed=1, progress=False)
    assert written.tokens == prints.tokens and written.domain == HANDWRITTEN
    assert [e["number"] for e in written.extra] == list(range(12))
    assert written.extra[3]["font"] == "mathit"
    assert written.extra[3]["seed"] == 1


def test_an_image_does_not_depend_on_its_batch(generator, prints):
    together = handwrite(generator, prints, PROFILE, seed=1, progress=False)
    first = handwrite(generator, prints.subset(range(5)), PROFILE, seed=1, progress=False)
    for i in range(5):
        assert together[i].shape == first[i].shape and np.abs(together[i].astype(int) - first[i]).max() <= 1


def test_noise_is_by_seed_and_number():
    assert torch.equal(noise(0, [7, 2], 16)[1], noise(0, [2], 16)[0])
    assert not torch.equal(noise(0, [2], 16), noise(1, [2], 16))
    assert not torch.equal(noise(0, [2], 16), noise(0, [3], 16))
    many = noise(0, range(400), 16)
    assert abs(float(many.mean())) < 0.05 and abs(float(many.std()) - 1) < 0.05


def test_trimming_keeps_all_ink():
    canvas = np.zeros((60, 90), "uint8")
    canvas[20:31, 40:56] = 255
    cut = trim(canvas, (40, 70), PROFILE)
    assert cut.astype(int).sum() == canvas.astype(int).sum() and cut.shape == (13, 18)
    assert trim(np.zeros((60, 90), "uint8"), (40, 70), PROFILE).shape == (1, 1)  # nothing written is still an image
    canvas[59, 89] = 255  # beyond the image: padding of the batch
    assert trim(canvas, (60 - 2 * margin(PROFILE) - 1, 60), PROFILE).shape == (13, 18)


def test_shipped_generator_writes_what_was_printed():
    from formula_gan.data import print_images
    from formula_gan.sagan import load_generator
    generator = load_generator()
    profile = replace(trained_profile(generator), workers=1, precision="fp32")
    prints, _ = print_images(["x ^ { 2 } + 1", "\\frac { a } { b }"], profile, seed=0, progress=False)
    assert generator.facts["row"] == "7, 24 px"
    assert generator.facts["symbol_height"] == 24
    assert "CC BY-NC-SA" in generator.facts["licence"]
    written = handwrite(generator, prints, profile, 0, "cpu", False)
    for n in range(2):
        h, w = np.minimum(written[n].shape, prints[n].shape)
        assert max(abs(np.subtract(written[n].shape, prints[n].shape))) <= 12 and written.domain == HANDWRITTEN
        # readable, and not a copy
        assert 0.3 < np.corrcoef(written[n][:h, :w].ravel(), prints[n][:h, :w].ravel())[0, 1] < 0.999


def test_a_generator_of_loosened_print_is_given_such_print():
    from formula_gan.writing import plan_item, print_items
    straight = get_profile("demo", workers=1)
    loose = get_profile("demo", workers=1, loose=0.8)
    items = [plan_item([r"\frac{a+b}{c}"], style, 2, 0) for style in range(2)]
    plain, bent, again = (print_items(items, profile)[0] for profile in (straight, loose, loose))
    assert all((bent[n] == again[n]).all() for n in range(2))
    assert all(bent[n].shape != plain[n].shape or (bent[n] != plain[n]).any() for n in range(2))
    assert bent.tokens == plain.tokens
