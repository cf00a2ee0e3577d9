# SPDX-License-Identifier: Apache-2.0
"""Which kernels a run asks for."""

import pytest

from mindformers.config import load_config
from mindformers.trainer import trainer


@pytest.mark.parametrize(
    ("options", "expected"),
    [([], None), (["model.model_config.compute_dtype=float16"], False),
     (["model.model_config.compute_dtype=float16", "context.native_kernels=True"], True)],
)  # fmt: skip
def test_without_kernels_for_float16_the_plain_ops_keep_all_threads(options, expected, monkeypatch, tmp_path) -> None:
    given = []

    def init_context(use_parallel, context, *_):
        given.append(context.native_kernels)
        return 0, 1

    monkeypatch.setattr(trainer, "init_context", init_context)
    cfg = load_config("run_llama2_tiny", [f"output_dir={tmp_path}", *options])
    trainer.Trainer(cfg)._start()
    assert given == [expected]
