"""A taskset of ours under the real package; skipped where that is not installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import turncredit
from turncredit.envs.adapters.tau2 import STOP
from turncredit.envs.check import check
from turncredit.errors import MissingExtra, UserError
from turncredit.toolcalls import ToolCall

ID = "turncredit/Verifiers-v0"
SUMS = {"taskset": "verifiers_sums", "ood_config": {"low": 500}}


@pytest.fixture(autouse=True)
def tasksets(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("verifiers.v1", reason="the extra verifiers is not installed")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def make(**arguments: Any) -> Any:
    return turncredit.make(ID, **(SUMS | arguments)).unwrapped


def test_a_message_is_scored_by_the_task_s_own_weighted_rewards() -> None:
    env = make()
    prompt, info = env.reset(seed=3)
    assert info["instructions"] == "Write the number alone."
    n = int(prompt.split()[2])
    for answer, reward in ((str(3 * n), 1.0), ("7", 0.5), ("I don't know", 0.0), ("", 0.0)):
        env.reset(seed=3)
        assert env.step(answer)[1:3] == (reward, True)


def test_splits_share_no_task_and_ood_has_settings_of_its_own() -> None:
    prompts = {split: {make(split=split).task_at(i).prompt for i in range(make(split=split).num_tasks)}
               for split in ("train", "test", "ood")}
    assert not prompts["train"] & prompts["test"] and not prompts["ood"] & (prompts["train"] | prompts["test"])
    assert len(prompts["train"] | prompts["test"]) == len(prompts["ood"]) == 60


def test_it_passes_the_contract() -> None:
    findings = check(ID, dict(SUMS), quick=True)
    failed = {f.row for f in findings if f.verdict == "fail"}
    assert "trivial: constant" in failed  # a reward for any number is the taskset's, and the check says so
    assert all(row.startswith("trivial: ") for row in failed), failed


@pytest.mark.parametrize("wrong, said", [
    ({"taskset": "verifiers_sum"}, "not found"), ({"config": {"lo": 3}}, "lo"), ({"most": 0}, "at least 1"),
    ({"config": {"boxed": True}}, "needs a container"),
    ({"taskset": "verifiers_vault", "config": {"elsewhere": True}}, "needs a box for its tool server Desk"),
    ({"ood_config": None, "split": "ood"}, "give ood_config")])
def test_what_cannot_be_played_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make(**wrong)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "verifiers.v1", None)
    with pytest.raises(MissingExtra, match=r"turncredit\[verifiers\]"):
        make()


VAULTS = {"taskset": "verifiers_vault", "ood_config": {"first": 500}}


def call(env: Any, name: str, **arguments: Any) -> Any:
    return env.step(env.tool_format.render(ToolCall(name, arguments)))


def test_tools_with_state_are_played_over_many_turns_and_the_task_s_own_stop_ends_it() -> None:
    env = make(**VAULTS)
    prompt, info = env.reset(seed=3)
    assert info["instructions"] == "The note on the desk holds the code." and prompt.startswith("Open vault")
    assert [tool.name for tool in info["tools"]] == ["desk_open_vault", "desk_read_note"]
    left, right = (call(env, "desk_read_note", half=half)[0].split()[0] for half in ("left", "right"))
    assert call(env, "desk_open_vault", code=1)[:4] == ("shut", 0.0, False, False)
    assert call(env, "desk_open_vault", code=int(left + right))[:4] == ("open", 1.0, True, False)
    assert call(reset := fresh(env), "desk_read_note", half="left")[0] == f"{left} (read 1)"  # servers begin anew
    assert [call(reset, "desk_open_vault", code=n)[1:3] for n in range(3)] == [(0.0, False)] * 2 + [(0.0, True)]
    env.close()


def fresh(env: Any) -> Any:
    env.reset(seed=3)
    return env


def test_what_a_tool_refuses_is_told_and_copies_have_servers_of_their_own() -> None:
    one, other = make(**VAULTS), make(**VAULTS)
    one.reset(seed=1)
    other.reset(seed=1)
    for name, arguments in (("desk_open_vault", {}), ("desk_open_vault", {"code": "x"}), ("open_vault", {"code": 1}),
                            ("desk_read_note", {"half": "middle"})):
        observation, _, over, _, _ = call(one, name, **arguments)
        assert observation.startswith("error: ") and not over, observation
    assert call(one, "desk_read_note", half="left")[0].endswith("(read 2)")
    assert call(other, "desk_read_note", half="left")[0].endswith("(read 1)")
    assert other.step("I give up.")[1:3] == (0.0, True)
    one.close()
    other.close()


def test_a_scripted_user_opens_answers_and_ends_the_conversation() -> None:
    def user(scenario: str, said: Any) -> str:
        """Tells the sum only when asked."""
        if not said:
            return "I have a question."
        return scenario if "which" in said[-1][1] else STOP

    env = make(user=user)
    assert env.reset(seed=3)[0] == "I have a question."
    observation, _, over, _, _ = env.step("Tell me which.")
    assert observation.startswith("What is ") and not over
    n = int(observation.split()[2])
    assert env.step(str(3 * n))[1:3] == (1.0, True)


def test_a_taskset_with_tools_passes_the_contract() -> None:
    findings = check(ID, dict(VAULTS), quick=True)
    assert {f.row: f.detail for f in findings if f.verdict == "fail"} == {}
