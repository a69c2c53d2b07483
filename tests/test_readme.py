"""README.md: generated from nbs/index.ipynb, its commands are real, its links lead somewhere, its main job does what it
says."""
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", README, re.M | re.S)
spec = importlib.util.spec_from_file_location("readme", ROOT / ".ci" / "readme.py")
readme = importlib.util.module_from_spec(spec)
spec.loader.exec_module(readme)


def test_is_generated_from_index():
    generated = readme.to_readme(nbformat.read(readme.INDEX, 4))
    assert generated == README, "change nbs/index.ipynb, then run python .ci/readme.py --run"


def test_its_table_is_that_of_the_artifacts(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert readme.to_readme(readme.run_index()) == README, "the table has changed: run python .ci/readme.py --run"


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert len(links) > 10
    anchors = {"#" + title.lower().replace(" ", "-") for title in re.findall(r"^## (.+)$", README, re.M)}
    local = [link for link in links if not link.startswith("http") and link not in anchors]
    assert [link for link in local if not (ROOT / link).exists()] == []


def test_lists_every_notebook():
    for path in (ROOT / "nbs").glob("[0-9]*.ipynb"): assert f"(nbs/{path.name})" in README, path.name


def test_both_commands_are_complete():
    "Environment, installation under the constraints, then the job."
    for block in BLOCKS[:2]:
        lines = block.splitlines()
        assert lines[:2] == ["python3 -m venv .venv", ". .venv/bin/activate"]
        assert re.fullmatch(r'pip install -c constraints.txt -e "\.\[(notebook|dev)\]"', lines[2])
        assert len(lines) == 4
        assert subprocess.run(["bash", "-n"], input=block, text=True).returncode == 0
    assert BLOCKS[0].splitlines()[3] == "papermill nbs/10_ablation.ipynb lambda2.ipynb -p lambda 2"
    assert BLOCKS[1].splitlines()[3] == "pytest -n auto --dist loadfile"


def test_extras_exist():
    from configparser import ConfigParser
    settings = ConfigParser()
    settings.read(ROOT / "settings.ini")
    extras = {key.removesuffix("_requirements") for key in settings["DEFAULT"] if key.endswith("_requirements")}
    assert set(re.findall(r"\.\[(\w+)\]", README)) <= extras


def test_further_commands_parse():
    from formula_gan.cli import build_parser
    from papermill.cli import papermill
    seen = []
    for line in "".join(BLOCKS).splitlines():
        program, *words = shlex.split(line.split(" > ")[0])
        seen.append(program)
        if program == "formula-gan": build_parser().parse_args(words)
        if program == "papermill":
            papermill.make_context("papermill", list(words))
            assert (ROOT / words[0]).exists()
    assert seen.count("papermill") >= 3 and seen.count("formula-gan") >= 2


def test_ci_runs_the_test_commands_as_they_stand():
    "The lines of .ci/run that take the block out of README take exactly that block."
    script = (ROOT / ".ci" / "run").read_text()
    line = next(line for line in script.splitlines() if line.startswith("sed ") and "README.md" in line)
    extract = line.split(" > ")[0]
    done = subprocess.run(["bash", "-c", extract], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == BLOCKS[1]
    assert 'bash -euo pipefail "$work/commands"' in script


def snapshot(folder):
    "Every file that git would see, by content."
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout.split("\0")
    return {name: (folder / name).read_bytes() for name in names if name and (folder / name).is_file()}


def test_main_job(clean_environment, tmp_path):
    "README's first command, after its installation, in a copy of the checkout: a table row, pictures, nothing changed."
    import shutil
    copy = tmp_path / "formula_gan"
    ignored = shutil.ignore_patterns(".git", ".venv", "cache", "__pycache__", ".pytest_cache", "*.egg-info",
                                     "build", "dist")
    shutil.copytree(ROOT, copy, ignore=ignored)
    subprocess.run(["git", "init", "-q"], cwd=copy, check=True)
    before = snapshot(copy)
    assert "nbs/10_ablation.ipynb" in before
    words = shlex.split(BLOCKS[0].splitlines()[3])
    environment = {**clean_environment, "PYTHONPATH": str(copy)}
    done = subprocess.run([sys.executable, "-m", *words], cwd=copy, env=environment, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert snapshot(copy) == before, "running the main job changes the checkout"
    cells = nbformat.read(copy / words[2], 4).cells
    assert "lambda_ = 2" in next(c.source for c in cells if "injected-parameters" in c.metadata.get("tags", []))
    data = [o.data for c in cells if c.cell_type == "code" for o in c.outputs if "data" in o]
    assert any("image/png" in d for d in data), "no picture"
    from formula_gan.results import read_table
    frame = read_table(copy / "artifacts" / "cache" / "table1.csv")
    row = frame[(frame.row == "3") & frame.skip.eq(True) & (frame.checkpoint == "best")].iloc[0]
    assert row.perplexity > 1 and 0 <= row.exprate <= 100 and row.wer >= 0
    assert {"L", "P"} <= set(frame.row)
    assert any("perplexity" in str(d.get("text/html", "")) for d in data), "no table"
