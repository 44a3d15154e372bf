"""Values cross the wall by exact type, and are compared by type and value."""

from __future__ import annotations

import json
import math
from collections import OrderedDict, defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turncredit.verifiers.code import Equality
from turncredit.verifiers.code.wire import MAX_VALUES, Malformed, Unencodable, decode, encode

hashable = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.complex_numbers(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3), max_leaves=6)
values = st.recursive(
    hashable | st.builds(bytearray, st.binary()) | st.builds(range, st.integers(-50, 50), st.integers(-50, 50)),
    lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple)
    | st.dictionaries(hashable, inner, max_size=4) | st.sets(hashable, max_size=4), max_leaves=12)


def across(value: Any) -> Any:
    return decode(json.loads(json.dumps(encode(value))))


@given(values)
def test_every_plain_value_comes_out_as_it_went_in(value: Any) -> None:
    assert Equality().difference(value, across(value)) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.0, -(2**63), 2**63 - 1, "\ud800\x00\x1b[0m",
                                   [[]] * 3, {1: {2: {3: ()}}}, [1, [2, [3]]], [1, 10**100], (None, True, 1, 1.0)])
def test_awkward_values_come_out_as_they_went_in(value: Any) -> None:
    assert Equality().difference(value, across(value)) is None
    assert repr(across(value)) == repr(value)


def test_an_integer_of_any_size_comes_out() -> None:
    assert across([10**5000, -(10**5000)]) == [10**5000, -(10**5000)]
    with pytest.raises(Malformed, match="million bits"):
        across(2**2_000_000)


def test_negative_zero_keeps_its_sign() -> None:
    assert math.copysign(1, across(-0.0)) == -1


def test_a_deep_value_is_refused_before_it_can_overflow_the_stack() -> None:
    deep: tuple[Any, ...] = ()
    for _ in range(100_000):
        deep = (deep,)
    with pytest.raises(Malformed, match="deeper"):
        across(deep)


class Impostor(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


@pytest.mark.parametrize("value", [
    Impostor(3), [Impostor(3)], {"a": Impostor(3)}, OrderedDict(a=1), defaultdict(int), object(), len, iter([]),
    {Impostor(1)}, {Impostor(1): 1}, type("Text", (str,), {})("a"),
])
def test_subclasses_and_objects_do_not_cross(value: Any) -> None:
    with pytest.raises(Unencodable):
        encode(value)


def test_a_value_that_holds_itself_is_refused() -> None:
    ring: list[Any] = [[]]
    ring[0].append(ring)
    with pytest.raises(Unencodable, match="holds itself"):
        encode(ring)


def test_a_small_value_that_unfolds_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turncredit.verifiers.code.wire.MAX_VALUES", 10_000)
    bomb: list[Any] = ["x"]
    for _ in range(40):
        bomb = [bomb, bomb]
    with pytest.raises(Unencodable, match="more than"):
        encode(bomb)


class Node:
    def __init__(self, val: int, next: Node | None = None) -> None:
        self.val = val
        self.next = next


def test_shared_classes_cross_field_by_field_and_nothing_of_theirs_runs() -> None:
    first = None
    for number in range(500):
        first = Node(number, first)
    found = decode(encode(first, shared={"Node": Node}), shared={"Node": Node}, max_depth=1000)
    assert type(found) is Node and found.val == 499 and found.next.val == 498
    with pytest.raises(Malformed):
        decode(encode(first, shared={"Node": Node}))  # the other side knows no such class


@pytest.mark.parametrize("tokens", [
    None, 3, {}, [], [1, 2], [["l", 1]], [["l", -1]], [["l", True]], [["l", 10**30]], [["l", 1.0]], [["q", 1]], [[]],
    [["i", "zz"]], [["i", 5]], [["b", "0"]], [["c", "x", 1]], [1, ["d", 1]], [1, ["l", 0], ["s", 2]], [{}],
    [["o", "int", []]], [["ref", 0]], [[[], 1]], [["i", "f" * 400_000]],
    [["r", "0x0", hex(10**12), "0x1"]], [["r", "0x0", "0x9", "0x0"]],
    [None] * (MAX_VALUES + 1), [["l", 0, 0], ["o"]],
])
def test_tokens_that_are_no_value_are_refused(tokens: Any) -> None:
    with pytest.raises(Malformed):
        decode(tokens)


def test_numbers_made_to_collide_do_not_stall_the_judge() -> None:
    same_hash = [["i", hex(k * (2**61 - 1))] for k in range(50_000)]
    for closing in (["s", len(same_hash)], ["z", len(same_hash)], ["d", len(same_hash) // 2]):
        with pytest.raises(Malformed, match="one hash"):
            decode([*same_hash, closing])


STRICT = Equality()


@pytest.mark.parametrize(("expected", "actual"), [
    (1, True), (True, 1), (0, False), (0, None), (None, False), (1, 1.0), ("1", 1), ("a", b"a"),
    (b"a", bytearray(b"a")), (1 + 0j, 1), (0.1 + 0.2, 0.3), (2**53, float(2**53)), (1.5, math.nan), (1, math.nan),
    ([math.nan], [1.0]),
    ([1], (1,)), ((1,), [1]), ([1, 2], [1]), ([1], [1, 2]), ([1, [2]], [1, [3]]), (range(3), [0, 1, 2]),
    ({1, 2}, {1, 3}), ({1}, {True}), ({1}, {1.0}), ({1}, frozenset({1})), ({(1, True)}, {(1, 1)}),
    ({1: 2}, {True: 2}), ({1: 2}, {1: True}), ({1: 2}, {1: 2, 3: 4}), ({1: 2, 3: 4}, {1: 2}), ({1: 2}, {3: 2}),
])
def test_values_of_another_type_or_value_differ(expected: Any, actual: Any) -> None:
    assert STRICT.difference(expected, actual)


@pytest.mark.parametrize(("expected", "actual"), [
    (2.0, 2), (math.nan, math.nan), ([math.nan], [math.nan]), ({math.nan}, {math.nan}), (0.0, -0.0),
    ({1: [2.0]}, {1: [2]}), ({"b": 1, "a": 2}, {"a": 2, "b": 1}), (math.inf, math.inf),
    (complex(1, 2), complex(1, 2)), ({(1, frozenset({2}))}, {(1, frozenset({2}))}),
])
def test_values_of_the_same_type_and_value_are_equal(expected: Any, actual: Any) -> None:
    assert STRICT.difference(expected, actual) is None


def test_tolerance_and_type_rules_are_options() -> None:
    close = Equality(relative=1e-6, absolute=1e-9)
    assert close.equal([1e6], [1e6 + 0.5]) and not close.equal([1e6], [1e6 + 2])
    assert close.equal(0.1 + 0.2, 0.3) and not close.equal(3, 4) and not close.equal(1.0, math.inf)
    assert not close.equal(10**17, 10**17 + 1), "a tolerance is for floats: integers are exact"
    assert not close.equal({1.0}, {1.0 + 1e-12}), "members of sets are exact"
    assert Equality(float_for_int=True).equal(2, 2.0) and not Equality(float_for_int=True).equal(2, True)
    assert not Equality(int_for_float=False).equal(2.0, 2)
    loose = Equality(tuple_for_list=True)
    assert loose.equal([1, (2,)], (1, [2])) and not loose.equal([1], {1}) and not loose.equal([1], [True])


@pytest.mark.parametrize("other", [math.inf, math.nan, 1.0])
def test_integers_beyond_every_float_differ_from_all_of_them(other: float) -> None:
    for rule in (STRICT, Equality(relative=1.0, absolute=1.0, float_for_int=True)):
        assert not rule.equal(other, 10**400) and not rule.equal(10**400, other)


def test_a_difference_says_where() -> None:
    assert STRICT.difference([1, {"a": (2, 3)}], [1, {"a": (2, 4)}]) == "[1]['a'][1]: should be 3, is 4"
    assert STRICT.difference(10**6000, 1) is not None, "an int beyond decimal conversion can be told too"
