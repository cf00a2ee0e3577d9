# SPDX-License-Identifier: Apache-2.0
"""Section ``context``: the device and how MindSpore compiles and runs on it."""

from typing import Any, Literal

from pydantic import Field

from mindformers.config.schema.base import NonNegativeInt, PositiveInt, Section, inert

_GRAPH_KERNEL_FLAGS = (
    "--disable_expand_ops=Softmax,Dropout --enable_parallel_fusion=true --reduce_fuse_depth=8 "
    "--enable_auto_tensor_inplace=true"
)
_GONE = "MindSpore 2.10 has no such setting"


class ContextSection(Section):
    """Section ``context``; every key maps onto the current MindSpore API."""

    mode: Literal[0, 1, "GRAPH_MODE", "PYNATIVE_MODE"] = Field(
        0, description="0 or GRAPH_MODE compiles the whole network; 1 or PYNATIVE_MODE runs op by op (for debugging)."
    )
    device_target: Literal["Ascend", "GPU", "CPU"] = Field("Ascend", description="Kind of device to run on.")
    device_id: NonNegativeInt = Field(
        0, description="Number of the device; with use_parallel the environment variable DEVICE_ID wins."
    )
    max_device_memory: str = Field(
        "30GB", pattern=r"^\d+(\.\d+)?\s*GB$", description="Most memory taken of an Ascend or GPU device, as 30GB."
    )
    mempool_block_size: str | None = Field(
        None, pattern=r"^\d+(\.\d+)?\s*GB$", description="Block size of the memory pool, as 1GB; MindSpore's if absent."
    )
    memory_optimize_level: Literal["O0", "O1"] | None = Field(
        None, description="O1 reuses memory more aggressively; MindSpore's default if absent."
    )
    variable_memory_max_size: str | None = inert(None, "memory kept for parameters", _GONE)
    max_call_depth: PositiveInt = Field(10000, description="Deepest nesting of calls the compiler accepts.")
    save_graphs: bool | Literal[0, 1, 2, 3] = Field(
        False, description="Write the compiler's graphs: True or a level 1 to 3."
    )
    save_graphs_path: str = Field("./graph", description="Folder for the graphs of save_graphs.")
    precompile_only: bool = Field(False, description="Compile the network, run nothing.")
    enable_dump: bool = inert(False, "dump of operator inputs and outputs", _GONE)
    save_dump_path: str = inert(".", "folder of enable_dump", _GONE)
    enable_profiling: bool = inert(False, "profiling from the context", "use the top-level key profile")
    profiling_options: str | None = inert(None, "profiling from the context", "use the top-level key profile")
    enable_graph_kernel: bool = Field(False, description="Fuse ops by graph kernels (jit_level O1).")
    graph_kernel_flags: str = Field(
        _GRAPH_KERNEL_FLAGS, description="Flags of enable_graph_kernel; used on Ascend and GPU only."
    )
    enable_auto_mixed_precision: bool = inert(False, "automatic mixed precision", "the model's dtype keys decide")
    enable_reduce_precision: bool = inert(True, "automatic lowering of precision", "the model's dtype keys decide")
    auto_tune_mode: str = inert("NO_TUNE", "operator tuning", _GONE)
    reserve_class_name_in_scope: bool = inert(True, "class names in scopes", _GONE)
    check_bprop: bool = inert(False, "checks of gradients of ops", _GONE)
    enable_sparse: bool = inert(False, "sparse tensors", _GONE)
    grad_for_scalar: bool = inert(False, "gradients of scalars", _GONE)
    print_file_path: str | None = inert(None, "file for printed tensors", _GONE)
    env_config_path: str | None = inert(None, "file with settings for the recorder", _GONE)
    save_compile_cache: bool = Field(False, description="Keep the compiled training step on disk, one for each config.")
    load_compile_cache: bool = Field(False, description="The same cache as save_compile_cache.")
    enable_compile_cache: bool = Field(False, description="The same cache as save_compile_cache.")
    compile_cache_path: str | None = Field(
        None, description="Folder of the compile cache; output_dir/compile_cache if absent."
    )
    runtime_num_threads: NonNegativeInt | None = Field(
        None,
        description="CPU threads for kernels; 0 or absent means one per core. "
        "Beside native_kernels MindSpore's own ops take one.",
    )
    inter_op_parallel_num: NonNegativeInt | None = Field(
        None, description="CPU threads that run ops side by side; MindSpore's default if absent."
    )
    pynative_synchronize: bool = Field(False, description="Wait for each op, so that an error shows where it arose.")
    deterministic: Literal["ON", "OFF"] | bool = Field(
        "OFF", description="ON makes device kernels give the same bits in every run, slower."
    )
    jit_level: Literal["O0", "O1", "O2"] | None = Field(
        None, description="How much the compiler optimises; MindSpore's default if absent."
    )
    ascend_config: dict[str, Any] = Field(
        default_factory=dict,
        description="Ascend precision and tuning keys (precision_mode, jit_compile, ...), passed on as they are.",
    )
    native_kernels: bool | None = Field(
        None,
        description="Use the native CPU kernels (docs/native.md); absent: where they are built, in one process. The "
        "environment variable MINDFORMERS_NATIVE=0 or 1 overrides it.",
    )
