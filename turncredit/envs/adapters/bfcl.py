"""The Berkeley Function-Calling Leaderboard's multi-turn tasks, from the package bfcl-eval, which holds the data."""

from __future__ import annotations

import ast
import copy
import functools
import importlib
import inspect
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from turncredit.envs.adapters.packages import imported
from turncredit.envs.splits import split_of
from turncredit.envs.text_env import Reply, TextEnv
from turncredit.episode import Outcome, Task, Verdict
from turncredit.errors import UserError, did_you_mean
from turncredit.toolcalls import MalformedCall, ToolCall, ToolSpec, typed_call

CATEGORIES = ("base", "miss_func", "miss_param", "long_context")
OOD_API = "TravelAPI"
_TYPES = {"dict": "object", "float": "number", "tuple": "array", "list": "array", "int": "integer", "bool": "boolean"}
_MORE_TOOLS = "More functions are at hand now:"
_episode = itertools.count()


class PackageCheck:
    """The package's state and response checker over all turns, and its check of turns that no call could serve."""

    def verify(self, task: Task, outcome: Outcome) -> Verdict:
        """Passes where every turn of the user was served as the ground truth serves it."""
        entry, gold, calls = task.hidden["entry"], task.hidden["gold"], outcome.state["calls"]
        if len(calls) < len(gold):
            return Verdict.of(False, f"{len(calls)} of the user's {len(gold)} turns were served")
        checker = imported("bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker", "bfcl-eval", "bfcl")
        tools = imported("bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils", "bfcl-eval", "bfcl")
        # The package keeps what it makes for an episode in a module's globals, under this name, for ever.
        name = f"turncredit{next(_episode)}x"
        try:
            found = checker.multi_turn_checker(calls, gold, entry, task.hidden["category"], name)
            if found["valid"]:
                found = checker.multi_turn_irrelevance_checker(calls, gold)
        finally:
            for key in [key for key in vars(tools) if key.startswith(name)]:
                del vars(tools)[key]
        return Verdict.of(bool(found["valid"]), str(found.get("error_message", "")))


class BFCL(TextEnv):
    """A user asks over several turns, the agent calls functions; an action without a call ends its turn.

    The four categories share 200 scenarios, so that a scenario belongs to one split in all of them; "ood" holds those
    with the travel API. The scripted solution replays the ground truth. Where the category withholds a
    function until a later turn, its description comes with that turn's observation. Calls are checked by the package's
    own functions, given literals alone: what an agent writes is never evaluated.

    Args:
        category: "base", "miss_func", "miss_param" or "long_context".
    Raises:
        MissingExtra: bfcl-eval is not installed.
    """

    instructions = ("Serve the user with the functions at hand. When all that can be done for this turn of theirs is "
                    "done, or a function or a value is missing, say so without a call; the user then goes on.")
    verifier = PackageCheck()
    package = "bfcl-eval"
    turn_limit = 80

    def __init__(self, category: str = "base", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if category not in CATEGORIES:
            raise UserError(f"category {category!r} is unknown{did_you_mean(category, CATEGORIES)} "
                            f"(known: {', '.join(CATEGORIES)})")
        imported("bfcl_eval", "bfcl-eval", "bfcl")
        self.category = category
        self._entries = [pair for pair in _entries(category) if _split(pair[0]) == self.split]
        self.num_tasks = len(self._entries)

    def make_task(self, rng: np.random.Generator) -> Task:
        """Any of the split's."""
        return self.task_at(int(rng.integers(len(self._entries))))

    def task_at(self, index: int) -> Task:
        """The package's entry at `index` of the split."""
        entry, gold = self._entries[index]
        return Task(_said(entry["question"][0]), {"entry": entry, "gold": gold, "category": self.category}, self.split,
                    self.level, f"{self.split}-{entry['id']}")

    def start(self) -> None:
        """Set up the APIs of the task in their first state."""
        entry = self.task.hidden["entry"]
        self._specs = _specs(tuple(entry["involved_classes"]))
        self._withheld: set[str] = {name for names in entry.get("missed_function", {}).values() for name in names}
        self._withheld |= set(entry.get("excluded_function", ()))
        self._calls: list[list[list[str]]] = [[]]
        self._methods = _methods(entry, "long_context" in self.category)

    def state(self) -> Mapping[str, Any]:
        """The calls, by turn of the user and by action. The last turn counts once it was ended."""
        return {"calls": self._calls[:-1]}

    @property
    def tools(self) -> list[ToolSpec]:
        """Those at hand now."""
        return [spec for name, spec in self._specs.items() if name not in self._withheld]

    def respond(self, action: str) -> Reply:
        """Run the calls; without one the user goes on, or the episode ends."""
        try:
            calls = self.tool_format.parse(action)
            if not calls:
                return self._next_turn(action)
            texts, results = [], []
            for call in calls:
                if not self.tool_format.typed and call.name in self._specs:
                    call = typed_call(call, self._specs[call.name].parameters)
                texts.append(self._text(call))
                results.append(self._run(call))
        except MalformedCall as error:
            return Reply(f"error: {error}", role="tool", valid=False)
        self._calls[-1].append(texts)
        return Reply("\n".join(results), role="tool")

    def expert_action(self) -> str:
        """The ground truth, a call at a time, and a word to end each turn of the user's."""
        turn, made = self.task.hidden["gold"][len(self._calls) - 1], len(self._calls[-1])
        return self.tool_format.render(self._gold_call(turn[made])) if made < len(turn) else "done"

    def _next_turn(self, action: str) -> Reply:
        questions = self.task.hidden["entry"]["question"]
        self._calls.append([])
        number = len(self._calls) - 1
        if number == len(questions):
            return Reply(done=True, answer=action)
        added = self.task.hidden["entry"].get("missed_function", {}).get(str(number), [])
        self._withheld -= set(added)
        specs = [spec for spec in self.tools if spec.name in added]
        more = f"{_MORE_TOOLS}\n{self.tool_format.describe(specs)}" if specs else ""
        return Reply("\n".join(part for part in (more, _said(questions[number])) if part))

    def _run(self, call: ToolCall) -> str:
        try:
            result = self._methods[call.name](**call.arguments)
        except Exception as error:  # what the package answers to a call that its APIs cannot take
            return f"Error during execution: {error}"
        return result if isinstance(result, str) else json.dumps(result, default=str)

    def _text(self, call: ToolCall) -> str:
        known = [spec.name for spec in self.tools]
        if call.name not in known:
            raise MalformedCall(f"unknown function {call.name!r}{did_you_mean(call.name, known)}")
        wrong = [name for name in call.arguments if not name.isidentifier()]
        if wrong:
            raise MalformedCall(f"{call.name}: {wrong[0]!r} is no argument's name")
        return f"{call.name}({', '.join(f'{name}={value!r}' for name, value in call.arguments.items())})"

    def _gold_call(self, text: str) -> ToolCall:
        call = ast.parse(text, mode="eval").body
        assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        names = list(inspect.signature(self._methods[call.func.id]).parameters)
        arguments = dict(zip(names, map(ast.literal_eval, call.args)))
        arguments |= {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
        return ToolCall(call.func.id, arguments)


@functools.cache
def _entries(category: str) -> list[tuple[Mapping[str, Any], list[list[str]]]]:
    """Entries and their ground truth, in the package's order."""
    folder = Path(imported("bfcl_eval", "bfcl-eval", "bfcl").__file__).parent / "data"
    name = f"BFCL_v4_multi_turn_{category}.json"
    gold = {row["id"]: row["ground_truth"] for row in _json_lines(folder / "possible_answer" / name)}
    return [(_given_in_time(entry, gold[entry["id"]]), gold[entry["id"]]) for entry in _json_lines(folder / name)]


def _given_in_time(entry: dict[str, Any], gold: list[list[str]]) -> dict[str, Any]:
    """With each withheld function given in the turn where the ground truth first calls it, if that comes earlier.

    One entry needs it: multi_turn_miss_func_49, whose ground truth calls `tail` in the second turn and which gives it
    in the fourth.
    """
    given: dict[str, list[str]] = {}
    for turn, names in entry.get("missed_function", {}).items():
        for name in names:
            calling = [number for number, calls in enumerate(gold) if any(one.startswith(f"{name}(") for one in calls)]
            given.setdefault(str(min([int(turn), *calling])), []).append(name)
    return entry | {"missed_function": given} if given else entry


def _split(entry: Mapping[str, Any]) -> str:
    if OOD_API in entry["involved_classes"]:
        return "ood"
    return split_of(f"scenario {str(entry['id']).rpartition('_')[2]}")


@functools.cache
def _specs(classes: tuple[str, ...]) -> dict[str, ToolSpec]:
    folder = Path(imported("bfcl_eval", "bfcl-eval", "bfcl").__file__).parent / "data" / "multi_turn_func_doc"
    files = imported("bfcl_eval.constants.executable_backend_config", "bfcl-eval", "bfcl")
    rows = [row for name in classes for row in _json_lines(folder / files.MULTI_TURN_FUNC_DOC_FILE_MAPPING[name])]
    return {row["name"]: ToolSpec(row["name"], row["description"], _as_json_schema(row["parameters"])) for row in rows}


def _methods(entry: Mapping[str, Any], long_context: bool) -> dict[str, Any]:
    """The functions of fresh APIs in the entry's first state."""
    config = imported("bfcl_eval.constants.executable_backend_config", "bfcl-eval", "bfcl")
    found: dict[str, Any] = {}
    for name in entry["involved_classes"]:
        api = getattr(importlib.import_module(config.CLASS_FILE_PATH_MAPPING[name]), name)()
        if name not in config.STATELESS_CLASSES:
            api._load_scenario(copy.deepcopy(entry["initial_config"].get(name, {})), long_context=long_context)
        found |= {method: bound for method, bound in inspect.getmembers(api, inspect.ismethod) if method[0] != "_"}
    return found


def _as_json_schema(schema: Any) -> Any:
    """The package's types are Python's names."""
    if isinstance(schema, Mapping):
        return {key: _TYPES.get(value, value) if key == "type" and isinstance(value, str) else _as_json_schema(value)
                for key, value in schema.items() if not (key == "type" and value == "any")}
    return [_as_json_schema(item) for item in schema] if isinstance(schema, list) else schema


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def _said(messages: Sequence[Mapping[str, str]]) -> str:
    return "\n".join(message["content"] for message in messages) or "Can you do it now?"
