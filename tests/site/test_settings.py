"""Settings: what cannot be read is named, and the secret is made once."""

import errno
import os
import secrets

import pytest

from workingpapers.errors import UserError
from workingpapers.site.settings import load_settings


def test_a_secret_is_kept_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("WORKINGPAPERS_SECRET", raising=False)

    def no_room(length):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(secrets, "token_urlsafe", no_room)
        with pytest.raises(UserError, match=r"The page's secret cannot be kept in .*: No space left on device\."):
            load_settings()
    assert load_settings().secret == load_settings().secret
    assert [file.name for file in (tmp_path / "workingpapers").iterdir()] == ["site.secret"]


@pytest.mark.parametrize("value", ["-1", "two", "²"])
def test_a_number_that_is_none_is_named(monkeypatch, value):
    monkeypatch.setenv("WORKINGPAPERS_PROXIES", value)
    with pytest.raises(UserError, match=f"WORKINGPAPERS_PROXIES must be a whole number, 0 or more; got '{value}'"):
        load_settings(secret="s" * 32)
