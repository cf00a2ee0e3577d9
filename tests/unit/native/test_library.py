# SPDX-License-Identifier: Apache-2.0
"""Building, finding and choosing the library; threads, CPU variants, a fork, a busy neighbour."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, ops

from mindformers.commands.native import NATIVE
from mindformers.config import load_config
from mindformers.errors import ConfigError
from mindformers.modules import kernels
from mindformers.modules.native_kernels import NativeProduct
from mindformers.native import build, library
from tests.helpers import REPO

STANDARD = {"cmath", "cstdint", "cstring", "immintrin.h"}

# Calls LinearBf16 and LinearF32 by ctypes, without MindSpore: kernels of our own, of the variant asked for.
CALL = """
import ctypes, json, os, sys
import numpy as np
library = ctypes.CDLL(sys.argv[1])
library.mindformers_native_isa.restype = ctypes.c_char_p

def call(name, *arrays):
    n = len(arrays)
    shapes = [(ctypes.c_int64 * a.ndim)(*a.shape) for a in arrays]
    return getattr(library, name)(
        n, (ctypes.c_void_p * n)(*(a.ctypes.data for a in arrays)), (ctypes.c_int * n)(*(a.ndim for a in arrays)),
        (ctypes.c_void_p * n)(*(ctypes.addressof(s) for s in shapes)), (ctypes.c_char_p * n)(*[b"float32"] * n),
        None, None,
    )

rng = np.random.default_rng(0)
x, w = (rng.standard_normal(s).astype(np.float32) for s in ((67, 45), (140, 45)))
results = {"isa": library.mindformers_native_isa().decode()}

def measure():
    for name in ("LinearF32", "LinearBf16"):
        y = np.zeros((67, 140), np.float32)
        assert call(name, x, w, y) == 0
        results[name] = float(np.linalg.norm(y - x @ w.T) / np.linalg.norm(x @ w.T))

library.mindformers_native_set_threads(3)
measure()
"""


def run(code, path, **environment):
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60, check=True,
        env=os.environ | environment,
    )  # fmt: skip
    return json.loads(result.stdout)


@pytest.mark.parametrize("variant", ["portable", "avx2", "avx512", "avx512_bf16"])
def test_every_variant_of_the_one_library(variant, native_library):
    best = native_library.mindformers_native_isa().decode()
    order = list(build.VARIANTS.get(os.uname().machine, {"portable": ()}))
    if variant not in order[: order.index(best) + 1]:
        pytest.skip(f"this CPU has no {variant}")
    results = run(CALL + "print(json.dumps(results))", library.library_path(), MINDFORMERS_NATIVE_ISA=variant)
    assert results["isa"] == variant
    assert results["LinearF32"] < 1e-6
    assert 1e-4 < results["LinearBf16"] < 1e-2


def test_a_forked_child_has_threads_of_its_own(native_library):
    code = (
        CALL
        + """
child = os.fork()
if child == 0:
    measure()
    os._exit(0 if results["LinearF32"] < 1e-6 else 1)
results["child"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(results))
"""
    )
    assert run(code, library.library_path())["child"] == 0


def test_calls_from_several_threads_at_once(native_library):
    code = (
        CALL
        + """
import threading
errors = []
def work():
    for _ in range(50):
        y = np.zeros((67, 140), np.float32)
        if call("LinearF32", x, w, y) or not np.allclose(y, x @ w.T, atol=1e-4):
            errors.append(1)
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
print(json.dumps({"errors": len(errors)}))
"""
    )
    assert run(code, library.library_path())["errors"] == 0


def test_files_of_many_variants_include_no_containers():
    for path in sorted(build.SOURCES.glob("*_isa.cc")) + [build.SOURCES / "simd.h"]:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#include <")]
        assert {line.split("<")[1].split(">")[0] for line in lines} <= STANDARD, path.name


def test_the_environment_beats_the_context(monkeypatch):
    monkeypatch.delenv(library.ENVIRONMENT, raising=False)
    assert library.wanted(True)
    assert not library.wanted(False)
    monkeypatch.setenv(library.ENVIRONMENT, "0")
    assert not library.wanted(True)
    monkeypatch.setenv(library.ENVIRONMENT, "1")
    assert library.wanted(False)
    monkeypatch.setenv(library.ENVIRONMENT, "yes")
    with pytest.raises(ConfigError, match="MINDFORMERS_NATIVE is 'yes'; allowed: 0"):
        library.wanted(None)


def test_a_complete_library_is_used_unasked(native_library, monkeypatch):
    monkeypatch.delenv(library.ENVIRONMENT, raising=False)
    monkeypatch.setattr(library, "_choice", library._Choice())
    assert library.usable()
    assert library.info()["used"] == "yes, as a rule"
    monkeypatch.setattr(library, "_choice", library._Choice(enabled=False))
    assert not library.usable()
    assert library.info()["used"] == "no: switched off by context.native_kernels"
    monkeypatch.setenv(library.ENVIRONMENT, "1")
    assert library.usable()
    assert library.info()["used"] == "yes, asked for by MINDFORMERS_NATIVE=1"


def test_what_is_not_asked_for_is_not_missed(searched, told, monkeypatch):
    monkeypatch.delenv(library.ENVIRONMENT)
    monkeypatch.setattr(library, "_choice", library._Choice())
    assert not library.usable()
    assert told == []


def test_without_onednn_it_has_to_be_asked_for(native_library, monkeypatch):
    monkeypatch.delenv(library.ENVIRONMENT, raising=False)
    monkeypatch.setattr(library, "_choice", library._Choice())
    monkeypatch.setattr(library, "load", lambda: WithoutOneDNN(native_library))
    assert not library.usable()
    assert library.info()["used"] == "no: without oneDNN they have to be asked for, by MINDFORMERS_NATIVE=1"
    monkeypatch.setenv(library.ENVIRONMENT, "1")
    assert library.usable()


def test_ranks_have_to_ask():
    assert library.wish(None, use_parallel=True) is False
    assert library.wish(None, use_parallel=False) is None
    assert library.wish(True, use_parallel=True)


@pytest.fixture
def searched(monkeypatch, tmp_path):
    """A folder where the library is looked for, empty; afterwards the real one is found again."""
    monkeypatch.setattr(build, "package_library", lambda: tmp_path / build.LIBRARY_NAME)
    monkeypatch.setattr(build, "cache_library", lambda: tmp_path / "cache" / build.LIBRARY_NAME)
    monkeypatch.setenv(library.ENVIRONMENT, "1")
    library.forget()
    yield tmp_path / build.LIBRARY_NAME
    monkeypatch.undo()
    library.forget()


@pytest.fixture
def told(monkeypatch):
    """Warnings of the library's module, none of them given before."""
    messages = []
    library._warn_once.cache_clear()
    monkeypatch.setattr(library.logger, "warning", lambda text, *values: messages.append(text % values))
    yield messages
    library._warn_once.cache_clear()


class WithoutOneDNN:
    """The library as it is where MindSpore carries no oneDNN."""

    mindformers_native_onednn = staticmethod(lambda: b"")

    def __init__(self, whole):
        self._whole = whole

    def __getattr__(self, name):
        return getattr(self._whole, name)


def test_without_onednn_float32_products_stay_plain_with_one_warning(native_on, told, monkeypatch):
    weight = Parameter(Tensor(np.ones((2, 3), np.float32)), name="weight")
    assert isinstance(kernels.product(weight, ms.float32)[0], NativeProduct)
    monkeypatch.setattr(library, "load", lambda: WithoutOneDNN(native_on))
    for _ in range(2):
        assert type(kernels.product(weight, ms.float32)[0]) is ops.MatMul
    assert told == [
        "native kernels found no oneDNN in MindSpore: fp32 products of linear layers stay MindSpore's MatMul"
    ]
    assert isinstance(kernels.product(weight, ms.bfloat16)[0], NativeProduct)


def test_without_a_library_the_plain_ops_run(searched, told):
    assert not library.usable()
    assert not library.usable()
    assert len(told) == 1
    assert told[0].startswith(
        "native kernels are asked for but not used: they are not built; run python -m mindformers"
    )
    assert library.problem() == "they are not built; run python -m mindformers native build"
    assert library.info()["library"] == "not built"
    assert library.info()["used"].startswith("no: they are not built")


def test_a_damaged_library_is_not_used(searched):
    searched.write_bytes(b"not a library")
    assert not library.usable()
    assert "cannot be loaded" in library.problem()
    assert not build.is_current(searched)


def test_a_library_of_other_sources_is_not_used(native_library, searched, monkeypatch):
    searched.write_bytes(Path(native_library._name).read_bytes())
    monkeypatch.setattr(build, "sources_hash", lambda: "0" * 16)
    assert not library.usable()
    assert "was built from other sources" in library.problem()


def test_no_compiler_and_a_failing_one(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(tmp_path / "nothing"))
    with pytest.raises(build.BuildError, match=r"no C\+\+ compiler found.*plain MindSpore ops are used"):
        build.build(tmp_path / "library.so")
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(build.BuildError, match=r"false .* failed with exit code 1"):
        build.build(tmp_path / "library.so")
    assert list(tmp_path.iterdir()) == []


def test_the_command(monkeypatch, capsys, native_library):
    import argparse

    parser = argparse.ArgumentParser()
    NATIVE.arguments(parser)
    assert NATIVE.run(parser.parse_args(["info"])) == 0
    printed = capsys.readouterr().out
    for words in ("compiler:", "library:", "kernels for this CPU:", "threads:", "used:"):
        assert words in printed
    assert NATIVE.run(parser.parse_args(["build"])) == 0
    assert "is up to date" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--jobs must be at least 1, got 0"):
        NATIVE.run(parser.parse_args(["build", "--jobs", "0"]))
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(ConfigError, match="failed with exit code 1"):
        NATIVE.run(parser.parse_args(["build", "--force"]))
    assert library.library_path().is_file()


def test_threads_come_from_the_context_then_from_the_environment(monkeypatch, native_library):
    before = native_library.mindformers_native_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    try:
        library.configure(False, 2)
        assert native_library.mindformers_native_threads() == 2
        library.configure(False)
        assert native_library.mindformers_native_threads() == 3
    finally:
        monkeypatch.delenv("OMP_NUM_THREADS")
        library.configure(False)
        native_library.mindformers_native_set_threads(before)


def test_a_config_may_ask_for_bfloat16_with_native_kernels(native_library, monkeypatch):
    monkeypatch.delenv(library.ENVIRONMENT, raising=False)
    path = str(REPO / "configs" / "llama2" / "run_llama2_tiny.yaml")
    wish = "model.model_config.compute_dtype=bfloat16"
    with pytest.raises(ConfigError, match=r"context\.native_kernels: True"):
        load_config(path, [wish, "context.native_kernels=False"])
    assert load_config(path, [wish]).context.native_kernels is None
    assert load_config(path, [wish, "context.native_kernels=True"]).context.native_kernels
    monkeypatch.setenv(library.ENVIRONMENT, "0")
    with pytest.raises(ConfigError, match="no bfloat16 kernels on CPU"):
        load_config(path, [wish, "context.native_kernels=True"])


def test_rounding_to_bfloat16_is_to_nearest_even(native_library):
    """Through a product with 1: the weight's rounding is all that happens to it."""
    code = (
        CALL
        + """
values = np.array([1.0, 1.00390625, 1.01171875, 3.0e38, 1e-40, -2.5], np.float32)
one, y = np.ones((1, 1), np.float32), np.zeros((1, len(values)), np.float32)
assert call("LinearBf16", one, values.reshape(-1, 1).copy(), y) == 0
print(json.dumps(y[0].tolist()))
"""
    )
    got = np.array(run(code, library.library_path()), np.float32)
    bits = np.array([1.0, 1.00390625, 1.01171875, 3.0e38, 1e-40, -2.5], np.float32).view(np.uint32)
    expected = (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-39)  # hardware may flush numbers below 1.2e-38 to 0
