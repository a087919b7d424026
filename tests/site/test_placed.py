from papers_made import made

from workingpapers.papers.topics import walk
from workingpapers.site import placed
from workingpapers.site.database import writing

ROOT = "pre-trained-models"


def test_papers_count_once_at_and_below_each_topic(database):
    with writing(database) as connection:
        assert placed.counts(connection) == {}
        made(connection, 2, topics=["pruning", "distillation"])
        made(connection, 1, topics=["pruning"])
        made(connection, 1, topics=["a-topic-of-another-version"])
        counts = placed.counts(connection)
    assert (counts["pruning"], counts["distillation"], counts["compression"], counts[ROOT]) == (3, 2, 3, 3)
    assert {"pruning", "distillation"} <= set(walk("compression"))
    assert "a-topic-of-another-version" not in counts


def test_methods_come_first_then_votes_then_years(database):
    with writing(database) as connection:
        [undated] = made(connection, 1, topics=["pruning"], year=None)
        [old] = made(connection, 1, topics=["pruning"], year=2019)
        [new] = made(connection, 1, topics=["distillation"], year=2025)
        [voted] = made(connection, 1, topics=["pruning", "distillation"], year=2018, votes=1)
        [usable] = made(connection, 1, topics=["pruning"], year=2017, has_method=True)
        made(connection, 1, topics=["multilingual"])
        first, total = placed.papers_at(connection, "compression", page=1, size=3)
        second, _ = placed.papers_at(connection, "compression", page=2, size=3)
    assert [paper.id for paper in first] == [usable, voted, new]
    assert [paper.id for paper in second] == [old, undated]
    assert total == 5
