"""Classifier and diversity on features of known distributions; the realism table on demo ink with the shipped
networks."""
import numpy as np
import pytest

from formula_gan.core import FormulaGanError, cache_dir, get_profile
from formula_gan.realism import REALISM_COLUMNS, REALISM_KEY
from formula_gan.results import read_table, write_row
from formula_gan.stages import make_run
from formula_gan.evaluation import exprate_interval
from formula_gan.likeness import Estimate, diversity, domain_classifier_accuracy, label_folds


def drawn(seed, n, shift=0.0, channels=6):
    return np.random.default_rng(seed).normal(shift, 1, (n, channels))


NAMES = [f"formula {n // 2}" for n in range(400)]


def test_halves_of_one_distribution_cannot_be_told_apart():
    results = [domain_classifier_accuracy(drawn(2 * s, 400), drawn(2 * s + 1, 400), NAMES, NAMES, seed=s)
               for s in range(20)]
    assert all(r.low <= r.value <= r.high and r.high - r.low < 12 for r in results)
    assert sum(r.low < 50 < r.high for r in results) >= 15 and abs(np.mean([r.value for r in results]) - 50) < 1.5


def test_different_distributions_are_told_apart():
    apart = domain_classifier_accuracy(drawn(0, 400), drawn(1, 400, 8.0), NAMES, NAMES)
    assert apart.value == 100 and 99 < apart.low < 100 and np.isclose(apart.high, 100)
    steps = [domain_classifier_accuracy(drawn(0, 400), drawn(1, 400, shift), NAMES, NAMES).value
             for shift in (0, 0.2, 0.5, 1)]
    assert steps == sorted(steps) and abs(steps[-1] - 88.97) < 3  # the best possible: Phi(sqrt(6) / 2)


def test_classifier_is_seeded_and_blind_to_scale():
    one, other = drawn(0, 400), drawn(1, 400, 0.3)
    first = domain_classifier_accuracy(one, other, NAMES, NAMES, seed=3)
    assert first == domain_classifier_accuracy(one, other, NAMES, NAMES, seed=3)
    assert len({domain_classifier_accuracy(one, other, NAMES, NAMES, seed=s) for s in range(6)}) > 1
    scale = 10.0 ** np.arange(-2, 4)
    scaled = domain_classifier_accuracy(one * scale + 5, other * scale + 5, NAMES, NAMES, seed=3)
    assert abs(first.value - scaled.value) < 0.5


def test_sides_of_unequal_size():
    labels = [f"{n}" for n in range(400)]
    assert abs(domain_classifier_accuracy(drawn(0, 400), drawn(1, 40), labels, labels[:40]).value - 50) < 12
    assert domain_classifier_accuracy(drawn(0, 400), drawn(1, 40, 1.0), labels, labels[:40]).low > 75


def test_no_label_is_on_both_sides():
    labels = [f"formula {n}" for n in np.random.default_rng(0).geometric(0.05, 500)]
    folds = label_folds(labels, 5, seed=1)
    for name in set(labels): assert len({f for f, label in zip(folds, labels) if label == name}) == 1
    assert set(folds) == set(range(5)) and np.bincount(folds).max() < 200
    assert (folds == label_folds(labels, 5, seed=1)).all() and (folds != label_folds(labels, 5, seed=2)).any()


def test_formulas_known_by_heart_do_not_help():
    """Each formula looks like itself on its own side, and there is no other difference: with a formula on both sides of
    a split it would be told apart."""
    labels = [f"{side} {n // 20}" for side in ("a", "b") for n in range(400)]
    looks = {name: look for name, look in zip(sorted(set(labels)), drawn(0, 40, channels=40))}
    features = np.array([looks[name] for name in labels]) + 0.01 * drawn(1, 800, channels=40)
    honest = domain_classifier_accuracy(features[:400], features[400:], labels[:400], labels[400:])
    by_heart = domain_classifier_accuracy(features[:400], features[400:], *[[f"{n}" for n in range(400)]] * 2)
    # 40 formulas are worth less than 800 images
    assert by_heart.value > 95 and honest.low < 50 < honest.high and honest.high - honest.low > 15


def test_interval_covers():
    """Of repetitions with three equal images a formula, nearly all intervals hold the accuracy that the same classifier
    has on average."""
    ones = [f"a{n // 3}" for n in range(180)]
    others = [f"b{n // 3}" for n in range(180)]
    results = []
    for s in range(60):
        one, other = (np.repeat(drawn((s, side), 60, 0.4 * side, 3), 3, 0) for side in (0, 1))
        results.append(domain_classifier_accuracy(one, other, ones, others, seed=s))
    truth = np.mean([r.value for r in results])
    assert np.mean([r.low <= truth <= r.high for r in results]) > 0.85
    narrow = [exprate_interval(round(3.6 * r.value), 360) for r in results]
    assert np.mean([low <= truth <= high for low, high in narrow]) < 0.8  # as if each image told something of its own


def test_diversity_against_brute_force():
    features = drawn(0, 12)
    reference = drawn(1, 9)
    names = list("aaabbbcccdee")
    hands = list("aabbbccxx")
    def mean(x, labels, name):
        rows = [r for r, label in zip(x, labels) if label == name]
        return np.mean([np.sqrt(((p - q) ** 2).sum()) for n, p in enumerate(rows) for q in rows[n + 1:]])
    expected = 100 * sum(mean(features, names, k) for k in "abc") / sum(mean(reference, hands, k) for k in "abc")
    found = diversity(features, names, reference, hands)
    assert np.isclose(found.value, expected) and found.low <= found.value <= found.high
    assert found == diversity(features, names, reference, hands)


def test_diversity_grows_with_difference():
    names = [f"{n // 4}" for n in range(120)]
    base, noise = np.repeat(drawn(0, 30), 4, 0), drawn(1, 120)
    values = [diversity(base + size * noise, names, base + drawn(2, 120), names) for size in (0, 0.2, 0.5, 1)]
    assert values[0] == Estimate(0, 0, 0)
    assert all(a.high < b.low for a, b in zip(values, values[1:]))
    assert values[3].low < 100 < values[3].high


@pytest.mark.parametrize("call", [
    lambda: domain_classifier_accuracy(drawn(0, 1), drawn(1, 9), NAMES[:1], NAMES[:9]),
    lambda: domain_classifier_accuracy(drawn(0, 9), drawn(1, 9), NAMES[:9], NAMES[:8]),
    lambda: domain_classifier_accuracy(drawn(0, 9), drawn(1, 9, channels=5), NAMES[:9], NAMES[:9]),
    lambda: domain_classifier_accuracy(drawn(0, 9), drawn(1, 9), ["a"] * 9, ["a"] * 9),
    lambda: label_folds(["a", "b"], 3),
    lambda: label_folds(["a", "b"], 1),
    lambda: diversity(drawn(0, 2), ["a", "b"], drawn(1, 2), ["a", "a"]),
    lambda: diversity(drawn(0, 2), ["a", "a"], np.zeros((2, 6)), ["a", "a"]),
])
def test_mistakes_are_named(call):
    with pytest.raises(FormulaGanError): call()


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The table on demo ink, some formulas of which a second writer wrote too, drawn at the size that the shipped
    networks know."""
    from formula_gan import realism, stages
    from formula_gan.demo_hands import demo_inks
    patch = pytest.MonkeyPatch()
    patch.setenv("FORMULA_GAN_CACHE", str(tmp_path_factory.mktemp("cache")))
    profile = get_profile("demo", height=64, symbol_height=12, synthetic_images=4, printed_formulas=4, workers=1)
    corpus = stages.load_corpus(profile, progress=False)
    corpus.ink = {name: inks[:40 if name == "train" else 12] for name, inks in corpus.ink.items()}
    corpus.ink["train"] += demo_inks([i.latex for i in corpus.ink["train"][:24]], seed=99)
    patch.setattr(stages, "load_corpus", lambda *a, **k: corpus)
    patch.setattr(realism, "DIVERSITY_FORMULAS", 8)
    parts = []
    part = realism.part_writers
    patch.setattr(realism, "part_writers", lambda *a, **k: parts.append(part(*a, **k)) or parts[-1])
    yield realism, profile, realism.realism_table(profile, progress=False), parts[0], corpus
    patch.undo()


def test_table_has_a_row_for_each_set(table):
    realism, profile, result, _, _ = table
    assert [r["row"] for r in result.rows] == ["print", "stitched", "GAN", "real"]
    assert all(set(r) <= set(REALISM_COLUMNS) for r in result.rows)
    for r in result.rows:
        for name in ("kid", "classifier", "diversity"):
            assert r[f"{name}_low"] <= r[name] + 0.01 and r[name] <= r[f"{name}_high"] + 0.01, (r["row"], name)
        assert r["content_low"] <= r["content_exprate"] <= r["content_high"] and r["diversity_n"] >= 5 and r["n"] >= 5
    figures = {r["row"]: r for r in result.rows}
    assert figures["real"]["diversity"] == 100 and min(r["diversity"] for r in result.rows) > 0
    assert figures["GAN"]["generator"].startswith("default ")
    assert figures["print"]["generator"] == ""
    assert np.asarray(result.sheet).std() > 0
    assert result.table.parent == cache_dir() and list(read_table(result.table, REALISM_COLUMNS).row) == list(figures)


def test_no_writer_is_on_both_sides_and_no_test_ink_is_used(table):
    from formula_gan.ink import writer_key
    _, _, _, ink, corpus = table
    writer = {i.id: writer_key(i) for i in corpus.ink["train"]}
    sides = [{writer[e["id"]] for e in images.extra} for images in (ink.reference, ink.both[1])]
    assert all(sides) and not sides[0] & sides[1] and set(ink.bank.writers) <= set(writer.values()) - sides[0]
    assert {writer[e["id"]] for e in ink.both[0].extra} <= sides[0] and ink.both[0].tokens == ink.both[1].tokens
    for images in (ink.reference, *ink.both): assert len(set(images.tokens)) == len(images)
    assert {e["id"] for e in ink.valid.extra} == {i.id for i in corpus.ink["valid"]}
    hands = [(t, writer[e["id"]]) for t, e in zip(ink.several.tokens, ink.several.extra)]
    assert len(set(hands)) == len(hands)
    assert min(sum(t == u for u in ink.several.tokens) for t in ink.several.tokens) > 1


def test_sets_are_of_the_same_formulas(table):
    realism, profile, _, ink, _ = table
    from formula_gan.sagan import load_generator
    run = make_run(profile, progress=False)
    (reference, first), look, content, draws = realism.realism_sets(ink, load_generator("default"), run)
    for name in ("print", "stitched", "GAN"):
        assert look[name].tokens == look["print"].tokens and set(look[name].tokens) == set(reference.tokens)
        assert set(content[name].tokens) == set(content["real"].tokens) <= set(ink.valid.tokens)
    assert first.tokens == look["real"].tokens
    prints = draws["GAN"].tokens
    written = draws["GAN"]
    assert prints[0] == prints[1] == prints[2] and not np.array_equal(written[0], written[1])  # another z


def test_a_table_is_replaced_not_repeated_and_the_same_again(table):
    realism, profile, result, _, _ = table
    again = realism.realism_table(profile, progress=False)
    measured = lambda rows: [{k: v for k, v in r.items() if k not in ("minutes", "date", "revision")} for r in rows]
    assert measured(again.rows) == measured(result.rows) and len(read_table(again.table, REALISM_COLUMNS)) == 4


def test_a_network_sees_images_at_its_own_size(table, monkeypatch):
    "The shipped `ink` knows symbols of 15 px; `content` those of 12, the generator writes them 24 px high."
    realism, profile, result, _, _ = table
    heights = []
    read = realism.read_images

    def recorded(model, images, *rest):
        heights.append(images.shapes[:, 0].copy())
        return read(model, images, *rest)
    monkeypatch.setattr(realism, "read_images", recorded)
    rows = realism.realism_table(profile, network="ink", progress=False).rows
    realism.realism_table(profile, progress=False)
    factors = [own.sum() / twelve.sum() for own, twelve in zip(heights[:4], heights[4:])]
    assert np.allclose(factors, 15 / 12, atol=0.04) and rows[0]["network"].startswith("ink ")


def test_networks_that_are_not_there_are_named(table):
    realism, _, _, _, _ = table
    with pytest.raises(FormulaGanError, match="no generator"):
        realism.realism_table("demo", generator="none", progress=False)


def test_report_reads_the_table(root, tmp_path, capsys, monkeypatch):
    "The report's cells on a table, and without one."
    import nbformat
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = [c.source for c in nbformat.read(root / "nbs" / "12_report.ipynb", 4).cells if c.cell_type == "code"]
    setup = cells[1]
    ours = [source for source in cells if "realism" in source and "import" not in source]

    def run(folder):
        space = {"artifacts": str(folder)}
        shown = []
        exec(setup, space)
        space["display"] = shown.append
        for source in ours: exec(source, space)
        return shown, capsys.readouterr().out, space["plt"]
    shown, said, _ = run(tmp_path)
    assert not shown and "realism.csv holds no row yet" in said
    common = dict(content_low=1, content_high=99, content_exprate=30, content_n=9, classifier_low=60,
                  classifier_high=95, classifier=90, n=9, diversity_n=9, network="x", profile="laptop", seed=0)
    for row, kid, diverse in (("print", 0.02, 50), ("stitched", 0.001, 90), ("GAN", 0.004, 3), ("real", 0, 100)):
        own = dict(row=row, kid=kid, kid_low=kid - 0.001, kid_high=kid + 0.001, diversity=diverse)
        write_row(tmp_path / "realism.csv", common | own, REALISM_COLUMNS, REALISM_KEY)
    shown, said, plt = run(tmp_path)
    assert len(shown) == 1
    assert "0.0040" in shown[0].to_html()
    assert "stitched is nearest to real ink in KID, GAN next (their intervals do not meet)" in said
    assert "by 3 %" in said
    assert plt.gca().get_title().startswith("3 of 3 sets pass")
