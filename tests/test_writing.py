"""Writers: the generator, stitched ink, either by the seed; and one formula to pictures in one call."""
import json

import numpy as np
import pytest
import torch

from formula_gan.core import FormulaGanError
from formula_gan.ink import write_inkml
from formula_gan.drawing import slant_of
from formula_gan.pictures import Look
from formula_gan.reading import trained_profile
from formula_gan.sagan import Generator
from formula_gan.scans import pen_width
from formula_gan.demo_hands import demo_bank, demo_inks
from formula_gan.ink_files import read_bank, read_inks
from formula_gan.stitching import SymbolBank
from formula_gan.synthesis import FORMATS, read_manifest, synthesize
from formula_gan.writing import (check_writer, draw_stitched, plan_item, sized, stitch_item, typeset_items, write,
                                 write_items, write_svg, writer_of)

FORMULAS = [r"\frac{x^2}{2} + 1", r"\sqrt{a} = b", r"x_1"]
WRITTEN = [r"\frac { x ^ { 2 } } { 2 } + 1", r"\sqrt { a } = b", r"x _ { 1 }"]


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    generator = Generator(8)
    generator.facts = {"profile": "demo", "row": "7", "licence": "none"}
    return generator


@pytest.fixture(scope="module")
def bank(): return demo_bank(0, writers=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Segmented InkML of the formulas, with CROHME 2014's test ink beside it."
    folder = tmp_path_factory.mktemp("ink")
    for n, ink in enumerate(demo_inks(WRITTEN, seed=2)): (folder / f"{n}.inkml").write_bytes(write_inkml(ink))
    (folder / "TestEM2014GT").mkdir()
    (folder / "TestEM2014GT" / "t.inkml").write_bytes(write_inkml(demo_inks([r"\theta"])[0]))
    (folder / "broken.inkml").write_bytes(b"<ink/>")
    return folder


def test_ink_from_any_folder_but_not_the_test_ink(folder, tmp_path):
    inks, skipped = read_inks(folder)
    assert [ink.id for ink in inks] == ["0", "1", "2"] and [name for name, _ in skipped] == ["broken"]
    bank = read_bank(folder)
    assert "\\theta" not in bank.labels and {"x", "2", "-", "\\sqrt", "="} <= set(bank.labels)
    assert bank.digest == read_bank(str(folder)).digest != demo_bank(0, 1).digest
    import zipfile
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        for n in range(3): archive.write(folder / f"{n}.inkml", f"mine/{n}.inkml")
    assert len(read_bank(tmp_path / "mine.zip")) == len(bank)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "x.inkml").write_bytes(b"<ink><trace>0 0, 1 1</trace></ink>")
    (tmp_path / "half.zip").write_bytes(b"PK")
    for path, word in (
        (tmp_path / "plain", "marks its symbols"),
        (folder / "TestEM2014GT", "no readable"),
        (tmp_path / "none", "no such"),
        (tmp_path / "half.zip", "zip"),
    ):
        with pytest.raises(FormulaGanError, match=word): read_bank(path)


def test_stitched_ink_has_the_size_of_print_and_a_hand_by_the_seed(generator, bank):
    profile = trained_profile(generator)
    items = [plan_item([r"a b c d"], i, 12, 0) for i in range(12)]
    ready, _ = typeset_items(items, profile)
    figures = [stitch_item(*ready[i], items[i], bank) for i in range(12)]
    images = [draw_stitched(figure, item, 40) for figure, item in zip(figures, items)]
    again = [draw_stitched(stitch_item(*ready[i], items[i], bank), items[i], 40) for i in range(12)]
    assert all(np.array_equal(a, b) for a, b in zip(images, again))
    ascender = [image.shape[0] / (40 * item.size) for image, item in zip(images, items)]
    assert 0.8 < np.median(ascender) < 2.2 and np.std(ascender) > 0.03  # the height of b and d in median symbols
    assert len({image.shape for image in images}) == 12


def test_mixed_is_half_each_by_the_seed(bank):
    items = [plan_item(FORMULAS * 200, i, 1, 0) for i in range(600)]
    chosen = [writer_of(item, "mixed") for item in items]
    assert 240 < chosen.count("stitched") < 360 and chosen[:3] == [writer_of(item, "mixed") for item in items[:3]]
    assert {writer_of(item, "gan") for item in items} == {"gan"}
    assert {writer_of(item, "stitched") for item in items} == {"stitched"}


def test_what_the_ink_lacks_is_left_out_or_left_to_the_generator(generator, bank):
    few = SymbolBank({label: hands for label, hands in bank.symbols.items() if label in ("x", "1")})
    items = [plan_item(FORMULAS, i, 6, 0) for i in range(18)]
    profile = trained_profile(generator)
    stitched, kept, reasons = write_items(items, generator, profile, 0, writer="stitched", bank=few)
    assert kept == [12, 13, 14, 15, 16, 17]
    assert reasons[0] == "the ink lacks + - 2"
    assert reasons[6].startswith("the ink lacks =")
    mixed, kept, reasons = write_items(items, generator, profile, 0, writer="mixed", bank=few)
    assert not reasons and [extra["writer"] for extra in mixed.extra[:12]] == ["gan"] * 12
    assert {extra["writer"] for extra in mixed.extra[12:]} == {"gan", "stitched"}


def test_large_pictures_of_both_writers(generator, bank):
    profile = trained_profile(generator)
    items = [plan_item(FORMULAS[:1], i, 1, 0) for i in range(1)]
    for writer in ("gan", "stitched"):
        images, _, _ = write_items(items, generator, profile, 0, writer=writer, bank=bank)
        assert sized(images[0], images.extra[0], items[0], profile, Look()) is not None
        large = sized(images[0], images.extra[0], items[0], profile, Look(scale=4))
        assert np.allclose(np.array(large.shape) / images[0].shape, 4, atol=0.4)
    thin, thick = (sized(images[0], images.extra[0], items[0], profile, Look(scale=4, pen=pen)) for pen in (0.08, 0.2))
    height = 4 * items[0].size * profile.symbol_height
    assert abs(pen_width(thin / 255) / height - 0.08) < 0.03 and abs(pen_width(thick / 255) / height - 0.2) < 0.05


def contents(out): return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("format", FORMATS)
def test_sets_of_every_format(generator, bank, tmp_path, format):
    options = dict(styles=24, format=format, shard_size=64, device="cpu", progress=False, writer="mixed", ink=bank,
                   scale=2)
    whole = synthesize(FORMULAS, tmp_path / "whole", generator, **options)
    lines = list(read_manifest(tmp_path / "whole"))
    assert whole.written == len(lines) == 72 and {line["scale"] for line in lines} == {2}
    digests = {"gan": (whole_weights(tmp_path), ""), "stitched": ("", bank.digest)}
    for line in lines: assert (line["weights"], line["ink"]) == digests[line["writer"]]
    assert {line["writer"] for line in lines} == {"gan", "stitched"}
    for part in ("2/2", "1/2"):
        synthesize(FORMULAS, tmp_path / "parts", generator, shard=part, **options | {"workers": 2})
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    again = synthesize(FORMULAS, tmp_path / "parts", generator, **options)
    assert (again.found, again.shards) == (2, 0)
    for change in (dict(ink=demo_bank(1, 1)), dict(writer="stitched"), dict(scale=1), dict(pen=0.1)):
        with pytest.raises(FormulaGanError, match=next(iter(change))):
            synthesize(FORMULAS, tmp_path / "parts", generator, **options | change)


def whole_weights(folder): return json.loads((folder / "whole" / "synthesis.json").read_text())["weights"]


def test_a_stitched_set_names_no_generator(generator, folder, tmp_path):
    made = synthesize([*FORMULAS, r"\alpha"], tmp_path / "out", generator, device="cpu", progress=False,
                      writer="stitched", ink=folder)
    assert made.written == 3 and made.skipped == [(3, r"\alpha", r"the ink lacks \alpha")]
    settings = json.loads((tmp_path / "out" / "synthesis.json").read_text())
    assert settings["weights"] == "" and settings["generator"] == {} and settings["ink"] == read_bank(folder).digest
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "| writer | stitched |" in readme and settings["ink"] in readme and "| generator |" not in readme
    plain = list(read_manifest(tmp_path / "out"))[0]
    assert plain["writer"] == "stitched" and not {"scale", "paper", "faults"} & set(plain)


def test_looks_are_in_the_manifest_and_captions_refuse_them(generator, tmp_path):
    look = dict(ink_colour="navy", paper="ruled", faults=True)
    synthesize(FORMULAS, tmp_path / "out", generator, format="imagefolder", device="cpu", progress=False, **look)
    for line in read_manifest(tmp_path / "out"): assert look.items() <= line.items() and "paper_colour" not in line
    with pytest.raises(FormulaGanError, match="captions"):
        synthesize(FORMULAS, tmp_path / "none", generator, format="captions", device="cpu", **look)
    assert not (tmp_path / "none").exists()


def test_write(generator, bank):
    four = write(FORMULAS[0], generator=generator)
    assert len(four) == 4 and {image.mode for image in four} == {"L"} and len({image.size for image in four}) > 1
    # the third style, however many there are
    assert np.array_equal(four[2], write(FORMULAS[0], 3, generator=generator)[2])
    blue, = write(FORMULAS[0], 1, 0, "stitched", bank, generator, scale=3, ink_colour="navy")
    assert blue.mode == "RGB" and blue.height > 2 * four[0].height
    left, right = (slant_of(255 - np.asarray(write(FORMULAS[0], 1, 0, "stitched", bank, generator, slant=slant)[0]))
                   for slant in (-0.3, 0.3))
    assert right - left > 0.2
    outline, = write_svg(FORMULAS[0], 1, 0, "stitched", bank, generator, scale=3)
    assert outline.startswith("<svg") and outline.count("Q") > 100
    for wrong, word in (
        (dict(latex=r"\frac{"), "ends"),
        (dict(styles=0), "styles=0"),
        (dict(writer="pen"), "no writer"),
        (dict(writer="mixed"), "needs ink"),
        (dict(ink=bank), "needs no ink"),
        (dict(latex=r"\heartsuit", writer="stitched", ink=bank), "lacks"),
    ):
        with pytest.raises(FormulaGanError, match=word): write(**{"latex": "x", "generator": generator} | wrong)
    assert check_writer("mixed", bank) is bank and check_writer("gan", None) is None
