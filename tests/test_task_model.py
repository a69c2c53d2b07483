"""The recogniser: masks, gradients, attention, beam search against exhaustive search, weights, and that it learns."""
import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from formula_gan import search
from formula_gan.core import FormulaGanError
from formula_gan.task_model import (THREE_SIZES, Cells, Encoder, Hypothesis, Recognizer, RecognizerConfig, at_size,
                                    count_runaways, load_recognizer, run_lessons, save_recognizer, teach)
from formula_gan.tokenizer import END, PAD, START, Vocab

SMALL = dict(layers=2, growth=4, stem_channels=8, stride=8, hidden=16, embedding=16, attention=12, coverage_channels=4,
             coverage_kernel=5)
SYMBOLS = ["a", "b", "+", "^", "{", "}"]


def make(seed=0, symbols=SYMBOLS, sharp=1.0, **changes):
    torch.manual_seed(seed)
    model = Recognizer(Vocab.from_tokens([symbols]), RecognizerConfig(**{**SMALL, **changes}))
    for module in model.modules():  # statistics and gains as after training, so that masks matter
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(module.bias, 0.3)
    with torch.no_grad():
        for weight in (model.decoder.ask.weight_ih, model.decoder.ask.weight_hh, model.decoder.out.weight):
            weight *= 4 * sharp
        for attend in model.decoder.attend: attend.score.weight *= 8
    return model.eval()


def images(sizes, height, width, seed=0):
    "Random images at the top left of a batch; what lies under the padding is garbage to be masked."
    rng = torch.Generator().manual_seed(seed)
    drawn = [torch.rand(h, w, generator=rng) for h, w in sizes]
    x, mask = torch.rand(len(sizes), 1, height, width), torch.zeros(len(sizes), 1, height, width)
    for n, image in enumerate(drawn):
        h, w = image.shape
        x[n, 0, :h, :w] = image
        mask[n, 0, :h, :w] = 1
    return x, mask


def some_ids(vocab, lengths, seed=0):
    rng = np.random.default_rng(seed)
    ids = torch.full((len(lengths), max(lengths) + 2), PAD)
    for n, length in enumerate(lengths):
        ids[n, :length + 2] = torch.tensor([START, *rng.integers(3, len(vocab), length), END])
    return ids


SIZES = [(20, 45), (33, 70), (17, 96), (40, 24)]


@pytest.mark.parametrize("stride, early", [(16, False), (8, False), (4, False), (8, True)])
@pytest.mark.parametrize("multi_scale", [False, True])
def test_padding_changes_nothing(stride, early, multi_scale):
    model = make(stride=stride, early_pooling=early, multi_scale=multi_scale)
    ids = some_ids(model.vocab, [3, 5, 1, 4])
    tight, loose = images(SIZES, 40, 96), images(SIZES, 80, 176)
    nll = model.token_nll(*tight, ids)
    assert torch.allclose(model.token_nll(*loose, ids), nll, atol=1e-4)
    for n, (h, w) in enumerate(SIZES):
        x, mask = images(SIZES, 40, 96)
        alone = model.token_nll(x[n:n + 1, :, :h, :w], None, ids[n:n + 1])
        assert torch.allclose(alone, nll[n:n + 1], atol=1e-4)
    read, again = model.decode(*tight, beam_size=3, max_length=12), model.decode(*loose, beam_size=3, max_length=12)
    assert [h.tokens for h in read] == [h.tokens for h in again]
    assert np.allclose([h.score for h in read], [h.score for h in again], atol=1e-4)


def test_batch_statistics_leave_padding_out():
    "In training mode too a larger canvas changes neither the loss nor its gradients nor the running statistics."
    results = []
    for height, width in ((40, 96), (64, 160)):
        model = make(dropout=0.0).train()
        loss = model.loss(*images(SIZES, height, width), some_ids(model.vocab, [3, 5, 1, 4]))
        loss.backward()
        gradients = [p.grad for p in model.parameters()]
        results.append([loss.detach(), *gradients, *(b.clone().float() for b in model.buffers())])
    assert all(torch.allclose(a, b, atol=2e-4, rtol=1e-3) for a, b in zip(*results))


def test_rows_and_maps_are_inverse_with_right_gradients():
    mask = (torch.rand(2, 1, 3, 4) > 0.4).double()
    cells = Cells(mask)
    maps = torch.randn(2, 5, 3, 4, dtype=torch.double, requires_grad=True)
    assert torch.equal(cells.maps(cells.rows(maps)), maps * mask)
    assert torch.autograd.gradcheck(lambda m: cells.maps(cells.rows(m) ** 2), maps)


def test_parameters_beside_the_released_code():
    "688,848 encoder parameters and 264 channels at three blocks of six; 3,014,808 and 684 at sixteen."
    count = lambda module: sum(p.numel() for p in module.parameters())
    small, large = Encoder(RecognizerConfig()), Encoder(RecognizerConfig(layers=16))
    assert (count(small), small.channels) == (688_848, [264]) and (count(large), large.channels) == (3_014_808, [684])
    both = Encoder(RecognizerConfig(layers=16, multi_scale=True))
    assert both.channels == [684, 300 + 8 * 24]


def test_map_sizes_follow_the_stride():
    x = torch.rand(1, 1, 40, 90)
    for stride, early, size in ((16, False, (3, 6)), (8, False, (5, 12)), (8, True, (5, 12)), (4, False, (10, 23))):
        [(rows, cells)] = make(stride=stride, early_pooling=early).encoder(x, torch.ones_like(x))
        assert cells.size == size and len(rows) == size[0] * size[1]
        fine = make(stride=stride, early_pooling=early, multi_scale=True).encoder(x, torch.ones_like(x))[1][1]
        assert fine.size == (2 * size[0], 2 * size[1])
    with pytest.raises(FormulaGanError, match="stride=5"): RecognizerConfig(stride=5)
    with pytest.raises(FormulaGanError, match="early_pooling"): RecognizerConfig(early_pooling=True)


def test_frozen_model_passes_gradients_to_the_image():
    "As in the generator's step: no parameter learns, nothing changes in the model, padding gets no gradient."
    model = make()
    for p in model.parameters(): p.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x, mask = images(SIZES, 40, 96)
    x.requires_grad_()
    ids = some_ids(model.vocab, [3, 5, 1, 4])
    model.loss(x, mask, ids).backward()
    assert x.grad.isfinite().all() and (x.grad * (1 - mask)).abs().max() == 0
    assert all(x.grad[n].abs().max() > 0 for n in range(4))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    direction = torch.randn_like(x) * mask
    with torch.no_grad(): up, down = (model.loss(x + step * direction, mask, ids) for step in (1e-3, -1e-3))
    assert math.isclose((up - down).item() / 2e-3, (x.grad * direction).sum().item(), rel_tol=0.1, abs_tol=5e-3)


def test_loss_is_the_mean_over_all_tokens():
    model = make()
    x, mask = images(SIZES, 40, 96)
    ids = some_ids(model.vocab, [3, 5, 1, 4])
    logits, _ = model(x, mask, ids)
    nll = model.token_nll(x, mask, ids)
    expected = [-logits[n, t].log_softmax(-1)[ids[n, t + 1]]
                for n, length in enumerate([4, 6, 2, 5])
                for t in range(length)]
    assert torch.allclose(nll[nll != 0], torch.stack(expected), atol=1e-5) and (nll == 0).sum() == nll.numel() - 17
    assert torch.allclose(model.loss(x, mask, ids), torch.stack(expected).mean(), atol=1e-5)


def test_attention_stays_on_the_image_and_coverage_matters():
    model = make(multi_scale=True)
    x, mask = images(SIZES, 40, 96)
    _, scales = model(x, mask, some_ids(model.vocab, [3, 5, 1, 4]))
    for look, cells in zip(scales, (Cells(mask).halved().halved().halved(), Cells(mask).halved().halved())):
        assert look.shape == (4, 6, *cells.size) and torch.allclose(look.sum((2, 3)), torch.ones(4, 6), atol=1e-5)
        assert (look * (cells.mask == 0)).abs().max() == 0
    without = make(multi_scale=True)
    for attend in without.decoder.attend: torch.nn.init.zeros_(attend.coverage.weight)
    _, other = without(x, mask, some_ids(model.vocab, [3, 5, 1, 4]))
    assert torch.allclose(other[0][:, 0], scales[0][:, 0])
    assert not torch.allclose(other[0][:, 1:], scales[0][:, 1:], atol=1e-4)


def test_greedy_equals_step_by_step_teacher_forcing():
    model = make(3)
    x, mask = images(SIZES, 40, 96)
    read = model.decode(x, mask, beam_size=1, max_length=8, valid=False)
    for n in range(4):
        ids = [START]
        total = 0.0
        while len(ids) <= 8 and ids[-1] != END:
            logits, _ = model(x[n:n + 1], mask[n:n + 1], torch.tensor([[*ids, END]]))
            chances = logits[0, -1].log_softmax(-1)
            chances[[PAD, START]] = -math.inf
            total, ids = total + chances.max().item(), [*ids, int(chances.argmax())]
        assert read[n].tokens == model.vocab.decode(ids)
        assert math.isclose(read[n].score, total / (len(ids) - 1), abs_tol=1e-4)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("multi_scale", [False, True])
def test_wide_beam_equals_exhaustive_search(seed, multi_scale, monkeypatch):
    "All texts of two symbols up to three tokens; pad and start are never written."
    monkeypatch.setattr(search, "SURE", 1.1)  # of two symbols one always has half of the probability
    model = make(seed, symbols=["a", "b"], multi_scale=multi_scale)
    longest = 4
    x, mask = images(SIZES, 40, 96, seed)
    texts = [t for n in range(longest) for t in itertools.product([3, 4], repeat=n)]
    ids = torch.tensor([[START, *t, END] + [PAD] * (longest - 1 - len(t)) for t in texts])
    read = model.decode(x, mask, beam_size=2 ** (longest + 1), max_length=longest, valid=False)
    for n in range(4):
        nll = model.token_nll(x[n:n + 1].expand(len(ids), -1, -1, -1), mask[n:n + 1].expand(len(ids), -1, -1, -1), ids)
        score = -nll.sum(1) / (nll != 0).sum(1)
        best = int(score.argmax())
        assert read[n].tokens == model.vocab.decode(ids[best].tolist())
        assert math.isclose(read[n].score, score[best].item(), abs_tol=1e-4)


def test_sure_readings_are_not_searched(monkeypatch):
    "Where every token has at least `SURE`, the greedy reading stays."
    model = make(0, sharp=0.5)
    with torch.no_grad(): model.decoder.out.bias[END] += 1
    x, mask = images(SIZES * 4, 40, 96, 0)
    greedy = model.decode(x, mask, beam_size=1, max_length=15, valid=False)
    wide = model.decode(x, mask, beam_size=10, max_length=15, valid=False)
    monkeypatch.setattr(search, "SURE", 1e-30)
    sure = model.decode(x, mask, beam_size=10, max_length=15, valid=False)
    ended = [len(h.tokens) < 15 for h in greedy]
    assert any(ended) and [h for h, e in zip(sure, ended) if e] == [h for h, e in zip(greedy, ended) if e]
    assert any(w.tokens != g.tokens for w, g in zip(wide, greedy))


def test_beam_is_never_worse_than_greedy():
    found = 0
    for seed in range(6):
        model = make(seed, sharp=0.5)
        with torch.no_grad(): model.decoder.out.bias[END] += 1
        x, mask = images(SIZES * 4, 40, 96, seed)
        greedy = model.decode(x, mask, beam_size=1, max_length=15, valid=False)
        for beam in (model.decode(x, mask, k, 15, valid=False) for k in (2, 4, 10)):
            assert count_runaways(beam, 15) <= count_runaways(greedy, 15)
            assert all(b.score >= g.score - 1e-6 for b, g in zip(beam, greedy) if len(g.tokens) < 15)
            found += sum(b.score > g.score + 1e-4 for b, g in zip(beam, greedy))
    assert found > 20  # and it does find better ones


@pytest.mark.parametrize("beam_size", [1, 10])
def test_looks_are_those_of_the_reading(beam_size):
    "What the search keeps is the attention that the reading's own tokens get, the end token apart."
    model = make(4, sharp=0.5)
    with torch.no_grad(): model.decoder.out.bias[END] += 1 if beam_size == 1 else 0  # greedy readings would not end
    x, mask = images(SIZES * 3, 40, 96, 4)
    read, looks = model.look_and_decode(x, mask, beam_size, 15, valid=False)
    greedy = model.decode(x, mask, 1, 15, valid=False)
    assert beam_size == 1 or [h.tokens for h in read] != [h.tokens for h in greedy]
    checked = 0
    for n, h in enumerate(read):
        if not 0 < len(h.tokens) < 15: continue  # nothing to look at, or cut short
        ids = torch.tensor([model.vocab.encode(h.tokens)])
        with torch.no_grad(): _, taught = model(x[n:n + 1], mask[n:n + 1], ids)
        for kept, look in zip(looks, taught):
            assert torch.allclose(kept[n], look[0, :len(h.tokens)].amax(0), atol=1e-4)
        checked += 1
    assert checked > 3


def test_batched_beams_equal_single_images_and_scores_are_true():
    "Images leave the search at different steps; states and coverage must stay with their hypotheses."
    model = make(4, sharp=0.5)
    sizes = SIZES * 3
    x, mask = images(sizes, 40, 96, 4)
    read = model.decode(x, mask, beam_size=10, max_length=15, valid=False)
    assert len({len(h.tokens) for h in read}) > 3
    for n, h in enumerate(read):
        alone = model.decode(x[n:n + 1], mask[n:n + 1], beam_size=10, max_length=15, valid=False)[0]
        assert alone.tokens == h.tokens and math.isclose(alone.score, h.score, abs_tol=1e-4)
        if len(h.tokens) < 15:
            nll = model.token_nll(x[n:n + 1], mask[n:n + 1], torch.tensor([model.vocab.encode(h.tokens)]))
            assert math.isclose(h.score, -nll.mean().item(), abs_tol=1e-4)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_sizes_are_averaged(beam_size):
    model = make(4, sharp=0.5)
    with torch.no_grad(): model.decoder.out.bias[END] += 1
    x, mask = images(SIZES, 40, 96, 4)
    once, twice = (model.decode(x, mask, beam_size, 12, sizes=sizes) for sizes in ((1.0,), (1.0, 1.0)))
    for one, other in zip(once, twice):
        assert one.tokens == other.tokens and math.isclose(one.score, other.score, abs_tol=1e-5)
    read = model.decode(x, mask, beam_size, 12, valid=False, sizes=THREE_SIZES)
    assert [h.score for h in read] != [h.score for h in model.decode(x, mask, beam_size, 12, valid=False)]
    ended = [(n, h) for n, h in enumerate(read) if len(h.tokens) < 12]
    for n, h in ended:
        ids = torch.tensor([model.vocab.encode(h.tokens)])
        views = [at_size(x[n:n + 1], mask[n:n + 1], size) for size in THREE_SIZES]
        chances = torch.stack([(-model.token_nll(*view, ids)).exp() for view in views]).mean(0)
        assert math.isclose(h.score, chances.log().mean().item(), abs_tol=1e-3)
    assert ended


def test_another_size():
    x, mask = images(SIZES, 40, 96)
    assert at_size(x, mask, 1.0) == (x, mask) and at_size(x, None, 0.5)[1] is None
    small, area = at_size(x, mask, 0.5)
    assert small.shape == area.shape == (4, 1, 20, 48) and set(area.unique().tolist()) <= {0.0, 1.0}
    assert torch.allclose(small.mean((1, 2, 3)), x.mean((1, 2, 3)), atol=0.02)
    assert at_size(x[..., :1, :1], None, 0.2)[0].shape == (4, 1, 1, 1)


def test_runaways_are_cut_and_counted():
    model = make()
    with torch.no_grad(): model.decoder.out.bias[END] = -1e4
    x, mask = images(SIZES, 40, 96)
    for beam_size in (1, 3):
        read = model.decode(x, mask, beam_size, max_length=7, valid=False)
        assert [len(h.tokens) for h in read] == [7] * 4 and count_runaways(read, 7) == 4
    with torch.no_grad(): model.decoder.out.bias[END] = 1e4
    read = model.decode(x, mask, 3, max_length=7, valid=False)
    assert read == [Hypothesis([], h.score) for h in read] and count_runaways(read, 7) == 0


def test_wrong_calls_are_named():
    model = make()
    x, mask = images(SIZES, 40, 96)
    for call in (
        lambda: model.decode(x, mask, 0),
        lambda: model.decode(x, mask, 3, 0),
        lambda: model.decode(x[:, 0], None),
        lambda: model.decode(x, mask, sizes=()),
        lambda: model.decode(x, mask, sizes=(1, 0)),
        lambda: model.decode(x, mask[..., :8]),
    ):
        with pytest.raises(FormulaGanError): call()


def test_bf16_autocast_stays_close_and_trains():
    model = make(dropout=0.0)
    x, mask = images(SIZES, 40, 96)
    ids = some_ids(model.vocab, [3, 5, 1, 4])
    exact = model.token_nll(x, mask, ids)
    with torch.autocast("cpu", torch.bfloat16): rough = model.token_nll(x, mask, ids)
    assert rough.dtype == torch.float32 and (rough - exact).abs().mean() < 0.15 * exact.mean()
    model.train()
    with torch.autocast("cpu", torch.bfloat16): loss = model.loss(x, mask, ids)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.autocast("cpu", torch.bfloat16): assert len(model.eval().decode(x, mask, 2, 5)) == 4


def test_dropout_only_in_training():
    model = make(dropout=0.5)
    x, mask = images(SIZES, 40, 96)
    ids = some_ids(model.vocab, [3, 5, 1, 4])
    assert torch.equal(model.loss(x, mask, ids), model.loss(x, mask, ids))
    model.train()
    assert not torch.equal(model.loss(x, mask, ids), model.loss(x, mask, ids))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 0), (torch.bfloat16, 0.1)])
def test_weights_return_with_vocabulary_and_configuration(tmp_path, dtype, tolerance):
    model = make(multi_scale=True)
    path = tmp_path / "reader.safetensors"
    save_recognizer(model, path, dtype, row="V", seed=3)
    again = load_recognizer(path)
    assert again.config == model.config and again.vocab.to_list() == model.vocab.to_list() and not again.training
    assert again.facts == {"row": "V", "seed": 3} and next(again.parameters()).dtype == torch.float32
    x, mask = images(SIZES, 40, 96)
    ids = some_ids(model.vocab, [3, 5, 1, 4])
    assert torch.allclose(again.token_nll(x, mask, ids), model.token_nll(x, mask, ids), atol=tolerance * 5,
                          rtol=tolerance)


def test_bad_files_are_refused_in_one_line(tmp_path):
    from safetensors.torch import load_file, save_file
    path = tmp_path / "reader.safetensors"
    save_recognizer(make(), path)
    data = path.read_bytes()
    weights = load_file(path)
    files = {"cut": data[:-100], "garbage": b"no weights", "empty": b""}
    for name, content in files.items(): (tmp_path / f"{name}.safetensors").write_bytes(content)
    save_file(weights, tmp_path / "foreign.safetensors")
    info = {"kind": "formula_gan recognizer", "vocab": json.dumps(SYMBOLS), "facts": "{}"}
    save_file(weights, tmp_path / "other.safetensors", {**info, "config": json.dumps({**SMALL, "layers": 3})})
    save_file(weights, tmp_path / "newer.safetensors", {**info, "config": json.dumps({**SMALL, "wings": 3})})
    save_file(weights, tmp_path / "vocab.safetensors",
              {**info, "vocab": json.dumps(["a"]), "config": json.dumps(SMALL)})
    for name in (*files, "foreign", "other", "newer", "vocab", "missing"):
        with pytest.raises(FormulaGanError, match=name) as error: load_recognizer(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(error.value) and len(str(error.value)) < 400
    with pytest.raises(FormulaGanError, match="nowhere"): load_recognizer("nowhere")


def strokes(text):
    "A toy script: each symbol is a pattern of its own, 8 px wide."
    patterns = {s: np.random.default_rng(n).random((16, 8)) > 0.6 for n, s in enumerate(SYMBOLS)}
    return np.hstack([np.zeros((16, 4)), *(patterns[s] for s in text), np.zeros((16, 4))]).astype("float32")


def train(model, data, steps, lr, seed=0, batch=8, autocast=False):
    "Adam with a short warm-up and a cosine; batches of all data in turn."
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr, foreach=True)
    x, mask, ids = data
    model.train()
    for step in range(steps):
        fall = 0.02 + 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = lr * min(1, (step + 1) / 20, fall)
        pick = torch.from_numpy(rng.permutation(len(x))[:batch])
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast): loss = model.loss(x[pick], mask[pick], ids[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def padded(pictures, texts, vocab):
    height, width = (-(-max(p.shape[k] for p in pictures) // 16) * 16 for k in (0, 1))
    x = torch.zeros(len(pictures), 1, height, width)
    mask = torch.zeros(len(pictures), 1, height, width)
    ids = [vocab.encode(t) for t in texts]
    for n, p in enumerate(pictures):
        x[n, 0, :p.shape[0], :p.shape[1]] = torch.from_numpy(p)
        mask[n, 0, :p.shape[0], :p.shape[1]] = 1
    longest = max(map(len, ids))
    return x, mask, torch.tensor([i + [PAD] * (longest - len(i)) for i in ids])


def test_it_learns_to_read():
    "Reads texts of a toy script, of other lengths and orders than it was taught."
    rng = np.random.default_rng(0)
    texts = [[str(s) for s in rng.choice(SYMBOLS, rng.integers(1, 7))] for _ in range(272)]
    torch.manual_seed(0)
    larger = dict(layers=2, growth=8, hidden=48, embedding=48, attention=32, dropout=0.0)
    model = Recognizer(Vocab.from_tokens([SYMBOLS]), RecognizerConfig(**SMALL | larger))
    train(model, padded([strokes(t) for t in texts[:256]], texts[:256], model.vocab), 250, 1e-2)
    x, mask, _ = padded([strokes(t) for t in texts[256:]], texts[256:], model.vocab)
    read = [h.tokens for h in model.decode(x, mask, 3, 12, valid=False)]
    assert sum(r == t for r, t in zip(read, texts[256:])) >= 12


def overfit(pictures, texts, config, steps=300):
    torch.manual_seed(0)
    model = Recognizer(Vocab.from_tokens(texts), config)
    data = padded(pictures, texts, model.vocab)
    train(model, data, steps, 1e-3, autocast=True)
    assert [h.tokens for h in model.decode(*data[:2], beam_size=1)] == texts
    assert [h.tokens for h in model.decode(*data[:2], beam_size=10)] == texts


@pytest.mark.slow
def test_overfits_32_demo_formulas():
    from formula_gan.corpora import demo_formulas
    from formula_gan.ink import rasterize
    from formula_gan.demo_hands import demo_inks
    formulas = sorted(demo_formulas(300, 0), key=len)[100:132]
    overfit([rasterize(ink, symbol_height=10) for ink in demo_inks(formulas, seed=0)], [f.split() for f in formulas],
            RecognizerConfig(stride=8, dropout=0.0))


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("profile", ["laptop", "gpu"])
def test_overfits_64_real_formulas(profile):
    "Table 2's recogniser, the laptop's and the whole one; both without dropout."
    import csv, zipfile
    from formula_gan.core import data_file, get_profile
    from formula_gan.tasks import large_recognizer
    from formula_gan.ink import rasterize, read_inkml
    with open(data_file("crohme2014_captions.tsv"), encoding="utf-8") as table:
        rows = list(csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE))
    captions = {r["id"]: r["latex"].split() for r in rows if r["split"] == "train"}
    pictures, texts = [], []
    with zipfile.ZipFile(data_file("crohme2014.zip")) as archive:
        names = sorted(n for n in archive.namelist() if "TrainINKML" in n and n.endswith(".inkml"))
        for name in names[::31]:
            ink = name.rsplit("/", 1)[-1].removesuffix(".inkml")
            picture = rasterize(read_inkml(archive.read(name)), symbol_height=12)
            if ink in captions and picture.shape[1] <= 240 and len(captions[ink]) <= 25:
                pictures.append(picture)
                texts.append(captions[ink])
    assert len(texts) >= 64
    overfit(pictures[:64], texts[:64], replace(large_recognizer(get_profile(profile)), dropout=0.0), 600)


def test_only_formulas_are_read():
    """An untrained model writes rubbish, yet every reading has a normal form, however short the cap; the end is forced
    in time."""
    from formula_gan.tokenizer import normalize
    vocab = Vocab.crohme()
    for seed in range(3):
        torch.manual_seed(seed)
        model = Recognizer(vocab, RecognizerConfig(**SMALL)).eval()
        model.decoder.out.bias.data.normal_(0, 2)
        for length in (3, 9, 30):
            for beam_size in (1, 4):
                read = model.decode(torch.rand(3, 1, 24, 40), None, beam_size, length)
                assert all(h.tokens and normalize(" ".join(h.tokens)) and len(h.tokens) < length for h in read)


def test_guidance_teaches_where_to_look():
    "Both losses fall, the attention goes into the boxes, and a token without a box takes no part."
    from formula_gan.task_model import attention_loss, symbol_loss
    torch.manual_seed(0)
    vocab = Vocab.from_tokens([SYMBOLS])
    model = Recognizer(vocab, RecognizerConfig(wide=True, symbol_map=True, layers=2, growth=8, stem_channels=16,
                                               stride=8, hidden=32, embedding=32, attention=16, coverage_channels=4,
                                               coverage_kernel=3, dropout=0.0))
    x, boxes = torch.zeros(8, 1, 16, 64), torch.full((8, 4, 4), float("nan"))
    ids = torch.tensor([[1, *(3 + (n + k) % len(SYMBOLS) for k in range(3)), 2] for n in range(8)])
    for n in range(8):
        for k in range(3):
            x[n, 0, 4:12, 20 * k + 2:20 * k + 10] = (ids[n, k + 1] - 2) / 8
            boxes[n, k] = torch.tensor([20 * k + 2, 4, 20 * k + 10, 12])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    first = None
    for _ in range(60):
        losses = model.guided_losses(x, None, ids, boxes)
        first = first or {name: float(value) for name, value in losses.items()}
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert all(float(losses[name]) < 0.5 * first[name] for name in ("read", "attention", "symbols"))
    look = torch.full((1, 2, 2, 8), 1 / 16)
    half = torch.tensor([[[0.0, 0, 31, 15], [float("nan")] * 4]])
    assert math.isclose(float(attention_loss(look, half, 8)), -math.log(10 / 16 + 1e-4), rel_tol=1e-5)
    none = torch.full((1, 2, 4), float("nan"))
    assert attention_loss(look, none, 8) == 0
    assert torch.isfinite(symbol_loss(torch.zeros(1, 5, 2, 8), torch.ones(1, 1, 2, 8), ids[:1, 1:3], none, 8))


def test_wide_encoder_does_not_see_padding():
    torch.manual_seed(0)
    model = Recognizer(Vocab.from_tokens([SYMBOLS]),
                       RecognizerConfig(wide=True, layers=2, growth=8, stem_channels=16, stride=8, dropout=0.0)).eval()
    x = torch.rand(1, 1, 21, 50)
    large, mask = torch.rand(1, 1, 40, 96), torch.zeros(1, 1, 40, 96)
    large[..., :21, :50] = x
    mask[..., :21, :50] = 1
    alone, _ = model.encode(x, None)[0]
    rows, _ = model.encode(large, mask)[0]
    assert torch.allclose(alone, rows, atol=1e-5)


def test_taking_over_keeps_what_each_token_means():
    config = RecognizerConfig(wide=True, symbol_map=True, stride=8, layers=2, growth=8, stem_channels=8, hidden=16,
                              embedding=16)
    old, new = Recognizer(Vocab(["a", "b"]), config).eval(), Recognizer(Vocab(["c", "b", "a"]), config).eval()
    fresh = new.decoder.out.weight[new.vocab.encode(["c"])[1]].clone()
    new.take_over(old)
    x = torch.rand(2, 1, 24, 40)
    ids = [torch.tensor([model.vocab.encode(["a", "b", "a"])] * 2) for model in (old, new)]
    (one, [looks]), (other, [again]) = (model(x, None, i) for model, i in zip((old, new), ids))
    assert torch.equal(looks, again)
    for theirs, ours in zip(ids[0][0].tolist(), ids[1][0].tolist()):
        assert torch.allclose(one[..., theirs], other[..., ours], atol=1e-5)
    assert torch.equal(new.decoder.out.weight[new.vocab.encode(["c"])[1]], fresh)
    with pytest.raises(FormulaGanError, match="same shape"): Recognizer(Vocab(["a"])).take_over(old)


def teach_plainly(decoder, scales, ids):
    "A decoder's steps one by one, as the search takes them, with the gradient that autograd finds."
    memories, state = decoder.begin(scales)
    gates, token = decoder.gates(ids[:, :-1])
    hidden, seen, looks = [], [], []
    for gate in gates.split(1, 1):
        state, context, look = decoder.step(gate, state, memories)
        hidden.append(state.hidden)
        seen.append(context)
        looks.append(look)
    logits = decoder.logits(torch.cat(hidden, 1), torch.cat(seen, 1), token)
    return logits, [torch.cat(look, 1).unflatten(-1, m.size) for look, m in zip(zip(*looks), memories)]


def same_gradients(ours, theirs, tolerance):
    for one, other in zip(ours, theirs): assert (one - other).norm() <= tolerance * other.norm() + 1e-6


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 0.06)])
@pytest.mark.parametrize("multi_scale", [False, True])
def test_the_written_gradient_is_autograds(dtype, tolerance, multi_scale):
    model = make(multi_scale=multi_scale, dropout=0.0)
    ids = some_ids(model.vocab, [3, 9, 1, 4])
    with torch.no_grad(): scales = model.encode(*images(SIZES, 40, 96))
    found = []
    for way in (teach, teach_plainly):
        rows = [rows.to(dtype).requires_grad_() for rows, _ in scales]
        logits, looks = way(model.decoder, [(r, cells) for r, (_, cells) in zip(rows, scales)], ids)
        loss = logits.square().mean() + sum((look * torch.arange(look.shape[3])).square().mean() for look in looks)
        found.append([loss.detach(), *torch.autograd.grad(loss, [*rows, *model.decoder.parameters()])])
    same_gradients(*found, tolerance)


def test_lessons_are_taught_together_as_alone():
    "Batches of other sizes and lengths; the loop's weights learn from the first two, images from all."
    model = make(multi_scale=True, dropout=0.0)
    batches = [(images(sizes, *canvas), some_ids(model.vocab, lengths))
               for sizes, canvas, lengths in ((SIZES[:2], (40, 96), [3, 9]), (SIZES, (56, 96), [1] * 4),
                                              (SIZES[1:3], (40, 112), [2, 5]))]
    shown = [x.clone().requires_grad_() for (x, _), _ in batches]
    learning = list(model.decoder.read.parameters())
    lessons = [model.lesson(x, mask, ids) for x, ((_, mask), ids) in zip(shown, batches)]
    taught = run_lessons(model.decoder, lessons, learn=2)
    losses = [model.decoder.logits(*made[:3]).square().mean() + made.looks[1].square().mean() for made in taught]
    alone = []
    for x, ((_, mask), ids) in zip(shown, batches):
        logits, looks = teach(model.decoder, model.encode(x, mask), ids)
        alone.append(logits.square().mean() + looks[1].square().mean())
    torch.testing.assert_close(torch.stack(losses), torch.stack(alone))
    def gradients(loss, inputs): return torch.autograd.grad(loss, inputs, retain_graph=True)
    same_gradients(gradients(sum(losses), shown), gradients(sum(alone), shown), 1e-4)
    same_gradients(gradients(sum(losses), learning), gradients(alone[0] + alone[1], learning), 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_energy_is_convolution_then_linear(dtype):
    "With gradients and in place."
    from formula_gan.task_model import CoverageAttention, Memory
    torch.manual_seed(0)
    attend = CoverageAttention(8, RecognizerConfig(coverage_kernel=3, coverage_channels=4, attention=6, hidden=5))
    memory = Memory(torch.rand(2, 12, 8), torch.rand(2, 1, 12, 6).to(dtype), torch.zeros(2, 1, 12), (3, 4))
    query, past = torch.rand(2, 3, 1, 6), torch.rand(2, 3, 12)
    maps = attend.coverage_conv(past.view(6, 1, 3, 4)).flatten(2).transpose(1, 2)
    plain = torch.tanh(memory.keys + query + attend.coverage(maps).view(2, 3, 12, 6))
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    for grad in (True, False):
        with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            energy = attend.energy(query.to(dtype), memory, past)
        assert torch.allclose(energy.float(), plain.float(), atol=tolerance)
