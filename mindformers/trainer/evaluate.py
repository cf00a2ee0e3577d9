# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a whole dataset: token-weighted loss and perplexity."""

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from tqdm import tqdm

from mindformers.config import RunConfig
from mindformers.dataset.causal_language_model import (
    check_record_length,
    check_vocab,
    create_causal_lm_dataset,
)
from mindformers.dataset.mindrecord import find_mindrecord_files, inspect_mindrecord
from mindformers.registry import MindFormerModuleType, MindFormerRegister
from mindformers.tools.logger import get_logger
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
    """Feed every batch to the metric.

    Args:
        cell: the network to evaluate; its training flag is left as it was.
        dataset: MindSpore dataset with columns input_ids and perhaps labels, int32 (B, S).
        metric: has ``update(loss_sum, num_tokens)`` and ``eval()``.
        ignore_token_id, pad_token_id: what fills up a last, shorter batch, so that its shape needs no second graph.

    Returns:
        What ``metric.eval()`` gives.
    """
    was_training = cell.network.training
    cell.network.set_train(False)
    full = 0
    for batch in tqdm(dataset.create_tuple_iterator(num_epochs=1, output_numpy=True), total=dataset.get_dataset_size(),
                      desc="eval", unit="batch", disable=None):  # fmt: skip
        full = full or len(batch[0])
        fills = (pad_token_id, ignore_token_id)
        columns = [_filled(column, full, fill) for column, fill in zip(batch, fills, strict=False)]
        total, count = cell(*columns)
        metric.update(total.asnumpy(), count.asnumpy())
    cell.network.set_train(was_training)
    return metric.eval()


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


def evaluate(cfg: RunConfig, cell: EvalCell, dataset: Any = None) -> dict[str, dict[str, float]]:
    """Evaluate ``eval_dataset`` with the config's metric.

    Args:
        cfg: the run's config.
        cell: the network with its weights; one cell for many evaluations is compiled once.
        dataset: a MindSpore dataset of batches in place of the config's.

    Returns:
        ``{metric type: {name: value}}``; the same is logged with the protocol that gave it.
    """
    where, length = "the given dataset", "?"
    if dataset is None:
        dataset, info = build_eval_dataset(cfg)
        where, length = cfg.eval_dataset.data_loader.dataset_dir, info.record_length
    name = cfg.metric.type
    metric = MindFormerRegister.get_instance_from_cfg(
        {"type": name, **cfg.metric.options()}, MindFormerModuleType.METRIC
    )
    model = cfg.model.config
    result = evaluate_dataset(cell, dataset, metric, model.ignore_token_id, model.pad_token_id)
    logger.info(
        "protocol: data %s, records of %s tokens, %d predicted tokens, loss weighted by token",
        where, length, metric.num_tokens,
    )  # fmt: skip
    logger.info("%s = %s", name, {name: result})
    return {name: result}
