"""Stages are found again by what determines them, and made by one process."""
import json
import os
import subprocess
import sys

from formula_gan.core import cache_dir
from formula_gan.stage_folders import alone_in, finish_stage, made_once, stage_facts, stage_folder


def test_stages_are_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("FORMULA_GAN_CACHE", str(tmp_path))
    folder = stage_folder("gan", {"b": 1, "a": [2]})
    assert cache_dir() == tmp_path
    assert folder == stage_folder("gan", {"a": [2], "b": 1}) != stage_folder("gan", {"b": 2, "a": [2]})
    assert folder == stage_folder("gan", {"a": (2.0,), "b": 1.0}) != stage_folder("gan", {"b": True, "a": [2]})
    assert stage_facts(folder) is None
    finish_stage(folder, minutes=1.5)
    assert stage_facts(folder) == {"minutes": 1.5}
    assert json.loads((folder / "spec.json").read_text()) == {"a": [2], "b": 1}


ASK = '''
import sys, time
from pathlib import Path
from formula_gan.stage_folders import made_once

def build(folder):
    (folder / "parts").mkdir()
    time.sleep(1.5)
    (folder / "parts").rmdir()
    with open(folder / "builds", "a") as out: out.write("one ")
    return {"made": 1}

print("asking", flush=True)
sys.stdin.readline()
print(made_once(Path(sys.argv[1]), build))
'''


def test_processes_that_ask_at_once_wait_for_the_one_that_builds(tmp_path):
    "Both used to draw into the same folder, and the first to end took away what the second was writing."
    asking = [subprocess.Popen([sys.executable, "-c", ASK, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in asking: assert process.stdout.readline() == "asking\n"
    for process in asking: print(file=process.stdin, flush=True)
    said = [process.communicate(timeout=60) for process in asking]
    assert [out for out, _ in said] == 3 * ["{'made': 1}\n"]
    assert (tmp_path / "builds").read_text() == "one "
    waited = [errors for _, errors in said if errors]
    assert waited == 2 * [f"{tmp_path.name}: another process is making it; waiting\n"]
    assert sorted(os.listdir(tmp_path)) == ["builds", "done.json"]


def test_a_killed_builder_keeps_nobody_waiting(tmp_path):
    (tmp_path / ".lock").touch()
    assert made_once(tmp_path, lambda folder: {"made": 2}) == {"made": 2}


def test_ranks_of_a_training_are_let_in_together(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with alone_in(tmp_path, together=True), alone_in(tmp_path, together=True): pass
