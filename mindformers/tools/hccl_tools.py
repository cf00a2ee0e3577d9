# SPDX-License-Identifier: Apache-2.0
"""Write the rank table of this server: ``python mindformers/tools/hccl_tools.py --device_num "[0,8)"``.

The addresses of the cards come from ``hccn_tool`` or, without it, from ``/etc/hccn.conf``. ``--cpu`` describes CPU
ranks instead, so that everything which needs a table works on a machine without NPUs.
"""

import argparse
import importlib.util
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

if importlib.util.find_spec("mindformers") is None:  # run as a script from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mindformers.errors import ConfigError, DeviceError, run_cli
from mindformers.tools.rank_table import (
    Device,
    RankTable,
    Server,
    explain,
    launch_lines,
    parse_table_range,
    spans,
    write_table,
)

HCCN_CONF = Path("/etc/hccn.conf")
_TOOL_SECONDS = 30


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="hccl_tools.py", description="Write the rank table of this server.")
    parser.add_argument(
        "--device_num", default="[0,8)", metavar="[FIRST,END)", help="devices to use, END not included (%(default)s)"
    )
    parser.add_argument(
        "--visible_devices",
        metavar="0,1,...",
        help="device ids that --device_num counts through (default: 0, 1, 2, ...)",
    )
    parser.add_argument("--server_ip", default="", metavar="IP", help="address of this server (default: by host name)")
    parser.add_argument(
        "--hccn_conf",
        metavar="FILE",
        help=f"read card addresses from this file only, not from hccn_tool or {HCCN_CONF}",
    )
    parser.add_argument("--cpu", action="store_true", help="describe CPU ranks of this machine")
    parser.add_argument(
        "--output", metavar="PATH", help="file or existing folder (default: hccl_{n}p_{devices}_{server}.json here)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the table, then say what is in it and how to launch with it."""
    args = build_parser().parse_args(argv)
    indices = parse_table_range(args.device_num, "--device_num")
    device_ids = choose_devices(indices, args.visible_devices)
    if args.cpu:
        if args.hccn_conf:
            raise ConfigError("--hccn_conf has no meaning with --cpu: CPU ranks have no cards")
        server_id = args.server_ip or "127.0.0.1"
        addresses = dict.fromkeys(device_ids, server_id)
    else:
        server_id = args.server_ip or own_address()
        addresses = card_addresses(device_ids, args.hccn_conf)
    devices = tuple(Device(number, addresses[number], rank) for rank, number in enumerate(device_ids))
    table = RankTable((Server(server_id, devices),))
    name = f"hccl_{len(indices)}p_{''.join(map(str, indices))}_{server_id}.json"
    path = write_table(table, _target(args.output, name))
    print(f"{path}: {explain(table)}")
    print(launch_lines(table, path)[0])
    return 0


def _target(output: str | None, name: str) -> Path:
    if output is None:
        return Path(re.sub(r"[^\w.\-]", "_", name))
    return Path(output) / re.sub(r"[^\w.\-]", "_", name) if Path(output).is_dir() else Path(output)


def choose_devices(indices: range, visible: str | None) -> list[int]:
    """Device ids of the chosen positions.

    Args:
        indices: positions in the list of visible devices.
        visible: that list as text, ``"4,5,6,7"``; None is 0, 1, 2, ...

    Raises:
        ConfigError: the list is not one, or too short.
    """
    if visible is None:
        return list(indices)
    words = [word.strip() for word in visible.split(",")]
    if not all(word.isdecimal() for word in words):
        raise ConfigError(f"--visible_devices is {visible!r}; write device numbers with commas, as 0,1,2,3")
    numbers = [int(word) for word in words]
    if len(set(numbers)) != len(numbers):
        raise ConfigError(f"--visible_devices {visible!r} names a device twice")
    if indices.stop > len(numbers):
        raise ConfigError(
            f"--device_num asks for positions {spans(indices)}, but --visible_devices has {len(numbers)} devices"
        )
    return [numbers[index] for index in indices]


def own_address() -> str:
    """The address this host's name resolves to.

    Raises:
        DeviceError: it does not resolve, or only to a loopback address, which no other server can reach.
    """
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError as error:
        raise DeviceError(f"the host name {name!r} has no address ({error}): give it with --server_ip IP") from error
    if address.startswith("127."):
        raise DeviceError(
            f"the host name {name!r} resolves to {address}, which other servers cannot reach: "
            "give the address with --server_ip IP"
        )
    return address


def query_card(device_id: int) -> str | None:
    """Address of a card by ``hccn_tool``; None when there is no such tool or it does not know one."""
    tool = shutil.which("hccn_tool")
    if tool is None:
        return None
    words = [tool, "-i", str(device_id), "-ip", "-g"]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=_TOOL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"note: {' '.join(words)} failed: {error}", file=sys.stderr)
        return None
    match = re.search(r"ipaddr\s*:\s*([0-9a-fA-F.:]+)", done.stdout)
    return match[1] if match else None


def read_hccn_conf(path: Path) -> dict[int, str]:
    """``address_N=IP`` lines of a hccn.conf, N -> IP; other settings (netmask, gateway, ...) do not matter here.

    Raises:
        ConfigError: the file cannot be read, or names a card twice with different addresses.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    found: dict[int, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = re.fullmatch(r"\s*address_(\d+)\s*=\s*(\S+)\s*", line)
        if match and found.setdefault(int(match[1]), match[2]) != match[2]:
            raise ConfigError(f"{path}:{number}: address_{match[1]} is {match[2]}, but {found[int(match[1])]} before")
    return found


def card_addresses(device_ids: Sequence[int], conf: str | None) -> dict[int, str]:
    """Addresses of the cards of these devices.

    Args:
        device_ids: numbers of the devices.
        conf: the only file to read; None asks hccn_tool, then the system's file.

    Raises:
        DeviceError: an address is not to be found; the message says what was tried.
    """
    found: dict[int, str] = {}
    if conf is None:
        found = {number: ip for number in device_ids if (ip := query_card(number))}
    missing = [number for number in device_ids if number not in found]
    source = Path(conf) if conf else HCCN_CONF
    if missing and (conf or source.exists()):
        listed = read_hccn_conf(source)
        found |= {number: listed[number] for number in missing if number in listed}
    missing = [number for number in device_ids if number not in found]
    if missing:
        tried = f"{source} has no address_N line for them"
        if conf is None:
            tool = "hccn_tool gave none" if shutil.which("hccn_tool") else "there is no hccn_tool on PATH"
            tried = f"{tool}, and {tried if source.exists() else f'there is no {source}'}"
        raise DeviceError(
            f"no card address for devices {spans(missing)}: {tried}. On a machine without NPUs add --cpu; "
            "otherwise set the addresses with hccn_tool, or give a copy of the file with --hccn_conf"
        )
    return found


if __name__ == "__main__":
    run_cli(main)
