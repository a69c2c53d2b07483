"""What all tests share: options and markers, one cache folder a session, the path of the checkout."""
import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: one thread each, before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run tests that take minutes")


def pytest_collection_modifyitems(config, items):
    data, slow = os.environ.get("FORMULA_GAN_DATA"), config.getoption("--slow")
    if data and not Path(data).is_dir():
        remedy = "unset it, or name the folder with the real data"
        raise pytest.UsageError(f"FORMULA_GAN_DATA={data} is not a folder: {remedy}")
    for item in items:
        if not data and item.get_closest_marker("real_data"):
            item.add_marker(pytest.mark.skip(reason="real data: FORMULA_GAN_DATA is not set"))
        if not slow and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


def pytest_terminal_summary(terminalreporter):
    skipped = len(terminalreporter.stats.get("skipped", []))
    terminalreporter.write_line(f"skipped tests: {skipped}")


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory):
    "Stages that tests make go to a folder of their own, not into the checkout."
    os.environ["FORMULA_GAN_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def root():
    "The checkout."
    return ROOT


@pytest.fixture(scope="session")
def clean_environment():
    "An environment for commands: no real data, no cache set, the checkout importable."
    keep = {k: v for k, v in os.environ.items() if not k.startswith("FORMULA_GAN_")}
    return {**keep, "PYTHONPATH": str(ROOT)}
