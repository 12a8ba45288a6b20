"""A server over HTTP that fails in the middle: what was not told to be done is not done, and half an answer is none."""

from __future__ import annotations

import threading
import time

import pytest

from axonize_core.errors import ConfigurationError, StoreError
from axonize_server.spool import INSERT_SETTINGS
from axonize_server.store.clickhouse import ClickHouseStore, SegmentRefusedError, StoreUnreachableError
from clickhouse_faults import (
    cut_answer,
    half_rows,
    held,
    late_exception,
    lost_answer,
    proxy_page,
    refused,
    reset_in_body,
)
from otlp_bodies import trace_body
from own_spans import as_requests, own_span


def insert(store, segment):
    return store.insert(segment.path, segment.signal, segment.id, INSERT_SETTINGS)


def spans(count):
    now = time.time_ns()
    return as_requests([own_span("queue", now, now + 5, {}) for _ in range(count)], {"service.name": "chat"})


def counted(store):
    """Rows in the table, and what the rollup behind it adds up to."""
    found = store.query(
        f"SELECT (SELECT count() FROM {store.database}.spans) AS n,"
        f" (SELECT sum(spans) FROM {store.database}.traces) AS behind"
    )
    return found[0]["n"], found[0]["behind"]


FAULTS = {
    "late exception": (late_exception(241), 0),
    "proxy page": (proxy_page, 0),
    "lost answer": (lost_answer, 7),
    "cut answer": (cut_answer, 7),
    "reset in body": (reset_in_body, 0),
    "500 with a code": (refused(500, 241), 0),
    "500 without": (refused(500), 0),
    "502": (refused(502), 0),
    "503": (refused(503), 0),
    "503 with a code": (refused(503, 202), 0),
    "504": (refused(504), 0),
    "429": (refused(429), 0),
}


@pytest.mark.parametrize(("fault", "done"), FAULTS.values(), ids=FAULTS)
def test_an_insert_is_believed_only_when_it_is_told_to_be_done(
    http_store, clickhouse_front, write_segment, fault, done
):
    """Whatever comes instead of a summary means that it is asked for again; then each row is there once."""
    segment = write_segment(*spans(7))
    clickhouse_front.insert_faults = iter([fault])
    with pytest.raises(StoreUnreachableError, match=r"store 'http://127\.0\.0\.1"):
        insert(http_store, segment)
    assert counted(http_store) == (done, done)
    insert(http_store, segment)
    assert counted(http_store) == (7, 7)


def test_a_late_exception_about_the_data_refuses_the_segment(http_store, clickhouse_front, write_segment):
    """Behind a 200 too the code says what it is about."""
    clickhouse_front.insert_faults = iter([late_exception(33)])
    with pytest.raises(SegmentRefusedError):
        insert(http_store, write_segment(*spans(1)))


def test_a_server_is_asked_to_answer_when_it_is_over(http_store, clickhouse_front, write_segment):
    """Else an error that comes late may stand behind the answer, where nobody reads it."""
    asked = []

    def look(exchange):
        asked.append(exchange.path)
        exchange.send(exchange.work(exchange.read()))

    clickhouse_front.insert_faults = iter([look])
    clickhouse_front.faults = iter([look, look])
    insert(http_store, write_segment(*spans(1)))
    http_store.query("SELECT 1 AS one")
    http_store.command(f"SYSTEM STOP MERGES {http_store.database}.spans")
    assert ["wait_end_of_query=1" in path for path in asked] == [True, True, True]


def test_a_segment_without_rows_is_done_as_well(http_store, write_segment):
    """The summary that says 0 rows is a summary."""
    insert(http_store, write_segment())
    assert counted(http_store) == (0, 0)


@pytest.mark.parametrize("how", ["tagged", "text", "cut"])
def test_a_query_that_fails_after_its_first_block_gives_no_rows(http_store, clickhouse_front, how):
    """Half of the rows would be a wrong answer."""
    clickhouse_front.faults = iter([half_rows(how)])
    with pytest.raises(StoreUnreachableError, match="Memory limit" if how != "cut" else "store 'http"):
        http_store.query("SELECT number FROM numbers(1000)")
    assert len(http_store.query("SELECT number FROM numbers(1000)")) == 1000


def test_a_page_is_neither_rows_nor_a_done_statement(http_store, clickhouse_front):
    """Nor is the store there while a proxy answers in its place."""
    clickhouse_front.faults = iter([proxy_page, proxy_page, proxy_page])
    with pytest.raises(StoreUnreachableError):
        http_store.query("SELECT 1 AS one")
    with pytest.raises(StoreError, match="Welcome"):
        http_store.command(f"TRUNCATE TABLE {http_store.database}.spans")
    assert not http_store.ping()
    assert http_store.ping()


@pytest.fixture
def connected(http_store):
    """Open the same database again, with options behind the address."""
    stores = []

    def connect(options):
        stores.append(ClickHouseStore(http_store.dsn._replace(url=f"{http_store.dsn.url}?{options}")))
        return stores[-1]

    yield connect
    for store in stores:
        store.close()


def test_a_server_that_says_nothing_is_not_waited_for_for_ever(connected, http_store, clickhouse_front, write_segment):
    """Longer than the read time-out means that it is asked for again, although the first attempt is done later."""
    answer = threading.Event()
    segment = write_segment(*spans(7))
    clickhouse_front.insert_faults = iter([held(answer)])
    with pytest.raises(StoreUnreachableError, match="timed out"):
        insert(connected("send_receive_timeout=1"), segment)
    answer.set()
    insert(http_store, segment)
    assert counted(http_store) == (7, 7)


@pytest.mark.parametrize(
    ("options", "encoding"),
    [("", ""), ("compress=false", ""), ("compress=true", "lz4"), ("compress=lz4", "lz4"), ("compress=gzip", "gzip")],
)
def test_a_segment_is_compressed_on_the_wire_if_the_address_says_so(
    connected, http_store, clickhouse_front, write_segment, options, encoding
):
    """Statement and segment are one body of several blocks, compressed together; the rows are the same."""
    segment = write_segment(trace_body(1, spans=3000))
    assert segment.size_bytes > 2 << 20, "one block would be no test"
    insert(connected(options), segment)
    (received,) = clickhouse_front.inserts
    assert received.encoding == encoding
    assert received.data.startswith(b"INSERT INTO")
    assert received.data.endswith(segment.path.read_bytes())
    assert (received.wire_bytes < 0.7 * len(received.data)) is bool(encoding)
    assert counted(http_store) == (3000, 3000)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("http://db.example:8123", ("http", True, 10, 120)),
        ("https://db.example", ("https", True, 10, 120)),
        ("http://127.0.0.1:8123", ("http", False, 10, 120)),
        ("http://127.0.0.1?compress=true&connect_timeout=3&send_receive_timeout=7", ("http", "true", "3", "7")),
    ],
)
def test_what_an_address_means_for_the_connection(monkeypatch, address, told):
    """TLS by the scheme whatever the port, compression unless the server is on this machine, bounded waits."""
    seen = {}

    class Client:
        server_version = "26.9.2.1"

        def __init__(self, interface, *_args, **options):
            names = ("compress", "connect_timeout", "send_receive_timeout")
            seen[address] = (interface, *(options[name] for name in names))

        def close(self):
            """As of a client."""

    monkeypatch.setattr("clickhouse_connect.driver.HttpClient", Client)
    ClickHouseStore(address).close()
    asked = tuple(type(value)(found) for value, found in zip(told, seen[address], strict=True))
    assert asked == told


@pytest.mark.parametrize("options", ["databse=x", "connect_timeout=soon", "compress=cheese"])
def test_an_option_nobody_knows_is_said_at_the_start(clickhouse_front, options):
    """It would not get better by waiting for the store."""
    with pytest.raises(ConfigurationError, match="option that cannot be used"):
        ClickHouseStore(f"{clickhouse_front.url}/axonize?{options}")


@pytest.mark.parametrize("statement", ["query", "command"])
def test_an_empty_page_is_no_answer_either(http_store, clickhouse_front, statement):
    """A query would have no rows, a migration would be noted as applied."""

    def empty(exchange):
        exchange.read()
        exchange.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    clickhouse_front.faults = iter([empty])
    with pytest.raises(StoreUnreachableError, match="X-ClickHouse-Summary"):
        getattr(http_store, statement)(f"SELECT * FROM {http_store.database}.spans")
