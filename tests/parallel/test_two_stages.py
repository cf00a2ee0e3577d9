# SPDX-License-Identifier: Apache-2.0
"""The cut into pipeline stages, in real processes: two stages and their micro batches give one process' gradients."""

from pathlib import Path

import numpy as np
from mindspore import ParameterTuple, Tensor, value_and_grad

from mindformers.wrapper.pipeline_step import _SummedLoss
from tests.parallel.ranks import run_ranks
from tests.parallel.two_stages import make_network
from tests.unit.wrapper.test_train_step import batches


def test_two_stages_give_the_gradients_of_one_process(tmp_path: Path) -> None:
    run_ranks(2, ["-m", "tests.parallel.two_stages", "stage"], tmp_path)
    network = make_network()
    weights = ParameterTuple(network.trainable_params())
    ids, labels = (Tensor(columns) for columns in batches())
    total, gradients = value_and_grad(_SummedLoss(network), None, weights)(ids, labels)
    first, last = (dict(np.load(tmp_path / f"stage.rank_{rank}.npz")) for rank in (0, 1))
    assert first.pop("total") == 0.0
    np.testing.assert_allclose(last.pop("total"), float(total.asnumpy()), rtol=1e-6)
    assert not first.keys() & last.keys()
    found = first | last
    assert found.keys() == {parameter.name for parameter in weights}
    for parameter, gradient in zip(weights, gradients, strict=True):
        expected = gradient.asnumpy()
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(found[parameter.name], expected, rtol=1e-5, atol=1e-6, err_msg=parameter.name)
