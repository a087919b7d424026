"""Settings of the page: from the environment, with defaults that work on one machine."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from workingpapers.errors import UserError

_TRUE, _FALSE = frozenset(("1", "true", "yes", "on")), frozenset(("0", "false", "no", "off", ""))
_SHORTEST = 32  # characters of a secret
_WAIT = 5.0  # seconds that another process may take to write one


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an operator decides.

    Attributes:
        database: SQLAlchemy URL of the page's database. $WORKINGPAPERS_SITE; by default a SQLite file in the user's
            data folder.
        store: where runs are kept; None takes the store's own default ($WORKINGPAPERS_STORE).
        address: where the page is reached, without a slash at the end; links in mails and feeds begin with it.
            $WORKINGPAPERS_ADDRESS.
        secret: signs links and cookies. $WORKINGPAPERS_SECRET; by default made once and kept in the user's data folder.
        curators: e-mail addresses of those who pick the day's papers. $WORKINGPAPERS_CURATORS, separated by commas.
        smtp: "smtp://user:password@host:587" (STARTTLS where offered), "smtps://..." (TLS from the start), or "" to
            print mails instead of sending them. $WORKINGPAPERS_SMTP.
        sender: From address of mails. $WORKINGPAPERS_SENDER.
        embeddings: whether sentence embeddings are used. $WORKINGPAPERS_EMBEDDINGS.
        proxies: how many reverse proxies stand in front, for the client's address. $WORKINGPAPERS_PROXIES.
    """

    database: str
    store: str | None = None
    address: str = "http://127.0.0.1:8000"
    secret: str = field(repr=False)
    curators: frozenset[str] = frozenset()
    smtp: str = field(default="", repr=False)
    sender: str = "Working Papers <papers@localhost>"
    embeddings: bool = True
    proxies: int = 0

    def __post_init__(self) -> None:
        place = urlsplit(self.address)
        if place.scheme not in ("http", "https") or not place.netloc or self.address.endswith("/"):
            raise UserError(
                f"The page's address must be like https://papers.example.org, with no slash at the end; got "
                f"{self.address!r} (WORKINGPAPERS_ADDRESS)."
            )
        if self.smtp and urlsplit(self.smtp).scheme not in ("smtp", "smtps"):
            raise UserError("WORKINGPAPERS_SMTP must be like smtp://user:password@host:587 or smtps://...")
        if len(self.secret) < _SHORTEST:
            raise UserError(f"WORKINGPAPERS_SECRET is too short: take at least {_SHORTEST} random characters.")

    @property
    def secure(self) -> bool:
        """Whether the page is reached over https, so that cookies can be bound to it."""
        return self.address.startswith("https:")


def load_settings(**given: object) -> Settings:
    """Return the settings of the environment; what is given and not None stands in their place.

    Raises:
        UserError: a variable cannot be read; the message names it.
    """
    values: dict[str, object] = {
        "database": os.environ.get("WORKINGPAPERS_SITE") or f"sqlite:///{_folder() / 'site.sqlite'}",
        "curators": frozenset(
            name.strip().lower() for name in os.environ.get("WORKINGPAPERS_CURATORS", "").split(",") if name.strip()
        ),
        "embeddings": _switch("WORKINGPAPERS_EMBEDDINGS", default="1"),
        "proxies": _whole("WORKINGPAPERS_PROXIES"),
    }
    for name in ("address", "smtp", "sender"):
        if value := os.environ.get(f"WORKINGPAPERS_{name.upper()}"):
            values[name] = value.rstrip("/") if name == "address" else value
    values |= {name: value for name, value in given.items() if value is not None}
    if "secret" not in values:
        values["secret"] = os.environ.get("WORKINGPAPERS_SECRET") or _kept_secret()
    if "://" not in str(values["database"]):
        values["database"] = f"sqlite:///{values['database']}"
    return Settings(**values)  # type: ignore[arg-type]


def _folder() -> Path:
    import platformdirs

    return Path(platformdirs.user_data_dir("workingpapers"))


def _kept_secret() -> str:
    """Return the secret of this user's page, made at the first call."""
    file = _folder() / "site.secret"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            with contextlib.suppress(FileExistsError):  # of processes that come at once one makes it
                _write_new(file, secrets.token_urlsafe(48))
        deadline = time.monotonic() + _WAIT
        while len(secret := file.read_text()) < _SHORTEST and time.monotonic() < deadline:
            time.sleep(0.05)  # another process is about to write it
    except OSError as error:
        raise UserError(
            f"The page's secret cannot be kept in {file}: {error.strerror}. Set WORKINGPAPERS_SECRET."
        ) from error
    if len(secret) < _SHORTEST:
        raise UserError(f"The page's secret in {file} is cut short. Delete the file, or set WORKINGPAPERS_SECRET.")
    return secret


def _write_new(file: Path, text: str) -> None:
    """Write a file that is not there, for its owner alone, and leave none if that fails.

    Raises:
        FileExistsError: it is there.
    """
    descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with open(descriptor, "w") as made:
            made.write(text)
            made.flush()
            os.fsync(made.fileno())
    except BaseException:
        file.unlink()
        raise


def _switch(name: str, default: str) -> bool:
    value = os.environ.get(name, default).strip().lower()
    if value not in _TRUE | _FALSE:
        raise UserError(f"{name} must be one of {', '.join(sorted((_TRUE | _FALSE) - {''}))}; got {value!r}.")
    return value in _TRUE


def _whole(name: str) -> int:
    value = os.environ.get(name, "0").strip()
    if not value.isdecimal():
        raise UserError(f"{name} must be a whole number, 0 or more; got {value!r}.")
    return int(value)
