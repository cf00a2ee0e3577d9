# SPDX-License-Identifier: Apache-2.0
"""The device context: the only writer of MindSpore's global state, and the only reader of the ranks' environment.

Old context keys are mapped onto the API of MindSpore 2.10, which replaced most of ``set_context``. Keys of another
device are left out with one line in the log, so that a YAML for Ascend runs on CPU with ``--device_target CPU``.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import mindspore as ms
import numpy as np

from mindformers.errors import ConfigError, DeviceError
from mindformers.tools.logger import get_logger
from mindformers.tools.utils import did_you_mean

logger = get_logger(__name__)

_MODES = {0: 0, 1: 1, "0": 0, "1": 1, "GRAPH_MODE": 0, "PYNATIVE_MODE": 1}
_PARALLEL_MODES = {
    0: "data_parallel",
    1: "semi_auto_parallel",
    2: "auto_parallel",
    3: "hybrid_parallel",
    "STAND_ALONE": "stand_alone",
    "DATA_PARALLEL": "data_parallel",
    "SEMI_AUTO_PARALLEL": "semi_auto_parallel",
    "AUTO_PARALLEL": "auto_parallel",
    "HYBRID_PARALLEL": "hybrid_parallel",
}
_DTYPES = {
    "Ascend": ("float32", "float16", "bfloat16"),
    "GPU": ("float32", "float16"),
    "CPU": ("float32", "float16"),
}


def device_capabilities(device_target: str) -> tuple[str, ...]:
    """Names of the floating point types MindSpore has kernels for on a device target."""
    return _DTYPES[device_target]


def set_seed(seed: int) -> None:
    """Seed MindSpore (weights, dropout) and NumPy's global generator."""
    ms.set_seed(seed)
    np.random.seed(seed % 2**32)


class ContextConfig:
    """The ``context`` section for scripts.

    Args:
        mode: 0 or "GRAPH_MODE", 1 or "PYNATIVE_MODE".
        device_target: "Ascend", "GPU" or "CPU".
        device_id: number of the device; default the environment's DEVICE_ID, else 0.
        **options: further keys of the section, see docs/config.md.

    Raises:
        ConfigError: an unknown key.
    """

    def __init__(
        self, mode: int | str = 0, device_target: str = "Ascend", device_id: int | None = None, **options: Any
    ) -> None:
        from mindformers.config.schema.context import ContextSection

        _known(options, ContextSection.model_fields, "ContextConfig")
        self.mode = mode
        self.device_target = device_target
        self.device_id = int(os.environ.get("DEVICE_ID", 0)) if device_id is None else device_id
        self.__dict__.update(options)


class ParallelContextConfig:
    """The ``parallel`` section for scripts.

    Args:
        parallel_mode: 0 to 3 or a name such as "SEMI_AUTO_PARALLEL".
        device_num: number of ranks; default the environment's RANK_SIZE, else 1.
        gradients_mean: average gradients over the ranks instead of adding them.
        **options: further keys of the section, see docs/config.md.

    Raises:
        ConfigError: an unknown key.
    """

    def __init__(
        self, parallel_mode: int | str = "STAND_ALONE", device_num: int | None = None, gradients_mean: bool = False,
        **options: Any,
    ) -> None:  # fmt: skip
        from mindformers.config.schema.parallel import ParallelSection

        _known(options, ParallelSection.model_fields, "ParallelContextConfig")
        self.parallel_mode = parallel_mode
        self.device_num = int(os.environ.get("RANK_SIZE", 1)) if device_num is None else device_num
        self.gradients_mean = gradients_mean
        self.__dict__.update(options)


def init_context(
    use_parallel: bool = False, context_config: Any = None, parallel_config: Any = None
) -> tuple[int, int]:
    """Set up the device and, for parallel runs, communication.

    Args:
        use_parallel: whether several ranks work together.
        context_config: section ``context``: a mapping, a config section or a ContextConfig; it is not changed.
        parallel_config: section ``parallel`` in the same forms.

    Returns:
        Rank of this process and number of ranks.

    Raises:
        ConfigError: a value is not allowed.
        DeviceError: the device is absent, or the ranks were not started by a launcher.
    """
    options = {"mode": 0, "device_target": "Ascend", "device_id": 0} | _mapping(context_config)
    if use_parallel and "DEVICE_ID" in os.environ:
        options["device_id"] = int(os.environ["DEVICE_ID"])
    _set_device(options["device_target"], options["device_id"])
    ms.set_context(mode=_choice("context.mode", options["mode"], _MODES))
    for key, value in options.items():
        if key in _SETTERS and value is not None:
            _apply(key, value, options)
    if not use_parallel:
        return 0, 1
    return _init_parallel(_mapping(parallel_config), options["device_target"])


def _set_device(target: str, device_id: int) -> None:
    if target not in _DTYPES:
        raise ConfigError(f"context.device_target {target!r} is not one of: {', '.join(_DTYPES)}")
    try:
        if target == "CPU":
            ms.set_device("CPU")
        elif not (_current_device() == target and ms.get_context("device_id") == device_id):
            ms.set_device(target, device_id)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        if "can not be modified" in reason:
            raise DeviceError(
                f"this process already runs on {_current_device()}: one process keeps one device. "
                f"Start a new process for {target} {device_id}"
            ) from error
        raise DeviceError(
            f"no {target} device is usable on this machine ({reason.split('. ')[0]}). To run on the processor: "
            "--device_target CPU (or context.device_target: CPU in the YAML)"
        ) from error


def _current_device() -> str:
    return ms.get_context("device_target")


def _set_memory(options: Mapping[str, Any]) -> None:
    memory = {"max_size": _gigabytes(options["max_device_memory"])}
    if options.get("mempool_block_size"):
        memory["increase_size"] = _gigabytes(options["mempool_block_size"])
    if options.get("memory_optimize_level"):
        memory["optimize_level"] = options["memory_optimize_level"]
    ms.runtime.set_memory(**memory)


def _gigabytes(text: str) -> str:
    """``58GB`` as MindSpore wants it: a whole or decimal number followed directly by GB."""
    return text.replace(" ", "")


def _save_graphs(options: Mapping[str, Any]) -> None:
    level = int(options["save_graphs"])
    if level:
        os.environ["MS_DEV_SAVE_GRAPHS"] = str(level)
        os.environ["MS_DEV_SAVE_GRAPHS_PATH"] = str(options.get("save_graphs_path") or "./graph")


def _compile_cache(options: Mapping[str, Any]) -> None:
    if options.get("save_compile_cache") or options.get("load_compile_cache"):
        os.environ["MS_COMPILER_CACHE_ENABLE"] = "1"


def _deterministic(options: Mapping[str, Any]) -> None:
    if options["deterministic"] in (True, "ON"):
        ms.set_deterministic(True)


def _jit_level(options: Mapping[str, Any]) -> None:
    level = options.get("jit_level") or ("O1" if options.get("enable_graph_kernel") else None)
    if level:
        ms.set_context(jit_config={"jit_level": level})


def _ascend_config(options: Mapping[str, Any]) -> None:
    """Keys of ``ascend_config`` that have a place in ``device_context.ascend``."""
    precision, tuning = ms.device_context.ascend.op_precision, ms.device_context.ascend.op_tuning
    setters = {
        "precision_mode": precision.precision_mode,
        "op_precision_mode": precision.op_precision_mode,
        "matmul_allow_hf32": precision.matmul_allow_hf32,
        "conv_allow_hf32": precision.conv_allow_hf32,
        "jit_compile": tuning.op_compile,
    }
    for key, value in options["ascend_config"].items():
        if key in setters:
            setters[key](value)
        else:
            logger.warning("context.ascend_config.%s has no counterpart in MindSpore 2.10 and is ignored", key)


def _threads(options: Mapping[str, Any]) -> None:
    if options["runtime_num_threads"] and options["device_target"] == "CPU":
        ms.device_context.cpu.op_tuning.threads_num(int(options["runtime_num_threads"]))


def _synchronize(options: Mapping[str, Any]) -> None:
    if options["pynative_synchronize"]:
        ms.runtime.launch_blocking()


def _dispatch_threads(options: Mapping[str, Any]) -> None:
    if options["inter_op_parallel_num"]:
        ms.runtime.dispatch_threads_num(int(options["inter_op_parallel_num"]))


# key of the section -> (device targets it is for, or None for all; how it is set)
_SETTERS: dict[str, tuple[tuple[str, ...] | None, Callable[[Mapping[str, Any]], None]]] = {
    "max_device_memory": (("Ascend", "GPU"), _set_memory),
    "max_call_depth": (None, lambda options: ms.set_recursion_limit(int(options["max_call_depth"]))),
    "save_graphs": (None, _save_graphs),
    "save_compile_cache": (None, _compile_cache),
    "load_compile_cache": (None, _compile_cache),
    "runtime_num_threads": (None, _threads),
    "inter_op_parallel_num": (None, _dispatch_threads),
    "pynative_synchronize": (None, _synchronize),
    "deterministic": (None, _deterministic),
    "enable_graph_kernel": (("Ascend", "GPU"), _jit_level),
    "jit_level": (None, _jit_level),
    "ascend_config": (("Ascend",), _ascend_config),
}


def _apply(key: str, value: Any, options: Mapping[str, Any]) -> None:
    targets, setter = _SETTERS[key]
    if targets is not None and options["device_target"] not in targets:
        if value:
            logger.debug("context.%s is for %s and is left out on %s", key, "/".join(targets), options["device_target"])
        return
    setter(options)


def _init_parallel(options: dict[str, Any], target: str) -> tuple[int, int]:
    if target == "CPU" and "MS_ROLE" not in os.environ:
        raise DeviceError(
            "use_parallel is True, but this process was not started as one of several ranks. Start it with "
            "bash scripts/run_distribute.sh RANK_TABLE_FILE CONFIG [0,N] MODE, or run one process with "
            "--use_parallel False"
        )
    mode = _choice("parallel.parallel_mode", options.get("parallel_mode", 0), _PARALLEL_MODES)
    try:
        ms.communication.init()
    except (RuntimeError, ValueError) as error:
        raise DeviceError(f"the ranks cannot reach each other: {str(error).splitlines()[0]}") from error
    rank, size = ms.communication.get_rank(), ms.communication.get_group_size()
    if mode != "data_parallel" and target == "CPU":
        raise DeviceError(
            f"parallel_mode {mode} needs an Ascend device; on CPU: parallel.parallel_mode: 0 (data parallel)"
        )
    names = ("gradients_mean", "full_batch", "search_mode", "enable_parallel_optimizer", "enable_alltoall")
    wanted = {name: options[name] for name in names if options.get(name) is not None}
    if mode == "data_parallel":
        wanted = {"gradients_mean": options.get("gradients_mean", True)}
    ms.set_auto_parallel_context(parallel_mode=mode, device_num=size, **wanted)
    return rank, size


def _mapping(section: Any) -> dict[str, Any]:
    """A fresh dict of a section in any of its forms, without keys that are None."""
    if section is None:
        return {}
    if isinstance(section, Mapping):
        values = dict(section)
    elif hasattr(section, "to_dict"):
        values = section.to_dict()
    else:
        values = dict(vars(section))
    return {key: value for key, value in values.items() if value is not None}


def _choice(key: str, value: Any, table: Mapping[Any, Any]) -> Any:
    if isinstance(value, bool) or value not in table:
        raise ConfigError(f"{key} {value!r} is not one of: {', '.join(map(str, table))}")
    return table[value]


def _known(options: Mapping[str, Any], names: Mapping[str, Any], where: str) -> None:
    for key in options:
        if key not in names:
            raise ConfigError(f"{where}: unknown key {key!r}.{did_you_mean(key, list(names), 'keys')}")
