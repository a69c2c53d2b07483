"""`recognize`, by call and by command."""
import json

import numpy as np
import pytest
import torch
from PIL import Image

from formula_gan import cli
from formula_gan.core import FormulaGanError
from formula_gan.ink import Ink, rasterize
from formula_gan.rendering import render
from formula_gan.synthesis import Reading, recognize
from formula_gan.task_model import Recognizer, RecognizerConfig, save_recognizer
from formula_gan.tokenizer import Vocab

INK = Ink("xx=", tuple(np.array(s, "float32") for s in (
    [[0, 0], [8, 12]], [[8, 0], [0, 12]], [[14, 0], [22, 12]], [[22, 0], [14, 12]], [[28, 4], [38, 4]], [[28, 8], [38, 8]])))


@pytest.fixture(scope="module")
def page():
    "The ink as a float page, ink 1, symbols 48 px high, with a wide border."
    return np.pad(rasterize(INK, symbol_height=48), 30)


@pytest.fixture(scope="module")
def novice(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("recognizer") / "r.safetensors"
    save_recognizer(Recognizer(Vocab.crohme(), RecognizerConfig(layers=1, growth=4, hidden=16, embedding=16)), path, profile="laptop")
    return path


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
