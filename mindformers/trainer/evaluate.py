# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a whole dataset: token-weighted loss and perplexity here, generated answers in their own module."""

from itertools import islice
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from tqdm import tqdm

from mindformers.config import RunConfig
from mindformers.core.distributed import data_parallel_ranks, gather_numbers
from mindformers.dataset.causal_language_model import (
    check_record_length,
    check_vocab,
    create_causal_lm_dataset,
)
from mindformers.dataset.mindrecord import find_mindrecord_files, inspect_mindrecord
from mindformers.registry import MindFormerModuleType, MindFormerRegister
from mindformers.tools.logger import get_logger
from mindformers.trainer.generate_evaluate import evaluate_answers, try_answers
from mindformers.trainer.parallel import split_records

logger = get_logger(__name__)


class EvalCell(nn.Cell):
    """Loss sum and label count of a batch, so that no logits leave the graph.

    Args:
        network: a LlamaForCausalLM.
    """

    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, *batch: Tensor) -> tuple:
        """Columns of a batch, as for training, to (summed loss, number of label tokens)."""
        return self.network.loss_and_count(*batch)


def evaluate_dataset(cell: EvalCell, dataset: Any, metric: Any, ignore_token_id: int, pad_token_id: int) -> dict:
    """Feed every batch to the metric; what ``metric.eval()`` gives. Arguments as for :func:`feed_metric`."""
    feed_metric(cell, dataset, metric, ignore_token_id, pad_token_id)
    return metric.eval()


def feed_metric(
    cell: EvalCell, dataset: Any, metric: Any, ignore_token_id: int, pad_token_id: int, max_batches: int | None = None
) -> int:
    """Feed batches to a metric; data parallel ranks share the batches and add up what they found.

    Args:
        cell: the network to evaluate; its training flag is left as it was.
        dataset: MindSpore dataset with columns input_ids, and perhaps labels and segment_ids, int32 (B, S).
        metric: has ``update(loss_sum, num_tokens)``.
        ignore_token_id, pad_token_id: what fills up a last, shorter batch, so that its shape needs no second graph.
        max_batches: stop after so many; None takes all.

    Returns:
        The number of batches.
    """
    was_training = cell.network.training
    cell.network.set_train(False)
    full, sums = 0, np.zeros(2)
    rank, ranks = data_parallel_ranks()
    size = dataset.get_dataset_size()
    number = size if max_batches is None else min(size, max_batches)
    batches = islice(dataset.create_tuple_iterator(num_epochs=1, output_numpy=True), number)
    for index, batch in enumerate(tqdm(batches, total=number, desc="eval", unit="batch", disable=None)):
        full = full or len(batch[0])
        if index % ranks != rank:
            continue
        fills = (pad_token_id, ignore_token_id, 0)
        columns = [_filled(column, full, fill) for column, fill in zip(batch, fills[: len(batch)], strict=True)]
        total, count = cell(*columns)
        if ranks == 1:
            metric.update(total.asnumpy(), count.asnumpy())
        else:
            sums += (float(total.asnumpy()), float(count.asnumpy()))
    if ranks > 1:
        metric.update(*gather_numbers(sums).sum(axis=0))
    cell.network.set_train(was_training)
    return number


def _filled(column: np.ndarray, rows: int, fill: int) -> Tensor:
    missing = rows - len(column)
    if missing:
        column = np.concatenate((column, np.full((missing, *column.shape[1:]), fill, column.dtype)))
    return Tensor(column, ms.int32)


def build_eval_dataset(cfg: RunConfig) -> tuple[Any, Any]:
    """The eval dataset of a config, every record once and in order, and what its files hold."""
    section = cfg.eval_dataset
    loader = section.data_loader
    info = inspect_mindrecord(find_mindrecord_files(loader.dataset_dir, loader.dataset_files))
    check_record_length(info, cfg.model.config.seq_length, "eval")
    check_vocab(info, cfg.model.config.vocab_size)
    dataset = create_causal_lm_dataset(
        dataset_dir=loader.dataset_dir,
        dataset_files=loader.dataset_files,
        input_columns=section.input_columns,
        batch_size=cfg.runner_config.batch_size * split_records(cfg),
        shuffle=False,
        seed=cfg.seed,
        drop_remainder=False,
        num_samples=loader.num_samples,
        num_parallel_workers=section.num_parallel_workers,
        prefetch_size=section.prefetch_size,
    )
    return dataset, info


def build_metric(cfg: RunConfig) -> Any:
    """The metric of a config."""
    options = {"type": cfg.metric.type, **cfg.metric.options()}
    return MindFormerRegister.get_instance_from_cfg(options, MindFormerModuleType.METRIC)


def evaluate(
    cfg: RunConfig, cell: EvalCell, dataset: Any = None, *, training: bool = False, tokenizer: Any = None
) -> dict[str, dict[str, float]]:
    """Evaluate ``eval_dataset`` with the config's metric.

    Args:
        cfg: the run's config.
        cell: the network with its weights; one cell for many evaluations is compiled once.
        dataset: a MindSpore dataset of batches in place of the config's.
        training: an evaluation while training, whose generated texts replace those of the one before.
        tokenizer: in place of the config's, for metrics of generated answers.

    Returns:
        ``{metric type: {name: value}}``; the same is logged with the protocol that gave it. Empty values on a rank that
        does not compute the loss.
    """
    name, metric = cfg.metric.type, build_metric(cfg)
    if getattr(metric, "generates", False):
        result = evaluate_answers(cfg, cell.network, metric, dataset, training=training, tokenizer=tokenizer)
    else:
        where, length = "the given dataset", "?"
        if dataset is None:
            dataset, info = build_eval_dataset(cfg)
            where, length = cfg.eval_dataset.data_loader.dataset_dir, info.record_length
        model = cfg.model.config
        result = evaluate_dataset(cell, dataset, metric, model.ignore_token_id, model.pad_token_id)
        logger.info(
            "protocol: data %s, records of %s tokens, %d predicted tokens, loss weighted by token",
            where, length, getattr(metric, "num_tokens", -1),
        )  # fmt: skip
    logger.info("%s = %s", name, {name: result})
    return {name: result}


def try_evaluation(cfg: RunConfig, cell: EvalCell, dataset: Any = None) -> None:
    """Evaluate one batch the way :func:`evaluate` would, so that what is wrong shows before training.

    Args:
        cfg: the run's config.
        cell: the network; the graph compiled here serves the evaluations to come.
        dataset: as in :func:`evaluate`.
    """
    metric = build_metric(cfg)
    if getattr(metric, "generates", False):
        found = try_answers(cfg, cell.network, metric, dataset)
    else:
        dataset = build_eval_dataset(cfg)[0] if dataset is None else dataset
        model = cfg.model.config
        feed_metric(cell, dataset, metric, model.ignore_token_id, model.pad_token_id, max_batches=1)
        found = f"{getattr(metric, 'num_tokens', 'its')} predicted tokens"
    logger.info("the evaluation works: one batch gave %s", found)
