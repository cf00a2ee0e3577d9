# SPDX-License-Identifier: Apache-2.0
"""The device and MindSpore's global settings: the only module that writes them.

The keys are those of the old ``set_context``; each is carried out by the API that replaced it in MindSpore 2.10, so no
deprecation warning appears. The environment that a launcher sets up (``DEVICE_ID``, ``RANK_ID``, ``MS_ROLE``, ...) is
read here and nowhere else.
"""

import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import communication

from mindformers.core import parallel_context
from mindformers.core.context_config import (
    ASCEND_CONFIG_OLD,
    AUTO_PARALLEL_PASSED,
    CONTEXT_KEYS,
    GONE,
    NOT_ON_CPU,
    PARALLEL_KEYS,
    PARALLEL_PASSED,
    ContextConfig,
    ParallelContextConfig,
    check_keys,
)
from mindformers.errors import ConfigError, DeviceError
from mindformers.native import library
from mindformers.tools.logger import get_logger
from mindformers.tools.utils import PARALLEL_MODE, get_output_root_path

__all__ = [
    "ContextConfig",
    "DeviceCapabilities",
    "ParallelContextConfig",
    "default_device_target",
    "device_capabilities",
    "init_context",
    "is_launched",
    "set_seed",
]

logger = get_logger(__name__)

_TARGETS = ("Ascend", "GPU", "CPU")
_MODES = {0: ms.GRAPH_MODE, 1: ms.PYNATIVE_MODE, "GRAPH_MODE": ms.GRAPH_MODE, "PYNATIVE_MODE": ms.PYNATIVE_MODE}

# ascend_config key -> (module of mindspore.device_context.ascend, function)
_ASCEND_CONFIG = {
    "precision_mode": ("op_precision", "precision_mode"),
    "op_precision_mode": ("op_precision", "op_precision_mode"),
    "matmul_allow_hf32": ("op_precision", "matmul_allow_hf32"),
    "conv_allow_hf32": ("op_precision", "conv_allow_hf32"),
    "jit_compile": ("op_tuning", "op_compile"),
    "op_debug_option": ("op_debug", "debug_option"),
}
_applied: dict[str, Any] = {}  # what MindSpore takes only once per process


@dataclass(frozen=True)
class DeviceCapabilities:
    """What a kind of device can do.

    Args:
        device_target: Ascend, GPU or CPU.
        compute_dtypes: floating point types that matrix products and element-wise ops run in.
        fused_kernels: whether MindSpore has fused Llama kernels (flash attention, RMSNorm, ...) for it.
    """

    device_target: str
    compute_dtypes: frozenset[str]
    fused_kernels: bool


def device_capabilities(device_target: str) -> DeviceCapabilities:
    """What ``device_target`` can do; asks no device.

    Raises:
        ConfigError: the name is unknown.
    """
    _choose("context.device_target", device_target, _TARGETS)
    dtypes = {"float32", "float16"} if device_target == "CPU" else {"float32", "float16", "bfloat16"}
    return DeviceCapabilities(device_target, frozenset(dtypes), device_target == "Ascend")


def default_device_target() -> str:
    """``Ascend`` where its driver is installed, else ``CPU``.

    Asking MindSpore instead loads its Ascend plug-in and prints the libraries it misses.
    """
    return "Ascend" if Path("/dev/davinci_manager").exists() else "CPU"


def set_seed(seed: int = 0) -> None:
    """Seed the global generators of MindSpore, numpy and Python.

    Raises:
        ConfigError: seed is not a whole number in [0, 2^32).
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ConfigError(f"seed must be a whole number from 0 to 2^32 - 1, got {seed!r}")
    ms.set_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def init_context(
    use_parallel: bool = False,
    context_config: Any = None,
    parallel_config: Any = None,
    output_dir: str | Path | None = None,
) -> tuple[int, int]:
    """Choose the device and set MindSpore up, once per process and before any tensor is computed.

    Calling it again with the same values is harmless. The arguments are not changed.

    Args:
        use_parallel: this process is one of several; communication is set up and ``parallel_config`` applied.
        context_config: a ContextConfig, a mapping, or a config section (anything with ``model_dump``).
        parallel_config: the same of ParallelContextConfig.
        output_dir: root of the run's files, for strategy files and graphs; None is the default output folder.

    Returns:
        (rank of this process, number of processes); (0, 1) without use_parallel.

    Raises:
        ConfigError: a key or a value is not allowed.
        DeviceError: the device is absent, or use_parallel was asked of a process no launcher started.
    """
    options, explicit = _as_dict(context_config, CONTEXT_KEYS, "context")
    parallel, _ = _as_dict(parallel_config, PARALLEL_KEYS, "parallel")
    target = _choose("context.device_target", options.get("device_target", "Ascend"), _TARGETS)
    mode = _MODES[_choose("context.mode", options.get("mode", 0), _MODES)]
    root = Path(get_output_root_path() if output_dir is None else output_dir)
    auto_parallel = _parallel_settings(parallel, target) if use_parallel else {}
    _set_device(target, _device_id(options, use_parallel))
    ms.set_context(mode=mode)
    _report_unused(options, explicit, target)
    _set_environment(options, target, root)
    library.configure(library.wish(options.get("native_kernels"), use_parallel), _threads(options))
    _set_runtime(options, target)
    if target != "CPU":
        _set_memory(options)
    if target == "Ascend":
        _set_ascend(options.get("ascend_config") or {})
    if not use_parallel:
        return 0, 1
    return _init_parallel(auto_parallel, parallel, target, root)


def _as_dict(config: Any, keys: tuple[str, ...], section: str) -> tuple[dict[str, Any], set[str]]:
    """A copy of the given values without None, and the names that were given rather than defaulted."""
    if config is None:
        return {}, set()
    values = config.model_dump() if hasattr(config, "model_dump") else config
    if not isinstance(values, Mapping):
        raise ConfigError(f"{section} must be a mapping or a config object, got {config!r}")
    check_keys(values, keys, section)
    explicit = set(getattr(config, "model_fields_set", values))
    return _without_none(values), explicit


def _choose(key: str, value: Any, choices: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str) or value not in choices:
        raise ConfigError(f"{key} is {value!r}; allowed: {', '.join(map(str, choices))}")
    return value


def _device_id(options: Mapping[str, Any], use_parallel: bool) -> int:
    given = os.environ.get("DEVICE_ID")
    value = given if given is not None and (use_parallel or "device_id" not in options) else options.get("device_id", 0)
    if not str(value).isdigit():
        raise ConfigError(f"device_id (or the environment variable DEVICE_ID) must be a whole number, got {value!r}")
    return int(value)


def _set_device(target: str, device_id: int) -> None:
    device_id = 0 if target == "CPU" else device_id  # CPU "devices" differ by process only
    try:
        ms.set_device(target, device_id)
    except RuntimeError as error:
        current = tuple(ms.get_current_device())
        if "Unsupported device target" in str(error):
            raise DeviceError(
                f"this machine has no usable {target} device, or its driver and CANN are not set up. "
                "Run on the CPU with --device_target CPU (or context.device_target: CPU in the YAML)"
            ) from error
        if current[0] != target or (target != "CPU" and current[1] != device_id):
            raise DeviceError(
                f"this process already runs on {current[0]} {current[1]} and cannot change to {target} {device_id}: "
                "call init_context before anything is computed, once per process"
            ) from error


def _report_unused(options: Mapping[str, Any], explicit: set[str], target: str) -> None:
    skipped = [key for key in NOT_ON_CPU if target == "CPU" and key in explicit and options.get(key)]
    if skipped:
        logger.info("on CPU these context keys have no effect: %s", ", ".join(skipped))
    gone = [key for key in GONE if key in explicit and options.get(key)]
    if gone:
        logger.debug("MindSpore 2.10 has no setting for these context keys: %s", ", ".join(gone))


def _set_environment(options: Mapping[str, Any], target: str, root: Path) -> None:
    """Settings that MindSpore reads from the environment when it compiles."""
    level = options.get("save_graphs", False)
    if level not in (False, True, 0, 1, 2, 3):
        raise ConfigError(f"context.save_graphs is {level!r}; allowed: False, True, 1, 2, 3")
    variables: dict[str, str] = {}
    if level:
        variables["MS_DEV_SAVE_GRAPHS"] = "2" if level is True else str(level)
        variables["MS_DEV_SAVE_GRAPHS_PATH"] = str(options.get("save_graphs_path") or root / "debug" / "graphs_info")
    if options.get("precompile_only"):
        variables["MS_DEV_PRECOMPILE_ONLY"] = "1"
    if any(options.get(key) for key in ("save_compile_cache", "load_compile_cache", "enable_compile_cache")):
        variables["MS_COMPILER_CACHE_ENABLE"] = "1"
        if "compile_cache_path" in options:
            variables["MS_COMPILER_CACHE_PATH"] = str(options["compile_cache_path"])
    if options.get("enable_graph_kernel") and options.get("graph_kernel_flags") and target != "CPU":
        variables["MS_DEV_GRAPH_KERNEL_FLAGS"] = str(options["graph_kernel_flags"])
    os.environ.update(variables)
    jit_level = options.get("jit_level") or ("O1" if options.get("enable_graph_kernel") and target != "CPU" else None)
    if jit_level:
        _call("jit_level", jit_level, lambda: ms.set_context(jit_config={"jit_level": jit_level}))


def _threads(options: Mapping[str, Any]) -> int:
    threads = options.get("runtime_num_threads") or 0
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 0:
        raise ConfigError(f"context.runtime_num_threads is {threads!r}; give a whole number, 0 for one per core")
    return threads


def _operator_threads(options: Mapping[str, Any], target: str) -> int | None:
    """Threads of MindSpore's own CPU operators; None leaves it to MindSpore.

    One beside the native kernels, which do nearly all of the work: MindSpore's threads wait for each other without
    giving way, and beside a busy process a training step then takes three times what its share of the cores explains.
    """
    if target == "CPU" and library.usable() and library.has_onednn():
        return 1
    every_core = len(os.sched_getaffinity(0)) if "runtime_num_threads" in _applied else None
    return options.get("runtime_num_threads") or every_core


def _set_runtime(options: Mapping[str, Any], target: str) -> None:
    if "max_call_depth" in options:
        depth = options["max_call_depth"]
        _call("max_call_depth", depth, lambda: ms.set_recursion_limit(depth))
    threads = _operator_threads(options, target)
    if threads:
        _once("runtime_num_threads", threads, lambda: ms.device_context.cpu.op_tuning.threads_num(threads))
    if options.get("inter_op_parallel_num"):
        number = options["inter_op_parallel_num"]
        _once("inter_op_parallel_num", number, lambda: ms.runtime.dispatch_threads_num(number))
    if options.get("pynative_synchronize"):
        ms.runtime.launch_blocking()
    deterministic = options.get("deterministic", False)
    if isinstance(deterministic, bool):
        deterministic = "ON" if deterministic else "OFF"
    if _choose("context.deterministic", deterministic, ("ON", "OFF")) == "ON":
        _once("deterministic", True, lambda: ms.set_deterministic(True))


def _set_memory(options: Mapping[str, Any]) -> None:
    names = {
        "max_device_memory": "max_size",
        "mempool_block_size": "increase_size",
        "memory_optimize_level": "optimize_level",
    }
    values = {new: str(options[old]).replace(" ", "") for old, new in names.items() if old in options}
    if values:
        _once("max_device_memory", values, lambda: ms.runtime.set_memory(**values))


def _set_ascend(config: Mapping[str, Any]) -> None:
    check_keys(config, (*_ASCEND_CONFIG, *ASCEND_CONFIG_OLD), "context.ascend_config")
    for key, value in config.items():
        if key in _ASCEND_CONFIG:
            module, function = _ASCEND_CONFIG[key]
            setter = getattr(getattr(ms.device_context.ascend, module), function)
            _once(f"ascend_config.{key}", value, lambda setter=setter, value=value: setter(value))
    old = {key: value for key, value in config.items() if key in ASCEND_CONFIG_OLD}
    if old:
        _call("ascend_config", old, lambda: ms.set_context(ascend_config=old))


def _call(key: str, value: Any, setter: Callable[[], Any]) -> None:
    try:
        setter()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"context.{key} is {value!r}: {str(error).splitlines()[0]}") from error


def _once(key: str, value: Any, setter: Callable[[], Any]) -> None:
    """Apply what MindSpore accepts once per process; a second, different value is reported and not applied."""
    if key in _applied:
        if _applied[key] != value:
            logger.warning(
                "context.%s stays %r: it cannot change to %r in a running process", key, _applied[key], value
            )
        return
    try:
        _call(key, value, setter)
    except RuntimeError as error:
        if "repeatedly" not in str(error):
            raise
        logger.warning("context.%s was set before, outside init_context, and keeps that value", key)
    _applied[key] = value


def _parallel_settings(parallel: Mapping[str, Any], target: str) -> dict[str, Any]:
    """Arguments of MindSpore's parallel context, checked before any process waits for the others."""
    mode = PARALLEL_MODE[_choose("parallel.parallel_mode", parallel.get("parallel_mode", 0), PARALLEL_MODE)]
    automatic = mode in ("semi_auto_parallel", "auto_parallel")
    passed = (*PARALLEL_PASSED, *AUTO_PARALLEL_PASSED) if automatic else PARALLEL_PASSED
    settings = {"parallel_mode": mode} | {key: _without_none(parallel[key]) for key in passed if key in parallel}
    optimizer_runs = automatic or (mode == "data_parallel" and target == "Ascend")
    if settings.get("enable_parallel_optimizer") and not optimizer_runs:
        raise ConfigError(
            f"parallel.enable_parallel_optimizer does not work in {mode} mode on {target}: set it to False"
        )
    parallel_context.check_settings(settings, target)
    return settings


def _init_parallel(settings: dict[str, Any], parallel: Mapping[str, Any], target: str, root: Path) -> tuple[int, int]:
    _check_launched(target)
    try:
        communication.init()
    except RuntimeError as error:
        raise DeviceError(
            f"the processes of this job could not be connected: {str(error).splitlines()[0]}. "
            "Look at the logs of all ranks for the first error"
        ) from error
    parallel_context.prepare_device(settings, target)
    rank, size = communication.get_rank(), communication.get_group_size()
    if parallel.get("device_num", size) != size:
        raise ConfigError(f"parallel.device_num is {parallel['device_num']}, but {size} processes were started")
    if settings["parallel_mode"] in ("semi_auto_parallel", "auto_parallel"):
        settings["strategy_ckpt_config"] = _strategy_files(parallel, root, rank)
    ms.reset_auto_parallel_context()
    ms.set_auto_parallel_context(device_num=size, global_rank=rank, **settings)
    return rank, size


def is_launched(target: str) -> bool:
    """Whether a launcher started this process as one of several on devices of a kind, by its environment."""
    return any(all(name in os.environ for name in names) for names in _launchers(target))


def _launchers(target: str) -> list[tuple[str, ...]]:
    """The variables each way of launching sets."""
    launched = [("MS_ROLE", "MS_SCHED_HOST", "MS_SCHED_PORT", "MS_WORKER_NUM")]
    if target == "Ascend":
        launched.append(("RANK_TABLE_FILE", "RANK_ID"))
    return launched


def _check_launched(target: str) -> None:
    launched = _launchers(target)
    if not is_launched(target):
        choices = " or ".join("/".join(names) for names in launched)
        raise DeviceError(
            f"use_parallel is True, but no launcher started this process (the environment has no {choices}). "
            "Start it with bash scripts/run_distribute.sh, or set use_parallel to False"
        )


def _strategy_files(parallel: Mapping[str, Any], root: Path, rank: int) -> dict[str, Any]:
    """``<output>/strategy/<name>_rank_{rank}.ckpt``, whatever folder the config names."""
    given = dict(parallel.get("strategy_ckpt_config") or {})
    name = Path(given.get("save_file") or parallel.get("strategy_ckpt_save_file") or "ckpt_strategy.ckpt").stem
    folder = root / "strategy"
    folder.mkdir(parents=True, exist_ok=True)
    return _without_none(given) | {"save_file": str(folder / f"{name}_rank_{rank}.ckpt")}


def _without_none(value: Any) -> Any:
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, Mapping) else value
