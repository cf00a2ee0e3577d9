# SPDX-License-Identifier: Apache-2.0
"""The registry behind every ``type:`` of a YAML: name -> class, strict about duplicates and unknown names."""

import importlib
import importlib.util
import inspect
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from mindformers.errors import ConfigError
from mindformers.tools.utils import did_you_mean, listing, nearest

__all__ = ["MindFormerModuleType", "MindFormerRegister", "check_kwargs", "import_user_modules"]

C = TypeVar("C", bound=Callable[..., Any])


class MindFormerModuleType:
    """The kinds of things a YAML can name; string constants."""

    TRAINER = "trainer"
    PIPELINE = "pipeline"
    PROCESSOR = "processor"
    TOKENIZER = "tokenizer"
    DATASET = "dataset"
    MASK_POLICY = "mask_policy"
    DATASET_LOADER = "dataset_loader"
    DATASET_SAMPLER = "dataset_sampler"
    TRANSFORMS = "transforms"
    ENCODER = "encoder"
    MODELS = "models"
    MODULES = "modules"
    TRANSFORMER = "transformer"
    BASE_LAYER = "base_layer"
    CORE = "core"
    HEAD = "head"
    LOSS = "loss"
    LR = "lr"
    OPTIMIZER = "optimizer"
    CONTEXT = "context"
    CALLBACK = "callback"
    WRAPPER = "wrapper"
    METRIC = "metric"
    CONFIG = "config"
    TOOLS = "tools"
    FEATURE_EXTRACTOR = "feature_extractor"


_KINDS = tuple(value for name, value in vars(MindFormerModuleType).items() if name.isupper())

# Names a YAML may take straight from MindSpore: kind -> (module, class names). A list, not a look into the package,
# so that a wrong name is reported before MindSpore (2-3 s to import) is needed.
MINDSPORE_NAMES: dict[str, tuple[str, tuple[str, ...]]] = {
    MindFormerModuleType.OPTIMIZER: (
        "mindspore.nn",
        (
            "Adam", "AdamWeightDecay", "AdamOffload", "AdaFactor", "AdaMax", "Adadelta", "Adagrad", "ASGD", "FTRL",
            "LARS", "Lamb", "LazyAdam", "Momentum", "ProximalAdagrad", "RMSProp", "Rprop", "SGD",
        ),
    ),
    MindFormerModuleType.LR: (
        "mindspore.nn",
        (
            "CosineDecayLR", "ExponentialDecayLR", "InverseDecayLR", "NaturalExpDecayLR", "PolynomialDecayLR",
            "WarmUpLR",
        ),
    ),
    MindFormerModuleType.WRAPPER: (
        "mindspore.nn",
        (
            "DynamicLossScaleUpdateCell", "FixedLossScaleUpdateCell", "ForwardValueAndGrad", "TrainOneStepCell",
            "TrainOneStepWithLossScaleCell", "WithLossCell", "WithEvalCell",
        ),
    ),
    MindFormerModuleType.CALLBACK: (
        "mindspore.train.callback",
        (
            "BackupAndRestore", "EarlyStopping", "FlopsUtilizationCollector", "History", "LambdaCallback",
            "LearningRateScheduler", "LossMonitor", "ModelCheckpoint", "OnRequestExit", "ReduceLROnPlateau",
            "SummaryCollector", "SummaryLandscape", "TimeMonitor", "TrainFaultTolerance",
        ),
    ),
    MindFormerModuleType.DATASET_LOADER: (
        "mindspore.dataset",
        ("CSVDataset", "GeneratorDataset", "MindDataset", "NumpySlicesDataset", "TFRecordDataset", "TextFileDataset"),
    ),
}  # fmt: skip

# Short names of the old library: kind -> {alias: class name}.
ALIASES: dict[str, dict[str, str]] = {
    MindFormerModuleType.OPTIMIZER: {
        "adamw": "AdamW",
        "adafactor": "AdaFactor",
        "sgd": "SGD",
        "adam": "Adam",
        "adagrad": "Adagrad",
        "fp32_adamw": "FP32StateAdamWeightDecay",
    },
    MindFormerModuleType.LR: {
        "constant_with_warmup": "ConstantWarmUpLR",
        "linear": "LinearWithWarmUpLR",
        "cosine": "CosineWithWarmUpLR",
        "cosine_with_restarts": "CosineWithRestartsAndWarmUpLR",
        "polynomial": "PolynomialWithWarmUpLR",
    },
    MindFormerModuleType.WRAPPER: {
        "wrapper": "MFTrainOneStepCell",
        "mf_wrapper": "MFTrainOneStepCell",
        "loss_scale_wrapper": "MFTrainOneStepCell",
        "pipeline_wrapper": "MFPipelineWithLossScaleCell",
    },
    MindFormerModuleType.CALLBACK: {"CheckpointMointor": "CheckpointMonitor"},
    MindFormerModuleType.PIPELINE: {"text_generation": "TextGenerationPipeline"},
}

# Where this library's own classes register themselves: kind -> packages imported at the first miss of that kind.
PROVIDERS: dict[str, tuple[str, ...]] = {
    MindFormerModuleType.OPTIMIZER: ("mindformers.core.optim",),
    MindFormerModuleType.LR: ("mindformers.core.lr",),
    MindFormerModuleType.LOSS: ("mindformers.core.loss",),
    MindFormerModuleType.METRIC: ("mindformers.core.metric",),
    MindFormerModuleType.CALLBACK: ("mindformers.core.callback",),
    MindFormerModuleType.WRAPPER: ("mindformers.wrapper",),
    MindFormerModuleType.DATASET: ("mindformers.dataset.causal_language_model",),
    MindFormerModuleType.MODELS: ("mindformers.models.llama.llama",),
    MindFormerModuleType.CONFIG: ("mindformers.models.llama.llama_config",),
    MindFormerModuleType.TOKENIZER: ("mindformers.models.llama.llama_tokenizer",),
    MindFormerModuleType.PROCESSOR: ("mindformers.models.llama.llama_processor",),
    MindFormerModuleType.PIPELINE: ("mindformers.pipeline",),
}


class MindFormerRegister:
    """Name -> class, per kind. Class methods only; the store is shared by the process."""

    registry: dict[str, dict[str, Any]] = {}

    @classmethod
    def register(cls, module_type: str = MindFormerModuleType.TOOLS, alias: str | None = None) -> Callable[[C], C]:
        """Decorator that registers a class or function under its own name, and under ``alias`` when given.

        Args:
            module_type: one of :class:`MindFormerModuleType`.
            alias: a second name.

        Raises:
            ConfigError: the name is taken by another class, or the kind does not exist.
        """

        def decorate(target: C) -> C:
            return cls.register_cls(target, module_type, alias)

        return decorate

    @classmethod
    def register_cls(
        cls, register_class: C, module_type: str = MindFormerModuleType.TOOLS, alias: str | None = None
    ) -> C:
        """Register ``register_class`` and return it; arguments and errors as for :meth:`register`."""
        _check_kind(module_type)
        for name in (register_class.__name__, alias):
            if name is not None:
                cls._store(module_type, name, register_class)
        return register_class

    @classmethod
    def _store(cls, module_type: str, name: str, target: Any) -> None:
        names = cls.registry.setdefault(module_type, {})
        taken = names.get(name)
        if taken is not None and not _same_class(taken, target):
            raise ConfigError(
                f"{module_type} name {name!r} is already registered by {_origin(taken)}; {_origin(target)} needs "
                "another name (rename the class, or give register() an alias that is free)"
            )
        names[name] = target

    @classmethod
    def names(cls, module_type: str) -> list[str]:
        """Every name usable for ``module_type`` now: registered ones, aliases and MindSpore's, sorted."""
        _check_kind(module_type)
        known = set(cls.registry.get(module_type, {})) | set(ALIASES.get(module_type, {}))
        return sorted(known | set(MINDSPORE_NAMES.get(module_type, ("", ()))[1]))

    @classmethod
    def is_exist(cls, module_type: str, class_name: str | None = None) -> bool:
        """Whether the kind, or the name within the kind, is usable.

        Args:
            module_type: a kind; an unknown one answers False.
            class_name: a name, alias or MindSpore class; None asks about the kind itself.
        """
        if module_type not in _KINDS:
            return False
        if class_name is None:
            return module_type in cls.registry or module_type in MINDSPORE_NAMES or module_type in PROVIDERS
        return class_name in cls.names(module_type)

    @classmethod
    def get_cls(cls, module_type: str, class_name: str | None = None) -> Any:
        """The class named ``class_name`` of a kind.

        This library's own packages and MindSpore are imported only when the name is not registered yet.

        Raises:
            ConfigError: no such name; the message lists the names there are and the nearest one.
        """
        _check_kind(module_type)
        if not isinstance(class_name, str):
            raise ConfigError(f"{module_type} type must be a name, got {class_name!r}")
        found = cls._lookup(module_type, class_name)
        if found is None:
            for package in PROVIDERS.get(module_type, ()):
                importlib.import_module(package)
            found = cls._lookup(module_type, class_name)
        if found is None:
            found = _from_mindspore(module_type, class_name)
        if found is None:
            choices = cls.names(module_type)
            raise ConfigError(
                f"no {module_type} is called {class_name!r}.{did_you_mean(class_name, choices)} A class of your own "
                "is found after its module was imported: --register_path FILE_OR_FOLDER"
            )
        return found

    @classmethod
    def _lookup(cls, module_type: str, class_name: str) -> Any:
        names = cls.registry.get(module_type, {})
        return names.get(class_name) or names.get(ALIASES.get(module_type, {}).get(class_name, class_name))

    @classmethod
    def get_instance_from_cfg(
        cls,
        cfg: Mapping[str, Any],
        module_type: str = MindFormerModuleType.TOOLS,
        default_args: Mapping[str, Any] | None = None,
    ) -> Any:
        """Build the object that a config section describes.

        Args:
            cfg: a mapping with key ``type`` (a name, or a class) and the constructor's arguments.
            module_type: the kind ``type`` is looked up in.
            default_args: arguments used where ``cfg`` does not give them; an argument in ``cfg`` wins.

        Raises:
            ConfigError: no ``type``, an unknown name, or an argument the constructor does not take.
        """
        if not isinstance(cfg, Mapping):
            raise ConfigError(f"a {module_type} section must be a mapping with a key 'type', got {cfg!r}")
        if "type" not in cfg:
            raise ConfigError(f"a {module_type} section needs the key 'type' (given: {listing(cfg) or 'nothing'})")
        kwargs = {**(default_args or {}), **{key: value for key, value in cfg.items() if key != "type"}}
        target = cfg["type"]
        if not inspect.isclass(target):
            target = cls.get_cls(module_type, target)
        check_kwargs(target, kwargs, module_type)
        return target(**kwargs)

    @classmethod
    def get_instance(
        cls, module_type: str = MindFormerModuleType.TOOLS, class_name: str | None = None, **kwargs: Any
    ) -> Any:
        """Build ``class_name`` of a kind with ``kwargs``; errors as for :meth:`get_instance_from_cfg`."""
        target = cls.get_cls(module_type, class_name)
        check_kwargs(target, kwargs, module_type)
        return target(**kwargs)


def check_kwargs(cls: Callable[..., Any], kwargs: Mapping[str, Any], where: str) -> None:
    """Refuse arguments that ``cls`` does not take, and the absence of ones it needs, before it is called.

    Args:
        cls: the class or function to be called.
        kwargs: the keyword arguments it would get.
        where: the config section, for the message (``optimizer``).

    Raises:
        ConfigError: names every such argument, the accepted ones and the nearest name.
    """
    try:
        parameters = inspect.signature(cls).parameters.values()
    except (TypeError, ValueError):  # a C extension without a signature: it checks for itself
        return
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    accepted = [p.name for p in named]
    name = getattr(cls, "__name__", repr(cls))
    problems = []
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in (key for key in kwargs if key not in accepted):
            best = nearest(key, accepted)
            problems.append(f"{name} takes no argument {key!r}." + (f" Did you mean {best!r}?" if best else ""))
    missing = [p.name for p in named if p.default is p.empty and p.name not in kwargs]
    if missing:
        problems.append(f"{name} needs the argument {', '.join(map(repr, missing))}.")
    if problems:
        raise ConfigError(f"{where}: {' '.join(problems)} (accepted: {listing(accepted) or 'no arguments'})")


def import_user_modules(paths: str | Iterable[str]) -> list[ModuleType]:
    """Import the user's own Python files so that the classes in them are registered.

    Args:
        paths: a ``.py`` file, a folder (its ``.py`` files in name order; its ``__init__.py`` alone when it has one),
            or a list of these. The folder of a file is put on ``sys.path`` while it is imported.

    Returns:
        The imported modules. A file imported before is not run again.

    Raises:
        ConfigError: a path does not exist, or importing it failed; the cause is kept.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    files: list[Path] = []
    for path in map(Path, given):
        if path.is_dir():
            init = path / "__init__.py"
            found = [init] if init.is_file() else sorted(path.glob("*.py"))
            if not found:
                raise ConfigError(f"register_path: {path}: the folder holds no .py file")
            files += found
        elif path.is_file() and path.suffix == ".py":
            files.append(path)
        else:
            raise ConfigError(f"register_path: {path}: no such .py file or folder")
    return [_import_file(file.resolve()) for file in files]


def _import_file(file: Path) -> ModuleType:
    package = file.name == "__init__.py"
    stem = file.parent.name if package else file.stem
    name = f"mindformers_user_{stem}_{zlib.crc32(str(file).encode()):08x}"
    if name in sys.modules:
        return sys.modules[name]
    search = [str(file.parent)] if package else None
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=search)
    if spec is None or spec.loader is None:
        raise ConfigError(f"register_path: {file}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        sys.modules.pop(name, None)
        raise ConfigError(f"register_path: {file}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(file.parent))
    return module


def _check_kind(module_type: str) -> None:
    if module_type not in _KINDS:
        raise ConfigError(f"no such kind of component: {module_type!r}.{did_you_mean(str(module_type), _KINDS)}")


def _from_mindspore(module_type: str, class_name: str) -> Any:
    name = ALIASES.get(module_type, {}).get(class_name, class_name)
    module, names = MINDSPORE_NAMES.get(module_type, ("", ()))
    if name not in names:
        return None
    found = getattr(importlib.import_module(module), name, None)
    if found is None:
        raise ConfigError(
            f"this version of MindSpore has no {module}.{name} (asked for as {module_type} {class_name!r})"
        )
    return found


def _same_class(one: Any, other: Any) -> bool:
    """True for the same object, and for the same definition seen again after its module was reloaded."""
    return one is other or (one.__module__ == other.__module__ and one.__qualname__ == other.__qualname__)


def _origin(target: Any) -> str:
    return f"{target.__module__}.{target.__qualname__}"
