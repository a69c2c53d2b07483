"""README.md from nbs/index.ipynb: its markdown and its outputs, without the code that makes them.

    python .ci/readme.py            writes README.md
    python .ci/readme.py --run      runs the notebook first, so that its table is that of artifacts/table1.csv
"""
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
INDEX = ROOT / "nbs" / "index.ipynb"


def run_index():
    "nbs/index.ipynb with fresh outputs, as a notebook node."
    from nbclient import NotebookClient
    notebook = nbformat.read(INDEX, 4)
    return NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(INDEX.parent)}}).execute()


def to_readme(notebook):
    "The notebook as markdown seen from the repository's root: links into it lose their `../`."
    text, _ = MarkdownExporter(exclude_input=True).from_notebook_node(notebook)
    return text.strip().replace("](../", "](") + "\n"


if __name__ == "__main__":
    notebook = run_index() if "--run" in sys.argv[1:] else nbformat.read(INDEX, 4)
    if "--run" in sys.argv[1:]:
        from nbdev.clean import clean_nb
        clean_nb(notebook, allowed_cell_metadata_keys=["tags"])
        nbformat.write(notebook, INDEX)
    (ROOT / "README.md").write_text(to_readme(notebook), encoding="utf-8")
