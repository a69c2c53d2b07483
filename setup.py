"""Packaging: everything it says stands in settings.ini."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
config = ConfigParser()
config.read(here / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    license="MIT",
    license_files=["LICENSE"],
    keywords=settings["keywords"].split(),
    packages=[settings["lib_path"]],
    package_data={settings["lib_path"]: ["data/*", "weights/*"]},
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require={extra: settings[f"{extra}_requirements"].split() for extra in ("notebook", "export", "dev")},
    entry_points={
        "console_scripts": settings["console_scripts"].split(),
        "papermill.engine": settings["papermill_engines"].split(),
    },
)
