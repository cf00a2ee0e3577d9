# SPDX-License-Identifier: Apache-2.0
"""Checksums of pieces: what is written, which damage is found and where, and manifests with rubbish for pieces."""

import hashlib
import json
import zlib

import numpy as np
import pytest

from mindformers.checkpoint import digest as digest_module
from mindformers.checkpoint.digest import FileDigests, Pieces, file_digest, file_digests, wrong_pieces
from mindformers.checkpoint.foreign.arrays import Raw
from mindformers.checkpoint.layout import manifest_path
from mindformers.checkpoint.load import checkpoint_being_checked, read_checkpoint
from mindformers.checkpoint.manifest import damage, read_manifest
from mindformers.checkpoint.resume import find_resume
from mindformers.checkpoint.save import save_network, save_step
from mindformers.checkpoint.stream import CheckpointStream, Planned
from mindformers.errors import CheckpointError
from tests.unit.checkpoint.helpers import FIELDS, flip_bit, parameter, same, small_state

PIECE = 64  # bytes


@pytest.fixture(params=["ckpt", "safetensors"])
def fmt(request):
    """Both formats."""
    return request.param


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Pieces, chunks and the size from which a second thread works, all so small that tests reach them."""
    for name, size in {"PIECE_BYTES": PIECE, "_CHUNK": 20, "_ALONE": 16}.items():
        monkeypatch.setattr(digest_module, name, size)


@pytest.fixture
def saved(tmp_path, fmt):
    """A checkpoint of many pieces, the last one shorter."""
    path = tmp_path / f"CKP_rank_0-1_1.{fmt}"
    save_step(small_state(), path, manifest_fields=FIELDS, fmt=fmt)
    assert path.stat().st_size > 4 * PIECE
    return path


def edit(path, change):
    """Change the JSON of a manifest."""
    values = json.loads(manifest_path(path).read_text())
    change(values)
    manifest_path(path).write_text(json.dumps(values))


def refused(path, *texts):
    """Every way of loading fails, with all of the texts in the message."""
    for way in (read_checkpoint, find_resume):
        with pytest.raises(CheckpointError) as error:
            way(path)
        assert all(text in str(error.value) for text in (str(path), *texts)), str(error.value)
    with pytest.raises(CheckpointError, match=texts[0]), checkpoint_being_checked(path) as params:
        dict(params)


def plain(data: bytes) -> tuple[str, list[str]]:
    """Both kinds of checksums, in the shortest way."""
    sums = [f"{zlib.crc32(data[start : start + PIECE]):08x}" for start in range(0, len(data), PIECE)]
    return hashlib.sha256(data).hexdigest(), sums


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 127, 128, 640, 1001])
def test_checksums_of_files_of_every_size(tmp_path, size):
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(size).bytes(size))
    whole, pieces = file_digests(path)
    assert (whole, pieces.checksums) == plain(path.read_bytes())
    assert whole == file_digest(path)
    assert (pieces.algorithm, pieces.size) == ("crc32", PIECE)
    assert wrong_pieces(path, pieces) == []


@pytest.mark.parametrize("step", [1, 15, 16, 64, 100, 1000])
def test_bytes_may_come_in_any_portions(step):
    data = np.random.default_rng(0).bytes(1000)
    with FileDigests() as digests:
        for start in range(0, len(data), step):
            digests.update(data[start : start + step])
        whole, pieces = digests.result()
    assert (whole, pieces.checksums) == plain(data)


def test_every_wrong_piece_is_named(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(10 * PIECE))
    pieces = file_digests(path)[1]
    for number in (0, 4, 9):
        flip_bit(path, number * PIECE + 5)
    assert wrong_pieces(path, pieces) == [0, 4, 9]
    assert pieces.place(4, 10 * PIECE) == "bytes 256 to 319"


def test_save_and_load(saved, fmt):
    manifest = read_manifest(saved)
    assert (manifest.checksum, manifest.pieces.checksums) == plain(saved.read_bytes())
    assert same(read_checkpoint(saved), small_state())
    with checkpoint_being_checked(saved) as params:
        assert same(params, small_state())
    network = saved.with_name(f"network.{fmt}")
    save_network(small_state(1), network, fmt=fmt)
    assert (read_manifest(network).checksum, read_manifest(network).pieces.checksums) == plain(network.read_bytes())


def test_a_stream_writes_the_same_checksums(tmp_path, fmt):
    path = tmp_path / f"s.{fmt}"
    values = {f"w{i}": np.full((i + 1, 7), i, np.float32) for i in range(6)}
    plan = [Planned(name, value.shape, "float32") for name, value in values.items()]
    old = {"pieces": Pieces("sha256", 1, ["00"]), "checksum": "00"}  # fields of a source are not those of the copy
    with CheckpointStream(path, plan, fmt, old) as stream:
        for item in plan:
            stream.add(item, Raw(values[item.name], "float32"))
    assert (read_manifest(path).checksum, read_manifest(path).pieces.checksums) == plain(path.read_bytes())
    assert same(read_checkpoint(path), {name: parameter(name, value) for name, value in values.items()})


def test_a_flipped_byte_is_found_and_its_piece_is_named(saved):
    clean, size = saved.read_bytes(), saved.stat().st_size
    last = (size - 1) // PIECE * PIECE
    for place, first, end in ((size - 1, last, size - 1), (3 * PIECE, 3 * PIECE, 4 * PIECE - 1)):
        saved.write_bytes(clean)
        flip_bit(saved, place)
        assert f"manifest: bytes {first} to {end} differ" in damage(saved, read_manifest(saved))
    saved.write_bytes(clean)
    flip_bit(saved, 5)
    assert "bytes 0 to 63 differ" in damage(saved, read_manifest(saved))


def test_damage_in_values_is_refused_by_everything_that_loads(saved):
    value = small_state()["model.a.weight"].asnumpy().tobytes()
    place = saved.read_bytes().index(value)
    flip_bit(saved, place)
    first = place // PIECE * PIECE
    refused(saved, "crc32 checksum is not the one in its manifest", f"bytes {first} to ", "no older complete")


def test_many_wrong_pieces_are_counted(saved):
    saved.write_bytes(bytes(255 - byte for byte in saved.read_bytes()))
    pieces = len(read_manifest(saved).pieces.checksums)
    assert f"bytes 128 to 191 and {pieces - 3} more pieces differ" in damage(saved, read_manifest(saved))


@pytest.mark.parametrize("change", [-PIECE, -1, 1, PIECE])
def test_truncated_and_extended_files(saved, change):
    size = saved.stat().st_size
    data = saved.read_bytes()
    saved.write_bytes(data[:change] if change < 0 else data + bytes(change))
    reason = damage(saved, read_manifest(saved))
    assert reason == f"it has {size + change} bytes, its manifest says {size}"
    with pytest.raises(CheckpointError, match="cannot be used"):
        read_checkpoint(saved)


@pytest.mark.parametrize("absent", [True, False])
def test_an_old_manifest_is_checked_by_the_whole(saved, absent):
    edit(saved, lambda v: v.pop("pieces") if absent else v.update(pieces=None))
    assert read_manifest(saved).pieces is None
    assert same(read_checkpoint(saved), small_state())
    flip_bit(saved, saved.read_bytes().index(small_state()["model.a.weight"].asnumpy().tobytes()))
    refused(saved, "sha256 checksum is not the one in its manifest")


def test_pieces_may_have_another_size_and_algorithm(saved):
    data = saved.read_bytes()
    sums = [hashlib.sha256(data[start : start + 100]).hexdigest() for start in range(0, len(data), 100)]
    edit(saved, lambda v: v.update(pieces={"algorithm": "sha256", "size": 100, "checksums": sums, "more": 1}))
    assert same(read_checkpoint(saved), small_state())
    flip_bit(saved, len(data) - 1)
    assert "its sha256 checksum" in damage(saved, read_manifest(saved))


@pytest.mark.parametrize(
    ("rubbish", "text"),
    [
        ([], "pieces is no JSON object"),
        ("abc", "pieces is no JSON object"),
        ({}, "pieces.size is not a number of bytes"),
        ({"size": 0}, "pieces.size is not a number of bytes"),
        ({"size": True}, "pieces.size is not a number of bytes"),
        ({"size": "64"}, "pieces.size is not a number of bytes"),
        ({"algorithm": "magic"}, "unknown checksum algorithm 'magic' in pieces"),
        ({"algorithm": "shake_128"}, "unknown checksum algorithm 'shake_128' in pieces"),
        ({"algorithm": ["crc32"]}, "unknown checksum algorithm"),
        ({"algorithm": None}, "unknown checksum algorithm None in pieces"),
        ({"algorithm": "sha256"}, "not a list of hex digests of 64 digits"),
        ({"checksums": "00"}, "not a list of hex digests of 8 digits"),
        ({"checksums": [1, 2]}, "not a list of hex digests of 8 digits"),
        ({"checksums": ["0000000G"]}, "not a list of hex digests of 8 digits"),
        ({"checksums": []}, "but pieces.checksums has 0"),
        ({"checksums": ["00000000"]}, "but pieces.checksums has 1"),
        ({"checksums": ["00000000"] * 999}, "but pieces.checksums has 999"),
        ({"size": PIECE * 2}, "pieces of 128, but pieces.checksums has"),
    ],
)
def test_rubbish_instead_of_pieces_is_a_clear_error(saved, rubbish, text):
    def change(values):
        values["pieces"] = {**values["pieces"], **rubbish} if rubbish and isinstance(rubbish, dict) else rubbish

    edit(saved, change)
    with pytest.raises(CheckpointError, match=r"delete .* to load the file unchecked") as error:
        read_checkpoint(saved)
    assert text in str(error.value), str(error.value)
    with pytest.raises(CheckpointError, match="not a usable manifest"):
        find_resume(saved)


def test_memory_stays_bounded(tmp_path, monkeypatch):
    """However long the file is, the threads hold one chunk each."""
    made = []

    def counting(size):
        made.append(size)
        return bytearray(size)

    path = tmp_path / "file"
    path.write_bytes(bytes(500 * PIECE))
    pieces = file_digests(path)[1]
    monkeypatch.setattr(digest_module, "bytearray", counting, raising=False)
    assert wrong_pieces(path, pieces) == []
    assert 0 < len(made) <= digest_module._CHECKERS
    assert set(made) == {20}
