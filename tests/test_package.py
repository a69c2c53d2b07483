"""The library as a wheel: built, installed without -e into an empty environment, used from an empty folder."""
import os
import shutil
import subprocess
import sys
import venv

import pytest

USE = r'''
import sys
import formula_gan as fg
assert fg.__file__.startswith(sys.prefix), fg.__file__
assert "torch" not in sys.modules and "numpy" not in sys.modules
assert fg.tokenize(r"\frac12 x^2") == r"\frac { 1 } { 2 } x ^ { 2 }".split()
image = fg.render(r"\frac{1}{2}")
assert image.ndim == 2 and image.max() > 0.5 and image.min() == 0
inkml = b"""<ink xmlns="http://www.w3.org/2003/InkML"><annotation type="truth">$x$</annotation>
<trace id="0">0 0, 10 10</trace><trace id="1">10 0, 0 10</trace></ink>"""
ink = fg.read_inkml(inkml)
assert len(ink.strokes) == 2 and fg.rasterize(ink, height=32).max() > 0.5
assert "torch" not in sys.modules
print("used")
'''


def run(*words, **options):
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory):
    "Built from the source distribution, so that both are complete."
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    files = "settings.ini setup.py pyproject.toml MANIFEST.in README.md LICENSE constraints.txt"
    for name in files.split(): shutil.copy(root / name, source)
    shutil.copytree(root / "formula_gan", source / "formula_gan",
                    ignore=shutil.ignore_patterns("__pycache__", "_modidx.py"))
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    "An environment whose only own package is the wheel; requirements come from the running one."
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    packages = next((folder / "lib").glob("python*")) / "site-packages"
    (packages / "requirements.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")) + "\n")
    return folder


@pytest.fixture
def empty(installed, tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("FORMULA_GAN_", "PYTHON"))}
    return dict(cwd=tmp_path, env=environment)


def test_wheel_holds_the_library_only(wheel, root):
    import zipfile
    names = zipfile.ZipFile(wheel).namelist()
    modules = {f"formula_gan/{p.name}" for p in (root / "formula_gan").glob("*.py") if p.name != "_modidx.py"}
    assert modules <= set(names)
    assert not [n for n in names if not n.startswith(("formula_gan/", "formula_gan-"))]
    assert any(n.endswith("licenses/LICENSE") for n in names)
    points = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    assert "formula-gan" in points and "[papermill.engine]" in points


def test_used_from_an_empty_folder(installed, empty):
    assert run(installed / "bin" / "python", "-c", USE, **empty) == "used\n"


def test_command_line_installed(installed, empty):
    command = installed / "bin" / "formula-gan"
    assert "render" in run(command, "--help", **empty)
    run(command, "render", "x^2", "--out", "x.png", **empty)
    assert (empty["cwd"] / "x.png").stat().st_size > 100


def test_version_is_that_of_the_settings(root):
    from configparser import ConfigParser
    import formula_gan
    settings = ConfigParser()
    settings.read(root / "settings.ini")
    assert formula_gan.__version__ == settings["DEFAULT"]["version"]


def test_public_names():
    import formula_gan as fg
    for name in fg.__all__: assert getattr(fg, name).__name__ == name
    assert set(fg.__all__) <= set(dir(fg))
    wanted = """tokenize normalize Vocab render read_inkml rasterize load_generator load_recognizer evaluate
                Generator Discriminator Recognizer TokenizeError RenderError InkError Scores
                synthesize recognize""".split()
    assert set(wanted) <= set(fg.__all__)
    with pytest.raises(AttributeError, match="no_such_name"): fg.no_such_name
