"""What is refused before a cluster is looked for."""

from __future__ import annotations

import sys

import pytest

from turncredit.cluster.environments import environments_for
from turncredit.config import Config, parse_config
from turncredit.errors import MissingExtra, UserError
from turncredit.rollout import Here
from turncredit.trainer.parallel import World


def config(**cluster: object) -> Config:
    return parse_config({"model": {"path": "somewhere"}, "envs": [{"id": "turncredit/Calculator-v0"}],
                         "cluster": cluster or "ray"})


def test_a_name_alone_is_the_cluster_and_none_is_this_process() -> None:
    assert config().cluster.name == "ray"
    assert isinstance(environments_for(config(name="none")), Here)
    assert isinstance(environments_for(config(name="ray", workers=0)), Here)


@pytest.mark.parametrize(("given", "said"), [
    ("rya", "config: cluster.name is 'rya': Input should be 'none' or 'ray'; did you mean 'ray'?"),
    ({"name": "ray", "adress": "auto"}, "config: unknown key 'cluster.adress'; did you mean 'address'?"),
    ({"name": "ray", "workers": -1}, "config: cluster.workers is -1: Input should be greater than or equal to 0"),
    ({"workers": 4}, "config: cluster: cluster.name is 'none' with workers set: set it to 'ray', or leave them out"),
])
def test_bad_settings_are_refused_in_one_sentence(given: object, said: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_config({"model": {"path": "x"}, "envs": [{"id": "turncredit/Calculator-v0"}], "cluster": given})
    assert str(refused.value) == said


def test_engines_of_a_cluster_are_servers_that_are_started_there() -> None:
    base = {"model": {"path": "x"}, "envs": [{"id": "turncredit/Calculator-v0"}],
            "cluster": {"name": "ray", "engines": 2}}
    assert parse_config({**base, "engine": "vllm-server"}).cluster.engine_gpus == 1
    for engine in ("vllm", {"name": "vllm-server", "servers": ["http://localhost:8000/v1"]}):
        with pytest.raises(UserError, match=r"cluster.engines is 2 with engine.name 'vllm.* set cluster.engines to 0"):
            parse_config({**base, "engine": engine})


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"ray is not installed: pip install 'turncredit\[ray\]'"):
        environments_for(config())


def test_several_trainers_share_a_cluster_that_is_there() -> None:
    with pytest.raises(UserError, match=r"cluster.address is null with 2 processes: .* `ray start --head`"):
        environments_for(config(), World(0, 2))
    with pytest.raises(UserError, match=r"cluster.workers is null with 2 processes: .* how many each of them starts"):
        environments_for(config(name="ray", address="auto"), World(0, 2))
