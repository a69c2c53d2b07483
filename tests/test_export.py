"""ONNX graphs: what onnxruntime makes of them is what torch makes of the models."""
import json
import sys

import numpy as np
import pytest
import torch

from formula_gan import cli, export
from formula_gan.sagan import Generator, save_generator
from formula_gan.task_model import Recognizer, RecognizerConfig, save_recognizer
from formula_gan.tokenizer import END, Vocab

SMALL = dict(layers=1, growth=8, stem_channels=8, hidden=16, embedding=16, attention=8, coverage_channels=4,
             coverage_kernel=3)


@pytest.fixture
def runtime():
    for name in ("onnx", "onnxscript"): pytest.importorskip(name)
    return pytest.importorskip("onnxruntime")


def statistics(model):
    "Weights that are not as at the start, and normalisations that are not the identity."
    for weight in model.parameters(): weight.data += 0.05 * torch.randn(weight.shape)
    for name, buffer in model.named_buffers():
        if "running_" in name: buffer.uniform_(0.5, 1.5)
    return model.eval()


def test_generator(runtime, tmp_path, capsys):
    torch.manual_seed(0)
    model = statistics(Generator(8, skip=True, fold=2, reach=4))
    torch.nn.init.constant_(model.attention.gamma, 0.5)
    save_generator(model, tmp_path / "g.safetensors", profile="laptop", symbol_height=20.0, licence="mine")
    assert cli.main(["export", "--generator", str(tmp_path / "g.safetensors"), "--out", str(tmp_path / "g.onnx")]) == 0
    assert "licence of the weights: mine" in capsys.readouterr().out
    session = runtime.InferenceSession(str(tmp_path / "g.onnx"))
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["symbol_height"]) == 20 and json.loads(told["domains"]) == {"printed": 0, "handwritten": 1}
    image, mask = export.scrawl((2, 70, 45), seed=3)
    z = torch.randn(2, 120)
    c = torch.tensor([1, 0])
    inputs = {"image": image.numpy(), "noise": z.numpy(), "domain": c.numpy(), "mask": mask.numpy()}
    written, = session.run(None, inputs)
    with torch.no_grad(): wanted = model(image, z, c, mask).numpy()
    assert np.ptp(wanted) > 0.01 and np.abs(written - wanted).max() < 1e-4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.onnx", "g.safetensors"]


@pytest.mark.parametrize("shape", [
    dict(wide=True, stride=8),
    pytest.param(dict(stride=16, multi_scale=True), marks=pytest.mark.slow),
], ids=["wide", "multi-scale"])
def test_recognizer(runtime, tmp_path, capsys, shape):
    "Encoder and step read what torch reads, in pictures of other sizes than those of the export."
    torch.manual_seed(1)
    model = statistics(Recognizer(Vocab.crohme(), RecognizerConfig(**SMALL | shape)))
    save_recognizer(model, tmp_path / "r.safetensors", profile="laptop")
    words = ["export", "--recognizer", str(tmp_path / "r.safetensors"), "--out", str(tmp_path / "reader")]
    assert cli.main(words) == 0 and "encoder.onnx" in capsys.readouterr().out
    encoder, step = (runtime.InferenceSession(str(tmp_path / "reader" / f"{name}.onnx"))
                     for name in ("encoder", "step"))
    vocabulary = json.loads(step.get_modelmeta().custom_metadata_map["vocabulary"])
    assert vocabulary == model.vocab.tokens
    image, mask = export.scrawl((3, 50, 81), seed=5)
    ids, chances = export.read_greedily(encoder, step, image.numpy(), mask.numpy(), 20)
    for row, scores, hypothesis in zip(ids, chances, model.decode(image, mask, 1, 20, valid=False)):
        read = [vocabulary[n] for n in row if n > END]
        assert read == hypothesis.tokens and abs(scores[row > 0].mean() - hypothesis.score) < 1e-4
    assert cli.main(words) == 2 and "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("words, message", [
    ("--out g.onnx", "--generator or a --recognizer"),
    ("--generator default --recognizer default --out g.onnx", "either"),
    ("--generator default --out g", "one .onnx file"),
    ("--recognizer default --out r.onnx", "folder"),
])
def test_mistakes(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", *words.split()]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert cli.main(["export", "--generator", "default", "--out", str(tmp_path / "g.onnx")]) == 2
    assert "pip install onnx onnxruntime onnxscript" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_graph_that_differs_is_not_handed_over(runtime, monkeypatch, tmp_path, capsys):
    def differs(model, path): return export.check("the graph", 0.1)
    monkeypatch.setattr(export, "export_generator", differs)
    assert cli.main(["export", "--generator", "default", "--out", str(tmp_path / "g.onnx")]) == 2
    assert "differs from torch" in capsys.readouterr().err and not list(tmp_path.iterdir())
