"""Every parameter that README or a notebook's text names exists in the notebook's parameters cell and reaches the
run."""
import ast
import inspect
import keyword
import re
import shlex
from pathlib import Path

import nbformat
import pytest

from formula_gan.tables import run_row

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = {p.name: nbformat.read(p, 4).cells for p in sorted((ROOT / "nbs").glob("1*.ipynb"))}
TEXTS = [
    (ROOT / "README.md").read_text(encoding="utf-8"),
    *(c.source for cells in EXPERIMENTS.values() for c in cells if c.cell_type == "markdown"),
]


def parameters(name):
    "Name -> default of a notebook's parameters cell."
    cell = next(c for c in EXPERIMENTS[name] if "parameters" in c.metadata.get("tags", []))
    return {line.target.id: ast.literal_eval(line.value) for line in ast.parse(cell.source).body}


def code_after_parameters(name):
    cells = [c for c in EXPERIMENTS[name] if c.cell_type == "code"]
    first = next(i for i, c in enumerate(cells) if "parameters" in c.metadata.get("tags", []))
    return [c.source for c in cells[first + 1:]]


def named():
    "(notebook, parameter) of every papermill command line in the texts."
    for text in TEXTS:
        for line in re.findall(r"papermill (nbs/\S+\.ipynb[^\n`]*)", text):
            words = shlex.split(line.split(" > ")[0].rstrip("`,;."))
            for flag, parameter in zip(words, words[1:]):
                if flag in ("-p", "-r"): yield Path(words[0]).name, parameter


def test_texts_name_parameters():
    assert {("10_ablation.ipynb", p) for p in ("lambda", "row", "profile", "max_minutes")} <= set(named())


@pytest.mark.parametrize("notebook, parameter", sorted(set(named())))
def test_named_parameter_exists(notebook, parameter):
    assert (f"{parameter}_" if keyword.iskeyword(parameter) else parameter) in parameters(notebook)


@pytest.mark.parametrize("notebook", EXPERIMENTS)
def test_every_parameter_is_used(notebook):
    used = {n.id
            for source in code_after_parameters(notebook)
            for n in ast.walk(ast.parse(source))
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    assert set(parameters(notebook)) - used == set()


SIGNATURE = inspect.signature(run_row)


class Reached(Exception):
    "The run was called."


def calls_of_run(monkeypatch, **injected):
    "Run 10_ablation's cells with parameters injected; what the first `run_row` was called with, by argument name."
    from formula_gan import generators, tables
    seen = []
    def record(*positional, **named):
        bound = SIGNATURE.bind(*positional, **named)
        bound.apply_defaults()
        seen.append(bound.arguments)
        raise Reached
    monkeypatch.setattr(tables, "run_row", record)
    monkeypatch.setattr(generators, "batch_sheet", lambda *a, **k: None)  # its images are no part of the call
    space = {**parameters("10_ablation.ipynb"), **injected}
    with pytest.raises(Reached):
        for source in code_after_parameters("10_ablation.ipynb"): exec(source, space)
    return seen[0]


CASES = [
    ("row", "7", "row", "7"),
    ("row", 7, "row", "7"),
    ("lambda_", 2, "lambda_", 2.0),
    ("seed", 5, "seed", 5),
    ("seed", "5", "seed", 5),
    ("data_dir", "somewhere", "data_dir", "somewhere"),
    ("max_minutes", 3, "max_minutes", 3.0),
]


@pytest.mark.parametrize("parameter, value, argument, expected", CASES)
def test_parameter_reaches_the_run(monkeypatch, parameter, value, argument, expected):
    assert str(calls_of_run(monkeypatch, **{parameter: value})[argument]) == str(expected)


def test_profile_and_its_fields_reach_the_run(monkeypatch):
    profile = calls_of_run(monkeypatch, profile="laptop",
                           overrides={"gan_iterations": "500", "l1_anchor": 0})["profile"]
    assert (profile.name, profile.gan_iterations, profile.l1_anchor) == ("laptop", 500, 0.0)


def test_every_row_can_be_asked_for(monkeypatch):
    from formula_gan.ablation_rows import ROWS, choose_row
    for row in ROWS:
        call = calls_of_run(monkeypatch, row=row)
        assert choose_row(call["row"], call["lambda_"]) == ROWS[row]
        assert str(call["row"]) == row
    for weight, row in ((0, "1"), (1, "2"), (2, "3"), (10, "4"), (5, "lambda=5")):
        call = calls_of_run(monkeypatch, lambda_=weight)
        assert choose_row(call["row"], call["lambda_"]).name == row


@pytest.mark.parametrize("injected, word", [
    ({"profile": "huge"}, "huge"),
    ({"row": "99"}, "99"),
    ({"lambda_": "two"}, "two"),
    ({"lambda_": -1}, "-1"),
    ({"seed": 0.5}, "0.5"),
    ({"overrides": {"batch": "many"}}, "many"),
    ({"overrides": {"bach": 4}}, "bach"),
    ({"controls": "L Q"}, "Q"),
    ({"overrides": "batch"}, "overrides"),
    ({"max_minutes": "long"}, "long"),
])
def test_a_wrong_value_is_told_before_the_run(injected, word):
    from formula_gan import FormulaGanError
    space = {**parameters("10_ablation.ipynb"), **injected}
    with pytest.raises(FormulaGanError, match=re.escape(word)):
        exec(code_after_parameters("10_ablation.ipynb")[0], space)
