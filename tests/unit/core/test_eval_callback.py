# SPDX-License-Identifier: Apache-2.0
"""When an evaluation during training is due."""

from types import SimpleNamespace

import pytest

from mindformers.core.callback.eval_callback import EvalCallBack
from mindformers.core.progress import TrainProgress


def evaluated_at(progress: TrainProgress, micro_steps: list[int], **intervals: int) -> list[int]:
    """Optimizer steps at which the callback evaluated, given the micro steps it is shown."""
    steps: list[int] = []
    callback = EvalCallBack(lambda: steps.append(progress.step(params)), **intervals)
    callback.bind(progress)
    for number in micro_steps:
        params = SimpleNamespace(cur_step_num=number, batch_num=len(micro_steps))
        callback.on_train_step_end(SimpleNamespace(original_args=lambda: params))  # noqa: B023
    return steps


@pytest.mark.parametrize(
    ("intervals", "accumulation", "start", "seen", "expected"),
    [
        ({"step_interval": 3}, 1, 0, range(1, 11), [3, 6, 9]),
        ({"step_interval": -1, "epoch_interval": 1}, 1, 0, range(1, 11), [5, 10]),
        ({"step_interval": 2}, 2, 0, range(1, 11), [2, 4]),
        ({"step_interval": 4}, 1, 6, range(1, 5), [8]),  # resume keeps the grid
        ({"step_interval": 3}, 1, 0, range(2, 11, 2), [4, 6, 10]),  # sinks of 2
        ({"step_interval": 0, "epoch_interval": 0}, 1, 0, range(1, 11), []),
    ],
)
def test_intervals(intervals: dict, accumulation: int, start: int, seen: range, expected: list[int]) -> None:
    progress = TrainProgress(5, 4, 8, 16, accumulation=accumulation, start_step=start)
    assert evaluated_at(progress, list(seen), **intervals) == expected
