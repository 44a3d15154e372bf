"""Bad input is refused at the start, in one sentence that names the field, the value and the mend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from turncredit.config import Config, load_config, parse_config, refuse_unusable_envs
from turncredit.errors import UserError

BASE = """
name: trial
model: {tiny: {vocabulary: 320, width: 32, layers: 1, heads: 2, context: 256}, tool_calls: plain}
envs: [{id: turncredit/Calculator-v0}]
warmstart: {envs: [{id: turncredit/Calculator-v0}]}
"""


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Config]:
    def load(*overrides: str, text: str | bytes = BASE) -> Config:
        file = tmp_path / "config.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_config(file, overrides)

    return load


@pytest.mark.parametrize("override, value", [
    ("trainer.lr=1e-5", 1e-5), ("trainer.lr=3", 3.0), ("trainer.betas=[0.9, 0.95]", (0.9, 0.95)), ("seed=7", 7),
    ("name=nan", "nan"), ("name=2026-01-02", "2026-01-02"), ("name='7'", "7"), ("name=a/b", "a/b"),
    ("name=with = sign", "with = sign"), ("envs.0.split=test", "test"), ("envs.0.arguments.level=2", 2),
    ("algorithm.name=grpo", "grpo"), ("algorithm.clip_low=1e-1", 0.1), ("warmstart.until_success=null", None),
    ("teacher.guide=Look: here", "Look: here"),
])
def test_an_override_takes_the_value_of_its_kind(config: Callable[..., Config], override: str, value: Any) -> None:
    if override.startswith("teacher.guide"):
        override = 'teacher.guide="Look: here"'
    found: Any = config(override)
    for name in override.split("=")[0].split("."):
        found = found[int(name)] if isinstance(found, list) else (
            found[name] if isinstance(found, dict) else getattr(found, name))
    assert found == value
    assert type(found) is type(value)


REFUSED = {
    # unknown keys, with the nearest
    "trainer.lrr=1": r"unknown key 'trainer.lrr'; did you mean 'lr'\?",
    "trainr.lr=1": r"unknown key 'trainr'; did you mean 'trainer'\?",
    "envs.0.splt=test": r"unknown key 'envs.0.splt'; did you mean 'split'\?",
    "model.tiny.widt=3": r"unknown key 'model.tiny.widt'; did you mean 'width'\?",
    "warmstart.envs.0.wieght=3": r"unknown key 'warmstart.envs.0.wieght'; did you mean 'weight'\?",
    "algorithm.clip_hihg=1": r"config: unknown key 'algorithm.clip_hihg'; did you mean 'clip_high'\?",
    "algorithm.name=grp": r"algorithm.name 'grp' is unknown; did you mean 'grpo'\?",
    # wrong types and ranges, with the value
    "trainer.lr=fast": "trainer.lr is 'fast': .*valid number",
    "trainer.lr=true": "trainer.lr is True: true and false are no value for it",
    "trainer.steps=yes": "trainer.steps is True",
    "trainer.steps=1.5": "trainer.steps is 1.5: .*integer",
    "trainer.steps=0": "trainer.steps is 0: .*greater than or equal to 1",
    "trainer.lr=inf": "trainer.lr is 'inf'",
    "trainer.lr=.nan": "trainer.lr is nan",
    "trainer.betas=[0.9, 2]": "trainer.betas.1 is 2: .*less than 1",
    "seed=-1": "seed is -1",
    "name=": "name is None: .*valid string",
    "name=../elsewhere": "name is '../elsewhere': it must be the name of a folder within 'runs'",
    "name=''": "name is ''",
    "name=/tmp/run": "name is '/tmp/run'",
    "rollout=5": "rollout is 5",
    "rollout.group_size=1": "rollout.group_size is 1",
    "envs=[]": "envs is \\[\\]",
    "envs.0.weight=0": "envs.0.weight is 0",
    "envs=turncredit/Calculator-v0": "envs is 'turncredit/Calculator-v0': .*valid list",
    "model.dtype=fp16": "model.dtype is 'fp16': Input should be 'auto', 'float32' or 'bfloat16'",
    "model.tool_calls=xml": "model.tool_calls is 'xml': Input should be 'json' or 'plain'",
    "algorithm.name=3": "config: algorithm.name is 3: it must be a name",
    "algorithm.normalize=words":
        "config: algorithm.normalize is 'words': Input should be 'sequence', 'token' or 'constant'",
    "algorithm=grpo": "algorithm is 'grpo': .*dictionary",
    # combinations that cannot work
    "model.path=x": "set exactly one of model.path and model.tiny",
    "model.tiny=null": "set exactly one of model.path and model.tiny",
    "warmstart=null": "model.tiny is set without warmstart.*add a warmstart section",
    "model.tiny.heads=3": "model.tiny: width is 32 and heads is 3: the width must be a multiple",
    "model.chat_template=none.jinja": "model.chat_template is 'none.jinja': there is no such file",
    "rollout.temperature=0.7": "rollout.temperature is 0.7 .*training needs 1 and 1",
    "rollout.top_p=0.9": "rollout.top_p is 0.9",
    "evaluation.every=3": "evaluation.every is 3 without evaluation.envs",
    # overrides that are none
    "trainer.lr": r"override 'trainer.lr': write key=value",
    "=3": "write key=value",
    "name.x=1": "name is not a mapping",
    "envs.3.split=test": "'3' is no place in a list of 1",
    "envs.first.split=test": "'first' is no place in a list of 1",
    "envs.0=[": "not valid YAML",
}


@pytest.mark.parametrize("override", REFUSED)
def test_a_mistake_is_refused_with_its_key_its_value_and_the_mend(config: Callable[..., Config], override: str) -> None:
    with pytest.raises(UserError, match=REFUSED[override]) as refused:
        config(override)
    assert "\n" not in str(refused.value)
    assert str(refused.value).count("config:") <= 1


@pytest.mark.parametrize("text, sentence", [
    ("", "must be a mapping of keys to values"), ("- 1", "must be a mapping"), ("a: [", "is not valid YAML"),
    (b"\xff\xfe\x00", "cannot be read"), ("model: !!python/object:os.system {}", "is not valid YAML"),
    ("seed: 1\nseed: 2\n" + BASE, "the key 'seed' stands twice"), ("1: 2\n" + BASE, "config: 1 is 1"),
    ("envs: [{id: a}]", "the key 'model' is missing"),
    ("model: {path: x}\nenvs: [{split: a}]", "'envs.0.id' is missing"),
])
def test_a_file_that_is_no_configuration_is_refused_in_one_sentence(config: Callable[..., Config], text: str | bytes,
                                                                   sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as refused:
        config(text=text)
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        load_config(tmp_path / "none.yaml")


@pytest.fixture
def chain(tmp_path: Path) -> Callable[..., Config]:
    """chain(base=…, below__child=…): base.yaml, below/child.yaml, and the last one loaded."""

    def load(*overrides: str, **texts: str) -> Config:
        for name, text in texts.items():
            file = tmp_path / name.replace("__", "/")
            file.parent.mkdir(exist_ok=True)
            file.with_suffix(".yaml").write_text(text)
        return load_config(file.with_suffix(".yaml"), overrides)

    return load


def test_a_file_is_laid_over_the_one_that_it_extends_key_by_key(chain: Callable[..., Config]) -> None:
    found = chain(base=BASE + "trainer: {steps: 7, lr: 0.1}\nalgorithm: {name: sc-grpo, quantile: 0.25}\n",
                  below__middle="extends: ../base.yaml\ntrainer: {lr: 0.2, clip_norm: 2}\n",
                  below__child="extends: middle.yaml\nname: child\ntrainer: {clip_norm: 3}\n")
    assert found.name == "child" and found.envs[0].id == "turncredit/Calculator-v0"
    assert (found.trainer.steps, found.trainer.lr, found.trainer.clip_norm) == (7, 0.2, 3)
    assert found.algorithm == {"name": "sc-grpo", "quantile": 0.25}


def test_lists_and_the_algorithm_are_replaced_as_a_whole(chain: Callable[..., Config]) -> None:
    base = BASE + "algorithm: {name: sc-grpo, quantile: 0.25}\n"
    found = chain(base=base, child="extends: base.yaml\nalgorithm: {name: grpo}\nenvs: [{id: turncredit/Pantry-v0}]\n")
    assert found.algorithm == {"name": "grpo"} and [env.id for env in found.envs] == ["turncredit/Pantry-v0"]


def test_overrides_are_laid_over_what_is_extended(chain: Callable[..., Config]) -> None:
    assert chain("trainer.steps=9", base=BASE + "trainer: {steps: 7}\n",
                 child="extends: base.yaml\n").trainer.steps == 9


@pytest.mark.parametrize(("texts", "sentence"), [
    ({"child": "extends: base.yaml\n"}, r"child.yaml': extends '.*base.yaml': there is no such file"),
    ({"child": "extends: child.yaml\n"}, "extends is 'child.yaml', which extends this file in turn"),
    ({"base": "extends: child.yaml\n", "child": "extends: base.yaml\n"}, "base.yaml': extends is 'child.yaml'"),
    ({"child": "extends: [base.yaml]\n"}, r"extends is \['base.yaml'\]: it must be the path"),
    ({"base": "- 1", "child": "extends: base.yaml\n"}, "child.yaml': extends '.*base.yaml' must be a mapping"),
])
def test_what_cannot_be_extended_is_refused_in_one_sentence(chain: Callable[..., Config], texts: dict[str, str],
                                                            sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as refused:
        chain(**texts)
    assert "\n" not in str(refused.value)


keys = st.sampled_from([*Config.model_fields, "id", "name", "tiny", "path"]) | st.text(max_size=4)
anything = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=4),
                        max_leaves=6)


@given(data=st.dictionaries(keys, anything, max_size=4))
def test_whatever_a_file_holds_is_accepted_or_refused_in_one_sentence(data: dict[str, Any]) -> None:
    data = {"model": {"path": "x"}, "envs": [{"id": "a"}]} | data
    try:
        parse_config(data)
    except UserError as error:
        assert str(error)


def test_a_configuration_is_written_and_read_back_equal(config: Callable[..., Config], tmp_path: Path) -> None:
    settings = config("trainer.lr=1e-5", "name=2026-01-02")
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    assert load_config(again) == settings


@pytest.mark.parametrize("override, sentence", [
    ("envs.0.id=turncredit/Calculater-v0", r"config: envs.0: environment 'turncredit/Calculater-v0' is not registered; "
                                           r"did you mean 'turncredit/Calculator-v0'"),
    ("warmstart.envs.0.split=tset", r"config: warmstart.envs.0: split 'tset' is unknown; did you mean 'test'"),
    ("evaluation.envs=[{id: turncredit/Calculator-v0, arguments: {level: 9}}]",
     "config: evaluation.envs.0: level is 9: Calculator has levels 1 to 4"),
    ("evaluation.envs=[{id: turncredit/Questions-v0, arguments: {data: none.jsonl}}]",
     "config: evaluation.envs.0: data 'none.jsonl': there is no such file"),
    ("envs.0.arguments.colour=red", "config: envs.0: environment turncredit/Calculator-v0: .*colour"),
])
def test_an_environment_that_cannot_be_made_is_refused_before_the_run(config: Callable[..., Config], override: str,
                                                                     sentence: str) -> None:
    refuse_unusable_envs(config())
    with pytest.raises(UserError, match=sentence):
        refuse_unusable_envs(config(override))


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[1] / "configs").glob("*.yaml")),
                         ids=lambda file: file.name)
def test_the_configurations_that_we_ship_are_valid(file: Path) -> None:
    assert load_config(file).envs
