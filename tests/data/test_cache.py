"""The cache of arrays: computed once, whole or absent, and repaired when damaged."""

import errno
import json
import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from workingpapers.data import cache
from workingpapers.data.cache import cache_dir, cached_array
from workingpapers.errors import UserError, UserRemark

WHOLE = np.arange(24, dtype=np.float32).reshape(6, 4)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Compute:
    """Counts how often the array is computed."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        yield WHOLE[:2]
        yield WHOLE[2:]


def get(compute, key="key", **options):
    return cached_array(key, "kind", shape=(6, 4), dtype=np.float32, compute=compute, **options)


def test_the_folder_is_the_variable_s_or_the_user_s(folder, monkeypatch):
    assert cache_dir() == folder
    monkeypatch.delenv("WORKINGPAPERS_CACHE")
    assert cache_dir().name == "workingpapers"


def test_computed_once_and_mapped_read_only(folder):
    compute = Compute()
    for _ in range(3):
        array = get(compute, about={"what": "numbers"})
        np.testing.assert_array_equal(array, WHOLE)
    assert compute.calls == 1
    assert isinstance(array, np.memmap)
    assert not array.flags.writeable
    assert sorted(os.listdir(folder / "kind")) == ["key.json", "key.npy"]
    note = json.loads((folder / "kind/key.json").read_text())
    assert note["about"] == {"what": "numbers"}
    assert note["shape"] == [6, 4]
    np.testing.assert_array_equal(np.load(folder / "kind/key.npy"), WHOLE)  # a plain .npy for any other reader


def test_what_takes_long_to_compute_tells_how_far_it_is():
    told = []
    for _ in range(2):  # once alone: then it is there
        get(Compute(), progress=lambda done, total: told.append((done, total)))
    assert told == [(2, 6), (6, 6)]


def flip_a_byte(folder):
    path = folder / "kind/key.npy"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def cut_short(folder):
    path = folder / "kind/key.npy"
    path.write_bytes(path.read_bytes()[:-8])


def lose_the_description(folder):
    (folder / "kind/key.json").unlink()


def garble_the_description(folder):
    (folder / "kind/key.json").write_text("{}")


def break_the_header(folder):
    path = folder / "kind/key.npy"
    path.write_bytes(b"x" * path.stat().st_size)


def another_shape(folder):
    np.save(folder / "kind/key.npy", WHOLE.reshape(4, 6))


@pytest.mark.parametrize(
    "damage", [flip_a_byte, cut_short, lose_the_description, garble_the_description, break_the_header, another_shape]
)
def test_a_damaged_entry_is_computed_again_with_a_warning(folder, damage):
    compute = Compute()
    get(compute)
    damage(folder)
    with pytest.warns(UserRemark, match=r"key\.npy is damaged .* it is computed again"):
        np.testing.assert_array_equal(get(compute), WHOLE)
    assert compute.calls == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get(compute)
    assert compute.calls == 2


def test_another_shape_or_type_than_asked_for_is_computed_again():
    get(Compute())
    with pytest.warns(UserRemark, match=r"holds float32 \(6, 4\) instead of float64 \(1, 1\)"):
        array = cached_array("key", "kind", shape=(1, 1), dtype=np.float64, compute=lambda: [np.ones((1, 1))])
    assert array.shape == (1, 1)


def test_a_failure_leaves_nothing_behind_and_passes_through(folder):
    def fail():
        yield WHOLE[:2]
        raise OSError("an image is gone")

    with pytest.raises(OSError, match="an image is gone") as caught:
        get(fail)
    assert not isinstance(caught.value, UserError)
    assert os.listdir(folder / "kind") == []


def test_a_stale_temporary_file_is_ignored(folder):
    (folder / "kind").mkdir(parents=True)
    (folder / "kind/.key.npy.abc.part").write_bytes(b"half")
    np.testing.assert_array_equal(get(Compute()), WHOLE)


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([WHOLE[:3]], "the chunks hold 3 rows, expected 6"),
        ([WHOLE.astype(np.float64)], r"a chunk is float64 \(6, 4\), expected float32"),
        ([WHOLE[:, :2]], r"a chunk is float32 \(6, 2\)"),
    ],
)
def test_chunks_that_do_not_fit_are_refused(folder, chunks, message):
    with pytest.raises(ValueError, match=message):
        get(lambda: chunks)
    assert os.listdir(folder / "kind") == []


@pytest.mark.parametrize("key", ["../key", "a/b", "", "..", "ключ"])
def test_keys_cannot_leave_the_folder(key):
    with pytest.raises(ValueError, match="letters, digits"):
        get(Compute(), key=key)


def test_a_file_in_place_of_the_folder(folder):
    folder.write_text("")
    with pytest.raises(UserError, match=r"cache .*kind is not writable .*WORKINGPAPERS_CACHE"):
        get(Compute())


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("function", ["tempfile.mkstemp", "os.replace", "os.fsync"])
def test_a_read_only_cache_is_named(folder, monkeypatch, code, function):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(f"workingpapers.data.cache.{function}", refuse)
    with pytest.raises(UserError, match=r"kind is not writable .*WORKINGPAPERS_CACHE"):
        get(Compute())
    assert os.listdir(folder / "kind") == []


def test_a_cache_without_room_fails_before_the_work(folder, monkeypatch):
    compute = Compute()
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=95))  # the array has 96 bytes
    with pytest.raises(UserError, match=r"kind is full .*WORKINGPAPERS_CACHE"):
        get(compute)
    assert compute.calls == 0
    assert os.listdir(folder / "kind") == []


def test_a_disk_that_fills_up_meanwhile_is_named(folder):
    script = (
        "import resource, signal, numpy as np\n"
        "from workingpapers.data.cache import cached_array\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"  # writes beyond it fail as on a full disk
        "row = np.zeros((1, 2000), np.uint8)\n"
        "cached_array('key', 'kind', shape=(9, 2000), dtype=np.uint8, compute=lambda: [row] * 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "UserError: The cache" in done.stderr
    assert "File too large" in done.stderr
    assert os.listdir(folder / "kind") == []


def test_two_processes_may_compute_the_same_key(folder):
    script = (
        "import time, numpy as np\n"
        "from workingpapers.data.cache import cached_array\n"
        "def compute():\n"
        "    for i in range(4):\n"
        "        time.sleep(0.1)\n"
        "        yield np.full((1, 3), i)\n"
        "print(cached_array('key', 'kind', shape=(4, 3), dtype=int, compute=compute).sum())\n"
    )
    both = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", script], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in both] == ["18", "18"]
    assert sorted(os.listdir(folder / "kind")) == ["key.json", "key.npy"]
