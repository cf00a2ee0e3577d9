# SPDX-License-Identifier: Apache-2.0
"""Continue prompts with a pipeline; the arguments are those of predict_custom.py.

python scripts/examples/predict_custom_pipeline.py --yaml_file YAML --checkpoint_path FILE --model_type llama2_7b
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from predict_custom import load_model, read_arguments

from mindformers import AutoTokenizer, pipeline
from mindformers.errors import run_cli


def main(argv: Sequence[str] | None = None) -> int:
    """Print one result per batch."""
    args = read_arguments(argv)
    tokenizer = AutoTokenizer.from_pretrained(args.model_type)
    model = load_model(args)
    generation = pipeline(task="text_generation", model=model, tokenizer=tokenizer)
    outputs = generation(
        args.predict_data,
        batch_size=args.batch_size or len(args.predict_data),
        max_length=min(model.config.max_decode_length, args.seq_length),
        do_sample=model.config.do_sample,
        top_k=model.config.top_k,
        top_p=model.config.top_p,
    )
    for output in outputs:
        print(output, flush=True)
    return 0


if __name__ == "__main__":
    run_cli(main)
