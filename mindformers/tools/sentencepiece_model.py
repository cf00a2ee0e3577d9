# SPDX-License-Identifier: Apache-2.0
"""Opening a SentencePiece model file, with errors a user can act on. Does not import MindSpore."""

from pathlib import Path
from typing import Any

from mindformers.errors import DataError
from mindformers.tools.utils import listing


def load_sentencepiece(model_file: str | Path, **options: Any) -> Any:
    """Load a SentencePiece model.

    Args:
        model_file: path of the model, usually ``tokenizer.model``.
        **options: keyword arguments of ``sentencepiece.SentencePieceProcessor`` (for instance ``nbest_size``).

    Returns:
        The ``SentencePieceProcessor``.

    Raises:
        DataError: the path is missing, a directory, empty, unreadable, or not a SentencePiece model.
    """
    if not isinstance(model_file, str | Path) or not str(model_file):
        raise DataError(f"vocab_file must be the path of a SentencePiece model (tokenizer.model), got {model_file!r}")
    path = Path(model_file)
    if path.is_dir():
        names = listing(sorted(entry.name for entry in path.iterdir()))
        raise DataError(
            f"{path} is a directory; give the SentencePiece model file itself. "
            f"The directory holds: {names or 'nothing'}"
        )
    if not path.is_file():
        raise DataError(f"SentencePiece model not found: {path}. Llama 2 ships it as 'tokenizer.model'.")
    try:
        proto = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the SentencePiece model {path}: {error.strerror}") from error
    return parse_sentencepiece(proto, str(path), **options)


def parse_sentencepiece(proto: bytes, name: str, **options: Any) -> Any:
    """Build a processor from the bytes of a model; ``name`` is what an error message calls it."""
    import sentencepiece

    if not proto:
        raise DataError(f"the SentencePiece model {name} is empty (0 bytes); copy or download it again")
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=proto, **options)
    except TypeError as error:
        raise DataError(f"sentencepiece does not accept these options for {name}: {options} ({error})") from error
    except RuntimeError as error:
        raise DataError(
            f"{name} ({len(proto)} bytes) is not a SentencePiece model, or is damaged. A Hugging Face "
            "'tokenizer.json' "
            f"or a Git LFS pointer will not do; use 'tokenizer.model'. ({str(error).splitlines()[0]})"
        ) from error
    if processor.get_piece_size() == 0:
        raise DataError(f"the SentencePiece model {name} holds no pieces; copy or download it again")
    return processor
