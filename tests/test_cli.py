"""The command line as a process: results, exit codes, one-line errors, nothing half-written."""
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from formula_gan import cli, commands, files
from formula_gan.core import FormulaGanError


@pytest.fixture
def command(tmp_path, clean_environment):
    def run(*words, stdin=""):
        code = "import sys; from formula_gan.cli import main; sys.exit(main())"
        return subprocess.run([sys.executable, "-c", code, *map(str, words)], cwd=tmp_path, env=clean_environment,
                              input=stdin, capture_output=True, text=True, timeout=120)
    return run


def json_lines(path): return [json.loads(line) for line in path.read_text().splitlines()]


def one_line_error(done, *words):
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1 and all(word in done.stderr for word in words), done.stderr


@pytest.mark.parametrize("name", cli.EXAMPLES)
def test_help_has_examples_that_parse(name, capsys):
    with pytest.raises(SystemExit) as ended: cli.main([name, "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and "examples:" in shown
    import shlex
    for line in cli.EXAMPLES[name].strip().splitlines():
        program, *words = shlex.split(line.split(" > ")[0])
        assert program == "formula-gan" and cli.build_parser().parse_args(words).function


def test_every_command_has_examples():
    commands = next(action.choices for action in cli.build_parser()._actions if action.choices)
    assert set(commands) == set(cli.EXAMPLES)
    for name, examples in cli.EXAMPLES.items(): assert examples.strip().startswith(f"formula-gan {name} ")


def test_help_is_quick_and_light(clean_environment, tmp_path):
    code = ("import sys; from formula_gan.cli import build_parser; build_parser().format_help(); "
            "print('torch' in sys.modules, 'papermill' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=clean_environment, capture_output=True,
                          text=True)
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_usage_errors_end_with_2(capsys):
    for words, message in (
        ([], "recognize"),
        (["nonsense"], "synthesize"),
        (["render"], "--out"),
        (["table1", "--seed", "x"], "whole number, 0 or more"),
        (["table2", "--seed", "-1"], "0 or more"),
        (["render", "x", "--out", "x.png", "--sample", "-1"], "0 or more"),
        (["train", "--lambda", "nan", "--out", "g.safetensors"], "'nan' must be a number"),
        (["table1", "--row", "7", "--max-minutes", "-1"], "0 or more"),
    ):
        with pytest.raises(SystemExit) as ended: cli.main(words)
        assert ended.value.code == 2 and message in capsys.readouterr().err


def test_version(capsys):
    from formula_gan import __version__
    with pytest.raises(SystemExit) as ended: cli.main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"formula-gan {__version__}\n"


def mistakes():
    "A stranger's, in a folder with the files that `test_mistakes` makes; and what the one line says."
    yield "synthesize f.json out", "f.json", ".jsonl"
    yield "synthesize keys.jsonl out", "--column", "'latex'"
    yield "synthesize folder out", "cannot read folder: Is a directory"
    yield "synthesize - out", "the standard input holds no formula"
    yield "synthesize f.txt f.txt --generator g.safetensors", "cannot make the folder f.txt: File exists"
    yield "synthesize f.txt folder --generator g.safetensors", "folder holds other files"
    yield "synthesize f.txt out --generator f.txt", "f.txt is damaged"
    yield "recognize folder", "folder holds no picture (.inkml, "
    yield "recognize none.png gone.png", "none of the 2 images could be read: none.png: no such file"
    yield "render x --out f.txt/x.png", "f.txt is a file, not a folder"
    yield "render x --out folder/x.png", "folder/x.png is a folder"
    yield "render --file - --out images", "the standard input holds no formula"
    yield "normalize f.txt", "f.txt is a file: give it with --file"
    yield "render f.txt --out images", "f.txt is a file: give it with --file"
    yield "write f.txt", "f.txt is a file: formula-gan synthesize writes a file of formulas"
    yield "normalize", "--file"
    yield "normalize x --file f.txt", "--file"
    yield "normalize x^", "formula 1: ^ lacks an argument, at character 2 of 'x^'"
    yield "normalize --file none.txt", "cannot read none.txt"
    yield "normalize --file -", "the standard input holds no formula"
    yield "normalize --file keys.jsonl", "--column", "'latex'"
    yield "evaluate - -", "give a file"
    yield "evaluate f.txt -", "the standard input holds no formula"
    yield "evaluate --recognizer default --test-set none", "no test set 'none'"
    yield "train --out new.safetensors", "--row", "--lambda", "--recognizer"
    yield "train --row 7 --recognizer --out new.safetensors", "--row", "--lambda", "--recognizer"
    yield "train --lambda 0 --recognizer --out new.safetensors", "--row", "--lambda", "--recognizer"
    yield "train --row 7 --start ink --out new.safetensors", "--start", "--recognizer"
    yield "train --row 7 --out f.txt/new.safetensors", "f.txt is a file, not a folder"
    yield "table2 --row VIII --generator none.safetensors", "no generator 'none.safetensors'"


@pytest.mark.parametrize("words, message", [(words, message) for words, *message in mistakes()])
def test_mistakes(weights, tmp_path, monkeypatch, capsys, words, message):
    "One line that names the thing and the remedy, exit code 2, nothing written."
    files = {"f.txt": "x^2\n", "f.json": '["x^2"]\n', "keys.jsonl": '{"tex": "x"}\n', "folder/x.png/y": ""}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    code = cli.main(words.split())
    shown = capsys.readouterr()
    assert code == 2, shown
    assert shown.out == "", shown
    assert len(shown.err.splitlines()) == 1, shown
    assert all(word in shown.err for word in message), shown
    assert sorted(tmp_path.rglob("*")) == before


def test_normalize(capsys):
    assert cli.main(["normalize", "{x}^{ 2}", r"\frac12 \lt 1"]) == 0
    assert capsys.readouterr() == ("x ^ { 2 }\n\\frac { 1 } { 2 } < 1\n", "")
    assert cli.main(["normalize", "--", "-x"]) == 0 and capsys.readouterr().out == "- x\n"
    assert cli.main(["normalize", "x", r"\foo"]) == 1
    assert capsys.readouterr() == ("x\n\n", "skipped formula 2: unknown command \\foo, at character 0 of '\\foo'\n")


@pytest.mark.parametrize("name, text, lines", [
    ("f.txt", "x^2\na \\foo b\n\n\\frac12\n", (2, 3)),
    ("f.jsonl", '{"latex": "x^2"}\n"a \\\\foo b"\n{}\n"\\\\frac12"\n', (2, 3)),
    ("f.csv", 'id,latex\n"1\n",x^2\n2,"a\n\\foo b"\n\n3,\n4,\\frac12\n', (4, 7)),
])
def test_normalize_names_lines_as_the_file_counts_them(tmp_path, capsys, name, text, lines):
    (tmp_path / name).write_text(text)
    assert cli.main(["normalize", "--file", str(tmp_path / name)]) == 1
    shown = capsys.readouterr()
    assert shown.out == "x ^ { 2 }\n\n\n\\frac { 1 } { 2 }\n"
    unknown, empty = shown.err.splitlines()
    assert unknown.startswith(f"skipped line {lines[0]}: unknown command \\foo, at character 2 of 'a ")
    assert empty == f"skipped line {lines[1]}: the formula is empty"


def test_normalize_does_nothing_where_nothing_has_a_form(tmp_path, capsys):
    (tmp_path / "f.txt").write_text("x^\n\\foo\n")
    assert cli.main(["normalize", "--file", str(tmp_path / "f.txt")]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "skipped line 1" in shown.err
    assert "skipped line 2" in shown.err
    assert "none of the 2" in shown.err


def test_a_comment_is_dropped_and_told_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "f.txt").write_text("x\nx^2 % trailing comment\n50 % of y\n50\\%\n")
    assert cli.main(["normalize", "--file", str(tmp_path / "f.txt")]) == 0
    shown = capsys.readouterr()
    assert shown.out == "x\nx ^ { 2 }\n5 0\n5 0 \\%\n"
    assert shown.err.count("note: an unescaped % begins a comment") == 1 and "first in line 2" in shown.err
    assert cli.main(["render", "--file", str(tmp_path / "f.txt"), "--out", str(tmp_path / "images"),
                     "--workers", "1"]) == 0
    assert capsys.readouterr().err.count("note: an unescaped %") == 1
    labels = (tmp_path / "images" / "labels.tsv").read_text().splitlines()
    assert [line.split("\t")[1] for line in labels] == ["latex", "x", "x^2", "50", "50\\%"]
    for latex, told in (("x % y", 1), (r"50\%", 0)):
        assert cli.main(["render", latex, "--out", str(tmp_path / f"{told}.png")]) == 0
        assert capsys.readouterr().err.count("note:") == told


def test_render_one(command, tmp_path):
    assert command("render", r"\frac{1}{2}", "--out", "half.png", "--size", "40", "--padding", "6").returncode == 0
    image = np.asarray(Image.open(tmp_path / "half.png").convert("L"))
    assert image[:5].min() == 255 and image.min() < 80, "dark ink on a white border"
    one_line_error(command("render", r"\frac{1}{", "--out", "bad.png"))
    one_line_error(command("render", "x", "--out", "x.jpg"), "x.jpg")
    one_line_error(command("render", "x", "--out", "x.png", "--font", "comic"), "comic", "mathit")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["half.png"]


def test_render_file_lists_what_it_skips(command, tmp_path):
    (tmp_path / "f.txt").write_text("x^2\n\\frac{1}{\n\ny_1\n")
    done = command("render", "--file", "f.txt", "--out", "images")
    assert done.returncode == 1
    assert "2 images" in done.stdout
    assert "skipped line 2" in done.stderr
    assert "skipped line 3" in done.stderr
    labels = [line.split("\t") for line in (tmp_path / "images" / "labels.tsv").read_text().splitlines()]
    assert labels[0][:3] == ["file", "latex", "font"]
    assert [row[:2] for row in labels[1:]] == [["000001.png", "x^2"], ["000004.png", "y_1"]]
    assert len((tmp_path / "images" / "skipped.tsv").read_text().splitlines()) == 3
    one_line_error(command("render", "--file", "f.txt", "--out", "images"), "images exists already")


def test_render_sample_is_reproducible(command, tmp_path):
    for name in ("a", "b"):
        assert command("render", "--file", "-", "--out", name, "--sample", "3", stdin="x+y\na^2\n").returncode == 0
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes()
               for f in ("000001.png", "000002.png", "labels.tsv"))


def test_render_nothing_leaves_nothing(command, tmp_path):
    (tmp_path / "bad.txt").write_text("\\frac{\n")
    one_line_error(command("render", "--file", "bad.txt", "--out", "images"), "none of the 1 formulas")
    (tmp_path / "empty.txt").write_text("\n")
    one_line_error(command("render", "--file", "empty.txt", "--out", "images"), "empty.txt")
    (tmp_path / "latin.txt").write_bytes(b"\xe9")
    one_line_error(command("render", "--file", "latin.txt", "--out", "images"), "UTF-8")
    one_line_error(command("render", "--file", "none.txt", "--out", "images"), "none.txt")
    assert not (tmp_path / "images").exists() and not list(tmp_path.glob(".images*"))


@pytest.mark.parametrize("name, text, formulas", [
    ("a.csv", 'id, latex\n1, "f(x,y)"\n2,y\n', ["f(x,y)", "y"]),
    ("a.jsonl", '{"latex": "x"}\n\n{"latex": "y"}\n', ["x", "", "y"]),
    ("a.ndjson", '{"latex": "x"}\n', ["x"]),
    ("a.txt", "x\ry\r", ["x", "y"]),
    ("a.txt", "\ufeffx\r\n\r\ny", ["x", "", "y"]),
])
def test_read_formulas(tmp_path, name, text, formulas):
    (tmp_path / name).write_bytes(text.encode())
    assert files.read_formulas(str(tmp_path / name)) == formulas


def test_lines_are_those_of_the_file(tmp_path):
    "A lone carriage return ends no line; a quoted field may fill several; the other columns are kept."
    for name, text, entries in (
        ("a.txt", "a\r+ b\nc\r\nd", [(1, "a + b", {}), (2, "c", {}), (3, "d", {})]),
        ("a.csv", 'id,latex\n7,x\r+1\n8,"y\n+ 1"\n\n9,z\n',
         [(2, "x +1", {"id": "7"}), (3, "y\n+ 1", {"id": "8"}), (6, "z", {"id": "9"})]),
        ("a.jsonl", '{"id": 7, "latex": "x", "p": NaN}\n\n"y"\n',
         [(1, "x", {"id": 7, "p": "NaN"}), (2, "", {}), (3, "y", {})]),
    ):
        (tmp_path / name).write_bytes(text.encode())
        assert files.numbered_formulas(str(tmp_path / name)) == entries
    (tmp_path / "b.csv").write_text("latex\nx\n\"y\n")
    with pytest.raises(FormulaGanError, match="line 3 is not CSV"): files.read_formulas(str(tmp_path / "b.csv"))


def test_a_comma_without_quotes_is_told(tmp_path):
    (tmp_path / "a.csv").write_text("id,latex\n1,x\n2,f(x,y)\n")
    with pytest.raises(FormulaGanError, match="row 2.*double quotes"): files.read_formulas(str(tmp_path / "a.csv"))


def test_render_takes_a_column(tmp_path):
    (tmp_path / "a.csv").write_text("id,tex\n1,x\n2,$y$\n")
    assert cli.main(["render", "--file", str(tmp_path / "a.csv"), "--column", "tex", "--out", str(tmp_path / "out"),
                     "--workers", "1"]) == 0
    labels = (tmp_path / "out" / "labels.tsv").read_text().splitlines()
    assert [line.split("\t")[1] for line in labels] == ["latex", "x", "$y$"]


ACCEPTED = [
    r"\ce{H2O -> H2 + 1/2O2}",
    r"a \coloneqq b",
    "α + β ≤ γ ⋅ ∑ x²",
    r"\newcommand{\R}{\mathbb R}\R^n",
    r"\mathbb{1}",
    "x\u200b\u00a0+\ufeff1",
    "½ x⁻¹",
    r"x\tag{1}",
]
REFUSED = ["x中", r"\rule{2em}{2pt}", r"\foo", r"\unicode{x4e2d}", "x\ue000"]


def test_render_previews_what_synthesize_writes(weights, tmp_path, capsys):
    "Both take the same formulas, and refuse the others with the same words."
    (tmp_path / "f.txt").write_text("\n".join(ACCEPTED + REFUSED) + "\n", encoding="utf-8")
    assert cli.main(["render", "--file", str(tmp_path / "f.txt"), "--out", str(tmp_path / "printed"),
                     "--workers", "1"]) == 1
    printed = capsys.readouterr()
    assert cli.main(["synthesize", str(tmp_path / "f.txt"), str(tmp_path / "written"), "--generator", weights]) == 1
    written = capsys.readouterr()
    assert printed.out.startswith("8 images") and written.out.startswith("8 images")
    for shown in (printed.err, written.err):
        assert "the typesetter lacks the character 中 (U+4E2D)" in shown
        assert "the character U+E000" in shown
        assert r"\rule draws a bar" in shown
        assert shown.count(r"note: \tag") == 1 and "first in line 8" in shown
    table = (tmp_path / "printed" / "skipped.tsv").read_text(encoding="utf-8").splitlines()[1:]
    reasons = [line.split("\t") for line in table]
    manifest = json_lines(tmp_path / "written" / "manifest" / "shard-00000.jsonl")
    skipped = [(line["line"], line["skipped"]) for line in manifest if "skipped" in line]
    assert [(int(line), why) for line, _, why in reasons] == skipped
    for latex in REFUSED:
        assert cli.main(["render", latex, "--out", str(tmp_path / "one.png")]) == 2


def test_comments_are_in_no_label_and_strange_symbols_are_counted(weights, tmp_path, capsys):
    (tmp_path / "f.txt").write_text("x^2 % a square\n\\partial x + \\partial y\n\\partial \\otimes y\n")
    out = tmp_path / "set"
    assert cli.main(["synthesize", str(tmp_path / "f.txt"), str(out), "--generator", weights,
                     "--format", "captions"]) == 0
    assert [line["latex"] for line in json_lines(out / "manifest" / "shard-00000.jsonl")] == [
        "x^2", r"\partial x + \partial y", r"\partial \otimes y"]
    shown = capsys.readouterr().err
    assert r"2 of 3 captions have symbols that are not among CROHME's 110 (\partial in 2, \otimes in 1)" in shown


def test_ids_lines_and_sizes_are_kept(weights, tmp_path, capsys):
    (tmp_path / "f.csv").write_text('id,size,tex\na7,big,x^2\nb8,small,"y\n+1"\nc9,,\\foo\nd0,,z\n')
    words = [str(tmp_path / "f.csv"), "--column", "tex"]
    assert cli.main(["synthesize", *words, str(tmp_path / "set"), "--generator", weights,
                     "--format", "imagefolder"]) == 1
    assert "skipped line 5" in capsys.readouterr().err
    manifest = json_lines(tmp_path / "set" / "manifest" / "shard-00000.jsonl")
    assert [(line["number"], line["line"], line["id"], line["input_size"]) for line in manifest] == [
        (0, 2, "a7", "big"),
        (1, 3, "b8", "small"),
        (2, 5, "c9", ""),
        (3, 6, "d0", ""),
    ]
    labels = json_lines(tmp_path / "set" / "train" / "shard-00000" / "metadata.jsonl")
    assert [label["id"] for label in labels] == ["a7", "b8", "d0"]
    assert "`line`" in (tmp_path / "set" / "README.md").read_text()
    for label in labels: assert Image.open(tmp_path / "set" / label["file"]).size == (label["width"], label["height"])
    (tmp_path / "f.csv").write_text((tmp_path / "f.csv").read_text().replace("a7", "a8"))
    assert cli.main(["synthesize", *words, str(tmp_path / "set"), "--generator", weights,
                     "--format", "imagefolder"]) == 2
    assert "sources" in capsys.readouterr().err
    assert cli.main(["render", *words[1:], "--file", words[0], "--out", str(tmp_path / "images"),
                     "--workers", "1"]) == 1
    head, *table = [line.split("\t") for line in (tmp_path / "images" / "labels.tsv").read_text().splitlines()]
    rows = [dict(zip(head, row)) for row in table]
    assert [(row["file"], row["line"], row["id"], row["input_size"]) for row in rows] == [
        ("000002.png", "2", "a8", "big"),
        ("000003.png", "3", "b8", "small"),
        ("000006.png", "6", "d0", ""),
    ]
    for row in rows:
        assert Image.open(tmp_path / "images" / row["file"]).size == (int(row["width"]), int(row["height"]))


@pytest.fixture
def weights(tmp_path):
    import torch
    from formula_gan.sagan import Generator, save_generator
    torch.manual_seed(0)
    save_generator(Generator(8), tmp_path / "g.safetensors", profile="demo")
    return str(tmp_path / "g.safetensors")


def test_synthesize(weights, tmp_path, capsys):
    (tmp_path / "f.txt").write_text("x^2\n\\frac{1}{\ny_1\n")
    words = ["synthesize", str(tmp_path / "f.txt"), str(tmp_path / "out"), "--generator", weights, "--styles", "2"]
    assert cli.main(words) == 1
    shown = capsys.readouterr()
    assert "4 images" in shown.out and "1 skipped" in shown.out and "skipped line 2" in shown.err
    assert (tmp_path / "out" / "shard-00000.tar").exists()
    assert cli.main(words) == 1 and "4 images" in capsys.readouterr().out  # all there already
    assert cli.main([*words, "--seed", "1"]) == 2 and "seed = 0, not 1" in capsys.readouterr().err
    (tmp_path / "bad.csv").write_text("latex,id\n{,1\n")
    assert cli.main(["synthesize", str(tmp_path / "bad.csv"), str(tmp_path / "none"), "--generator", weights]) == 2
    assert "none of the 1 formulas" in capsys.readouterr().err
    for rest, word in (
        (["--format", "inkml"], "InkML"),
        (["--shard", "4/3"], "3/16"),
        (["--column", "tex"], "column"),
        (["--exact", "--recognizer", "no.safetensors"], "no.safetensors"),
    ):
        assert cli.main(["synthesize", str(tmp_path / "bad.csv"), str(tmp_path / "new"), "--generator", weights,
                         *rest]) == 2
        assert word in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_write(weights, tmp_path, capsys):
    out = tmp_path / "new" / "half.png"
    words = ["write", r"\frac{1}{2}", "--generator", weights, "--out"]
    assert cli.main([*words, str(out), "--scale", "3", "--paper", "squared"]) == 0 and Image.open(out).mode == "RGB"
    assert capsys.readouterr().out.strip() == str(out)
    assert cli.main([*words, str(tmp_path / "f.svg"), "--styles", "2"]) == 0
    assert sorted(p.name for p in tmp_path.glob("*.svg")) == ["f-1.svg", "f-2.svg"]
    assert (tmp_path / "f-2.svg").read_text().startswith("<svg")
    capsys.readouterr()
    for rest, word in (
        (["x.jpg"], ".png or .svg"),
        ([str(tmp_path / "x.svg"), "--faults"], "pixels"),
        (["x.png", "--writer", "stitched"], "needs ink"),
        (["x.png", "--ink-colour", "inky"], "no colour"),
    ):
        assert cli.main([*words, *rest]) == 2 and word in capsys.readouterr().err
    assert cli.main(["write", r"\frac{", "-o", str(tmp_path / "bad.png"), "--generator", weights]) == 2
    assert not (tmp_path / "bad.png").exists()


def test_style_of_a_sample(weights, tmp_path, capsys):
    from formula_gan.drawing import Hand, leaning
    from formula_gan.figure_sets import ink_figure
    from formula_gan.pictures import sample_look
    from formula_gan.demo_hands import demo_inks
    figure = ink_figure(demo_inks(["k + b = h"], writers=1, seed=2)[0])
    drawn = figure.draw(leaning(Hand(40, 0.1), figure, 0.2), np.random.default_rng(0), (9, 9, 9, 9))[0]
    Image.fromarray(255 - drawn).save(tmp_path / "sample.png")
    sample = sample_look(tmp_path / "sample.png")
    (tmp_path / "f.txt").write_text("x + 1\n")
    def settings(name, *words):
        words = ["synthesize", str(tmp_path / "f.txt"), str(tmp_path / name), "--generator", weights, *words]
        assert cli.main(words) == 0
        return json.loads((tmp_path / name / "synthesis.json").read_text())
    assert "slant" not in settings("plain") and 0.1 < sample["slant"] < 0.3
    assert sample.items() <= settings("like", "--style", str(tmp_path / "sample.png")).items()
    given = settings("given", "--style", str(tmp_path / "sample.png"), "--slant", "0", "--pen", "0.2")
    assert (given["slant"], given["pen"]) == (0.0, 0.2)
    (tmp_path / "blank.png").write_bytes(b"")
    words = ["write", "x", "--generator", weights, "-o", str(tmp_path / "x.png")]
    assert cli.main([*words, "--style", str(tmp_path / "blank.png")]) == 2
    assert "blank.png" in capsys.readouterr().err and not (tmp_path / "x.png").exists()


def test_synthesize_from_ink(weights, tmp_path, capsys):
    from formula_gan.ink import write_inkml
    from formula_gan.demo_hands import demo_inks
    (tmp_path / "ink").mkdir()
    (tmp_path / "ink" / "1.inkml").write_bytes(write_inkml(demo_inks(["x + 1"])[0]))
    (tmp_path / "f.txt").write_text("x + 1\n1 + y\n")
    words = ["synthesize", str(tmp_path / "f.txt"), str(tmp_path / "out"), "--generator", weights,
             "--writer", "stitched", "--ink", str(tmp_path / "ink")]
    assert cli.main(words) == 1
    shown = capsys.readouterr()
    assert shown.out.startswith("1 images") and "skipped line 2" in shown.err and "the ink lacks y" in shown.err


@pytest.mark.parametrize("words, kept", [
    (["synthesize", "f.txt", "out"], True),
    (["evaluate", "f.txt", "f.txt"], False),
])
def test_an_interruption_says_whether_work_is_kept(tmp_path, monkeypatch, capsys, words, kept):
    def interrupt(*_): raise KeyboardInterrupt
    for module in (files, commands): monkeypatch.setattr(module, "read_lines", interrupt)
    assert cli.main(words) == 2
    assert ("the same command goes on" in (told := capsys.readouterr().err)) == kept and "interrupted" in told


def test_synthesize_stops_in_time_and_goes_on(weights, tmp_path, capsys):
    (tmp_path / "f.txt").write_text("x\n" * 65)
    words = ["synthesize", str(tmp_path / "f.txt"), str(tmp_path / "out"), "--generator", weights, "--shard-size", "64",
             "--max-minutes", "1e-6"]
    assert cli.main(words) == 1
    shown = capsys.readouterr()
    assert shown.out.startswith("64 images")
    assert "shards left" in shown.err
    assert ": 1;" in shown.err
    assert "again" in shown.err
    assert cli.main(words) == 0 and capsys.readouterr().out.startswith("65 images")


def test_two_processes_of_a_launcher(weights, tmp_path, clean_environment):
    "The same set as one process makes; a formula that is skipped does not end the other process."
    (tmp_path / "f.txt").write_text("\\frac{\n" + "".join(f"x_{{{i}}}\n" for i in range(127)))
    (tmp_path / "run.py").write_text("import sys\nfrom formula_gan.cli import main\nsys.exit(main())\n")
    options = [str(tmp_path / "f.txt"), "--generator", weights, "--shard-size", "64"]
    assert cli.main(["synthesize", *options, str(tmp_path / "one")]) == 1
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0",
                "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "run.py"]
    done = subprocess.run([*launcher, "synthesize", *options, str(tmp_path / "two")], cwd=tmp_path,
                          env={**clean_environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done
    assert "63 images" in done.stdout, done
    assert "part 2/2" in done.stdout, done
    assert "skipped line 1" in done.stderr, done
    def contents(out): return {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    one = contents(tmp_path / "one")
    assert one == contents(tmp_path / "two") and len(one) == 6


def test_a_launched_process_ends_with_0_where_formulas_are_skipped(weights, tmp_path, monkeypatch, capsys):
    """A launcher takes any other code for a crash; what was skipped is listed all the same, also in a part where
    nothing could be written."""
    (tmp_path / "f.txt").write_text("\\frac{\n" * 64 + "x\n\\frac{\n")
    words = ["synthesize", str(tmp_path / "f.txt"), str(tmp_path / "out"), "--generator", weights, "--shard-size", "64"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, what in (("0", "0 images"), ("1", "1 images")):
        monkeypatch.setenv("RANK", rank)
        assert cli.main(words) == 0
        shown = capsys.readouterr()
        assert what in shown.out and f"part {int(rank) + 1}/2" in shown.out and "skipped line" in shown.err
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert cli.main([*words, "--seed", "1"]) == 2  # a real error still is one


def test_own_part(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    assert commands.own_part("")[0] == "3/4" and commands.own_part("1/2") == ("1/2", "")
    monkeypatch.delenv("WORLD_SIZE")
    assert commands.own_part("") == ("1/1", "")


def test_evaluate(command, tmp_path):
    (tmp_path / "truths.txt").write_text("x + y\na ^ { 2 }\nb\n")
    (tmp_path / "predictions.txt").write_text("x + y\na ^ { 3 }\n\n")
    done = command("evaluate", "predictions.txt", "truths.txt", "--json")
    scores = json.loads(done.stdout)
    assert done.returncode == 0 and scores["n"] == 3 and scores["exprate"] == pytest.approx(100 / 3)
    assert scores["wer"] == pytest.approx(100 * 2 / 9)
    assert "exprate" in command("evaluate", "predictions.txt", "truths.txt").stdout
    (tmp_path / "short.txt").write_text("x + y\n")
    one_line_error(command("evaluate", "short.txt", "truths.txt"), "short.txt and truths.txt",
                   "1 predictions for 3 truths")


def test_table1_mistakes(command, tmp_path):
    one_line_error(command("table1"), "--list")
    one_line_error(command("table1", "--row", "7", "99"), "99")
    one_line_error(command("table1", "--row", "7", "--profile", "huge"), "huge", "laptop")
    one_line_error(command("table1", "--row", "7", "--set", "batch=many"), "batch")
    one_line_error(command("table1", "--row", "7", "--set", "batch"), "name=value")
    one_line_error(command("table1", "--row", "L", "--profile", "laptop"), "FORMULA_GAN_DATA")
    one_line_error(command("train", "--row", "L", "--out", "g.safetensors"), "L")
    one_line_error(command("train", "--row", "7", "--out", "g.pt"), "safetensors")
    assert not list(tmp_path.iterdir())


def test_table1_list(command):
    done = command("table1", "--list")
    assert done.returncode == 0 and [line.split()[0] for line in done.stdout.splitlines()] == [*"1234567", *"LPNS"]


TINY = [word for pair in ("synthetic_images=24", "printed_formulas=24", "gan_iterations=1", "warmup_iterations=1",
                          "recognizer_steps=2", "workers=1") for word in ("--set", pair)]


def test_table1_runs_a_row(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORMULA_GAN_CACHE", str(tmp_path))
    assert cli.main(["table1", "--row", "L", *TINY]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split()[:3] == ["row", "checkpoint", "perplexity"]
    assert shown[1].startswith("L")
    assert "1 rows" in shown[-1]
    assert cli.main(["train", "--row", "7", "--out", str(tmp_path / "g.safetensors"), *TINY]) == 0
    from formula_gan import load_generator
    assert load_generator(tmp_path / "g.safetensors")


def test_train_writes_a_recognizer_that_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORMULA_GAN_CACHE", str(tmp_path / "cache"))
    words = ["train", "--recognizer", "--out", str(tmp_path / "r.safetensors"), *TINY, "--set", "updates=4"]
    assert cli.main([*words, "--max-minutes", "1e-9"]) == 1 and not (tmp_path / "r.safetensors").exists()
    assert cli.main(words) == 0 and "recogniser in" in capsys.readouterr().out
    from formula_gan import load_recognizer, recognize
    from formula_gan.core import get_profile
    from formula_gan.guided import guided_config
    model = load_recognizer(tmp_path / "r.safetensors")
    assert model.config == guided_config(get_profile("demo"))
    assert 0 <= recognize(255 - 200 * np.eye(20, dtype="uint8"), model).score <= 1
    made = [json.loads(path.read_text()) for path in (tmp_path / "cache").glob("figures-*/spec.json")]
    assert {"ink", "stitched", "print"} == {spec["figures"] for spec in made}


def test_options_reach_the_row_and_unfinished_is_1(tmp_path, monkeypatch, capsys):
    from formula_gan import tables
    from formula_gan.stages import Unfinished
    calls = []
    def run_row(row, profile, lambda_, seed, data_dir, max_minutes, **overrides):
        calls.append((row, profile, lambda_, seed, data_dir, max_minutes, overrides))
        if row == "7": raise Unfinished("GAN (7): stopped after 3.0 minutes")
        return tables.RowResult([dict(row="L", perplexity=11.25)], None, tmp_path / "table1.csv")
    monkeypatch.setattr(tables, "run_row", run_row)
    words = ["--profile", "laptop", "--lambda", "2", "--seed", "3", "--data", "d", "--max-minutes", "4",
             "--set", "batch=4"]
    assert cli.main(["table1", "--row", "L", "7", *words]) == 1
    shown = capsys.readouterr()
    assert "11.25" in shown.out and "stopped after 3.0 minutes" in shown.err
    assert calls == [(row, "laptop", 2.0, 3, "d", 4.0, {"batch": "4"}) for row in ("L", "7")]


def test_checkpoints_in_any_order(tmp_path, monkeypatch):
    "The stages of one training cannot go back."
    from formula_gan import tables
    calls = []
    def run_row(row, *_, gan_iterations):
        calls.append((row, gan_iterations))
        return tables.RowResult([dict(row=row)], None, tmp_path / "table1.csv")
    monkeypatch.setattr(tables, "run_row", run_row)
    assert cli.main(["table1", "--row", "7", "L", "--iterations", "3000", "1000"]) == 0
    assert calls == [("7", 1000), ("7", 3000), ("L", 1000), ("L", 3000)]


def test_atomic_folder_refuses_an_unwritable_place(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FormulaGanError, match="cannot write"):
        with files.atomic_folder(tmp_path / "file" / "images"): pass


def test_evaluate_pairs_by_name_normalises_and_lists_errors(tmp_path, capsys):
    (tmp_path / "read.txt").write_text("b\tx^2\na\ty + 1\nz\t1\n")
    (tmp_path / "truth.txt").write_text("a\ty + 1\nb\tx ^ { 2 }\nc\t3\n")
    words = ["evaluate", str(tmp_path / "read.txt"), str(tmp_path / "truth.txt")]
    assert cli.main([*words, "--json"]) == 1
    out, err = capsys.readouterr()
    assert round(json.loads(out)["exprate"]) == 33 and "66.67 %: --normalize" in err
    assert "no prediction for 1: c" in err and "no truth for 1: z" in err
    assert cli.main([*words, "--normalize", "--errors"]) == 1
    out, err = capsys.readouterr()
    assert "exprate      66.67 %" in out and out.splitlines()[-1] == "1\tc\t3\t" and "--normalize" not in err
