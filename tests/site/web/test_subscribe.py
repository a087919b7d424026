"""The journeys of a subscriber, as a browser without scripts and as a mail program's own button make them."""

import html
import re
import time
from email import message_from_bytes
from email.policy import default
from urllib.parse import parse_qs, urlsplit

import pytest
from fastapi.testclient import TestClient
from papers_made import made
from sqlalchemy import func, select, update

from workingpapers.site import trending
from workingpapers.site.database import writing
from workingpapers.site.mail import digest
from workingpapers.site.mail.outbox import LIMITS
from workingpapers.site.schema import outbox, subscriptions
from workingpapers.site.settings import Settings
from workingpapers.site.web.app import create_app
from workingpapers.site.web.security import MAIL_BURST

BROWSER = {"Sec-Fetch-Site": "same-origin"}
FORM = {"email": "Ada@example.org", "frequency": "weekly", "topics": ["compression"], "queries": ["linear probe", ""]}


@pytest.fixture
def app(database, tmp_path):
    settings = Settings(
        database=database.url.render_as_string(hide_password=False),
        store=str(tmp_path / "runs.sqlite"),
        secret="s" * 32,
        address="http://testserver",
        embeddings=False,
    )
    return create_app(settings)


@pytest.fixture
def browser(app):
    return TestClient(app, headers=BROWSER, follow_redirects=False)


def mails(app, email="ada@example.org"):
    """Links in the mails to an address, without the host."""
    found = select(outbox.c.message).where(outbox.c.email == email).order_by(outbox.c.id)
    with app.state.engine.connect() as connection:
        raw = connection.execute(found).scalars().all()
    texts = [message_from_bytes(m, policy=default).get_body(("plain",)).get_content() for m in raw]
    return [re.search(r"http://testserver(/subscription\S+)", text)[1] for text in texts]


def rows(app):
    with app.state.engine.connect() as connection:
        return connection.execute(select(subscriptions)).mappings().all()


def token_of(address):
    return parse_qs(urlsplit(address).query)["token"][0]


def subscribed(browser, **changes):
    """Ask, confirm, and return the address of the subscription's page."""
    browser.post("/subscribe", data=FORM | changes)
    link = mails(browser.app, changes.get("email", "ada@example.org").lower())[-1]
    return browser.post("/subscription/confirm", data={"token": token_of(link)}).headers["location"]


def test_from_the_form_to_the_first_digest_and_out_again(app, browser):
    page = browser.get("/subscribe")
    assert 'name="topics" value="compression"' in page.text
    answer = browser.post("/subscribe", data=FORM)
    assert (answer.status_code, answer.headers["location"]) == (303, "/subscribe/sent")
    assert "Look into your mail" in browser.get("/subscribe/sent").text
    assert rows(app) == []

    (link,) = mails(app)
    shown = browser.get(link)
    assert "Send the digest to ada@example.org?" in shown.text
    assert "what trends in Model compression, “linear probe”, every Monday" in shown.text
    assert rows(app) == []  # to look at a link changes nothing
    (token,) = re.findall(r'name="token" value="([^"]+)"', shown.text)
    answer = browser.post("/subscription/confirm", data={"token": html.unescape(token)})
    manage = browser.get(answer.headers["location"])
    assert "Thank you, it is confirmed. ada@example.org gets what trends in Model compression" in manage.text
    assert 'value="compression" checked' in manage.text
    assert 'value="linear probe"' in manage.text
    (row,) = rows(app)
    assert (row["state"], row["frequency"], row["topics"], row["queries"]) == (
        "active",
        "weekly",
        ["compression"],
        ["linear probe"],
    )

    token = token_of(answer.headers["location"])
    changed = browser.post("/subscription", data={"token": token, "frequency": "daily"})
    assert "Changed. ada@example.org gets whatever trends, every day." in browser.get(changed.headers["location"]).text
    ending = browser.get(f"/subscription/unsubscribe?token={token}")
    assert "Unsubscribe ada@example.org?" in ending.text
    assert rows(app)[0]["state"] == "active"
    ended = browser.post(f"/subscription/unsubscribe?token={token}")
    assert "No more digests go to ada@example.org" in ended.text
    assert rows(app)[0]["state"] == "ended"
    browser.post("/subscription", data={"token": token, "frequency": "weekdays"})
    assert (rows(app)[0]["state"], rows(app)[0]["frequency"]) == ("active", "weekdays")


def test_a_mail_program_ends_it_by_one_click(app, browser):
    """RFC 8058: a POST to the link of the header, from anywhere, with neither cookies nor origin."""
    subscribed(browser, topics=[], queries=[], frequency="daily")
    now = time.time()
    with writing(app.state.engine) as connection:
        connection.execute(update(subscriptions).values(confirmed=now - 90_000))
        for number in made(connection, 2):
            yesterday = trending.day_of(now - 86_400).isoformat()
            trending.record_all(connection, [trending.Signal(number, "vote", 1, yesterday)])
    (edition,) = digest.editions(app.state.engine, now, None)
    assert digest.write(app.state.engine, app.state.settings, edition, now)
    with app.state.engine.connect() as connection:
        raw = connection.execute(select(outbox.c.message).where(outbox.c.kind == "digest")).scalar_one()
    link = message_from_bytes(raw, policy=default)["List-Unsubscribe"].strip("<>")
    program = TestClient(app, follow_redirects=False)
    for _ in range(2):
        answer = program.post(link, data={"List-Unsubscribe": "One-Click"})
        assert answer.status_code == 200
    assert rows(app)[0]["state"] == "ended"
    with app.state.engine.connect() as connection:
        waiting = select(func.count()).where(outbox.c.kind == "digest", outbox.c.state == "waiting")
        assert connection.execute(waiting).scalar() == 0  # what had not left yet does not leave
    assert "Unsubscribed" in program.get(link).text


def test_nobody_learns_whether_an_address_is_known(app, browser):
    subscribed(browser)
    answers = [browser.post("/subscribe", data=FORM | {"email": e}) for e in ("ada@example.org", "new@example.org")]
    first, second = ((a.status_code, a.text, {**a.headers}) for a in answers)
    assert first == second
    assert len(mails(app, "ada@example.org")) == 2
    assert len(mails(app, "new@example.org")) == 1


def test_a_stranger_cannot_change_a_subscription(app, browser):
    subscribed(browser)
    before = rows(app)
    browser.post("/subscribe", data=FORM | {"frequency": "daily", "topics": []})
    assert rows(app) == before


def test_an_address_gets_a_few_mails_and_the_answer_does_not_tell(app, browser):
    answers = [browser.post("/subscribe", data=FORM) for _ in range(6)]
    assert {answer.status_code for answer in answers} == {303}
    assert len(mails(app)) == LIMITS[0][0]


def test_one_client_causes_a_few_mails_whatever_the_recipients(app, browser):
    answers = [
        browser.post("/subscribe", data=FORM | {"email": f"{n}@example.org"}) for n in range(int(MAIL_BURST) + 1)
    ]
    assert [answer.status_code for answer in answers] == [303] * int(MAIL_BURST) + [429]
    assert int(answers[-1].headers["retry-after"]) > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"email": ""}, "must be like name@example.org"),
        ({"email": "ada@example.org\r\nBcc: bob@example.org"}, "is not an e-mail address"),
        ({"email": "<script>@example.org"}, "&lt;script&gt;@example.org"),
        ({"frequency": ""}, "Unknown frequency"),
        ({"topics": ["compresion"]}, "Did you mean"),
        ({"queries": ["x"] * 2 + ["a", "b", "c", "d", "e"]}, "5 searches at most"),
        ({"queries": ["x" * 201]}, "200 characters at most"),
    ],
)
def test_what_cannot_be_is_said_and_what_was_typed_is_kept(app, browser, changes, said):
    answer = browser.post("/subscribe", data=FORM | changes)
    assert answer.status_code == 400
    assert said in answer.text
    assert 'role="alert"' in answer.text
    if "topics" not in changes:
        assert 'value="compression" checked' in answer.text
    assert "<script>@" not in answer.text
    assert mails(app) == []


@pytest.mark.parametrize("path", ["/subscription", "/subscription/confirm", "/subscription/unsubscribe"])
@pytest.mark.parametrize("token", ["", "nonsense", "é", "a.b.c", "x" * 9000])
def test_links_that_are_not_ours_are_named(browser, path, token):
    for answer in (
        browser.get(path, params={"token": token}),
        browser.post(path, params={"token": token}, data={"token": token, "frequency": "daily"}),
    ):
        assert answer.status_code in (400, 422)
        assert "Traceback" not in answer.text


def test_a_confirmation_works_once(app, browser):
    browser.post("/subscribe", data=FORM)
    token = token_of(mails(app)[0])
    assert browser.post("/subscription/confirm", data={"token": token}).status_code == 303
    again = browser.post("/subscription/confirm", data={"token": token})
    assert again.status_code == 400
    assert "used already" in again.text


def test_other_sites_cannot_ask_for_mails(app):
    foreign = TestClient(app, headers={"Sec-Fetch-Site": "cross-site"})
    assert foreign.post("/subscribe", data=FORM).status_code == 403
    assert mails(app) == []


def test_pages_with_a_token_are_kept_nowhere(browser):
    page = browser.get(subscribed(browser))
    assert page.headers["cache-control"] == "no-store"
    assert page.headers["referrer-policy"] == "no-referrer"


def test_links_from_topics_and_searches_fill_the_form_in(browser):
    page = browser.get("/subscribe", params={"topic": ["pruning", "no-such"], "query": '"linear" <probe>'})
    assert 'value="pruning" checked' in page.text
    assert 'value="&#34;linear&#34; &lt;probe&gt;"' in page.text
    assert page.text.count(" checked") == 2  # and weekly


def test_a_bounced_subscription_says_so(app, browser):
    place = subscribed(browser)
    with writing(app.state.engine) as connection:
        connection.execute(update(subscriptions).values(state="bounced"))
    page = browser.get(place)
    assert "came back" in page.text
    assert 'action="/subscription"' not in page.text


def test_an_acknowledged_request_is_on_the_disk(app, browser):
    """What the answer promises was committed before it: another connection sees it."""
    browser.post("/subscribe", data=FORM)
    with app.state.engine.connect() as connection:
        assert connection.execute(select(outbox.c.state)).scalars().all() == ["waiting"]
