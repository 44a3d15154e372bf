"""The self-conditioned teacher's context: the student's own, with a reference trajectory in the system prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from turncredit.agents.chat import ChatFormat
from turncredit.episode import Episode, Segment, Turn

GUIDE = "Here is how this task was worked on before. Learn from it, then act by yourself."
FEEDBACK = "An attempt at this task failed. This is what it was told last:"
CUT = "\n[…]\n"
SPEAKER = {"user": "Environment", "tool": "Tool"}


@dataclass(frozen=True, slots=True)
class TeacherContext:
    """What the teacher reads before the response."""

    prompt: Segment
    shortened: bool  # the reference did not fit into its budget


def reference_text(episode: Episode) -> str:
    """A trajectory as text: the agent's turns and what the environment answered."""
    return turns_text(episode.turns)


def turns_text(turns: Sequence[Turn]) -> str:
    """Turns as text, a line for each side of one."""
    lines: list[str] = []
    for turn in turns:
        lines.append(f"Agent: {turn.action}")
        if turn.observation:
            lines.append(f"{SPEAKER[turn.role]}: {turn.observation}")
    return "\n".join(lines)


def feedback_text(episode: Episode) -> str:
    """What the environment said last in an episode; empty where it said nothing. It is what the agent was shown."""
    return next((turn.observation for turn in reversed(episode.turns) if turn.observation.strip()), "")


def teacher_context(chat: ChatFormat, episode: Episode, reference: Episode | None, guide: str = GUIDE,
                    reference_tokens: int = 2048, max_context: int = 1 << 30,
                    feedback: str = "") -> TeacherContext | None:
    """The prompt of pi(. | x, tau): base system prompt + guide + reference, then the same first observation.

    Args:
        chat: the model's chat format.
        episode: whose response will be scored behind this prompt.
        reference: tau, another trajectory of the same task; None for feedback alone.
        guide: the instruction that introduces the reference.
        reference_tokens: the budget of tau and feedback; what is longer is cut in the middle.
        max_context: tokens that the model can read.
        feedback: what the environment said to the response; stands behind the reference.
    Returns:
        None where not even a shortened reference fits in front of the response.
    """
    text = "" if reference is None else reference_text(reference)
    if feedback:
        text = "\n\n".join(part for part in (text, f"{FEEDBACK}\n{feedback}") if part)
    guide = "" if reference is None else guide
    response = sum(len(s.token_ids) for s in episode.response)
    room = max_context - response - len(_prompt(chat, episode, guide, CUT))
    budget = min(reference_tokens, room)
    ids = chat.plain(text)
    shortened = len(ids) > budget
    if shortened:
        if budget < 16:
            return None
        text = cut_in_the_middle(ids, budget, chat.plain, chat.text)
    prompt = _prompt(chat, episode, guide, text)
    if len(prompt) + response > max_context:  # a tokenizer may need more tokens for parts than for the whole
        return None
    return TeacherContext(Segment.text(prompt, "prompt"), shortened)


def cut_in_the_middle(ids: Sequence[int], budget: int, encode: Callable[[str], Sequence[int]],
                      decode: Callable[[Sequence[int]], str]) -> str:
    """The two ends of a text that has more tokens than `budget`, with a mark between them."""
    half = max(1, (budget - len(encode(CUT))) // 2)
    # Half a character at a seam would come back as replacement marks, which are more tokens than it was.
    return decode(ids[:half]).rstrip("\ufffd") + CUT + decode(ids[-half:]).lstrip("\ufffd")


def conditioned_system(system: str, guide: str, reference: str) -> str:
    """The system prompt with a reference in it; the warm start uses the same words."""
    return "\n\n".join(part for part in (system, guide, reference) if part)


def _prompt(chat: ChatFormat, episode: Episode, guide: str, reference: str) -> list[int]:
    return chat.first_prompt(conditioned_system(episode.system, guide, reference), episode.prompt)
