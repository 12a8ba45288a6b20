"""Reads an embedded store after its collector ended, in a process of its own: a process has one engine directory."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

_READ = """
import pickle, sys
sys.path.insert(0, sys.argv[2])
from axonize_server.query import spans_of
from axonize_server.store.clickhouse import ClickHouseStore

store = ClickHouseStore(f"chdb://{sys.argv[1]}")
if sys.argv[3:4] == ["table"]:
    found = store.query(
        "SELECT data_paths FROM system.tables WHERE database = 'axonize' AND name = {name:String}", {"name": sys.argv[4]}
    )[0]["data_paths"][0]
elif sys.argv[3:] == ["everything"]:
    from exactly_once import look

    found = look(store)
elif sys.argv[3:]:
    found = spans_of(store, tenant="default", trace_id=bytes.fromhex(sys.argv[3]))
else:
    found = [bytes.fromhex(row["id"]) for row in store.query("SELECT hex(span_id) AS id FROM axonize.spans")]
store.close()
sys.stdout.buffer.write(pickle.dumps(found))
"""


def everything(directory):
    """Return every record with its number of rows, and every rollup beside its source."""
    return _read(directory, "everything")


def table_directory(directory, name):
    """Return where the engine keeps a table."""
    return Path(_read(directory, "table", name))


def span_ids(directory):
    """Return the ids of all stored spans, one for each row."""
    return _read(directory)


def spans(directory, trace_id):
    """Return a trace's spans in start order, every value as it was sent."""
    return _read(directory, trace_id.hex())


def _read(directory, *arguments):
    command = [sys.executable, "-c", _READ, str(directory), str(Path(__file__).parent), *arguments]
    return pickle.loads(subprocess.run(command, capture_output=True, check=True, cwd=directory.parent).stdout)
