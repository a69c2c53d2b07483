"""`-p lambda 2` as its user types it: the translator and engine that papermill finds through its entry point."""
import json
import subprocess
import sys

import nbformat
import pytest

PARAMETERS = 'row: str = ""  # a row\nlambda_: float = None  # weight of the task loss'


def write_notebook(path, *sources):
    first = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    kernel = {"name": "python3", "language": "python", "display_name": "python3"}
    nbformat.write(nbformat.v4.new_notebook(cells=[first, *map(nbformat.v4.new_code_cell, sources)],
                                            metadata={"kernelspec": kernel}), path)


def outputs(path):
    cells = nbformat.read(path, 4).cells
    return ["".join(o.get("text", "") for o in c.get("outputs", [])) for c in cells]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("papermill")
    write_notebook(path / "nb.ipynb", 'print(f"row {row!r} lambda {lambda_!r}")')
    return path


@pytest.fixture(scope="module")
def papermill(folder, clean_environment):
    def run(*words, **options):
        return subprocess.run([sys.executable, "-m", "papermill", *map(str, words)], cwd=folder, env=clean_environment,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, **options)
    return run


def test_lambda_as_typed(papermill, folder):
    done = papermill("nb.ipynb", "out.ipynb", "-p", "lambda", "2")
    assert done.returncode == 0, done.stderr
    assert outputs(folder / "out.ipynb")[-1] == "row '' lambda 2\n"
    assert "unknown parameter" not in done.stderr


def test_to_standard_output(papermill):
    done = papermill("nb.ipynb", "-p", "lambda", "0.5", "-p", "row", "7")
    assert done.returncode == 0, done.stderr
    notebook = nbformat.reads(done.stdout, 4)
    assert notebook.cells[-1].outputs[0].text == "row 7 lambda 0.5\n"
    assert notebook.metadata.papermill.parameters == {"lambda": 0.5, "row": 7}


def test_parameter_file_and_output_path(papermill, folder):
    (folder / "p.yaml").write_text('lambda: 10\nrow: "5"\n')
    (folder / "runs").mkdir()
    done = papermill("nb.ipynb", "runs/lambda{lambda}.ipynb", "-f", "p.yaml")
    assert done.returncode == 0, done.stderr
    assert outputs(folder / "runs" / "lambda10.ipynb")[-1] == "row '5' lambda 10\n"


def test_both_spellings(papermill, folder):
    done = papermill("nb.ipynb", "python.ipynb", "-p", "lambda_", "3", "-y", "{row: x}")
    assert done.returncode == 0 and "unknown parameter" not in done.stderr, done.stderr
    assert outputs(folder / "python.ipynb")[-1] == "row 'x' lambda 3\n"


def test_help_notebook(papermill):
    shown = papermill("nb.ipynb", "--help-notebook").stdout
    assert "lambda_: float (default None)" in shown and "weight of the task loss" in shown
    assert "lambda: float" in shown


def test_mistake_of_the_user_is_one_line(papermill, folder):
    write_notebook(folder / "bad.ipynb", "from formula_gan.core import get_profile\nget_profile('huge')",
                   "print('not reached')")
    done = papermill("bad.ipynb", "bad_out.ipynb", "-p", "lambda", "2", "--no-progress-bar", "--log-level", "ERROR")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("Error: no profile 'huge'")
    assert "in get_profile" not in done.stderr  # no traceback of it; a kernel that is shut down may log its own
    assert "Exception encountered" not in done.stderr
    executed = nbformat.read(folder / "bad_out.ipynb", 4)
    assert executed.cells[-2].outputs[0].ename == "FormulaGanError" and not executed.cells[-1].outputs


def test_misspelt_parameter_names_the_right_one(papermill, folder):
    write_notebook(folder / "own.ipynb", "import formula_gan")
    done = papermill("own.ipynb", "own_out.ipynb", "-p", "lamda", "2")
    assert done.returncode == 2
    assert "no parameter 'lamda': did you mean 'lambda'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_progress_bars_are_left_out(papermill, folder):
    write_notebook(folder / "bar.ipynb",
                   "import sys, tqdm\nfor _ in tqdm.tqdm(range(3)): pass\nprint('kept', file=sys.stderr)",
                   "print('done')")
    done = papermill("bar.ipynb", "bar_out.ipynb")
    cells = nbformat.read(folder / "bar_out.ipynb", 4).cells
    assert done.returncode == 0
    assert "it/s" not in json.dumps(cells)
    assert outputs(folder / "bar_out.ipynb")[-1] == "done\n"


def test_other_errors_keep_their_stack_trace(papermill, folder):
    write_notebook(folder / "broken.ipynb", "1 / 0")
    done = papermill("broken.ipynb", "broken_out.ipynb")
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr and "Traceback" in done.stderr


def test_papermill_starts_without_torch(clean_environment, tmp_path):
    code = ("import papermill, sys; from papermill.engines import papermill_engines as e;"
            "print('torch' in sys.modules, e.get_engine() is e.get_engine('formula_gan'))")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=clean_environment, capture_output=True,
                          text=True)
    assert done.stdout.split() == ["False", "True"], done.stderr
