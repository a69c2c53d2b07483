"""Table 2: its sizes, rows, recipes, stages, scores, other test sets, notebook and commands."""
import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
import torch
from test_parameters import code_after_parameters, parameters

from formula_gan import cli, experiments
from formula_gan.core import TABLE2_COLUMNS, TABLE2_KEY, FormulaGanError, get_profile, read_table, write_row
from formula_gan.data import HANDWRITTEN, PRINTED, ImageSet, draw_ink, draw_print, ink_images, oracle_heights, resize_set
from formula_gan.evaluation import PAPER_TABLE2, compare, table2
from formula_gan.experiments import (RECOGNITION_ROWS, Unfinished, choose_recognition_row, compare_rows, run_recognition_row, score_columns, score_test_set,
                                     training_sets, validation_curve)
from formula_gan.ink import distort, rasterize, write_inkml
from formula_gan.rendering import typeset
from formula_gan.task_model import Recognizer, RecognizerConfig, load_recognizer
from formula_gan.tokenizer import Vocab
from formula_gan.trainer import RECIPES, RecognizerTask, Trainer, large_recognizer

TINY = get_profile("demo", synthetic_images=24, printed_formulas=24, gan_iterations=1, warmup_iterations=1, updates=2, recognizer_batch=4, workers=1)
FRACTION = r"\frac { a } { b } + x ^ { 2 }"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("FORMULA_GAN_CACHE", str(tmp_path_factory.mktemp("cache")))
    decode = Recognizer.decode  # recognisers of two updates never end: a short cap and a narrow beam
    patch.setattr(Recognizer, "decode", lambda self, x, mask=None, beam_size=10: decode(self, x, mask, min(beam_size, 2), 12))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def ink():
    from formula_gan.ink import demo_inks
    return demo_inks([FRACTION], writers=1)[0]


@pytest.fixture(scope="module")
def result():
    return run_recognition_row("R", TINY, progress=False)


# sizes

def test_three_sizes_of_ink(ink):
    drawn = {sizing: draw_ink(ink, get_profile("laptop", sizing=sizing, workers=1)) for sizing in ("height", "symbol", "symbol-oracle")}
    printed = draw_print(typeset(FRACTION), get_profile("laptop"))
    assert drawn["height"].shape[0] == 64 and drawn["symbol-oracle"].shape[0] == printed.shape[0]
    assert abs(drawn["symbol"].shape[0] / printed.shape[0] - 1) < 0.5
    profile = get_profile("laptop", sizing="symbol-oracle", workers=1)
    images, _ = ink_images([ink, ink.with_latex(r"\frac {")], profile, progress=False)
    assert images.shapes[0, 0] == printed.shape[0] and images.shapes[1, 0] == drawn["symbol"].shape[0]  # a label that cannot be typeset: the estimate
    assert oracle_heights(["- "], profile) == [4]


def test_only_the_oracle_looks_at_the_truth(ink):
    other = ink.with_latex("x")
    for sizing in ("height", "symbol", "symbol-oracle"):
        profile = get_profile("laptop", sizing=sizing, workers=1)
        assert (draw_ink(ink, profile).shape == draw_ink(other, profile).shape) == (sizing != "symbol-oracle")


def test_synthetic_images_follow():
    images = ImageSet([np.ones((8, 20)), np.ones((6, 60)), np.ones((40, 30))], ["a", "b", "c"], HANDWRITTEN, [{"number": n} for n in range(3)])
    tall = resize_set(images, get_profile("demo", sizing="height"))
    assert tall.shapes.tolist() == [[32, 80], [32, 24]] and tall.tokens == ["a", "c"] and tall.extra[1] == {"number": 2} and tall.domain == HANDWRITTEN
    assert len(resize_set(images, get_profile("demo", sizing="height"), 12)) == 3
    for sizing in ("symbol", "symbol-oracle"): assert resize_set(images, get_profile("demo", sizing=sizing)) is images


def test_distortion_moves_but_keeps(ink):
    bent = distort(ink, np.random.default_rng(0))
    assert [len(s) for s in bent.strokes] == [len(s) for s in ink.strokes] and bent.symbols == ink.symbols and bent.latex == ink.latex
    assert not np.allclose(bent.strokes[0], ink.strokes[0]) and np.isfinite(np.concatenate(bent.strokes)).all()
    assert all((a == b).all() for a, b in zip(bent.strokes, distort(ink, np.random.default_rng(0)).strokes))
    ratio = np.array(rasterize(bent, symbol_height=12).shape) / rasterize(ink, symbol_height=12).shape
    assert (0.5 < ratio).all() and (ratio < 2).all()


# recipes

CONFIG = RecognizerConfig(layers=1, growth=4, stem_channels=8, stride=8, hidden=16, embedding=16, attention=16)


def task(recipe=None, steps=40):
    images = ImageSet([np.ones((8, 20)), np.ones((20, 6))], ["-", "1"], PRINTED)
    return RecognizerTask(TINY, [images], Vocab.from_tokens([["-", "1"]]), config=CONFIG, steps=steps, recipe=recipe)


def test_recipes_are_the_papers_and_the_fields():
    paper, modern = task(RECIPES["paper"]), task(RECIPES["modern"])
    [group] = paper.optimizers["recognizer"].param_groups
    assert isinstance(paper.optimizers["recognizer"], torch.optim.SGD) and (group["lr"], group["momentum"], paper.streams[0].batch) == (1e-4, 0.9, 6)
    assert modern.streams[0].ranges.scale == (0.7, 1.4) and modern.streams[0].batch == 8
    assert [modern.factor(step) for step in (0, 1, 39)] == [0.5, 1.0, pytest.approx(0.0017, rel=0.1)]
    assert "recipe" not in task().spec and task().streams[0].ranges.scale == (1, 1)  # Table 1 as it was


def test_curriculum_shows_short_formulas_first():
    vocab = Vocab.from_tokens([["x"]])
    lengths = [1, 3, 9] * 4
    images = ImageSet([np.ones((8, 4 * n)) for n in lengths], [" ".join("x" * n) for n in lengths], PRINTED)
    recipe = dataclasses.replace(RECIPES["modern"], batch=4, curriculum=((0.2, 1), (0.5, 3), (0.7, 0)))
    one = RecognizerTask(TINY, [images, images], vocab, config=CONFIG, steps=10, recipe=recipe)
    longest = [max(len(t.split()) for t in one[step].tokens) for step in range(10)]
    assert longest[:2] == [1, 1] and set(longest[2:5]) <= {1, 3} and max(longest[5:]) == 9  # no formula has 0 tokens: that phase is skipped
    assert list(RecognizerTask(TINY, [images], vocab, config=CONFIG, steps=10).streams) == [0]


def test_plateau_divides_by_ten():
    one = task(RECIPES["paper"])
    factors = []
    for value in (3, 2, 2.5, 2.1, 1.9, 2, 2, 2, 2, 2, 2, 2): one.after_validation(value); factors.append(one.factor(0))
    assert factors == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.001, 0.001])


def test_plateau_survives_a_stop(tmp_path):
    def train(folder, stop=5):
        one = task(RECIPES["paper"], steps=5)
        trainer = Trainer(one, tmp_path / folder, metric=lambda task: {"metric": 1.0, "exprate": 0.0}, metric_every=1, progress=False)
        one.steps = stop
        trainer.run()
        return one
    whole = train("whole")
    train("part", 3)
    resumed = train("part")
    assert whole.state == resumed.state and whole.state["drops"] == 2
    assert all(torch.equal(a, b) for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values()))


def test_shapes_by_profile():
    for name in ("gpu", "paper"): assert (large_recognizer(get_profile(name)).layers, large_recognizer(get_profile(name)).growth) == (16, 24)
    assert all(large_recognizer(get_profile(name)).multi_scale for name in ("demo", "laptop", "gpu", "paper"))


# rows

def test_rows_are_the_papers_and_four_controls():
    assert list(RECOGNITION_ROWS) == ["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "R", "D", "S", "Y"]
    for name, (what, norm, *_) in PAPER_TABLE2.items():
        row = RECOGNITION_ROWS[name]
        assert row.train_norm == norm and row.ink and (f"({row.second})" in what if row.second else what == "CROHME")
    assert not RECOGNITION_ROWS["Y"].ink and choose_recognition_row("V", "symbol-oracle").train_norm == "symbol-oracle"


@pytest.mark.parametrize("call, word", [(dict(row="IX"), "IX"), (dict(recipe="old"), "old"), (dict(train_norm="big"), "big"), (dict(test_norms=("symbol", "no")), "no"),
                                        (dict(test_norms=()), "test_norms"), (dict(generator="none"), "no generator 'none'"), (dict(seed="x"), "seed"), (dict(profile="huge"), "huge"), (dict(profile="demo", sizing="height"), "sizing")])
def test_mistakes_are_named_before_any_work(monkeypatch, call, word):
    monkeypatch.setattr(experiments, "training_sets", lambda *a, **k: pytest.fail("worked before it looked"))
    with pytest.raises(FormulaGanError, match=word): run_recognition_row(**{"profile": TINY, "progress": False, **call})


def test_a_row_from_end_to_end(result):
    assert [(r["row"], r["train_norm"], r["test_norm"]) for r in result.rows] == [("R", "symbol", "height"), ("R", "symbol", "symbol")]
    for r in result.rows:
        assert set(r) <= set(TABLE2_COLUMNS) and r["n"] == 60 and r["exprate_low"] <= r["exprate"] <= r["exprate_high"]
        assert (r["synthetic"], r["updates"], r["recipe"], r["profile"], r["batch"]) == (24, 2, "modern", "demo", 8)
    assert [t for t, _ in result.readings["height"]] == [t for t, _ in result.readings["symbol"]] == result.test["symbol"].tokens
    lines = (result.folder / "readings-symbol.tsv").read_text().splitlines()
    assert len(lines) == 60 and [line.split("\t")[1] for line in lines] == result.test["symbol"].tokens
    assert list(validation_curve(result.folder).columns) == ["step", "minutes", "metric", "exprate"]
    assert result.table.parent == experiments.cache_dir() and list(read_table(result.table, TABLE2_COLUMNS).test_norm) == ["height", "symbol"]
    test = [r for _, r in result.readings["symbol"]]
    assert compare(test, test, result.test["symbol"].tokens).difference == 0


def test_a_finished_row_is_not_trained_again(result, monkeypatch):
    monkeypatch.setattr(experiments, "Trainer", lambda *a, **k: pytest.fail("trained what was finished"))
    monkeypatch.setattr(experiments, "read_images", lambda *a, **k: pytest.fail("read what was read"))
    assert run_recognition_row("R", TINY, progress=False).readings == result.readings
    assert len(read_table(result.table, TABLE2_COLUMNS)) == 2  # replaced, not repeated


def test_what_each_row_trains_on(result, monkeypatch):
    asked = []
    prints = ImageSet([np.ones((8, 20))] * 3, ["a"] * 3, HANDWRITTEN)
    def source(source, *rest): asked.append(getattr(source, "name", source)); return prints, {"source": asked[-1]}, 1.5
    monkeypatch.setattr(experiments, "make_source", source)
    sets = {name: training_sets(row, TINY, progress=False) for name, row in RECOGNITION_ROWS.items() if name != "D"}
    assert asked == ["1", "2", "7", "1", "2", "7", "P", "S", "7"]
    assert {name: len(s[0]) for name, s in sets.items()} == {"I": 1, "V": 1, "Y": 1, **dict.fromkeys(("II", "III", "IV", "VI", "VII", "VIII", "R", "S"), 2)}
    assert sets["IV"][0][1].shapes[0, 0] == 32 and sets["VIII"][0][1] is prints and sets["VIII"][2] == 1.5
    assert (sets["I"][0][0].shapes[:, 0] == 32).all() and not (sets["V"][0][0].shapes[:, 0] == 32).all()
    specs = [str(s[1]) for s in sets.values()]
    assert len(set(specs)) == len(specs)  # no two rows share a stage
    held_out = set(result.test["symbol"].tokens)
    assert not held_out & set(sets["V"][0][0].tokens)


def test_stops_by_the_clock():
    with pytest.raises(Unfinished, match="run the same command again"):
        run_recognition_row("V", dataclasses.replace(TINY, updates=5000), max_minutes=0.001, progress=False)


def test_table_beside_the_papers(tmp_path):
    rows = [dict(row="VIII skip", recipe="modern", train_norm="symbol", test_norm=norm, exprate=value, profile="laptop", updates=9) for norm, value in (("height", 20.0), ("symbol", 40.0))]
    for row in [*rows, rows[1] | {"exprate": 41.0}, dict(row="Y", test_norm="symbol", exprate=3.0)]: write_row(tmp_path / "t.csv", row, TABLE2_COLUMNS, TABLE2_KEY)
    table = table2(read_table(tmp_path / "t.csv", TABLE2_COLUMNS))
    ours = table[table.row == "VIII skip"]
    assert list(ours["paper exprate"]) == [34.5, 39.4] and list(ours.exprate) == [20.0, 41.0] and (ours.what == "CROHME + GAN (7)").all()
    assert table[table.row == "Y"].what.item() == "GAN (7) alone" and list(table.row)[-1] == "Y" and "VIII" not in set(table.row)


def test_interval_stands_beside_the_rate():
    columns = score_columns(["x", None, "y"], ["x", "x", "y + 1"])
    assert columns["exprate"] == 33.33 and columns["exprate_low"] == pytest.approx(6.15, abs=0.01) and columns["exprate_high"] == pytest.approx(79.23, abs=0.01) and columns["n"] == 3


# other test sets

def test_inkml_by_path(result, ink, tmp_path):
    model = load_recognizer(result.folder / "best.safetensors")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.inkml").write_bytes(write_inkml(ink))
    (tmp_path / "b.inkml").write_bytes(write_inkml(ink.with_latex(r"$\aleph +1 $")))
    (tmp_path / "c.inkml").write_text("<ink")
    (tmp_path / "d.inkml").write_bytes(write_inkml(ink.with_latex("")))
    scored = score_test_set(model, tmp_path, beam_size=1, progress=False)
    assert scored.scores["n"] == 2 and scored.names == ["b.inkml", "deep/a.inkml"] and scored.readings[1][0] == FRACTION
    assert dict(scored.unknown) == {r"\aleph": 1} and not scored.lost
    assert [name for name, _ in scored.skipped] == ["c.inkml", "d.inkml"] and "broken XML" in scored.skipped[0][1] and "no truth" in scored.skipped[1][1]
    import shutil
    again = score_test_set(model, shutil.make_archive(str(tmp_path / "zipped"), "zip", tmp_path / "deep"), "height", 1, progress=False)
    assert again.scores["n"] == 1 and again.names == ["a.inkml"]
    (tmp_path / "caption.txt").write_text("a\tx + y\nb\tx\nc\ty\n")
    captioned = score_test_set(model, tmp_path, beam_size=1, progress=False)  # captions come before the files' own truths; broken ink counts as wrong
    assert [t for t, _ in captioned.readings] == ["x", "y", "x + y"] and [name for name, _ in captioned.lost] == ["c.inkml"] and captioned.readings[1][1] is None


# commands and notebook

def test_rows_are_compared_in_pairs_and_kept(result, monkeypatch, tmp_path):
    better = dataclasses.replace(result, rows=[r | {"row": "VIII"} for r in result.rows], readings={norm: [(t, t) for t, _ in pairs] for norm, pairs in result.readings.items()},
                                 table=tmp_path / "table2.csv")
    frame = compare_rows([dataclasses.replace(result, table=tmp_path / "table2.csv"), better])
    kept = pd.read_csv(tmp_path / "table2_pairs.csv")
    assert list(kept.columns) == list(frame.columns) and len(kept) == 2
    right = sum(t == r for t, r in result.readings["symbol"])
    [line] = kept[kept.test_norm == "symbol"].to_dict("records")
    assert (line["row"], line["versus"], line["only_versus"], line["only_row"], line["n"]) == ("VIII", "R", 0, 60 - right, 60)
    assert line["difference"] == pytest.approx(100 * (60 - right) / 60, abs=1e-3)
    curve = pd.read_csv(result.table.with_name("table2_curves.csv"))
    assert set(validation_curve(result.folder).step) <= set(curve[(curve.row == "R") & (curve.updates == 2)].step)


def test_a_row_by_the_packages_generator():
    own = run_recognition_row("VIII", TINY, test_norms=("symbol",), generator="default", progress=False)
    assert [(r["row"], r["synthetic"]) for r in own.rows] == [("VIII default", 24)]


def test_commands(result, ink, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.inkml").write_bytes(write_inkml(ink))
    model = str(result.folder / "best.safetensors")
    assert cli.main(["evaluate", "--recognizer", model, "--test-set", str(tmp_path), "--beam-size", "1", "--json"]) == 0
    assert '"n": 1' in capsys.readouterr().out
    (tmp_path / "b.inkml").write_text("<ink")
    assert cli.main(["evaluate", "--recognizer", model, "--test-set", str(tmp_path), "--beam-size", "1"]) == 1
    assert "skipped b.inkml" in capsys.readouterr().err
    for words, part in ((["--recognizer", model], "--test-set"), (["one"], "predictions"), (["--recognizer", "none", "--test-set", str(tmp_path)], "none"),
                        (["--recognizer", model, "--test-set", str(tmp_path), "--test-norm", "big"], "big")):
        assert cli.main(["evaluate", *words]) == 2 and part in capsys.readouterr().err
    calls = []
    def run(row, *rest, **overrides): calls.append((row, *rest, overrides)); return result
    monkeypatch.setattr(experiments, "run_recognition_row", run)
    assert cli.main(["table2", "--row", "V", "R", "--recipe", "paper", "--test-norm", "symbol", "--seed", "3", "--max-minutes", "2", "--set", "updates=5"]) == 0
    assert calls == [(row, "demo", "paper", "", ("symbol",), 3, "", 2.0, "", {"updates": "5"}) for row in "VR"] and "exprate_low" in capsys.readouterr().out
    assert cli.main(["table2", "--list"]) == 0 and len(capsys.readouterr().out.splitlines()) == 12
    for words in ([], ["--row", "IX"], ["--row", "V", "--train-norm", "big"]): assert cli.main(["table2", *words]) == 2


class Reached(Exception): pass


def call_of(monkeypatch, **injected):
    seen = []
    def record(*positional): seen.extend(positional); raise Reached
    monkeypatch.setattr(experiments, "run_recognition_row", record)
    space = {**parameters("11_recognition.ipynb"), **injected}
    with pytest.raises(Reached):
        for source in code_after_parameters("11_recognition.ipynb"): exec(source, space)
    return dict(zip(("row", "profile", "recipe", "train_norm", "test_norms", "seed", "data_dir", "max_minutes", "generator"), seen))


def test_parameters_reach_the_row(monkeypatch):
    call = call_of(monkeypatch, row="VIII", profile="laptop", recipe="paper", train_norm="height", test_norms="symbol symbol-oracle", seed="5", data_dir="d", max_minutes=3,
                   overrides={"updates": "7"})
    assert (call.pop("profile").updates, call) == (7, dict(row="VIII", recipe="paper", train_norm="height", test_norms=("symbol", "symbol-oracle"), seed=5, data_dir="d", max_minutes=3.0, generator=""))
    assert call_of(monkeypatch)["test_norms"] == ("height", "symbol")


@pytest.mark.parametrize("injected, word", [({"row": "99"}, "99"), ({"profile": "huge"}, "huge"), ({"versus": "Q"}, "Q"), ({"overrides": "x"}, "overrides"), ({"seed": 0.5}, "0.5"),
                                            ({"train_norm": "big"}, "big"), ({"overrides": {"update": 4}}, "update")])
def test_a_wrong_value_is_told_before_the_run(injected, word):
    with pytest.raises(FormulaGanError, match=re.escape(word)): exec(code_after_parameters("11_recognition.ipynb")[0], {**parameters("11_recognition.ipynb"), **injected})
