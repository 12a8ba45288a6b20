"""Makes the seeds of the corpus anew: `python tests/fuzz/seeds.py`. What the fuzzer found lies beside them."""

from __future__ import annotations

import gzip
import random
import sys
from pathlib import Path
from types import SimpleNamespace

from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT.parent))

import otlp_bodies  # noqa: E402 - needs the path above
from fuzz.oracles import (  # noqa: E402
    CHUNKED,
    GZIPPED,
    JSON,
    KINDS,
    NOW_NS,
    PREFACE,
    RAW,
    SIGNALS,
    TO_GZIP,
    call,
    segment,
)
from otlp_json_bodies import as_json  # noqa: E402

STEP = 1 << 7
REQUESTS = [
    b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n" * 3,
    b"POST /v1/traces HTTP/1.1\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n",
    b"POST /v1/logs HTTP/1.1\r\nexpect: 100-continue\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
    b"POST /v1/logs HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2;x=y\r\n{}\r\n0\r\na: b\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    b"GET /v1/traces HTTP/1.0\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    b"POST /v1/nothing HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
]


def bodies():
    """By signal: usual, empty and odd bodies."""
    clock, otlp_bodies.time = otlp_bodies.time, SimpleNamespace(time_ns=lambda: NOW_NS - 1)
    try:
        usual = {
            "traces": [otlp_bodies.trace_body(seed, spans=seed) for seed in range(3)],
            "metrics": [otlp_bodies.metrics_body(seed, points=seed) for seed in range(3)],
            "logs": [otlp_bodies.logs_body(seed, records=seed) for seed in range(3)],
        }
    finally:
        otlp_bodies.time = clock
    for signal, found in usual.items():
        found += [
            b"",
            found[-1][:-1],
            found[-1] + b"\xf8\x7f\x01",
            found[-1].replace(b"value", b"\xff\xfe\xfd\xfc\xfb"),
        ]
        found += [bytes(random.Random(signal + str(n)).randbytes(40)) for n in range(2)]
    return usual


def readable(signal, body):
    """The body as JSON, if it is one."""
    try:
        return as_json(KINDS[signal].FromString(body))
    except Exception:
        return b'{"resourceSpans":[{}]}'


def conversations(message):
    """What clients say behind the preface of HTTP/2: a call as h2 sends it, and the same in ways that h2 does not."""
    usual = call("traces", message)[0].removeprefix(PREFACE)
    frames, at = [], 0
    while at < len(usual):
        frame, length = Frame.parse_frame_header(memoryview(usual[at : at + 9]))
        frame.parse_body(memoryview(usual[at + 9 : at + 9 + length]))
        frames.append(frame)
        at += 9 + length
    head = next(frame for frame in frames if isinstance(frame, HeadersFrame))
    data = [frame for frame in frames if isinstance(frame, DataFrame) and frame.data]
    told, block, body = SettingsFrame(0), head.data, b"".join(frame.data for frame in data)

    def headers(stream, part=block, flags=("END_HEADERS",)):
        return HeadersFrame(stream, part, flags=flags)

    half, ended = len(body) // 2, ("END_STREAM",)
    pieces = [DataFrame(1, body[:half], flags=("PADDED",), pad_length=9), DataFrame(1, body[half:], flags=ended)]
    between = [PingFrame(0, bytes(8)), WindowUpdateFrame(0, 9), PriorityFrame(1, depends_on=0, stream_weight=3)]
    cut = [headers(1, block[:9], ()), ContinuationFrame(1, block[9:], flags=("END_HEADERS",))]
    several = [headers(1), headers(3), DataFrame(3, body[:half]), *pieces, DataFrame(3, body[half:], flags=ended)]
    yield usual
    for said in (
        [headers(1), pieces[0], *between, pieces[1]],
        [*cut, *pieces],
        several,
        [headers(1), pieces[0], RstStreamFrame(1, 8), headers(3), DataFrame(3, body, flags=ended)],
        [headers(1), GoAwayFrame(0, 0), *pieces, headers(3)],
        [headers(1), pieces[0], headers(1, b"\x88", ("END_HEADERS", "END_STREAM"))],
        [
            headers(1, block, ("END_HEADERS", "END_STREAM")),
            SettingsFrame(0, {4: 0, 5: 1 << 20}),
            PingFrame(0, bytes(8)),
        ],
        [SettingsFrame(0, {4: 0}), headers(1), *pieces, WindowUpdateFrame(1, 1 << 20)],
    ):
        yield b"".join(frame.serialize() for frame in (told, *said))


def damaged(whole):
    """Bytes with flipped bits, cut, with lengths that lie, and with parts out of place."""
    random_ = random.Random(1)
    yield whole
    for _ in range(12):
        broken = bytearray(whole)
        broken[random_.randrange(len(broken))] ^= 1 << random_.randrange(8)
        yield bytes(broken)
    for _ in range(6):
        yield whole[: random_.randrange(len(whole))]
    yield b"\xff\xff\xff\xff\x7f" + whole
    yield whole + bytes(100)
    yield whole + b"\x06"
    yield b"\x00" + whole
    yield whole[200:] + whole[:200]


def main():
    """Write all seeds."""
    made = {"http": [bytes([RAW]) + text for text in REQUESTS], "grpc": []}
    made["http"] += [bytes([RAW | STEP]) + text for text in REQUESTS]
    usual = bodies()
    for number, signal in enumerate(SIGNALS):
        for body in usual[signal]:
            made["grpc"].append(bytes([number]) + body)
            made["http"] += [bytes([number | flags]) + body for flags in (0, CHUNKED, TO_GZIP)]
        text = readable(signal, usual[signal][2])
        made["http"] += [bytes([number | JSON | flags]) + text for flags in (0, TO_GZIP, CHUNKED)]
        packed = gzip.compress(usual[signal][1], mtime=0)
        made["http"] += [bytes([number | GZIPPED]) + data for data in (packed, packed * 3, packed[:-3], packed + b"x")]
    raw = list(conversations(usual["traces"][1]))
    made["grpc"] += [bytes([RAW | step]) + said for said in (*raw, *damaged(raw[0])) for step in (0, STEP)]
    made["spool"] = list(damaged(segment(usual["traces"][:3])))
    for name, inputs in made.items():
        folder = ROOT / "corpus" / name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("seed-*"):
            old.unlink()
        for number, data in enumerate(inputs):
            (folder / f"seed-{number:03}").write_bytes(data)


if __name__ == "__main__":
    main()
