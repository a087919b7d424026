"""Mails reach a real server: in the clear, encrypted, with a password; and what it answers is understood."""

import ssl
import subprocess
import time

import pytest
from aiosmtpd.smtp import AuthResult, LoginPassword
from sqlalchemy import select

from workingpapers.errors import UserError
from workingpapers.site.database import writing
from workingpapers.site.mail.courier import Courier
from workingpapers.site.mail.message import WIRE, compose
from workingpapers.site.mail.outbox import Bounced, Refused, Unreachable, enqueue
from workingpapers.site.mail.smtp import sender
from workingpapers.site.schema import outbox
from workingpapers.site.settings import Settings

ADA = "ada@example.org"


def mail(settings, to=ADA):
    return compose(settings, to, "Grüße", "Schrödinger\n.\nand after the lone dot", "<p>ö</p>").as_bytes(policy=WIRE)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Key and certificate of a server on this machine, which nobody vouches for."""
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def test_a_mail_arrives_as_it_was_written_and_one_connection_serves_many(server):
    settings = server.settings()
    with sender(settings) as send:
        for to in (ADA, "bob@example.org"):
            send(mail(settings, to), to)
    assert server.recipients == [ADA, "bob@example.org"]
    assert server.handler.connections == 1
    assert server.handler.senders == ["papers@example.org"] * 2
    message = server.handler.mails[0][1]
    assert (message["To"], message["From"], message["Subject"]) == (ADA, settings.sender, "Grüße")
    text = message.get_body(("plain",)).get_content()
    assert text.splitlines() == ["Schrödinger", ".", "and after the lone dot"]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("550 5.1.1 no such user", Bounced),
        ("550 No such user here", Bounced),
        ("550 5.2.1 mailbox disabled", Bounced),
        ("552 5.2.2 mailbox full", OSError),
        ("554 5.7.1 relay access denied", OSError),
        ("450 4.2.1 try later", OSError),
        ("451 greylisted", OSError),
    ],
)
def test_what_a_refused_recipient_means(server, answer, error):
    settings = server.settings()
    server.handler.answers[ADA] = answer
    with sender(settings) as send:
        with pytest.raises(error, match=answer[:3]):
            send(mail(settings), ADA)
        send(mail(settings, "bob@example.org"), "bob@example.org")  # the connection is still good
    assert server.recipients == ["bob@example.org"]


def test_a_refused_message_is_not_tried_again_and_a_deferred_one_is(server):
    settings = server.settings()
    server.handler.data = ["554 5.6.0 spam", "451 4.3.0 later"]
    with sender(settings) as send:
        with pytest.raises(Refused):
            send(mail(settings), ADA)
        with pytest.raises(OSError, match="451"):
            send(mail(settings), ADA)
        send(mail(settings), ADA)
    assert server.recipients == [ADA]


def test_a_connection_that_was_cut_meanwhile_is_opened_again(server):
    settings = server.settings()
    with sender(settings) as send:
        send(mail(settings), ADA)
        server.stop()
        with pytest.raises(Unreachable):
            send(mail(settings), ADA)
        server.start()
        send(mail(settings), ADA)
    assert server.recipients == [ADA, ADA]


def test_encryption_is_used_where_it_is_offered(start_server, certificate):
    server = start_server(tls_context=certificate, require_starttls=True)
    settings = server.settings()
    with sender(settings) as send:
        send(mail(settings), ADA)
    assert server.recipients == [ADA]


def test_encryption_from_the_start(start_server, certificate):
    server = start_server(ssl_context=certificate)
    settings = server.settings(smtp=f"smtps://127.0.0.1:{server.port}")
    with sender(settings) as send:
        send(mail(settings), ADA)
    assert server.recipients == [ADA]


def test_certificates_of_other_machines_are_checked(start_server, certificate, monkeypatch):
    monkeypatch.setattr("workingpapers.site.mail.smtp._HERE", ())
    server = start_server(tls_context=certificate)
    settings = server.settings()
    with sender(settings) as send, pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
        send(mail(settings), ADA)


def test_a_password_is_given_and_a_wrong_one_is_our_fault(start_server, certificate):
    def check(server, session, envelope, mechanism, data):
        right = isinstance(data, LoginPassword) and (data.login, data.password) == (b"us er", b"p@ss:w/rd")
        return AuthResult(success=right, handled=False)

    server = start_server(tls_context=certificate, authenticator=check, auth_required=True)
    for password, arrived in (("p%40ss%3Aw%2Frd", 1), ("wrong", 1)):
        settings = server.settings(user=f"us%20er:{password}@")
        with sender(settings) as send:
            if password == "wrong":
                with pytest.raises(Unreachable, match="Authentication"):
                    send(mail(settings), ADA)
            else:
                send(mail(settings), ADA)
        assert len(server.recipients) == arrived


def test_no_password_goes_to_another_machine_in_the_clear(server, monkeypatch):
    monkeypatch.setattr("workingpapers.site.mail.smtp._HERE", ())
    settings = server.settings(user="user:secret@")
    with sender(settings) as send, pytest.raises(Unreachable, match="password was not sent"):
        send(mail(settings), ADA)


def test_without_a_server_mails_are_shown(capsys):
    settings = Settings(database="sqlite://", secret="x" * 32)
    with sender(settings) as send:
        send(compose(settings, ADA, "Hello \x1b[31m", "A link:\nhttps://e.org/\x1b[2J").as_bytes(policy=WIRE), ADA)
    shown = capsys.readouterr().err
    assert "To: ada@example.org\nSubject: Hello [31m\n\nA link:\nhttps://e.org/[2J\n" in shown


@pytest.mark.parametrize("changes", [{"smtp": "smtp://host:port"}, {"smtp": "smtp://"}, {"sender": "nobody"}])
def test_settings_that_cannot_work_are_named(changes):
    settings = Settings(**{"database": "sqlite://", "secret": "x" * 32, "smtp": "smtp://host"} | changes)
    with pytest.raises(UserError, match="WORKINGPAPERS_SMTP"), sender(settings):
        pass


def test_the_courier_sends_what_comes_in_and_stops(database, server):
    settings = server.settings()
    courier = Courier(database, settings)
    courier.start()
    with writing(database) as connection:
        enqueue(connection, "sign-in", ADA, compose(settings, ADA, "Hello", "Hello."), time.time())
    state, until = "", time.monotonic() + 20
    while state != "sent" and time.monotonic() < until:
        time.sleep(0.05)
        with database.connect() as connection:
            state = connection.execute(select(outbox.c.state)).scalar()
    courier.stop()
    assert server.recipients == [ADA]
    assert not courier.is_alive()
