"""Reads an embedded store after its collector ended, in a process of its own: an engine has one directory."""

from __future__ import annotations

import subprocess
import sys

_READ = """
import sys
import clickhouse_connect
client = clickhouse_connect.get_client(interface="chdb", path=sys.argv[1])
for (span_id,) in client.query("SELECT hex(span_id) FROM axonize.spans").result_rows:
    print(span_id)
"""


def span_ids(directory):
    """Return the ids of all stored spans, one for each row."""
    result = subprocess.run(
        [sys.executable, "-c", _READ, str(directory)], capture_output=True, text=True, check=True, cwd=directory.parent
    )
    return [bytes.fromhex(line) for line in result.stdout.split()]
