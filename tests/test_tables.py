import dataclasses
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from formula_gan import ablation_rows, figures, generators, recognition_rows, recognizers, results, stages, tables
from formula_gan.core import FormulaGanError, Profile, get_profile
from formula_gan.data import HANDWRITTEN, PRINTED
from formula_gan.plan import Planned, is_done, run_plan, table1_plan
from formula_gan.results import TABLE1_COLUMNS, display_name, read_table
from formula_gan.sagan import load_generator
from formula_gan.generators import gan_streams
from formula_gan.recognizers import content_formulas
from formula_gan.stages import Unfinished, image_sets, make_run
from formula_gan.ablation_rows import CONTROLS, ROWS, choose_row
from formula_gan.tables import run_row

OVERRIDES = dict(synthetic_images=24, printed_formulas=24, gan_iterations=2, warmup_iterations=1, recognizer_steps=3,
                 reader_steps=3, workers=1)
TINY = get_profile("demo", **OVERRIDES)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("FORMULA_GAN_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


def made_sets(profile=TINY): return image_sets(make_run(profile, progress=False)).product.sets


def test_rows_are_the_papers():
    assert [(r.lambda_, r.attention, r.target, r.handwritten_source) for r in ROWS.values()] == [
        (0, True, "opposite", True),
        (1, True, "opposite", True),
        (2, True, "opposite", True),
        (10, True, "opposite", True),
        (1, False, "opposite", True),
        (1, True, "random", True),
        (1, True, "opposite", False),
    ]


@pytest.mark.parametrize("row, lambda_, name", [
    ("", 0, "1"),
    ("", 1, "2"),
    ("", 2, "3"),
    ("", 10, "4"),
    ("", 5, "lambda=5"),
    ("", None, "2"),
    ("7", None, "7"),
    (7, 1, "7"),
    ("7", 0, "7 (lambda 0)"),
    ("3", 4, "3 (lambda 4)"),
])
def test_choosing_a_row(row, lambda_, name):
    chosen = choose_row(row, lambda_)
    assert display_name({"row": chosen.name, "lambda_": chosen.lambda_}) == name
    assert lambda_ is None or chosen.lambda_ == lambda_


def test_mistakes_are_named():
    for call, message in (
        (lambda: choose_row("8"), "no row '8'.*1, 2, 3"),
        (lambda: choose_row("", -1), "0 or more"),
        (lambda: run_row("9", TINY, progress=False), "no row '9'"),
        (lambda: run_row("7", TINY, seed="x", progress=False), "seed='x'"),
        (lambda: run_row("7", TINY, lambda_="much", progress=False), "lambda='much'"),
        (lambda: run_row("7", "huge"), "no profile 'huge'"),
        (lambda: run_row("7", "demo", batch="many"), "batch='many'"),
    ):
        with pytest.raises(FormulaGanError, match=message): call()


def test_a_mistake_is_found_before_any_work(monkeypatch):
    for room in (stages, generators, recognizers, ablation_rows, recognition_rows, tables):
        monkeypatch.setattr(room, "image_sets", lambda *a, **k: pytest.fail("worked before it looked"))
    with pytest.raises(FormulaGanError, match="no row"): run_row("9", TINY, progress=False)


def test_missing_real_data_is_named(monkeypatch):
    monkeypatch.delenv("FORMULA_GAN_DATA", raising=False)
    with pytest.raises(FormulaGanError, match="FORMULA_GAN_DATA"): run_row("7", "laptop", progress=False)


def counted(monkeypatch):
    "What is built and what is loaded from now on, by stage."
    built, loaded = Counter(), Counter()
    def count(run, name, version, build, load=lambda folder: folder, inputs=(), **fields):
        def counted_build(folder):
            built[name] += 1
            return build(folder)
        def counted_load(folder):
            loaded[name] += 1
            return load(folder)
        return plain(run, name, version, counted_build, counted_load, inputs, **fields)
    plain = stages.stage
    for room in (stages, figures, generators, recognizers, recognition_rows): monkeypatch.setattr(room, "stage", count)
    return built, loaded


def test_a_row_and_its_controls(monkeypatch):
    built, loaded = counted(monkeypatch)
    results = {"7": run_row("7", TINY, progress=False)}
    # the row's and the reader
    assert built == {name: 1 for name in ("corpus", "images", "gan", "generator", "synthetic")} | {"recognizer": 2}
    assert max(loaded.values()) == 1 or loaded == Counter({k: 1 for k in loaded}) | {"recognizer": 2}
    results |= {row: run_row(row, TINY, progress=False) for row in CONTROLS}
    assert built["images"] == built["generator"] == 1 and built["recognizer"] == 5
    for row, result in results.items():
        best = result.rows[0]
        assert set(best) <= set(TABLE1_COLUMNS)
        assert best["row"] == row
        assert best["perplexity"] > 1
        assert best["synthetic_images"] == 24
        assert {"profile", "data", "seed", "device", "minutes", "revision", "date"} <= set(best)
        assert ("gan_iterations" in best) == ("skip" in best) == (row == "7")
        if row == "L":
            assert len(result.rows) == 1
            continue
        assert [r["checkpoint"] for r in result.rows] == ["best", "last"] and 0 <= best["content_exprate"] <= 100
        assert np.asarray(result.sheet).std() > 0 and len(result.readings) == 60
    best = results["7"].rows[0]
    assert (best["skip"], best["l1_anchor"], best["gan_iterations"], best["lambda_"]) == (True, 1.0, 2, 1.0)
    assert "recognizer_steps=3" not in best["overrides"]
    assert set(read_table(results["7"].table).row) == {"7", "P", "N", "S", "L"}
    for room in (generators, recognizers):
        monkeypatch.setattr(room, "train", lambda *a, **k: pytest.fail("trained what was finished"))
    again = run_row("7", TINY, progress=False)
    assert again.rows[0]["perplexity"] == results["7"].rows[0]["perplexity"]
    assert len(read_table(again.table)) == 9  # two checkpoints of four rows, and L: replaced, not repeated


def test_lengths_of_a_training_in_any_order(monkeypatch):
    "The demo keeps thirds of its length; here every third is one step."
    monkeypatch.setitem(generators.PROFILES, "demo", dataclasses.replace(generators.PROFILES["demo"], gan_iterations=3))
    run = make_run(TINY, seed=5, progress=False)
    assert generators.kept_iterations(run.profile) == [1, 2, 3]
    whole = generators.generator(run, ROWS["1"], 3)
    whole.product
    shorter = generators.generator(run, ROWS["1"], 1)
    monkeypatch.setattr(generators, "train", lambda *a, **k: pytest.fail("trained what was kept"))
    weights = load_generator(shorter.product)
    assert shorter.facts["steps"] == 2 and weights.facts["steps"] == 2 and shorter.folder != whole.folder
    assert not all(torch.equal(a, b) for a, b in zip(weights.parameters(), load_generator(whole.product).parameters()))


def test_a_longer_training_goes_on_from_a_shorter_one():
    run = make_run(TINY, progress=False)
    short, long = generators.generator(run, ROWS["1"], 2), generators.generator(run, ROWS["1"], 4)
    assert short.inputs[0].folder == long.inputs[0].folder and short.folder != long.folder
    first = short.product
    assert long.facts["steps"] == 5 and first.exists() and long.product.read_bytes() != first.read_bytes()
    with pytest.raises(FormulaGanError, match="gone past"): generators.generator(run, ROWS["1"], 3).product


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Profile) if f.name not in results.NO_DIFFERENCE])
def test_every_field_tells_two_lines_apart(tmp_path, field):
    "Two lines of a table that differ in one field of the profile only."
    value = getattr(TINY, field)
    if isinstance(value, bool): other = not value
    elif isinstance(value, float): other = value + 0.25
    elif isinstance(value, int): other = value + 1
    named = {"data": "crohme2014+wikipedia", "sizing": "height", "precision": "bf16", "network": "wide", "judge": "ink",
             "reader": "content", "recognizer_stride": 16, "discriminator_beta1": 0.25, "ema_decay": 0.5}
    if field in named: other = named[field]
    fields = {f.name: getattr(TINY, f.name) for f in dataclasses.fields(Profile) if f.name != "name"}
    lines = []
    for profile in (TINY, get_profile("demo", **fields | {field: other})):
        run = make_run(profile, progress=False)
        lines.append(results.departures(profile, TABLE1_COLUMNS)
                     | {"row": "7", "checkpoint": "best", "perplexity": 2.0}
                     | results.provenance(run, 1.0))
    for line in lines: results.write_row(tmp_path / "table1.csv", line)
    assert len(read_table(tmp_path / "table1.csv")) == 2
    results.write_row(tmp_path / "table1.csv", lines[1])
    assert len(read_table(tmp_path / "table1.csv")) == 2


def append(path, row): results.write_row(path, {"row": str(row), "checkpoint": "best", "perplexity": float(row)})


def test_lines_written_at_once_are_all_there(tmp_path):
    with ThreadPoolExecutor(4) as pool: list(pool.map(lambda row: append(tmp_path / "table1.csv", row), range(16)))
    assert sorted(map(int, read_table(tmp_path / "table1.csv").row)) == list(range(16))


def test_row_7_reads_no_ink():
    sets = made_sets()
    sources, targets = gan_streams(sets, ROWS["7"])
    assert {s.domain for s in sources} == {PRINTED} and len(targets) == 3
    assert {s.domain for s in gan_streams(sets, ROWS["2"])[0]} == {PRINTED, HANDWRITTEN}


def test_matched_targets_are_of_the_classes_asked_for():
    sets = made_sets()
    wanted = lambda row: sorted(1 - s.domain for s in gan_streams(sets, ROWS[row], matched=True)[0])
    real = lambda row: sorted(s.domain for s in gan_streams(sets, ROWS[row], matched=True)[1])
    assert wanted("2") == real("2") == [PRINTED, HANDWRITTEN, HANDWRITTEN]
    assert set(wanted("7")) == set(real("7")) == {HANDWRITTEN}
    # random classes: all sets
    assert sorted(s.domain for s in gan_streams(sets, ROWS["6"], matched=True)[1]) == [PRINTED, PRINTED, HANDWRITTEN]


def test_nothing_of_the_test_set_is_trained_on():
    sets = made_sets()
    held_out = set(sets["test_ink"].tokens) | set(sets["valid_ink"].tokens)
    for name in ("captions_print", "formulas_print", "synthetic_print", "train_ink"):
        assert not held_out & set(sets[name].tokens), name


def test_the_reader_has_not_seen_what_it_reads_back(monkeypatch):
    seen = []
    def recognizer(run, name, sources, choose, *rest, **identity): seen.extend(choose([s.product for s in sources]))
    monkeypatch.setattr(recognizers, "recognizer", recognizer)
    recognizers.reader(make_run(TINY, progress=False))
    wanted = set(content_formulas(made_sets()["synthetic_print"]))
    assert len(wanted) == 12 and not wanted & {t for s in seen for t in s.tokens}


def test_stopping_by_the_clock_and_going_on():
    sizes = {k: getattr(TINY, k) for k in ("synthetic_images", "printed_formulas", "workers")}
    profile = get_profile("demo", **sizes, gan_iterations=40, warmup_iterations=0)
    run = make_run(profile, max_minutes=0.001, progress=False)
    def stopped_at():
        with pytest.raises(Unfinished, match="run the same command again") as stop:
            generators.generator(run, ROWS["1"]).product
        return int(re.search(r"at step (\d+) of 40", str(stop.value))[1])

    assert 0 < stopped_at() < stopped_at() < 40


@pytest.mark.real_data
@pytest.mark.slow
def test_gain_lets_the_discriminator_tell_ink_from_print(monkeypatch, capsys):
    "At matched symbols of 12 px, discriminator alone, 400 steps: with the paper's settings it hardly learns."
    import torch
    from formula_gan.data import Stream
    from formula_gan.sagan import Discriminator, hinge_discriminator
    from formula_gan.tokenizer import Vocab
    profile = get_profile("laptop", height=64, symbol_height=12, discriminator_gain=32, discriminator_lr=4e-4,
                          synthetic_images=10, printed_formulas=2000)
    sets = made_sets(profile)
    vocab = Vocab.from_tokens([t.split() for name in ("train_ink", "captions_print") for t in sets[name].tokens])
    ink, prints = (Stream([sets[name]], vocab, profile, 8, 0, shuffle_seed=0)
                   for name in ("train_ink", "captions_print"))

    def share_right(gain, beta1):
        torch.manual_seed(0)
        model = Discriminator(profile.base_channels, gain=gain)
        right = []
        c = torch.ones(8, dtype=torch.int64)
        optimizer = torch.optim.Adam(model.parameters(), profile.discriminator_lr, (beta1, 0.999))
        for step in range(400):
            with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
                real, fake = (model(b.x, c, b.mask) for b in (ink[step], prints[step]))
            hinge_discriminator(real, fake).backward(), optimizer.step(), optimizer.zero_grad()
            right.append(((real > 0).float().mean() + (fake < 0).float().mean()).item() / 2)
        return np.mean(right[-80:])
    paper, ours = share_right(1, 0.0), share_right(profile.discriminator_gain, profile.discriminator_beta1)
    with capsys.disabled():
        print(f"\nimages told apart after 400 steps: {100 * paper:.0f} % as in the paper, "
              f"{100 * ours:.0f} % with a gain of 32")
    assert ours > 0.7 and ours > paper + 0.1


@pytest.mark.slow
def test_two_processes_make_one_generator(tmp_path):
    "Under torchrun both ask for a generator; the leader alone exports and renames, and both read the same file."
    script = tmp_path / "two.py"
    script.write_text("import torch; torch.set_num_threads(1)\n"
                      "from formula_gan.stages import make_run\n"
                      "from formula_gan.generators import generator\n"
                      "from formula_gan.ablation_rows import ROWS\n"
                      f"made = generator(make_run('demo', progress=False, **{OVERRIDES!r}), ROWS['1'])\n"
                      "print('made', made.product.name, made.facts['steps'], flush=True)\n")
    made_sets()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv-backend", "c10d",
               "--rdzv-endpoint", "localhost:0", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.count("made generator.safetensors 3") == 2, done.stdout + done.stderr[-3000:]


def test_a_plan_runs_what_the_table_lacks(monkeypatch, tmp_path):
    plan = [Planned("L"), Planned("7", 0, 1), Planned("7", 0, 2), Planned("L", 1)]
    monkeypatch.setattr("formula_gan.plan.table1_plan", lambda profile: plan)
    monkeypatch.setattr("formula_gan.plan.results_table", lambda profile, name="table1.csv": tmp_path / name)
    monkeypatch.setattr(ablation_rows, "results_table", lambda profile, name="table1.csv": tmp_path / name)
    profile = dataclasses.replace(TINY, generator_lr=3e-4)  # a training of its own
    run = make_run(profile, progress=False)
    results = run_plan(1, profile, progress=False)
    assert not is_done(Planned("L"), run, 1)
    assert next(results)[0] == Planned("L") and is_done(Planned("L"), run, 1) and not is_done(Planned("L", 1), run, 1)
    done = []
    for planned, result in results:
        trained = result.rows[0]["gan_iterations"] if planned.row == "7" else 0
        done.append((planned.row, planned.iterations, planned.seed, trained))
    assert done == [("7", 1, 0, 1), ("7", 2, 0, 2), ("L", 0, 1, 0)]
    assert list(run_plan(1, profile, progress=False)) == []
    assert not is_done(Planned("L"), run.of(synthetic_images=20), 1)
    with pytest.raises(Unfinished, match="row L.*call again"):
        list(run_plan(1, profile, max_minutes=0.0, progress=False, synthetic_images=22))


def test_the_plan_decides_the_controls_first():
    plan = table1_plan(get_profile("paper"))
    assert plan[:5] == [*map(Planned, "LPNS"), Planned("7", 0, 300_000)] and plan[-1] == Planned("2", 2, 300_000)
    assert {p.row for p in plan if not p.seed} == {*ROWS, *CONTROLS} and len(set(plan)) == len(plan)


def test_a_profile_names_the_same_stages_however_it_is_given():
    "By name, as the command line does, and as an object with a field set to what it is, as the notebooks do."
    for name in ("demo", "laptop"):
        known = make_run(name, progress=False)
        again = make_run(get_profile(name), progress=False, gan_iterations=known.profile.gan_iterations)
        assert stages.image_sets(known).folder == stages.image_sets(again).folder
        assert generators.generator(known, ROWS["7"]).folder == generators.generator(again, ROWS["7"]).folder
