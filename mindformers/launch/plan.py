# SPDX-License-Identifier: Apache-2.0
"""From the words of run_distribute.sh and run_standalone.sh to what has to be started: files, ranks, addresses."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mindformers
from mindformers.errors import ConfigError, DeviceError
from mindformers.launch.hosts import is_local
from mindformers.tools.rank_table import RankTable, Server, explain, launch_lines, parse_table_range, read_table, spans

ROOT = Path(mindformers.__file__).resolve().parents[1]
MODES = ("train", "finetune", "eval", "predict")
DEFAULT_PORT = 8118  # that of MindSpore's own launcher

DISTRIBUTE_USAGE = """\
usage: bash run_distribute.sh RANK_TABLE CONFIG [FIRST,END] MODE [RANK_SIZE] [PREDICT_DATA] [options]
  one server      bash run_distribute.sh hccl_8p.json run.yaml [0,8] train
                  bash run_distribute.sh hccl_2p.json run.yaml [0,2] predict "a prompt, or a file of prompts"
  several servers bash run_distribute.sh hccl_2s_16p.json run.yaml [8,16] train 16
                  bash run_distribute.sh hccl_2s_16p.json run.yaml [8,16] predict 16 "a prompt"
  RANK_TABLE      made by mindformers/tools/hccl_tools.py (and merge_hccl.py)
  [FIRST,END]     devices of this server, END not included; with RANK_SIZE: ranks of the job
  MODE            train, finetune, eval or predict"""
STANDALONE_USAGE = """\
usage: bash run_standalone.sh CONFIG DEVICE_ID MODE [PREDICT_DATA] [options]
                  bash run_standalone.sh run.yaml 0 finetune
                  bash run_standalone.sh run.yaml 0 predict "a prompt, or a file of prompts\""""
OPTIONS_USAGE = """\
options
  --max_restarts N   start again after a failure, from the last complete checkpoint, at most N times (0)
  --grace SECONDS    time that ranks get to end by themselves before they are killed (5)
  --port N           port of the job's meeting point, the same on all servers (one server: any free one; several: 8118)
  --script FILE      Python file to run in place of run_mindformer.py, with the same flags
  everything else that starts with -- goes to run_mindformer.py: --epochs 3 --output_dir output/mine"""


@dataclass
class Options:
    """Settings of the launcher itself."""

    max_restarts: int = 0
    grace: float = 5.0
    port: int | None = None
    script: str = ""


@dataclass
class Plan:
    """What one launcher starts.

    Args:
        mode: train, finetune, eval or predict.
        config: the YAML file, or the name of a shipped one.
        flags: further words for the program.
        run_dir: folder the ranks run in.
        table_path: the rank table; None for one rank without a job.
        table: its content.
        server: the entry of this machine.
        device_id: device of a standalone run.
        options: the launcher's settings.
    """

    mode: str
    config: str
    flags: list[str]
    run_dir: Path
    options: Options
    table_path: Path | None = None
    table: RankTable | None = None
    server: Server | None = None
    device_id: int = 0
    predict_data: str | None = None
    program: Path = field(default_factory=lambda: ROOT / "run_mindformer.py")

    @property
    def ranks(self) -> range:
        """Ranks this launcher starts."""
        return self.server.ranks if self.server else range(1)

    @property
    def size(self) -> int:
        """Ranks of the whole job."""
        return self.table.size if self.table else 1

    @property
    def is_head(self) -> bool:
        """Whether this is the first server, where the job's meeting point is."""
        return self.table is None or self.server == self.table.servers[0]

    @property
    def other_servers(self) -> int:
        """Servers of the job beside this one."""
        return len(self.table.servers) - 1 if self.table else 0

    @property
    def address(self) -> str:
        """Address of the first server."""
        return self.table.servers[0].server_id if self.table else "127.0.0.1"

    def program_flags(self) -> list[str]:
        """The words after the program's name, without those of a restart."""
        words = ["--config", self.config, "--run_mode", self.mode]
        words += ["--use_parallel", str(self.table is not None)]
        if self.table is None:
            words += ["--device_id", str(self.device_id)]
        if self.predict_data is not None:
            words += ["--predict_data", self.predict_data]
        return words + self.flags


def make_plan(kind: str, words: Sequence[str], cwd: Path) -> Plan:
    """Read the command line of a script.

    Args:
        kind: ``distribute`` or ``standalone``.
        words: what the user typed.
        cwd: where.

    Raises:
        ConfigError: with the usage, or naming the argument that is wrong.
        DeviceError: the rank table is for other machines.
    """
    positional, options, flags = _split(words)
    run_dir = run_folder(cwd)
    flags = [_flag_value(word, cwd, run_dir) for word in flags]
    if options.script:
        options.script = str(_file(options.script, cwd, "--script"))
    if kind == "standalone":
        plan = _standalone(positional, options, flags, cwd, run_dir)
    else:
        plan = _distribute(positional, options, flags, cwd, run_dir)
    if options.script:
        plan.program = Path(options.script)
    if not plan.program.is_file():
        raise ConfigError(f"there is no {plan.program}: use the scripts of a checkout, or name a program by --script")
    return plan


def run_folder(cwd: Path) -> Path:
    """Where ranks run: the user's folder; for a user in ``scripts/``, as the model card does it, the checkout."""
    return ROOT if cwd.resolve() == ROOT / "scripts" else cwd


def _split(words: Sequence[str]) -> tuple[list[str], Options, list[str]]:
    """Words -> positional arguments, the launcher's options, flags of the program."""
    first = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    options, flags = Options(), []
    rest = iter(words[first:])
    for word in rest:
        name, equals, value = word.partition("=")
        if name not in ("--max_restarts", "--grace", "--port", "--script"):
            flags.append(word)
            continue
        value = value if equals else next(rest, "")
        if not value:
            raise ConfigError(f"{name} needs a value\n{OPTIONS_USAGE}")
        setattr(options, name[2:], _option(name, value))
    return list(words[:first]), options, flags


def _option(name: str, text: str) -> int | float | str:
    if name == "--script":
        return text
    limits = {"--max_restarts": (int, 0, 10_000), "--grace": (float, 0, 3600), "--port": (int, 0, 65534)}
    kind, low, high = limits[name]
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not low <= value <= high:
        raise ConfigError(f"{name} is {text!r}; a number from {low} to {high} is needed")
    return value


def _standalone(words: list[str], options: Options, flags: list[str], cwd: Path, run_dir: Path) -> Plan:
    if len(words) not in (3, 4):
        raise ConfigError(f"3 or 4 arguments are needed, got {len(words)}\n{STANDALONE_USAGE}\n{OPTIONS_USAGE}")
    config, device, mode = words[:3]
    if not device.isdecimal():
        raise ConfigError(f"DEVICE_ID is {device!r}; a number is needed\n{STANDALONE_USAGE}")
    plan = Plan(_mode(mode), _config(config, cwd), flags, run_dir, options, device_id=int(device))
    plan.predict_data = _prompt(mode, words[3:], cwd, STANDALONE_USAGE)
    return plan


def _distribute(words: list[str], options: Options, flags: list[str], cwd: Path, run_dir: Path) -> Plan:
    if len(words) not in (4, 5, 6):
        raise ConfigError(f"4, 5 or 6 arguments are needed, got {len(words)}\n{DISTRIBUTE_USAGE}\n{OPTIONS_USAGE}")
    path = _file(words[0], cwd, "RANK_TABLE")
    numbers = parse_table_range(words[2], "the device range")
    mode, rest = _mode(words[3]), words[4:]
    size = None
    if (mode != "predict" and rest) or len(rest) == 2:
        size = rest.pop(0)
        if not size.isdecimal() or int(size) < 1:
            raise ConfigError(
                f"RANK_SIZE is {size!r}; the number of ranks on all servers is needed\n{DISTRIBUTE_USAGE}"
            )
    data = _prompt(mode, rest, cwd, DISTRIBUTE_USAGE)
    table = read_table(path)
    server = find_server(table, path, numbers, int(size) if size else None)
    config = _config(words[1], cwd)
    return Plan(mode, config, flags, run_dir, options, path, table, server, predict_data=data)


def find_server(table: RankTable, path: Path, numbers: range, size: int | None) -> Server:
    """The server whose ranks are asked for.

    Args:
        table: the rank table.
        path: its file.
        numbers: the range that was given: devices or ranks of the only server, or ranks of the job.
        size: the number of ranks that was given with it; None in the short form.

    Raises:
        ConfigError: the range and the table do not fit; the message has the commands that do.
    """
    shown = f"[{numbers.start},{numbers.stop}]"
    commands = "\n  ".join(launch_lines(table, path))
    if size is not None and size != table.size:
        raise ConfigError(f"RANK_SIZE is {size}, but {path} is a table of {explain(table)}\nUse\n  {commands}")
    if size is None and len(table.servers) > 1:
        raise ConfigError(f"{path} has {len(table.servers)} servers: RANK_SIZE is needed after MODE\nUse\n  {commands}")
    for server in table.servers:
        devices = {device.device_id for device in server.devices}
        if set(numbers) == set(server.ranks) or (len(table.servers) == 1 and set(numbers) == devices):
            return server
    raise ConfigError(
        f"the range {shown} asks for {spans(numbers)}, but {path} is a table of {explain(table)}\nUse\n  {commands}\n"
        f'or make a table of that many: python mindformers/tools/hccl_tools.py --device_num "[0,{len(numbers)})"'
    )


def check_target(plan: Plan, device_target: str) -> list[str]:
    """Whether the rank table fits the kind of device and this machine; notes for the user.

    Raises:
        ConfigError: a table of CPU ranks for another device.
        DeviceError: the table's server is another machine.
    """
    if plan.table is None:
        return []
    if plan.table.is_cpu and device_target != "CPU":
        raise ConfigError(
            f"{plan.table_path} describes CPU ranks, but context.device_target is {device_target}: add "
            "--device_target CPU, or make a table of NPUs (hccl_tools.py without --cpu)"
        )
    server = plan.server.server_id
    local = is_local(server)
    if local:
        return []
    problem = f"server {server} of {plan.table_path} " + (
        "is not an address of this machine" if local is False else "is a name that does not resolve"
    )
    if device_target != "CPU":
        return [f"note: {problem}; that is as it should be only inside a container or behind a job system"]
    raise DeviceError(
        f"{problem}. Start the ranks {spans(plan.server.ranks)} there; for a trial on this machine make a table with: "
        f'python mindformers/tools/hccl_tools.py --device_num "[0,{plan.size})" --cpu'
    )


def _mode(text: str) -> str:
    if text not in MODES:
        raise ConfigError(f"MODE is {text!r}; allowed: {', '.join(MODES)}\n{DISTRIBUTE_USAGE}")
    return text


def _prompt(mode: str, words: list[str], cwd: Path, usage: str) -> str | None:
    if mode != "predict":
        if words:
            raise ConfigError(f"{words[0]!r} is one argument too many for MODE {mode}\n{usage}")
        return None
    if not words:
        raise ConfigError(f"MODE predict needs PREDICT_DATA, a text or a file\n{usage}")
    return str((cwd / words[0]).resolve()) if _exists(cwd / words[0]) else words[0]


def _config(text: str, cwd: Path) -> str:
    """A file below the user's folder or the checkout, or the name of a shipped config."""
    if "/" not in text and not text.endswith((".yaml", ".yml")):
        return text
    return str(_file(text, cwd, "CONFIG"))


def _file(text: str, cwd: Path, what: str) -> Path:
    """A file relative to the user's folder or, as the model card writes paths, to the checkout."""
    for folder in (cwd, ROOT):
        if _exists(folder / text) and (folder / text).is_file():
            return (folder / text).resolve()
    also = "" if Path(text).is_absolute() else f" (looked in {cwd} and {ROOT})"
    raise ConfigError(f"{what} {text}: no such file{also}")


def _flag_value(word: str, cwd: Path, run_dir: Path) -> str:
    """A path that exists where the user is, but not where the ranks run, made absolute."""
    head, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    if value and run_dir != cwd and "/" in value and _exists(cwd / value) and not _exists(run_dir / value):
        value = str((cwd / value).resolve())
    return f"{head}{equals}{value}"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a prompt too long for a file name
        return False
