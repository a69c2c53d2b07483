"""Whatever comes in, a result or one line of error comes out, in time and in memory.

Limits, for every case: 10 seconds of processor time (the typesetter's own limit is 8), and 1 GB more than the process
held before. Each group runs some hundred cases; `--slow` makes them 22,000 together.
"""
import io
import random
import resource
import time

import numpy as np
import pytest
from PIL import Image

from formula_gan.captions import read_test_set
from formula_gan.commands import picture_files
from formula_gan.core import FormulaGanError, get_profile
from formula_gan.corpora import demo_formulas
from formula_gan.evaluation import evaluate, normalized, pair_lines, worst_first
from formula_gan.files import numbered_formulas, read_lines
from formula_gan.grammar import COMMANDS
from formula_gan.ink import Ink, InkError, rasterize, read_inkml, write_inkml
from formula_gan.mathjax import RenderError
from formula_gan.own_ink import labelled_inks
from formula_gan.rendering import render
from formula_gan.scans import prepare_image
from formula_gan.symbols import SYMBOLS
from formula_gan.tokenizer import TokenizeError, normalize, tokenize

SECONDS, MEGABYTES = 10, 1000
LAPTOP = get_profile("laptop")
counts = pytest.mark.parametrize("few", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["some", "all"])


def run(cases, call, error):
    "Each case ends in a result or in `error` with one line; the slowest case and the memory stay within the limits."
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = failed = 0
    for case in cases:
        started = time.process_time()
        try:
            call(case)
            done += 1
        except error as raised:
            failed += 1
            assert str(raised) and len(str(raised).splitlines()) == 1, (case, str(raised))
        except Exception as raised:
            raise AssertionError(f"{type(raised).__name__}: {raised} for {str(case)[:300]!r}") from raised
        assert time.process_time() - started < SECONDS, f"{str(case)[:300]!r} took longer than {SECONDS} s"
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024 < MEGABYTES
    return done, failed


BOMBS = [
    r"\def\a{\a\a}\a",
    r"\newcommand{\a}{\a}\a",
    r"\let\x=\x\x",
    "{" * 20_000,
    "{" * 300 + "x" + "}" * 300,
    "x^" * 3000,
    r"\sqrt" * 2000 + "x",
    r"\left(" * 500,
    r"\frac{" * 400,
    "x_" + "{x_" * 400 + "}" * 400,
    "x" * 5_000_000,
    r"\begin{matrix}" * 200,
    "&" * 9000,
    r"\\" * 5000,
    "\x00",
    "x\x1b[31m",
    "\ud800",
    "\u202e" * 50,
    "a\u0301" * 500,
    "$" * 1000,
    r"\hspace{1e999cm}x",
    r"\rule{1e9em}{1e9em}",
    r"\kern-1e9em x",
    r"\Huge" * 3000 + "x",
    r"\text{" * 500,
    r"\unicode{x110000}",
    r"\href{javascript:alert(1)}{x}",
    r"\require{physics}x",
    r"\verb|x",
    "%" * 3000,
    r"\color{" + "r" * 9000 + "}x",
]


def latex_cases(count, seed=0):
    "Bombs, soups of known words, formulas with bytes changed."
    rng = random.Random(seed)
    words = sorted(COMMANDS) + sorted(SYMBOLS) + list("{}^_&$%#~")
    words += [r"\\", r"\left", r"\right", r"\begin{array}{c}", r"\end{array}", "é", "\t"]
    good = demo_formulas(50, seed)
    for number in range(count):
        kind = number % 3
        if kind == 0: yield " ".join(rng.choices(words, k=rng.randint(1, 40)))
        elif kind == 1:
            character = lambda: chr(rng.choice((rng.randint(0, 0x7f), rng.randint(0x80, 0x10ffff))))
            yield "".join(character() for _ in range(rng.randint(1, 60)))
        else:
            text = list(rng.choice(good))
            for _ in range(rng.randint(1, 3)):
                place = rng.randrange(len(text))
                written = rng.choice(["", "{", "}", "^", "_", "\\", "\\frac", "\x07", text[place] * 3])
                text[place:place + rng.randint(0, 3)] = written
                if not text: text = ["x"]
            yield "".join(text)


@counts
def test_latex_to_tokens(few):
    def call(latex):
        tokens = tokenize(latex)
        assert tokens and normalize(" ".join(tokens)) == " ".join(tokens)
    done, failed = run([*BOMBS, *latex_cases(300 if few else 3000)], call, TokenizeError)
    assert done > 30 and failed > 50


@counts
def test_latex_to_print(few):
    def call(latex):
        image = render(latex, size=16)
        assert image.ndim == 2 and image.max() > 0 and np.isfinite(image).all()
    done, failed = run([*BOMBS, *latex_cases(150 if few else 3000, seed=1)], call, RenderError)
    assert done >= 10 and failed > 50


def billion_laughs():
    "Entities of ten entities each, ten deep."
    entities = [b'<!ENTITY b "bbbbbbbbbb">']
    for i in range(10): entities.append(b'<!ENTITY b%d "%s">' % (i, b"&b%d;" % (i - 1) * 10 if i else b"&b;" * 10))
    return b"<!DOCTYPE a [" + b"".join(entities) + b"]><ink>&b9;</ink>"


def inkml_cases(count, seed=0):
    "Bombs, then documents with bytes changed, points replaced, parts doubled or cut."
    trace = "<ink><trace id='0'>%s</trace></ink>"
    yield from (
        b"",
        b"<ink/>",
        b"\xff\xfe<ink/>",
        b"<html/>",
        b"<ink><trace/></ink>",
        b"\x00" * 1000,
        b"<ink>" * 50_000,
        b"<ink " + b"a='1' " * 20_000 + b"/>",
        billion_laughs(),
        b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><ink/>',
    )
    for points in (
        "nan nan, 1 1",
        "inf 0, 1 1",
        "1e308 1e308, -1e308 -1e308",
        "1e7 1e7, -1e7 -1e7",
        "0 0, 1e-300 1e-300",
        "1",
        "1 2 3 4 5, 6",
        ",,,,",
        "0 0",
        "0 0, 0 0",
        ", ".join(f"{i} {i % 7}" for i in range(100_000)),
    ):
        yield (trace % points).encode()
    strokes = (np.array([[0, 0], [5, 9], [3, 2]], "float32"), np.array([[7, 1]], "float32"))
    good = write_inkml(Ink("i", strokes, "x", "w"))
    rng = random.Random(seed)
    for number in range(count):
        data = bytearray(good)
        for _ in range(rng.randint(1, 5)):
            place = rng.randrange(len(data))
            part = data[place:place + 30]
            written = rng.choice((b"", bytes([rng.randrange(256)]), b"nan", b"1e99", b"-", part))
            data[place:place + rng.choice((0, 1, 1, 20))] = written
        yield bytes(data)


@counts
def test_inkml_to_ink(few):
    def call(data):
        image = rasterize(read_inkml(data), height=32)
        assert image.shape[0] == 32 and np.isfinite(image).all()
    done, failed = run(inkml_cases(300 if few else 3000), call, InkError)
    assert done >= 10 and failed > 50


def image_cases(count, seed=0):
    "Files cut short or with bytes changed, and arrays of any type and shape."
    rng = random.Random(seed)
    numbers = np.random.default_rng(seed)
    ink = Ink("i", (np.array([[0, 0], [5, 9], [3, 2], [20, 4]], "float32"),))
    page = np.uint8(255 - 255 * np.pad(rasterize(ink, height=40), 6))
    files = []
    for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"):
        content = io.BytesIO()
        Image.fromarray(page).save(content, kind)
        files.append(content.getvalue())
    for number in range(count):
        if number % 3 == 0:
            shape = rng.choice((
                (rng.randint(1, 60), rng.randint(1, 60)),
                (rng.randint(1, 9), 3000),
                (rng.randint(1, 30), rng.randint(1, 30), rng.choice((1, 2, 3, 4, 5))),
                (1,),
                (),
            ))
            array = numbers.normal(0, rng.choice((1, 100, 1e20)), shape)
            kinds = ("float32", "float64", "uint8", "int16", "bool", "uint16", "complex64", "float16")
            array = array.astype(rng.choice(kinds), casting="unsafe")
            if rng.random() < 0.5: array = np.where(numbers.random(shape) < 0.9, array[(0,) * array.ndim], array)
            yield array
            continue
        data = bytearray(rng.choice(files))
        if number % 3 == 1: data = data[:rng.randrange(len(data))]
        for _ in range(rng.randint(1, 8)):
            if data: data[rng.randrange(len(data))] = rng.randrange(256)
        yield bytes(data)


@counts
def test_images_to_ink(few, tmp_path):
    def call(picture):
        if isinstance(picture, bytes):
            (tmp_path / "picture").write_bytes(picture)
            picture = tmp_path / "picture"
        image = prepare_image(picture, LAPTOP)
        assert image.dtype == np.uint8 and image.ndim == 2 and 0 < image.size <= 700_000
    with np.errstate(all="ignore"): done, failed = run(image_cases(240 if few else 3000), call, FormulaGanError)
    assert done > 20 and failed > 50


def test_a_page_of_noise_and_a_large_page():
    "Many small parts, and the largest array that is taken."
    noise = np.random.default_rng(0).random((1400, 1400)) < 0.4
    large = np.full((2**12, 2**12), 255, "uint8")
    large[2000:2040, 100:4000] = large[1000:3000, 2000:2030] = 0
    done, _ = run([noise, large], lambda picture: prepare_image(picture, LAPTOP), FormulaGanError)
    assert done


INKML = rb"""<ink xmlns="http://www.w3.org/2003/InkML">
<traceFormat><channel name="T" type="decimal"/><channel name="X" type="decimal"/><channel name="Y"/></traceFormat>
<annotation type="label">x^2</annotation><annotation type="normalizedLabel">x^{2}</annotation>
<annotation type="truth">$x^2$</annotation><annotation type="writer">w1</annotation>
<annotationXML type="truth"><math><msup><mi xml:id="x_1">x</mi><mn xml:id="2_1">2</mn></msup></math></annotationXML>
<trace id="0">0 1 2, 1 3 4, 2 5.5 -6</trace><trace id="1">3 9 1, 4 9 2</trace><trace id="2">5 12 0</trace>
<traceGroup xml:id="g"><annotation type="truth">Segmentation</annotation>
<traceGroup><annotation type="truth">x</annotation><traceView traceDataRef="0"/><traceView traceDataRef="#1"/>
<annotationXML href="x_1"/></traceGroup>
<traceGroup><annotation type="truth">2</annotation><traceView traceDataRef="2"/><annotationXML href="2_1"/></traceGroup>
</traceGroup></ink>
"""
FILES = {
    "formulas.csv": b'id,latex,note\r\na1,"\\frac{1}{2}, x",first\na2,x^2,\n"a3","y ""q"" \n+ 1",two lines\n',
    "formulas.jsonl": b'{"latex": "x^2", "id": 7}\n"y + 1"\n\n{"latex": null, "tags": ["a", {"b": 1e9}]}\n',
    "pairs.tsv": b"a1\tx ^ { 2 }\na2\t\\frac { 1 } { 2 }\n\na3\ty\n",
    "captions.txt": b"file\tlatex\nink\tx^2\nfolder/b.png\t$\\frac{1}{2}$\n",
    "names.txt": b"ink.inkml\nink.inkml \n\n/nowhere/a.png\n../b c.png\n",
}
WORDS = [b"", b"\t", b"\n", b"\r", b"\r\n", b'"', b",", b"\\", b"{", b"}", b"[", b"\x00", b"\xff",
         "\ufeff".encode(), "\u2028".encode(), b"1e999", b"NaN", b"-", b"../", b"null", b"%", b"<", b">", b"&", b"/>",
         b"#", b" ", "é中".encode()]


def mutations(data, count, seed):
    "A file's content with some places replaced, doubled, cut or swapped."
    rng = random.Random(seed)
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            start, end = sorted(rng.randrange(len(changed) + 1) for _ in range(2))
            if rng.random() < 0.95: end = min(end, start + rng.choice((0, 1, 4)))
            part = bytes(changed[start:start + rng.randrange(20)])
            changed[start:end] = rng.choice((rng.choice(WORDS), bytes([rng.randrange(256)]), 2 * part, part[::-1]))
        yield bytes(changed)


@counts
def test_inkml_with_formats_labels_and_segments(few):
    def call(data):
        ink = read_inkml(data)
        assert len(ink.strokes) and all(np.isfinite(stroke).all() for stroke in ink.strokes)
        assert all(0 <= stroke < len(ink.strokes) for symbol in ink.symbols for stroke in symbol.strokes)
    done, failed = run([INKML, *mutations(INKML, 200 if few else 2500, 0)], call, InkError)
    assert done > 20 and failed > 20


def formulas(path): return numbered_formulas(str(path))


def scores(path):
    pairs = pair_lines(read_lines(str(path)), FILES["pairs.tsv"].decode().splitlines())
    evaluate(normalized(pairs.predictions), normalized(pairs.truths))
    return worst_first(pairs)


def labels(path):
    (path.parent / "ink.inkml").write_bytes(INKML)
    return labelled_inks(path.parent), read_test_set(path.parent, progress=False)


def pictures(path):
    (path.parent / "ink.inkml").write_bytes(INKML)
    for file in picture_files([str(path)]): prepare_image(file, LAPTOP)


@counts
@pytest.mark.parametrize("name, read", [
    ("formulas.csv", formulas),
    ("formulas.jsonl", formulas),
    ("pairs.tsv", scores),
    ("captions.txt", labels),
    ("names.txt", pictures),
])
def test_lists_with_places_changed(few, name, read, tmp_path):
    def call(data):
        (tmp_path / name).write_bytes(data)
        read(tmp_path / name)
    done, failed = run([FILES[name], *mutations(FILES[name], 60 if few else 1500, 1)], call, FormulaGanError)
    assert done + failed == (61 if few else 1501)
