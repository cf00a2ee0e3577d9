# SPDX-License-Identifier: Apache-2.0
"""The keys of MindSpore's context and parallel context: pure data and holders, no effect on anything."""

from collections.abc import Mapping
from typing import Any

from mindformers.errors import ConfigError
from mindformers.tools.utils import did_you_mean

# Old keys that MindSpore 2.10 has no setting for; accepted, so that old YAMLs and scripts load.
GONE = (
    "auto_tune_mode", "check_bprop", "enable_auto_mixed_precision", "enable_dump", "enable_profiling",
    "enable_reduce_precision", "enable_sparse", "env_config_path", "grad_for_scalar", "print_file_path",
    "profiling_options", "reserve_class_name_in_scope", "save_dump_path", "variable_memory_max_size",
)  # fmt: skip
# Passed on to mindformers.native.
ELSEWHERE = ("native_kernels",)
# Without effect on CPU, where memory comes from malloc and the compiler has no graph kernels.
NOT_ON_CPU = (
    "ascend_config", "enable_graph_kernel", "graph_kernel_flags", "max_device_memory", "mempool_block_size",
    "memory_optimize_level",
)  # fmt: skip
CONTEXT_KEYS = (
    "mode", "device_target", "device_id", "save_graphs", "save_graphs_path", "precompile_only", "max_call_depth",
    "save_compile_cache", "load_compile_cache", "enable_compile_cache", "compile_cache_path", "runtime_num_threads",
    "inter_op_parallel_num", "pynative_synchronize", "deterministic", "jit_level", *NOT_ON_CPU, *GONE, *ELSEWHERE,
)  # fmt: skip
# Passed to MindSpore's parallel context as they are.
PARALLEL_PASSED = (
    "gradients_mean", "gradient_fp32_sync", "parameter_broadcast", "all_reduce_fusion_config", "comm_fusion",
    "enable_parallel_optimizer",
)  # fmt: skip
# Likewise, in semi-auto and auto parallel only.
AUTO_PARALLEL_PASSED = (
    "full_batch", "search_mode", "enable_alltoall", "pipeline_stages", "parallel_optimizer_config",
    "strategy_ckpt_load_file",
)  # fmt: skip
PARALLEL_KEYS = (
    "parallel_mode", "device_num", "global_rank", "strategy_ckpt_save_file", "strategy_ckpt_config",
    "auto_parallel_search_mode", "grad_accumulation_step", *PARALLEL_PASSED, *AUTO_PARALLEL_PASSED,
)  # fmt: skip

# Keys of it that still have no other way than the old one.
ASCEND_CONFIG_OLD = (
    "atomic_clean_policy", "ge_options", "hccl_watchdog", "host_scheduling_max_threshold",
    "parallel_speed_up_json_path", "topo_order",
)  # fmt: skip


class _Options:
    """Keyword arguments kept as attributes; unknown names are refused, None means "not given"."""

    _keys: tuple[str, ...] = ()

    def __init__(self, **values: Any) -> None:
        check_keys(values, self._keys, type(self).__name__)
        self.__dict__.update({key: value for key, value in values.items() if value is not None})

    def model_dump(self) -> dict[str, Any]:
        """The given values as a new dict."""
        return dict(self.__dict__)


class ContextConfig(_Options):
    """What ``init_context`` sets for one process.

    Args:
        mode: 0 or GRAPH_MODE, 1 or PYNATIVE_MODE.
        device_target: Ascend, GPU or CPU.
        device_id: number of the device; None takes the environment variable DEVICE_ID, else 0.
        save_graphs: False, True or a level 1 to 3: write the compiler's graphs.
        save_graphs_path: where; None is ``<output>/debug/graphs_info``.
        values: further keys of the YAML section ``context``, ``ascend_config`` included.

    Raises:
        ConfigError: a key is unknown.
    """

    _keys = CONTEXT_KEYS

    def __init__(
        self,
        mode: int | str = 0,
        device_target: str = "Ascend",
        device_id: int | None = None,
        save_graphs: bool | int = False,
        save_graphs_path: str | None = None,
        **values: Any,
    ) -> None:
        super().__init__(
            mode=mode,
            device_target=device_target,
            device_id=device_id,
            save_graphs=save_graphs,
            save_graphs_path=save_graphs_path,
            **values,
        )


class ParallelContextConfig(_Options):
    """How processes work together.

    Args:
        parallel_mode: 0 data, 1 semi-auto, 2 auto, 3 hybrid parallel, or the upper-case name.
        device_num: number of processes; None takes what the launcher set up.
        gradients_mean: average gradients over the processes instead of adding them.
        values: further keys of the YAML section ``parallel``.

    Raises:
        ConfigError: a key is unknown.
    """

    _keys = PARALLEL_KEYS

    def __init__(
        self,
        parallel_mode: int | str = "STAND_ALONE",
        device_num: int | None = None,
        gradients_mean: bool = False,
        **values: Any,
    ) -> None:
        super().__init__(parallel_mode=parallel_mode, device_num=device_num, gradients_mean=gradients_mean, **values)


def check_keys(values: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    """Raise a ConfigError that names the first unknown key of a section and the nearest known one."""
    for key in values:
        if key not in keys:
            raise ConfigError(f"{where}: unknown key {key!r}.{did_you_mean(str(key), keys)}")
