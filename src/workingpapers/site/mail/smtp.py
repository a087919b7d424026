"""Handing mails to an SMTP server, as `Settings.smtp` names it; without one, showing them in the terminal."""

from __future__ import annotations

import contextlib
import smtplib
import ssl
import sys
from collections.abc import Iterator
from email import message_from_bytes
from email.policy import default
from urllib.parse import SplitResult, unquote, urlsplit

from workingpapers.errors import UserError
from workingpapers.site.mail.outbox import Bounced, Refused, Send, Unreachable
from workingpapers.site.settings import Settings

_TIMEOUT = 60.0  # seconds for each answer; a server may scan a mail before it accepts it
_PORTS = {"smtp": 587, "smtps": 465}  # submission: RFC 6409, RFC 8314
_HERE = ("localhost", "127.0.0.1", "::1")
_FULL = "5.2.2"  # a mailbox that is full is emptied some day


@contextlib.contextmanager
def sender(settings: Settings) -> Iterator[Send]:
    """Return what `outbox.drain` sends mails with; one connection serves all of them.

    It is opened for the first mail. TLS is used from the start (smtps://) or where the server offers it (smtp://), with
    its certificate checked unless the server runs on this machine. A password is never sent in the clear to another
    machine.

    Raises:
        UserError: the settings name no server that could be asked.
    """
    if not settings.smtp:
        yield show
        return
    link = _Link(_place(settings), settings.sender)
    try:
        yield link.send
    finally:
        link.close()


def show(message: bytes, email: str) -> None:
    """Print a mail instead of sending it."""
    mail = message_from_bytes(message, policy=default)
    body = mail.get_body(("plain",))
    head = "".join(f"{name}: {mail[name]}\n" for name in ("From", "To", "Subject", "List-Unsubscribe") if mail[name])
    text = f"{'-' * 72}\n{head}\n{body.get_content() if body else ''}{'-' * 72}\n"
    sys.stderr.write("".join(c for c in text if c.isprintable() or c == "\n"))
    sys.stderr.flush()


class _Link:
    """A connection to a mail server."""

    def __init__(self, place: SplitResult, from_: str) -> None:
        self._place = place
        self._from = message_from_bytes(f"From: {from_}\n\n".encode(), policy=default)["From"].addresses[0].addr_spec
        self._server: smtplib.SMTP | None = None

    def send(self, message: bytes, email: str) -> None:
        """Hand one mail over: accepted when this returns.

        Raises:
            Bounced: the server knows no such recipient.
            Refused: it will not take this mail.
            Unreachable: it takes none at all, for now.
            smtplib.SMTPException, OSError: this one may be tried again.
        """
        server = self._open()
        try:
            server.sendmail(self._from, [email], message)
        except smtplib.SMTPRecipientsRefused as error:
            code, answer = error.recipients[email]
            raise _recipient_refused(code, answer.decode("ascii", "replace")) from error
        except smtplib.SMTPDataError as error:
            if 500 <= error.smtp_code < 600:
                raise Refused(f"{error.smtp_code} {error.smtp_error!r}") from error
            raise
        except smtplib.SMTPSenderRefused as error:
            if error.smtp_code == 552:  # larger than the server takes
                raise Refused(f"{error.smtp_code} {error.smtp_error!r}") from error
            raise Unreachable(f"{error.smtp_code} {error.smtp_error!r} for sender {error.sender}") from error
        except OSError:  # cut or silent: the connection is of no more use
            self.close()
            raise

    def close(self) -> None:
        """Say goodbye, if the server still listens."""
        if self._server:
            with contextlib.suppress(OSError):
                self._server.quit()
            self._server.close()
            self._server = None

    def _open(self) -> smtplib.SMTP:
        """Return a connection that answers: the one at hand, or a new one where it was cut meanwhile."""
        if self._server:
            with contextlib.suppress(OSError):
                if self._server.noop()[0] == 250:
                    return self._server
            self.close()
        try:
            self._server = _connect(self._place)
        except OSError as error:  # smtplib's and ssl's errors are OSErrors too
            raise Unreachable(f"{self._place.hostname}: {type(error).__name__}: {error}") from error
        return self._server


def _connect(place: SplitResult) -> smtplib.SMTP:
    host, port = place.hostname or "", place.port or _PORTS[place.scheme]
    tls = ssl.create_default_context()
    if host in _HERE:
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    if place.scheme == "smtps":
        server: smtplib.SMTP = smtplib.SMTP_SSL(host, port, timeout=_TIMEOUT, context=tls)
    else:
        server = smtplib.SMTP(host, port, timeout=_TIMEOUT)
    try:
        server.ehlo_or_helo_if_needed()
        encrypted = place.scheme == "smtps"
        if not encrypted and server.has_extn("starttls"):
            server.starttls(context=tls)
            encrypted = True
        if place.username:
            if not encrypted and host not in _HERE:
                raise smtplib.SMTPException("it offers no encryption, so the password was not sent")
            server.login(unquote(place.username), unquote(place.password or ""))
    except BaseException:
        server.close()
        raise
    return server


def _recipient_refused(code: int, answer: str) -> Exception:
    """Return what a refused recipient means.

    Only answers about the address (5.1.x), its mailbox (5.2.x), or that give no reason, say that it is dead. Others are
    about us: a relay that wants a password refuses everybody, and must not end every subscription.
    """
    text = f"{code} {answer}"
    enhanced = answer.split(" ", 1)[0]
    about_us = enhanced.startswith("5.") and not enhanced.startswith(("5.1.", "5.2."))
    if 500 <= code < 600 and not about_us and enhanced != _FULL:
        return Bounced(text)
    return smtplib.SMTPException(text)


def _place(settings: Settings) -> SplitResult:
    place = urlsplit(settings.smtp)
    try:
        port = place.port
    except ValueError:
        port = -1
    if not place.hostname or port == -1 or "," in settings.sender or "@" not in settings.sender:
        raise UserError(
            "WORKINGPAPERS_SMTP must be like smtp://user:password@host:587, with a number as port, and "
            "WORKINGPAPERS_SENDER like 'Working Papers <papers@example.org>'."
        )
    return place
