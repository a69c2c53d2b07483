"""Synthetic handwritten formulas: LaTeX in, labelled handwriting out.

Names load when first used; importing this loads nothing.
"""
__version__ = "0.1.0"

import os as _os

# threads that spin on a busy machine wait for each other for minutes; heeded if torch is not loaded yet
_os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_MODULES = {
    "core": "FormulaGanError Profile get_profile",
    "tokenizer": "TokenizeError Vocab normalize tokenize",
    "mathjax": "RenderError",
    "rendering": "RenderStyle render render_many sample_style typeset",
    "ink": "Ink InkError rasterize read_inkml write_inkml",
    "stitching": "SymbolBank stitch",
    "ink_files": "read_bank read_crohme",
    "sagan": "Discriminator Generator load_generator",
    "task_model": "Recognizer RecognizerConfig load_recognizer",
    "reading": "Reading recognize recognize_many",
    "pictures": "Look",
    "writing": "write write_svg",
    "synthesis": "Synthesis synthesize",
    "evaluation": "Scores evaluate perplexity",
    "tables": "run_recognition_row run_row",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}
__all__ = sorted(_HOME)


def __getattr__(name):
    from importlib import import_module
    if name not in _HOME: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return value


def __dir__():
    return sorted({*globals(), *__all__})
