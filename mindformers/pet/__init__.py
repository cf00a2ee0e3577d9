# SPDX-License-Identifier: Apache-2.0
"""Parameter-efficient finetuning: low-rank adapters (LoRA) on the linear layers of a model."""

from mindformers.pet.adapter import LoraConfig, get_pet_model
from mindformers.pet.lora import LoRADense

__all__ = ["LoRADense", "LoraConfig", "get_pet_model"]
