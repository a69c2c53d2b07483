"""Formulas and ink from files: the split, the limits, and what is said of files that are missing or damaged."""
import numpy as np
import pytest

from formula_gan.core import FormulaGanError, get_profile
from formula_gan.corpora import clean_formulas, load_corpus, read_captions, read_im2latex, split_by_writer
from formula_gan.ink import InkError, writer_key
from formula_gan.stitching import SymbolBank
from formula_gan.tokenizer import Vocab, normalize

demo = get_profile("demo", workers=1, synthetic_images=30, printed_formulas=30)


def test_split_holds_out_writers_and_formulas():
    rng = np.random.default_rng(0)
    writers = [str(w) if w else "" for w in rng.integers(0, 40, 900)]
    sources = list(rng.choice(["A", "B"], 900))
    formulas = [str(f) for f in rng.integers(0, 300, 900)]
    train, valid = split_by_writer(writers, sources, formulas)
    assert valid and not {formulas[i] for i in train} & {formulas[i] for i in valid}
    assert not {(sources[i], writers[i]) for i in train} & {(sources[i], writers[i]) for i in valid}
    assert all(writers[i] for i in valid)  # unknown writers stay in training


def test_limits_are_counted():
    vocab = Vocab.from_tokens([["a", "b"]])
    kept, synthetic, counts = clean_formulas(["a", "b b b", "a b", "a c", "b"], {"b"}, vocab, max_tokens=2)
    assert sorted(kept) == ["a", "a b", "a c"] and sorted(synthetic) == ["a", "a b"]
    assert counts == {
        "distinct": 5,
        "longer than the token limit": 1,
        "in validation or test": 1,
        "outside the vocabulary": 1,
        "synthetic": 2,
    }


def test_demo_corpus_is_disjoint():
    corpus = load_corpus(demo)
    check_disjoint(corpus, lambda ink: ink.writer)
    assert all(normalize(f) == f for f in corpus.formulas)
    assert all(t in corpus.vocab for part in corpus.ink.values() for ink in part for t in ink.latex.split())


def check_disjoint(corpus, writer):
    held_out = {i.latex for name in ("valid", "test") for i in corpus.ink[name]}
    train = {i.latex for i in corpus.ink["train"]}
    assert not {i.latex for i in corpus.ink["valid"]} & train
    assert not {writer(i) for i in corpus.ink["valid"]} & {writer(i) for i in corpus.ink["train"]}
    assert not held_out & set(corpus.formulas) and set(corpus.synthetic) <= set(corpus.formulas)
    bank = SymbolBank.from_inks(corpus.ink["train"])
    assert not {writer(i) for i in corpus.ink["valid"]} & set(bank.writers)


def test_missing_and_damaged_files_are_named(tmp_path, monkeypatch):
    monkeypatch.delenv("FORMULA_GAN_DATA", raising=False)
    real = get_profile("laptop")
    with pytest.raises(FormulaGanError, match="FORMULA_GAN_DATA"): load_corpus(real, progress=False)
    with pytest.raises(FormulaGanError, match="crohme2014_captions.tsv"):
        load_corpus(real, str(tmp_path), progress=False)
    (tmp_path / "crohme2014_captions.tsv").write_text("split\tid\tlatex\ntest\tx\tx\n")
    with pytest.raises(FormulaGanError, match="crohme2014.zip"): load_corpus(real, str(tmp_path), progress=False)
    (tmp_path / "crohme2014.zip").write_bytes(b"PK\3\4 half a download")
    with pytest.raises(InkError, match="crohme2014.zip"): load_corpus(real, str(tmp_path), progress=False)


@pytest.mark.real_data
def test_real_corpus_is_disjoint_and_complete(tmp_path, monkeypatch):
    monkeypatch.setenv("FORMULA_GAN_CACHE", str(tmp_path))
    corpus = load_corpus(get_profile("laptop"), progress=False)
    check_disjoint(corpus, writer_key)
    assert len(corpus.ink["test"]) == 986
    assert 250 < len(corpus.ink["valid"]) < 400
    assert 8000 < len(corpus.ink["train"]) < 8400
    assert corpus.counts["synthetic"] > 90_000
    assert len(read_captions()) == 9821


def test_im2latex_is_read_from_its_table(tmp_path):
    import gzip
    path = tmp_path / "im2latex_formulas.tsv.gz"
    table = "split\tformula_idx\timage\tlatex_norm\ntrain\t0\ta.png\t\\alpha \" x\ntest\t1\tb.png\ty\n"
    path.write_bytes(gzip.compress(table.encode()))
    assert read_im2latex(str(tmp_path)) == ['\\alpha " x', "y"]
    for broken, message in (
        (b"no gzip", "damaged"),
        (path.read_bytes()[:-12], "damaged"),
        (gzip.compress(b"a\tb\n1\t2\n"), "column latex_norm"),
    ):
        path.write_bytes(broken)
        with pytest.raises(FormulaGanError, match=message): read_im2latex(str(tmp_path))
