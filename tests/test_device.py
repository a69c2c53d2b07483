"""A card that is not there: tensors on it meet no others, and every wait for it is counted."""
import contextlib
import copy
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from formula_gan import realism, stages, synthesis, tables
from formula_gan.core import get_profile
from formula_gan.data import HANDWRITTEN, PRINTED, Packed
from formula_gan.likeness import image_features
from formula_gan.guided import GuidedTask
from formula_gan.reading import recognize
from formula_gan.sagan import Generator, load_generator
from formula_gan.recognizers import image_losses
from formula_gan.task_model import Recognizer, RecognizerConfig, save_recognizer
from formula_gan.tasks import RECIPES, GanTask, PairedStream, PhasedStream, RecognizerTask
from formula_gan.tokenizer import END, Vocab
from formula_gan.trainer import Trainer, batch_loader, place, stroke_change, update
from formula_gan.writing import handwrite
from test_trainer import PROFILE, TINY, VOCAB, drawn, equal, make_gan, make_reader, weights


CARD = torch.device("cuda:0")
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount", "equal", "is_nonzero"}
# from one device to another; indices may lie anywhere
CROSSES = {"copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_"}


class OnCard(torch.Tensor):
    "What the CPU computes with, behind a name that says that it lies on the card."
    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, strides=inner.stride(),
                                                   storage_offset=inner.storage_offset(), dtype=inner.dtype)

    def __init__(self, inner): self.inner = inner

    device = property(lambda self: CARD)
    is_cuda, is_cpu = property(lambda self: True), property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} outside the card's simulation")

    def cpu(self): return Card.now.fetched(self)

    def tolist(self): return Card.now.fetched(self).tolist()

    def numpy(self, **_): raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __array__(self, *_): return self.numpy()

    def __deepcopy__(self, memo):
        other = OnCard(self.inner.detach().clone()).requires_grad_(self.requires_grad)
        if hasattr(self, "_is_param"): other._is_param = True
        return memo.setdefault(id(self), other)

    def __reduce_ex__(self, protocol): return self.inner.detach().__reduce_ex__(protocol)

    def untyped_storage(self): return self.inner.untyped_storage()

    def __repr__(self): return f"OnCard({tuple(self.shape)})"


class Card(TorchDispatchMode):
    """The simulation: `waits` says what made the host wait, and where in the library; `launches` counts operations on
    the card."""
    now = None

    def __init__(self):
        super().__init__()
        self.waits, self.launches = Counter(), Counter()

    def wait(self, name):
        places = [f"{Path(f.filename).name}:{f.lineno}"
                  for f in traceback.extract_stack()
                  if "formula_gan/" in f.filename.replace("\\", "/") and "tests" not in f.filename]
        self.waits[f"{name} {places[-1] if places else 'test'}"] += 1

    def fetched(self, tensor):
        self.wait("cpu")
        return tensor.inner.detach().clone()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func._schema.name.removeprefix("aten::")
        given = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
        there = [t for t in given if isinstance(t, OnCard)]
        if not there: return func(*args, **kwargs)
        self.check(name, given, there)
        self.count(func, name, args, there)
        wrappers = {id(t.inner): t for t in there}
        args, kwargs = tree_map(lambda t: t.inner if isinstance(t, OnCard) else t, (args, kwargs))
        out = func(*args, **kwargs)
        if name == "copy_" and not isinstance(given[0], OnCard): return given[0]
        def wrapped(t): return wrappers[id(t)] if id(t) in wrappers else OnCard(t)
        return tree_map(lambda t: wrapped(t) if isinstance(t, torch.Tensor) else t, out)

    def check(self, name, given, there):
        strangers = [tuple(t.shape) for t in given if not isinstance(t, OnCard) and t.dim()]
        if strangers and there and name not in CROSSES:
            raise AssertionError(f"{name}: {strangers} of the CPU meets {[tuple(t.shape) for t in there]} of the card")

    def count(self, func, name, args, there):
        self.launches[name] += not func.is_view
        indices = tree_flatten(args[1])[0] if name.startswith("index") else []
        masks = any(isinstance(t, torch.Tensor) and t.dtype == torch.bool for t in indices)
        if name == "index" and masks or masks and args[2].numel() > 1 or name in WAITS: self.wait(name)
        if name == "copy_" and not isinstance(args[0], OnCard): self.wait(name)


class Moves(TorchFunctionMode):
    "Tensors that are made on the card, moved there, or fetched."
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.to: return self.moved(*args, **kwargs)
        if kwargs.get("device") is None or torch.device(kwargs["device"]).type != "cuda": return func(*args, **kwargs)
        made = func(*args, **kwargs | {"device": "cpu"})
        return made if isinstance(made, OnCard) else OnCard(made)

    def moved(self, tensor, *args, **kwargs):
        if args and isinstance(args[0], torch.Tensor): args = args[0].device, args[0].dtype, *args[1:]
        device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
        there = isinstance(tensor, OnCard)
        options = {"dtype": dtype or tensor.dtype, "memory_format": layout or torch.preserve_format}
        if device is None or there == (device.type == "cuda"): return tensor.to(**options)
        return Card.now.fetched(tensor).to(**options) if there else OnCard(tensor.detach().to(copy=True, **options))


def grouped(lists): return {(lists[0][0].device, lists[0][0].dtype): (lists, None)}  # gradients of one player


class OneProcess:
    "An Accelerator on the card."
    device, num_processes, process_index, is_main_process = CARD, 1, 0, True
    def __init__(self, cpu=False): assert not cpu, "the task was to run on the card"
    def wait_for_everyone(self): pass


@contextlib.contextmanager
def simulated(monkeypatch):
    import accelerate
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(accelerate, "Accelerator", OneProcess)
    monkeypatch.setattr(torch.nn.utils.clip_grad, "_group_tensors_by_device_and_dtype", grouped)
    with Card() as mode, Moves():
        monkeypatch.setattr(Card, "now", mode)
        torch.__future__.set_swap_module_params_on_conversion(True)
        try: yield mode
        finally: torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.fixture
def card(monkeypatch):
    with simulated(monkeypatch) as mode: yield mode


def test_the_simulation_tells_devices_apart(card):
    x, y = torch.ones(2, 3), torch.ones(2, 3).to("cuda")
    assert y.device.type == "cuda" and torch.zeros(2, device="cuda").device == CARD and (y + 1).device == CARD
    with pytest.raises(AssertionError, match="meets"): x + y
    with pytest.raises(TypeError, match="numpy"): y.numpy()
    assert (y * torch.tensor(2.0)).sum() == 12 and card.waits.total() == 1
    assert y.tolist() == x.tolist() and (y > 0).any() and type(y.cpu()) is torch.Tensor and card.waits.total() == 4
    y[y > 0] = 0
    assert card.waits.total() == 4 and len(y[y == 0]) == 6 and card.waits.total() == 5
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters(), foreach=True)
    layer.to("cuda")
    layer(y).sum().backward()
    optimizer.step()
    assert layer.weight.grad.device == CARD and copy.deepcopy(layer).weight.device == CARD and card.waits.total() == 5


@pytest.fixture(scope="module")
def figures():
    from formula_gan.figure_sets import FigureSet, ink_figure, print_figure
    from formula_gan.rendering import typeset
    from formula_gan.demo_hands import demo_inks
    formulas = ["a + b", "x ^ { 2 }", "1 - x", "b", "2 + 2", "a"]
    prints = FigureSet([print_figure(f, typeset(f)) for f in formulas])
    return prints, FigureSet([ink_figure(ink) for ink in demo_inks(formulas, writers=2)])


@pytest.fixture(scope="module")
def judge_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    save_recognizer(Recognizer(Vocab(["a", "b", "+", "x"]), WIDE), path, symbol_height=8)
    return str(path)


WIDE = RecognizerConfig(wide=True, symbol_map=True, stride=8, layers=2, growth=8, stem_channels=8, hidden=16,
                        embedding=16)


def laptop_like(figures, judge_file, device="cuda", **fields):
    "A task with what the profile `laptop` has that the paper has not."
    own = {"symbol_height": 12, "fold": 2, "cells": True, "seen": True, "reach": 12, "loose": 0.6, "judge": judge_file,
           "z_reward": 1.0, "warmup_iterations": 1, "gan_iterations": 3}
    profile = replace(PROFILE, **own | fields)
    vocab = Vocab.from_tokens([t.split() for t in figures[0].tokens])
    return GanTask(profile, list(figures[:1]), list(figures), vocab, device=device)


def plain(figures, judge_file, device="cuda", **fields):
    return make_gan(replace(PROFILE, **{"warmup_iterations": 1, "gan_iterations": 3} | fields), device=device)


def blind(*given, **fields):
    # its discriminator sees through the judge all the same
    return laptop_like(*given, lambda_=0.0, z_reward=0.0, **fields)


def stop_after_a_step(trainer): assert trainer.run(max_minutes=1e-9) is False and trainer.step == 1


@pytest.mark.parametrize("make", [plain, laptop_like])
def test_a_gan_trains_on_the_card_and_resumes(card, figures, judge_file, tmp_path, make):
    stop_after_a_step(Trainer(make(figures, judge_file), tmp_path, log_every=1, progress=False))
    task = make(figures, judge_file)
    trainer = Trainer(task, tmp_path, log_every=1, progress=False)
    assert trainer.step == 1 and trainer.run() and task.device == "cuda:0" and task.sheet().size > (1, 1)
    assert all(p.device == CARD for module in task.modules.values() for p in module.parameters())
    assert load_generator(tmp_path / "last.safetensors").facts["steps"] == task.steps == 4


def test_a_step_on_the_card_is_that_on_the_cpu(card, figures, judge_file, tmp_path):
    "The losses of two steps each of copying and of a GAN agree; attention and optimisers have other kernels there."
    def losses(device):
        task = laptop_like(figures, judge_file, device, warmup_iterations=2, gan_iterations=2)
        on_cpu = SimpleNamespace(num_processes=1, process_index=0, device="cpu")
        accelerator = OneProcess() if device == "cuda" else on_cpu
        place(task, accelerator)
        return [{k: float(v) for k, v in update(task, task[step], step, accelerator).items()} for step in range(4)]
    for ours, theirs in zip(losses("cuda"), losses("cpu")): assert ours == pytest.approx(theirs, rel=2e-3, abs=1e-4)


def test_a_guided_recogniser_trains_on_the_card_and_resumes(card, figures, tmp_path):
    vocab = Vocab.from_tokens([t.split() for t in figures[0].tokens])
    images = drawn(HANDWRITTEN)
    images.tokens = ["1", "a", "b + a", "x", "2"]
    def make(): return GuidedTask(replace(PROFILE, symbol_height=12), figures, vocab, 3, config=WIDE, device="cuda")
    def metric(task):
        loss = float(np.concatenate(image_losses(task.model, images, PROFILE, task.device)).mean())
        return {"metric": loss}
    stop_after_a_step(Trainer(make(), tmp_path, log_every=1, progress=False))
    task = make()
    trainer = Trainer(task, tmp_path, metric, 3, log_every=1, progress=False)
    assert trainer.step == 1
    assert trainer.run()
    assert trainer.best < 10
    assert task.live.encoder.stem[0][0].weight.device == CARD


def test_a_recogniser_of_images_trains_on_the_card(card, tmp_path):
    task = RecognizerTask(replace(PROFILE, recognizer_steps=2), [drawn(PRINTED)], VOCAB, 0, TINY,
                          recipe=RECIPES["paper"], device="cuda")
    assert Trainer(task, tmp_path, progress=False).run()


def test_writing_reading_and_features_on_the_card(card):
    torch.manual_seed(0)
    profile = replace(PROFILE, symbol_height=12)
    generator = Generator(8, skip=True, fold=2, reach=4)
    model = Recognizer(Vocab.crohme(), WIDE).eval()
    with torch.no_grad(): model.decoder.out.bias[END] = 2.0  # it soon comes to an end
    there = model.to("cuda")
    written = handwrite(generator, drawn(PRINTED), profile, 0, "cuda", False)
    assert len(written) == 5 and written[0].dtype == np.uint8
    assert image_features(there, written, profile, "cuda").shape == (5, 8 * 2 + 2 * 8)
    picture = np.uint8(255 * (np.arange(40 * 90).reshape(40, 90) % 17 < 4))
    here = Recognizer(Vocab.crohme(), WIDE).eval()
    here.load_state_dict({k: v.cpu() for k, v in there.state_dict().items()})
    for beam_size in (1, 3):
        wanted = recognize(picture, here, beam_size).score
        assert recognize(picture, there, beam_size).score == pytest.approx(wanted, rel=0.01)


SMALL = get_profile("demo", height=64, symbol_height=12, base_channels=4, batch=4, gan_iterations=1, recognizer_steps=2,
                    warmup_iterations=1, reader_steps=2, updates=2, recognizer_batch=4, synthetic_images=8,
                    printed_formulas=8, workers=1)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    "A cache for rows of both tables, and a corpus of little ink, some of it by two writers."
    from formula_gan.demo_hands import demo_inks
    read = stages.load_corpus(SMALL, progress=False)
    read.ink = {name: inks[:30 if name == "train" else 6] for name, inks in read.ink.items()}
    read.ink["train"] += demo_inks([ink.latex for ink in read.ink["train"][:16]], seed=99)
    return tmp_path_factory.mktemp("cache"), read


@pytest.fixture
def all_there(few, card, monkeypatch):
    "Runs choose the card, and readings are short: recognisers of two steps never end by themselves."
    monkeypatch.setenv("FORMULA_GAN_CACHE", str(few[0]))
    monkeypatch.setattr(stages, "load_corpus", lambda *a, **k: few[1])
    for room in (stages, synthesis): monkeypatch.setattr(room, "pick_device", lambda: "cuda")
    whole = Recognizer.look_and_decode
    def short(self, x, mask=None, beam_size=10, sizes=(1.0,)):
        return whole(self, x, mask, min(beam_size, 2), 5, sizes=sizes)
    monkeypatch.setattr(Recognizer, "look_and_decode", short)
    return card


def test_a_row_of_table_1_on_the_card(all_there):
    best, last = tables.run_row("7", SMALL, progress=False).rows
    assert best["device"] == "cuda" and best["perplexity"] > 1 and last["synthetic_images"] == 8
    assert all_there.launches["convolution"] and all_there.launches["_fused_adam_"]


@pytest.mark.parametrize("recipe", ["modern", "guided"])
def test_a_row_of_table_2_on_the_card(all_there, recipe):
    done = tables.run_recognition_row("P", SMALL, recipe, test_norms=("symbol", "three-sizes"), progress=False)
    assert {row["device"] for row in done.rows} == {"cuda"}
    assert len(done.readings["three-sizes"]) == len(done.test["symbol"]) == 6


def test_a_set_is_written_and_filtered_on_the_card(all_there, tmp_path):
    made = synthesis.synthesize(["a + b", "x ^ { 2 }"], tmp_path / "set", recognizer="default", progress=False)
    assert made.written == 2 and all_there.launches["convolution"]


def test_the_realism_table_on_the_card(all_there):
    rows = realism.realism_table(SMALL, progress=False).rows
    assert {row["device"] for row in rows} == {"cuda"}
    assert len(rows) == 4


def test_all_shifts_at_once_on_the_card(card):
    "The same change of strokes and the same gradient as one shift after the other, in a fifth of the launches."
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand(3, 1, 32, 48, generator=generator) for _ in range(2))
    def change(device):
        pictures = [t.to(device).requires_grad_() for t in (first, second)]
        apart = stroke_change(*pictures)
        apart.sum().backward()
        return [t.detach().cpu() for t in (apart, *(p.grad for p in pictures))]
    for ours, theirs in zip(change("cuda"), change("cpu")):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    assert card.launches["avg_pool2d"] == 2 and card.launches["abs"] == 1


@pytest.mark.parametrize("make, wanted", [
    (plain, {"nonzero": 12}),
    (laptop_like, {"nonzero": 1}),
    (blind, {}),
    ("guided", {"nonzero": 2, "index": 1, "index_put": 1}),
    ("recogniser", {"nonzero": 4}),
])
def test_waits_of_a_step(card, figures, judge_file, make, wanted):
    """Which cells hold image, and where symbols stand; no loss is read, nothing is fetched, and Adam counts without
    asking."""
    if make == "guided":
        vocab = Vocab.from_tokens([t.split() for t in figures[0].tokens])
        task = GuidedTask(replace(PROFILE, symbol_height=12), figures, vocab, 3, config=WIDE, device="cuda")
    elif make == "recogniser": task = RecognizerTask(PROFILE, [drawn(PRINTED)], VOCAB, 0, TINY, device="cuda")
    else: task = make(figures, judge_file, warmup_iterations=0)
    place(task, OneProcess())
    for step in range(2):
        card.waits.clear()
        update(task, task[step], step, OneProcess())
    assert Counter(name.split()[0] for name in card.waits.elements()) == wanted


def launches_of_a_step(card, name, tokens):
    "With a profile's networks, but few channels and small images: the count depends on neither."
    profile = replace(get_profile(name), data="demo", height=32, symbol_height=8, base_channels=8, batch=2,
                      warmup_iterations=0, precision="fp32")
    sets = [drawn(PRINTED), drawn(HANDWRITTEN, 1)]
    for images in sets: images.tokens = [" ".join(["1"] * tokens)] * len(images)
    task = GanTask(profile, sets[:1], sets, VOCAB, device="cuda")
    place(task, OneProcess())
    update(task, task[0], 0, OneProcess())
    card.launches.clear()
    update(task, task[1], 1, OneProcess())
    return card.launches.total()


@pytest.mark.parametrize("name", ["paper", "gpu"])
def test_launches_of_a_step(card, name):
    "All players, and one loop over tokens for three batches; it was 315 a token, and 17,862 for 40 tokens in bfloat16."
    short, long = (launches_of_a_step(card, name, tokens) for tokens in (4, 14))
    assert (long - short) / 10 <= 60
    assert long <= 5200


def test_a_training_of_the_card_goes_on_on_the_cpu_and_back(tmp_path, monkeypatch):
    "Each device keeps its own way of updating; Adam's counters lie where that wants them."
    def make(device):
        return RecognizerTask(replace(PROFILE, recognizer_steps=9), [drawn(PRINTED)], VOCAB, 0, TINY, device=device)
    def step(device):
        trainer = Trainer(make(device), tmp_path, progress=False)
        before = trainer.step
        assert trainer.run(max_minutes=1e-9) is False and trainer.step == before + 1
        optimizer = trainer.task.optimizers["recognizer"]
        [group] = optimizer.param_groups
        counters = optimizer.state.values()
        assert (group["foreach"], group["fused"]) == ((None, True) if device == "cuda" else (True, None))
        assert {c["step"].device.type for c in counters} == {device}
        assert {int(c["step"]) for c in counters} == {trainer.step}
    for device in ("cpu", "cuda", "cpu"):
        if device == "cpu": step(device)
        else:
            with monkeypatch.context() as patch, simulated(patch): step(device)


def test_a_spawned_process_prepares_the_same_batches(figures, judge_file):
    "What it is given and what it sends is pickled: streams there, bytes back."
    both = PairedStream(laptop_like(figures, judge_file, "cpu").source, make_reader().stream)
    task = SimpleNamespace(stream=both, steps=3, device="cpu")
    loader = batch_loader(task, 1, SimpleNamespace(num_processes=1, process_index=0), workers=1)
    loader.multiprocessing_context = "spawn"
    sent = list(loader)
    assert len(sent) == 2
    for step, pair in enumerate(sent, 1):
        for ours, theirs in zip(pair, both[step]):
            assert isinstance(ours, Packed) and ours.pixels.dtype == torch.uint8 and ours.tokens == theirs.tokens
            ours = ours.to("cpu", torch.channels_last)
            for name in ("x", "mask", "ids", "domain"):
                assert torch.equal(getattr(ours, name), getattr(theirs, name))
                assert getattr(ours, name).dtype == getattr(theirs, name).dtype
            assert theirs.boxes is None or torch.equal(ours.boxes.nan_to_num(-1), theirs.boxes.nan_to_num(-1))


def test_bytes_change_no_training(tmp_path):
    "With batches from another process, to the bit."
    trained = []
    for workers in (0, 1):
        trained.append(make_gan(replace(PROFILE, warmup_iterations=1, gan_iterations=2)))
        Trainer(trained[-1], tmp_path / str(workers), loader_workers=workers, progress=False).run()
    assert equal(*map(weights, trained))


def test_a_curriculum_is_as_long_with_several_processes():
    "By the steps of the training, each of which takes a batch for every process."
    stream = PhasedStream({0: ["short"] * 100, 20: ["all"] * 100})
    for ranks in (1, 2, 4):
        for rank in range(ranks):
            loader = batch_loader(SimpleNamespace(stream=stream, steps=25), 0,
                                  SimpleNamespace(num_processes=ranks, process_index=rank))
            assert list(loader) == ["short"] * 20 + ["all"] * 5
