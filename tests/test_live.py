"""The guide's live cell, in a kernel without a browser: the pictures follow the fields, mistakes are one line,
ipywidgets may be missing."""
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

GUIDE = Path(__file__).resolve().parents[1] / "nbs" / "20_your_formulas.ipynb"
NEEDED = r"^(import|formula =|generator =|recognizer =|def three|def after_pause|def live|try: panel)"
PARTS = """
field, problem, box, told, shown = panel.children
controls = {control.description: control for control in box.children}
def pictures(): return {part.children[0].value: bytes(part.children[1].value) for part in shown.children}
async def settled(): await asyncio.sleep(0.5)  # the pause, and more; then the pictures are made
"""


@pytest.fixture
def run(clean_environment, monkeypatch, tmp_path):
    """Runs the guide's cells that the live one needs, that one, then others; gives what it and each of the others
    printed."""
    monkeypatch.setenv("PYTHONPATH", clean_environment["PYTHONPATH"])

    def run(*others, first=""):
        code = [cell.source for cell in nbformat.read(GUIDE, 4).cells if cell.cell_type == "code"]
        live = next(n for n, source in enumerate(code) if "live(formula)" in source)
        needed = [source for source in code[:live + 1] if re.search(NEEDED, source, re.M)]
        cells = [nbformat.v4.new_code_cell(source) for source in (first, *needed, *others)]
        kernel = {"name": "python3", "display_name": "python3"}
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
        return ["".join(output.get("text", "") for output in cell.outputs) for cell in cells[len(needed):]]
    return run


def test_pictures_follow_what_is_typed(run):
    pytest.importorskip("ipywidgets")
    printed = run(PARTS, """
before = pictures()
assert list(before) == ["print", "handwriting", "as it is read"]
assert all(png.startswith(b"\\x89PNG") for png in before.values())
assert told.value.startswith("score ") and problem.value == ""
for latex in (r"\\frac{a", r"\\frac{a}{", r"\\frac{a}{b}"): field.value = latex
await settled()""", """
print(told.value, problem.value)
after = pictures()
assert all(after[title] != before[title] for title in before)""")
    assert re.fullmatch(r"score (1\.00|0\.\d\d): <code>\\frac \{ a \} \{ b \}</code> \n", printed[-1])


def test_each_control_changes_the_handwriting(run):
    pytest.importorskip("ipywidgets")
    assert run(PARTS, """
values = {"style": 5, "size": 1.5, "pen": 0.16, "ink": "#c00000", "paper": "squared"}
assert set(values) == set(controls)
for name, value in values.items():
    written = pictures()["handwriting"]
    controls[name].value = value
    await settled()
    assert pictures()["handwriting"] != written and not problem.value, name
for papers in controls["paper"].options: controls["paper"].value = papers[1]
for pens in controls["pen"].options: controls["pen"].value = pens[1]
print("changed")""")[-1] == "changed\n"


def test_a_mistake_is_one_line_and_the_pictures_stay(run):
    pytest.importorskip("ipywidgets")
    mistakes = {
        r"\frac{a}{b": "the formula ends before }, begun, at character 8",
        r"\foo": r"unknown command \foo",
        "": "the formula is empty",
        "<b>x}": "misplaced }, at character 4 of &#x27;&lt;b&gt;x}&#x27;",
    }
    printed = run(PARTS + "before = pictures()", f"""
for latex in {list(mistakes)!r}:
    field.value = latex
    await settled()
    assert pictures() == before
    print(problem.value)
field.value = 'x'
await settled()
print(repr(problem.value))""")[-1].splitlines()
    assert len(printed) == len(mistakes) + 1 and printed[-1] == "''"
    for line, told in zip(printed, mistakes.values()): assert told in line


def test_without_ipywidgets(run):
    "One line that says what to install, and the rest of the guide goes on."
    told, after = run("print('on')", first="import sys; sys.modules['ipywidgets'] = None")
    assert told == "pip install ipywidgets, then start Jupyter again\n"
    assert after == "on\n"


def test_what_is_committed_holds_no_dead_widget():
    "Widgets need the kernel that made them; without it a page shows an error in their place."
    notebook = nbformat.read(GUIDE, 4)
    types = {kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})}
    assert "widgets" not in notebook.metadata, "clear the output of the live cell"
    assert not any("widget" in kind for kind in types), "clear the output of the live cell"
