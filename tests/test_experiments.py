import os
import subprocess
import sys

import numpy as np
import pytest

from formula_gan import experiments
from formula_gan.core import TABLE1_COLUMNS, FormulaGanError, get_profile, read_table
from formula_gan.data import HANDWRITTEN, PRINTED
from formula_gan.experiments import CONTROLS, ROWS, Unfinished, choose_row, content_formulas, gan_streams, make_images, run_row

OVERRIDES = dict(synthetic_images=24, printed_formulas=24, gan_iterations=2, warmup_iterations=1, recognizer_steps=3, reader_steps=3, workers=1)
TINY = get_profile("demo", **OVERRIDES)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("FORMULA_GAN_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


def test_rows_are_the_papers():
    assert [(r.lambda_, r.attention, r.target, r.handwritten_source) for r in ROWS.values()] == [
        (0, True, "opposite", True), (1, True, "opposite", True), (2, True, "opposite", True), (10, True, "opposite", True),
        (1, False, "opposite", True), (1, True, "random", True), (1, True, "opposite", False)]


@pytest.mark.parametrize("row, lambda_, name", [("", 0, "1"), ("", 1, "2"), ("", 2, "3"), ("", 10, "4"), ("", 5, "lambda=5"), ("", None, "2"), ("7", None, "7"),
                                                (7, 1, "7"), ("7", 0, "7 lambda=0"), ("3", 4, "3 lambda=4")])
def test_choosing_a_row(row, lambda_, name):
    chosen = choose_row(row, lambda_)
    assert chosen.name == name and (lambda_ is None or chosen.lambda_ == lambda_)


def test_mistakes_are_named():
    for call, message in ((lambda: choose_row("8"), "no row '8'.*1, 2, 3"), (lambda: choose_row("", -1), "0 or more"), (lambda: run_row("9", TINY, progress=False), "no row '9'"),
                          (lambda: run_row("7", TINY, seed="x", progress=False), "seed='x'"), (lambda: run_row("7", TINY, lambda_="much", progress=False), "lambda='much'"),
                          (lambda: run_row("7", "huge"), "no profile 'huge'"), (lambda: run_row("7", "demo", batch="many"), "batch='many'")):
        with pytest.raises(FormulaGanError, match=message): call()


def test_a_mistake_is_found_before_any_work(monkeypatch):
    monkeypatch.setattr(experiments, "make_images", lambda *a, **k: pytest.fail("worked before it looked"))
    with pytest.raises(FormulaGanError, match="no row"): run_row("9", TINY, progress=False)


def test_missing_real_data_is_named(monkeypatch):
    monkeypatch.delenv("FORMULA_GAN_DATA", raising=False)
    with pytest.raises(FormulaGanError, match="FORMULA_GAN_DATA"): run_row("7", "laptop", progress=False)


def test_a_row_and_its_controls(monkeypatch):
    results = {row: run_row(row, TINY, progress=False) for row in ("7", *CONTROLS)}
    for row, result in results.items():
        best = result.rows[0]
        assert set(best) <= set(TABLE1_COLUMNS) and best["perplexity"] > 1 and best["synthetic_images"] == 24
        assert {"profile", "data", "seed", "device", "minutes", "revision", "date"} <= set(best)
        if row == "L": assert len(result.rows) == 1; continue
        assert [r["checkpoint"] for r in result.rows] == ["best", "last"] and 0 <= best["content_exprate"] <= 100
        assert np.asarray(result.sheet).std() > 0 and len(result.readings) == 60
    assert results["7"].rows[0]["row"] == "7 skip" and results["7"].rows[0]["l1_anchor"] == 1.0 and results["7"].rows[0]["gan_iterations"] == 2
    assert set(read_table(results["7"].table).row) == {"7 skip", "P", "S", "L"}
    monkeypatch.setattr(experiments, "Trainer", lambda *a, **k: pytest.fail("trained what was finished"))
    again = run_row("7", TINY, progress=False)
    assert again.rows[0]["perplexity"] == results["7"].rows[0]["perplexity"]
    assert len(read_table(again.table)) == 7  # two checkpoints of three rows, and L: replaced, not repeated


def test_row_7_reads_no_ink():
    sets, _, _ = make_images(TINY, progress=False)
    sources, targets = gan_streams(sets, ROWS["7"])
    assert {s.domain for s in sources} == {PRINTED} and len(targets) == 3
    assert {s.domain for s in gan_streams(sets, ROWS["2"])[0]} == {PRINTED, HANDWRITTEN}


def test_matched_targets_are_of_the_classes_asked_for():
    sets, _, _ = make_images(TINY, progress=False)
    wanted = lambda row: sorted(1 - s.domain for s in gan_streams(sets, ROWS[row], matched=True)[0])
    real = lambda row: sorted(s.domain for s in gan_streams(sets, ROWS[row], matched=True)[1])
    assert wanted("2") == real("2") == [PRINTED, HANDWRITTEN, HANDWRITTEN]
    assert set(wanted("7")) == set(real("7")) == {HANDWRITTEN}
    assert sorted(s.domain for s in gan_streams(sets, ROWS["6"], matched=True)[1]) == [PRINTED, PRINTED, HANDWRITTEN]  # random classes: all sets


def test_nothing_of_the_test_set_is_trained_on():
    sets, _, _ = make_images(TINY, progress=False)
    held_out = set(sets["test_ink"].tokens) | set(sets["valid_ink"].tokens)
    for name in ("captions_print", "formulas_print", "synthetic_print", "train_ink"): assert not held_out & set(sets[name].tokens), name


def test_the_reader_has_not_seen_what_it_reads_back(monkeypatch):
    seen = []
    class Stop(Exception): pass
    def catch(name, sets, *rest): seen.extend(sets); raise Stop
    monkeypatch.setattr(experiments, "make_recognizer", catch)
    with pytest.raises(Stop): experiments.make_reader(TINY, progress=False)
    sets, _, _ = make_images(TINY, progress=False)
    wanted = set(content_formulas(sets["synthetic_print"]))
    assert len(wanted) == 12 and not wanted & {t for s in seen for t in s.tokens}


def test_stopping_by_the_clock_and_going_on():
    profile = get_profile("demo", **{**{k: getattr(TINY, k) for k in ("synthetic_images", "printed_formulas", "workers")}, "gan_iterations": 40, "warmup_iterations": 0})
    row = experiments.make_gan
    with pytest.raises(Unfinished, match="run the same command again"): row(ROWS["1"], profile, max_minutes=0.001, progress=False)
    with pytest.raises(Unfinished) as second: row(ROWS["1"], profile, max_minutes=0.001, progress=False)
    assert "step 2 of 40" in str(second.value)


@pytest.mark.real_data
@pytest.mark.slow
def test_gain_lets_the_discriminator_tell_ink_from_print(monkeypatch, capsys):
    "At the laptop profile's matched sizes, discriminator alone, 400 steps: with the paper's settings it hardly learns."
    import torch
    from formula_gan.data import Stream
    from formula_gan.sagan import Discriminator, hinge_discriminator
    from formula_gan.tokenizer import Vocab
    profile = get_profile("laptop", synthetic_images=10, printed_formulas=2000)
    sets, _, _ = make_images(profile, progress=False)
    vocab = Vocab.from_tokens([t.split() for name in ("train_ink", "captions_print") for t in sets[name].tokens])
    ink, prints = (Stream([sets[name]], vocab, profile, 8, 0, shuffle_seed=0) for name in ("train_ink", "captions_print"))

    def share_right(gain, beta1):
        torch.manual_seed(0)
        model, right, c = Discriminator(profile.base_channels, gain=gain), [], torch.ones(8, dtype=torch.int64)
        optimizer = torch.optim.Adam(model.parameters(), profile.discriminator_lr, (beta1, 0.999))
        for step in range(400):
            with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
                real, fake = (model(b.x, c, b.mask) for b in (ink[step], prints[step]))
            hinge_discriminator(real, fake).backward(), optimizer.step(), optimizer.zero_grad()
            right.append(((real > 0).float().mean() + (fake < 0).float().mean()).item() / 2)
        return np.mean(right[-80:])
    paper, ours = share_right(1, 0.0), share_right(profile.discriminator_gain, profile.discriminator_beta1)
    with capsys.disabled(): print(f"\nimages told apart after 400 steps: {100 * paper:.0f} % as in the paper, {100 * ours:.0f} % with the profile's gain")
    assert ours > 0.7 and ours > paper + 0.1


@pytest.mark.slow
def test_two_processes_make_one_generator(tmp_path):
    "Under torchrun both call `make_gan`; the leader alone exports and renames, and both read the same file."
    script = tmp_path / "two.py"
    script.write_text("import torch; torch.set_num_threads(1)\n"
                      "from formula_gan.core import get_profile\n"
                      "from formula_gan.experiments import ROWS, make_gan\n"
                      f"profile = get_profile('demo', **{OVERRIDES!r})\n"
                      "weights, facts = make_gan(ROWS['1'], profile, progress=False)\n"
                      "print('made', weights.name, facts['steps'], flush=True)\n")
    make_images(TINY, progress=False)
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv-backend", "c10d",
                           "--rdzv-endpoint", "localhost:0", str(script)], capture_output=True, text=True, timeout=240,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 and done.stdout.count("made generator-2.safetensors 3") == 2, done.stdout + done.stderr[-3000:]
