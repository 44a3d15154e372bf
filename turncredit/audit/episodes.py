"""What is examined of episodes: the files, the texts, the masks and the rewards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from turncredit.audit.recorded import RecordedStep
from turncredit.config import Config
from turncredit.replay import differences, retell
from turncredit.store import EpisodeRecord

if TYPE_CHECKING:
    from turncredit.agents.chat import ChatFormat
    from turncredit.trainer.policy import Policy

COUNTED = ("episodes", "reward", "success", "generated_tokens", "total_tokens", "turns", "invalid_actions", "stops")


def broken_sums(step: RecordedStep) -> Iterator[str]:
    """Where a step's line of metrics is not what its episodes add up to."""
    from turncredit.trainer.loop import episode_metrics

    now = episode_metrics(step.groups)
    for name in COUNTED:
        if not _equal(step.metrics.get(name), now[name]):
            yield f"step {step.number}: metrics say {name} {step.metrics.get(name)}, the episodes {now[name]}"


def broken_record(record: EpisodeRecord) -> Iterator[str]:
    """Where columns of an episode contradict each other: reward and verdict, counts and tokens, role and mask."""
    again = EpisodeRecord.of(record.episode())
    for name in EpisodeRecord.model_fields:
        if name not in ("segments", "turns") and not _equal(getattr(record, name), getattr(again, name)):
            yield f"episode {record.id}: {name} is {getattr(record, name)!r}, its other columns say " \
                  f"{getattr(again, name)!r}"


def broken_mask(record: EpisodeRecord) -> Iterator[str]:
    """Where a segment's mask does not follow from its role, or its logprobs from its mask."""
    for place, segment in enumerate(record.segments):
        where = f"episode {record.id}: segment {place} ({segment.role})"
        if segment.generated != (segment.role == "assistant"):
            yield f"{where} is {'' if segment.generated else 'not '}marked as generated"
        for name in ("logprobs", "sampling_logprobs"):
            values = getattr(segment, name)
            if segment.generated != (values is not None):
                yield f"{where} has {'no ' if values is None else ''}{name}"
            elif values is not None and len(values) != len(segment.token_ids):
                yield f"{where} has {len(values)} {name} for {len(segment.token_ids)} tokens"


def broken_text(record: EpisodeRecord, chat: ChatFormat) -> Iterator[str]:
    """Where tokens do not read as the text that is shown, or are not those that the text has."""
    where = f"episode {record.id}"
    segments = iter(record.segments)
    first = next(segments, None)
    if first is None or first.token_ids != chat.first_prompt(record.system, record.prompt):
        if not record.stop.infrastructure or first is not None:
            yield f"{where}: its first segment is not its system prompt and first observation"
        return
    for number, turn in enumerate(record.turns):
        said = next(segments, None)
        if said is None or said.role != "assistant" or chat.text(said.token_ids) != turn.action:
            yield f"{where}: turn {number} shows {turn.action[:60]!r}, its tokens read " \
                  f"{None if said is None else chat.text(said.token_ids)[:60]!r}"
            return
        observed = next(segments, None)
        if not said.token_ids or said.token_ids[-1] != chat.end_id:
            if observed is None or observed.token_ids != chat.turn_end:
                yield f"{where}: turn {number} is not closed"
                return
            observed = next(segments, None)
        if observed is None and number + 1 == len(record.turns):
            return  # nobody read the last observation
        if observed is None or observed.role != turn.role or \
                observed.token_ids != chat.observation(turn.observation, turn.role):
            yield f"{where}: the tokens behind turn {number} are not its observation {turn.observation[:60]!r}"
            return
    if next(segments, None) is not None and not record.stop.infrastructure:
        yield f"{where}: it has tokens behind its last turn"


def broken_reward(step: RecordedStep, record: EpisodeRecord, policy: Policy, config: Config) -> Iterator[str]:
    """Where an episode that is acted out again in its environment comes to something else."""
    episode = record.episode()
    for difference in differences(episode, retell(episode, step.tasks[record.group], policy, config)):
        yield f"episode {record.id}: {difference}"


def replayable(record: EpisodeRecord) -> bool:
    """Whether it ended by what it did; what infrastructure did to it cannot be told again."""
    return not record.stop.infrastructure


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, int | float):
        return abs(one - other) <= 1e-6 * max(1.0, abs(one)) or (one != one and other != other)
    return bool(one == other)
