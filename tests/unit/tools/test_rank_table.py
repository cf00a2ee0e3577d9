# SPDX-License-Identifier: Apache-2.0
"""Rank tables: what is written, what is refused, and what the tools and the checker print."""

import json
import os
import stat
from pathlib import Path

import pytest

from mindformers.__main__ import main as mindformers
from mindformers.errors import ConfigError, DeviceError
from mindformers.tools import hccl_tools, merge_hccl
from mindformers.tools.rank_table import parse_table, parse_table_range, read_table, spans, write_table
from tests.helpers import shared_data

NPU = """\
address_0=192.1.27.6
netmask_0=255.255.255.0
gateway_0=192.1.27.1
address_1=192.2.27.6
tls_enable_1=0
address_10=192.1.27.9
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to be in, without hccn_tool and /etc/hccn.conf."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(hccl_tools, "HCCN_CONF", tmp_path / "etc" / "hccn.conf")
    return tmp_path


def fake_hccn_tool(folder: Path, script: str) -> None:
    """A program hccn_tool on PATH."""
    tool = folder / "bin" / "hccn_tool"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)


def table(*servers: tuple[str, list[tuple[str, str, str]]]) -> dict:
    """Decoded JSON of a table of (server_id, [(device_id, device_ip, rank_id)])."""
    return {
        "version": "1.0",
        "server_count": str(len(servers)),
        "server_list": [
            {
                "server_id": name,
                "device": [{"device_id": d, "device_ip": ip, "rank_id": r} for d, ip, r in devices],
                "host_nic_ip": "reserve",
            }
            for name, devices in servers
        ],
        "status": "completed",
    }


def two_servers() -> dict:
    return table(("10.0.0.1", [("0", "1.1.1.1", "0"), ("1", "1.1.1.2", "1")]), ("10.0.0.2", [("0", "1.1.1.3", "2")]))


@pytest.mark.parametrize("text", ["[0,8)", "[0,8]", "(0, 8)", " 0,8 "])
def test_every_bracket_is_half_open(text):
    assert parse_table_range(text, "x") == range(8)


@pytest.mark.parametrize("text", ["", "[8]", "[0-8)", "[a,b)", "[3,3)", "[5,2]", "[-1,2)", "[0,8)]x", "[0,\u0663]x"])
def test_other_ranges_are_refused(text):
    with pytest.raises(ConfigError, match="the argument"):
        parse_table_range(text, "the argument")


def test_spans():
    assert spans([3, 0, 1, 2, 6, 8, 9]) == "0-3, 6, 8-9"
    assert spans([]) == ""


def test_addresses_come_from_hccn_tool(folder, capsys):
    fake_hccn_tool(folder, 'echo "ipaddr:192.168.$2.1"; echo "netmask:255.255.255.0"')
    assert hccl_tools.main(["--device_num", "[0,2)", "--server_ip", "10.0.0.1"]) == 0
    text = (folder / "hccl_2p_01_10.0.0.1.json").read_text()
    assert json.loads(text) == table(("10.0.0.1", [("0", "192.168.0.1", "0"), ("1", "192.168.1.1", "1")]))
    assert text.startswith('{\n    "version": "1.0",\n    "server_count": "1"')
    assert "2 NPU ranks on 1 server" in capsys.readouterr().out


def test_what_hccn_tool_does_not_know_comes_from_the_file(folder):
    fake_hccn_tool(folder, '[ "$2" = 1 ] && echo "hccn_tool: no ip" && exit 1; echo "ipaddr: 192.168.0.1"')
    (folder / "etc").mkdir()
    (folder / "etc" / "hccn.conf").write_text(NPU)
    hccl_tools.main(["--device_num", "[0,2)", "--server_ip", "10.0.0.1", "--output", "mine.json"])
    assert [d.device_ip for d in read_table("mine.json").servers[0].devices] == ["192.168.0.1", "192.2.27.6"]


def test_two_digit_devices_and_visible_devices(folder):
    (folder / "hccn.conf").write_text(NPU)
    words = ["--device_num", "[1,3]", "--visible_devices", "0,1,10", "--server_ip", "h", "--hccn_conf", "hccn.conf"]
    hccl_tools.main(words)
    devices = read_table("hccl_2p_12_h.json").servers[0].devices
    assert [(d.device_id, d.device_ip, d.rank_id) for d in devices] == [(1, "192.2.27.6", 0), (10, "192.1.27.9", 1)]


@pytest.mark.parametrize("name", ["hccn.conf.8npu_full_keys", "hccn.conf.server1"])
def test_published_hccn_conf(folder, name):
    hccl_tools.main(["--hccn_conf", str(shared_data(f"hccl/{name}")), "--server_ip", "10.0.0.1"])
    assert read_table("hccl_8p_01234567_10.0.0.1.json").size == 8


def test_sixteen_devices(folder):
    hccl_tools.main(["--device_num", "[0,16)", "--cpu", "--output", str(folder)])
    (written,) = folder.glob("hccl_16p_*_127.0.0.1.json")
    assert read_table(written).is_cpu
    assert read_table(written).servers[0].ranks == range(16)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--device_num", "[0,2)", "--server_ip", "h"], DeviceError, "no hccn_tool.*--cpu"),
        (["--device_num", "0-8", "--server_ip", "h"], ConfigError, "--device_num is '0-8'"),
        (["--cpu", "--visible_devices", "0,1"], ConfigError, "has 2 devices"),
        (["--cpu", "--visible_devices", "0,,1"], ConfigError, "--visible_devices is"),
        (["--cpu", "--visible_devices", "0,0", "--device_num", "[0,2)"], ConfigError, "twice"),
        (["--cpu", "--hccn_conf", "x"], ConfigError, "no meaning with --cpu"),
        (["--hccn_conf", "absent.conf", "--server_ip", "h"], ConfigError, r"absent\.conf: cannot be read"),
        (["--cpu", "--output", "no/folder/t.json"], ConfigError, "cannot be written"),
    ],
)
def test_mistakes_write_nothing(folder, words, error, message):
    with pytest.raises(error, match=message):
        hccl_tools.main(words)
    assert not [path for path in folder.rglob("*") if path.suffix in (".json", ".tmp")]


def test_a_card_with_two_addresses(folder):
    (folder / "hccn.conf").write_text(NPU + "address_0=1.2.3.4\n")
    with pytest.raises(ConfigError, match=r"hccn\.conf:7: address_0 is 1\.2\.3\.4, but 192\.1\.27\.6 before"):
        hccl_tools.main(["--hccn_conf", "hccn.conf", "--server_ip", "h"])


def test_a_hanging_hccn_tool_is_given_up(folder, monkeypatch, capsys):
    fake_hccn_tool(folder, "exec /bin/sleep 60")
    monkeypatch.setattr(hccl_tools, "_TOOL_SECONDS", 0.1)
    with pytest.raises(DeviceError, match="hccn_tool gave none"):
        hccl_tools.main(["--device_num", "[0,1)", "--server_ip", "h"])
    assert "timed out" in capsys.readouterr().err


def write(path: Path, content: dict) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def test_merge_keeps_the_order_of_the_arguments(folder, capsys):
    names = []
    for server, count in (("10.0.0.9", 2), ("10.0.0.1", 3)):
        hccl_tools.main(["--cpu", "--server_ip", server, "--device_num", f"[0,{count})"])
        names.append(f"hccl_{count}p_{'012'[:count]}_{server}.json")
    merge_hccl.main(names)
    merged = read_table("hccl_2s_5p.json")
    assert [(s.server_id, s.ranks) for s in merged.servers] == [("10.0.0.9", range(2)), ("10.0.0.1", range(2, 5))]
    printed = capsys.readouterr().out
    assert "1. on 10.0.0.9: bash run_distribute.sh hccl_2s_5p.json CONFIG [0,2] train 5" in printed
    assert "2. on 10.0.0.1: bash run_distribute.sh hccl_2s_5p.json CONFIG [2,5] train 5" in printed
    with pytest.raises(ConfigError, match=r"hccl_2s_5p\.json: an earlier output"):
        merge_hccl.main(sorted(path.name for path in folder.glob("hccl*.json")))


def test_merge_of_one_table(folder):
    hccl_tools.main(["--cpu", "--device_num", "[0,4)"])
    merge_hccl.main(["hccl_4p_0123_127.0.0.1.json"])
    assert read_table("hccl_1s_4p.json") == read_table("hccl_4p_0123_127.0.0.1.json")


def test_merge_refuses_duplicates_and_mixtures(folder):
    a = write(folder / "a.json", table(("h1", [("0", "1.1.1.1", "0")])))
    b = write(folder / "b.json", table(("h2", [("0", "1.1.1.1", "0")])))
    c = write(folder / "c.json", table(("h3", [("0", "h3", "0")])))
    with pytest.raises(ConfigError, match=r"server h1 is in .*a.json and in .*b2.json"):
        merge_hccl.main([a, write(folder / "b2.json", table(("h1", [("1", "1.1.1.2", "0")])))])
    with pytest.raises(ConfigError, match=r"device_ip: '1\.1\.1\.1' is listed twice"):
        merge_hccl.main([a, b])
    with pytest.raises(ConfigError, match=r"CPU servers \('h3'\) and NPU servers"):
        merge_hccl.main([a, c])
    with pytest.raises(ConfigError, match=r"nothing\.json: cannot be read"):
        merge_hccl.main([a, "nothing.json"])
    assert not list(folder.glob("hccl*"))


def broken(**changes) -> dict:
    return {**two_servers(), **changes}


def test_every_problem_is_listed_at_once():
    content = two_servers()
    content["status"] = "initializing"
    content["server_count"] = "3"
    content["server_list"][0]["device"][1] = {"device_id": 0, "device_ip": "1.1.1", "rank_id": "5"}
    content["server_list"][1]["server_id"] = "10.0.0.1"
    with pytest.raises(ConfigError) as error:
        parse_table(json.dumps(content), "t.json")
    text = str(error.value)
    assert text.startswith("t.json: 6 problems\n")
    for part in (
        "status: 'initializing'",
        "server_count: '3', but server_list has 2",
        "server_list[0].device[1].device_id: a number in quotes is needed, this is 0",
        'server_list[0].device[1].device_ip: an IP address is needed, this is "1.1.1"',
        "server_id: '10.0.0.1' is listed twice",
        "rank_id: 3 ranks must be numbered 0 to 2; 1 missing",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "this is a list"),
        ("null", "this is null"),
        ('{"group_list": []}', "older form of ModelArts"),
        (json.dumps(broken(server_list=[])), "a list of servers"),
        (json.dumps(broken(server_list=[3])), r"server_list\[0\]: an object is needed, this is a number"),
        (json.dumps(broken(server_list=[{"server_id": "", "device": {}}], server_count="1")), "address of the server"),
        (json.dumps(broken(version="1.2")), "only '1.0' is known"),
        (json.dumps(table(("h", [("0", "1.1.1.1", "1"), ("1", "1.1.1.2", "0")]))), "do not count upwards"),
        (json.dumps(table(("h", [("0", "1.1.1.1", "0"), ("0", "1.1.1.2", "1")]))), "device_id '0' is listed twice"),
        (json.dumps(table(("h", [("0", "1.1.1.1", "0"), ("1", "1.1.1.2", "0")]))), "0 listed twice, 1 missing"),
    ],
)
def test_rubbish(content, message):
    with pytest.raises(ConfigError, match=message):
        parse_table(content)


def test_a_failed_write_leaves_the_old_file(folder, monkeypatch):
    path = Path(write(folder / "t.json", two_servers()))
    before = path.read_text()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        write_table(read_table(path), path)
    assert path.read_text() == before
    assert [entry.name for entry in folder.iterdir()] == ["t.json"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rank_table_8p_ringmoe.json", ["8 NPU ranks on 1 server", "[0,8] train"]),
        ("rank_table_16p_mindspore_docs.json", ["16 NPU ranks on 2 servers", "ranks 8-15 on devices 0-7", "[8,16]"]),
    ],
)
def test_check_explains_published_tables(capsys, name, words):
    assert mindformers(["rank-table", "check", str(shared_data(f"hccl/{name}"))]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in words)


def test_check_reports_problems_and_goes_on(folder, capsys):
    good = write(folder / "good.json", two_servers())
    (folder / "bad.json").write_bytes(b"\xff\xfe")
    assert mindformers(["rank-table", "check", "bad.json", good, "absent.json"]) == 2
    captured = capsys.readouterr()
    assert "OK" in captured.out
    assert "bad.json: not a text file" in captured.err
    assert "absent.json: cannot be read" in captured.err
