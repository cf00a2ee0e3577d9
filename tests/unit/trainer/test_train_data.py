# SPDX-License-Identifier: Apache-2.0
"""A script's own dataset in place of the config's."""

import mindspore as ms
import numpy as np
import pytest

from mindformers.config import load_config
from mindformers.errors import ConfigError
from mindformers.trainer import train_data


def test_a_dataset_for_ranks_that_read_parts_gives_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step gathers the parts of all ranks: whole batches would be trained on several times over."""
    cfg = load_config("run_llama2_tiny", ["runner_config.batch_size=4", "runner_config.epochs=2"])
    length = cfg.model.config.seq_length + 1

    def batches(size: int) -> ms.dataset.Dataset:
        records = np.ones((8, length), np.int32)
        return ms.dataset.NumpySlicesDataset(records, ["input_ids"], shuffle=False).batch(size)

    monkeypatch.setattr(train_data, "batch_part", lambda cfg: (1, 2))
    progress, stream, _ = train_data.build_data(cfg, None, batches(2))
    assert (progress.global_batch_size, progress.total_steps, stream.get_dataset_size()) == (4, 8, 8)
    with pytest.raises(ConfigError, match=r"batches of 4 records; .* each of 2 ranks reads its part, 2"):
        train_data.build_data(cfg, None, batches(4))
