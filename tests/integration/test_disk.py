"""A disk that is full: refusals until there is room, and nothing acknowledged is lost."""

from __future__ import annotations

import subprocess
import sys

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from axonize_server.inspect_spool import verify
from axonize_server.refused import FOLDER
from axonize_server.spool import recover, requests, sealed_segments
from otlp_bodies import trace_body


def span_ids(*bodies):
    parsed = [TracesData.FromString(bytes(body)) for body in bodies]
    scopes = [scope for data in parsed for resource in data.resource_spans for scope in resource.scope_spans]
    return [span.span_id for scope in scopes for span in scope.spans]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = sys.platform == "linux" and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", folder], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_refuses_and_recovers(small_disk, make_receiver):
    """Acks until the disk is full, 503 with Retry-After while it is, acks again with room; every acked span is there."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2 << 20))
    receiver = make_receiver(data_dir=small_disk, segment_max_age_s=0.2)
    receiver.wait_ready()
    acked, refused = [], []
    for seed in range(400):
        body = trace_body(seed, spans=20)
        status, headers, answer = receiver.post(body)
        if status == 200:
            acked.append(body)
        else:
            assert status == 503, answer
            assert "retry-after" in {name.lower() for name in headers}
            refused.append(body)
            if len(refused) == 20:
                ballast.unlink()
            if len(refused) > 200:
                break
        if refused and status == 200 and len(acked) > 40:
            break
    assert len(refused) >= 20, "the disk was never full"
    assert status == 200, "there was room again"
    receiver.kill()
    recover(receiver.settings.spool_dir)
    segments = [memoryview(found.path.read_bytes()) for found in sealed_segments(receiver.settings.spool_dir)]
    there = span_ids(*(request for segment in segments for request in requests(segment)))
    assert len(there) == len(set(there))
    assert set(span_ids(*acked)) <= set(there)
    assert all(checked.problem is None for checked in verify(receiver.settings.spool_dir))


def test_what_is_set_aside_counts_toward_the_bound(make_receiver):
    """Refused segments take room: a spool full of them answers 503, and says where to look."""
    receiver = make_receiver(spool_max_bytes=60_000)
    receiver.wait_ready()
    folder = receiver.settings.spool_dir / FOLDER / "traces"
    folder.mkdir(parents=True)
    (folder / "1-a.pb").write_bytes(bytes(60_000))
    status, _, answer = receiver.post(trace_body(1))
    assert (status, b"axonize spool ls" in answer) == (503, True)
    (folder / "1-a.pb").unlink()
    assert receiver.post(trace_body(2))[0] == 200
