"""Attributes as ClickHouse reads them, a key and the bytes of an AnyValue, and the five maps they become.

An AnyValue of seven columns, each of them null but one, takes ClickHouse longer to read and to sort out than its bytes
take to decode here: the first says what it is, the rest is a number, or a length and a text. Only what every encoder
writes is taken so, and proven: a length is the length there is. Anything else, which protobuf allows all the same (a
number with leading zeros, a value given twice), ends the statement with ``ODD``; encoded anew it is like all others.

Inside a lambda no names are used but those given there. Before 2026-08 ClickHouse looked up what another stands for
where it is used, so that an argument of the lambda could take a column's place (its issue 86045).
"""

from __future__ import annotations

from typing import Final

__all__ = ["ODD", "maps", "named"]

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


def named(prefix: str, attributes: str) -> str:
    """Give the WITH clause of an array of attributes: its keys, values and their first bytes, which `maps` uses.

    Written once, they are parsed and analysed once. Keys are looked up in their dictionary once.
    """
    keys = f"CAST({attributes}.key, 'Array(LowCardinality(String))') AS {prefix}_keys"
    firsts = f"arrayMap(v -> reinterpretAsUInt8(v), {prefix}_values) AS {prefix}_firsts"
    return f"WITH {keys}, {attributes}.value AS {prefix}_values, {firsts}"


def maps(prefix: str) -> dict[str, str]:
    """Give the five maps of the attributes named `prefix`, which together hold all of them, by their columns' names.

    Filtered is column by column, and only what a map keeps. What most records have none of, the maps of bool and raw,
    is not looked for where its first byte does not occur.
    """
    keys, values, firsts = f"{prefix}_keys", f"{prefix}_values", f"{prefix}_firsts"

    def made(kind: str, chosen: str) -> str:
        of_kind = f"arrayFilter((k, t) -> {chosen}, {keys}, {firsts})"
        decoded = f"arrayMap(v -> {_DECODED[kind]}, arrayFilter((v, t) -> {chosen}, {values}, {firsts}))"
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


def _text(odd: str = "{odd}") -> str:
    """Give what stands behind a first byte and a length, of which a text of 64 MiB has four bytes at most.

    `more` is how many it has beside the first, as the text's size has it, and `there` what is there: seven bits a byte.
    """
    more = "((length(v) > 129) + (length(v) > 16386) + (length(v) > 2097155) AS more)"
    there = f"(bitAnd(reinterpretAsUInt32(substring(v, 2, 4)), bitShiftRight(4294967295, 24 - 8 * {more})) AS there)"
    size = " + ".join(f"bitAnd(bitShiftRight(there, {at}), {127 << 7 * at})" for at in range(4))
    wrong = f"bitOr(bitAnd({there}, 2155905152) != [0, 128, 32896, 8421504][more + 1], {size} + more + 2 != length(v))"
    return f"substring(v, 3 + more + {_unless(odd.format(odd=wrong))})"


def _int() -> str:
    """Give the number of a varint: seven bits of each byte, joined two by two, then four by four, then all eight.

    `low` are the first eight bytes and `high` the other two: the ninth has seven more bits and the tenth the last. All
    bytes but the last say that one follows.
    """
    bits = f"bitAnd(reinterpretAsUInt64(substring(v, 2, 8)) AS low, {0x7F7F7F7F7F7F7F7F})"
    for joined, keep, move, by in (
        ("ones", 0x007F007F007F007F, 0x7F007F007F007F00, 1),
        ("pairs", 0x00003FFF00003FFF, 0x3FFF00003FFF0000, 2),
        ("fours", 0x000000000FFFFFFF, 0x0FFFFFFF00000000, 4),
    ):
        bits = f"bitOr(bitAnd({bits} AS {joined}, {keep}), bitShiftRight(bitAnd({joined}, {move}), {by}))"
    # By the length of the whole: which bits say so, and which of the last two bytes there must not be.
    follow = [1, 1, *((1 << 8 * at) - 1 & _CONTINUES for at in range(8)), _CONTINUES, _CONTINUES]
    last = [0xFF80] * 11 + [0xFE80]
    said = f"bitAnd(low, {_CONTINUES}) != {follow}[length(v) + 1]"
    ended = f"bitAnd(bitXor(high, 128 * (length(v) = 11)), {last}[length(v) + 1]) != 0"
    odd = f"bitOr(bitOr(length(v) > 11, {said}), {ended})"
    high = "toUInt64(reinterpretAsUInt16(substring(v, 10, 2))) AS high"
    top = f"bitOr(bitShiftLeft(bitAnd({high}, 127), 56), bitShiftLeft(bitShiftRight(high, 8), 63))"
    return f"reinterpretAsInt64(bitOr(bitOr({bits}, {top}), toUInt64({_unless(odd)})))"


def _float() -> str:
    return f"reinterpretAsFloat64(substring(v, 2 + {_unless('length(v) != 9')}))"


def _truth() -> str:
    odd = _unless("bitOr(length(v) != 2, truth > 1)")
    return f"(reinterpretAsUInt8(substring(v, 2, 1)) AS truth) + {odd} = 1"


def _raw() -> str:
    """Give what has no scalar type: a letter for its kind, then its bytes as they came."""
    firsts = f"[{_ARRAY}, {_PAIRS}, {_BYTES}]"
    letter = f"transform(reinterpretAsUInt8(v) AS kind, {firsts}, ['a', 'k', 'b'], 'u')"
    return f"concat({letter}, {_text(f'if(has({firsts}, kind), {{odd}}, length(v) != 0)')})"


_DECODED: Final = {"string": _text(), "int": _int(), "float": _float(), "bool": _truth(), "raw": _raw()}
