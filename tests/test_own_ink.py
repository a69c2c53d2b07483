"""One's own ink: labels from anywhere, nothing lost in silence, whole writers held out, and trainings that start from
it alone."""
import dataclasses
import zipfile

import pytest

from formula_gan import cli, load_generator, load_recognizer
from formula_gan.core import FormulaGanError, get_profile
from formula_gan.corpora import demo_formulas
from formula_gan.ink import write_inkml
from formula_gan.own_ink import hold_out, labelled_inks, own_corpus, read_own_ink
from formula_gan.demo_hands import demo_inks

TINY = [word for pair in ("synthetic_images=24", "printed_formulas=24", "gan_iterations=1", "warmup_iterations=1",
                          "updates=4", "workers=1") for word in ("--set", pair)]


def write(folder, inks, **changes):
    folder.mkdir(exist_ok=True)
    for n, ink in enumerate(inks):
        (folder / f"{n:02d}.inkml").write_bytes(write_inkml(dataclasses.replace(ink, **changes)))
    return folder


@pytest.fixture(scope="module")
def inks():
    return demo_inks(demo_formulas(20, 3), writers=5)


def test_labels_of_inkml_and_of_a_file_of_any_name(inks, tmp_path):
    folder = write(tmp_path / "ink", inks)
    (folder / "read me.txt").write_text("Written on a tablet.\n")
    found, skipped = labelled_inks(folder)
    assert [ink.latex for ink in found] == [ink.latex for ink in inks] and not skipped
    (folder / "mine.tsv").write_text("image\tby\tlatex\n01.inkml\tme\t$\\frac12$\n02\tme\t\\foo {\n")
    (folder / "03.inkml").write_text("<ink>")
    found, skipped = labelled_inks(folder)
    assert {ink.id: ink.latex for ink in found}["01"] == "\\frac { 1 } { 2 }" and len(found) == 18
    assert [name for name, _ in skipped] == ["02.inkml", "03.inkml"] and "no LaTeX" in skipped[0][1]


def test_a_zip_is_its_folder_and_the_digest_knows_labels(inks, tmp_path):
    folder = write(tmp_path / "ink", inks[:6])
    with zipfile.ZipFile(tmp_path / "ink.zip", "w") as archive:
        for path in folder.iterdir(): archive.write(path, f"deep/{path.name}")
    own = read_own_ink(folder)
    assert own.digest == read_own_ink(tmp_path / "ink.zip").digest
    (folder / "names.txt").write_text("00\tz\n")
    assert own.digest != read_own_ink(folder).digest


def test_what_cannot_be_used_is_told(inks, tmp_path):
    with pytest.raises(FormulaGanError, match="no ink"): read_own_ink(tmp_path / "none")
    with pytest.raises(FormulaGanError, match="holds no InkML"): read_own_ink(tmp_path)
    folder = write(tmp_path / "ink", inks[:3], latex="")
    (folder / "list.txt").write_text("00 x\n")
    with pytest.raises(FormulaGanError, match="none of the 3.*no label.*list.txt: line 1"): read_own_ink(folder)
    (folder / "a.txt").write_text("00\tx\n")
    with pytest.raises(FormulaGanError, match="one usable file"): read_own_ink(folder)
    (folder / "b.txt").write_text("00\ty\n")
    with pytest.raises(FormulaGanError, match="two captions of 00"): read_own_ink(folder)


def test_test_ink_of_crohme_is_left_out(inks, tmp_path):
    write(tmp_path / "ink", inks[:4])
    write(tmp_path / "ink" / "TestEM2014GT", inks[4:8])
    assert len(labelled_inks(tmp_path / "ink")[0]) == 4


def test_whole_writers_are_held_out(inks):
    train, valid, how = hold_out(inks)
    assert how == "writers" and valid and not {i.writer for i in train} & {i.writer for i in valid}
    assert not {i.latex for i in train} & {i.latex for i in valid}
    nameless = [dataclasses.replace(ink, writer="") for ink in inks]
    train, valid, how = hold_out(nameless)
    assert how == "files" and len(valid) == 2 and len(train) == 18
    same = [dataclasses.replace(ink, latex="x") for ink in inks]
    assert hold_out(same)[1], "formulas that training has seen, where there are no others"


@pytest.mark.parametrize("profile", ["demo", "laptop"])
def test_corpus_needs_no_other_data(inks, tmp_path, monkeypatch, profile):
    monkeypatch.delenv("FORMULA_GAN_DATA", raising=False)
    strange = [dataclasses.replace(ink, latex="\\aleph") for ink in inks[:2]]
    own = read_own_ink(write(tmp_path / "ink", [*inks[2:], *strange]))
    corpus = own_corpus(own, get_profile(profile, synthetic_images=24, printed_formulas=24), progress=False)
    assert set(corpus.ink) == {"train", "valid", "test"} and len(corpus.formulas) > 100
    assert not {ink.latex for ink in own.valid} & set(corpus.formulas)
    assert all(token in corpus.vocab for ink in own.train for token in ink.latex.split())


def test_recognizer_learns_from_own_ink(inks, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORMULA_GAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FORMULA_GAN_DATA", raising=False)
    folder = write(tmp_path / "ink", inks)
    (folder / "bad.inkml").write_text("no ink")
    words = ["train", "--recognizer", "--ink", str(folder), "--out", str(tmp_path / "r.safetensors"), *TINY]
    assert cli.main(words) == 1
    shown = capsys.readouterr()
    assert "20 inks of 5 named writers" in shown.out and "by writers" in shown.out and "skipped bad.inkml" in shown.err
    assert load_recognizer(tmp_path / "r.safetensors").vocab


def test_ink_without_marked_symbols_and_writers(inks, tmp_path, monkeypatch, capsys):
    "It cannot be stitched, but taught; the labels are in a file."
    monkeypatch.setenv("FORMULA_GAN_CACHE", str(tmp_path / "cache"))
    folder = write(tmp_path / "ink", inks, symbols=(), writer="", latex="")
    (folder / "x.txt").write_text("".join(f"{n:02d}\t{ink.latex}\n" for n, ink in enumerate(inks)))
    words = ["train", "--recognizer", "--ink", str(folder), "--out", str(tmp_path / "r.safetensors"), *TINY]
    assert cli.main(words) == 0 and "by files" in capsys.readouterr().out
    assert load_recognizer(tmp_path / "r.safetensors").vocab


def test_gan_learns_from_own_ink(inks, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORMULA_GAN_CACHE", str(tmp_path / "cache"))
    folder = write(tmp_path / "ink", inks)
    words = ["train", "--row", "7", "--ink", str(folder), "--out", str(tmp_path / "g.safetensors"), *TINY]
    assert cli.main(words) == 0 and "generator (row 7" in capsys.readouterr().out
    model = load_generator(tmp_path / "g.safetensors")
    assert model.gain.numel() == 8
    from formula_gan.stages import image_sets, make_run
    own = read_own_ink(folder)
    fields = dict(word.split("=") for word in TINY if "=" in word)
    mine, demo = (image_sets(make_run("demo", ink=ink, **fields)) for ink in (own, None))
    assert mine.folder != demo.folder and len(mine.product["train_ink"]) <= len(own.train)
    assert set(mine.product["valid_ink"].tokens) == {ink.latex for ink in own.valid}


def test_mistakes_before_any_work(inks, tmp_path, capsys):
    out = ["--out", str(tmp_path / "r.safetensors")]
    assert cli.main(["train", "--recognizer", "--ink", str(tmp_path / "none"), *out]) == 2
    assert "no ink" in capsys.readouterr().err
    assert cli.main(["train", "--recognizer", "--ink", "none", "--set", "batch=many", *out]) == 2
    assert "batch" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
