# SPDX-License-Identifier: Apache-2.0
"""InferConfig: which exported files to run, and where."""

from dataclasses import dataclass

from mindformers.errors import ConfigError

__all__ = ["InferConfig"]

_MODEL_TYPES = ("mindir", "mindir_lite")


@dataclass
class InferConfig:
    """Exported files and the device they run on.

    Args:
        prefill_model_path: MindIR of the graph that reads prompts, or of the only graph.
        increment_model_path: MindIR of the graph that appends a token; empty when there is one graph.
        model_type: ``mindir`` or ``mindir_lite``; both are opened the same way.
        model_name: name of the model, for messages.
        infer_seq_length: sequence length of the files; None takes theirs.
        target: ``Ascend`` or ``CPU``, for Lite; MindSpore uses the device of its context.
        device_id: device of this process.
        rank_id: rank of this process.
        ge_config_path: Lite's configuration file (lite.ini).
        backend: ``mslite``, ``ms``, or None: Lite where it is installed.

    Raises:
        ConfigError: a value is not allowed.
    """

    prefill_model_path: str = ""
    increment_model_path: str = ""
    model_type: str = "mindir"
    model_name: str = "common"
    infer_seq_length: int | None = None
    target: str = "Ascend"
    device_id: int = 0
    rank_id: int = 0
    ge_config_path: str = ""
    backend: str | None = None

    def __post_init__(self) -> None:
        if not self.prefill_model_path:
            raise ConfigError("prefill_model_path is empty: give the MindIR file that tools/export.py wrote")
        if self.model_type not in _MODEL_TYPES:
            raise ConfigError(f"model_type {self.model_type!r} is not allowed: give one of {', '.join(_MODEL_TYPES)}")
        if self.target not in ("Ascend", "CPU"):
            raise ConfigError(f"target {self.target!r} is not allowed: give Ascend or CPU")
