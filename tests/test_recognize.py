"""`recognize`, by call and by command."""
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from formula_gan import cli
from formula_gan.core import FormulaGanError
from formula_gan.rendering import render
from formula_gan.reading import Reading, recognize, recognize_many
from formula_gan.task_model import Recognizer, RecognizerConfig, save_recognizer
from formula_gan.tokenizer import Vocab
from test_scans import page  # the same ink as a page


@pytest.fixture(scope="module")
def novice(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("recognizer") / "r.safetensors"
    save_recognizer(Recognizer(Vocab.crohme(), RecognizerConfig(layers=1, growth=4, hidden=16, embedding=16)), path,
                    profile="laptop")
    return path


def test_recognize(page, novice):
    reading = recognize(1 - page, novice, beam_size=2)
    assert isinstance(reading, Reading)
    assert 0 < reading.score < 1
    assert all(t in Vocab.crohme() for t in reading.latex.split())
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
    a = str(tmp_path / "a.png")
    b = str(tmp_path / "b.png")
    options = ["--recognizer", str(novice), "--beam-size", "1"]
    assert cli.main(["recognize", a, *options]) == 0
    path, score, latex = capsys.readouterr().out.rstrip("\n").split("\t")
    assert path == a and 0 < float(score) < 1 and latex == recognize(a, novice, 1).latex
    assert cli.main(["recognize", a, *options, "--one-size"]) == 0
    alone = recognize(a, novice, 1, sizes=(1.0,))
    assert capsys.readouterr().out == f"{a}\t{alone.score:.4f}\t{alone.latex}\n" and alone != recognize(a, novice, 1)
    assert cli.main(["recognize", a, b, "--json", *options]) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["file"] == a and f"skipped {b} is not a whole image" in shown.err
    assert cli.main(["recognize", b, *options]) == 2 and "not a whole image" in capsys.readouterr().err


def test_ink_and_lists_are_read(novice, tmp_path, capsys, monkeypatch):
    "InkML by itself, in a folder, in a list of paths, and in one on standard input."
    from formula_gan.ink import write_inkml
    from formula_gan.demo_hands import demo_inks
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ink").mkdir()
    (tmp_path / "ink" / "a.inkml").write_bytes(write_inkml(demo_inks(["x + 1"], seed=0)[0]))
    (tmp_path / "names.txt").write_text("ink/a.inkml\n\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"ink/a.inkml\n")))
    for given in ("ink/a.inkml", "ink", "names.txt", "-"):
        assert cli.main(["recognize", given, "--recognizer", str(novice), "--beam-size", "1", "--one-size"]) == 0
        name, _, latex = capsys.readouterr().out.rstrip("\n").split("\t")
        assert name == "ink/a.inkml" and latex == recognize(name, novice, 1, sizes=(1.0,)).latex
    assert cli.main(["recognize", "none.txt", "--recognizer", str(novice)]) == 2
    assert "none.txt" in capsys.readouterr().err


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
    second = render("d - e", size=28)
    two = np.zeros((40 + line.shape[0] + second.shape[0], line.shape[1] + 20), "float32")
    two[10:10 + line.shape[0], 10:10 + line.shape[1]] = line
    two[-10 - second.shape[0]:-10, 10:10 + second.shape[1]] = second
    (tmp_path / "deep").mkdir()
    for name, picture in (("a.png", line), ("deep/b.png", two)):
        Image.fromarray(np.uint8(255 - 255 * np.pad(picture, 8))).save(tmp_path / name)
    assert cli.main(["recognize", str(tmp_path), "--json"]) == 0
    shown = capsys.readouterr()
    one, other = map(json.loads, shown.out.splitlines())
    assert one["file"].endswith("a.png") and one["latex"] == "a + b = c" and one["complete"] and one["unread"] < 0.12
    assert other["file"].endswith("b.png")
    assert not other["complete"]
    assert other["unread"] > 0.12
    assert "of the ink is not in the reading" in shown.err
    (tmp_path / "empty").mkdir()
    assert cli.main(["recognize", str(tmp_path / "empty")]) == 2
    assert "empty holds no picture (.inkml, .png" in capsys.readouterr().err
