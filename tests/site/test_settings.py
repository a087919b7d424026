"""Settings: what cannot be read is named, and the secret is made once."""

import errno
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from workingpapers.errors import UserError
from workingpapers.site import settings
from workingpapers.site.settings import load_settings


def test_a_secret_is_kept_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("WORKINGPAPERS_SECRET", raising=False)

    def no_room(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_room)
        with pytest.raises(UserError, match=r"The page's secret cannot be kept in .*: No space left on device\."):
            load_settings()
    assert load_settings().secret == load_settings().secret
    assert [file.name for file in (tmp_path / "workingpapers").iterdir()] == ["site.secret"]


def test_processes_that_come_at_once_have_one_secret_also_without_hard_links(tmp_path, monkeypatch):
    def without(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", without)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("WORKINGPAPERS_SECRET", raising=False)
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: time.sleep(0.2) or sync(number))
    with ThreadPoolExecutor(8) as pool:
        found = {it.result().secret for it in [pool.submit(load_settings) for _ in range(8)]}
    assert found == {(tmp_path / "workingpapers" / "site.secret").read_text()}


def test_a_secret_is_waited_for_until_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("WORKINGPAPERS_SECRET", raising=False)
    file = tmp_path / "workingpapers" / "site.secret"
    file.parent.mkdir()
    file.touch()
    writing = threading.Timer(0.2, file.write_text, ["s" * 64])
    writing.start()
    assert load_settings().secret == "s" * 64
    writing.join()
    file.write_text("s" * 31)
    monkeypatch.setattr(settings, "_WAIT", 0.1)
    with pytest.raises(UserError, match=r"The page's secret in .*site.secret is cut short\. Delete the file"):
        load_settings()


@pytest.mark.parametrize("value", ["-1", "two", "²"])
def test_a_number_that_is_none_is_named(monkeypatch, value):
    monkeypatch.setenv("WORKINGPAPERS_PROXIES", value)
    with pytest.raises(UserError, match=f"WORKINGPAPERS_PROXIES must be a whole number, 0 or more; got '{value}'"):
        load_settings(secret="s" * 32)
