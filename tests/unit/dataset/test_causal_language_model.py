# SPDX-License-Identifier: Apache-2.0
"""MindRecord files and the dataset on them: contents, order, resume, sharding, and what goes wrong."""

import json
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from mindformers.dataset import (
    CausalLanguageModelDataset,
    RecordInfo,
    check_record_length,
    check_vocab,
    create_causal_lm_dataset,
    epoch_order,
    find_mindrecord_files,
    inspect_mindrecord,
)
from mindformers.dataset.mindrecord import MindRecordWriter
from mindformers.errors import DataError
from tests.helpers import REPO

RECORDS, LENGTH = 53, 9


def _write(path: Path, first: int, count: int, length: int = LENGTH, num_files: int = 1) -> RecordInfo:
    """Records whose first token is their number."""
    writer = MindRecordWriter(path, {"input_ids": length}, num_files)
    values = np.arange(first, first + count, dtype=np.int32)[:, None] + np.arange(length, dtype=np.int32) * 1000
    for part in np.array_split(values, 3):
        writer.write(input_ids=part)
    return writer.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "any_name"
    _write(path, 0, RECORDS)
    return str(path)


def _batches(**options) -> list[list[int]]:
    data = create_causal_lm_dataset(**options)
    rows = [row[0] for row in data.create_tuple_iterator(num_epochs=1, output_numpy=True)]
    assert len(rows) == data.get_dataset_size()
    assert all(row.dtype == np.int32 and row.shape[1] == LENGTH for row in rows)
    return [row[:, 0].tolist() for row in rows]


def test_what_is_written_is_read(tmp_path) -> None:
    info = _write(tmp_path / "a.mindrecord", 0, 10)
    assert (info.num_records, info.record_length, info.columns) == (10, LENGTH, {"input_ids": ("int32", (LENGTH,))})
    rows = next(create_causal_lm_dataset(tmp_path, batch_size=10).create_tuple_iterator(output_numpy=True))[0]
    np.testing.assert_array_equal(rows, np.arange(10)[:, None] + np.arange(LENGTH) * 1000)
    assert (tmp_path / "a.mindrecord").stat().st_mode & 0o077 == 0o777 & ~_umask() & 0o066


def _umask() -> int:
    out = subprocess.run([sys.executable, "-c", "import os; print(os.umask(0))"], capture_output=True, check=True)
    return int(out.stdout)


def test_two_columns(tmp_path) -> None:
    writer = MindRecordWriter(tmp_path / "q.mindrecord", {"input_ids": 3, "labels": 3})
    ids = np.arange(12, dtype=np.int32).reshape(4, 3)
    writer.write(input_ids=ids, labels=-ids)
    writer.write(input_ids=ids + 100, labels=-ids)
    writer.close()
    data = create_causal_lm_dataset(tmp_path, input_columns=["labels", "input_ids"], batch_size=8)
    labels, first = next(data.create_tuple_iterator(output_numpy=True))
    np.testing.assert_array_equal(first, np.concatenate([ids, ids + 100]))
    np.testing.assert_array_equal(labels, np.concatenate([-ids, -ids]))


def test_the_writer_refuses_what_mindspore_would_drop(tmp_path) -> None:
    writer = MindRecordWriter(tmp_path / "a", {"input_ids": 3})
    with pytest.raises(AssertionError, match="int32"):
        writer.write(input_ids=np.zeros((2, 3), np.int64))
    with pytest.raises(AssertionError):
        writer.write(input_ids=np.zeros((2, 4), np.int32))


def test_batches_without_shuffle(file) -> None:
    assert _batches(dataset_dir=file, batch_size=10) == [list(range(at, at + 10)) for at in range(0, 50, 10)]
    kept = _batches(dataset_dir=file, batch_size=10, drop_remainder=False)
    assert kept[-1] == [50, 51, 52]
    assert _batches(dataset_dir=file, batch_size=4, num_samples=9) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_the_stream_follows_the_order(file) -> None:
    got = _batches(dataset_dir=file, batch_size=4, shuffle=True, seed=7, epochs=3)
    expected = [epoch_order(RECORDS, 7, epoch, True)[: 13 * 4].reshape(13, 4).tolist() for epoch in range(3)]
    assert got == list(chain.from_iterable(expected))
    assert expected[0] != expected[1]
    assert got != _batches(dataset_dir=file, batch_size=4, shuffle=True, seed=8, epochs=3)


@pytest.mark.parametrize("drop_remainder", [True, False])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_resume_continues_the_stream(file, accumulation: int, drop_remainder: bool) -> None:
    options = {"dataset_dir": file, "batch_size": 4, "shuffle": True, "seed": 3, "epochs": 3}
    options |= {"global_batch_size": 4 * accumulation, "drop_remainder": drop_remainder}
    full = _batches(**options)
    steps = RECORDS // (4 * accumulation) if drop_remainder else -(-RECORDS // (4 * accumulation))
    per_epoch = len(full) // 3
    for step in (1, steps - 1, steps, steps + 2, 3 * steps - 1):
        epoch, inside = divmod(step, steps)
        assert _batches(**options, start_step=step) == full[epoch * per_epoch + inside * accumulation :]


def test_ranks_share_every_global_batch_and_may_change_in_number(file) -> None:
    options = {"dataset_dir": file, "shuffle": True, "seed": 5, "epochs": 2, "global_batch_size": 12}
    alone = _batches(**options, batch_size=12)
    for ranks in (2, 3):
        parts = [_batches(**options, batch_size=12 // ranks, num_shards=ranks, shard_id=rank) for rank in range(ranks)]
        assert [list(chain(*step)) for step in zip(*parts, strict=True)] == alone
    later = [_batches(**options, batch_size=4, num_shards=3, shard_id=rank, start_step=5) for rank in range(3)]
    assert [list(chain(*step)) for step in zip(*later, strict=True)] == alone[5:]
    micro = _batches(**options, batch_size=3, num_shards=2, shard_id=1)  # two micro steps per optimizer step
    assert [micro[at] + micro[at + 1] for at in range(0, len(micro), 2)] == [batch[6:] for batch in alone]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_step": 26, "epochs": 2}, "26 steps of this run"),
        ({"batch_size": 60}, "53 records, fewer than one global batch"),
        ({"global_batch_size": 6}, "not a multiple"),
        ({"num_shards": 2, "shard_id": 2}, "0 to 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"input_columns": ["labels"]}, r"labels not found.*columns: input_ids"),
        ({"input_columns": []}, "input_columns is empty"),
    ],
)
def test_wrong_counts(file, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        create_causal_lm_dataset(**{"dataset_dir": file, "batch_size": 4, **options})


def test_several_files_are_read_in_natural_order(tmp_path) -> None:
    for number, first in ((10, 30), (2, 10), (1, 0)):
        _write(tmp_path / f"part{number}.mindrecord", first, 10)
    (tmp_path / "notes.txt").write_text("not data")
    files = find_mindrecord_files(tmp_path)
    assert [Path(name).name for name in files] == [f"part{number}.mindrecord" for number in (1, 2, 10)]
    assert _batches(dataset_dir=tmp_path, batch_size=30) == [[*range(20), *range(30, 40)]]
    assert _batches(dataset_files=[files[2], files[0]], batch_size=20) == [[*range(30, 40), *range(10)]]


def test_int64_and_open_shapes_of_other_writers(tmp_path) -> None:
    from mindspore.mindrecord import FileWriter

    writer = FileWriter(str(tmp_path / "old"), 1)
    writer.add_schema({"input_ids": {"type": "int64", "shape": [-1]}})
    writer.write_raw_data([{"input_ids": np.full(LENGTH, number)} for number in range(6)])
    writer.commit()
    info = inspect_mindrecord(tmp_path / "old")
    assert info.record_length is None
    check_record_length(info, LENGTH - 1, "train")
    with pytest.raises(DataError, match="records of 9 tokens"):
        check_record_length(info, LENGTH, "train")
    assert _batches(dataset_dir=tmp_path, batch_size=3) == [[0, 1, 2], [3, 4, 5]]


def test_record_length(file) -> None:
    info = inspect_mindrecord(file)
    check_record_length(info, LENGTH - 1, "train")
    check_record_length(info, LENGTH - 1, "eval")
    check_record_length(info, LENGTH, "eval")
    for seq_length, mode in ((LENGTH, "train"), (LENGTH + 1, "eval"), (LENGTH - 2, "finetune")):
        with pytest.raises(DataError, match=rf"--seq_length {seq_length}.*model_config.seq_length={LENGTH - 1}"):
            check_record_length(info, seq_length, mode)
    with pytest.raises(DataError, match="mode"):
        check_record_length(info, 8, "predict")


def test_vocabulary(tmp_path) -> None:
    path = tmp_path / "a"
    _write(path, 0, 4)
    top = 3 + (LENGTH - 1) * 1000
    check_vocab(inspect_mindrecord(path), top + 1)
    with pytest.raises(DataError, match=f"to {top}.*vocab_size {top}"):
        check_vocab(inspect_mindrecord(path), top)
    Path(f"{path}.json").write_text(json.dumps({"vocab_size": 32000}))
    with pytest.raises(DataError, match=r"tokenizer of 32000 pieces.*vocab_size 31999"):
        check_vocab(inspect_mindrecord(path), 31999)


def test_class_takes_a_yaml_section(file) -> None:
    section = {
        "data_loader": {"type": "MindDataset", "dataset_dir": file, "shuffle": True},
        "input_columns": ["input_ids"],
        "num_parallel_workers": 8,
        "python_multiprocessing": False,
        "numa_enable": False,
        "drop_remainder": True,
        "batch_size": 10,
        "repeat": 2,
    }
    data = CausalLanguageModelDataset(section, seed=3, batch_size=5)
    assert data.get_dataset_size() == 20
    with pytest.raises(DataError, match="MindDataset"):
        CausalLanguageModelDataset({"data_loader": {"type": "TFRecordDataset"}})
    with pytest.raises(DataError, match="eod_reset"):
        CausalLanguageModelDataset({**section, "eod_reset": True})
    with pytest.raises(DataError, match="Did you mean 'shuffle'"):
        CausalLanguageModelDataset({**section, "shuffled": True})


def test_registered() -> None:
    from mindformers.registry import MindFormerModuleType, MindFormerRegister

    assert MindFormerRegister.get_cls(MindFormerModuleType.DATASET, "CausalLanguageModelDataset")


# ---------------------------------------------------------------- damaged and missing files
def test_missing_paths(tmp_path) -> None:
    for arguments in ({}, {"dataset_dir": ""}, {"dataset_dir": None, "dataset_files": []}):
        with pytest.raises(DataError, match="train_dataset_dir"):
            find_mindrecord_files(**arguments)
    with pytest.raises(DataError, match="does not exist"):
        find_mindrecord_files(tmp_path / "no" / "file")
    with pytest.raises(DataError, match="It holds: nothing"):
        find_mindrecord_files(tmp_path)
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(DataError, match=r"holds: a\.txt"):
        find_mindrecord_files(tmp_path / "b.mindrecord")
    with pytest.raises(DataError, match=r"holds: a\.txt"):
        find_mindrecord_files(tmp_path)
    with pytest.raises(DataError, match="is a folder"):
        find_mindrecord_files(dataset_files=[tmp_path])
    with pytest.raises(DataError, match="no MindRecord file is given"):
        inspect_mindrecord([])


@pytest.mark.parametrize(
    "content", [b"", b"hi", b"hello world, this is text", b"\x10" + bytes(40), b"\x02" + bytes(7) + b"{}"]
)
def test_not_a_mindrecord(tmp_path, content: bytes) -> None:
    path = tmp_path / "a.mindrecord"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a MindRecord file"):
        inspect_mindrecord(path)


def test_damaged_pairs(tmp_path, file) -> None:
    def copy(name: str, index: bool = True) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(file, folder / "any_name")
        if index:
            shutil.copy(f"{file}.db", folder / "any_name.db")
        return folder / "any_name"

    with pytest.raises(DataError, match=r"no index any_name\.db"):
        inspect_mindrecord(copy("a", index=False))
    renamed = copy("b")
    renamed.rename(renamed.parent / "new")
    Path(f"{renamed}.db").rename(renamed.parent / "new.db")
    with pytest.raises(DataError, match="written as 'any_name'"):
        inspect_mindrecord(renamed.parent / "new")
    broken = copy("c")
    Path(f"{broken}.db").write_bytes(b"not sqlite" * 100)
    with pytest.raises(DataError, match="damaged"):
        inspect_mindrecord(broken)
    other = copy("d")
    (tmp_path / "e").mkdir()
    _write(tmp_path / "e" / "any_name", 0, 7)
    shutil.copy(tmp_path / "e" / "any_name.db", f"{other}.db")
    with pytest.raises(DataError, match=r"53 records, but its index any_name\.db lists 7"):
        inspect_mindrecord(other)
    _write(tmp_path / "other_columns", 0, 5, length=4)
    with pytest.raises(DataError, match="cannot be read as one dataset"):
        inspect_mindrecord([file, tmp_path / "other_columns"])
    meta = copy("f")
    Path(f"{meta}.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        inspect_mindrecord(meta)


def test_inspecting_does_not_import_mindspore(file) -> None:
    code = (
        "import sys; from mindformers.dataset import inspect_mindrecord, check_record_length; "
        f"check_record_length(inspect_mindrecord({file!r}), 8, 'train'); assert 'mindspore' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPO)
