"""Mails and addresses, made so that nothing a stranger types can become a header or a second recipient."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.message import EmailMessage
from email.policy import EmailPolicy
from typing import Any

from workingpapers.errors import UserError
from workingpapers.site.settings import Settings

# RFC 5321 (4.5.3.1) bounds the part before the @ and the whole; RFC 1035 (2.3.4) a label of the domain.
_MOST_LOCAL, _MOST = 64, 254
_LOCAL = re.compile(r"[a-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[a-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"({_LABEL}\.)+(?![0-9]+$){_LABEL}")
_LONGEST_WORD = 70  # of a header that the standard library still folds rather than encodes


class _Wire(EmailPolicy):
    """The standard library's SMTP policy, but for long words: it would encode a link in a header beyond recognition."""

    def fold(self, name: str, value: str) -> str:
        """Return a header as it is sent."""
        text = str(value)
        if text.isascii() and any(len(word) > _LONGEST_WORD for word in text.split()):
            return f"{name}: {text}{self.linesep}"  # a line may have 998 characters: RFC 5322 (2.1.1)
        return super().fold(name, value)

    def fold_binary(self, name: str, value: str) -> bytes:
        """Return a header as it is sent, in bytes."""
        return self.fold(name, value).encode("ascii")


# Seven bits pass every server, also one without 8BITMIME.
WIRE = _Wire(linesep="\r\n", max_line_length=78, cte_type="7bit")


def clean_address(text: str) -> str:
    """Return an e-mail address in lower case.

    Args:
        text: one address, without a name; a domain in other letters than Latin ones stands in punycode (xn--...).

    Raises:
        UserError: it is none that mail could reach.
    """
    address = text.strip().lower()
    local, _, domain = address.rpartition("@")
    fits = len(local) <= _MOST_LOCAL and len(address) <= _MOST
    if not (fits and _LOCAL.fullmatch(local) and _DOMAIN.fullmatch(domain)):
        raise UserError(f"{text.strip()[:80]!r} is not an e-mail address. It must be like name@example.org.")
    return address


def compose(
    settings: Settings, to: str, subject: str, text: str, html: str = "", headers: Mapping[str, str] | None = None
) -> EmailMessage:
    """Return a mail, to be given to `outbox.enqueue`.

    Args:
        settings: its sender and address are used.
        to: as `clean_address` returns it.
        subject: any text; line breaks and runs of spaces become one space.
        text: the mail as plain text.
        html: the same as HTML, where there is more to show.
        headers: further ones.

    Raises:
        ValueError: a header has a line break.
    """
    message: EmailMessage[Any, Any] = EmailMessage(policy=WIRE)
    message["From"] = settings.sender
    message["To"] = to
    message["Subject"] = " ".join("".join(c if c.isprintable() else " " for c in subject).split())
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: keeps holiday notices from answering
    for name, value in (headers or {}).items():
        message[name] = value
    message.set_content(text, cte="quoted-printable")
    if html:
        message.add_alternative(html, subtype="html", cte="quoted-printable")
    return message
