# SPDX-License-Identifier: Apache-2.0
"""Exported models: MindIR files written, opened by MindSpore or MindSpore Lite, and generated from."""

from mindformers.inference.exported_model import ExportedModel
from mindformers.inference.infer_config import InferConfig
from mindformers.inference.infer_task import InferTask, TextGeneratorInfer, get_mslite_pipeline

__all__ = ["ExportedModel", "InferConfig", "InferTask", "TextGeneratorInfer", "get_mslite_pipeline"]
