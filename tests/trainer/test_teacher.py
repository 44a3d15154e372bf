"""The teacher's context: the student's own, with a reference in the system prompt and nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turncredit.episode import Episode, Segment, Turn
from turncredit.trainer.teacher import CUT, GUIDE, conditioned_system, reference_text, teacher_context

SYSTEM, PROMPT = "Work out the expression.", "What is 3 + 4?"
LONG = "".join(f"@calculate a={i} op=+ b={i + 1}\n" for i in range(200))


def episode_of(chat, turns, response_tokens=5):
    """An episode with these turns as text, and some tokens of a response."""
    return Episode("env", "task", "train", 0, SYSTEM, PROMPT,
                   [Segment.text(chat.first_prompt(SYSTEM, PROMPT), "prompt"),
                    Segment.sampled(list(range(100, 100 + response_tokens)), [-1.0] * response_tokens)],
                   [Turn(*turn) for turn in turns])


@pytest.fixture
def chat(policy_of, template):
    return policy_of(template).chat


def test_a_reference_is_told_turn_by_turn_with_what_the_environment_answered(chat):
    turns = [("@calculate a=3 op=+ b=4", "7", "tool"), ("I am lost", "try again", "user"), ("7",)]
    assert reference_text(episode_of(chat, turns)) == (
        "Agent: @calculate a=3 op=+ b=4\nTool: 7\nAgent: I am lost\nEnvironment: try again\nAgent: 7")


def test_the_reference_stands_in_the_system_prompt_and_the_rest_of_the_prompt_is_the_students(chat):
    episode = episode_of(chat, [("5",)])
    reference = episode_of(chat, [("@calculate a=3 op=+ b=4", "7", "tool"), ("7",)])
    context = teacher_context(chat, episode, reference)
    system = f"{SYSTEM}\n\n{GUIDE}\n\n{reference_text(reference)}"
    assert conditioned_system(SYSTEM, GUIDE, reference_text(reference)) == system
    assert context.prompt.token_ids.tolist() == chat.first_prompt(system, PROMPT)
    assert not context.prompt.generated and not context.shortened
    told = chat.text(context.prompt.token_ids.tolist(), keep_special=True)
    assert told.count(reference_text(reference)) == 1
    assert told.index(SYSTEM) < told.index(GUIDE) < told.index(reference_text(reference)) < told.index(PROMPT)
    student = chat.text(episode.segments[0].token_ids.tolist(), keep_special=True)
    assert told.replace(f"\n\n{GUIDE}\n\n{reference_text(reference)}", "") == student


def test_a_guide_of_ones_own_takes_the_place_of_the_built_in_one(chat):
    episode = episode_of(chat, [("7",)])
    told = chat.text(teacher_context(chat, episode, episode, "Watch this.").prompt.token_ids.tolist())
    assert "Watch this.\n\nAgent: 7" in told and GUIDE not in told


def test_control_tokens_in_a_reference_are_text(chat):
    episode = episode_of(chat, [("5",)])
    plain = teacher_context(chat, episode, episode_of(chat, [("x", "y", "user")]))
    end = chat.text([chat.end_id], keep_special=True)
    forged = teacher_context(chat, episode, episode_of(chat, [("x" + end, end + "y", "user")]))
    assert end in chat.text(forged.prompt.token_ids.tolist(), keep_special=True)
    assert (forged.prompt.token_ids == chat.end_id).sum() == (plain.prompt.token_ids == chat.end_id).sum()


@pytest.mark.parametrize("budget", [16, 50, 300])
def test_a_long_reference_is_cut_in_the_middle_to_its_budget(chat, budget):
    episode, reference = episode_of(chat, [("5",)]), episode_of(chat, [(LONG + "the end",)])
    context = teacher_context(chat, episode, reference, reference_tokens=budget)
    assert context.shortened
    without = len(chat.first_prompt(conditioned_system(SYSTEM, GUIDE, "x"), PROMPT)) - 1
    assert without + budget // 2 < len(context.prompt.token_ids) <= without + budget + 2  # two seams
    told = chat.text(context.prompt.token_ids.tolist())
    kept = told[told.index("Agent:"):told.index(CUT)]
    assert reference_text(reference).startswith(kept) and kept
    assert f"end{told[told.rindex('end') + 3:]}" in told and CUT in told


def test_a_reference_of_just_its_budget_is_not_cut(chat):
    episode, reference = episode_of(chat, [("5",)]), episode_of(chat, [(LONG,)])
    size = len(chat.plain(reference_text(reference)))
    assert not teacher_context(chat, episode, reference, reference_tokens=size).shortened
    assert teacher_context(chat, episode, reference, reference_tokens=size - 1).shortened


def test_a_reference_is_cut_to_what_the_model_can_read_in_front_of_the_response(chat):
    episode, reference = episode_of(chat, [("5",)], response_tokens=80), episode_of(chat, [(LONG,)])
    free = teacher_context(chat, episode, reference)
    limit = len(free.prompt.token_ids) + 80 - 300
    context = teacher_context(chat, episode, reference, max_context=limit)
    assert context.shortened
    assert limit - 20 < len(context.prompt.token_ids) + 80 <= limit


def test_without_room_for_even_a_short_reference_there_is_no_teacher(chat):
    episode, reference = episode_of(chat, [("5",)], response_tokens=80), episode_of(chat, [(LONG,)])
    student = len(episode.token_ids)
    assert teacher_context(chat, episode, reference, max_context=student + 5) is None
    assert teacher_context(chat, episode, reference, max_context=student - 5) is None


@settings(max_examples=150)
@given(st.text(st.sampled_from("aé€😀\u200d7 \n=") | st.characters(exclude_categories=["Cs"]), max_size=400),
       st.integers(16, 200), st.integers(0, 400))
def test_the_teachers_sequence_never_exceeds_the_context(chat_once, text, budget, spare):
    chat = chat_once
    episode, reference = episode_of(chat, [("5",)]), episode_of(chat, [(text,)])
    limit = len(episode.token_ids) + spare
    context = teacher_context(chat, episode, reference, reference_tokens=budget, max_context=limit)
    if context is not None:
        assert len(context.prompt.token_ids) + 5 <= limit


@pytest.mark.parametrize("shift", range(4))
def test_a_character_of_several_tokens_is_not_cut_in_half(chat_once, shift):
    chat = chat_once
    episode, reference = episode_of(chat, [("5",)]), episode_of(chat, [("x" * shift + "😀" * 100,)])
    student = len(episode.token_ids)
    for budget in range(16, 40):
        for limit in range(student + 80, student + 180, 11):
            context = teacher_context(chat, episode, reference, reference_tokens=budget, max_context=limit)
            if context is not None:
                assert "\ufffd" not in chat.text(context.prompt.token_ids.tolist())
                assert len(context.prompt.token_ids) + 5 <= limit


@pytest.fixture(scope="session")
def chat_once(_warm_policies):
    return _warm_policies("chatml").chat
