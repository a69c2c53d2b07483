import numpy as np
import pytest

from formula_gan.core import (FormulaGanError, PROFILES, atomic_path, cache_dir, data_file, derive_seed, get_profile,
                              load_weights, mixed_precision, save_weights, tile)
from formula_gan.results import read_table, write_row


@pytest.mark.parametrize("override, message", [
    ({"batch": "many"}, "batch='many' is not a valid int"),
    ({"batch": 2.5}, "batch=2.5"),
    ({"batch": 0}, "positive"),
    ({"lambda_": -1}, "0 or more"),
    ({"z_reward": -1}, "0 or more"),
    ({"discriminator_beta1": 1}, "below 1"),
    ({"precision": "fp8"}, "bf16, fp32"),
    ({"colour": 1}, "no field 'colour'"),
    ({"sizing": "width"}, "height, symbol, symbol-oracle"),
    ({"lambda_": "nan"}, "float"),
    ({"name": "x"}, "no field 'name'"),
])
def test_bad_overrides_are_named(override, message):
    with pytest.raises(FormulaGanError, match=message): get_profile("demo", **override)


def test_unknown_profile_lists_the_known():
    with pytest.raises(FormulaGanError, match="demo, laptop, gpu, paper"): get_profile("huge")


def test_paper_profile_has_the_papers_settings():
    paper = PROFILES["paper"]
    assert (paper.height, paper.max_width, paper.max_tokens) == (128, 512, 50)
    assert (paper.batch, paper.gan_iterations) == (4, 300_000)
    assert (paper.generator_lr, paper.discriminator_lr) == (5e-5, 2e-4)
    assert (paper.recognizer_lr, paper.recognizer_batch) == (1e-4, 16)
    assert paper.l1_anchor == paper.warmup_iterations == 0


def test_text_overrides_are_cast():
    profile = get_profile("laptop", gan_iterations="1e3", lambda_="2", symbol_height=10)
    assert profile.gan_iterations == 1000 and profile.lambda_ == 2.0 and isinstance(profile.symbol_height, float)


def test_atomic_path_leaves_the_old_file_on_failure(tmp_path):
    target = tmp_path / "a" / "x.txt"
    with atomic_path(target) as path: path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(target) as path:
        path.write_text("new")
        1 / 0
    assert target.read_text() == "old" and len(list(target.parent.iterdir())) == 1


def test_the_cache_outside_a_checkout_is_the_users(tmp_path, monkeypatch):
    from platformdirs import user_cache_path
    monkeypatch.delenv("FORMULA_GAN_CACHE")
    monkeypatch.chdir(tmp_path)
    assert cache_dir() == user_cache_path("formula_gan", appauthor=False) and cache_dir().name == "formula_gan"


def test_rows_replace_their_like_only(tmp_path):
    table = tmp_path / "table1.csv"
    for row, seed, value in (("7", 0, 1.0), ("7", 1, 2.0), ("P", 0, 3.0), ("7", 0, 4.0)):
        write_row(table, dict(row=row, seed=seed, perplexity=value))
    frame = read_table(table)
    assert sorted(zip(frame.row, frame.seed, frame.perplexity)) == [("7", 0, 4.0), ("7", 1, 2.0), ("P", 0, 3.0)]
    with pytest.raises(FormulaGanError, match="colour"): write_row(table, dict(row="7", colour=1))


def test_missing_data_says_what_and_whence(tmp_path, monkeypatch):
    monkeypatch.delenv("FORMULA_GAN_DATA", raising=False)
    with pytest.raises(FormulaGanError, match="FORMULA_GAN_DATA.*mathoid-texvcjs"):
        data_file("wikipedia_formulas.txt.xz")
    with pytest.raises(FormulaGanError, match="TC11"): data_file("crohme2014.zip", tmp_path)
    (tmp_path / "CROHME2014").mkdir()
    assert data_file("crohme2014.zip", tmp_path) == tmp_path / "CROHME2014"


def test_seeds_differ_by_every_part():
    assert len({derive_seed(*parts) for parts in ((0, "a"), (0, "b"), (1, "a"), ("0", "a"), (0, "a", 0))}) == 5


def test_tile_shows_every_image():
    sheet = np.asarray(tile([np.ones((4, 4))] * 5, columns=2, scale=1, gap=2))
    assert (sheet == 0).sum() == 5 * 16


def test_bfloat16_only_where_the_device_computes_in_it(monkeypatch):
    import torch
    def dtype(precision):
        with mixed_precision(get_profile("laptop", precision=precision), "cpu"):
            return torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert dtype("bf16") == torch.bfloat16 and dtype("fp32") == torch.float32
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert dtype("bf16") == torch.float32


@pytest.mark.parametrize("native", [True, False])
def test_no_emulated_bfloat16_on_a_gpu(monkeypatch, native):
    import torch
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    monkeypatch.setattr(torch, "autocast", lambda kind, dtype, enabled: (kind, enabled))
    assert mixed_precision(get_profile("gpu"), "cuda:1") == ("cuda", native)


def test_weights_of_another_kind_are_refused(tmp_path):
    import torch
    path = tmp_path / "line.safetensors"
    save_weights(path, "line", torch.nn.Linear(2, 3), facts={})
    with pytest.raises(FormulaGanError, match="holds no curve"): load_weights(path, "curve", None)
    with pytest.raises(FormulaGanError, match="another version"):
        load_weights(path, "line", lambda metadata: torch.nn.Linear(3, 3))
    with pytest.raises(FormulaGanError, match="no line 'default'"): load_weights("default", "line", None)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FormulaGanError, match="damaged"):
        load_weights(path, "line", lambda metadata: torch.nn.Linear(2, 3))
