# SPDX-License-Identifier: Apache-2.0
"""Real text that every machine has, and a tokenizer trained on it: the data of the quickstart.

The text is the language reference inside CPython (module pydoc_data.topics), about 80 chapters of English
prose with code. Both commands write to a temporary name first, and give the same bytes for the same Python.
"""

import argparse
import io
from pathlib import Path

from mindformers.atomic import write_bytes, write_text
from mindformers.errors import DataError, run_cli

VALID_EVERY = 16  # every 16th chapter, about 5% of the text, is kept out of training
LONG_PARAGRAPH = 60  # characters; repeats of shorter ones (headings, "Changed in version ...") are no leak


def split_text(topics: dict[str, str]) -> tuple[str, str]:
    """Split the chapters into training and validation text.

    Args:
        topics: name and text of each chapter; paragraphs are separated by blank lines.

    Returns:
        Training and validation text. Chapters quote each other, so a long paragraph is kept only where it
        occurs first, validation before training: no long paragraph of the one is in the other.
    """
    names = sorted(topics)
    valid = names[VALID_EVERY - 1 :: VALID_EVERY]
    seen: set[str] = set()
    texts = []
    for part in (valid, [name for name in names if name not in valid]):
        kept = []
        for name in part:
            for paragraph in topics[name].strip().split("\n\n"):
                if len(paragraph) >= LONG_PARAGRAPH and paragraph in seen:
                    continue
                seen.add(paragraph)
                kept.append(paragraph.strip("\n"))
        texts.append("\n\n".join(kept) + "\n")
    return texts[1], texts[0]


def make_text(output_dir: Path) -> None:
    """Write train.txt and valid.txt."""
    from pydoc_data.topics import topics

    output_dir.mkdir(parents=True, exist_ok=True)
    for name, text in zip(("train.txt", "valid.txt"), split_text(topics), strict=True):
        write_text(output_dir / name, text)
        print(f"{output_dir / name}: {len(text):,} characters, {text.count(chr(10) * 2) + 1:,} paragraphs")


def make_tokenizer(source: Path, output: Path, vocab_size: int) -> None:
    """Train a byte-pair SentencePiece model in the form of Llama's: unk, bos, eos, 256 bytes, pieces.

    Args:
        source: UTF-8 text to learn from.
        output: the model file.
        vocab_size: number of pieces, at least the 259 that are fixed plus the characters of the text.
    """
    import sentencepiece

    if not source.is_file():
        raise DataError(f"{source} does not exist; make it first: python scripts/quickstart_data.py text")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(source.read_text(encoding="utf-8").split("\n\n")),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            byte_fallback=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=1_000_000,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(f"SentencePiece cannot learn {vocab_size} pieces from {source}: {error}") from error
    output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(output, model.getvalue())
    print(f"{output}: {vocab_size} pieces, {len(model.getvalue()):,} bytes")


def main() -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    text = commands.add_parser("text", help="write train.txt and valid.txt")
    text.add_argument("--output_dir", type=Path, required=True)
    tokenizer = commands.add_parser("tokenizer", help="train a SentencePiece model")
    tokenizer.add_argument("--input", type=Path, required=True, help="UTF-8 text")
    tokenizer.add_argument("--output", type=Path, required=True, help="the .model file to write")
    tokenizer.add_argument("--vocab_size", type=int, required=True)
    arguments = parser.parse_args()
    if arguments.command == "text":
        make_text(arguments.output_dir)
    else:
        make_tokenizer(arguments.input, arguments.output, arguments.vocab_size)


if __name__ == "__main__":
    run_cli(main)
