"""Register, make and list: other packages' environments beside ours, and a mistyped id is met with the right one."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import pytest

import turncredit
from turncredit.envs import list_envs, load_plugins, make, spec
from turncredit.errors import UserError

PLUGIN = '''
import turncredit
from turncredit.envs import Reply, TextEnv
from turncredit.episode import Task, Verdict


class Yes:
    def verify(self, task, outcome):
        return Verdict.of(outcome.answer == "yes")


class Say(TextEnv):
    instructions = "Say yes."
    verifier = Yes()

    def make_task(self, rng):
        return Task("Well?")

    def respond(self, action):
        return Reply(done=True, answer=action)


def register():
    turncredit.register("plugged/Say-v0", "turncredit_say:Say")
'''


@pytest.fixture(autouse=True)
def own_registry() -> Iterator[None]:
    """Give Gymnasium its registry back afterwards."""
    before = dict(gymnasium.registry)
    load_plugins.cache_clear()
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)
    load_plugins.cache_clear()


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, module: str, source: str, points: str) -> None:
    """Put a package where Python finds it, with the metadata that pip would write."""
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[turncredit.environments]\n{points}\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, module, raising=False)


def test_an_installed_package_s_environments_are_there_without_an_import(tmp_path: Path,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "turncredit_say", PLUGIN, "say = turncredit_say:register")
    assert "plugged/Say-v0" in list_envs()
    env = make("plugged/Say-v0")
    env.reset(seed=0)
    assert env.step("yes")[1] == 1.0


def test_a_plugin_may_be_a_module_that_registers_on_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "turncredit_say", PLUGIN + "\nregister()\n", "say = turncredit_say")
    assert make("plugged/Say-v0").reset(seed=0)[0] == "Well?"


def test_a_plugin_that_fails_is_named_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                  caplog: pytest.LogCaptureFixture) -> None:
    install(tmp_path, monkeypatch, "turncredit_say", PLUGIN, "say = turncredit_say:register")
    install(tmp_path, monkeypatch, "broken_plugin", "raise RuntimeError('no')", "oops = broken_plugin")
    with caplog.at_level(logging.WARNING):
        assert "plugged/Say-v0" in list_envs()
    assert "the plugin oops = broken_plugin could not be loaded: no" in caplog.text


def test_our_environments_are_listed_and_gymnasium_s_are_not() -> None:
    listed = turncredit.list()
    assert {"turncredit/Arithmetic-v0", "turncredit/Calculator-v0", "turncredit/Pantry-v0",
            "turncredit/Questions-v0"} <= set(listed)
    assert "CartPole-v1" not in listed


@pytest.mark.parametrize("id", ["turncredit/Calculater-v0", "turncredit/Calculator", "turncredit/Calculator-v7",
                                "Calculator-v0"])
def test_a_mistyped_id_is_met_with_the_nearest(id: str) -> None:
    for use in (spec, make):
        with pytest.raises(UserError, match=r"is not registered; did you mean 'turncredit/Calculator-v0'\?"):
            use(id)


def test_an_unknown_argument_is_named() -> None:
    with pytest.raises(UserError, match=r"environment turncredit/Calculator-v0: .*colour"):
        make("turncredit/Calculator-v0", colour="red")


def test_an_id_of_another_form_is_refused() -> None:
    with pytest.raises(UserError, match="environment id 'My Env'"):
        turncredit.register("My Env", "x:y")


def test_a_registered_environment_is_made_by_gymnasium_too() -> None:
    assert gymnasium.make("turncredit/Calculator-v0", level=2).unwrapped.level == 2  # type: ignore[attr-defined]
