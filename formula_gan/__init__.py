"""Synthetic handwritten formulas: LaTeX in, labelled handwriting out. Names load when first used; importing this loads nothing."""
__version__ = "0.1.0"

_MODULES = {
    "core": "FormulaGanError Profile get_profile",
    "tokenizer": "TokenizeError Vocab normalize tokenize",
    "rendering": "RenderError RenderStyle render render_many sample_style typeset",
    "ink": "Ink InkError rasterize read_crohme read_inkml write_inkml",
    "stitching": "SymbolBank stitch",
    "sagan": "Discriminator Generator load_generator",
    "task_model": "Recognizer RecognizerConfig load_recognizer",
    "synthesis": "Reading Synthesis recognize synthesize",
    "evaluation": "Scores evaluate perplexity",
    "experiments": "run_row",
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
