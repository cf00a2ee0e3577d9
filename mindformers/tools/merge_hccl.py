# SPDX-License-Identifier: Apache-2.0
"""Join the rank tables of several servers: ``python mindformers/tools/merge_hccl.py hccl_8p_*.json``.

The order of the arguments becomes the order of the servers; ranks are numbered anew.
"""

import argparse
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path

if importlib.util.find_spec("mindformers") is None:  # run as a script from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mindformers.errors import ConfigError, run_cli
from mindformers.tools.rank_table import (
    Device,
    RankTable,
    Server,
    explain,
    launch_lines,
    parse_table,
    read_table,
    write_table,
)

_OWN_OUTPUT = re.compile(r"hccl_\d+s_\d+p\.json")


def merge_tables(tables: Sequence[tuple[str, RankTable]]) -> RankTable:
    """One table of all servers in the given order, ranks counted from 0.

    Args:
        tables: (name of the file, its table).

    Raises:
        ConfigError: a server or a card is in two of them, or CPU and NPU servers are mixed.
    """
    problems, owner = [], {}
    for name, table in tables:
        for server in table.servers:
            first = owner.setdefault(server.server_id, name)
            if first is not name:
                problems.append(f"server {server.server_id} is in {first} and in {name}")
    if problems:
        raise ConfigError(
            "these tables cannot be joined:\n  " + "\n  ".join(problems) + "\n"
            "Give each server's own table once; make them with hccl_tools.py --server_ip IP"
        )
    servers, rank = [], 0
    for server in (server for _, table in tables for server in table.servers):
        devices = tuple(Device(d.device_id, d.device_ip, rank + i) for i, d in enumerate(server.devices))
        servers.append(Server(server.server_id, devices, server.host_nic_ip))
        rank += len(devices)
    merged = RankTable(tuple(servers))
    parse_table(merged.to_json(), "the joined table")
    return merged


def main(argv: Sequence[str] | None = None) -> int:
    """Write the joined table, then print the order in which to launch."""
    parser = argparse.ArgumentParser(prog="merge_hccl.py", description="Join the rank tables of several servers.")
    parser.add_argument("files", nargs="+", metavar="FILE", help="tables, in the order of the servers")
    parser.add_argument("--output", metavar="FILE", help="the new file (default: hccl_{servers}s_{ranks}p.json here)")
    args = parser.parse_args(argv)
    own = [name for name in args.files if _OWN_OUTPUT.fullmatch(Path(name).name)]
    if own:
        raise ConfigError(
            f"{', '.join(own)}: an earlier output of this tool, probably matched by hccl*.json. "
            "Move it away, or name the tables of the servers: hccl_*p_*.json"
        )
    merged = merge_tables([(name, read_table(name)) for name in args.files])
    path = write_table(merged, args.output or f"hccl_{len(merged.servers)}s_{merged.size}p.json")
    print(f"{path}: {explain(merged)}")
    print("Copy it to every server and launch in this order:")
    for number, line in enumerate(launch_lines(merged, path), 1):
        print(f"  {number}. {line}")
    return 0


if __name__ == "__main__":
    run_cli(main)
