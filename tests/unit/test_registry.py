# SPDX-License-Identifier: Apache-2.0
"""The registry: names, duplicates, aliases, MindSpore's classes, arguments, and the user's own modules."""

import inspect
import subprocess
import sys
from functools import partial

import pytest

from mindformers.config import load_config
from mindformers.config.schema import callbacks, train
from mindformers.config.schema.base import OWN_TYPES, type_names
from mindformers.errors import ConfigError
from mindformers.registry import (
    ALIASES,
    MINDSPORE_NAMES,
    PROVIDERS,
    MindFormerModuleType,
    MindFormerRegister,
    check_kwargs,
    import_user_modules,
)
from mindformers.tools.register import MindFormerRegister as OldPath
from tests.helpers import REPO
from tests.unit.config.helpers import SMALL, problems, write

OPTIMIZER = MindFormerModuleType.OPTIMIZER
TOOLS = MindFormerModuleType.TOOLS


@pytest.fixture(autouse=True)
def _forget_names_of_tests():
    """Take out what a test registered; the library's own classes register only once per process."""
    yield
    for names in MindFormerRegister.registry.values():
        for name, cls in list(names.items()):
            if cls.__module__.startswith((__name__, "mindformers_user", "elsewhere")):
                del names[name]


def test_register_get_and_build():
    @MindFormerRegister.register(TOOLS, alias="short")
    class Thing:
        def __init__(self, size, color="red"):
            self.size, self.color = size, color

    assert OldPath is MindFormerRegister
    assert MindFormerRegister.get_cls(TOOLS, "Thing") is MindFormerRegister.get_cls(TOOLS, "short") is Thing
    assert MindFormerRegister.is_exist(TOOLS, "short")
    assert MindFormerRegister.get_instance(TOOLS, "Thing", size=1).size == 1
    built = MindFormerRegister.get_instance_from_cfg({"type": "Thing", "size": 2}, TOOLS, {"size": 3, "color": "blue"})
    assert (built.size, built.color) == (2, "blue")
    assert MindFormerRegister.get_instance_from_cfg({"type": Thing, "size": 4}, TOOLS).size == 4
    assert MindFormerRegister.register_cls(Thing, TOOLS) is Thing


def test_a_taken_name_is_an_error():
    def make():
        class Thing:
            pass

        return Thing

    first, again, other = make(), make(), type("Thing", (), {"__module__": "elsewhere"})
    MindFormerRegister.register_cls(first, TOOLS)
    MindFormerRegister.register_cls(again, TOOLS)  # the same definition, as after a reload
    with pytest.raises(ConfigError, match=r"'Thing' is already registered by .*make.*; elsewhere.Thing needs another"):
        MindFormerRegister.register_cls(other, TOOLS)
    with pytest.raises(ConfigError, match=r"'Thing' is already registered"):
        MindFormerRegister.register(TOOLS, alias="Thing")(type("Another", (), {}))


def test_unknown_names_list_the_choices():
    with pytest.raises(
        ConfigError, match=r"no optimizer is called 'Momentun'. Did you mean 'Momentum'\? \(allowed: .*SGD"
    ):
        MindFormerRegister.get_cls(OPTIMIZER, "Momentun")
    with pytest.raises(ConfigError, match=r"no such kind of component: 'optimiser'. Did you mean 'optimizer'"):
        MindFormerRegister.get_cls("optimiser", "Momentum")
    with pytest.raises(ConfigError, match=r"no such kind"):
        MindFormerRegister.register("optimiser")(type("A", (), {}))
    with pytest.raises(ConfigError, match=r"must be a name, got None"):
        MindFormerRegister.get_cls(OPTIMIZER)
    assert not MindFormerRegister.is_exist("optimiser")
    assert not MindFormerRegister.is_exist(OPTIMIZER, "Momentun")
    assert MindFormerRegister.is_exist(OPTIMIZER)


@pytest.mark.parametrize("kind", sorted(MINDSPORE_NAMES))
def test_names_of_mindspore_resolve(kind):
    for name in MINDSPORE_NAMES[kind][1]:
        assert MindFormerRegister.get_cls(kind, name).__name__ == name


@pytest.mark.parametrize("kind", sorted(PROVIDERS))
def test_own_packages_can_be_imported_for_a_miss(kind):
    with pytest.raises(ConfigError, match=r"'NoSuchName'"):
        MindFormerRegister.get_cls(kind, "NoSuchName")


@pytest.mark.parametrize("kind", [MindFormerModuleType.OPTIMIZER, MindFormerModuleType.LR])
def test_aliases_resolve(kind):
    for alias, name in ALIASES[kind].items():
        assert MindFormerRegister.get_cls(kind, alias) is MindFormerRegister.get_cls(kind, name)


@pytest.mark.parametrize(
    "section",
    [
        *(getattr(callbacks, name) for name in OWN_TYPES[MindFormerModuleType.CALLBACK] if name != "CheckpointMointor"),
        *(getattr(train, name) for name in ("FP32StateAdamWeightDecay", "AdamW", "TrainOneStep", "WarmUpDecayLR")),
        *(getattr(train, name) for name in OWN_TYPES[MindFormerModuleType.LR] if hasattr(train, name)),
    ],
    ids=lambda section: section.__name__,
)
def test_the_schemas_arguments_are_those_of_the_class(section):
    name = type_names(section)[0]
    kind = next(kind for kind, names in OWN_TYPES.items() if name in names)
    accepted = set(inspect.signature(MindFormerRegister.get_cls(kind, name)).parameters)
    inert = {key for key, info in section.model_fields.items() if "inert" in (info.json_schema_extra or {})}
    resolved_before = {"type", "warmup_ratio", "warmup_epochs"}  # core.lr turns the last two into steps
    assert set(section.model_fields) - inert - resolved_before <= accepted


def test_mindspore_is_imported_only_when_a_class_is_needed():
    code = (
        "import sys; from mindformers.registry import *; R = MindFormerRegister\n"
        "assert R.is_exist('optimizer', 'Adam') and 'Adam' in R.names('optimizer')\n"
        "assert 'mindspore' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True, timeout=900)


def test_arguments_are_checked_before_the_call():
    def build(learning_rate, momentum=0.9):
        raise AssertionError("must not be called")

    with pytest.raises(ConfigError) as caught:
        MindFormerRegister.get_instance_from_cfg({"type": "build", "momentun": 1}, register(build))
    assert str(caught.value) == (
        "tools: build takes no argument 'momentun'. Did you mean 'momentum'? build needs the argument 'learning_rate'. "
        "(accepted: learning_rate, momentum)"
    )
    check_kwargs(lambda **anything: None, {"x": 1}, "here")
    check_kwargs(partial(build, 1), {"momentum": 1}, "here")
    check_kwargs(dict, {"x": 1}, "here")


def register(target):
    MindFormerRegister.register_cls(target, TOOLS)
    return TOOLS


def test_errors_of_constructors_pass_through():
    class Broken:
        def __init__(self):
            raise KeyError("inside") from ValueError("cause")

    with pytest.raises(KeyError, match=r"inside") as caught:
        MindFormerRegister.get_instance_from_cfg({"type": "Broken"}, register(Broken))
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("cfg", [3, None, {}, {"size": 1}])
def test_sections_that_name_nothing(cfg):
    with pytest.raises(ConfigError, match=r"'type'"):
        MindFormerRegister.get_instance_from_cfg(cfg, TOOLS)


MODULE = """
from mindformers.registry import MindFormerModuleType, MindFormerRegister

@MindFormerRegister.register(MindFormerModuleType.OPTIMIZER)
class MyOptimizer:
    def __init__(self, params=None, speed=1):
        self.speed = speed
"""


def test_a_users_module_from_yaml(tmp_path):
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine", MODULE, "opt.py")
    text = SMALL.replace("type: AdamW", "type: MyOptimizer").replace("learning_rate: 1e-3", "speed: 3")
    path = write(tmp_path, text)
    assert "no optimizer is called 'MyOptimizer'" in problems(path)[0]
    cfg = load_config(path, [f"register_path={tmp_path}/mine"])
    section = {"type": cfg.optimizer.type, **cfg.optimizer.options()}
    assert MindFormerRegister.get_instance_from_cfg(section, OPTIMIZER).speed == 3


def test_importing_users_files(tmp_path):
    file = write(tmp_path, "import neighbour\nVALUE = neighbour.VALUE\n", "a.py")
    write(tmp_path, "VALUE = 7\n", "neighbour.py")
    first = import_user_modules(str(file))
    assert first[0].VALUE == 7
    assert import_user_modules([str(file)]) == first
    assert str(tmp_path) not in sys.path
    package = tmp_path / "package"
    package.mkdir()
    write(package, "from . import inner\n", "__init__.py")
    write(package, "VALUE = 8\n", "inner.py")
    assert import_user_modules(package)[0].inner.VALUE == 8


def test_users_files_with_problems(tmp_path):
    broken = write(tmp_path, "x = 1 / 0\n", "broken.py")
    with pytest.raises(ConfigError, match=r"broken.py: ZeroDivisionError: division by zero") as caught:
        import_user_modules(str(broken))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(ConfigError, match=r"syntax.py: SyntaxError"):
        import_user_modules(str(write(tmp_path, "x = = 1\n", "syntax.py")))
    with pytest.raises(ConfigError, match=r"no such .py file or folder"):
        import_user_modules(str(tmp_path / "none.py"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"holds no .py file"):
        import_user_modules(str(tmp_path / "empty"))
