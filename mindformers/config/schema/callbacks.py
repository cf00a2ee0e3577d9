# SPDX-License-Identifier: Apache-2.0
"""Sections ``callbacks`` and ``eval_callbacks``."""

from typing import Literal

from pydantic import Field

from mindformers.config.schema.base import (
    Component,
    Int,
    NonNegativeInt,
    PositiveInt,
    by_type,
    inert,
    other_component,
)
from mindformers.registry import MindFormerModuleType as Kind


class MFLossMonitor(Component):
    """One progress line and one line of metrics.jsonl per interval."""

    type: Literal["MFLossMonitor"] = Field(description="Class of the callback.")
    per_print_times: PositiveInt = Field(1, description="Steps between two lines.")
    tensorboard: bool = Field(False, description="Write TensorBoard files as well (extra: tensorboard).")


class CheckpointMonitor(Component):
    """Saves the training state; also by its old, misspelt name."""

    type: Literal["CheckpointMonitor", "CheckpointMointor"] = Field(description="Class of the callback.")
    prefix: str = Field(
        "CKP", pattern=r"^[^/\\\s]+$", description="First part of the file names, without slashes or spaces."
    )
    directory: str | None = Field(None, description="Folder of the checkpoints; output_dir if absent.")
    save_checkpoint_steps: NonNegativeInt = Field(1, description="Steps between two saves; 0 turns it off.")
    save_checkpoint_seconds: NonNegativeInt = Field(0, description="Seconds between two saves; 0 turns it off.")
    keep_checkpoint_max: PositiveInt = Field(5, description="Newest checkpoints kept.")
    keep_checkpoint_per_n_minutes: NonNegativeInt = inert(
        0, "keep one checkpoint per so many minutes", "keep_checkpoint_max decides"
    )
    checkpoint_format: Literal["ckpt", "safetensors"] = Field("ckpt", description="Format of the files.")
    integrated_save: bool = Field(True, description="Join sliced weights before saving; off in (semi-)auto parallel.")
    async_save: bool = Field(False, description="Write in the background.")
    save_network_params: bool | None = Field(
        None, description="Also keep one file with the weights alone; if absent, True, but False with pet_config."
    )
    save_trainable_params: bool | None = Field(
        None, description="Also keep one file with the trainable weights; if absent, False, but True with pet_config."
    )
    exception_save: bool = Field(False, description="Save when training stops by an error.")


class ObsMonitor(Component):
    """Copies the output to Huawei's object store; without effect outside ModelArts."""

    type: Literal["ObsMonitor"] = Field(description="Class of the callback.")
    src_dir: str | None = Field(None, description="Folder to copy; the output folder if absent.")
    target_dir: str | None = Field(None, description="Address; REMOTE_SAVE_URL of the environment if absent.")
    step_upload_frequence: Int = Field(100, description="Steps between two uploads; -1 turns it off.")
    epoch_upload_frequence: Int = Field(-1, description="Epochs between two uploads; -1 turns it off.")
    keep_last: bool = Field(True, description="Leave only the newest files there.")


class SummaryMonitor(Component):
    """MindSpore's summary files."""

    type: Literal["SummaryMonitor"] = Field(description="Class of the callback.")
    summary_dir: str | None = Field(None, description="Folder; <output_dir>/summary/rank_N if absent.")
    collect_freq: PositiveInt = Field(10, description="Steps between two records.")


class ProfileMonitor(Component):
    """MindSpore's profiler for some steps."""

    type: Literal["ProfileMonitor"] = Field(description="Class of the callback.")
    start_step: PositiveInt = Field(1, description="First step.")
    stop_step: PositiveInt = Field(10, description="Last step.")
    output_path: str | None = Field(None, description="Folder; <output_dir>/profile/rank_N if absent.")
    start_profile: bool = Field(True, description="Start with the profiler running.")
    profile_communication: bool = Field(False, description="Record collective communication.")
    profile_memory: bool = Field(True, description="Record memory.")


class EvalCallBack(Component):
    """Evaluates while training; do_eval adds it by itself."""

    type: Literal["EvalCallBack"] = Field(description="Class of the callback.")
    step_interval: Int = Field(100, description="Steps between two evaluations; -1 turns it off.")
    epoch_interval: Int = Field(-1, description="Epochs between two evaluations; -1 turns it off.")


OtherCallback = other_component(Kind.CALLBACK, "OtherCallback")
AnyCallback = by_type(
    Kind.CALLBACK,
    (MFLossMonitor, CheckpointMonitor, ObsMonitor, SummaryMonitor, ProfileMonitor, EvalCallBack),
    OtherCallback,
)
