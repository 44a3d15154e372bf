"""What the trainer's tests share: chat templates, a small policy that calls tools, real episodes."""

from __future__ import annotations

import copy

import gymnasium
import pytest
import torch

import turncredit
from turncredit.agents.tiny import CHAT_TEMPLATE, learn_tokenizer, make_tiny_model
from turncredit.config import parse_config
from turncredit.envs import Reply, TextEnv
from turncredit.episode import Group, Outcome, Task, Verdict
from turncredit.rollout import Budget, Rollout, TaskRef
from turncredit.trainer.policy import Policy
from turncredit.trainer.warmstart import texts_of, warm_start

torch.set_num_threads(1)  # faster than two that wait for each other

LLAMA3 = (
    "<|begin_of_text|>{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# No system and no tool role: the system prompt stands in the first user turn, tool results in user turns.
MISTRAL = (
    "<s>{% for message in messages %}{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] }}</s>"
    "{% else %}{{ raise_exception('only user and assistant roles are supported') }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "chatml": (CHAT_TEMPLATE, [], "<|im_end|>"),
    "llama3": (LLAMA3, ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|eot_id|>"),
    "mistral": (MISTRAL, ["<s>", "</s>", "[INST]", "[/INST]"], "</s>"),
}
CALCULATOR = {"id": "turncredit/Calculator-v0", "arguments": {"level": 1}}
BUDGET = Budget(turn_tokens=16, episode_tokens=48, context_tokens=400)


@pytest.fixture(scope="session", params=list(TEMPLATES))
def template(request):
    """The name of each chat template in turn."""
    return request.param


@pytest.fixture(scope="session")
def calculator_config():
    """A configuration of a very small policy for the calculator; keyword arguments replace whole sections."""

    def make(**sections):
        return parse_config({
            "seed": 0, "envs": [CALCULATOR],
            "model": {"tiny": {"width": 48, "layers": 2, "heads": 4, "context": 2048, "vocabulary": 400},
                      "tool_calls": "plain"},
            "rollout": {"groups": 2, "group_size": 4, "turn_tokens": 16, "episode_tokens": 48, "context_tokens": 400},
            "warmstart": {"envs": [CALCULATOR], "steps": 70, "lr": 5e-3, "batch": 8, "demonstrations": 100},
            **sections})

    return make


@pytest.fixture(scope="session")
def _warm_policies(calculator_config):
    """Per template, a policy that has learnt to call the calculator, mostly in vain."""
    made = {}

    def policy(name):
        if name not in made:
            config = calculator_config()
            text, special, end = TEMPLATES[name]
            tokenizer = learn_tokenizer(texts_of(config.warmstart, "plain", 0, count=100), 400)
            tokenizer.add_special_tokens({"additional_special_tokens": special, "eos_token": end})
            tokenizer.chat_template = text
            made[name] = Policy(make_tiny_model(config.model.tiny, tokenizer, 0), tokenizer, config.model)
            warm_start(config, made[name], lambda *_: None)
        return made[name]

    return policy


@pytest.fixture
def policy_of(_warm_policies):
    """policy_of("chatml"): a copy of that template's policy, to be changed at will."""

    def make(name="chatml", dtype=torch.float32):
        policy = _warm_policies(name)
        return Policy(copy.deepcopy(policy.model).to(dtype), policy.tokenizer, policy.config)

    return make


@pytest.fixture(scope="session")
def sample_groups():
    """sample_groups(policy, count, size): real episodes of the calculator, as these weights sample them."""

    def sample(policy, count=1, size=4, seed=0, budget=BUDGET):
        rollout = Rollout(policy.agent(), policy.chat, budget, "plain")
        tasks = [TaskRef("turncredit/Calculator-v0", seed + i, {"level": 1}) for i in range(count)]
        groups = rollout.sample_groups(tasks, size, seed)
        rollout.close()
        return groups

    return sample


@pytest.fixture(scope="session")
def judged_as():
    """judged_as(group, "+-?"): the same episodes, passed, failed or not judged as it says."""
    verdicts = {"+": Verdict.of(True), "-": Verdict.of(False), "?": Verdict.unknown("the verifier broke")}

    def judge(group, signs):
        assert len(signs) == len(group.episodes)
        judged = [copy.copy(e) for e in group.episodes]
        for episode, sign in zip(judged, signs):
            episode.verdict = verdicts[sign]
        return Group(judged, group.task)

    return judge


@pytest.fixture(scope="session")
def sequences_read():
    """sequences_read(policy): a list that fills with (token ids of a sequence, whether gradients were on)."""

    def watch(policy):
        read = []

        def note(module, args, kwargs):
            ids, blocks = kwargs["input_ids"][0].tolist(), kwargs["packing"].blocks
            prefixes = {(b.prefix_start, b.prefix_stop) for b in blocks}
            read.extend((tuple(ids[b.prefix_start:b.prefix_stop] + ids[b.start:b.stop]), torch.is_grad_enabled())
                        for b in blocks if (b.start, b.stop) not in prefixes)

        policy.model.base_model.register_forward_pre_hook(note, with_kwargs=True)
        return read

    return watch


class Said:
    """Passes where the agent said the words in order."""

    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        return Verdict.of([turn.action.strip() for turn in outcome.turns] == list(task.hidden["words"]))


class Relay(TextEnv):
    """Two turns, in each of which the agent has to say the letter that it is shown."""

    instructions = "Repeat."
    verifier = Said()
    turn_limit = 2

    def make_task(self, rng):
        words = [str(word) for word in rng.choice(list("abcd"), size=2)]
        return Task(self._shown(words[0]), {"words": words}, self.split)

    def respond(self, action):
        if self.turns:
            return Reply(done=True, answer=action)
        return Reply(self._shown(self.task.hidden["words"][1]))

    def expert_action(self):
        return self.task.hidden["words"][len(self.turns)]

    def _shown(self, word):
        return " ".join([word] * 8)


@pytest.fixture(scope="module")
def register_envs():
    """register_envs(Class, …): makes each known as turncredit-tests/Class-v0 for the tests of one module."""
    ids = []

    def register(*environments):
        for environment in environments:
            ids.append(f"turncredit-tests/{environment.__name__}-v0")
            turncredit.register(ids[-1], environment)

    yield register
    for id in ids:
        del gymnasium.registry[id]


@pytest.fixture(scope="module")
def relay_config(register_envs, tmp_path_factory):
    """relay_config(seed=…, trainer={…}): a whole run of a very small policy in seconds, in a folder of its own."""
    register_envs(Relay)
    env = {"id": "turncredit-tests/Relay-v0"}

    def make(**sections):
        defaults = {
            "seed": 0, "runs": str(tmp_path_factory.mktemp("runs")), "envs": [env],
            "model": {"tiny": {"width": 32, "layers": 2, "heads": 2, "context": 256, "vocabulary": 400}},
            "algorithm": {"name": "sc-grpo"}, "teacher": {"guide": "Before:"},
            "rollout": {"groups": 3, "group_size": 4, "turn_tokens": 3, "episode_tokens": 6, "context_tokens": 200},
            "trainer": {"steps": 4, "lr": 3e-3, "save_every": 1, "keep_checkpoints": 9},
            "warmstart": {"envs": [env], "steps": 30, "lr": 5e-3, "batch": 8, "demonstrations": 64},
        }
        merged = {name: {**default, **sections[name]} if isinstance(default, dict) and name in sections
                  else sections.get(name, default) for name, default in defaults.items()}
        return parse_config({**sections, **merged})

    return make
