# SPDX-License-Identifier: Apache-2.0
"""Evaluation by generated answers: prompts out of records, texts into a resumable file, scores at the end."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn
from tqdm import tqdm

from mindformers.checkpoint.digest import file_digest
from mindformers.checkpoint.layout import OutputLayout
from mindformers.checkpoint.names import is_weight_name
from mindformers.config import RunConfig
from mindformers.core.distributed import data_parallel_ranks, gather_bytes, world
from mindformers.core.metric.em_f1 import AnswerMetric, squad_normalize
from mindformers.dataset.causal_language_model import check_vocab, create_causal_lm_dataset
from mindformers.dataset.mindrecord import find_mindrecord_files, inspect_mindrecord
from mindformers.dataset.squad import match_questions, read_squad
from mindformers.errors import ConfigError, DataError
from mindformers.generation import GenerationConfig
from mindformers.tools.logger import get_logger
from mindformers.trainer.predict import build_tokenizer
from mindformers.trainer.predictions import PredictionStore

__all__ = ["Question", "evaluate_answers", "generate_answers", "read_questions"]

logger = get_logger(__name__)

# Records that are sorted by length together: enough that the rows of a batch are alike.
WINDOW = 4096


@dataclass(frozen=True)
class Question:
    """One record.

    Args:
        index: its number in the data.
        prompt: token ids without padding, int32 (n,).
        answers: reference answers.
        key: the question's id in the file of answers, or None.
    """

    index: int
    prompt: np.ndarray
    answers: tuple[str, ...]
    key: str | None = None


def evaluate_answers(
    cfg: RunConfig,
    network: nn.Cell,
    metric: AnswerMetric,
    dataset: Any = None,
    *,
    training: bool = False,
    tokenizer: Any = None,
) -> dict[str, float]:
    """Generate an answer to every record of ``eval_dataset`` and score them.

    Data parallel ranks share the records; rank 0's file holds all texts in the end, and every rank has all scores.

    Args:
        cfg: the run's config.
        network: a LlamaForCausalLM with its weights.
        metric: scores (predictions, answers).
        dataset: a MindSpore dataset of batches (input_ids, labels) in place of the config's.
        training: an evaluation while training: its file is replaced each time and never resumed.
        tokenizer: in place of the config's.

    Returns:
        What ``metric.eval()`` gives.

    Raises:
        DataError: the records cannot be used, or the file of predictions belongs to another run.
        ConfigError: settings under which no answer can be generated.
    """
    tokenizer = tokenizer or build_tokenizer(cfg)
    questions = read_questions(cfg, tokenizer, answers_file(cfg, metric, dataset), dataset)
    check_room(network.config, questions)
    layout = OutputLayout(cfg.output_dir, world()[0])
    rank, ranks = data_parallel_ranks()
    path = layout.training_predictions_file if training else layout.predictions_file
    if metric.predictions_file and not training:
        path = Path(metric.predictions_file)
    if layout.rank > 0:
        path = layout.log_dir / path.name
    # ranks that share one network must generate the same batches together, so they start from nothing
    resume = not training and ranks == world()[1]
    store = PredictionStore(path, _identity(cfg, network, tokenizer, questions) if resume else {}, resume)
    mine = questions[rank::ranks]
    for records in generate_answers(network, tokenizer, mine, cfg.runner_config.batch_size, store.done):
        store.append(records)
    texts = _texts_of_all(store, mine)
    others = [_record(tokenizer, q, texts[q.index]) for q in questions if q.index not in store.done]
    if rank == 0 and others:
        store.append(others)
    logger.info("%d predictions are in %s", len(store.finish()), path)
    metric.update([texts[question.index] for question in questions], [question.answers for question in questions])
    return metric.eval()


def try_answers(cfg: RunConfig, network: nn.Cell, metric: AnswerMetric, dataset: Any = None) -> str:
    """Answer the first batch of what :func:`evaluate_answers` would, and keep nothing; a text for the log."""
    tokenizer = build_tokenizer(cfg)
    questions = read_questions(cfg, tokenizer, answers_file(cfg, metric, dataset), dataset)
    check_room(network.config, questions)
    size = cfg.runner_config.batch_size
    records = next(generate_answers(network, tokenizer, questions[:size], size))
    metric.update([records[0]["prediction"]], [records[0]["answers"]])  # fails now if it needs what is not installed
    metric.clear()
    return f"{len(records)} answers, the first {records[0]['prediction'][:60]!r}"


def answers_file(cfg: RunConfig, metric: AnswerMetric, dataset: Any = None) -> str:
    """The file with all answers that a metric wants: the one it names, or the one beside the records; empty: none."""
    if metric.answers_file or not metric.takes_all_answers or dataset is not None:
        return metric.answers_file
    loader = cfg.eval_dataset.data_loader
    files = find_mindrecord_files(loader.dataset_dir, loader.dataset_files)
    beside = Path(f"{files[0]}.references.jsonl")
    if len(files) == 1 and beside.is_file():
        logger.info("all answers of the questions are taken from %s", beside)
        return str(beside)
    logger.warning("only the one answer in each record counts: there is no %s; --metric.answers_file FILE", beside)
    return ""


def read_questions(cfg: RunConfig, tokenizer: Any, source: str = "", dataset: Any = None) -> list[Question]:
    """The records of ``eval_dataset`` as questions, in order.

    Args:
        cfg: the run's config.
        tokenizer: decodes the labels.
        source: a file that knows all answers (see :func:`answers_file`); empty takes the label of each record.
        dataset: as in :func:`evaluate_answers`.
    """
    model = cfg.model.config
    fills = (0, model.pad_token_id)
    questions, cut = [], []
    for batch in _records(cfg, dataset):
        if len(batch) < 2:
            raise DataError("records need the columns input_ids and labels to be scored by their answers")
        for ids, labels in zip(*batch[:2], strict=True):
            number = len(questions)
            if labels[0] == model.ignore_token_id:
                raise DataError(
                    f"record {number} has labels {model.ignore_token_id}, as training records have: write the "
                    "records again with squad_data_process.py --mode eval"
                )
            prompt, answer = _without_fill(ids, fills), _without_fill(labels, (*fills, model.ignore_token_id))
            if not prompt.size or not answer.size:
                what = "prompt" if not prompt.size else "answer (labels)"
                raise DataError(f"record {number} has an empty {what}: write the records again")
            text = tokenizer.decode(answer.tolist(), skip_special_tokens=True)
            questions.append(Question(number, prompt.astype(np.int32), (text,)))
            cut.append(prompt.size == ids.size)
    if source:
        questions = _with_all_answers(questions, cut, tokenizer, source)
    return questions


def generate_answers(
    network: nn.Cell, tokenizer: Any, questions: Sequence[Question], batch_size: int, done: Any = ()
) -> Iterator[list[dict[str, Any]]]:
    """Texts that continue the prompts, batch by batch.

    Rows of a batch are alike in length, and every batch has the same number of rows (the last one repeats a prompt), so
    one pair of graphs serves all. A row gets the tokens it would get alone.

    Args:
        network: a LlamaForCausalLM.
        tokenizer: decodes.
        questions: what to answer.
        batch_size: prompts generated together.
        done: indices that are left out.

    Yields:
        Records ``{"index", "id", "prompt", "prediction", "answers"}``; longest prompts of a window first.
    """
    open_questions = [question for question in questions if question.index not in done]
    limit = network.config.seq_length
    stop = _stop_at_line_end(tokenizer)
    bar = tqdm(total=len(questions), initial=len(questions) - len(open_questions), desc="generate", unit="question",
               disable=None)  # fmt: skip
    with bar, _quiet("mindformers.generation.text_generator"):
        for batch in _batches(open_questions, batch_size):
            rows = [question.prompt for question in batch if len(question.prompt) < limit]
            texts = iter(())
            if rows:
                filled = rows + [rows[-1]] * (batch_size - len(rows))
                outputs = network.generate(filled, stop=stop)
                news = [out[len(row) :].tolist() for out, row in zip(outputs, rows, strict=False)]
                texts = iter([tokenizer.decode(new, skip_special_tokens=True) for new in news])
            yield [_record(tokenizer, q, next(texts) if len(q.prompt) < limit else "") for q in batch]
            bar.update(len(batch))


def check_room(config: Any, questions: Sequence[Question]) -> None:
    """Say what the sequence length leaves for answers.

    Raises:
        ConfigError: max_decode_length, which counts the prompt too, is below a prompt that the model could read.
    """
    new, length = config.max_new_tokens, config.seq_length
    sizes = np.array([len(question.prompt) for question in questions])
    if not config.use_past:
        logger.warning(
            "use_past is False: every token reads its whole prompt again; --model.model_config.use_past True"
        )
    if new is None:
        stuck = int(((sizes >= config.max_decode_length) & (sizes < length)).sum())
        if stuck:
            raise ConfigError(
                f"{stuck} of {len(sizes)} prompts have max_decode_length {config.max_decode_length} tokens or more, "
                "which leaves no room for an answer: set --model.model_config.max_new_tokens 20"
            )
    full = int((sizes >= length).sum())
    short = int((sizes + (new or 1) > length).sum()) - full
    if full:
        logger.warning("%d of %d prompts fill seq_length %d; their answers are empty", full, len(sizes), length)
    if short:
        logger.warning("%d of %d prompts leave room for fewer than %d new tokens", short, len(sizes), new or 1)


def _records(cfg: RunConfig, dataset: Any) -> Iterator[tuple[np.ndarray, ...]]:
    """Batches of columns."""
    if dataset is None:
        section = cfg.eval_dataset
        loader = section.data_loader
        info = inspect_mindrecord(find_mindrecord_files(loader.dataset_dir, loader.dataset_files))
        check_vocab(info, cfg.model.config.vocab_size)
        dataset = create_causal_lm_dataset(
            dataset_dir=loader.dataset_dir,
            dataset_files=loader.dataset_files,
            input_columns=section.input_columns,
            batch_size=64,
            drop_remainder=False,
            num_samples=loader.num_samples,
            num_parallel_workers=section.num_parallel_workers,
        )
    yield from dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)


def _without_fill(ids: np.ndarray, fills: tuple[int, ...]) -> np.ndarray:
    kept = np.flatnonzero(~np.isin(ids, fills))
    return ids[: kept[-1] + 1] if kept.size else ids[:0]


def _with_all_answers(questions: list[Question], cut: list[bool], tokenizer: Any, source: str) -> list[Question]:
    """Questions with the answers of a SQuAD file."""

    def decoded(ids: list[int]) -> str:
        return squad_normalize(tokenizer.decode(ids, skip_special_tokens=True))

    def lossy(text: str) -> str:
        return decoded(tokenizer(text, add_special_tokens=False)["input_ids"])

    records = [
        (squad_normalize(question.answers[0]), None if lost else decoded(question.prompt.tolist()))
        for question, lost in zip(questions, cut, strict=True)
    ]
    matched = match_questions(records, read_squad(source), squad_normalize, lossy, source)
    return [replace(q, answers=m.answers, key=m.key) for q, m in zip(questions, matched, strict=True)]


def _batches(questions: Sequence[Question], batch_size: int) -> Iterator[list[Question]]:
    for start in range(0, len(questions), WINDOW):
        ordered = sorted(questions[start : start + WINDOW], key=lambda question: -len(question.prompt))
        for first in range(0, len(ordered), batch_size):
            yield ordered[first : first + batch_size]


def _texts_of_all(store: PredictionStore, mine: Sequence[Question]) -> dict[int, str]:
    """Index -> text of all questions, of which each data parallel rank has answered its own."""
    texts = {question.index: store.done[question.index]["prediction"] for question in mine}
    if data_parallel_ranks()[1] == 1:
        return texts
    parts = gather_bytes(json.dumps(list(texts.items())).encode())
    return {index: text for part in parts for index, text in json.loads(part)}


def _record(tokenizer: Any, question: Question, text: str) -> dict[str, Any]:
    prompt = tokenizer.decode(question.prompt.tolist(), skip_special_tokens=True)
    named = {} if question.key is None else {"id": question.key}
    return {"index": question.index, **named, "prediction": text, "answers": list(question.answers), "prompt": prompt}


def _stop_at_line_end(tokenizer: Any) -> Callable[[Sequence[int]], bool]:
    """Tells when the first line of an answer is over: what comes after it does not count."""

    def stop(new: Sequence[int]) -> bool:
        if "\n" not in tokenizer.decode([new[-1]], skip_special_tokens=True):
            return False
        return "\n" in tokenizer.decode(list(new), skip_special_tokens=True).lstrip()

    return stop


def _identity(cfg: RunConfig, network: nn.Cell, tokenizer: Any, questions: Sequence[Question]) -> dict[str, Any]:
    """What the texts depend on; the batch size is not part of it."""
    data = hashlib.sha256()
    for question in questions:
        data.update(question.prompt.tobytes() + repr(question.answers).encode())
    config = network.config
    generation = GenerationConfig.from_model_config(config).to_dict()
    return {
        "data": f"{len(questions)} records, {data.hexdigest()[:16]}",
        "weights": weights_digest(network)[:16],
        "tokenizer": file_digest(tokenizer.vocab_file)[:16],
        "compute_dtype": config.compute_dtype,
        "seq_length": config.seq_length,
        **{key: value for key, value in generation.items() if key not in ("use_past", "seed")},
    }


def weights_digest(network: nn.Cell) -> str:
    """Hex digest of every weight's name, type and values."""
    digest = hashlib.sha256()
    weights = (parameter for parameter in network.get_parameters() if is_weight_name(parameter.name))
    for parameter in sorted(weights, key=lambda parameter: parameter.name):
        value = parameter.value()
        digest.update(f"{parameter.name} {value.dtype} {value.shape}".encode())
        array = (value.astype(ms.float32) if value.dtype == ms.bfloat16 else value).asnumpy()
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """No line per batch beside the progress bar; what a line would warn of, check_room has counted."""
    target = logging.getLogger(name)
    level = target.level
    target.setLevel(logging.ERROR)
    try:
        yield
    finally:
        target.setLevel(level)
