"""The steps' losses, and the loop: resume, signals, logs, checkpoints, two processes."""
import copy
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from formula_gan.core import FormulaGanError, get_profile
from formula_gan.data import HANDWRITTEN, PRINTED, ImageSet, collate
from formula_gan.sagan import Discriminator, Generator
from formula_gan.task_model import Recognizer, RecognizerConfig
from formula_gan.tokenizer import Vocab
from formula_gan.tasks import GanTask, RecognizerTask
from formula_gan.trainer import (Z_CAP, Checkpoint, GanModels, Log, Trainer, batch_loader, frozen, gan_step, place,
                                 pooled_l1, reconstruction_step, stroke_change, target_class, update_average, z_term)

VOCAB = Vocab.from_tokens([["1", "+", "-"]])
TINY = RecognizerConfig(layers=1, growth=4, stem_channels=8, stride=8, hidden=16, embedding=16, attention=16,
                        dropout=0.1)
PROFILE = get_profile("demo", batch=2, warmup_iterations=2, gan_iterations=4, recognizer_batch=2, recognizer_steps=6,
                      recognizer_stride=8)


def drawn(domain, seed=0):
    rng = np.random.default_rng(seed)
    return ImageSet([(rng.random((8 + i, 20 - i)) > 0.8).astype("float32") for i in range(5)],
                    ["1", "1 + 1", "-", "- 1", "1"], domain)


def make_gan(profile=PROFILE, **options):
    return GanTask(profile, [drawn(PRINTED)], [drawn(PRINTED), drawn(HANDWRITTEN, 1)], VOCAB, **options)


def make_reader(profile=PROFILE, seed=0): return RecognizerTask(profile, [drawn(PRINTED)], VOCAB, seed, TINY)


def weights(task):
    return {f"{m}.{k}": v.clone() for m, module in task.modules.items() for k, v in module.state_dict().items()}


def equal(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def step():
    torch.manual_seed(0)
    models = GanModels(Generator(8), Discriminator(8), Recognizer(VOCAB, TINY))
    batch = collate([np.eye(16, 40, dtype="float32"), np.ones((9, 20), "float32")],
                    [VOCAB.encode(["1", "+"]), VOCAB.encode(["-"])], [1, 0])
    return models, batch, torch.randn(2, 120)


def test_gan_step_changes_no_parameter(step):
    models, batch, z = step
    before = {(n, k): v.detach().clone() for n, m in vars(models).items() for k, v in m.named_parameters()}
    gan_step(models, batch, batch, z, 1 - batch.domain, 1.0, 1.0)
    assert all(torch.equal(before[n, k], v) for n, m in vars(models).items() for k, v in m.named_parameters())


@pytest.mark.parametrize("loss, learner", [
    ("g_hinge", "generator"),
    ("anchor", "generator"),
    ("task_fake", "generator"),
    ("d_hinge", "discriminator"),
    ("z_term", "generator"),
    ("task_target", "task"),
    ("task_source", "task"),
])
def test_each_loss_reaches_one_player(step, loss, learner):
    models, batch, z = step
    losses, _ = gan_step(models, batch, batch, z, 1 - batch.domain, 1.0, 1.0, z_reward=1.0, second=torch.randn(2, 120))
    losses[loss].backward()
    for name, module in vars(models).items():
        touched = any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
        assert touched == (name == learner), f"{loss} reaches {name}"


@pytest.mark.parametrize("loss, learner", [
    ("copy", "generator"),
    ("d_hinge", "discriminator"),
    ("task_target", "task"),
    ("task_source", "task"),
])
def test_each_loss_of_the_warm_up_reaches_one_player(step, loss, learner):
    models, batch, z = step
    losses, fake = reconstruction_step(models, batch, batch, z, 1 - batch.domain)
    assert fake.shape == batch.x.shape and not fake.requires_grad
    losses[loss].backward()
    for name, module in vars(models).items():
        touched = any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
        assert touched == (name == learner), f"{loss} reaches {name}"


def test_lambda_weighs_the_task_loss(step):
    models, batch, z = step
    totals = {}
    for lambda_ in (1.0, 3.0):
        losses, _ = gan_step(models, batch, batch, z, 1 - batch.domain, lambda_)
        parts = {k: float(v.detach()) for k, v in losses.items()}
        total = sum(parts[k] for k in ("g_hinge", "d_hinge", "task_target", "task_source"))
        total += lambda_ * parts["task_fake"]
        assert parts["total"] == pytest.approx(total, rel=1e-4)
    losses, _ = gan_step(models, batch, batch, z, 1 - batch.domain, 0.0)
    assert not [k for k in losses if k.startswith("task")]


def test_fakes_leave_the_task_models_statistics_alone(step):
    models, batch, _ = step
    before = {k: v.clone() for k, v in models.task.named_buffers()}
    with frozen(models.task, evaluate=True):
        models.task.loss(torch.rand_like(batch.x).requires_grad_(), batch.mask, batch.ids).backward()
    assert all(torch.equal(before[k], v) for k, v in models.task.named_buffers()) and models.task.training
    assert all(p.requires_grad and p.grad is None for p in models.task.parameters())


def test_one_backward_pass_serves_all_players(step):
    "The gradients are those of a loss at a time, each by its own backward pass before anything else is computed."
    models, batch, z = step
    for module in models.task.modules():
        if isinstance(module, torch.nn.Dropout): module.p = 0.0
    c = 1 - batch.domain
    twin = copy.deepcopy(models)
    losses, _ = gan_step(models, batch, batch, z, c)
    losses["total"].backward()
    fake = twin.generator(batch.x, z, c, batch.mask)
    with frozen(twin.discriminator): loss = -twin.discriminator(fake, c, batch.mask).mean()
    with frozen(twin.task, evaluate=True): loss = loss + twin.task.loss(fake, batch.mask, batch.ids)
    loss.backward()
    for (name, p), q in zip(models.generator.named_parameters(), twin.generator.parameters()):
        assert (p.grad - q.grad).norm() <= 1e-3 * q.grad.norm() + 1e-5, name


def test_target_class_policies():
    domain = torch.tensor([0, 1] * 200)
    draw = torch.Generator().manual_seed(0)
    assert torch.equal(target_class(domain, "opposite", draw), 1 - domain)
    assert target_class(domain, "handwritten", draw).all()
    assert 0.4 < target_class(domain, "random", draw).float().mean() < 0.6
    with pytest.raises(FormulaGanError, match="opposite, random, handwritten"): target_class(domain, "swap", draw)


def test_anchor_forgives_small_moves():
    x = torch.zeros(1, 1, 16, 32)
    x[..., 4:6, 4:28] = 1
    mask = torch.ones_like(x)
    moved = torch.roll(x, 1, 2)
    assert pooled_l1(x, x, mask) == 0 and pooled_l1(moved, x, mask) < 0.7 * pooled_l1(torch.roll(x, 6, 2), x, mask)


def test_term_rewards_pictures_that_differ_more():
    x = torch.zeros(2, 1, 16, 64)
    x[..., 7:9, 4:60] = 1
    z, other = torch.zeros(2, 8), 2 * torch.ones(2, 8)
    def lifted(columns, by=5):
        y = x.clone()
        y[..., 7:9, :columns] = 0
        y[..., 7 - by:9 - by, 4:columns] = x[..., 7:9, 4:columns]
        return y
    terms = [float(z_term(x, lifted(columns), z, other)) for columns in (4, 8, 16, 28)]
    assert terms[0] == 0 and terms == sorted(terms, reverse=True) and len(set(terms)) == 4 and terms[-1] > -Z_CAP
    assert z_term(x, lifted(28), z, 2 * other) == terms[-1] / 2  # the same for noises twice as far apart is worth half
    assert z_term(x, x.transpose(2, 3).reshape(x.shape), z, other) == -Z_CAP
    assert (stroke_change(lifted(16), torch.cat([lifted(16)[:1], x[:1]])) > 0).tolist() == [False, True]


def test_change_counts_no_cheap_ways():
    "Neither a move of the whole, nor paleness, nor haze; a thicker pen much less than strokes elsewhere."
    x = torch.zeros(1, 1, 32, 64)
    x[..., 15:17, 8:56] = 1
    thick, moved = x.clone(), x.clone()
    thick[..., 14:18, 8:56] = 1
    moved[..., 15:17, 32:56] = 0
    moved[..., 9:11, 32:56] = 1
    assert stroke_change(x, x.roll((1, -2), (2, 3))) == 0 and stroke_change(x, x.roll(8, 2)) > 0.99
    assert stroke_change(x, 0.5 * x) < 1e-6 and stroke_change(x, (x + 0.2).clamp(max=1)) < 1e-6
    assert stroke_change(x, thick) < 0.4 * stroke_change(x, moved)
    assert stroke_change(x, 0 * x).isfinite()


def test_term_is_weighed_and_shares_its_batch(step, monkeypatch):
    "The pictures of N more noises come from the batch of the others: equal noises give equal pictures."
    models, batch, z = step
    c = 1 - batch.domain
    losses, fake = gan_step(models, batch, batch, z, c, 0.0, z_reward=3.0, second=torch.randn(1, 120))
    parts = {k: float(v.detach()) for k, v in losses.items()}
    assert fake.shape == batch.x.shape and parts["z_term"] < 0
    assert parts["total"] == pytest.approx(parts["g_hinge"] + parts["d_hinge"] + 3 * parts["z_term"], rel=1e-5)
    monkeypatch.setattr("formula_gan.losses.z_term", lambda first, second, *_: (first - second).abs().max())
    assert gan_step(models, batch, batch, z, c, 0.0, z_reward=1.0, second=z[:1])[0]["z_term"] < 1e-5


def test_reward_raises_the_difference(step):
    "A few steps of the term alone."
    models, batch, z = step
    other = torch.randn(2, 120)
    c = 1 - batch.domain
    optimizer = torch.optim.Adam(models.generator.parameters(), 1e-3)
    terms = []
    for _ in range(8):
        terms.append(gan_step(models, batch, batch, z, c, 0.0, z_reward=1.0, second=other)[0]["z_term"])
        optimizer.zero_grad(), terms[-1].backward(), optimizer.step()
    assert terms[-1] < 1.2 * terms[0] < 0


def test_average_follows():
    a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    wanted = {k: 0.9 * v + 0.1 * dict(b.named_parameters())[k] for k, v in a.named_parameters()}
    update_average(a, b, 0.9)
    assert all(torch.allclose(v, wanted[k]) for k, v in a.named_parameters())


def test_log_appends(tmp_path):
    "One line at a time to the same file; only a new column writes it anew."
    log = Log(tmp_path / "log.csv")
    path = tmp_path / "log.csv"
    log.add({"step": 1, "a": 1.0})
    file = path.stat().st_ino
    for step in (2, 3): log.add({"step": step, "a": float(step)})
    assert path.stat().st_ino == file
    log.add({"step": 4, "b": 4.0})
    assert path.stat().st_ino != file
    log.add({"step": 5, "a": 5.0})  # a column may also stay away
    assert path.read_text().splitlines() == ["step,a,b", "1,1.0,", "2,2.0,", "3,3.0,", "4,,4.0", "5,5.0,"]


def test_log_is_cut_once(tmp_path):
    "What an interrupted run wrote after its checkpoint goes, and a line that it did not finish."
    path = tmp_path / "log.csv"
    path.write_text("step,a\n10,1\n20,2\n30,3\n4")
    log = Log(path, 20)
    assert path.read_text().endswith("30,3\n4")  # nothing happens before there is something to add
    log.add({"step": 30, "a": 5})
    log.add({"step": 40, "a": 6})
    assert path.read_text().splitlines() == ["step,a", "10,1", "20,2", "30,5", "40,6"]
    Log(path).add({"step": 20, "a": 7})  # without a checkpoint training starts anew
    assert path.read_text().splitlines() == ["step,a", "20,7"]


def test_loss_that_is_not_finite_ends_the_training(tmp_path):
    "It is found before a checkpoint would keep it, and the message names step and setting."
    def broken():
        task = make_reader()
        step = task.step
        task.step = lambda batch, n, draw: {"total": step(batch, n, draw)["total"] * (1 if n < 3 else math.nan)}
        return task
    with pytest.raises(FormulaGanError, match="not finite at step 4: start anew.* lower recognizer_lr"):
        Trainer(broken(), tmp_path, progress=False).run()
    assert not list(tmp_path.iterdir())
    with pytest.raises(FormulaGanError, match="not finite at step 4"):
        Trainer(broken(), tmp_path, progress=False, checkpoint_minutes=0).run()
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 3


def test_checkpoints_of_earlier_versions_are_continued(tmp_path):
    "The file as it has been since the first version."
    task = make_reader()
    Trainer(task, tmp_path / "run", progress=False).run()
    state = {
        "step": 6,
        "minutes": 0.5,
        "best": 1.5,
        "spec": json.dumps(task.spec, sort_keys=True),
        "modules": {k: m.state_dict() for k, m in task.modules.items()},
        "optimizers": {k: o.state_dict() for k, o in task.optimizers.items()},
        "task": {"best": 1.5, "waited": 1, "drops": 1},
    }
    torch.save(state, tmp_path / "checkpoint.pt")
    again = make_reader()
    trainer = Trainer(again, tmp_path, progress=False)
    assert (trainer.step, trainer.minutes, trainer.best, again.state) == (6, 0.5, 1.5, state["task"])
    assert equal(weights(task), weights(again))
    assert Checkpoint(tmp_path / "none.pt", again).load() == {}


def test_cuda_means_the_processs_own_card():
    "Shown with a device that is always there."
    task = SimpleNamespace(device="cuda", modules={"a": torch.nn.Linear(1, 1)})
    place(task, SimpleNamespace(device=torch.device("meta")))
    assert task.device == "meta" and task.modules["a"].weight.device.type == "meta"
    task = SimpleNamespace(device="cpu", modules={"a": torch.nn.Linear(1, 1)})
    place(task, SimpleNamespace(device=torch.device("meta")))
    assert task.device == "cpu" and task.modules["a"].weight.device.type == "cpu"


def test_workers_get_no_models():
    "All that a spawned process is given is pickled."
    import pickle
    alone = SimpleNamespace(num_processes=1, process_index=0)
    for task in (make_reader(), make_gan()):
        loader = batch_loader(task, 0, alone)
        assert b"torch" not in pickle.dumps(loader.dataset) and len(loader) == task.steps
    batches = list(batch_loader(make_reader(), 4, alone))
    assert len(batches) == 2 and torch.equal(batches[0].x, make_reader()[4].x)


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
from test_trainer import *
task = make_reader(replace(PROFILE, recognizer_steps=40))
torch.set_num_threads(1)
class Slow(Trainer):
    def log(self, losses, bar):
        super().log(losses, bar); print("step", self.step, flush=True); time.sleep(0.05)
Slow(task, {folder!r}, progress=False, checkpoint_minutes={minutes}).run()
"""


@pytest.mark.parametrize("number, code, minutes", [(signal.SIGTERM, 143, 9), (signal.SIGKILL, -9, 0.001)])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, number, code, minutes):
    torch.set_num_threads(1)
    make = lambda: make_reader(replace(PROFILE, recognizer_steps=40))
    whole = make()
    Trainer(whole, tmp_path / "whole", progress=False).run()
    script = SCRIPT.format(tests=os.path.dirname(__file__), folder=str(tmp_path / "part"), minutes=minutes)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step") and int(line.split()[1]) >= 10:
            process.send_signal(number)
            break
    process.stdout.read()
    assert process.wait(60) == code
    resumed = make()
    trainer = Trainer(resumed, tmp_path / "part", progress=False)
    assert 1 <= trainer.step < 40 and trainer.run() and equal(weights(whole), weights(resumed))
    steps = [int(line.split(",")[0]) for line in (tmp_path / "part" / "losses.csv").read_text().splitlines()[1:]]
    assert steps == [20, 40]


def test_stops_by_the_clock_with_a_checkpoint(tmp_path):
    task = make_reader(replace(PROFILE, recognizer_steps=10_000))
    trainer = Trainer(task, tmp_path, progress=False)
    assert trainer.run(max_minutes=0.02) is False and 0 < trainer.step < 10_000
    again = Trainer(make_reader(replace(PROFILE, recognizer_steps=10_000)), tmp_path, progress=False)
    assert again.step == trainer.step and again.minutes == pytest.approx(trainer.minutes)


def test_best_weights_are_kept(tmp_path):
    values = iter([3.0, 1.0, 2.0])
    task = make_reader()
    kept = {}
    def metric(task):
        kept[value := next(values)] = task.model.decoder.out.weight.clone()
        return {"metric": value}
    Trainer(task, tmp_path, metric=metric, metric_every=2, progress=False).run()
    from formula_gan.task_model import load_recognizer
    assert torch.equal(load_recognizer(tmp_path / "best.safetensors").decoder.out.weight, kept[1.0])


def test_foreign_and_damaged_checkpoints_are_refused(tmp_path):
    Trainer(make_reader(), tmp_path, progress=False).run()
    with pytest.raises(FormulaGanError, match="another configuration"):
        Trainer(make_reader(seed=1), tmp_path, progress=False)
    data = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(data[:len(data) // 2])
    with pytest.raises(FormulaGanError, match="damaged"): Trainer(make_reader(), tmp_path, progress=False)


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self): return os.mkdir, (str(tmp_path / "boom"),)
    torch.save({"step": Bomb()}, tmp_path / "checkpoint.pt")
    with pytest.raises(FormulaGanError, match="damaged"): Trainer(make_reader(), tmp_path, progress=False)
    assert not (tmp_path / "boom").exists()


def test_two_processes_stay_equal(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
                      "from test_trainer import *\n"
                      "torch.set_num_threads(1)\n"
                      "task = make_reader()\n"
                      f"trainer = Trainer(task, {str(tmp_path / 'run')!r}, progress=False)\n"
                      "trainer.run()\n"
                      "names = dict(task.model.named_parameters())\n"
                      f"path = {str(tmp_path)!r} + f'/rank{{trainer.accelerator.process_index}}.pt'\n"
                      "torch.save({k: names[k].detach() for k in names}, path)\n"
                      "assert trainer.accelerator.num_processes == 2\n"
                      "trainer.rename_last(trainer.folder / 'other.safetensors')\n"
                      "assert (trainer.folder / 'other.safetensors').exists()\n"
                      "assert not (trainer.folder / 'last.safetensors').exists()\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0",
               "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(script)]
    subprocess.run(command, check=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"})
    a, b = (torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1))
    alone = make_reader()
    Trainer(alone, tmp_path / "alone", progress=False).run()
    assert equal(a, b) and any(not torch.equal(a[k], p) for k, p in alone.model.named_parameters())
