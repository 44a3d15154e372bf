"""The self-conditioned teacher's context: the student's own, with a reference trajectory in the system prompt."""

from __future__ import annotations

from dataclasses import dataclass

from turncredit.agents.chat import ChatFormat
from turncredit.episode import Episode, Segment

GUIDE = "Here is how this task was worked on before. Learn from it, then act by yourself."
CUT = "\n[…]\n"
SPEAKER = {"user": "Environment", "tool": "Tool"}


@dataclass(frozen=True, slots=True)
class TeacherContext:
    """What the teacher reads before the response."""

    prompt: Segment
    shortened: bool  # the reference did not fit into its budget


def reference_text(episode: Episode) -> str:
    """A trajectory as text: the agent's turns and what the environment answered."""
    lines: list[str] = []
    for turn in episode.turns:
        lines.append(f"Agent: {turn.action}")
        if turn.observation:
            lines.append(f"{SPEAKER[turn.role]}: {turn.observation}")
    return "\n".join(lines)


def teacher_context(chat: ChatFormat, episode: Episode, reference: Episode, guide: str = GUIDE,
                    reference_tokens: int = 2048, max_context: int = 1 << 30) -> TeacherContext | None:
    """The prompt of pi(. | x, tau): base system prompt + guide + reference, then the same first observation.

    Args:
        chat: the model's chat format.
        episode: whose response will be scored behind this prompt.
        reference: tau, another trajectory of the same task.
        guide: the instruction that introduces the reference.
        reference_tokens: the budget of tau; a longer one is cut in the middle.
        max_context: tokens that the model can read.
    Returns:
        None where not even a shortened reference fits in front of the response.
    """
    response = sum(len(s.token_ids) for s in episode.response)
    room = max_context - response - len(_prompt(chat, episode, guide, CUT))
    budget = min(reference_tokens, room)
    text = reference_text(reference)
    ids = chat.plain(text)
    shortened = len(ids) > budget
    if shortened:
        if budget < 16:
            return None
        half = (budget - len(chat.plain(CUT))) // 2
        # Half a character at a seam would come back as replacement marks, which are more tokens than it was.
        text = chat.text(ids[:half]).rstrip("\ufffd") + CUT + chat.text(ids[-half:]).lstrip("\ufffd")
    prompt = _prompt(chat, episode, guide, text)
    if len(prompt) + response > max_context:  # a tokenizer may need more tokens for parts than for the whole
        return None
    return TeacherContext(Segment.text(prompt, "prompt"), shortened)


def conditioned_system(system: str, guide: str, reference: str) -> str:
    """The system prompt with a reference in it; the warm start uses the same words."""
    return "\n\n".join(part for part in (system, guide, reference) if part)


def _prompt(chat: ChatFormat, episode: Episode, guide: str, reference: str) -> list[int]:
    return chat.first_prompt(conditioned_system(episode.system, guide, reference), episode.prompt)
