"""arXiv's Atom feeds: what an entry says, paging day by day, and the ways in which the API fails."""

from datetime import date
from xml.sax.saxutils import escape

import pytest
from replay import Answer

from workingpapers.errors import UserError
from workingpapers.site.sources.arxiv import Arxiv, by_identifier
from workingpapers.site.sources.http import PAUSES, Client, SourceError

TODAY = date(2026, 11, 25)


def entry(number, title="A Title\n  in Two Lines", comment="12 pages", doi="", date_="2026-11-24T17:59:58Z"):
    """An entry as arXiv writes it: titles and abstracts are wrapped, identifiers have versions."""
    return f"""
  <entry>
    <id>http://arxiv.org/abs/2611.{number:05}v2</id>
    <updated>2026-11-25T09:00:00Z</updated>
    <published>{date_}</published>
    <title>{escape(title)}</title>
    <summary>  We study $x &lt; y$. Code: https://github.com/a/b{number}.
</summary>
    <author>
      <name>Ada Lovelace</name>
      <arxiv:affiliation xmlns:arxiv="http://arxiv.org/schemas/atom">London</arxiv:affiliation>
    </author>
    <author>
      <name>Émilie du Châtelet</name>
    </author>
    <arxiv:comment xmlns:arxiv="http://arxiv.org/schemas/atom">{escape(comment)}</arxiv:comment>
    {f'<arxiv:doi xmlns:arxiv="http://arxiv.org/schemas/atom">{doi}</arxiv:doi>' if doi else ""}
    <link href="http://arxiv.org/abs/2611.{number:05}v2" rel="alternate" type="text/html"/>
    <link title="pdf" href="http://arxiv.org/pdf/2611.{number:05}v2" rel="related" type="application/pdf"/>
    <arxiv:primary_category xmlns:arxiv="http://arxiv.org/schemas/atom" term="cs.LG" scheme="http://arxiv.org/schemas/atom"/>
    <category term="cs.LG" scheme="http://arxiv.org/schemas/atom"/>
  </entry>"""


def feed(entries, total, start=0, page=500):
    return Answer(
        f"""<?xml version="1.0" encoding="UTF-8"?>
<feed xmlns="http://www.w3.org/2005/Atom">
  <link href="http://arxiv.org/api/query?search_query%3D%26id_list%3D" rel="self" type="application/atom+xml"/>
  <title type="html">ArXiv Query: search_query=&amp;id_list=</title>
  <id>http://arxiv.org/api/cHxbiOdZaP56ODnBPIenZhzg5f8</id>
  <updated>2026-11-25T00:00:00-05:00</updated>
  <opensearch:totalResults xmlns:opensearch="http://a9.com/-/spec/opensearch/1.1/">{total}</opensearch:totalResults>
  <opensearch:startIndex xmlns:opensearch="http://a9.com/-/spec/opensearch/1.1/">{start}</opensearch:startIndex>
  <opensearch:itemsPerPage xmlns:opensearch="http://a9.com/-/spec/opensearch/1.1/">{page}</opensearch:itemsPerPage>
{"".join(entries)}
</feed>""".encode(),
        headers={"Content-Type": "application/atom+xml; charset=UTF-8"},
    )


# An error comes as status 200 with one entry that looks like a result.
WRONG = feed(
    [
        """<entry>
    <id>http://arxiv.org/api/errors#incorrect_id_format_for_1234.1234</id>
    <title>Error</title>
    <summary>incorrect id format for 1234.1234</summary>
    <updated>2026-11-25T00:00:00-05:00</updated>
    <author><name>arXiv api core</name></author>
  </entry>"""
    ],
    1,
)


class Papers:
    """arXiv with so many papers a day."""

    def __init__(self, **by_day):
        self.days = {day.lstrip("d"): number for day, number in by_day.items()}

    def __call__(self, asked):
        day = asked.query["search_query"].partition("submittedDate:[")[2][:8]
        number, start, page = self.days.get(day, 0), int(asked.query["start"]), int(asked.query["max_results"])
        first = int(day[-2:]) * 100 + start
        return feed([entry(n) for n in range(first, first + min(page, max(number - start, 0)))], number, start, page)


@pytest.fixture
def source(client, server):
    return Arxiv("cs.LG", client, "2026-11-24", TODAY, base=server.address, page=2)


def test_an_entry_is_read(source, server):
    server.in_turn(feed([entry(7, doi="10.1000/A.7")], 1), feed([], 0))
    batch, _ = source.batches(None)
    (record,) = batch.records
    assert (record.arxiv, record.title, record.venue) == ("2611.00007", "A Title in Two Lines", "arXiv")
    assert record.abstract == "We study $x < y$. Code: https://github.com/a/b7."
    assert list(record.authors) == ["Ada Lovelace", "Émilie du Châtelet"]
    assert (record.published, record.year, record.doi) == ("2026-11-24", 2026, "10.1000/a.7")
    assert record.url == "https://arxiv.org/abs/2611.00007v2"
    assert record.pdf == "https://arxiv.org/pdf/2611.00007v2"
    assert record.code == "https://github.com/a/b7"
    assert (record.source, batch.problems) == ("arxiv", [])


def test_of_several_repositories_none_is_taken(source, server):
    server.in_turn(feed([entry(7, comment="Baseline: https://github.com/c/d")], 1), feed([], 0))
    assert next(source.batches(None)).records[0].code == ""


def test_the_query(source, server):
    server.in_turn(feed([], 0))
    list(source.batches(None))
    assert [asked.path for asked in server.asked] == ["/api/query"] * 2
    assert server.asked[0].query == {
        "search_query": "cat:cs.LG AND submittedDate:[202611240000 TO 202611242359]",
        "sortBy": "submittedDate",
        "sortOrder": "ascending",
        "start": "0",
        "max_results": "2",
    }


def test_days_are_paged_and_every_batch_can_be_gone_on_from(source, server, passing):
    server.script = Papers(d20261124=5, d20261125=2)
    batches = list(source.batches(None))
    everything = [record.arxiv for batch in batches for record in batch.records]
    assert everything == [f"2611.{n:05}" for n in (2400, 2401, 2402, 2403, 2404, 2500, 2501)]
    assert passing.slept == [3.0] * (len(server.asked) - 1)
    for number, batch in enumerate(batches[:-1], 1):
        rest = [record.arxiv for later in source.batches(batch.cursor) for record in later.records]
        assert rest == [record.arxiv for later in batches[number:] for record in later.records]
    assert batches[-1].cursor["done"]
    assert [(batch.done, batch.total) for batch in batches] == [(1, 2), (1, 2), (1, 2), (2, 2)]


def test_the_next_sync_asks_the_last_week_again(client, server):
    server.script = Papers()
    cursor = {"since": "2026-11-01", "day": "2026-11-20", "page": 0, "done": True}
    list(Arxiv("cs.LG", client, None, TODAY, base=server.address).batches(cursor))
    days = [asked.query["search_query"].partition("[")[2][:8] for asked in server.asked]
    assert days == [f"202611{day}" for day in range(13, 26)]


@pytest.mark.parametrize(
    ("since", "cursor", "first"),
    [
        (None, None, "20261118"),
        ("2026-11-10", None, "20261110"),
        ("2026-11-10", {"since": "2026-11-15", "day": "2026-11-20", "page": 0, "done": True}, "20261110"),
        ("2026-11-22", {"since": "2026-11-01", "day": "2026-11-20", "page": 0, "done": True}, "20261122"),
        ("2026-11-01", {"since": "2026-11-01", "day": "2026-11-20", "page": 4, "done": False}, "20261120"),
    ],
)
def test_where_it_begins(client, server, since, cursor, first):
    server.script = Papers()
    next(Arxiv("cs.LG", client, since, TODAY, base=server.address).batches(cursor))
    assert server.asked[0].query["search_query"].partition("[")[2][:8] == first
    assert server.asked[0].query["start"] == str(cursor["page"] if cursor and not cursor["done"] else 0)


def test_a_malformed_entry_is_left_out(source, server):
    bad = [entry(1, title=" "), entry(2, date_="yesterday"), entry(3).replace("2611.00003", "nonsense")]
    server.in_turn(feed([*bad, entry(4)], 4), feed([], 0))
    batch = next(source.batches(None))
    assert [record.arxiv for record in batch.records] == ["2611.00004"]
    assert [problem.split(": ")[1] for problem in batch.problems] == ["title", "published", "arxiv"]


@pytest.mark.parametrize(
    "bad",
    [
        Answer(b"Rate exceeded."),
        Answer(b""),
        feed([], 9),
        Answer(feed([entry(1)], 1).body[:-30]),
        Answer(feed([entry(1)], 1).body, cut=100),
        Answer(status=503, headers={"Retry-After": "5"}),
        Answer(b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa">]><x>&a;</x>'),
    ],
)
def test_what_is_no_page_is_asked_again(source, server, bad):
    server.in_turn(bad, feed([entry(1)], 1), feed([], 0))
    assert [record.arxiv for record in next(source.batches(None)).records] == ["2611.00001"]


def test_an_error_that_looks_like_a_result_is_an_error(source, server):
    server.in_turn(WRONG)
    with pytest.raises(SourceError, match=r"arXiv refuses the query: incorrect id format for 1234\.1234"):
        list(source.batches(None))


def test_batches_before_a_failure_stand(source, server):
    server.in_turn(feed([entry(1), entry(2)], 4), Answer(status=503))
    batches = source.batches(None)
    assert next(batches).cursor == {"since": "2026-11-24", "done": False, "day": "2026-11-24", "page": 2}
    with pytest.raises(SourceError, match="status 503"):
        next(batches)


def test_one_paper_by_identifier(client, server):
    server.in_turn(feed([entry(7)], 1), feed([], 0), WRONG)
    assert by_identifier(client, "2611.00007", server.address).arxiv == "2611.00007"
    assert server.asked[0].query == {"id_list": "2611.00007", "max_results": "1"}
    for _ in range(2):
        with pytest.raises(UserError, match="arXiv"):
            by_identifier(client, "2611.99999", server.address)


@pytest.mark.parametrize("wrong", ["", "cs LG", "cs.LG OR all:x", "CS.LG", "cs.LG&x"])
def test_no_category(client, wrong):
    with pytest.raises(UserError, match=r"written like cs\.LG"):
        Arxiv(wrong, client, None, TODAY)


def test_the_address_is_one_that_may_be_asked():
    from urllib.parse import urlsplit

    place = urlsplit(Arxiv("cs.LG", Client(), None, TODAY).base)
    assert (place.scheme, place.hostname in PAUSES) == ("https", True)
