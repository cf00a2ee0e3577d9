# SPDX-License-Identifier: Apache-2.0
"""llama_preprocess.py from files to MindRecord: contents, counts, errors, and being killed."""

import hashlib
import itertools
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from mindformers.dataset.mindrecord import inspect_mindrecord, read_records
from mindformers.errors import DataError
from mindformers.tools.dataset_preprocess.llama import llama_preprocess, record_output, token_stream, wiki_text
from tests.helpers import REPO, shared_data

SCRIPT = REPO / "mindformers" / "tools" / "dataset_preprocess" / "llama" / "llama_preprocess.py"
PARAGRAPHS = [f"the quick brown fox number {index} jumps" for index in range(40)]
TEXT = " = Heading = \n \n" + " \n \n".join(PARAGRAPHS) + "\n"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "text.txt"
    path.parent.mkdir()
    path.write_text(TEXT)
    return path


def _arguments(text: Path | str, model: Path, output: Path, *more: str) -> list[str]:
    words = [
        "--dataset_type",
        "wiki",
        "--input_glob",
        str(text),
        "--model_file",
        str(model),
        "--output_file",
        str(output),
    ]
    return [*words, "--seq_length", "16", *more]


def _tokens(model: Path, texts: list[str]) -> list[int]:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    return [index for row in processor.encode(texts, add_bos=True, add_eos=True) for index in row]


def _records(path: Path | str | list[str]) -> np.ndarray:
    info = inspect_mindrecord(path)
    return np.stack(read_records(info, "input_ids", info.num_records))


def test_records_are_the_token_stream_cut(text, tiny_model_file, tmp_path, capsys) -> None:
    output = tmp_path / "made" / "on" / "demand" / "wiki"
    assert llama_preprocess.main(_arguments(text, tiny_model_file, output)) == 0
    stream = _tokens(tiny_model_file, PARAGRAPHS)
    count = len(stream) // 17
    records = _records(output)
    assert records.dtype == np.int32
    np.testing.assert_array_equal(records, np.array(stream[: count * 17]).reshape(count, 17))
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == [f"Transformed {count} records.", f"Transform finished, output files refer: {output}"]
    assert f"40 paragraphs (1 headings left out), {len(stream)} tokens x 1, {count} records of 17" in said[0]
    assert f"{len(stream) - count * 17} tokens dropped in the tail" in said[0]
    meta = inspect_mindrecord(output).meta
    assert meta["seq_length"] == 16
    assert meta["records"] == count
    assert meta["tokenizer_sha256"] == hashlib.sha256(tiny_model_file.read_bytes()).hexdigest()
    assert (meta["bos_id"], meta["eos_id"]) == (1, 2)
    assert meta["vocab_size"] == sentencepiece.SentencePieceProcessor(model_file=str(tiny_model_file)).get_piece_size()
    assert meta["sources"] == [str(text)]
    assert sorted(path.name for path in output.parent.iterdir()) == ["wiki", "wiki.db", "wiki.json"]


def test_special_strings_of_the_corpus_are_text(tiny_model_file, tmp_path) -> None:
    """WikiText is full of <unk>; a corpus must not be able to put control tokens into the training data."""
    source = tmp_path / "t.txt"
    source.write_text("a <unk> b </s> c <s> " * 10)
    llama_preprocess.main(_arguments(source, tiny_model_file, tmp_path / "o"))
    values = _records(tmp_path / "o").reshape(-1)
    assert (values == 1).sum() == 1
    assert 2 not in values[:-1]


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_gives_the_same(text, tiny_model_file, tmp_path, monkeypatch, workers: int) -> None:
    monkeypatch.setattr(wiki_text, "BLOCK_CHARS", 100)  # many small blocks
    llama_preprocess.main(_arguments(text, tiny_model_file, tmp_path / "one"))
    llama_preprocess.main(_arguments(text, tiny_model_file, tmp_path / "many", "--num_workers", str(workers)))
    np.testing.assert_array_equal(_records(tmp_path / "one"), _records(tmp_path / "many"))
    one, many = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "many"))
    assert one == many


def test_repeat_takes_the_stream_again(text, tiny_model_file, tmp_path) -> None:
    llama_preprocess.main(_arguments(text, tiny_model_file, tmp_path / "o", "--repeat", "3"))
    stream = _tokens(tiny_model_file, PARAGRAPHS) * 3
    count = len(stream) // 17
    np.testing.assert_array_equal(_records(tmp_path / "o").reshape(-1), stream[: count * 17])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "o", "o.db", "o.json"]


def test_partitions(text, tiny_model_file, tmp_path) -> None:
    llama_preprocess.main(_arguments(text, tiny_model_file, tmp_path / "o", "--file_partition", "3"))
    names = [str(tmp_path / f"o{number}") for number in range(3)]
    stream = _tokens(tiny_model_file, PARAGRAPHS)
    expected = np.array(stream[: len(stream) // 17 * 17]).reshape(-1, 17)
    got = _records(names)
    assert sorted(map(tuple, got)) == sorted(map(tuple, expected))
    assert inspect_mindrecord(names).meta["seq_length"] == 16


def test_several_files_and_globs(tiny_model_file, tmp_path, monkeypatch) -> None:
    for name in ("b.txt", "a.txt", "sub/c.txt", "d.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    monkeypatch.chdir(tmp_path)
    assert llama_preprocess.input_files(["*.txt"]) == ["a.txt", "b.txt"]
    assert llama_preprocess.input_files(["d.md", "**/*.txt", "d.md"]) == ["d.md", "a.txt", "b.txt", "sub/c.txt"]
    (tmp_path / "[odd].txt").write_text("x")
    assert llama_preprocess.input_files(["[odd].txt"]) == ["[odd].txt"]
    for pattern, message in (("*.csv", "matches no file"), ("nothing", "matches no file"), ("sub", "is a folder")):
        with pytest.raises(DataError, match=message):
            llama_preprocess.input_files(["a.txt", pattern])


def test_files_do_not_run_into_each_other(tiny_model_file, tmp_path) -> None:
    (tmp_path / "a.txt").write_text("the quick fox")
    (tmp_path / "b.txt").write_text("lazy dog " * 10)
    llama_preprocess.main(_arguments(tmp_path / "*.txt", tiny_model_file, tmp_path / "o"))
    stream = _tokens(tiny_model_file, ["the quick fox", ("lazy dog " * 10).strip()])
    np.testing.assert_array_equal(_records(tmp_path / "o")[0], stream[:17])


# ---------------------------------------------------------------- mistakes
def _run(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_as_a_script_from_anywhere(text, tiny_model_file, tmp_path) -> None:
    done = _run(*_arguments("in/*.txt", tiny_model_file, Path("out/o.mindrecord"), "--num_workers", "2"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^Transformed \d+ records\.$", done.stdout, re.MULTILINE)
    assert "tokenize:" not in done.stderr  # no bar without a terminal
    assert _records(tmp_path / "out" / "o.mindrecord").shape[1] == 17


def test_mistakes_are_found_at_once(text, tiny_model_file, tmp_path) -> None:
    (tmp_path / "folder").mkdir()
    cases = {
        "matches no file": _arguments("none*", tiny_model_file, tmp_path / "o"),
        "is not a SentencePiece model": _arguments(text, text, tmp_path / "o"),
        "not found": _arguments(text, Path("absent.model"), tmp_path / "o"),
        "is a folder": _arguments(text, tiny_model_file, tmp_path / "folder"),
        "cannot make the folder": _arguments(text, tiny_model_file, text / "o"),
        "at least 1, got '0'": [*_arguments(text, tiny_model_file, tmp_path / "o"), "--seq_length", "0"],
        "invalid choice: 'chat'": [*_arguments(text, tiny_model_file, tmp_path / "o"), "--dataset_type", "chat"],
        "unrecognized arguments: --seqlength": [*_arguments(text, tiny_model_file, tmp_path / "o"), "--seqlength", "1"],
    }
    for message, words in cases.items():
        done = _run(*words, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, ""), message
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "in"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no text"),
        (b"\n \n\t\n", "no text"),
        (b" = only = \n\n = headings = \n", "2 headings and no paragraphs"),
        (b"short", r"tokens do not fill one record of 17 \(--seq_length 16"),
        (b"fine so far " * 50 + b"\xff", "not UTF-8"),
    ],
)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_bad_text_leaves_the_old_output(tiny_model_file, tmp_path, content: bytes, message: str, workers: str) -> None:
    old = _old_output(tmp_path)
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        llama_preprocess.main(_arguments(tmp_path / "t.txt", tiny_model_file, tmp_path / "o", "--num_workers", workers))
    (tmp_path / "t.txt").unlink()
    assert _content(tmp_path) == old


def test_a_model_without_bos(text, tmp_path) -> None:
    import io

    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PARAGRAPHS),
        model_writer=proto,
        vocab_size=40,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "m.model").write_bytes(proto.getvalue())
    with pytest.raises(DataError, match="no bos or eos"):
        llama_preprocess.main(_arguments(text, tmp_path / "m.model", tmp_path / "o"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(text, tiny_model_file, tmp_path) -> None:
    (tmp_path / "ro").mkdir(mode=0o500)
    with pytest.raises(DataError, match="no permission"):
        llama_preprocess.main(_arguments(text, tiny_model_file, tmp_path / "ro" / "o"))


# ---------------------------------------------------------------- being stopped
def _old_output(folder: Path) -> dict[str, bytes]:
    for name in ("o", "o.db", "o.json"):
        (folder / name).write_text(f"old {name}")
    return _content(folder)


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stopped_in_the_middle(tiny_model_file, tmp_path, sign: signal.Signals) -> None:
    source = tmp_path / "source"
    source.mkdir()
    pipe = source / "endless"
    (source / "text").write_text(TEXT * 200)
    os.mkfifo(pipe)  # reading it never ends, so the command is surely in the middle
    folder = tmp_path / "out"
    folder.mkdir()
    old = _old_output(folder)
    code = (
        f"import signal, sys; sys.path.insert(0, {str(REPO)!r}); "
        "from mindformers.tools.dataset_preprocess.llama import llama_preprocess as p; "
        f"p.input_files = lambda names: [{str(source / 'text')!r}, {str(pipe)!r}]; "
        "signal.signal(signal.SIGTERM, p.terminated); p.run_cli(p.main)"
    )
    words = _arguments("x", tiny_model_file, folder / "o", "--num_workers", "2")
    process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with _opened_by(process, pipe):
        time.sleep(0.2)
        children = _children(process.pid)
        assert len(children) >= 2
        process.send_signal(sign)
        time.sleep(0.1)
    output = process.communicate(timeout=900)
    assert process.returncode != 0
    assert b"Transformed" not in output[0]
    assert _content(folder) == old
    left = [path.name for path in folder.iterdir() if path.is_dir()]
    assert len(left) == (1 if sign == signal.SIGKILL else 0), left
    deadline = time.monotonic() + 300
    while any(Path(f"/proc/{child}").exists() and not _is_zombie(child) for child in children):
        assert time.monotonic() < deadline, "worker processes outlive the command"
        time.sleep(0.1)


class _opened_by:  # noqa: N801
    """Hold the writing end of a pipe once the process has opened the other."""

    def __init__(self, process: subprocess.Popen, pipe: Path) -> None:
        self._process, self._pipe = process, pipe

    def __enter__(self) -> None:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self._process.communicate()
            try:
                self._handle = os.open(self._pipe, os.O_WRONLY | os.O_NONBLOCK)
                return
            except OSError:
                time.sleep(0.05)
        raise AssertionError("the command never opened the pipe")

    def __exit__(self, *error: object) -> None:
        os.close(self._handle)


def _children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return found


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_a_dead_worker_is_named(text, tiny_model_file, monkeypatch) -> None:
    with pytest.raises(DataError, match="died"):
        list(token_stream.tokenize_blocks(itertools.repeat(TEXT), _die, str(tiny_model_file), 2))


def _die(block: str) -> tuple[list[str], int]:
    if multiprocessing.parent_process() is not None:
        os._exit(9)
    return [block], 0


def test_left_over_folders_are_reported(text, tiny_model_file, tmp_path, caplog) -> None:
    import logging

    (tmp_path / ".o.abc.tmp").mkdir()
    logging.getLogger("mindformers").addHandler(caplog.handler)
    llama_preprocess.main(_arguments(text, tiny_model_file, tmp_path / "o"))
    logging.getLogger("mindformers").removeHandler(caplog.handler)
    assert ".o.abc.tmp was left behind" in caplog.text


def test_reading_waits_for_the_workers(tiny_model_file) -> None:
    """Blocks are taken only as fast as they are tokenized: bounded memory whatever the size of the text."""
    taken = []

    def blocks() -> Iterator[str]:
        for number in range(100):
            taken.append(number)
            yield TEXT

    stream = token_stream.tokenize_blocks(blocks(), wiki_text.paragraphs_of, str(tiny_model_file), 1)
    next(stream)
    assert len(taken) < 10
    stream.close()


def test_fixed_length_records_and_repeat(tmp_path) -> None:
    parts = [np.arange(start, start + size, dtype=np.int32) for start, size in ((0, 3), (3, 0), (3, 9), (12, 1))]
    rest: list[int] = []
    records = np.concatenate(list(record_output.fixed_length_records(parts, 4, rest)))
    np.testing.assert_array_equal(records, np.arange(12).reshape(3, 4))
    assert rest == [1]
    twice = np.concatenate(list(record_output.repeated(parts, 2, tmp_path)))
    np.testing.assert_array_equal(twice, [*range(13), *range(13)])
    assert not list(tmp_path.iterdir())


def test_wikitext_valid_counts(tmp_path) -> None:
    """Numbers of the real text; they change only when the cleaning does."""
    source = shared_data("wikitext2/wiki.valid.tokens")
    model = shared_data("llama2_tokenizer/tokenizer.model")
    tokenizer = token_stream.TokenizerFile.open(model)
    found = {}
    for seq_length in (4095, 4096):
        job = llama_preprocess.Job("wiki", [str(source)], str(tmp_path / "o"), tokenizer, seq_length)
        counts, paths = llama_preprocess.convert(job)
        records = _records(paths)
        found[seq_length] = (counts.records, counts.dropped_tokens, records[0, :4].tolist(), records[-1, -4:].tolist())
        assert records.shape == (counts.records, seq_length + 1)
        assert (counts.records * (seq_length + 1) + counts.dropped_tokens) == counts.tokens
    assert found == {
        4095: (67, 3479, [1, 15089, 26465, 24988], [529, 2960, 29958, 313]),
        4096: (67, 3412, [1, 15089, 26465, 24988], [529, 2960, 29958, 297]),
    }
