"""docs/reference.md: made from the docstrings, whole, and as the names really are."""
import ast
import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import formula_gan as fg

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("reference", ROOT / ".ci" / "reference.py")
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)
PAGE = reference.REFERENCE.read_text(encoding="utf-8")
PARTS = dict(re.findall(r"^### (\w+)\n\n```python\n(.*?)^```$", PAGE, re.M | re.S))


def test_is_in_step():
    assert reference.page() == PAGE, "run python .ci/reference.py"


def test_every_public_name_is_there_and_linked():
    assert sorted(PARTS) == fg.__all__
    rows = re.findall(r"^\| \[(\w+)\]\(#(\w+)\) \| (.+) \|$", PAGE, re.M)
    assert sorted(name for name, _, _ in rows) == fg.__all__ and all(target == name.lower() for name, target, _ in rows)
    headings = [line.lstrip("# ").lower() for line in PAGE.splitlines() if line.startswith("##")]
    assert len(headings) == len(set(headings)), "two headings with one anchor"
    assert "(docs/reference.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def names(function):
    "The arguments of a definition in the page, in order."
    a = function.args
    return [arg.arg for arg in (*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg) if arg]


@pytest.mark.parametrize("name", fg.__all__)
def test_signature_and_docstring(name):
    "What the page shows is Python, has the arguments that the name takes, and says what it is."
    value = getattr(fg, name)
    [node] = ast.parse(PARTS[name]).body
    assert ast.get_docstring(node) == inspect.getdoc(value)
    if isinstance(node, ast.FunctionDef):
        assert names(node) == list(inspect.signature(value).parameters)
        return
    shown = {part.name: part for part in node.body if isinstance(part, ast.FunctionDef)}
    own = {n
           for n, v in vars(value).items()
           if not n.startswith("_") and (inspect.isroutine(v) or isinstance(v, property))}
    assert own == shown.keys() - {"__init__"}
    fields = [part.target.id for part in node.body if isinstance(part, ast.AnnAssign)]
    assert fields == list(getattr(value, "__dataclass_fields__", {}))
    if "__init__" in shown: assert names(shown["__init__"]) == ["self", *inspect.signature(value).parameters]


def test_comments_travel_with_their_arguments():
    assert "    spacing: float = 0.0,  # " in PARTS["render"] and "-> Scores:  # rates in percent" in PARTS["evaluate"]
    assert '`height`) or\n    # "symbol-oracle"' in PARTS["Profile"] and "    sizing: str" in PARTS["Profile"]
