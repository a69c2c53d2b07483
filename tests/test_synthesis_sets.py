"""`synthesize`: every format read back by a reader of its own, the same bytes whatever the sharding, and after a
kill."""
import io
import json
import resource
import shutil
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from formula_gan import shards, synthesis, writing
from formula_gan.core import FormulaGanError, claim
from formula_gan.sagan import Generator
from formula_gan.sets import (SUMMARY_COLUMNS, SUMMARY_KEY, open_written, readback_sheet, score_thresholds, set_gallery,
                              summarize_set)
from formula_gan.synthesis import FORMATS, read_manifest, synthesize
from formula_gan.task_model import Hypothesis, Recognizer, RecognizerConfig, save_recognizer
from formula_gan.tokenizer import Vocab, normalize
from formula_gan.writing import plan_item

FORMULAS = [rf"x_{{{i}}} + \alpha" for i in range(33)]
BROKEN = ["x^2", r"\frac{1}{", "", r"\alpha + 1", "x\x00", 7]


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    generator = Generator(8)
    generator.facts = {"profile": "demo", "licence": "none"}
    return generator


@pytest.fixture(scope="module")
def whole(generator, tmp_path_factory):
    "33 formulas in 4 styles: 132 images in 3 shards."
    out = tmp_path_factory.mktemp("sets") / "whole"
    made = synthesize(FORMULAS, out, generator, 4, shard_size=64, device="cpu", progress=False)
    assert (made.written, made.shards, made.found, made.skipped) == (132, 3, 0, [])
    return out


def contents(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def make(generator, out, **options):
    return synthesize(FORMULAS, out, generator, 4, device="cpu", progress=False, **{"shard_size": 64, **options})


def read_tar(content):
    "WebDataset's description: members of one name before the first full stop are a sample."
    samples = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive.getmembers():
            key, _, kind = member.name.partition(".")
            samples.setdefault(key, {})[kind] = archive.extractfile(member).read()
    return samples


def test_webdataset(whole):
    samples = {k: s for p in sorted(whole.glob("shard-*.tar")) for k, s in read_tar(p.read_bytes()).items()}
    lines = list(read_manifest(whole))
    assert len(samples) == 132 and [line["key"] for line in lines] == list(samples)
    for line in lines:
        sample = samples[line["key"]]
        assert set(sample) == {"png", "json"} and json.loads(sample["json"]) == line
        assert line["tokens"] == normalize(line["latex"]) and line["latex"] == FORMULAS[line["number"]]
    image = Image.open(io.BytesIO(samples["00000000-00"]["png"]))
    assert image.mode == "L" and np.asarray(image)[0].min() == 255  # ink is dark, the border white


def test_a_manifest_line_makes_the_image_again(whole, generator):
    line = list(read_manifest(whole))[70]
    item = plan_item(FORMULAS, 70, 4, 0)
    for name in ("number", "style", "font", "spacing", "item_seed"): assert getattr(item, name) == line[name]
    assert line["weights"] == synthesis.weights_digest(generator) and line["seed"] == 0


def test_styles_differ_and_depend_on_formula_and_style_only():
    items = [plan_item(FORMULAS, i, 50, 0) for i in range(50)]
    assert len({i.font for i in items}) >= 5 and len({i.item_seed for i in items}) == 50
    assert items[3] == plan_item(FORMULAS[:1], 3, 4, 0) != plan_item(FORMULAS, 3, 4, 1)


def test_parts_make_the_same_bytes(whole, generator, tmp_path):
    for part in ("2/2", "1/2"): make(generator, tmp_path / "parts", shard=part)
    assert contents(tmp_path / "parts") == contents(whole)


def test_shard_size_does_not_change_an_image(whole, generator, tmp_path):
    make(generator, tmp_path / "large", shard_size=128, shard="1/2")
    large = read_tar((tmp_path / "large" / "shard-00000.tar").read_bytes())
    small = {k: s for n in (0, 1) for k, s in read_tar((whole / f"shard-0000{n}.tar").read_bytes()).items()}
    assert {k: s["png"] for k, s in large.items()} == {k: s["png"] for k, s in small.items()}


def test_finished_shards_are_not_made_again(whole, generator, monkeypatch):
    monkeypatch.setattr(synthesis, "make_shard", lambda *a, **k: pytest.fail("made again"))
    made = make(generator, whole)
    assert (made.written, made.shards, made.found) == (132, 0, 3)


def test_time_is_kept_and_the_next_calls_go_on(whole, generator, tmp_path):
    out = tmp_path / "out"
    brought = []
    for _ in range(4): brought.append(make(generator, out, max_minutes=1e-9))
    assert [(made.shards, made.found, made.left) for made in brought] == [(1, 0, 2), (1, 1, 1), (1, 2, 0), (0, 3, 0)]
    assert contents(out) == contents(whole)


def test_a_lost_shard_is_made_again(whole, generator, tmp_path):
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "out" / "shard-00001.tar").unlink()
    made = make(generator, tmp_path / "out")
    assert (made.shards, made.found) == (1, 2) and contents(tmp_path / "out") == contents(whole)


def test_two_processes_share_a_folder(whole, generator, tmp_path):
    "A shard that another process writes is skipped; a lock that a dead one left is none."
    out = tmp_path / "out"
    with claim(whole.parent / ".shard-00009.lock") as mine: assert mine
    out.mkdir()
    (out / ".shard-00000.lock").touch()
    with claim(out / ".shard-00001.lock"): made = make(generator, out)
    assert (made.shards, made.found, made.left) == (2, 0, 1)
    assert make(generator, out).left == 0 and contents(out) == contents(whole)


def test_processes_at_once_make_the_same_bytes(whole, generator, tmp_path):
    "The mistake of giving no --shard: they share the work, and none breaks the other's."
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(make, generator, tmp_path / "out") for _ in range(2)]
        made = [call.result() for call in calls]
    assert sum(m.shards for m in made) == 3 and contents(tmp_path / "out") == contents(whole)


def test_values_of_other_types(generator, tmp_path):
    "What numpy, pandas and command lines hand over; items that are no text are skipped and stay valid JSON."
    made = synthesize(["x", float("nan"), None, b"y"], tmp_path / "out", generator, np.int64(1), np.int64(3),
                      shard_size=64.0, scale="1", device="cpu", progress=False)
    assert made.written == 1 and [number for number, _, _ in made.skipped] == [1, 2, 3]
    for path in (tmp_path / "out").rglob("*.json*"): assert "NaN" not in path.read_text()
    for wrong in (dict(styles=1.5), dict(seed="x"), dict(scale=float("nan")), dict(workers=0), dict(shard_size=None)):
        with pytest.raises(FormulaGanError, match=next(iter(wrong))):
            synthesize(["x"], tmp_path / "none", generator, device="cpu", **wrong)
    with pytest.raises(FormulaGanError, match="list"): synthesize(tmp_path / "f.txt", tmp_path / "none", generator)
    assert not (tmp_path / "none").exists()


def test_broken_formulas_are_skipped_and_listed(generator, tmp_path):
    made = synthesize(BROKEN, tmp_path / "out", generator, 2, device="cpu", progress=False)
    assert made.written == 4 and [number for number, _, _ in made.skipped] == [1, 2, 4, 5]
    assert all(reason for _, _, reason in made.skipped)
    assert sum("skipped" in line for line in read_manifest(tmp_path / "out")) == 8


def read_captions(archive, folder, images):
    "CoMER and BTTR: a line's first word names the image, the others are its symbols."
    rows = [line.decode().strip().split() for line in archive.open(f"{folder}/caption.txt")]
    return [(Image.open(archive.open(f"{images}/{name}.bmp")).copy(), symbols) for name, *symbols in rows]


@pytest.mark.parametrize("reader", ["comer", "bttr", "ical"])
def test_captions_as_recognisers_read_them(generator, tmp_path, reader):
    """The folder as it is in CoMER's zip; with the small change that the notebook describes in BTTR's, and in the
    folder of ICAL and TAMER."""
    out = tmp_path / "out"
    path = tmp_path / "data.zip"
    synthesize(BROKEN, out, generator, 1, format="captions", device="cpu", progress=False)
    if reader == "bttr":
        (out / "caption.txt").rename(out / "img" / "caption.txt")
        (out / "img").rename(out / "train")
    if reader == "ical":
        captions = [line.split() for line in (out / "caption.txt").read_text().splitlines()]
        samples = [(np.asarray(Image.open(out / f"img/{name}.bmp")), symbols) for name, *symbols in captions]
    else:
        inside, folder, images = {
            "comer": ("data/train", "data/train", "data/train/img"),
            "bttr": ("", "train", "train"),
        }[reader]
        with zipfile.ZipFile(path, "w") as archive:
            for file in out.rglob("*"): archive.write(file, str(inside / file.relative_to(out)))
        with zipfile.ZipFile(path) as archive: samples = read_captions(archive, folder, images)
    assert [symbols for _, symbols in samples] == [normalize(BROKEN[0]).split(), normalize(BROKEN[3]).split()]
    for image, _ in samples:
        pixels = np.asarray(image)
        assert pixels.dtype == np.uint8 and pixels.ndim == 2
        assert set(np.unique(pixels)) == {0, 255} and pixels[0].max() == 0  # white ink on black


def test_imagefolder(generator, tmp_path):
    synthesize(BROKEN, tmp_path / "out", generator, 1, format="imagefolder", device="cpu", progress=False)
    folder = tmp_path / "out" / "train" / "shard-00000"
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert [line["tokens"] for line in lines] == [normalize(BROKEN[0]), normalize(BROKEN[3])]
    assert {line["file_name"] for line in lines} == {p.name for p in folder.glob("*.png")}


def test_webdataset_library(whole):
    "Every sample, in order: its line of the manifest and the pixels of its PNG."
    webdataset = pytest.importorskip("webdataset")
    shards = sorted(whole.glob("shard-*.tar"))
    pngs = {k: s["png"] for p in shards for k, s in read_tar(p.read_bytes()).items()}
    rows = list(webdataset.WebDataset([str(p) for p in shards],
                                      shardshuffle=False).decode("l8").to_tuple("__key__", "png", "json"))
    assert [row[2] for row in rows] == list(read_manifest(whole))
    assert all(np.array_equal(image, np.asarray(Image.open(io.BytesIO(pngs[key])))) for key, image, _ in rows)


@pytest.fixture
def load_dataset(tmp_path, monkeypatch):
    "Hugging Face's loader, with a cache of its own."
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    return lambda path: datasets.load_dataset(str(path), split="train", cache_dir=str(tmp_path / "cache"))


def test_datasets_library(load_dataset, generator, tmp_path):
    "Every image of every shard is found, with all fields of its line."
    make(generator, tmp_path / "out", format="imagefolder")
    rows = load_dataset(tmp_path / "out")
    lines = {line["key"]: line for line in read_manifest(tmp_path / "out")}
    assert len(rows) == 132 and {row["key"] for row in rows} == set(lines)
    for row in rows:
        line = lines[row["key"]]
        for name in ("latex", "tokens", "font", "size", "item_seed", "file"): assert row[name] == line[name]
        assert row["image"].mode == "L"
        assert np.array_equal(np.asarray(row["image"]), np.asarray(Image.open(tmp_path / "out" / line["file"])))


def test_datasets_library_reads_shards(load_dataset, whole):
    "The same of tar files, which the card of the set names."
    rows = load_dataset(whole)
    assert [row["json"] for row in rows] == list(read_manifest(whole))
    assert all(row["png"].size == (row["json"]["width"], row["json"]["height"]) for row in rows)


@pytest.mark.parametrize("options, message", [
    (dict(format="inkml"), "pen strokes"),
    (dict(format="zip"), "webdataset"),
    (dict(shard="0/2"), "3/16"),
    (dict(shard="3/2"), "3/16"),
    (dict(styles=0), "styles"),
    (dict(shard_size=100), "multiple of 64"),
    (dict(min_score=2), "min_score"),
    (dict(scale=0), "scale"),
    (dict(generator="no.safetensors"), "no.safetensors"),
])
def test_impossible_arguments(generator, tmp_path, options, message):
    with pytest.raises(FormulaGanError, match=message):
        synthesize(["x"], tmp_path / "out", **{"generator": generator, "progress": False, **options})
    assert not (tmp_path / "out").exists()


def test_two_sets_do_not_mix(whole, generator, tmp_path):
    for options in (dict(seed=1), dict(format="captions"), dict(shard_size=128)):
        with pytest.raises(FormulaGanError, match=next(iter(options))): make(generator, whole, **options)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(FormulaGanError, match="other files"): make(generator, tmp_path)
    with pytest.raises(FormulaGanError, match="list of formulas"): synthesize("x^2", tmp_path / "out", generator)
    with pytest.raises(FormulaGanError, match="no formulas"): synthesize([], tmp_path / "out", generator)


@pytest.mark.parametrize("format", synthesis.FORMATS)
def test_a_full_disk_keeps_what_is_whole(generator, tmp_path, monkeypatch, format):
    """In the second of three shards; the message counts what is kept, nothing else is left, and the same call goes on
    to the same bytes."""
    write = shards.encode_image
    def full(image, kind, count=[0]):
        count[0] += 1
        if count[0] == 80: raise OSError(28, "No space left on device")
        return write(image, kind)
    out = tmp_path / "out"
    monkeypatch.setattr(shards, "encode_image", full)
    with pytest.raises(FormulaGanError, match="No space left on device; 1 finished shards are kept: make room"):
        make(generator, out, format=format)
    monkeypatch.undo()
    names = {path.split(".")[0] for path in contents(out)}
    assert "manifest/shard-00000" in names
    assert not any("shard-00001" in name for name in names)
    assert not list(out.glob(".*"))
    assert make(generator, out, format=format).found == 1
    make(generator, tmp_path / "undisturbed", format=format)
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_a_limit_on_files_is_a_full_disk(generator, tmp_path):
    "The system itself refuses the second, larger shard; without the limit the same call goes on."
    formulas = ["x"] * 64 + [" + ".join("abcdefghijkl")] * 64
    def call(out): return synthesize(formulas, tmp_path / out, generator, shard_size=64, device="cpu", progress=False)
    call("undisturbed")
    small, large = ((tmp_path / "undisturbed" / f"shard-0000{n}.tar").stat().st_size for n in (0, 1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((small + large) // 2, before[1]))
    try:
        with pytest.raises(FormulaGanError, match="File too large; 1 finished shards are kept: make room"): call("out")
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "out").glob(".*"))
    assert call("out").found == 1
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_a_place_that_is_no_folder(generator, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "set"):
        with pytest.raises(FormulaGanError, match="cannot make the folder"): make(generator, out)


def test_the_filter_drops_and_counts(generator, tmp_path, monkeypatch):
    torch.manual_seed(0)
    save_recognizer(Recognizer(Vocab.crohme(), RecognizerConfig(layers=1, growth=4, hidden=16, embedding=16)),
                    tmp_path / "r.safetensors", profile="demo")
    def read(model, images, profile, beam_size, device):
        "Every second image rightly, the last of four without confidence."
        return [Hypothesis(t.split() if i % 2 == 0 else ["?"], -3.0 if i % 4 == 3 else -0.1)
                for i, t in enumerate(images.tokens)]
    monkeypatch.setattr(synthesis, "read_back", read)
    options = dict(recognizer=tmp_path / "r.safetensors", device="cpu", progress=False)
    counted = synthesize(FORMULAS[:8], tmp_path / "all", generator, **options)
    assert (counted.written, counted.read, counted.exact, sum(counted.dropped.values())) == (8, 8, 4, 0)
    kept = synthesize(FORMULAS[:8], tmp_path / "kept", generator, min_score=0.5, exact=True, **options)
    assert (kept.written, kept.dropped, kept.skipped) == (4, {"score": 2, "reading": 2}, [])
    lines = list(read_manifest(tmp_path / "kept"))
    assert [line.get("skipped") for line in lines] == [None, "reading", None, "score"] * 2
    assert lines[1]["reading"] == "?"
    assert lines[0]["score"] == pytest.approx(np.exp(-0.1), abs=1e-3)
    assert "file" not in lines[1]
    assert len(read_tar((tmp_path / "kept" / "shard-00000.tar").read_bytes())) == 4
    assert Vocab.crohme().to_list().count(r"\partial") == 0
    strange = synthesize(["x", r"\partial", r"\partial x", "y"], tmp_path / "strange", generator, min_score=0.5,
                         exact=True, **options)
    # the third was read rightly by this reader
    assert (strange.written, strange.dropped) == (2, {"vocabulary": 1, "score": 1})


def test_a_wide_formula_is_written_as_a_whole(tmp_path, monkeypatch):
    "Every part of a wide image carries the ink of its part of the print; one that would be too large is listed."
    assert writing.LARGEST_AREA == 2_560_000
    monkeypatch.setattr(writing, "LARGEST_AREA", 320_000)
    formulas = [" + ".join(["x ^ { 2 }"] * n) for n in (24, 100)]
    made = synthesize(formulas, tmp_path / "out", device="cpu", progress=False)
    assert made.written == 1 and "more than 320,000" in made.skipped[0][2]
    line, = (line for line in read_manifest(tmp_path / "out") if "skipped" not in line)
    content = read_tar((tmp_path / "out" / "shard-00000.tar").read_bytes())[line["key"]]["png"]
    ink = 255 - np.asarray(Image.open(io.BytesIO(content))).astype(float)
    shares = [part.mean() for part in np.array_split(ink, 12, axis=1)]
    assert ink.shape[1] > 700 and min(shares) > 0.5 * max(shares) > 5


KILL = r'''
import os, random, signal, sys, tarfile, time
import torch
from formula_gan.sagan import Generator
from formula_gan.synthesis import synthesize
torch.set_num_threads(1)
out, times = sys.argv[1], int(sys.argv[2])

def dies(function, step, count=[0]):
    def call(*arguments, **options):
        count[0] += 1
        if count[0] == step: os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

def run(step):
    "Die at the step-th change of the disk; 135 is between a shard's renaming and its manifest's."
    os.replace = dies(os.replace, step)
    os.mkdir = dies(os.mkdir, step)
    tarfile.TarFile.addfile = dies(tarfile.TarFile.addfile, step)
    torch.manual_seed(0)
    generator = Generator(8)
    generator.facts = {"profile": "demo", "licence": "none"}
    formulas = [rf"x_{{{i}}} + \alpha" for i in range(33)]
    synthesize(formulas, out, generator, 4, shard_size=64, device="cpu", progress=False)

killed = 0
for number in range(times + 1):
    draw = random.Random(number)
    step = (70, 135, draw.randint(1, 136))[min(number, 2)] if number < times else 0
    child = os.fork()
    if not child:
        run(0 if number > 2 and number % 2 else step)
        os._exit(0)
    if 2 < number < times and number % 2:  # at any moment instead
        time.sleep(draw.uniform(0.05, 3))
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    killed += status == signal.SIGKILL
assert status == 0 and killed >= min(times, 2), (status, killed)
'''


@pytest.mark.parametrize("times", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path, clean_environment, times):
    """Each run goes on where the killed one stopped; the last one ends with the bytes of an undisturbed run, and
    nothing else in the folder."""
    # both with one thread: weights and images depend on the number
    for out, kills in (("out", times), ("undisturbed", 0)):
        done = subprocess.run([sys.executable, "-c", KILL, tmp_path / out, str(kills)],
                              env={**clean_environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
                              timeout=1200)
        assert done.returncode == 0, done.stderr[-2000:]
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")
    assert len(list((tmp_path / "out").glob("*.tar"))) == 3


# summaries

def test_summary_counts_what_is_there(whole, generator, tmp_path):
    summary = summarize_set(whole)
    assert summary["items"] == summary["images"] == 132
    assert summary["share"] == 1
    assert summary["formulas"] == 33
    assert summary["left_out"] == summary["read"] == 0
    assert set(summary) | {"source"} == set(SUMMARY_COLUMNS)
    assert summary["exact_percent"] is None
    assert summary["tokens_median"] == 8
    make(generator, tmp_path / "part", shard="1/3")
    assert summarize_set(tmp_path / "part")["share"] == round(64 / 132, 4)
    synthesize(BROKEN, tmp_path / "broken", generator, device="cpu", progress=False)
    assert (summarize_set(tmp_path / "broken")["images"], summarize_set(tmp_path / "broken")["left_out"]) == (2, 4)
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(FormulaGanError, match="holds no set"): summarize_set(folder)


def test_a_part_of_a_source_has_its_own_line(generator, tmp_path):
    "The first 20 formulas, or those of CROHME's symbols, do not replace the line of all; the same set once more does."
    from formula_gan.results import read_table, write_row
    path = tmp_path / "datasets.csv"
    for n, (count, vocabulary) in enumerate(((33, ""), (20, ""), (33, "crohme"), (33, ""))):
        synthesize(FORMULAS[:count], tmp_path / str(n), generator, vocabulary=vocabulary, device="cpu", progress=False)
        line = {"source": "mine", **summarize_set(tmp_path / str(n))}
        write_row(path, line, SUMMARY_COLUMNS, SUMMARY_KEY)
    table = read_table(path, SUMMARY_COLUMNS)
    assert table["count"].tolist() == [20, 33, 33] and table.vocabulary.fillna("").tolist() == ["", "crohme", ""]


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_shows_its_pictures(whole, generator, tmp_path, format):
    make(generator, tmp_path / "set", format=format, shard="1/3")
    for line, same in [*zip(read_manifest(tmp_path / "set"), read_manifest(whole))][:5]:
        picture = np.asarray(open_written(tmp_path / "set", line).convert("L"))
        tar = np.asarray(open_written(whole, same).convert("L"))
        assert np.array_equal(picture, np.where(tar > 127, 255, 0) if format == "captions" else tar)
    gallery = set_gallery(tmp_path / "set", count=2, columns=1)
    assert gallery.mode == "L" and gallery.height > 2 * 20


def test_thresholds_count_what_was_read(whole, tmp_path):
    with pytest.raises(FormulaGanError, match="give `synthesize` a recogniser"): score_thresholds(whole)
    shutil.copytree(whole, tmp_path / "set")
    lines = [line | {"score": 0.4 + 0.5 * (n % 2), "reading": line["tokens"] if n % 4 == 1 else "wrong"}
             for n, line in enumerate(read_manifest(whole))]
    for path in (tmp_path / "set" / "manifest").glob("*"): path.unlink()
    (tmp_path / "set" / "manifest" / "shard-00000.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = score_thresholds(tmp_path / "set").set_index("min_score")
    assert table.loc[0].tolist() == [132, 100, 25, 100]
    assert table.loc[0.5].tolist() == table.loc[0.9].tolist() == [66, 50, 50, 100]
    assert table.loc[0.95, "kept"] == 0
    assert table.loc[0.95].isna()["exact_percent"]
    assert table.loc[0.95, "exact_kept_percent"] == 0
    some, more = (readback_sheet(tmp_path / "set", count) for count in (2, 4))
    assert some.mode == "L" and more.height > some.height


@pytest.mark.parametrize("format, library", [
    ("captions", "PIL"),
    ("webdataset", "webdataset"),
    ("imagefolder", "datasets"),
])
def test_readme_says_what_is_there_and_how_to_load_it(generator, tmp_path, format, library):
    out = tmp_path / "set"
    synthesize([*FORMULAS, r"\frac{1}{"], out, generator, format=format, shard_size=64, device="cpu", progress=False)
    text = (out / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\n")
    assert "| images | 33 |" in text
    assert "| formulas that could not be written | 1 |" in text
    pytest.importorskip(library)
    code = text.split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=out, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 33 and r"x _ { 0 } + \alpha" in done.stdout


def test_dictionary_and_vocabulary(generator, tmp_path):
    formulas = ["x + 1", r"\nabla f", r"x ^ { 2 }"]
    made = synthesize(formulas, tmp_path / "all", generator, format="captions", shard_size=64, device="cpu",
                      progress=False)
    assert made.written == 3
    tokens = (tmp_path / "all" / "dictionary.txt").read_text(encoding="utf-8").split()
    assert tokens == sorted({t for f in formulas for t in normalize(f).split()})
    made = synthesize(formulas, tmp_path / "crohme", generator, format="captions", shard_size=64, device="cpu",
                      progress=False, vocabulary="crohme")
    assert made.written == 2
    assert [(latex, r"\nabla" in reason) for _, latex, reason in made.skipped] == [(r"\nabla f", True)]
    assert r"\nabla" not in (tmp_path / "crohme" / "dictionary.txt").read_text(encoding="utf-8")
    with pytest.raises(FormulaGanError, match="vocabulary"):
        synthesize(formulas, tmp_path / "none", generator, vocabulary="mine", progress=False)
