"""Tool calls as text: rendering and parsing are inverse, and what cannot be read is said."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from turncredit.errors import UserError
from turncredit.toolcalls import MalformedCall, ToolCall, ToolSpec, tool_format, typed_call

names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,12}", fullmatch=True)
awkward = st.sampled_from(["", " ", '"', "\\", "\n", "</tool_call>", "<tool_call>", "@name a=1", 'a="b c"', "=", "null",
                           "[1, 2]", "\u2028", "\x85", "\x00", "🙂", "<|im_end|>", "-3", "1e5"])
strings = st.lists(st.one_of(st.text(max_size=20), awkward), max_size=3).map("".join)
values = st.recursive(st.one_of(strings, st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False)),
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(strings, inner, max_size=3),
                      max_leaves=6)


@given(name=names, arguments=st.dictionaries(names, strings, max_size=4))
@example(name="f", arguments={"text": 'a "quoted" \\ value\n</tool_call>'})
@pytest.mark.parametrize("format_name", ["json", "plain"])
def test_a_call_with_any_strings_is_read_as_it_was_written(format_name: str, name: str,
                                                           arguments: dict[str, str]) -> None:
    form = tool_format(format_name)
    assert form.parse(form.render(ToolCall(name, arguments))) == [ToolCall(name, arguments)]


@given(calls=st.lists(st.tuples(strings, st.dictionaries(strings, values, max_size=3)), min_size=1, max_size=3),
       between=st.text(max_size=20).filter(lambda text: "<tool_call" not in text))
def test_json_blocks_keep_names_and_values_of_any_kind_in_order(calls: list[tuple[str, dict[str, Any]]],
                                                               between: str) -> None:
    form = tool_format("json")
    wanted = [ToolCall(*call) for call in calls]
    assert form.parse(between + between.join(map(form.render, wanted)) + between) == wanted


@given(text=st.text().filter(lambda text: "<tool_call>" not in text))
def test_text_without_a_call_holds_no_call(text: str) -> None:
    assert tool_format("json").parse(text) == []
    if not text.strip().startswith("@"):
        assert tool_format("plain").parse(text) == []


@given(text=st.lists(st.one_of(st.text(max_size=10), awkward, st.just("@f "), st.just("<tool_call>{")), max_size=6))
def test_any_text_is_parsed_or_refused_with_a_sentence(text: list[str]) -> None:
    for form in (tool_format("json"), tool_format("plain")):
        try:
            calls = form.parse("".join(text))
        except MalformedCall as error:
            assert str(error)
        else:
            assert all(isinstance(call, ToolCall) for call in calls)


@pytest.mark.parametrize("text, sentence", [
    ("<tool_call>{\"name\": \"f\"}", "not closed: end it with </tool_call>"),
    ("<tool_call>{name: f}</tool_call>", "not valid JSON"),
    ("<tool_call>[1]</tool_call>", 'must be an object with a "name"'),
    ("<tool_call>{\"name\": 3}</tool_call>", 'must be an object with a "name"'),
    ("<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>", '"arguments" must be an object'),
    ("<tool_call>" + "[" * 100_000 + "</tool_call>", "not valid JSON"),
    ("<tool_call>" + "9" * 10_000 + "</tool_call>", "not valid JSON"),
])
def test_a_malformed_json_block_says_what_is_wrong(text: str, sentence: str) -> None:
    with pytest.raises(MalformedCall, match=sentence):
        tool_format("json").parse(text)


@pytest.mark.parametrize("text, sentence", [
    ("@", "cannot be read: write @name key=value"),
    ("@f and then some words", "cannot be read"),
    ("@f a=1 a=2", "argument a stands twice"),
    ('@f a="open', "cannot be read"),
    (r'@f a="\q"', "not a valid quoted string"),
    ("@f a=1\nThe answer is 3", "cannot be read"),
])
def test_a_malformed_plain_line_says_what_is_wrong(text: str, sentence: str) -> None:
    with pytest.raises(MalformedCall, match=sentence):
        tool_format("plain").parse(text)


def test_a_long_plain_line_that_fails_is_refused_at_once() -> None:
    with pytest.raises(MalformedCall):  # no catastrophic backtracking
        tool_format("plain").parse("@f" + " a=b" * 20_000 + " \"")


@pytest.mark.parametrize("format_name, expected", [("json", '"name": "look"'), ("plain", "@look item=?")])
def test_a_format_describes_the_tools_to_the_agent(format_name: str, expected: str) -> None:
    spec = ToolSpec("look", "Look.", {"type": "object", "properties": {"item": {"type": "string"}}})
    assert expected in tool_format(format_name).describe([spec])


def test_an_unknown_format_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"tool_format 'jsn' is unknown; did you mean 'json'"):
        tool_format("jsn")


def test_texts_become_what_the_schema_wants_and_stay_texts_where_it_wants_texts() -> None:
    schema = {"type": "object", "properties": {
        "n": {"type": "integer"}, "code": {"type": "string"}, "either": {"type": ["string", "integer"]},
        "many": {"type": "array", "items": {"$ref": "#/$defs/one"}}, "flag": {"type": "boolean"}},
        "$defs": {"one": {"type": "number"}}}
    call = tool_format("plain").parse('@f n=3 code=007 either=4 many="[1, 2.5]" flag=true other=5')[0]
    assert typed_call(call, schema).arguments == {"n": 3, "code": "007", "either": "4", "many": [1, 2.5], "flag": True,
                                                  "other": "5"}
    wrong = ToolCall("f", {"n": "3.5", "many": '["x"]', "flag": "yes"})
    assert typed_call(wrong, schema).arguments == {"n": "3.5", "many": ["x"], "flag": "yes"}
