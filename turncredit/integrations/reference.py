"""A trajectory of another trainer as text, and the prompt of a teacher that has seen it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from turncredit.episode import Turn
from turncredit.trainer.teacher import conditioned_system, cut_in_the_middle, turns_text

Messages = Sequence[Mapping[str, Any]]


def reference_of(tokenizer: Any, ids: Sequence[int], mask: Sequence[int] | None, completion: str | Messages) -> str:
    """A completion as text: the agent's turns as it wrote them, and what tools and environments answered.

    Args:
        ids: token ids of the completion, [tokens].
        mask: 1 at the tokens that the policy generated, [tokens]; None for all.
        completion: the same as the trainer has it, a text or messages: tools' answers are taken from there.
    """
    runs = groupby(zip(mask or [1] * len(ids), ids), key=lambda one: bool(one[0]))
    actions = [str(tokenizer.decode([i for _, i in run], skip_special_tokens=True)) for wrote, run in runs if wrote]
    answers: list[list[str]] = []
    for message in () if isinstance(completion, str) else completion:
        if message["role"] == "assistant":
            answers.append([])
        elif answers:
            answers[-1].append(str(message["content"]))
    answers += [[]] * (len(actions) - len(answers))
    return turns_text([Turn(action.strip(), "\n".join(answered), "tool")
                       for action, answered in zip(actions, answers)])


def conditioned_prompt(tokenizer: Any, prompt: str | Messages, guide: str, reference: str,
                       budget: int) -> str | list[Mapping[str, Any]]:
    """The same prompt with a reference in its system message, in front of a prompt that is a text.

    Args:
        budget: tokens of the reference; a longer one is cut in the middle.
    """
    ids = tokenizer(reference, add_special_tokens=False)["input_ids"]
    if len(ids) > budget:
        reference = cut_in_the_middle(ids, budget, lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
                                      lambda some: tokenizer.decode(some, skip_special_tokens=True))
    if isinstance(prompt, str):
        return f"{conditioned_system('', guide, reference)}\n\n{prompt}"
    first, *rest = prompt
    if first["role"] == "system":
        return [{**first, "content": conditioned_system(first["content"], guide, reference)}, *rest]
    return [{"role": "system", "content": conditioned_system("", guide, reference)}, *prompt]
