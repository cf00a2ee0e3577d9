# SPDX-License-Identifier: Apache-2.0
"""The adapter to MindSpore Lite, against a stand-in with Lite's documented interface that runs the graphs itself.

Lite has no package for this machine (docs/verified.md). The stand-in refuses what Lite refuses: arrays of another
shape or type than the graph's, weights shared after building, a call before building.
"""

import importlib.machinery
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from mindformers.errors import CheckpointError, ConfigError
from mindformers.inference import ExportedModel


class _Tensor:
    def __init__(self, shape, dtype):
        self.shape, self._dtype, self._data = list(shape), dtype, None

    def set_data_from_numpy(self, array):
        if list(array.shape) != self.shape or array.dtype != self._dtype or not array.flags["C_CONTIGUOUS"]:
            raise RuntimeError(f"set_data_from_numpy: {array.shape} {array.dtype} for {self.shape} {self._dtype}")
        self._data = array.copy()

    def get_data_to_numpy(self):
        return self._data


class _Model:
    def __init__(self, log):
        self._log, self._graph, self.group = log, None, None

    def build_from_file(self, model_path, model_type, context=None, config_path="", config_dict=None):
        import mindspore as ms
        from mindspore import nn

        from mindformers.inference.mindir_files import input_shapes

        if not isinstance(model_path, str) or model_type != "MINDIR":
            raise TypeError("model_path must be str, model_type must be ModelType")
        try:
            self._graph = nn.GraphCell(ms.load(model_path))
        except Exception as error:
            raise RuntimeError(f"build_from_file failed! Error is {error}") from error
        types_ = (np.int32, np.int32, np.bool_, np.int32)
        self._inputs = [
            _Tensor(shape, dtype) for shape, dtype in zip(input_shapes(Path(model_path)), types_, strict=True)
        ]
        if self.group is not None:  # what ModelGroup is for: one memory for the variables of its models
            for name, parameter in self._graph.parameters_dict().items():
                if name in self.group.variables:
                    parameter.set_data(self.group.variables[name])
                else:
                    self.group.variables[name] = parameter
        self._log.append((model_path, context, config_path))

    def get_inputs(self):
        return self._inputs

    def predict(self, inputs, outputs=None):
        import mindspore as ms

        if self._graph is None:
            raise RuntimeError("the model is not built")
        results = []
        for value in self._graph(*(ms.Tensor(tensor._data) for tensor in inputs)):
            tensor = _Tensor(value.shape, None)
            tensor._data = value.asnumpy()
            results.append(tensor)
        return results


class _ModelGroup:
    def __init__(self, flags):
        self.flags, self.variables = flags, {}

    def add_model(self, models):
        for model in models:
            if model._graph is not None:
                raise RuntimeError("add_model must be called before build")
            model.group = self


@pytest.fixture
def lite(monkeypatch):
    """mindspore_lite in sys.modules; the list collects what was built."""
    log = []
    module = types.ModuleType("mindspore_lite")
    module.__spec__ = importlib.machinery.ModuleSpec("mindspore_lite", None)

    class Context:
        def __init__(self):
            self.target, self.ascend = ["cpu"], types.SimpleNamespace(device_id=0, rank_id=0, provider="")

    module.Context = Context
    module.Model = lambda: _Model(log)
    module.ModelType = types.SimpleNamespace(MINDIR="MINDIR")
    module.ModelGroup = _ModelGroup
    module.ModelGroupFlag = types.SimpleNamespace(SHARE_WEIGHT="SHARE_WEIGHT")
    monkeypatch.setitem(sys.modules, "mindspore_lite", module)
    return log


def test_lite_is_taken_where_it_is_installed(lite, pair, network, tmp_path):
    ini = tmp_path / "lite.ini"
    ini.write_text("[ascend_context]\n", encoding="utf-8")
    model = ExportedModel.open(*pair, target="Ascend", device_id=3, rank_id=1, config_path=str(ini))
    assert model.backend.name == "mslite"
    assert [entry[0] for entry in lite] == [str(file) for file in pair]
    context = lite[0][1]
    assert (context.target, context.ascend.device_id, context.ascend.rank_id) == (["ascend"], 3, 1)
    assert context.ascend.provider == "ge"
    assert {entry[2] for entry in lite} == {str(ini)}
    for settings in ({}, {"do_sample": True, "top_k": 5, "seed": 1}):
        settings = {"max_new_tokens": 12, "eos_token_id": [], **settings}
        ours = model.generate([[5, 17, 230], [9]], **settings)
        theirs = network.generate([[5, 17, 230], [9]], **settings)
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_cpu_target_sets_no_ascend_context(lite, pair):
    ExportedModel.open(*pair, backend="mslite", target="CPU")
    assert lite[0][1].target == ["cpu"]
    assert lite[0][1].ascend.provider == ""


def test_mistakes(lite, pair, tmp_path):
    with pytest.raises(ConfigError, match=r"none.ini: no such file"):
        ExportedModel.open(*pair, config_path=str(tmp_path / "none.ini"))
    rubbish = tmp_path / "r.mindir"
    rubbish.write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match=r"MindSpore Lite cannot load .*r.mindir"):
        ExportedModel.open(rubbish)
