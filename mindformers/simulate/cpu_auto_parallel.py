# SPDX-License-Identifier: Apache-2.0
"""MindSpore's semi-auto parallel on the CPU backend, which refuses it ("Invalid backend: CPU").

The refusal is a comparison of names: the passes that split a graph ask for Ascend or GPU, yet they only insert
AllReduce, AllGather and Broadcast, and MindSpore's CPU library (MCCL) has these. The names they compare with are
changed in the memory of the running process; nothing on disk is touched. Two uses:

* :func:`enable_run`, in each of N connected processes: split graphs are compiled **and executed**.
* :func:`enable_simulation`, in one process without any communication: the graph of one rank of a cluster of any size is
  **compiled only**; parameter layouts, groups and strategy files come out as on the cluster.

All of it leans on private symbols of one MindSpore build, so :func:`require_support` refuses any other. Compiled but
not executable on CPU: pipeline stages (no Send and Receive), whatever needs ReduceScatter, or AllGather among some
ranks only. A simulation compiles as device target GPU: passes that exist for Ascend only are not exercised.
"""

import atexit
import ctypes
import os
import platform
import struct
from collections.abc import Callable, Sequence
from typing import Any

import mindspore

from mindformers.errors import DeviceError

SUPPORTED_VERSION = "2.10.0"
WORLD_GROUP = "mccl_world_group"
# What the passes compare with, and what it becomes; of equal length, with the zero bytes around the constants.
_NAMES = (
    (b"\0GPU\0", b"\0CPU\0"),
    (b"\0nccl_world_group\0", b"\0mccl_world_group\0"),
    (b"\0nccl\0", b"\0mccl\0"),
)
_PAGE = 4096
_CREATE, _RANK, _SIZE, _SLOTS = 2, 4, 5, 7  # virtual methods of CommManager
_state: dict[str, Any] = {"keep": []}  # callbacks must outlive the table that points to them


def require_support() -> None:
    """Refuse a MindSpore, an operating system or a processor whose memory layout is not known.

    Raises:
        DeviceError: says what was found and what is needed.
    """
    found = f"MindSpore {mindspore.__version__} on {platform.system()} {platform.machine()}"
    if mindspore.__version__ != SUPPORTED_VERSION or (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise DeviceError(
            f"semi-auto parallel on CPU needs MindSpore {SUPPORTED_VERSION} on Linux x86_64, found {found}. "
            f"Install mindspore=={SUPPORTED_VERSION}, set parallel.parallel_mode to 0 (data parallel), or run on Ascend"
        )


def enable_run() -> None:
    """Let semi-auto parallel execute on CPU; after ``communication.init()``, once per process (again is harmless).

    Raises:
        DeviceError: this MindSpore is not supported.
    """
    require_support()
    if "run" in _state:
        return
    from mindspore._c_expression import CollectiveManager
    from mindspore.communication import management

    _rename_in_front_end()
    manager = CollectiveManager.get_instance()
    created = {WORLD_GROUP}

    def create_group(name: str, ranks: Sequence[int]) -> None:
        if name not in created:
            management.create_group(name, ranks)
            created.add(name)

    _hook_comm_manager(create_group, manager.get_rank_id, manager.get_group_size)
    _gather_gradient_without_reduce_scatter()
    _state["run"] = True


def enable_simulation(size: int, rank: int) -> dict[str, list[int]]:
    """Compile as rank ``rank`` of ``size`` devices from now on; once per process, before anything is computed.

    Args:
        size: devices of the cluster.
        rank: the one to be, 0 to size - 1.

    Returns:
        Communication group name -> its global ranks, filled while graphs compile.

    Raises:
        DeviceError: this MindSpore is not supported, or the process is another rank already.
    """
    require_support()
    if "run" in _state or "simulation" in _state:
        raise DeviceError("this process is a rank already: simulate each rank in a process of its own")
    os.environ.setdefault("MS_SIMULATION_LEVEL", "0")
    from mindspore.communication import management

    groups: dict[str, list[int]] = {}
    _rename_device_target()

    def rank_in_group(group: str | None = None) -> int:
        return groups[group].index(rank) if group in groups else rank

    def group_size(group: str | None = None) -> int:
        return len(groups[group]) if group in groups else size

    _hook_comm_manager(lambda name, ranks: groups.__setitem__(name, list(ranks)), rank_in_group, group_size)
    management._get_rank_helper = rank_in_group  # communication primitives ask Python, with group=...
    management._get_size_helper = group_size
    _state["simulation"] = rank
    return groups


def _library(name: str) -> ctypes.CDLL:
    return ctypes.CDLL(os.path.join(os.path.dirname(mindspore.__file__), "lib", name))


def _read_memory(address: int, size: int) -> bytes:
    """Bytes of this process, or none where nothing is mapped."""
    with open("/proc/self/mem", "rb", 0) as memory:
        try:
            memory.seek(address)
            return memory.read(size)
        except (OSError, ValueError, OverflowError):
            return b""


def _unknown(what: str) -> DeviceError:
    return DeviceError(
        f"{what} in this build of MindSpore {SUPPORTED_VERSION}: semi-auto parallel on CPU is not possible"
    )


def _rename_device_target(source: bytes = b"CPU", target: bytes = b"GPU") -> None:
    """Overwrite the device target inside the C++ MsContext, found by following each of its pointers."""
    get_instance = _library("libmindspore_core.so")._ZN9mindspore9MsContext11GetInstanceEv
    get_instance.restype, get_instance.argtypes = None, [ctypes.c_void_p]
    holder = ctypes.create_string_buffer(16)  # a std::shared_ptr
    get_instance(ctypes.addressof(holder))
    blob = _read_memory(struct.unpack("QQ", holder.raw)[0], _PAGE)
    pointers = [struct.unpack_from("Q", blob, offset)[0] for offset in range(0, len(blob) - 7, 8)]
    hits = [p for p in pointers if _PAGE <= p < 1 << 47 and _read_memory(p, len(source) + 1) == source + b"\0"]
    if not hits:
        raise _unknown("the device target was not found")
    for pointer in hits:
        ctypes.memmove(pointer, target, len(target))


def _rename_in_front_end() -> None:
    """Make the parallel passes accept CPU and MCCL where they test for GPU and NCCL."""
    changed = 0
    with open("/proc/self/maps", encoding="utf-8") as maps:
        regions = [line.split() for line in maps]
    for fields in regions:
        if len(fields) < 6 or "libmindspore_frontend.so" not in fields[5] or "w" in fields[1]:
            continue
        low, high = (int(value, 16) for value in fields[0].split("-"))
        protection = (1 if "r" in fields[1] else 0) | (4 if "x" in fields[1] else 0)
        data = _read_memory(low, high - low)
        for old, new in _NAMES:
            index = data.find(old)
            while index >= 0:
                _overwrite(low + index, new, protection)
                changed += 1
                index = data.find(old, index + 1)
    if not changed:
        raise _unknown("the names of devices were not found")


def _overwrite(address: int, content: bytes, protection: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    page = ctypes.c_void_p(address & ~(_PAGE - 1))
    span = ctypes.c_size_t(2 * _PAGE)  # the content may reach into the next page
    if libc.mprotect(page, span, protection | 2) != 0:
        raise DeviceError(f"memory protection refused semi-auto parallel on CPU: {os.strerror(ctypes.get_errno())}")
    ctypes.memmove(address, content, len(content))
    libc.mprotect(page, span, protection)


def _hook_comm_manager(
    create_group: Callable[[str, Sequence[int]], None],
    rank_in_group: Callable[[str], int],
    group_size: Callable[[str], int],
) -> None:
    """Answer three virtual methods of the C++ CommManager from Python."""
    get_instance = _library("libmindspore_common.so")._ZN9mindspore11CommManager11GetInstanceEv
    get_instance.restype = ctypes.c_void_p
    instance = get_instance()
    old_table = ctypes.c_void_p.from_address(instance).value
    table = (ctypes.c_void_p * (_SLOTS + 2))()  # two words of type information stand before the methods
    ctypes.memmove(table, old_table - 16, 8 * (_SLOTS + 2))
    prototype = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)

    def text(pointer: int) -> str:  # const std::string&: its first word points to the characters
        return ctypes.string_at(ctypes.c_void_p.from_address(pointer).value).decode()

    def on_create(_this: int, group: int, ranks: int) -> bool:
        begin, end = struct.unpack("QQ", ctypes.string_at(ranks, 16))  # a std::vector<uint32_t>
        members = struct.unpack(f"{(end - begin) // 4}I", ctypes.string_at(begin, end - begin))
        create_group(text(group), list(members))
        return True

    def answer(query: Callable[[str], int]) -> Callable[[int, int, int], bool]:
        def call(_this: int, group: int, out: int) -> bool:
            ctypes.c_uint32.from_address(out).value = query(text(group))
            return True

        return call

    methods = {_CREATE: on_create, _RANK: answer(rank_in_group), _SIZE: answer(group_size)}
    for slot, method in methods.items():
        callback = prototype(method)
        table[2 + slot] = ctypes.cast(callback, ctypes.c_void_p).value
        _state["keep"].append(callback)
    _state["keep"].append(table)
    ctypes.c_void_p.from_address(instance).value = ctypes.addressof(table) + 16
    # MindSpore uses the object after Python is gone
    atexit.register(setattr, ctypes.c_void_p.from_address(instance), "value", old_table)


def _gather_gradient_without_reduce_scatter() -> None:
    """CPU has no ReduceScatter: the gradient of AllGather becomes an AllReduce of which each rank keeps its part."""
    from mindspore import ops
    from mindspore.communication import get_group_size, get_rank
    from mindspore.ops._grad_experimental.grad_base import bprop_getters
    from mindspore.ops.operations.comm_ops import AllGather

    @bprop_getters.register(AllGather)
    def get_bprop_all_gather(self: Any) -> Callable:
        all_reduce = ops.AllReduce(ops.ReduceOp.SUM, self.group)
        rank, size = get_rank(self.group), get_group_size(self.group)
        mean_flag = self.get_attr_dict().get("mean_flag", False)
        split = ops.Split(0, size)

        def bprop(x, out, dout):
            dx = split(all_reduce(dout))[rank]
            if mean_flag:
                dx = dx * (1.0 / size)
            return (dx,)

        return bprop
