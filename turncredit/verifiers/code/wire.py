"""How values cross the wall between the judge and a candidate: by exact type, never by pickle.

A value is a flat list of tokens in post-order, which a stack machine reads: a scalar is itself in JSON, and
`["l", n]` makes a list of the n values before it. A flat list has no depth to blow a parser's stack, cannot
refer to itself, and is as large as it looks. Subclasses are refused: `class Any(int)` is no int.

This file is also sent into the sandbox as text, so it imports the standard library alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

MAX_DEPTH = 200  # of containers: a hash of deeper tuples would overflow the C stack
MAX_VALUES = 1_000_000
_PLAIN_INT = 1 << 63  # larger ones travel as hexadecimal: decimal conversion takes quadratic time
_SAME_HASH = 100  # equal hashes in one set or dict: more is an attack on the judge's time, not a result


class Unencodable(Exception):
    """The value's type, size or shape cannot cross the wall."""


class Malformed(ValueError):
    """The tokens are no value."""


def encode(value: Any, *, shared: Mapping[str, type] | None = None,
           reference: Callable[[Any], int | None] | None = None) -> list[Any]:
    """Return the tokens of a value: JSON scalars, and `[tag, …]` for everything else.

    Args:
        value: made of int, float, complex, bool, None, str, bytes, bytearray, list, tuple, dict, set, frozenset
            and range.
        shared: name -> class whose plain instances both sides know (`ListNode`).
        reference: the number under which the other side knows an object, or None.
    Raises:
        Unencodable: another type, more than MAX_VALUES values, or a value that holds itself.
    """
    classes = {kind: name for name, kind in (shared or {}).items()}
    tokens: list[Any] = []
    open_ids: set[int] = set()
    todo: list[tuple[Any, list[Any] | None]] = [(value, None)]  # a closing token follows the children
    while todo:
        item, closing = todo.pop()
        if closing is not None:
            tokens.append(closing)
            open_ids.discard(id(item))
            continue
        if len(tokens) + len(todo) > MAX_VALUES:
            raise Unencodable(f"more than {MAX_VALUES} values")
        number = reference(item) if reference is not None else None
        scalar = ["ref", number] if number is not None else _scalar(item)
        if scalar is not item or type(item) in _SCALARS:
            tokens.append(scalar)
            continue
        children, closing = _parts(item, classes)
        if _all_plain(children):
            tokens += children
            tokens.append(closing)
            continue
        if id(item) in open_ids:
            raise Unencodable("a value that holds itself")
        open_ids.add(id(item))
        todo.append((item, closing))
        todo.extend((child, None) for child in reversed(children))
    return tokens


_SCALARS = (type(None), bool, int, float, str)


def _scalar(item: Any) -> Any:
    """The token of a value without children; the item itself where it is plain, or a container."""
    kind = type(item)
    if kind is int and not -_PLAIN_INT < item < _PLAIN_INT:
        return ["i", hex(item)]
    if kind is bytes or kind is bytearray:
        return ["b" if kind is bytes else "a", item.hex()]
    if kind is complex:
        return ["c", item.real, item.imag]
    if kind is range:
        return ["r", hex(item.start), hex(item.stop), hex(item.step)]
    return item


_TAGS: dict[type, str] = {list: "l", tuple: "t", set: "s", frozenset: "z"}


def _parts(item: Any, classes: Mapping[type, str]) -> tuple[list[Any], list[Any]]:
    """A container's children in order, and the token that makes it of them."""
    kind = type(item)
    if kind in _TAGS:
        return list(item), [_TAGS[kind], len(item)]
    if kind is dict:
        return [part for pair in item.items() for part in pair], ["d", len(item)]
    if kind in classes:
        fields = vars(item)
        return list(fields.values()), ["o", classes[kind], list(fields)]
    raise Unencodable(f"a value of type {kind.__module__}.{kind.__qualname__}")


def _all_plain(children: list[Any]) -> bool:
    """True where every child is its own token: the fast way for long lists."""
    kinds = set(map(type, children))
    if kinds == {int}:
        return bool(min(children) > -_PLAIN_INT and max(children) < _PLAIN_INT)
    return kinds <= {str, float, bool, type(None)}


def decode(tokens: object, *, shared: Mapping[str, type] | None = None,
           resolve: Callable[[int], Any] | None = None, max_depth: int = MAX_DEPTH) -> Any:
    """Return the value that `encode` was given, freshly built.

    Args:
        tokens: from the other side, so anything at all.
        shared: name -> class, as in `encode`.
        resolve: the object that a reference's number stands for.
        max_depth: of containers in containers.
    Raises:
        Malformed: not the tokens of one value, or one built to hurt whoever holds it.
    """
    if not isinstance(tokens, list) or len(tokens) > MAX_VALUES:
        raise Malformed("not a list of at most a million tokens")
    machine = _Stack(shared or {}, resolve, max_depth)
    for token in tokens:
        if type(token) is not list:
            if type(token) not in _SCALARS:
                raise Malformed(f"a token of type {type(token).__name__}")
            machine.values.append(token)
            machine.depths.append(0)
        else:
            try:
                machine.close(token)
            except (TypeError, ValueError, IndexError, KeyError, OverflowError) as error:
                raise Malformed(f"{type(error).__name__}: {error}") from None
    if len(machine.values) != 1:
        raise Malformed(f"{len(machine.values)} values in the place of one")
    return machine.values[0]


class _Stack:
    """Values under construction, and how deep each is."""

    def __init__(self, shared: Mapping[str, type], resolve: Callable[[int], Any] | None, max_depth: int) -> None:
        self.values: list[Any] = []
        self.depths: list[int] = []
        self.shared = shared
        self.resolve = resolve
        self.max_depth = max_depth

    def close(self, token: list[Any]) -> None:
        tag, *rest = token
        if tag in _LEAVES:
            self.values.append(_LEAVES[tag](*rest))
            self.depths.append(0)
        elif tag == "ref" and self.resolve is not None:
            self.values.append(self.resolve(_count(rest[0])))
            self.depths.append(0)
        elif tag == "o":
            name, fields = rest
            children = self.take(len(fields))
            made: Any = object.__new__(self.shared[name])
            vars(made).update(zip(map(str, fields), children))
            self.values.append(made)
        elif tag == "d":
            children = self.take(2 * _count(rest[0]))
            _refuse_flood(children[::2])
            self.values.append(dict(zip(children[::2], children[1::2])))
        else:
            children = self.take(_count(rest[0]))
            self.values.append(_CONTAINERS[tag](children))

    def take(self, count: int) -> list[Any]:
        """The last `count` values; the container made of them is one deeper than the deepest."""
        if count > len(self.values):
            raise Malformed(f"a container of {count} where {len(self.values)} values are left")
        start = len(self.values) - count
        depth = 1 + max(self.depths[start:], default=0)
        if depth > self.max_depth:
            raise Malformed(f"deeper than {self.max_depth} containers")
        taken = self.values[start:]
        del self.values[start:], self.depths[start:]
        self.depths.append(depth)
        return taken


def _count(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise Malformed(f"a count of {number!r}")
    return number


def _refuse_flood(children: Sequence[Any]) -> None:
    """Raise where many values share a hash: building their set would take quadratic time."""
    if len(children) > _SAME_HASH:
        hashes = sorted(map(hash, children))
        if any(map(int.__eq__, hashes, hashes[_SAME_HASH:])):
            raise Malformed("too many values with one hash")


def _hashed(kind: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    def build(children: list[Any]) -> Any:
        _refuse_flood(children)
        return kind(children)
    return build


def _integer(text: str) -> int:
    if len(text) > 300_000:
        raise Malformed("an integer of more than a million bits")
    return int(text, 16)


def _range(start: int, stop: int, step: int) -> range:
    made = range(start, stop, step)
    if len(made) > MAX_VALUES:  # small to send, and anything but small for whoever makes a list of it
        raise Malformed(f"a range of more than {MAX_VALUES}")
    return made


_LEAVES: dict[str, Callable[..., Any]] = {
    "i": _integer,
    "b": bytes.fromhex,
    "a": bytearray.fromhex,
    "c": lambda real, imaginary: complex(float(real), float(imaginary)),
    "r": lambda *bounds: _range(*map(_integer, bounds)),
}
_CONTAINERS: dict[str, Callable[[list[Any]], Any]] = {
    "l": list, "t": tuple, "s": _hashed(set), "z": _hashed(frozenset),
}
