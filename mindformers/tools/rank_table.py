# SPDX-License-Identifier: Apache-2.0
"""Rank tables (``RANK_TABLE_FILE``): the one schema of the tools that write them, the launcher and the checker.

A table lists the servers of a job in launch order and, of each, its devices: ``device_id`` (number on the server),
``device_ip`` (address of its network card) and ``rank_id`` (number in the job). Every value is a string; that is the
form which HCCL reads (version 1.0 of the ranktable file of Huawei's CANN documentation). A table whose
devices have no card of their own, every ``device_ip`` being the ``server_id``, describes CPU ranks.
"""

import ipaddress
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindformers.atomic import write_text
from mindformers.errors import ConfigError

__all__ = [
    "Device",
    "RankTable",
    "Server",
    "explain",
    "launch_lines",
    "parse_table",
    "parse_table_range",
    "read_table",
    "spans",
    "table_problems",
    "write_table",
]

VERSION = "1.0"
_LARGEST_FILE = 64 << 20


@dataclass(frozen=True)
class Device:
    """One rank: its number on the server, the address of its card, its number in the job."""

    device_id: int
    device_ip: str
    rank_id: int


@dataclass(frozen=True)
class Server:
    """One host and its devices, in rank order."""

    server_id: str
    devices: tuple[Device, ...]
    host_nic_ip: str = "reserve"

    @property
    def ranks(self) -> range:
        """The ranks of this host; they are consecutive."""
        return range(self.devices[0].rank_id, self.devices[-1].rank_id + 1)

    @property
    def is_cpu(self) -> bool:
        """Whether its ranks are CPU processes."""
        return all(device.device_ip == self.server_id for device in self.devices)


@dataclass(frozen=True)
class RankTable:
    """The servers of a job in launch order."""

    servers: tuple[Server, ...]

    @property
    def size(self) -> int:
        """Number of ranks."""
        return sum(len(server.devices) for server in self.servers)

    @property
    def is_cpu(self) -> bool:
        """Whether all ranks are CPU processes."""
        return all(server.is_cpu for server in self.servers)

    def to_json(self) -> str:
        """The text of the file."""
        servers = [
            {
                "server_id": server.server_id,
                "device": [
                    {"device_id": str(d.device_id), "device_ip": d.device_ip, "rank_id": str(d.rank_id)}
                    for d in server.devices
                ],
                "host_nic_ip": server.host_nic_ip,
            }
            for server in self.servers
        ]
        content = {"version": VERSION, "server_count": str(len(servers)), "server_list": servers, "status": "completed"}
        return json.dumps(content, indent=4, ensure_ascii=False) + "\n"


def table_problems(content: Any) -> list[str]:
    """Everything that is wrong with the decoded JSON of a table; empty when it can be used."""
    if not isinstance(content, dict):
        return [f"a table is a JSON object {{...}}, this is {_kind(content)}"]
    problems = []
    if content.get("version", VERSION) != VERSION:
        problems.append(f"version: {content['version']!r}; only {VERSION!r} is known")
    if content.get("status", "completed") != "completed":
        problems.append(f"status: {content['status']!r}; a table is ready when it is 'completed'")
    servers = content.get("server_list")
    if not isinstance(servers, list) or not servers:
        if "group_list" in content:
            problems.append(
                "group_list: the older form of ModelArts; a table needs server_list (set its version to 1.0)"
            )
        else:
            problems.append(f"server_list: a list of servers is needed, {_found(content, 'server_list')}")
        return problems
    count = content.get("server_count")
    if str(count) != str(len(servers)):
        problems.append(f"server_count: {count!r}, but server_list has {len(servers)}")
    for index, server in enumerate(servers):
        problems += _server_problems(server, f"server_list[{index}]")
    return problems + _uniqueness(servers) + _rank_order(servers)


def _server_problems(server: Any, where: str) -> list[str]:
    if not isinstance(server, dict):
        return [f"{where}: an object is needed, this is {_kind(server)}"]
    problems = []
    server_id = server.get("server_id")
    if not isinstance(server_id, str) or not server_id.strip():
        problems.append(f"{where}.server_id: the address of the server is needed, {_found(server, 'server_id')}")
    devices = server.get("device")
    if not isinstance(devices, list) or not devices:
        return [*problems, f"{where}.device: a list of devices is needed, {_found(server, 'device')}"]
    for index, device in enumerate(devices):
        place = f"{where}.device[{index}]"
        if not isinstance(device, dict):
            problems.append(f"{place}: an object is needed, this is {_kind(device)}")
            continue
        for key in ("device_id", "rank_id"):
            value = device.get(key)
            if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,9}", value):
                problems.append(f"{place}.{key}: a number in quotes is needed, {_found(device, key)}")
        if not _is_ip(device.get("device_ip")) and device.get("device_ip") != server_id:
            problems.append(f"{place}.device_ip: an IP address is needed, {_found(device, 'device_ip')}")
    return problems


def _uniqueness(servers: list[Any]) -> list[str]:
    """Servers, devices of a server and addresses of cards that appear twice."""
    servers = [server for server in servers if isinstance(server, dict)]
    problems = []
    for name in _twice(server.get("server_id") for server in servers):
        problems.append(f"server_id: {name!r} is listed twice")
    addresses: list[Any] = []
    for server in servers:
        devices = _devices(server)
        for number in _twice(device.get("device_id") for device in devices):
            problems.append(f"server {server.get('server_id')!r}: device_id {number!r} is listed twice")
        ips = [device.get("device_ip") for device in devices]
        if any(ip != server.get("server_id") for ip in ips):
            addresses += ips
    problems += [f"device_ip: {ip!r} is listed twice; each card has its own" for ip in _twice(addresses)]
    cpu = [bool(d) and all(x.get("device_ip") == s.get("server_id") for x in d) for s in servers for d in [_devices(s)]]
    if any(cpu) and not all(cpu):
        names = ", ".join(repr(s.get("server_id")) for s, is_cpu in zip(servers, cpu, strict=True) if is_cpu)
        problems.append(f"server_list: CPU servers ({names}) and NPU servers cannot be in one job")
    return problems


def _rank_order(servers: list[Any]) -> list[str]:
    """Ranks have to count 0, 1, 2 ... in the order of the file: a server's ranks are then one range."""
    found = [device.get("rank_id") for server in servers if isinstance(server, dict) for device in _devices(server)]
    if not all(isinstance(rank, str) and rank.isdecimal() for rank in found):
        return []
    ranks = [int(rank) for rank in found]
    if ranks == list(range(len(ranks))):
        return []
    twice = _twice(ranks)
    missing = sorted(set(range(len(ranks))) - set(ranks))
    if twice:
        return [f"rank_id: {spans(twice)} listed twice" + (f", {spans(missing)} missing" if missing else "")]
    if missing:
        return [f"rank_id: {len(ranks)} ranks must be numbered 0 to {len(ranks) - 1}; {spans(missing)} missing"]
    return ["rank_id: the ranks do not count upwards in the order of the file; make the table anew with merge_hccl.py"]


def parse_table(text: str, source: str = "rank table") -> RankTable:
    """A table from JSON text.

    Args:
        text: the content of the file.
        source: its name, for the message.

    Raises:
        ConfigError: with every problem.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not JSON ({error}); make a table with mindformers/tools/hccl_tools.py") from error
    problems = table_problems(content)
    if problems:
        word = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError(f"{source}: {word}\n  " + "\n  ".join(problems))
    return RankTable(
        tuple(
            Server(
                server["server_id"],
                tuple(Device(int(d["device_id"]), d["device_ip"], int(d["rank_id"])) for d in server["device"]),
                str(server.get("host_nic_ip", "reserve")),
            )
            for server in content["server_list"]
        )
    )


def read_table(path: str | Path) -> RankTable:
    """A table from a file.

    Raises:
        ConfigError: the file cannot be read, or with every problem of its content.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ConfigError(f"{path}: {path.stat().st_size >> 20} MB is no rank table")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file ({error.reason})") from error
    return parse_table(text, str(path))


def write_table(table: RankTable, path: str | Path) -> Path:
    """Write a table.

    Raises:
        ConfigError: the table has a problem, or the file cannot be written; an older file then stays as it was.
    """
    path = Path(path)
    text = table.to_json()
    parse_table(text, str(path))
    try:
        write_text(path, text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error
    return path


def parse_table_range(text: str, what: str) -> range:
    """``[0,8)`` or ``[0,8]`` -> 0, 1, ... 7: half-open whatever the brackets are, as the old tools read it.

    Args:
        text: two numbers in brackets; brackets may be missing.
        what: the name of the argument, for the message.

    Raises:
        ConfigError: anything else, or an empty range.
    """
    match = re.fullmatch(r"\s*[\[(]?\s*(\d{1,6})\s*,\s*(\d{1,6})\s*[\])]?\s*", text)
    if not match:
        raise ConfigError(f'{what} is {text!r}; write [FIRST,END], as [0,8] for 0 to 7 (in quotes: "[0,8]")')
    first, end = int(match[1]), int(match[2])
    if first >= end:
        raise ConfigError(f"{what} {text!r} is empty: the end is not included, so [{first},{first + 1}] means {first}")
    return range(first, end)


def spans(numbers: Iterable[int]) -> str:
    """``0-3, 6`` for 0, 1, 2, 3, 6."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def explain(table: RankTable) -> str:
    """What a table says, in plain words."""
    count = f"{len(table.servers)} server" + ("s" if len(table.servers) > 1 else "")
    lines = [f"{table.size} {'CPU' if table.is_cpu else 'NPU'} ranks on {count}"]
    for server in table.servers:
        devices = spans(device.device_id for device in server.devices)
        line = f"  server {server.server_id}: ranks {spans(server.ranks)} on devices {devices}"
        if not server.is_cpu:
            line += f", cards {server.devices[0].device_ip}"
            line += f" ... {server.devices[-1].device_ip}" if len(server.devices) > 1 else ""
        lines.append(line)
    return "\n".join(lines)


def launch_lines(table: RankTable, path: str | Path) -> list[str]:
    """The command to give on each server, in launch order."""
    head = f"bash run_distribute.sh {path} CONFIG"
    if len(table.servers) == 1:
        devices = [device.device_id for device in table.servers[0].devices]
        start = devices[0] if devices == list(range(devices[0], devices[0] + len(devices))) else 0
        return [f"{head} [{start},{start + len(devices)}] train"]
    return [
        f"on {server.server_id}: {head} [{server.ranks.start},{server.ranks.stop}] train {table.size}"
        for server in table.servers
    ]


def _devices(server: dict) -> list[dict]:
    devices = server.get("device")
    return [device for device in devices if isinstance(device, dict)] if isinstance(devices, list) else []


def _twice(values: Iterable[Any]) -> list[Any]:
    counted = Counter(value for value in values if isinstance(value, str | int))
    return [value for value, count in counted.items() if count > 1]


def _is_ip(text: Any) -> bool:
    try:
        ipaddress.ip_address(text if isinstance(text, str) else "")
    except ValueError:
        return False
    return True


def _found(mapping: dict, key: str) -> str:
    return f"this is {_shown(mapping[key])}" if key in mapping else "it is missing"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _kind(value: Any) -> str:
    names: Sequence[tuple[type, str]] = (
        (dict, "an object"),
        (list, "a list"),
        (str, "a text"),
        (bool, "a truth value"),
    )
    return next((name for kind, name in names if isinstance(value, kind)), "null" if value is None else "a number")
