"""`papers sync`: what is told where the database has no room."""

import json

from click.testing import CliRunner

from workingpapers.cli import main
from workingpapers.site import database


def test_a_database_without_room_is_one_line_and_the_same_command_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKINGPAPERS_STORE", str(tmp_path / "runs.sqlite"))
    file, papers = tmp_path / "site.sqlite", tmp_path / "papers.jsonl"
    papers.write_text("".join(json.dumps({"title": f"{number}. " + "word " * 150}) + "\n" for number in range(2000)))
    words = ["sync", str(papers), "--no-embeddings", "--database", str(file)]
    set_up = database._set_up_sqlite

    def without_room(connection, record):
        set_up(connection, record)
        connection.execute("PRAGMA max_page_count = 500")  # 2 MB, as a small disk has

    with monkeypatch.context() as patch:
        patch.setattr(database, "_set_up_sqlite", without_room)
        full = CliRunner().invoke(main, words)
    assert (full.exit_code, full.stdout) == (1, "")
    assert full.stderr.splitlines() == ["papers: the page's database cannot be used: database or disk is full."]
    again = CliRunner().invoke(main, words)
    assert again.exit_code == 0
    assert "2,000" in again.stdout
