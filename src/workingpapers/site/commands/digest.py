"""`papers digest`: the subscribers' mails."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from workingpapers.site.mail.digest import Finder
    from workingpapers.site.settings import Settings


@click.command(
    epilog="""\b
Examples:
  papers digest --dry-run
  papers digest --every 10
  WORKINGPAPERS_SMTP=smtp://user:password@mail.example.org:587 papers digest"""
)
@click.option("--every", metavar="MINUTES", type=click.IntRange(1, 1440), help="Stay, and look again so often.")
@click.option("--dry-run", is_flag=True, help="Only show who would get what: nothing is written or sent.")
@click.option(
    "--database", metavar="URL", help="The page's database. [default: $WORKINGPAPERS_SITE or the user's data folder]"
)
def digest(every: int | None, dry_run: bool, database: str | None) -> None:
    """Mail subscribers the papers that are news. Sends any other mail that waits, too.

    Run it once a day from cron, or leave it running with --every. It may be interrupted or started twice at any time:
    nobody is left out, and no edition is made twice. Only a mail that was being handed over when it was interrupted
    can come twice, as the same message. Days are UTC. Without $WORKINGPAPERS_SMTP, mails are shown instead of sent.
    """
    import time

    from sqlalchemy.exc import OperationalError

    from workingpapers import terminal
    from workingpapers.errors import first_line
    from workingpapers.site.database import open_database
    from workingpapers.site.search.engine import Searcher
    from workingpapers.site.settings import load_settings

    settings = load_settings(database=database)
    engine = open_database(settings.database)
    finder = Searcher(engine, settings)
    if dry_run:
        _show(engine, finder)
        return
    while True:
        try:
            _once(engine, settings, finder)
        except OperationalError as error:
            if every is None:
                raise
            reason = first_line(error.orig or error)
            terminal.say(f"The page's database cannot be used: {reason}. It is looked at again.")
        if every is None:
            return
        time.sleep(60 * every)


def _once(engine: Engine, settings: Settings, finder: Finder) -> None:
    """Write the editions that are due, and send what waits."""
    import time

    from workingpapers import terminal
    from workingpapers.site.mail import digest, outbox, smtp

    with smtp.sender(settings) as send:
        written = [
            edition
            for edition in digest.editions(engine, time.time(), finder)
            if digest.write(engine, settings, edition, time.time())
        ]
        done = outbox.drain(engine, send)
    with_news = sum(bool(edition.sections) for edition in written)
    said = [f"{with_news} digest{'s' * (with_news != 1)} written", f"{len(written) - with_news} without news"]
    said += [f"{done[name]} mail{'s' * (done[name] != 1)} {name}" for name in ("sent", "deferred", "failed")]
    terminal.say(", ".join(part for part in said if not part.startswith("0 ")) or "Nobody is due, and no mail waits.")
    if done["unreachable"]:
        terminal.say("The mail server cannot be reached. What waits is sent by the next `papers digest`.")


def _show(engine: Engine, finder: Finder) -> None:
    import time

    from workingpapers import terminal
    from workingpapers.site.mail.digest import editions

    number = 0
    for edition in editions(engine, time.time(), finder):
        number += 1
        terminal.say(f"{edition.subscription.email}, {edition.day}: {len(edition.picks) or 'no'} papers")
        for section in edition.sections:
            terminal.say(f"  {section.title}")
            for pick in section.picks:
                terminal.say(f"    {pick.paper.title} ({pick.why})")
    terminal.say(f"{number} due; nothing was written or sent")
