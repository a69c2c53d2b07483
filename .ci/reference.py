"""docs/reference.md: the names of `import formula_gan as fg`, each as the source defines it, with its arguments' comments and its docstring.

    python .ci/reference.py            writes docs/reference.md
"""
import ast
import inspect
import re
from pathlib import Path

import formula_gan as fg

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "reference.md"
HEAD = """# Reference

What `import formula_gan as fg` offers, module by module; a name loads its module when it is first used. A mistake that the user can mend raises a `FormulaGanError`,
or one of its kinds, whose message is one line. This page is made from the modules by `python .ci/reference.py`.
"""


def without_body(node, lines):
    "The lines of a function down to its docstring; three dots where it has none."
    start = min(part.lineno for part in (node, *node.decorator_list)) - 1
    first = node.body[0]
    if ast.get_docstring(node): return lines[start:first.end_lineno]
    if first.lineno == node.lineno: return [*lines[start:node.lineno - 1], lines[node.lineno - 1][:first.col_offset] + "..."]
    return [*lines[start:first.lineno - 1], " " * first.col_offset + "..."]


def field(node, lines):
    "The lines of a data class's field, with the comments above it."
    start = node.lineno - 1
    while lines[start - 1].lstrip().startswith("#"): start -= 1
    return lines[start:node.end_lineno]


def of_class(node, lines):
    "A class with its fields and what it makes public: head and docstring, as `without_body` has them."
    shown = without_body(node, lines)
    for part in node.body:
        if isinstance(part, ast.AnnAssign): shown += field(part, lines)
        if isinstance(part, ast.FunctionDef) and (part.name == "__init__" or not part.name.startswith("_")):
            shown += ["", *without_body(part, lines)]
    return shown


def definition(name):
    "A public name as Python."
    source = inspect.getsource(getattr(fg, name))
    node, lines = ast.parse(source).body[0], source.splitlines()
    return "\n".join((of_class if isinstance(node, ast.ClassDef) else without_body)(node, lines))


def summary(name):
    "The first sentence of a docstring, as a table's cell."
    text = re.split(r"(?<=\.)\s+(?=[A-Z`])", inspect.getdoc(getattr(fg, name)))[0].replace("\n", " ").replace("|", r"\|")
    parts = text.split("`")
    return "`".join(part if n % 2 else re.sub(r"([\\*_$<\[])", r"\\\1", part) for n, part in enumerate(parts))


def page():
    "The reference as markdown."
    modules = {module: names.split() for module, names in fg._MODULES.items()}
    rows = [f"| [{name}](#{name.lower()}) | {summary(name)} |" for names in modules.values() for name in names]
    text = "\n".join([HEAD, "| name | what |", "|---|---|", *rows, ""])
    for module, names in modules.items():
        text += f"\n## formula_gan.{module}\n"
        for name in names: text += f"\n### {name}\n\n```python\n{definition(name)}\n```\n"
    return text


if __name__ == "__main__":
    REFERENCE.parent.mkdir(exist_ok=True)
    REFERENCE.write_text(page(), encoding="utf-8")
