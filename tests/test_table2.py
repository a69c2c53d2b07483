"""Table 2: its sizes, rows, recipes, stages, scores, other test sets, notebook and commands."""
import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
from test_parameters import code_after_parameters, parameters

from formula_gan import ablation_rows, cli, recognition_rows, recognizers, stages, tables
from formula_gan.core import FormulaGanError, cache_dir, get_profile
from formula_gan.data import (HANDWRITTEN, ImageSet, draw_ink, draw_print, ink_images, oracle_heights,
                              resize_set)
from formula_gan.evaluation import compare, score_columns
from formula_gan.results import (NO_DIFFERENCE, PAPER_TABLE2, TABLE1_COLUMNS, TABLE1_KEY, TABLE2_COLUMNS, TABLE2_KEY,
                                 provenance, read_table, table2, write_row)
from formula_gan.stages import Unfinished, make_run
from formula_gan.scoring import score_test_set
from formula_gan.recognition_rows import (RECOGNITION_ROWS, choose_recognition_row, large_model, training_figures,
                                          training_sources, validation_curve)
from formula_gan.tables import compare_rows, run_recognition_row
from formula_gan.ink import distort, rasterize, write_inkml
from formula_gan.rendering import typeset
from formula_gan.task_model import Recognizer, load_recognizer
from formula_gan.tasks import RECIPES

TINY = get_profile("demo", synthetic_images=24, printed_formulas=24, gan_iterations=1, warmup_iterations=1, updates=2,
                   recognizer_batch=4, workers=1)
FRACTION = r"\frac { a } { b } + x ^ { 2 }"


class Reached(Exception): pass


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("FORMULA_GAN_CACHE", str(tmp_path_factory.mktemp("cache")))
    decode = Recognizer.look_and_decode  # recognisers of two updates never end: a short cap and a narrow beam

    def short(self, x, mask=None, beam_size=10, sizes=(1.0,)):
        return decode(self, x, mask, min(beam_size, 2), 12, sizes=sizes)
    patch.setattr(Recognizer, "look_and_decode", short)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def ink():
    from formula_gan.demo_hands import demo_inks
    return demo_inks([FRACTION], writers=1)[0]


@pytest.fixture(scope="module")
def result():
    return run_recognition_row("P", TINY, "modern", progress=False)


# sizes

def test_three_sizes_of_ink(ink):
    drawn = {sizing: draw_ink(ink, get_profile("laptop", sizing=sizing, workers=1))
             for sizing in ("height", "symbol", "symbol-oracle")}
    printed = draw_print(typeset(FRACTION), get_profile("laptop"))
    assert drawn["height"].shape[0] == 128 and drawn["symbol-oracle"].shape[0] == printed.shape[0]
    assert abs(drawn["symbol"].shape[0] / printed.shape[0] - 1) < 0.5
    profile = get_profile("laptop", sizing="symbol-oracle", workers=1)
    images, _ = ink_images([ink, ink.with_latex(r"\frac {")], profile, progress=False)
    # a label that cannot be typeset: the estimate
    assert images.shapes[0, 0] == printed.shape[0] and images.shapes[1, 0] == drawn["symbol"].shape[0]
    assert oracle_heights(["- "], profile) == [4]


def test_only_the_oracle_looks_at_the_truth(ink):
    other = ink.with_latex("x")
    for sizing in ("height", "symbol", "symbol-oracle"):
        profile = get_profile("laptop", sizing=sizing, workers=1)
        assert (draw_ink(ink, profile).shape == draw_ink(other, profile).shape) == (sizing != "symbol-oracle")


def test_synthetic_images_follow():
    images = ImageSet([np.ones((8, 20)), np.ones((6, 60)), np.ones((40, 30))], ["a", "b", "c"], HANDWRITTEN,
                      [{"number": n} for n in range(3)])
    tall = resize_set(images, get_profile("demo", sizing="height"))
    assert tall.shapes.tolist() == [[32, 80], [32, 24]]
    assert tall.tokens == ["a", "c"]
    assert tall.extra[1] == {"number": 2}
    assert tall.domain == HANDWRITTEN
    assert len(resize_set(images, get_profile("demo", sizing="height"), 12)) == 3
    for sizing in ("symbol", "symbol-oracle"): assert resize_set(images, get_profile("demo", sizing=sizing)) is images


def test_distortion_moves_but_keeps(ink):
    bent = distort(ink, np.random.default_rng(0))
    assert [len(s) for s in bent.strokes] == [len(s) for s in ink.strokes]
    assert bent.symbols == ink.symbols
    assert bent.latex == ink.latex
    assert not np.allclose(bent.strokes[0], ink.strokes[0]) and np.isfinite(np.concatenate(bent.strokes)).all()
    assert all((a == b).all() for a, b in zip(bent.strokes, distort(ink, np.random.default_rng(0)).strokes))
    ratio = np.array(rasterize(bent, symbol_height=12).shape) / rasterize(ink, symbol_height=12).shape
    assert (0.5 < ratio).all() and (ratio < 2).all()


# rows

def test_rows_are_the_papers_and_four_controls():
    assert list(RECOGNITION_ROWS) == ["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "P", "D", "S", "Y"]
    for name, (what, norm, *_) in PAPER_TABLE2.items():
        row = RECOGNITION_ROWS[name]
        assert row.train_norm == norm and row.ink and (f"({row.second})" in what if row.second else what == "CROHME")
    assert not RECOGNITION_ROWS["Y"].ink and choose_recognition_row("V", "symbol-oracle").train_norm == "symbol-oracle"


@pytest.mark.parametrize("call, word", [
    (dict(row="IX"), "IX"),
    (dict(recipe="old"), "old"),
    (dict(train_norm="big"), "big"),
    (dict(test_norms=("symbol", "no")), "no"),
    (dict(test_norms=()), "test_norms"),
    (dict(generator="none"), "no generator 'none'"),
    (dict(seed="x"), "seed"),
    (dict(profile="huge"), "huge"),
    (dict(profile="demo", sizing="height"), "sizing"),
])
def test_mistakes_are_named_before_any_work(monkeypatch, call, word):
    monkeypatch.setattr(tables, "training_sources", lambda *a, **k: pytest.fail("worked before it looked"))
    with pytest.raises(FormulaGanError, match=word): run_recognition_row(**{"profile": TINY, "progress": False, **call})


def test_a_row_from_end_to_end(result):
    assert [(r["row"], r["train_norm"], r["test_norm"]) for r in result.rows] == [
        ("P", "symbol", "height"),
        ("P", "symbol", "symbol"),
        ("P", "symbol", "three-sizes"),
    ]
    for r in result.rows:
        assert set(r) <= set(TABLE2_COLUMNS) and r["n"] == 60 and r["exprate_low"] <= r["exprate"] <= r["exprate_high"]
        assert (r["synthetic"], r["updates"], r["recipe"], r["profile"], r["batch"]) == (24, 2, "modern", "demo", 8)
    for norm in ("height", "symbol"): assert [t for t, _ in result.readings[norm]] == result.test["symbol"].tokens
    assert result.readings["three-sizes"] != result.readings["symbol"]
    run, row = make_run(TINY, progress=False), RECOGNITION_ROWS["P"]
    model = large_model(run, row, training_sources(run, row), RECIPES["modern"])
    assert model.folder == result.folder and {r["stage"] for r in result.rows} == {model.folder.name}
    lines = (recognition_rows.test_readings(run, model, "symbol").folder / "readings.tsv").read_text().splitlines()
    assert len(lines) == 60 and [line.split("\t")[1] for line in lines] == result.test["symbol"].tokens
    assert list(validation_curve(result.folder).columns) == ["step", "minutes", "metric", "exprate"]
    assert result.table.parent == cache_dir()
    assert list(read_table(result.table, TABLE2_COLUMNS).test_norm) == ["height", "symbol", "three-sizes"]
    test = [r for _, r in result.readings["symbol"]]
    assert compare(test, test, result.test["symbol"].tokens).difference == 0


def other_value(field):
    "Another value of a field of `TINY`."
    named = {"data": "crohme2014+wikipedia", "precision": "bf16", "network": "wide", "judge": "ink",
             "reader": "content", "recognizer_stride": 16, "discriminator_beta1": 0.25, "ema_decay": 0.5}
    value = getattr(TINY, field)
    if field in named: return named[field]
    if isinstance(value, bool): return not value
    return value + (0.25 if isinstance(value, float) else 1)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(TINY)
                                   if f.name not in (*NO_DIFFERENCE, "lambda_", "sizing", "synthetic_images")])
def test_every_field_tells_two_lines_apart(tmp_path, field):
    "Two lines of VIII that differ in one field of the profile; lambda, sizes and images are the row's own."
    for value in (getattr(TINY, field), other_value(field)):
        run = make_run(dataclasses.replace(TINY, **{field: value}), progress=False)
        own = recognition_rows.own_columns(run, RECOGNITION_ROWS["VIII"], "guided", "", 24) | provenance(run, 1.0)
        write_row(tmp_path / "t.csv", own | {"test_norm": "symbol"}, TABLE2_COLUMNS, TABLE2_KEY)
    assert len(read_table(tmp_path / "t.csv", TABLE2_COLUMNS)) == 2


@pytest.mark.parametrize("table, column", [(n, c) for n, key in enumerate((TABLE1_KEY, TABLE2_KEY), 1) for c in key])
def test_every_column_of_the_key_tells_two_lines_apart(tmp_path, table, column):
    columns, key = (TABLE1_COLUMNS, TABLE1_KEY) if table == 1 else (TABLE2_COLUMNS, TABLE2_KEY)
    line = {"row": "2", "seed": 0, "stage": "recognizer-1", "test_norm": "symbol"}
    line = {name: value for name, value in line.items() if name in columns}
    for value in (line.get(column), "7"): write_row(tmp_path / "t.csv", line | {column: value}, columns, key)
    assert len(read_table(tmp_path / "t.csv", columns)) == 2


def test_a_view_shows_the_newest_of_lines_that_differ_in_their_stage_alone(tmp_path):
    for stage, wer in (("recognizer-1", 9.0), ("recognizer-2", 8.0)):
        line = {"row": "V", "test_norm": "symbol", "stage": stage, "wer": wer, "seed": 0}
        write_row(tmp_path / "t.csv", line, TABLE2_COLUMNS, TABLE2_KEY)
    table = table2(read_table(tmp_path / "t.csv", TABLE2_COLUMNS))
    assert table[(table.row == "V") & (table.test_norm == "symbol")].wer.tolist() == [8.0]


def test_a_finished_row_is_not_trained_again(result, monkeypatch):
    monkeypatch.setattr(recognizers, "train", lambda *a, **k: pytest.fail("trained what was finished"))
    monkeypatch.setattr(recognition_rows, "read_images", lambda *a, **k: pytest.fail("read what was read"))
    assert run_recognition_row("P", TINY, "modern", progress=False).readings == result.readings
    assert len(read_table(result.table, TABLE2_COLUMNS)) == 3  # replaced, not repeated


def test_what_each_row_trains_on(result, monkeypatch):
    asked = []
    run = make_run(TINY, progress=False)
    def source(run, source, weights):
        asked.append(getattr(source, "name", source))
        images = ImageSet([np.ones((8, 20))] * 3, ["a"] * 3, HANDWRITTEN)
        return stages.stage(run, "fake", 1, lambda folder: {}, lambda folder: images, source=asked[-1])
    monkeypatch.setattr(recognition_rows, "source_set", source)
    made = {name: training_sources(run, row) for name, row in RECOGNITION_ROWS.items()}
    assert asked == ["1", "2", "7", "1", "2", "7", "P", "S", "7"]
    assert {name: len(s) for name, s in made.items()} == {
        "I": 1,
        "V": 1,
        "Y": 1,
        **dict.fromkeys(("II", "III", "IV", "VI", "VII", "VIII", "P", "S", "D"), 2),
    }
    shown = {}
    def recognizer(run, name, sources, choose, *rest, **identity): shown[name] = choose([s.product for s in sources])
    monkeypatch.setattr(recognition_rows, "recognizer", recognizer)
    for name in ("I", "IV", "V", "VIII", "D"): large_model(run, RECOGNITION_ROWS[name], made[name], RECIPES["modern"])
    assert shown["row IV"][1].shapes[0, 0] == 32 and shown["row VIII"][1].shapes[0].tolist() == [8, 20]
    assert (shown["row I"][0].shapes[:, 0] == 32).all() and not (shown["row V"][0].shapes[:, 0] == 32).all()
    assert len(shown["row D"]) == 2 and not np.array_equal(shown["row D"][0][0], shown["row D"][1][0])
    assert not set(result.test["symbol"].tokens) & set(shown["row V"][0].tokens)


def test_no_two_rows_share_a_training():
    run = make_run(TINY, progress=False)
    for recipe, sources in ((RECIPES["modern"], training_sources), ("guided", training_figures)):
        left_out = {"II", "III", "VI", "VII"} | ({"D"} if recipe == "guided" else set())
        folders = []
        for name, row in RECOGNITION_ROWS.items():
            if name in left_out: continue
            generator = "default" if row.second in ("1", "2") else ""
            folders.append(large_model(run, row, sources(run, row, generator), recipe).folder.name)
        assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("row", ["V", "P", "VIII"])
def test_guided_rows(row):
    "Ink, print as outlines, and a generator's images with the boxes of their print."
    done = run_recognition_row(row, TINY, test_norms=("symbol",), generator="default", progress=False)
    [line] = done.rows
    assert (line["row"], line["recipe"], line["n"]) == (row, "guided", 60)
    assert line["synthetic"] == (0 if row == "V" else 24)
    assert {"metric", "exprate", "nll"} <= set(validation_curve(done.folder).columns)


@pytest.mark.parametrize("name, guided", [("demo", True), ("laptop", True), ("gpu", False), ("paper", False)])
def test_the_profile_chooses_the_recipe(monkeypatch, name, guided):
    asked = []
    def stop(run, recipe, *rest):
        asked.append(recipe)
        raise Reached
    monkeypatch.setattr(tables, "check_recognition", stop)
    with pytest.raises(Reached): run_recognition_row("V", name, progress=False)
    assert recognition_rows.guides(get_profile(name)) == guided and asked == ["guided" if guided else "modern"]


def test_the_demo_is_read_at_15_px_and_table_1_at_8():
    run = make_run(TINY, progress=False)
    model = large_model(run, RECOGNITION_ROWS["V"], training_figures(run, RECOGNITION_ROWS["V"]), "guided")
    small = ablation_rows.small_model(run, "P", stages.print_set(run))
    assert model.fields["drawing"]["height"] == 15
    assert model.fields["recipe"]["curriculum"]
    assert model.fields["config"]["wide"]
    assert "guided" not in small.fields and not small.fields["config"]["wide"]


def test_real_datas_stages_keep_their_names():
    "What was added later is in no identity where it is off."
    run = make_run("laptop", progress=False, updates=7_100, exchange=0, parts=0)
    model = large_model(run, RECOGNITION_ROWS["V"], training_figures(run, RECOGNITION_ROWS["V"]), "guided")
    assert "curriculum" not in model.fields["recipe"] and "demo_ink" not in stages.corpus(run).fields
    assert model.folder.name == "recognizer-c58dc92928d8"
    again = run.of(symbol_height=float(run.profile.symbol_height))
    assert stages.corpus(again).folder == stages.corpus(run).folder
    figures = training_figures(again, RECOGNITION_ROWS["V"])
    assert large_model(again, RECOGNITION_ROWS["V"], figures, "guided").folder == model.folder


def test_stops_by_the_clock():
    with pytest.raises(Unfinished, match="run the same command again"):
        run_recognition_row("V", dataclasses.replace(TINY, updates=5000), max_minutes=0.001, progress=False)


def test_table_beside_the_papers(tmp_path):
    common = dict(row="VIII", skip=True, recipe="modern", train_norm="symbol", profile="laptop", updates=9)
    rows = [common | dict(test_norm="height", exprate=20.0), common | dict(test_norm="symbol", exprate=40.0)]
    for row in [*rows, rows[1] | {"exprate": 41.0}, dict(row="Y", test_norm="symbol", exprate=3.0)]:
        write_row(tmp_path / "t.csv", row, TABLE2_COLUMNS, TABLE2_KEY)
    table = table2(read_table(tmp_path / "t.csv", TABLE2_COLUMNS))
    ours = table[table.name == "VIII (skip)"]
    assert list(ours["paper exprate"]) == [34.5, 39.4]
    assert list(ours.exprate) == [20.0, 41.0]
    assert (ours.what == "CROHME + GAN (7)").all()
    assert table[table.row == "Y"].what.item() == "GAN (7) alone"
    assert list(table.row)[-1] == "Y"
    assert "VIII" not in set(table.name)


def test_interval_stands_beside_the_rate():
    columns = score_columns(["x", None, "y"], ["x", "x", "y + 1"])
    assert columns["exprate"] == 33.33
    assert columns["exprate_low"] == pytest.approx(6.15, abs=0.01)
    assert columns["exprate_high"] == pytest.approx(79.23, abs=0.01)
    assert columns["n"] == 3


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
    assert [name for name, _ in scored.skipped] == ["c.inkml", "d.inkml"]
    assert "broken XML" in scored.skipped[0][1]
    assert "no truth" in scored.skipped[1][1]
    import shutil
    again = score_test_set(model, shutil.make_archive(str(tmp_path / "zipped"), "zip", tmp_path / "deep"), "height", 1,
                           progress=False)
    assert again.scores["n"] == 1 and again.names == ["a.inkml"]
    (tmp_path / "caption.txt").write_text("a\tx + y\nb\tx\nc\ty\n")
    # captions come before the files' own truths; broken ink counts as wrong
    captioned = score_test_set(model, tmp_path, beam_size=1, progress=False)
    assert [t for t, _ in captioned.readings] == ["x", "y", "x + y"]
    assert [name for name, _ in captioned.lost] == ["c.inkml"]
    assert captioned.readings[1][1] is None


# commands and notebook

def test_rows_are_compared_in_pairs_and_kept(result, monkeypatch, tmp_path):
    rows = [r | {"row": "VIII"} for r in result.rows]
    readings = {norm: [(t, t) for t, _ in pairs] for norm, pairs in result.readings.items()}
    better = dataclasses.replace(result, rows=rows, readings=readings, table=tmp_path / "table2.csv")
    frame = compare_rows([dataclasses.replace(result, table=tmp_path / "table2.csv"), better])
    kept = pd.read_csv(tmp_path / "table2_pairs.csv")
    assert set(frame.columns) <= set(kept.columns) and len(kept) == 3
    right = sum(t == r for t, r in result.readings["symbol"])
    [line] = kept[kept.test_norm == "symbol"].to_dict("records")
    assert (line["row"], line["versus"].partition(" ")[0]) == ("VIII", "P")
    assert (line["only_versus"], line["only_row"], line["n"]) == (0, 60 - right, 60)
    assert line["difference"] == pytest.approx(100 * (60 - right) / 60, abs=1e-3)
    curve = pd.read_csv(result.table.with_name("table2_curves.csv"))
    assert set(validation_curve(result.folder).step) <= set(curve[(curve.row == "P") & (curve.updates == 2)].step)


def test_a_row_by_the_packages_generator():
    own = run_recognition_row("VIII", TINY, test_norms=("symbol",), generator="default", progress=False)
    assert [(r["row"], r["generator"], r["synthetic"]) for r in own.rows] == [("VIII", "default", 24)]


def test_commands(result, ink, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.inkml").write_bytes(write_inkml(ink))
    model = str(result.folder / "best.safetensors")
    assert cli.main(["evaluate", "--recognizer", model, "--test-set", str(tmp_path), "--beam-size", "1", "--json"]) == 0
    assert '"n": 1' in capsys.readouterr().out
    (tmp_path / "b.inkml").write_text("<ink")
    assert cli.main(["evaluate", "--recognizer", model, "--test-set", str(tmp_path), "--beam-size", "1"]) == 1
    assert "skipped b.inkml" in capsys.readouterr().err
    cli.main(["evaluate", "--recognizer", model, "--test-set", str(tmp_path), "--beam-size", "1", "--errors"])
    wrong, name, truth, _ = capsys.readouterr().out.splitlines()[-1].split("\t")
    assert int(wrong) > 0 and name == "a.inkml" and truth == FRACTION
    for words, part in (
        (["--recognizer", model, "--test-set", str(tmp_path), "--normalize"], "normal form"),
        (["--recognizer", model], "--test-set"),
        (["one"], "predictions"),
        (["--recognizer", "none", "--test-set", str(tmp_path)], "none"),
        (["--recognizer", model, "--test-set", str(tmp_path), "--test-norm", "big"], "big"),
    ):
        assert cli.main(["evaluate", *words]) == 2 and part in capsys.readouterr().err
    calls = []
    def run(row, *rest, **overrides):
        calls.append((row, *rest, overrides))
        return result
    monkeypatch.setattr(tables, "run_recognition_row", run)
    assert cli.main(["table2", "--row", "V", "P", "--recipe", "paper", "--test-norm", "symbol", "--seed", "3",
                     "--max-minutes", "2", "--set", "updates=5"]) == 0
    assert calls == [(row, "demo", "paper", "", ("symbol",), 3, "", 2.0, "", {"updates": "5"}) for row in "VP"]
    assert "exprate_low" in capsys.readouterr().out
    assert cli.main(["table2", "--list"]) == 0 and len(capsys.readouterr().out.splitlines()) == 12
    for words in ([], ["--row", "IX"], ["--row", "V", "--train-norm", "big"]): assert cli.main(["table2", *words]) == 2


def call_of(monkeypatch, **injected):
    seen = []
    def record(*positional):
        seen.extend(positional)
        raise Reached
    monkeypatch.setattr(tables, "run_recognition_row", record)
    space = {**parameters("11_recognition.ipynb"), **injected}
    with pytest.raises(Reached):
        for source in code_after_parameters("11_recognition.ipynb"): exec(source, space)
    names = ("row", "profile", "recipe", "train_norm", "test_norms", "seed", "data_dir", "max_minutes", "generator")
    return dict(zip(names, seen))


def test_parameters_reach_the_row(monkeypatch):
    call = call_of(monkeypatch, row="VIII", profile="laptop", recipe="paper", train_norm="height",
                   test_norms="symbol symbol-oracle", seed="5", data_dir="d", max_minutes=3, overrides={"updates": "7"})
    assert call.pop("profile").updates == 7
    assert call == dict(row="VIII", recipe="paper", train_norm="height", test_norms=("symbol", "symbol-oracle"), seed=5,
                        data_dir="d", max_minutes=3.0, generator="")
    assert call_of(monkeypatch)["test_norms"] == ("height", "symbol", "three-sizes")


@pytest.mark.parametrize("injected, word", [
    ({"row": "99"}, "99"),
    ({"profile": "huge"}, "huge"),
    ({"versus": "Q"}, "Q"),
    ({"overrides": "x"}, "overrides"),
    ({"seed": 0.5}, "0.5"),
    ({"train_norm": "big"}, "big"),
    ({"overrides": {"update": 4}}, "update"),
])
def test_a_wrong_value_is_told_before_the_run(injected, word):
    with pytest.raises(FormulaGanError, match=re.escape(word)):
        exec(code_after_parameters("11_recognition.ipynb")[0], {**parameters("11_recognition.ipynb"), **injected})
