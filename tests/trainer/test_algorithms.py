"""Algorithms: what they make of a group, and that the learner knows none by name."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from turncredit.config import TeacherConfig, TrainerConfig, parse_config
from turncredit.errors import UserError
from turncredit.trainer.algorithms import ALGORITHMS, Algorithm, GroupCredit, make_algorithm, register_algorithm
from turncredit.trainer.credit import diversity_advantage, kl_weight, route_group
from turncredit.trainer.learner import Learner

LENGTHS = [5, 3, 7, 4]


def test_grpo_needs_no_teacher():
    scored = make_algorithm("grpo").score_group([1, 0, 0, 1], [True, False, False, True], LENGTHS, 0)
    assert scored.references == [None] * 4 and scored.advantages_from_weights is None
    assert scored.advantages.tolist() == [1, -1, -1, 1]


def test_a_partly_solved_group_is_conditioned_on_other_correct_responses():
    rewards, verified = [1.0, 0.2, 0.0, 1.0], [True, False, False, True]
    scored = make_algorithm("sc-grpo").score_group(rewards, verified, LENGTHS, 7)
    route = route_group(rewards, verified, 7)
    assert scored.kind == "partial-solve" and scored.references == route.references
    assert scored.references[0] == 3 and scored.references[3] == 0
    np.testing.assert_array_equal(scored.advantages, route.advantages)


@pytest.mark.parametrize("references", ["coupled", "independent"])
def test_references_are_coupled_or_independent_as_the_setting_says(references):
    rewards, verified = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0], [True] * 3 + [False] * 4
    scored = [make_algorithm("sc-grpo", references=references).score_group(rewards, verified, [3] * 7, seed)
              for seed in range(20)]
    assert (max(len(set(one.references)) for one in scored) == 2) == (references == "coupled")


@pytest.mark.parametrize("correct", [1, 4])
def test_a_group_with_one_or_only_correct_responses_falls_back_to_grpo(correct):
    verified = [i < correct for i in range(4)]
    rewards = [float(v) for v in verified]
    scored = make_algorithm("sc-grpo").score_group(rewards, verified, LENGTHS, 7)
    assert scored.kind == "fallback" and scored.references == [None] * 4
    np.testing.assert_array_equal(scored.advantages, route_group(rewards, verified, 7).advantages)


@pytest.mark.parametrize("alpha", [0.1, 0.2])
def test_an_unsolved_group_earns_alpha_times_its_diversity_whatever_its_rewards(alpha):
    scored = make_algorithm("sc-grpo", alpha=alpha).score_group([0.5, 0.1, 0.0, 0.3], [False] * 4, LENGTHS, 7)
    chosen = route_group([0] * 4, [False] * 4, 7).references[0]
    assert scored.kind == "solve-none"
    assert scored.references == [None if i == chosen else chosen for i in range(4)]
    assert scored.advantages.tolist() == [0] * 4
    rng = np.random.default_rng(0)
    weights = [rng.random(n) for n in LENGTHS]
    got = scored.advantages_from_weights([None if i == chosen else w for i, w in enumerate(weights)])
    np.testing.assert_allclose(got, alpha * diversity_advantage(weights, LENGTHS, chosen))
    assert make_algorithm("sc-grpo").alpha == 0.1  # the paper's


def test_a_response_without_a_teacher_is_no_part_of_the_diversity():
    scored = make_algorithm("sc-grpo", alpha=1).score_group([0] * 4, [False] * 4, LENGTHS, 7)
    chosen = next(i for i, r in enumerate(scored.references) if r is None)
    out, *rest = [i for i in range(4) if i != chosen]
    weights = [np.full(n, 0.1 * (1 + i)) for i, n in enumerate(LENGTHS)]
    got = scored.advantages_from_weights([None if i in (chosen, out) else w for i, w in enumerate(weights)])
    kept = [chosen, *rest]
    expected = diversity_advantage([weights[i] for i in kept], [LENGTHS[i] for i in kept], 0)
    np.testing.assert_allclose(got[kept], expected)
    assert got[out] == 0 and np.abs(got[rest]).min() > 0.9


def test_quantile_and_floor_are_settings_of_the_weight():
    kl, active = torch.tensor([0.1, 0.2, 0.9]), torch.ones(3, dtype=torch.bool)
    for settings in ({}, {"quantile": 0.5}, {"floor": 3.0}):
        torch.testing.assert_close(make_algorithm("sc-grpo", **settings).weigh_tokens(kl, active),
                                   kl_weight(kl, active, **settings))


def test_an_unknown_algorithm_names_the_nearest():
    with pytest.raises(UserError, match=r"'sc-grop' is unknown; did you mean 'sc-grpo'\?"):
        make_algorithm("sc-grop")


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValidationError, match="alpa"):
        make_algorithm("sc-grpo", alpa=0.2)


def test_a_configuration_that_only_sets_alpha_means_sc_grpo(calculator_config):
    algorithm = make_algorithm(**calculator_config(algorithm={"alpha": 0.3}).algorithm)
    assert type(algorithm).__name__ == "SCGRPO" and algorithm.alpha == 0.3


def test_an_algorithm_of_ones_own_is_used_by_name(policy_of, sample_groups, judged_as):
    @register_algorithm("test-first-is-best")
    class FirstIsBest(Algorithm):
        """Rewards only the first episode, against the last one's trajectory, at every other token."""

        def score_group(self, rewards, verified, lengths, seed):
            last = len(rewards) - 1
            return GroupCredit("mine", np.eye(len(rewards))[0], [last] * last + [None])

        def weigh_tokens(self, kl, active):
            return (torch.arange(len(kl)) % 2).to(kl)

    try:
        policy = policy_of()
        learner = Learner(policy, make_algorithm("test-first-is-best"), TrainerConfig(), TeacherConfig(), 0)
        credit = learner.credit([judged_as(sample_groups(policy)[0], "++--")], 0)
        assert [one.advantage for one in credit.episodes] == [1, 0, 0, 0]
        assert [one.teacher_prompt is None for one in credit.episodes] == [False, False, False, True]
        assert credit.counts["route mine"] == 1
        assert learner.update(credit, 0)["weight_mean"] == pytest.approx(0.5, abs=0.05)
    finally:
        del ALGORITHMS["test-first-is-best"]


DOCS = Path(__file__).parents[2] / "docs" / "algorithms.md"
MODULE = "shortest_first"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The package that docs/algorithms.md shows, where Python finds it, with the metadata that pip would write."""
    text = DOCS.read_text()
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    [points] = re.findall(r"```toml\n\[project.entry-points.\"(.*?)\"\]\n(.*?)```", text, re.DOTALL)
    (tmp_path / f"{MODULE}.py").write_text(code)
    info = tmp_path / f"{MODULE}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {MODULE}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{points[0]}]\n{points[1].replace(chr(34), '')}")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop(MODULE, None)
    ALGORITHMS.pop("shortest", None)


def test_an_installed_packages_algorithm_is_imported_when_a_configuration_names_it(installed, calculator_config):
    assert MODULE not in sys.modules
    settings = calculator_config().model_dump(mode="json") | {"algorithm": {"name": "shortest", "bonus": 0.5}}
    algorithm = make_algorithm(**parse_config(settings).algorithm)
    scored = algorithm.score_group([0, 1, 1], [False, True, True], [2, 5, 4], 0)
    assert scored.advantages.tolist() == [0, 0, 0.5] and MODULE in sys.modules
    with pytest.raises(UserError, match=r"unknown key 'algorithm.bonsu'; did you mean 'bonus'\?"):
        parse_config(settings | {"algorithm": {"name": "shortest", "bonsu": 1}})


def test_without_the_package_its_algorithm_is_unknown():
    with pytest.raises(UserError, match="'shortest' is unknown"):
        make_algorithm("shortest")


def test_every_algorithm_has_a_row_in_the_documentation():
    rows = re.findall(r"^\| `([a-z+-]+)` \|.*`(\w+\.py)` \|$", DOCS.read_text(), re.MULTILINE)
    own = {name: a.__module__ for name, a in ALGORITHMS.items() if a.__module__.startswith("turncredit.")}
    assert {name: f"turncredit.trainer.algorithms.{file.removesuffix('.py')}" for name, file in rows} == own


def test_an_algorithm_is_a_file_of_under_100_lines():
    for algorithm in ALGORITHMS.values():
        if algorithm.__module__.startswith("turncredit."):
            assert len(Path(sys.modules[algorithm.__module__].__file__).read_text().splitlines()) < 100
