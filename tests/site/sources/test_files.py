"""Files of papers: Parquet and JSON lines, whole, broken, and gone on with."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from workingpapers.errors import UserError
from workingpapers.site.sources.files import File

ROWS = [{"title": f"Paper {n}", "authors": ["Ada"], "venue": "ICML", "year": 2020, "arxiv": None} for n in range(7)]


def parquet_file(folder, rows=ROWS, name="papers.parquet"):
    path = folder / name
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=3)
    return path


def lines_file(folder, *lines):
    path = folder / "papers.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return path


@pytest.fixture(params=["parquet", "lines"])
def file(request, tmp_path):
    return File(parquet_file(tmp_path) if request.param == "parquet" else lines_file(tmp_path, *ROWS), size=2)


def titles(batches):
    return [record.title for batch in batches for record in batch.records]


def test_every_row_comes_once(file):
    batches = list(file.batches(None))
    assert titles(batches) == [f"Paper {n}" for n in range(7)]
    assert batches[-1].done == 7
    assert all(batch.total in (7, None) for batch in batches)
    record = batches[0].records[0]
    assert (record.source, record.venue, record.year, record.arxiv) == ("file:papers", "ICML", 2020, None)


def test_every_batch_can_be_gone_on_from(file):
    batches = list(file.batches(None))
    for number, batch in enumerate(batches[:-1], 1):
        assert titles(file.batches(batch.cursor)) == titles(batches[number:])


def test_a_file_that_was_read_or_has_changed_is_read_from_its_beginning(file):
    batches = list(file.batches(None))
    assert len(titles(file.batches(batches[-1].cursor))) == 7
    other = batches[0].cursor | {"digest": "another"}
    assert len(titles(file.batches(other))) == 7


def test_rejected_papers_did_not_appear_at_the_venue(tmp_path):
    rows = [ROWS[0] | {"status": status} for status in ("Poster", "Reject", "Desk rejected", "Withdrawn", None)]
    batch = next(File(parquet_file(tmp_path, rows)).batches(None))
    assert [record.venue for record in batch.records] == ["ICML", "", "", "", "ICML"]


def test_malformed_rows_are_named_by_their_number(tmp_path):
    rows = [{"title": "a", "year": 2020}, {"title": None, "year": 2020}, {"title": "c", "year": -5}, {"title": "d"}]
    batches = list(File(parquet_file(tmp_path, rows), size=3).batches(None))
    assert titles(batches) == ["a", "d"]
    assert [problem for batch in batches for problem in batch.problems] == [
        "papers.parquet, row 2: title: Expected `str`, got `null`",
        "papers.parquet, row 3: year: Expected `int` >= 1800",
    ]


def test_malformed_lines_are_named_by_their_number(tmp_path, monkeypatch):
    monkeypatch.setattr("workingpapers.site.sources.files._LONGEST_LINE", 100)
    bad = [b"{", b"", b"[1]", b"\xff\xfe", b"[" * 90, b'{"title": "' + b"x" * 300 + b'"}', b"3"]
    path = lines_file(tmp_path, {"title": "first"}, *bad, {"title": "last"})
    batches = list(File(path, size=2).batches(None))
    assert titles(batches) == ["first", "last"]
    problems = [problem for batch in batches for problem in batch.problems]
    assert [problem.partition(":")[0] for problem in problems] == [f"papers.jsonl, row {n}" for n in range(2, 9)]
    assert problems[5] == "papers.jsonl, row 7: longer than 100 bytes"
    assert [batch.done for batch in batches] == [2, 4, 6, 8, 9]


def test_hostile_json(tmp_path):
    path = lines_file(
        tmp_path, b'{"title": "lone \\ud800 surrogate"}', b'{"title": "x", "year": NaN}', b'{"title": {}}'
    )
    (batch,) = File(path).batches(None)
    assert [record.title for record in batch.records] == ["lone surrogate"]
    assert len(batch.problems) == 2


def test_an_empty_file_has_nothing(tmp_path):
    assert list(File(lines_file(tmp_path)).batches(None)) == []


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="There is no file"):
        File(tmp_path / "missing.parquet")
    with pytest.raises(UserError, match=r"end in \.parquet or \.jsonl"):
        File(tmp_path / "papers.csv")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1" + b"x" * 50)
    with pytest.raises(UserError, match=r"bad\.parquet cannot be read as Parquet"):
        list(File(tmp_path / "bad.parquet").batches(None))
    with pytest.raises(UserError, match="has no column 'title'; it has"):
        list(File(parquet_file(tmp_path, [{"name": "x"}])).batches(None))


def test_columns_of_another_type(tmp_path):
    batch = next(
        File(parquet_file(tmp_path, [{"title": "x", "authors": 3}, {"title": "y", "authors": 4}])).batches(None)
    )
    assert (batch.records, len(batch.problems)) == ([], 2)
