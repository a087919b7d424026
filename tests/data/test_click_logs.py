"""Published logs in tiny copies of their formats."""

import gzip

import numpy as np
import pytest

from workingpapers.data import click_logs
from workingpapers.data.impressions import load_impressions
from workingpapers.errors import UserError
from workingpapers.methods.recommenders.schema import Schema


def criteo_lines(n=10):
    rows = [
        [str(i % 2), *[str(i + j - 2) for j in range(13)], *[f"{i % 3:02x}{j:06x}" for j in range(26)]]
        for i in range(n)
    ]
    rows[3][1] = rows[4][20] = ""
    return "".join("\t".join(row) + "\n" for row in rows)


def test_criteo(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text(criteo_lines())
    found = load_impressions(f"criteo:{path}")
    assert found.name == f"criteo:{path}"
    assert found.clicks.tolist() == [0, 1] * 5
    assert found.held.tolist() == [False] * 8 + [True] * 2
    assert found.table.columns.tolist() == [f"I{i}" for i in range(1, 14)] + [f"C{i}" for i in range(1, 27)]
    assert found.table["I3"].tolist() == pytest.approx(np.log1p(np.arange(10)))
    assert found.table["I1"].iloc[0] == 0  # -2, which is no count
    assert np.isnan(found.table["I1"].iloc[3])
    assert found.table["C7"].isna().tolist() == [i == 4 for i in range(10)]
    schema = Schema.fit([found.table], kinds=found.kinds, min_count=1)
    assert schema.field("C7").values == ("00000006", "02000006", "01000006")  # all digits, and no number
    assert found.remarks == ()


def test_avazu(tmp_path):
    path = tmp_path / "train.gz"
    header = "id,click,hour,C1,banner_pos,site_id\n"
    rows = [f"{10**19 + i},{i % 2},141021{i:02},1005,{i % 3},{i:08x}\n" for i in range(10)]
    path.write_bytes(gzip.compress((header + "".join(rows)).encode()))
    found = load_impressions(f"avazu:{path}")
    assert found.clicks.tolist() == [0, 1] * 5
    assert found.held.tolist() == [False] * 8 + [True] * 2
    assert found.table.columns.tolist() == ["C1", "banner_pos", "site_id", "hour", "weekday"]
    assert found.table["hour"].tolist() == list(range(10))
    assert set(found.table["weekday"]) == {1}  # 21 October 2014 was a Tuesday


def test_only_the_first_rows_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(click_logs, "MOST", 6)
    path = tmp_path / "train.txt"
    path.write_text(criteo_lines())
    found = load_impressions(f"criteo:{path}")
    assert len(found) == 6
    assert found.remarks == ("Only the first 6 rows are read.",)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("criteo", "0\t1\t2\n", "has 3 columns between tabs"),
        ("criteo", criteo_lines().replace("\t1\t", "\tone\t"), "other things than counts"),
        ("criteo", "", "cannot be read"),
        ("avazu", "id,clicks\n1,0\n", "no column 'click'"),
        ("avazu", "id,click,hour,C1\n1,0,yesterday,1\n2,1,14102100,1\n", "'yesterday' is not written as YYMMDDHH"),
    ],
)
def test_files_of_another_format(tmp_path, name, text, message):
    path = tmp_path / "train.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_impressions(f"{name}:{path}")


def test_a_file_cut_off(tmp_path):
    path = tmp_path / "train.gz"
    path.write_bytes(gzip.compress(criteo_lines(200).encode())[:200])
    with pytest.raises(UserError, match="cannot be read"):
        load_impressions(f"criteo:{path}")
