# SPDX-License-Identifier: Apache-2.0
"""EM/F1 of 200 SQuAD paragraphs with a model of stories260k's size: batches against one prompt at a time.

``python benchmarks/evaluate.py --squad dev-v1.1.json --tokenizer tokenizer.model --json out.jsonl``

Both ways run the same code (``generate_answers``) on the same records, compiled beforehand, and must give the same
texts. The first question of each paragraph is asked, 20 new tokens at most, as the model card does. ``ratio`` is one by
one over batched seconds, the median of rounds taken in turn. Weights are random by default: the time does not depend on
them, except that they rarely end an answer early.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import emit, peak_memory_mb, spread


def squad_prompts(path: str, tokenizer: Any, count: int, longest: int) -> list[Any]:
    """Questions whose prompt has at most ``longest`` tokens, one per paragraph, in the order of the file."""
    from mindformers.trainer.generate_evaluate import Question

    content = json.loads(Path(path).read_text(encoding="utf-8"))
    paragraphs = (paragraph for article in content["data"] for paragraph in article["paragraphs"])
    questions: list[Any] = []
    for paragraph in paragraphs:
        qa = paragraph["qas"][0]
        text = (
            "Read the passage and answer the question below.\n\n### Instruction:\n"
            f"{paragraph['context']}\n\n### Input:\n{qa['question']}\n\n### Response:"
        )
        ids = tokenizer(text)["input_ids"]
        if len(ids) <= longest:
            answers = tuple(answer["text"] for answer in qa["answers"])
            questions.append(Question(len(questions), np.array(ids, np.int32), answers))
        if len(questions) == count:
            return questions
    raise SystemExit(f"{path} has only {len(questions)} prompts of at most {longest} tokens; {count} are wanted")


def build(vocab_size: int, seq_length: int) -> Any:
    """A Llama of the size of stories260k (260K parameters) with random weights."""
    import mindspore as ms

    from mindformers.models.llama.llama import LlamaForCausalLM
    from mindformers.models.llama.llama_config import LlamaConfig

    ms.set_device("CPU")
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_seed(0)
    kinds = ("compute_dtype", "param_init_type", "layernorm_compute_type", "softmax_compute_type", "rotary_dtype")
    config = LlamaConfig(
        hidden_size=64, intermediate_size=172, num_layers=5, num_heads=8, n_kv_heads=4, vocab_size=vocab_size,
        seq_length=seq_length, tie_word_embeddings=True, initializer_range=0.05, use_past=True, do_sample=False,
        max_new_tokens=20, **dict.fromkeys(kinds, "float32"),
    )  # fmt: skip
    return LlamaForCausalLM(config)


def answer(network: Any, tokenizer: Any, questions: Sequence[Any], batch_size: int) -> tuple[float, dict[int, str]]:
    """Seconds, and the text for each question."""
    from mindformers.trainer.generate_evaluate import generate_answers

    begin = time.perf_counter()
    batches = list(generate_answers(network, tokenizer, questions, batch_size))
    seconds = time.perf_counter() - begin
    return seconds, {record["index"]: record["prediction"] for batch in batches for record in batch}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--squad", required=True, help="dev-v1.1.json")
    parser.add_argument("--tokenizer", required=True, help="tokenizer.model; 512 pieces give stories260k's size")
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--batch", type=int, nargs="+", default=[32])
    parser.add_argument("--seq_length", type=int, default=512)
    parser.add_argument("--reps", type=int, default=3, help="rounds, taken in turn")
    parser.add_argument("--json", help="file the records are appended to")
    args = parser.parse_args()
    from mindformers.models.llama.llama_tokenizer import LlamaTokenizer

    tokenizer = LlamaTokenizer(args.tokenizer)
    questions = squad_prompts(args.squad, tokenizer, args.records, args.seq_length - 20)
    network = build(tokenizer.vocab_size, args.seq_length)
    for batch in args.batch:
        edges = sorted(questions, key=lambda question: len(question.prompt))
        for size in (1, batch):  # compile the graphs of both, for short and for long prompts
            answer(network, tokenizer, [*edges[:1], *edges[-1:]], size)
        singles, batched = [], []
        for _ in range(args.reps):
            alone, texts = answer(network, tokenizer, questions, 1)
            together, same = answer(network, tokenizer, questions, batch)
            if texts != same:
                different = sum(texts[index] != same[index] for index in texts)
                raise SystemExit(f"{different} of {len(texts)} texts differ between batches and single prompts")
            singles.append(alone)
            batched.append(together)
        lengths = [len(question.prompt) for question in questions]
        emit(
            {
                "benchmark": "evaluate", "records": len(questions), "batch": batch, "reps": args.reps,
                "prompt_tokens": spread(lengths), "one_by_one_s": spread(singles), "batched_s": spread(batched),
                "ratio": spread([a / b for a, b in zip(singles, batched, strict=True)]),
                "records_per_s": len(questions) / spread(batched)["median"], "peak_mb": peak_memory_mb(),
                "different_texts": len(set(texts.values())),
            },
            args.json,
        )  # fmt: skip


if __name__ == "__main__":
    main()
