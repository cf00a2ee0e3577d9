# SPDX-License-Identifier: Apache-2.0
"""Random damage to YAML text and command lines never ends in anything but a config or a ConfigError."""

import contextlib

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindformers.config import MindFormerConfig, RunConfig, load_config
from mindformers.config.cli import parse_command_line
from mindformers.config.files import configs_dir
from mindformers.config.save import to_yaml
from mindformers.config.tree import walk_fields
from mindformers.errors import ConfigError

BASE = (configs_dir() / "llama2" / "_base.yaml").read_text(encoding="utf-8")
LINES = BASE.splitlines()
# register_path is left out: it runs the files it names
KEYS = sorted({".".join(map(str, path)) for path, _, _ in walk_fields(RunConfig)} - {"register_path"})
PIECES = [
    "- ",
    ": ",
    "&a ",
    "*a",
    "<<: ",
    "!!int ",
    "{",
    "}",
    "[",
    "]",
    "\t",
    "'",
    '"',
    "|\n",
    "\x00",
    "~",
    "9" * 30,
    "#",
]
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["None", "1e9"])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "x", "0"]), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged_text(draw) -> str:
    text = BASE
    for _ in range(draw(st.integers(1, 4))):
        where = draw(st.integers(0, len(text)))
        length = draw(st.integers(0, 30))
        text = text[:where] + draw(st.sampled_from(PIECES) | st.text(max_size=5)) + text[where + length :]
    return text


@st.composite
def shuffled_lines(draw) -> str:
    picked = draw(st.lists(st.sampled_from(LINES), min_size=1, max_size=25))
    return "\n".join(" " * draw(st.integers(0, 2)) + line for line in picked)


@QUICK
@given(text=damaged_text() | shuffled_lines())
def test_damaged_files(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    for read in (load_config, lambda file: MindFormerConfig(str(file))):
        with contextlib.suppress(ConfigError):
            read(path)


@QUICK
@given(changes=st.dictionaries(st.sampled_from(KEYS), values, min_size=1, max_size=3))
def test_any_value_at_any_key(changes):
    with contextlib.suppress(ConfigError):
        config = load_config("run_llama2_tiny", list(changes.items()))
        values = config.to_dict()
        assert_loads_equal(values, config)


def assert_loads_equal(values, config):
    """What was accepted once is accepted again, and means the same."""
    try:
        again = MindFormerConfig(**values).to_run_config()
    except ConfigError as error:
        raise AssertionError("accepted as overrides, refused as values") from error
    assert again == config


@QUICK
@given(
    words=st.lists(
        st.sampled_from([f"--{key}" for key in KEYS] + ["--options", "--seed=1"]) | st.text(max_size=6), max_size=6
    )
)
def test_any_command_line(words):
    with contextlib.suppress(ConfigError, SystemExit):
        parse_command_line(["--config", "run_llama2_tiny", *words])


@QUICK
@given(texts=st.lists(st.text(max_size=20), min_size=1, max_size=3))
def test_any_text_survives_saving(tmp_path, texts):
    config = RunConfig(input_data=texts)
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(config.to_dict()), encoding="utf-8")
    assert load_config(path).input_data == texts
