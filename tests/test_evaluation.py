"""Scores against brute force, the language model's probabilities, and the paper's figures."""
import itertools
import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from formula_gan.core import FormulaGanError
from formula_gan.evaluation import compare, edit_distances, evaluate, exprate_interval, perplexity
from formula_gan.ngrams import NGramModel
from formula_gan.results import PAPER_TABLE1, PAPER_TABLE2, table1, table2


def distance(a, b):
    "Levenshtein, the textbook's table."
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row = row, [i]
        for j, y in enumerate(b, 1): row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (x != y)))
    return row[-1]


def random_texts(rng, n, empty=True):
    words = ["a", "b", "^", "{", "}", "\\limits", "\\sum"]
    texts = [" ".join(rng.choice(words, rng.integers(0 if empty else 1, 9))) for _ in range(n)]
    return [t if rng.random() > 0.1 or not empty else None for t in texts]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_scores_equal_brute_force(seed, strict):
    rng = np.random.default_rng(seed)
    truths = ["a " + t for t in random_texts(rng, 60, empty=False)]
    predictions = [t if rng.random() < 0.4 else p for t, p in zip(truths, random_texts(rng, 60))]
    wrong = 0
    words = 0
    right = Counter()
    for p, t in zip(predictions, truths):
        p, t = (p or "").split(), t.split()
        if not strict: p, t = [w for w in p if w != "\\limits"], [w for w in t if w != "\\limits"]
        wrong, words = wrong + distance(p, t), words + len(t)
        for most in (0, 1, 2): right[most] += bool(p) and distance(p, t) <= most
    scores = evaluate(predictions, truths, strict)
    assert scores.n == 60 and math.isclose(scores.wer, 100 * wrong / words)
    assert (scores.exprate, scores.exprate_1, scores.exprate_2) == tuple(100 * right[k] / 60 for k in (0, 1, 2))


def test_nothing_read_is_wrong_at_every_tolerance():
    scores = evaluate([None, "", " \n"], ["x", "y", "z"])
    assert (scores.wer, scores.exprate, scores.exprate_1, scores.exprate_2) == (100, 0, 0, 0)


def test_texts_are_taken_as_given():
    assert edit_distances(["{ x }  y\n"], ["x y"]) == [(2, 2, True)]  # braces count, white space does not
    assert edit_distances(["\\frac{1}{2}"], ["\\frac { 1 } { 2 }"])[0][0] > 0  # never tokenised again


def test_limits_count_only_when_strict():
    pair = ["\\sum \\limits _ { a }"], ["\\sum _ { a }"]
    assert evaluate(*pair).exprate == 100 and evaluate(*pair, strict=True).exprate == 0
    assert evaluate(*pair, strict=True).exprate_1 == 100


@pytest.mark.parametrize("predictions, truths, word", [
    (["a"], ["a", "b"], "1 predictions for 2"),
    ([], [], "no formulas"),
    ("a b", ["a"], "predictions must be a list"),
    (["a"], "a", "truths must be"),
    (["a"], [None], "truths"),
    (["a"], [" "], "empty"),
    ([["a"]], ["a"], "predictions"),
])
def test_bad_input_is_named_in_one_line(predictions, truths, word):
    with pytest.raises(FormulaGanError, match=word) as error: evaluate(predictions, truths)
    assert "\n" not in str(error.value)


def test_wilson_interval_solves_its_equation():
    for k, n in ((0, 5), (5, 5), (1, 3), (394, 986)):
        for bound in exprate_interval(k, n):
            p = bound / 100
            reach = 1.959963984540054 * math.sqrt(p * (1 - p) / n)
            assert p in (0, 1) and k in (0, n) or math.isclose(abs(k / n - p), reach, rel_tol=1e-6)
    for k, n in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(FormulaGanError): exprate_interval(k, n)


@pytest.mark.parametrize("seed", range(4))
def test_comparison_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    n = 40
    right = rng.random((2, n)) < [[0.4], [0.6]]
    truths = [f"x {k}" for k in range(n)]
    first, second = ([t if r else "no" for t, r in zip(truths, rs)] for rs in right)
    got = compare(first, second, truths, resamples=4000)
    only = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    assert (got.only_first, got.only_second) == only
    if sum(only) <= 12:
        as_rare = sum(sum(o) <= min(only) for o in itertools.product((0, 1), repeat=sum(only)))
        assert math.isclose(got.p, min(1, 2 * as_rare / 2 ** sum(only)))
    picks = rng.integers(0, n, (4000, n))
    plain = np.percentile(100 * (right[1][picks].mean(1) - right[0][picks].mean(1)), [2.5, 97.5])
    assert np.allclose([got.low, got.high], plain, atol=5.1) and got.low <= got.difference <= got.high
    same = compare(first, first, truths)
    assert (same.difference, same.p, same.low, same.high) == (0, 1, 0, 0)


def test_perplexity_equals_brute_force_both_ways():
    rng = np.random.default_rng(0)
    nll = [rng.exponential(2, rng.integers(1, 20)) for _ in range(50)]
    corpus, mean = perplexity(iter(nll))
    assert math.isclose(corpus, math.exp(sum(map(sum, nll)) / sum(map(len, nll))))
    assert math.isclose(mean, sum(math.exp(sum(i) / len(i)) for i in nll) / len(nll))
    assert perplexity([np.full(3, 1000.0)]) == (math.inf, math.inf)
    for bad in ([], [np.array([])]):
        with pytest.raises(FormulaGanError): perplexity(bad)


def corpus_of(rng, n=300):
    "Formulas of a small grammar, so that contexts repeat."
    letters = list("abcdxyz")
    out = []
    for _ in range(n):
        tokens = [str(rng.choice(letters))]
        while rng.random() < 0.7:
            tokens += [str(rng.choice(["+", "-", "="])), str(rng.choice(letters, p=[.4, .2, .1, .1, .1, .05, .05]))]
        out.append(tokens)
    return out


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("vocab", [None, ["a", "+", "unused", "<pad>", "<start>", "<end>"]])
def test_probabilities_add_up_to_one(order, vocab):
    rng = np.random.default_rng(order)
    formulas = corpus_of(rng)
    model = NGramModel(order, vocab).fit(formulas)
    histories = [[], ["a"], ["never"], ["unused", "a"], *(f[:rng.integers(0, len(f) + 1)] for f in formulas[:20])]
    for history in histories:
        chances = [model.probability(history, t) for t in [*model.vocab, None, "unknown"]]
        assert math.isclose(sum(chances), 1, rel_tol=1e-9) and min(chances) > 0
    assert not {"<pad>", "<start>", "<end>"} & set(model.vocab)


def test_kneser_ney_equals_a_direct_computation():
    "Bigram model, every quantity counted anew from the definition."
    formulas = corpus_of(np.random.default_rng(1), 400)
    lines = [["<s>", *f, "</s>"] for f in formulas]
    pairs = Counter(p for line in lines for p in zip(line, line[1:]))
    kinds = Counter(b for _, b in pairs)  # in how many contexts a token occurs

    def discounts(counts):
        n = [sum(c == k for c in counts) for k in range(5)]
        y = n[1] / (n[1] + 2 * n[2]) if n[1] else 0.5
        found = [0]
        for k in (1, 2, 3):
            d = k - (k + 1) * y * n[k + 1] / n[k] if n[k] and n[k + 1] else 0.5
            found.append(d if 0 < d <= k else 0.5)
        return found

    d2, d1 = discounts(list(pairs.values())), discounts(list(kinds.values()))
    size = len({t for f in formulas for t in f}) + 2

    def unigram(b):
        total = sum(kinds.values())
        left = sum(d1[min(c, 3)] for c in kinds.values()) / total
        return (max(kinds[b] - d1[min(kinds[b], 3)], 0) if b in kinds else 0) / total + left / size

    def bigram(a, b):
        seen = {y: c for (x, y), c in pairs.items() if x == a}
        if not seen: return unigram(b)
        total = sum(seen.values())
        c = seen.get(b, 0)
        return (c - d2[min(c, 3)]) / total + sum(d2[min(c, 3)] for c in seen.values()) / total * unigram(b)

    model = NGramModel(2).fit(formulas)
    for line in [*lines[:30], ["<s>", "never", "a", "</s>"]]:
        expected = [-math.log(bigram(a, b)) for a, b in zip(line, line[1:])]
        assert np.allclose(model.nll(line[1:-1]), expected)


def test_language_model_learns_and_generalises():
    rng = np.random.default_rng(2)
    train, test = corpus_of(rng, 600), corpus_of(rng, 100)
    values = [perplexity(map(NGramModel(order).fit(train).nll, test))[0] for order in (1, 2, 5)]
    assert values[1] < 0.7 * values[0] and values[2] < 1.15 * values[1]  # knows the grammar, does not learn by heart
    model = NGramModel(5).fit(train)
    assert len(model.nll(["a", "+", "b"])) == 4 and len(model.nll([])) == 1 and np.isfinite(model.nll(["§"] * 9)).all()
    assert math.isclose(model.nll(["a", "+"]).sum(), -sum(math.log(p) for p in (
        model.probability([], "a"), model.probability(["a"], "+"), model.probability(["a", "+"], None))))


def test_language_model_errors():
    for call in (
        lambda: NGramModel(0),
        lambda: NGramModel().fit([]),
        lambda: NGramModel().nll(["a"]),
        lambda: NGramModel().probability([], "a"),
    ):
        with pytest.raises(FormulaGanError): call()
    assert NGramModel(5).fit([["a"]]).probability([], "a") > 0.3  # a corpus of one


@pytest.mark.real_data
def test_image_blind_model_on_crohme():
    """Row L, from a part of the Wikipedia formulas: far better than chance, and close to what the whole corpus gives
    (about 10)."""
    from formula_gan.core import data_file
    from formula_gan.tokenizer import CROHME_SYMBOLS, TokenizeError, tokenize
    import lzma
    captions = pd.read_csv(data_file("crohme2014_captions.tsv"), sep="\t", quoting=3, dtype=str)
    test = [t.split() for t in captions[captions.split == "test"].latex]
    known = set(CROHME_SYMBOLS)
    held = {" ".join(t) for t in test}
    formulas = set()
    with lzma.open(data_file("wikipedia_formulas.txt.xz"), "rt", encoding="utf-8") as lines:
        for line in itertools.islice(lines, 0, None, 8):
            try: tokens = tokenize(line.strip())
            except TokenizeError: continue
            if 0 < len(tokens) <= 50 and known.issuperset(tokens) and " ".join(tokens) not in held:
                formulas.add(tuple(tokens))
    model = NGramModel(5, CROHME_SYMBOLS).fit(sorted(formulas))
    corpus, _ = perplexity(map(model.nll, test))
    assert 9 < corpus < 16, corpus


def test_the_papers_figures():
    assert list(PAPER_TABLE1) == list("1234567") and PAPER_TABLE1["7"][1:] == (15.62, 7.34, 9.16)
    assert PAPER_TABLE2["VIII"][3] == (18.7, 39.4) and PAPER_TABLE2["I"][2] == (73.9, 0.1)


def test_tables_show_ours_beside_the_papers():
    ours = pd.DataFrame([dict(row=7, perplexity=9.0, checkpoint="best"), dict(row=7, perplexity=9.5, checkpoint="last"),
                         dict(row="lambda=5", perplexity=20.0), dict(row="S", perplexity=8.0)])
    table = table1(ours)
    assert list(table.row) == ["1", "2", "3", "4", "5", "6", "7", "7", "S", "lambda=5"]
    assert list(table[table.row == "7"]["paper 300k"]) == [9.16, 9.16] and table.perplexity.notna().sum() == 4
    assert list(table1(pd.DataFrame()).row) == list("1234567")
    second = table2(pd.DataFrame([
        dict(row="VIII", train_norm="symbol", test_norm="symbol-oracle", exprate=41.0, recipe="x"),
        dict(row="P", train_norm="symbol", test_norm="symbol", exprate=35.0, recipe="x"),
    ]))
    line = second[second.exprate == 41.0]
    assert line["paper exprate"].item() == 39.4 and second[second.row == "P"].what.item() == "CROHME + print"
    assert len(table2(pd.DataFrame())) == 16


def test_no_torch_is_imported(root):
    code = "import sys, formula_gan.evaluation as e; e.evaluate(['a'], ['a']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


def test_realism_tells_print_from_ink():
    "Features depend neither on grey levels nor on the batch; sets of one kind are nearer than sets of two."
    import torch
    from formula_gan.core import get_profile
    from formula_gan.data import ImageSet
    from formula_gan.likeness import image_features, kernel_distance
    from formula_gan.task_model import Recognizer, RecognizerConfig
    from formula_gan.tokenizer import Vocab
    torch.manual_seed(0)
    profile = get_profile("demo")
    model = Recognizer(Vocab(["x"]), RecognizerConfig(layers=1, growth=4, stride=8))
    rng = np.random.default_rng(0)
    def lines(count, thick):
        images = []
        for _ in range(count):
            image = np.zeros(rng.integers(12, 30, 2), "uint8")
            for x in rng.integers(0, image.shape[1], 3): image[:, x:x + thick] = 255
            images.append(image)
        return ImageSet(images, ["x"] * count, 1)
    thin, thin2, thick = lines(60, 1), lines(60, 1), lines(60, 4)
    a, b, c = (image_features(model, s, profile) for s in (thin, thin2, thick))
    gray = ImageSet([np.uint8(image * 0.7) for image in thin], thin.tokens, 1)
    assert np.allclose(a, image_features(model, gray, profile))
    assert np.allclose(a[:5], image_features(model, thin.subset(range(5)), profile), atol=1e-5)
    assert kernel_distance(a, b).value < kernel_distance(a, c).low
    with pytest.raises(FormulaGanError, match="two images"): kernel_distance(a[:1], b)


# lines of files

def test_lines_are_paired_by_name_or_by_order():
    from formula_gan.evaluation import pair_lines
    assert pair_lines(["x", ""], ["y", "z"])[:3] == (["line 1", "line 2"], ["x", ""], ["y", "z"])
    pairs = pair_lines(["n2\tb c", "n1\ta", ""], ["n1\ta", "n2\tb", "n3\td"])
    assert pairs == (["n1", "n2", "n3"], ["a", "b c", ""], ["a", "b", "d"], ["n3"], [])
    assert pair_lines(["n\ta", "m\tb"], ["a", "b"])[:3] == (["n", "m"], ["a", "b"], ["a", "b"])
    with pytest.raises(FormulaGanError, match="2 predictions for 1"): pair_lines(["a", "b"], ["a"])
    with pytest.raises(FormulaGanError, match="n comes twice"): pair_lines(["n\ta", "n\tb"], ["n\ta", "m\tb"])


def test_wrong_formulas_come_worst_first():
    from formula_gan.evaluation import pair_lines, worst_first
    assert worst_first(pair_lines(["a", "x y", "", "b"], ["a", "x", "p q r", "c"])) == [
        (3, "line 3", "p q r", ""), (1, "line 2", "x", "x y"), (1, "line 4", "c", "b")]
