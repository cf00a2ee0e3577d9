# SPDX-License-Identifier: Apache-2.0
"""Cells that are alike are compiled once: the layers of a network, each with its own parameters.

MindSpore's front end takes cells of one ``cell_init_args`` for one function of their parameters
(``mindspore.lazy_inline``): it is parsed, optimized and differentiated once, and put in the place of each cell at the
end (``no_inline`` False). The graph that is executed is the same. The string must say everything that may differ; so it
is not what the constructor was given, as with MindSpore's decorator, but what the cell holds when it is compiled.
"""

import hashlib
from collections.abc import Mapping
from types import FunctionType, MethodType
from typing import Any

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

# Attributes of nn.Cell that belong to an instance and say nothing about its graph.
_OF_INSTANCE = frozenset((
    "_cells", "_compile_cache", "_compiled", "_create_time", "_exist_names", "_exist_objs", "_id",
    "_is_check_and_refresh", "_param_prefix", "_params_list", "_phase_cache", "_primitives", "_recompute_cell",
    "_scope", "arguments_key", "compile_cache", "no_inline",
))  # fmt: skip
# What decides how a parameter is split, sent and trained.
_OF_PARAMETER = (
    "comm_fusion", "interleaved_parallel", "layerwise_parallel", "parallel_optimizer",
    "parallel_optimizer_comm_recompute", "param_strategy", "requires_aggr", "requires_grad",
)  # fmt: skip
_COMPARED = 1 << 16
_PLAIN = (type(None), bool, int, float, complex, str, bytes, ms.Type)


class AlikeCell(nn.Cell):
    """A cell that shares its compilation with cells of its class that hold the same."""

    no_inline = False  # put in its place by the front end; the back ends for CPU take no calls of graphs

    @property
    def cell_init_args(self) -> str:
        """What MindSpore compares cells by; it looks when it compiles."""
        return f"lazy_inline_{type(self).__name__}_{fingerprint(self)}"


def fingerprint(cell: nn.Cell) -> str:
    """A hash of all a cell and its parts hold but the values of parameters; unequal for what cannot be compared."""
    return hashlib.sha256(repr(_Facts(cell).all).encode()).hexdigest()[:16]


class _Facts:
    """Describes the parts of a cell by values that are equal for equal parts of another one."""

    def __init__(self, cell: nn.Cell) -> None:
        self._number: dict[int, int] = {}  # of each cell and parameter, in order of appearance
        # Cell.recompute() adds a cell for PyNative mode; for a graph it sets flags.
        parts = [(name, part) for name, part in cell.cells_and_names() if "_recompute_cell" not in name.split(".")]
        for _, part in parts:
            self._number[id(part)] = len(self._number)
        self.all = [(name, type(part).__qualname__, self._attributes(part)) for name, part in parts]

    def _attributes(self, cell: nn.Cell) -> list[tuple[str, Any]]:
        held = {name: value for name, value in vars(cell).items() if name not in _OF_INSTANCE}
        return [(name, self._describe(value)) for name, value in sorted(held.items())]

    def _describe(self, value: Any) -> Any:
        if isinstance(value, _PLAIN):
            return type(value).__name__, str(value)
        if isinstance(value, Parameter):
            number = self._number.setdefault(id(value), len(self._number))
            settings = [str(getattr(value.param_info, name)) for name in _OF_PARAMETER]
            return number, value.shape, str(value.dtype), settings, str(value._pipeline_stage_list)
        if isinstance(value, Tensor) and value.size <= _COMPARED:  # a constant; larger ones count as unequal
            return value.shape, str(value.dtype), hashlib.sha256(value.asnumpy().tobytes()).hexdigest()
        if isinstance(value, Mapping):  # an empty one is as good as none: hooks that were asked for
            entries = [(self._describe(key), self._describe(entry)) for key, entry in value.items()]
            return entries or self._describe(None)
        if isinstance(value, list | tuple | set | frozenset):
            return type(value).__name__, [self._describe(entry) for entry in value]
        if isinstance(value, ops.Primitive):
            return type(value).__qualname__, value.name, self._describe(dict(sorted(value.attrs.items())))
        if isinstance(value, nn.Cell) and id(value) in self._number:
            return "part", self._number[id(value)]
        if isinstance(value, FunctionType):
            inside = [self._describe(each.cell_contents) for each in value.__closure__ or ()]
            return value.__qualname__, id(value.__code__), self._describe(value.__defaults__), inside
        if isinstance(value, MethodType):
            return self._describe(value.__func__), self._describe(value.__self__)
        return "object", id(value)
