"""What is trained: the GAN's task with its reward and average, the recogniser's with recipes, curriculum and
plateau."""
import dataclasses
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from formula_gan import trainer
from formula_gan.core import get_profile
from formula_gan.data import HANDWRITTEN, PRINTED, ImageSet, collate
from formula_gan.sagan import load_generator
from formula_gan.task_model import RecognizerConfig
from formula_gan.tasks import RECIPES, GanTask, Recipe, RecognizerTask, gan_settings, large_recognizer
from formula_gan.tokenizer import PAD, Vocab
from formula_gan.trainer import Trainer, gan_step, reconstruction_step, stroke_change, target_class
from test_trainer import PROFILE, VOCAB, drawn, equal, make_gan, weights


# the GAN

@pytest.mark.slow
def test_reward_makes_a_gan_heed_z(tmp_path, capsys):
    "Two demo GANs without a task model: 120 steps of copying, 100 against the discriminator."
    from itertools import combinations
    from formula_gan.data import pad_margin
    from formula_gan.stages import image_sets, make_run
    profile = get_profile("demo", printed_formulas=200, synthetic_images=64, workers=1, batch=4, warmup_iterations=120,
                          gan_iterations=100, lambda_=0)
    sets = image_sets(make_run(profile, progress=False)).product
    prints, ink = (sets[name].subset(np.flatnonzero(sets[name].shapes[:, 1] < 80))
                   for name in ("formulas_print", "train_ink"))
    vocab = Vocab.from_tokens([t.split() for t in prints.tokens + ink.tokens])
    noises = torch.randn(4, 120, generator=torch.Generator().manual_seed(0))
    batch = collate([pad_margin(prints[n], profile) for n in range(16)], [[1, 2]] * 16)

    @torch.no_grad()
    def change(z_reward):  # share of the ink that lies elsewhere with another noise
        task = GanTask(replace(profile, z_reward=z_reward), [prints], [ink], vocab, target="handwritten")
        folder = tmp_path / str(z_reward)
        with torch.enable_grad(): Trainer(task, folder, progress=False).run()
        generator = load_generator(folder / "last.safetensors")
        pictures = [generator(batch.x, z.expand(16, -1), torch.full((16,), HANDWRITTEN), batch.mask) for z in noises]
        return float(torch.stack([stroke_change(a, b) for a, b in combinations(pictures, 2)]).mean())
    off, on = change(0.0), change(5.0)
    with capsys.disabled():
        print(f"\nink elsewhere with another noise: {100 * off:.1f} % without, {100 * on:.1f} % with the reward")
    assert on > 2 * off


class Before(GanTask):
    "The step as it was before there was a reward."
    def step(self, batches, step, draw):
        source, target = (b.to(self.device, torch.channels_last) for b in batches)
        warm = step < self.profile.warmup_iterations
        rate = self.profile.warmup_lr if warm else self.profile.generator_lr
        self.optimizers["generator"].param_groups[0]["lr"] = rate
        z = torch.randn(len(source.x), self.models.generator.z_dim, generator=draw)
        c = target_class(source.domain, self.target, draw)
        if warm: return reconstruction_step(self.models, source, target, z, c, self.profile.lambda_)[0]
        return gan_step(self.models, source, target, z, c, self.profile.lambda_, self.profile.l1_anchor,
                        self.profile.anchor_size)[0]


def test_without_reward_all_is_as_before(tmp_path, monkeypatch):
    "Losses and weights to the bit, no second picture, the cache's names."
    def never(*_): raise AssertionError
    monkeypatch.setattr("formula_gan.losses.z_term", never)
    now, before = make_gan(), Before(PROFILE, [drawn(PRINTED)], [drawn(PRINTED), drawn(HANDWRITTEN, 1)], VOCAB)
    for name, task in (("now", now), ("before", before)):
        Trainer(task, tmp_path / name, log_every=1, progress=False).run()
    assert equal(weights(now), weights(before))
    losses = [[line.split(",") for line in (tmp_path / name / "losses.csv").read_text().splitlines()]
              for name in ("now", "before")]
    assert [row[:1] + row[2:] for row in losses[0]] == [row[:1] + row[2:] for row in losses[1]]
    assert "z_term" not in losses[0][0]
    on = replace(PROFILE, z_reward=2.0)
    assert "z_reward" not in gan_settings(PROFILE) and gan_settings(on) == gan_settings(PROFILE) | {"z_reward": 2.0}


def test_gan_trains_and_leaves_its_files(tmp_path):
    task = make_gan()
    before = weights(task)
    assert Trainer(task, tmp_path, sheet_every=3, progress=False).run()
    after = weights(task)
    for module in ("generator", "discriminator", "task", "average"):
        assert any(not torch.equal(before[k], after[k])
                   for k in after
                   if k.startswith(module + ".") and after[k].is_floating_point())
    assert {"checkpoint.pt", "last.safetensors", "losses.csv", "sheets"} <= set(os.listdir(tmp_path))
    assert len(os.listdir(tmp_path / "sheets")) == 2


def test_exported_generators_statistics_are_measured_anew(tmp_path):
    "They depend on its weights and the sources alone; the trainer's own average stays as it was."
    task = make_gan()
    before = weights(task)
    task.export(tmp_path / "a.safetensors")
    assert equal(before, weights(task))
    for name, buffer in task.modules["average"].named_buffers():
        if "running" in name: buffer.fill_(7)
    task.export(tmp_path / "b.safetensors")
    a, b = (load_generator(tmp_path / f"{name}.safetensors").state_dict() for name in ("a", "b"))
    assert equal(a, b) and not torch.equal(a["norm.running_mean"], before["average.norm.running_mean"])


@pytest.mark.parametrize("z_reward", [0.0, 2.0])
def test_resumed_gan_equals_uninterrupted(tmp_path, z_reward):
    make = lambda: make_gan(replace(PROFILE, z_reward=z_reward))
    whole, part = make(), make()
    Trainer(whole, tmp_path / "whole", progress=False).run()
    part.steps = 3  # in the middle: after the warm-up
    Trainer(part, tmp_path / "part", progress=False).run()
    resumed = make()
    again = Trainer(resumed, tmp_path / "part", progress=False)
    assert again.step == 3 and again.run() and equal(weights(whole), weights(resumed))
    assert ("z_term" in (tmp_path / "whole" / "losses.csv").read_text()) == bool(z_reward)


# the recogniser

TABLE2 = get_profile("demo", synthetic_images=24, printed_formulas=24, gan_iterations=1, warmup_iterations=1, updates=2,
                     recognizer_batch=4, workers=1)
CONFIG = RecognizerConfig(layers=1, growth=4, stem_channels=8, stride=8, hidden=16, embedding=16, attention=16)


def reader(recipe=None, steps=40):
    images = ImageSet([np.ones((8, 20)), np.ones((20, 6))], ["-", "1"], PRINTED)
    return RecognizerTask(TABLE2, [images], Vocab.from_tokens([["-", "1"]]), config=CONFIG, steps=steps, recipe=recipe)


def test_recipes_are_the_papers_and_the_fields():
    paper, modern = reader(RECIPES["paper"]), reader(RECIPES["modern"])
    [group] = paper.optimizers["recognizer"].param_groups
    assert isinstance(paper.optimizers["recognizer"], torch.optim.SGD)
    assert (group["lr"], group["momentum"], paper.streams[0].batch) == (1e-4, 0.9, 6)
    assert modern.streams[0].ranges.scale == (0.7, 1.4) and modern.streams[0].batch == 8
    assert [modern.factor(step) for step in (0, 1, 39)] == [0.5, 1.0, pytest.approx(0.0017, rel=0.1)]
    assert "recipe" not in reader().spec and reader().streams[0].ranges.scale == (1, 1)  # Table 1 as it was


def test_curriculum_shows_short_formulas_first():
    vocab = Vocab.from_tokens([["x"]])
    lengths = [1, 3, 9] * 4
    images = ImageSet([np.ones((8, 4 * n)) for n in lengths], [" ".join("x" * n) for n in lengths], PRINTED)
    recipe = dataclasses.replace(RECIPES["modern"], batch=4, curriculum=((0.2, 1), (0.5, 3), (0.7, 0)))
    one = RecognizerTask(TABLE2, [images, images], vocab, config=CONFIG, steps=10, recipe=recipe)
    longest = [max(len(t.split()) for t in one[step].tokens) for step in range(10)]
    # no formula has 0 tokens: that phase is skipped
    assert longest[:2] == [1, 1] and set(longest[2:5]) <= {1, 3} and max(longest[5:]) == 9
    assert list(RecognizerTask(TABLE2, [images], vocab, config=CONFIG, steps=10).streams) == [0]


def test_plateau_divides_by_ten():
    one = reader(RECIPES["paper"])
    factors = []
    for value in (3, 2, 2.5, 2.1, 1.9, 2, 2, 2, 2, 2, 2, 2):
        one.after_validation(value)
        factors.append(one.factor(0))
    assert factors == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.001, 0.001])


def test_plateau_survives_a_stop(tmp_path):
    def train(folder, stop=5):
        one = reader(RECIPES["paper"], steps=5)
        metric = lambda task: {"metric": 1.0, "exprate": 0.0}
        trainer = Trainer(one, tmp_path / folder, metric=metric, metric_every=1, progress=False)
        one.steps = stop
        trainer.run()
        return one
    whole = train("whole")
    train("part", 3)
    resumed = train("part")
    assert whole.state == resumed.state and whole.state["drops"] == 2
    assert all(torch.equal(a, b)
               for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values()))


def test_shapes_by_profile():
    for name in ("gpu", "paper"):
        assert (large_recognizer(get_profile(name)).layers, large_recognizer(get_profile(name)).growth) == (16, 24)
    assert all(large_recognizer(get_profile(name)).multi_scale for name in ("demo", "laptop", "gpu", "paper"))


def test_papers_recipe_minimises_the_sum():
    "Its gradient is the mean's times the number of tokens; the log shows the loss per token either way."
    gradients = {}
    for sum_loss in (False, True):
        one = reader(replace(RECIPES["paper"], sum_loss=sum_loss))
        losses = one.step(one[0], 0, torch.Generator())
        losses.get("objective", losses["total"]).backward()
        gradients[sum_loss] = one.model.decoder.out.weight.grad, losses["total"].detach()
    tokens = int((one[0].ids[:, 1:] != PAD).sum())
    assert tokens == 12 and torch.allclose(gradients[True][0], tokens * gradients[False][0], rtol=1e-4, atol=1e-7)
    assert torch.equal(gradients[True][1], gradients[False][1])


def test_sum_reaches_optimiser_and_mean_the_log(tmp_path):
    logs = {}
    for sum_loss in (False, True):
        one = reader(replace(RECIPES["paper"], sum_loss=sum_loss), steps=2)
        before = one.model.decoder.out.weight.detach().clone()
        Trainer(one, tmp_path / str(sum_loss), log_every=1, progress=False).run()
        moved = float((one.model.decoder.out.weight.detach() - before).norm())
        logs[sum_loss] = moved, (tmp_path / str(sum_loss) / "losses.csv").read_text().splitlines()[:2]
    assert logs[True][0] > 5 * logs[False][0]
    columns, first = zip(*(lines for _, lines in logs.values()))
    assert columns == ("step,minutes,total",) * 2 and first[0].split(",")[2] == first[1].split(",")[2]


def test_recipes_that_sum_nothing_keep_their_names():
    "Stages and checkpoints of recipes from before there was a choice."
    assert RECIPES["paper"].sum_loss and not RECIPES["modern"].sum_loss and not Recipe("x").sum_loss
    assert set(dataclasses.asdict(RECIPES["modern"])) - set(RECIPES["modern"].facts()) == {"sum_loss"}
    assert reader(RECIPES["paper"]).spec["recipe"]["sum_loss"]
    assert "sum_loss" not in reader(RECIPES["modern"]).spec["recipe"]


# a GAN of figures, judged by the symbol

@pytest.fixture(scope="module")
def figures():
    from formula_gan.figure_sets import FigureSet, ink_figure, print_figure
    from formula_gan.rendering import typeset
    from formula_gan.demo_hands import demo_inks
    formulas = ["a + b", "x ^ { 2 }", "1 - x", "b", "2 + 2", "a"]
    prints = FigureSet([print_figure(f, typeset(f)) for f in formulas])
    return prints, FigureSet([ink_figure(ink) for ink in demo_inks(formulas, writers=2)])


def test_guided_curriculum_shows_short_formulas_first(figures):
    from formula_gan.guided import GuidedRecipe, GuidedTask, guided_config
    vocab = Vocab.from_tokens([t.split() for t in figures[1].tokens])
    def longest(recipe):
        task = GuidedTask(PROFILE, [figures[1]], vocab, 40, recipe=recipe, config=guided_config(get_profile("demo")))
        return [max(len(t.split()) for t in task[step].tokens) for step in range(40)]
    by_phase = longest(GuidedRecipe(curriculum=((0.2, 1), (0.5, 3))))
    assert set(by_phase[:8]) == {1} and set(by_phase[8:20]) == {1, 3} and set(by_phase[20:]) == {1, 3, 5}
    assert "curriculum" not in GuidedRecipe().facts()
    assert GuidedRecipe(curriculum=((0.2, 1),)).facts()["curriculum"] == ((0.2, 1),)


@pytest.fixture(scope="module")
def judge_file(tmp_path_factory):
    from formula_gan.task_model import Recognizer, save_recognizer
    path = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    config = RecognizerConfig(wide=True, symbol_map=True, stride=8, layers=2, growth=8, stem_channels=8, hidden=16,
                              embedding=16)
    save_recognizer(Recognizer(Vocab(["a", "b", "+", "x"]), config), path, symbol_height=8)
    return str(path)


def judged(figures, judge_file, **fields):
    profile = replace(PROFILE, symbol_height=12, fold=2, cells=True, loose=0.6, judge=judge_file, **fields)
    vocab = Vocab.from_tokens([t.split() for t in figures[0].tokens])
    return GanTask(profile, list(figures[:1]), list(figures), vocab)


def test_a_gan_of_figures_trains_and_resumes(tmp_path, figures, judge_file):
    whole = judged(figures, judge_file, warmup_iterations=2, gan_iterations=4)
    assert Trainer(whole, tmp_path / "whole", log_every=1, progress=False).run()
    lines = (tmp_path / "whole" / "losses.csv").read_text().splitlines()
    assert "symbols" in lines[0] and "task_fake" not in lines[0] and len(lines) == 7
    first = judged(figures, judge_file, warmup_iterations=2, gan_iterations=1)
    Trainer(first, tmp_path / "parts", progress=False).run()
    rest = judged(figures, judge_file, warmup_iterations=2, gan_iterations=4)
    assert Trainer(rest, tmp_path / "parts", progress=False).run()
    for name, module in whole.modules.items():
        for key, tensor in module.state_dict().items():
            assert torch.equal(tensor, rest.modules[name].state_dict()[key]), (name, key)
    assert load_generator(tmp_path / "whole" / "last.safetensors").fold == 2


def test_the_judge_is_frozen_and_asked_only_with_a_lambda(figures, judge_file):
    task = judged(figures, judge_file, warmup_iterations=0)
    before = {k: v.clone() for k, v in task.judge.state_dict().items()}
    trainer.update(task, task.stream[0], 0, trainer_accelerator())
    assert not task.judge.model.training and all(torch.equal(v, before[k]) for k, v in task.judge.state_dict().items())
    assert task.judge.scale == 8 / 12 and "judge" not in task.modules and task.models.task is None
    assert judged(figures, judge_file, lambda_=0.0).judge is None


def test_the_discriminator_sees_through_the_frozen_judge(figures, judge_file, tmp_path):
    task = judged(figures, judge_file, warmup_iterations=0, gan_iterations=2, seen=True)
    player = task.models.discriminator
    source = task.source[0]
    own = player.verdicts(source.x, source.domain, source.mask)[:2]
    seen = player.verdicts(source.x, source.domain, source.mask)[2:]
    assert len(seen) == 2
    assert all(logits.isfinite().all() and logits.shape == weights.shape for logits, weights in own + seen)
    wide = torch.nn.functional.pad(source.x, (0, 40, 0, 24)), torch.nn.functional.pad(source.mask, (0, 40, 0, 24))
    player.eval()
    plain = player.verdicts(source.x, source.domain, source.mask)[2:]
    for (logits, weights), (padded, more) in zip(plain, player.verdicts(wide[0], source.domain, wide[1])[2:]):
        h, w = logits.shape[2:]
        inner = weights > 0
        torch.testing.assert_close(padded[..., :h, :w][inner], logits[inner], atol=1e-3, rtol=1e-3)
        assert not more[..., h:, :].any() and not more[..., w:].any()
    before = {k: v.clone() for k, v in task.judge.state_dict().items()}
    assert Trainer(task, tmp_path, progress=False).run()
    assert all(torch.equal(v, before[k]) for k, v in task.judge.state_dict().items())
    assert not any("encoder" in name for name in player.state_dict())
    assert any(name.startswith("seen.") for name in player.state_dict())
    assert not any(p.requires_grad for p in task.judge.parameters())


def trainer_accelerator():
    from accelerate import Accelerator
    return Accelerator(cpu=True)


@pytest.mark.parametrize("field, value", [
    ("fold", 2),
    ("reach", 12),
    ("cells", True),
    ("seen", True),
    ("judge", "ink"),
    ("loose", 0.6),
])
def test_what_is_not_the_papers_is_off_in_paper_and_named_where_on(field, value):
    paper = get_profile("paper")
    settings = gan_settings(paper)
    assert field not in settings
    on = gan_settings(replace(paper, **{field: value}))
    if field == "judge": del settings["task"]  # in whose place it stands
    assert on == settings | {field: value}


@pytest.mark.parametrize("lambda_, by_symbol, changes", [(1.0, False, True), (0.0, False, False), (1.0, True, False)])
def test_the_task_models_shape_is_part_of_what_a_gan_is(monkeypatch, figures, judge_file, lambda_, by_symbol, changes):
    "Of the folder of its training and of its checkpoint, where there is a task model."
    from formula_gan import recipes
    from formula_gan.generators import generator
    from formula_gan.stages import make_run
    from formula_gan.ablation_rows import ROWS

    def identities():
        task = judged(figures, judge_file) if by_symbol else make_gan(replace(PROFILE, lambda_=lambda_))
        [training] = generator(make_run(task.profile), replace(ROWS["7"], lambda_=lambda_)).inputs
        return training.folder.name, task.spec
    before = identities()
    assert identities() == before
    monkeypatch.setattr(recipes, "THIN", recipes.THIN | {"growth": 16})
    after = identities()
    assert [one != other for one, other in zip(before, after)] == [changes, changes]


def test_a_judge_without_a_symbol_map_is_refused(figures, tmp_path):
    from formula_gan.core import FormulaGanError
    from formula_gan.task_model import Recognizer, save_recognizer
    path = tmp_path / "blind.safetensors"
    config = RecognizerConfig(layers=1, growth=4, stem_channels=8, stride=8, hidden=16, embedding=16)
    save_recognizer(Recognizer(Vocab(["a"]), config), path, symbol_height=8)
    with pytest.raises(FormulaGanError, match="symbol map"): judged(figures, str(path))
