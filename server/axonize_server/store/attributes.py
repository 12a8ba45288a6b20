"""Attributes as ClickHouse reads them, a key and the bytes of an AnyValue, and the five maps they become.

An AnyValue of seven columns, each of them null but one, takes ClickHouse longer to read and to sort out than its bytes
take to decode here: the first says what it is, the rest is a number, or a length and a text. Only what every encoder
writes is taken so, and proven: a length is the length there is. Anything else, which protobuf allows all the same (a
number with leading zeros, a value given twice), ends the statement with ``ODD``; encoded anew it is like all others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ODD", "maps"]

ODD: Final = 395
"""ClickHouse's number of the error of ``throwIf``, which nothing else in our statements raises."""

_TEXT, _BOOL, _INT, _FLOAT, _ARRAY, _PAIRS, _BYTES = 10, 16, 24, 33, 42, 50, 58
"""The first byte of an AnyValue: its field's number and wire type. One that was sent unset has none."""
_KINDS: Final = {"string": _TEXT, "int": _INT, "float": _FLOAT, "bool": _BOOL}
_TYPES: Final = {
    "string": "LowCardinality(String)",
    "int": "Int64",
    "float": "Float64",
    "bool": "Bool",
    "raw": "String",
}

_CONTINUES = 0x8080808080808080
"""The bits of eight bytes that say that another byte of a varint follows."""


def maps(prefix: str, attributes: str) -> dict[str, str]:
    """Give the five maps of an array of attributes, which together hold all of them, by their columns' names.

    Filtered is column by column, and only what a map keeps. Keys are looked up in their dictionary once. What most
    records have none of, the maps of bool and raw, is not looked for where its first byte does not occur.
    """
    keys = f"CAST({attributes}.key, 'Array(LowCardinality(String))')"
    values = f"{attributes}.value"
    firsts = f"arrayMap(v -> reinterpretAsUInt8(v), {values})"

    def made(kind: str, chosen: str) -> str:
        of_kind = f"arrayFilter((k, t) -> {chosen}, {keys}, {firsts})"
        decoded = _DECODED[kind](f"arrayFilter((v, t) -> {chosen}, {values}, {firsts})")
        return _map(of_kind, decoded, _TYPES[kind])

    found = {kind: made(kind, f"t = {first}") for kind, first in _KINDS.items()}
    no_scalar = f"t NOT IN ({', '.join(map(str, _KINDS.values()))})"
    found["bool"] = _if(f"has({firsts}, {_BOOL})", found["bool"], "Bool")
    found["raw"] = _if(f"arrayExists(t -> {no_scalar}, {firsts})", made("raw", no_scalar), "String")
    return {f"{prefix}_{kind}": sql for kind, sql in found.items()}


def _map(keys: str, values: str, sql_type: str) -> str:
    return f"CAST(({keys}, {values}), 'Map(LowCardinality(String), {sql_type})')"


def _if(condition: str, made: str, sql_type: str) -> str:
    return f"if({condition}, {made}, {_map('[]', '[]', sql_type)})"


def _unless(odd: str) -> str:
    """Give 0, or end the statement."""
    return f"throwIf({odd}, 'a value is encoded in an unusual way')"


def _texts(values: str, result: str = "{text}", odd: str = "{odd}") -> str:
    """Give what stands behind a first byte and a length, of which a text of 64 MiB has four bytes at most.

    `m` is how many it has beside the first, as the text's size has it, and `w` what is there: seven bits a byte.
    """
    more = f"arrayMap(v -> (length(v) > 129) + (length(v) > 16386) + (length(v) > 2097155), {values})"
    there = (
        f"arrayMap((v, m) -> bitAnd(reinterpretAsUInt32(substring(v, 2, 4)), bitShiftRight(4294967295, 24 - 8 * m)),"
        f" {values}, {more})"
    )
    size = " + ".join(f"bitAnd(bitShiftRight(w, {at}), {127 << 7 * at})" for at in range(4))
    wrong = f"bitOr(bitAnd(w, 2155905152) != [0, 128, 32896, 8421504][m + 1], {size} + m + 2 != length(v))"
    text = f"substring(v, 3 + m + {_unless(odd.format(odd=wrong))})"
    return f"arrayMap((v, m, w) -> {result.format(text=text)}, {values}, {more}, {there})"


def _ints(values: str) -> str:
    """Give the numbers of varints: seven bits of each byte, joined two by two, then four by four, then all eight.

    `l` are the first eight bytes and `h` the other two: the ninth has seven more bits and the tenth the last. All bytes
    but the last say that one follows.
    """
    low = f"arrayMap(v -> reinterpretAsUInt64(substring(v, 2, 8)), {values})"
    high = f"arrayMap(v -> toUInt64(reinterpretAsUInt16(substring(v, 10, 2))), {values})"
    bits = f"arrayMap(l -> bitAnd(l, {0x7F7F7F7F7F7F7F7F}), {low})"
    for keep, move, by in (
        (0x007F007F007F007F, 0x7F007F007F007F00, 1),
        (0x00003FFF00003FFF, 0x3FFF00003FFF0000, 2),
        (0x000000000FFFFFFF, 0x0FFFFFFF00000000, 4),
    ):
        bits = f"arrayMap(x -> bitOr(bitAnd(x, {keep}), bitShiftRight(bitAnd(x, {move}), {by})), {bits})"
    # By the length of the whole: which bits say so, and which of the last two bytes there must not be.
    follow = [1, 1, *((1 << 8 * at) - 1 & _CONTINUES for at in range(8)), _CONTINUES, _CONTINUES]
    last = [0xFF80] * 11 + [0xFE80]
    said = f"bitAnd(l, {_CONTINUES}) != {follow}[length(v) + 1]"
    ended = f"bitAnd(bitXor(h, 128 * (length(v) = 11)), {last}[length(v) + 1]) != 0"
    odd = f"bitOr(bitOr(length(v) > 11, {said}), {ended})"
    top = "bitOr(bitShiftLeft(bitAnd(h, 127), 56), bitShiftLeft(bitShiftRight(h, 8), 63))"
    number = f"reinterpretAsInt64(bitOr(bitOr(x, {top}), toUInt64({_unless(odd)})))"
    return f"arrayMap((x, v, l, h) -> {number}, {bits}, {values}, {low}, {high})"


def _floats(values: str) -> str:
    return f"arrayMap(v -> reinterpretAsFloat64(substring(v, 2 + {_unless('length(v) != 9')})), {values})"


def _bools(values: str) -> str:
    odd = _unless("bitOr(length(v) != 2, b > 1)")
    return (
        f"arrayMap((v, b) -> b + {odd} = 1, {values}, arrayMap(v -> reinterpretAsUInt8(substring(v, 2, 1)), {values}))"
    )


def _raws(values: str) -> str:
    """Give what has no scalar type: a letter for its kind, then its bytes as they came."""
    firsts = f"[{_ARRAY}, {_PAIRS}, {_BYTES}]"
    letter = f"transform(reinterpretAsUInt8(v), {firsts}, ['a', 'k', 'b'], 'u')"
    odd = f"if(has({firsts}, reinterpretAsUInt8(v)), {{odd}}, length(v) != 0)"
    return _texts(values, f"concat({letter}, {{text}})", odd)


_DECODED: Final[dict[str, Callable[[str], str]]] = {
    "string": _texts,
    "int": _ints,
    "float": _floats,
    "bool": _bools,
    "raw": _raws,
}
