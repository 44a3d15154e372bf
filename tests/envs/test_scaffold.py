"""A new package installs, registers itself through its entry point, and passes its own tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from turncredit.envs.scaffold import write_scaffold
from turncredit.errors import UserError


def run(folder: Path, path: Path, *command: str) -> str:
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(path), str(root)])}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True,
                          timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_new_package_installs_registers_itself_and_passes_its_tests(tmp_path: Path) -> None:
    folder = write_scaffold("lights-out", tmp_path)
    installed = tmp_path / "installed"
    run(tmp_path, installed, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
        "--target", str(installed), str(folder))
    assert "lights-out/LightsOut-v0" in run(tmp_path, installed, "-m", "turncredit.cli", "envs", "list")
    assert "4 passed" in run(folder, installed, "-m", "pytest", "-q", "-p", "no:cacheprovider")


def test_a_bad_name_and_a_folder_in_the_way_are_refused(tmp_path: Path) -> None:
    for name in ("Lights", "9lives", "a--b", "a/b", ""):
        with pytest.raises(UserError, match="lower-case letters"):
            write_scaffold(name, tmp_path)
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="is there already"):
        write_scaffold("mine", tmp_path)
