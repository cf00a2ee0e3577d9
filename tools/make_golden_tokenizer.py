# SPDX-License-Identifier: Apache-2.0
"""Write tests/golden/tokenizer_llama2.json with the slow, legacy LlamaTokenizer of transformers 4.x.

    python -m venv venv && venv/bin/pip install 'transformers<5' sentencepiece
    venv/bin/python tools/make_golden_tokenizer.py ../shared/data/llama2_tokenizer/tokenizer.model

transformers 5.x builds an empty tokenizer from a vocabulary file, so it cannot make this file.
"""

import json
import sys
from pathlib import Path
from typing import Any

import transformers

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from tests.parity import tokenizer_cases as cases  # noqa: E402  (needs the line above)


def make(model_file: str) -> dict[str, Any]:
    """The content of the golden file."""
    options = {"pad_token": "<unk>", "legacy": True, "clean_up_tokenization_spaces": False}
    plain = transformers.LlamaTokenizer(model_file, **options)
    added = transformers.LlamaTokenizer(model_file, **options, additional_special_tokens=cases.ADDED_TOKENS)
    texts = cases.make_texts()
    hard = [[text, *cases.describe_text(plain, text)] for text in cases.HARD_TEXTS]
    return {
        "made_with": f"transformers {transformers.__version__} LlamaTokenizer(legacy=True)",
        "seed": cases.SEED,
        "hard": hard,
        "texts": [cases.digest(cases.describe_text(plain, text)) for text in texts],
        "texts_with_added_tokens": [cases.digest(cases.describe_text(added, text)) for text in texts[::4]],
        "ids": [cases.digest(cases.describe_ids(plain, row)) for row in cases.make_id_rows(cases.VOCAB_SIZE)],
        "ids_with_added_tokens": [
            cases.digest(cases.describe_ids(added, row))
            for row in cases.make_id_rows(cases.VOCAB_SIZE + len(cases.ADDED_TOKENS))
        ],
    }


def main() -> None:
    """Command line: the model file, optionally the output file."""
    if not transformers.__version__.startswith("4."):
        sys.exit(f"transformers 4.x is needed, this is {transformers.__version__}")
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else REPO / "tests" / "golden" / "tokenizer_llama2.json"
    target.write_text(json.dumps(make(sys.argv[1]), indent=0) + "\n", encoding="ascii")
    print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
