"""A cluster of one shard: `python clickhouse_cluster.py DIRECTORY` serves it over HTTP and prints the URL.

The engine's own Distributed tables work here, over a cluster `main` whose one machine is this process. What a process
alone cannot do is left out after the engine's parser took it as it came: ON CLUSTER, and that tables are replicated.
So it stands in for the layout, and for inserts, tokens and queries through Distributed tables; not for Keeper, for
replicas, or for what lies on which shard.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import chdb

from clickhouse_front import Answer, Exchange, Front

__all__ = ["CLUSTER"]

CLUSTER = "main"
_CONFIG = (
    "<clickhouse><tcp_port>9000</tcp_port><remote_servers><main><shard><internal_replication>true</internal_replication>"
    "<replica><host>127.0.0.1</host><port>9000</port></replica></shard></main></remote_servers></clickhouse>"
)


class _ClusterExchange(Exchange):
    """Answers as the machines of a cluster would."""

    def work(self, body: bytes) -> Answer:
        """Run a statement that is for all machines here."""
        if not re.match(rb"(CREATE|DROP|ALTER|DETACH|ATTACH)\b", body):
            return super().work(body)
        parsed = super().work(b"SELECT formatQuerySingleLine($q$" + body + b"$q$) FORMAT TSVRaw")
        if parsed.status != 200:
            return parsed
        plain = re.sub(rf" ON CLUSTER {CLUSTER}\b", "", parsed.data.decode())
        plain = re.sub(r"Replicated(\w*MergeTree)\('[^']*', '\{replica\}'\)", r"\1", plain)
        return super().work(plain.encode())


def main() -> None:
    """Serve until standard input ends."""
    directory = Path(sys.argv[1])
    config = directory / "config.xml"
    config.write_text(_CONFIG)
    path = f"{directory}/engine?config-file={config}"
    engine = chdb.connect(path)
    with Front(path, _ClusterExchange) as front:
        print(front.url, flush=True)
        sys.stdin.read()
    engine.close()


if __name__ == "__main__":
    main()
