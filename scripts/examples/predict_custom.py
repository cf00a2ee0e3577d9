# SPDX-License-Identifier: Apache-2.0
"""Continue prompts with ``model.generate``: a script to copy and change.

python scripts/examples/predict_custom.py --yaml_file YAML --checkpoint_path FILE --model_type llama2_7b

Several devices: run_predict.sh starts it once per device; checkpoint_path is then a folder with one rank_N folder each.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import mindspore as ms
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mindformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MindFormerConfig,
    TransformerOpParallelConfig,
    init_context,
)
from mindformers.errors import CheckpointError, run_cli
from mindformers.tools.utils import str2bool
from mindformers.trainer.utils import get_last_checkpoint

PROMPTS = ("I love Beijing, because", "LLaMA is a", "Huawei is a company that")


def read_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; names and meanings are those of the model card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--yaml_file", required=True, help="config of the model")
    parser.add_argument("--checkpoint_path", default="", help="weights; with use_parallel a folder of rank_N folders")
    parser.add_argument("--model_type", default="llama2_7b", help="name or directory whose tokenizer is taken")
    parser.add_argument("--use_past", default=True, type=str2bool, help="generate with a key/value cache")
    parser.add_argument("--seq_length", default=512, type=int, help="longest text, prompt included")
    parser.add_argument("--device_id", type=int, help="device, unless the environment variable DEVICE_ID is set")
    parser.add_argument("--device_target", choices=["Ascend", "GPU", "CPU"], help="in place of the config's")
    parser.add_argument("--predict_data", nargs="+", default=list(PROMPTS), help="prompts")
    parser.add_argument("--batch_size", type=int, help="prompts generated together; default: all of them")
    return parser.parse_args(argv)


def load_model(args: argparse.Namespace) -> LlamaForCausalLM:
    """Set the device up and make the model with its weights, or with this rank's part of them."""
    config = MindFormerConfig(args.yaml_file)
    for key in ("device_id", "device_target"):
        if getattr(args, key) is not None:
            config.context[key] = getattr(args, key)
    rank, _ = init_context(
        use_parallel=config.use_parallel, context_config=config.context, parallel_config=config.parallel
    )
    model_config = LlamaConfig(**config.model.model_config)
    model_config.parallel_config = TransformerOpParallelConfig(**config.parallel_config)
    model_config.batch_size = args.batch_size or len(args.predict_data)
    model_config.use_past = args.use_past
    model_config.seq_length = args.seq_length
    model_config.checkpoint_name_or_path = "" if config.use_parallel else args.checkpoint_path
    if not args.checkpoint_path:
        raise CheckpointError("give the weights: --checkpoint_path FILE")
    model = LlamaForCausalLM(model_config)
    model.set_train(False)
    if config.use_parallel:
        load_slice(model, Path(args.checkpoint_path) / f"rank_{rank}")
    return model


def load_slice(model: LlamaForCausalLM, folder: Path) -> None:
    """Split the model over the ranks, then load this rank's part of the weights."""
    file = get_last_checkpoint(folder) if folder.is_dir() else None
    if file is None:
        raise CheckpointError(f"{folder} holds no checkpoint: --checkpoint_path needs one rank_N folder per device")
    if ms.get_auto_parallel_context("parallel_mode") in ("semi_auto_parallel", "auto_parallel"):
        ones = ms.Tensor(np.ones((model.config.batch_size, model.config.seq_length)), ms.int32)
        ms.Model(model).infer_predict_layout(ones)
    missing, _ = ms.load_param_into_net(model, ms.load_checkpoint(file))
    if missing:
        raise CheckpointError(f"{file} lacks {len(missing)} weights of the model, the first is {missing[0]}")
    print(f"weights of {folder.name} loaded from {file}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Print each prompt with its continuation."""
    args = read_arguments(argv)
    tokenizer = AutoTokenizer.from_pretrained(args.model_type)
    model = load_model(args)
    size = args.batch_size or len(args.predict_data)
    for start in range(0, len(args.predict_data), size):
        input_ids = tokenizer(args.predict_data[start : start + size], padding=True)["input_ids"]
        outputs = model.generate(
            input_ids,
            max_length=min(model.config.max_decode_length, args.seq_length),
            do_sample=model.config.do_sample,
            top_k=model.config.top_k,
            top_p=model.config.top_p,
        )
        for output in outputs:
            print(tokenizer.decode(output.tolist()), flush=True)
    return 0


if __name__ == "__main__":
    run_cli(main)
