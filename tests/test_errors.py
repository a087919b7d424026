"""Errors that a user can act on: what was given, and what is nearest to it."""

import sys
import warnings
from pathlib import Path

import pytest

from workingpapers.errors import (
    UserError,
    UserRemark,
    check_separator,
    existing_file,
    import_object,
    nearest,
    no_file,
    remarks,
    similar_files,
    table_kind,
    unknown_name,
    unreadable,
    user_path,
)

FEW = ["probe", "anomaly", "long-context"]
MANY = [f"paper-{index:02d}" for index in range(20)]


def test_the_nearest_names_come_first():
    assert nearest("prob", FEW) == "Did you mean 'probe'?"
    assert nearest("PROBE", FEW) == "Did you mean 'probe'?"
    assert nearest("paper-1", ["paper-10", "paper-11", "paper-12", "paper-13"]).count(" or ") == 2  # three at most


def test_where_none_is_near_all_are_named_or_the_first_of_many():
    assert nearest("zzz", FEW) == "Known: anomaly, long-context, probe."
    assert nearest("zzz", []) == "Known: none."
    assert nearest("zzz", MANY).endswith("paper-07, ... (20 in all).")


def test_an_unknown_name_says_what_it_should_have_been():
    error = unknown_name("task", "prob", FEW, "`papers tasks` lists them.")
    assert isinstance(error, ValueError)
    assert str(error) == "Unknown task 'prob'. Did you mean 'probe'? `papers tasks` lists them."
    assert str(unknown_name("task", "prob", FEW)) == "Unknown task 'prob'. Did you mean 'probe'?"
    assert str(unknown_name("name", "a", ["b"], of="them")) == "Unknown name 'a' of them. Known: b."


def test_remarks_are_collected_once():
    with remarks() as said:
        for text in ("first", "second", "first"):
            warnings.warn(text, UserRemark, stacklevel=1)
    assert said == ["first", "second"]
    with pytest.warns(UserRemark, match="afterwards"):
        warnings.warn("afterwards", UserRemark, stacklevel=1)
    assert said == ["first", "second"]


def test_warnings_of_another_kind_are_no_remarks():
    with pytest.warns(RuntimeWarning, match="of another kind"), remarks() as said:
        warnings.warn("of another kind", RuntimeWarning, stacklevel=1)
    assert said == []


def test_an_unreadable_file_is_explained_on_one_line():
    assert str(unreadable(Path("a.csv"), ValueError("line 3\nand more\n"), " as a table")) == (
        "a.csv cannot be read as a table: line 3"
    )
    assert str(unreadable(Path("a.csv"), EOFError())) == "a.csv cannot be read: EOFError"


def test_an_object_is_imported_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "mine_of_the_folder.py").write_text("answer = 42\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert import_object("function", "math:sqrt")(9) == 3
    assert import_object("value", "mine_of_the_folder:answer") == 42  # of the working directory


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module:x", "The model 'no_such_module:x' cannot be imported: No module named 'no_such_module'"),
        ("math:sqroot", "Unknown object 'sqroot' of module math. Did you mean 'sqrt'"),
        ("math", "Unknown object '' of module math."),
        (":name", "The model ':name' cannot be imported"),
        ("", "The model '' cannot be imported"),
        ("folder/nets.py:make", ". Did you mean 'folder.nets:make'?"),
        ("json:make", "It is an installed module, which hides json.py of this folder: rename that."),
        (".relative:name", "The model '.relative:name' cannot be imported"),
        ("broken_module_of_the_folder:x", "The model 'broken_module_of_the_folder:x' cannot be imported: SyntaxError"),
        ("failing_module_of_the_folder:x", "cannot be imported: RuntimeError: no licence key"),
    ],
)
def test_what_cannot_be_imported_is_refused(tmp_path, monkeypatch, path, message):
    (tmp_path / "broken_module_of_the_folder.py").write_text("def f(:\n")
    (tmp_path / "failing_module_of_the_folder.py").write_text("raise RuntimeError('no licence key')\n")
    (tmp_path / "json.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(UserError) as error:
        import_object("model", path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        ("naïve".encode("latin1"), "it is not UTF-8 (byte 0xef); convert it first, from Latin-1: iconv -f latin1"),
        ("a".encode("utf-16"), "it is not UTF-8 (byte 0xff); convert it first, from UTF-16: iconv -f utf-16 -t utf-8"),
        (b"PAR1\xff", "it is a Parquet file; its name must end with .parquet"),
        (b"\x1f\x8b\x08", "it is compressed by gzip; the name of such a table must end with .csv.gz or .tsv.gz"),
    ],
)
def test_the_advice_on_a_file_that_is_not_utf8_goes_by_its_first_bytes(tmp_path, content, advice):
    file = tmp_path / "file.csv"
    file.write_bytes(content)
    with pytest.raises(UnicodeDecodeError) as caught:
        file.read_text(encoding="utf-8")
    assert f"{file} cannot be read: {advice}" in str(unreadable(file, caught.value))


def test_a_tables_kind_is_told_by_its_name():
    names = ["a.csv", "b.x.TSV", "c.csv.gz", "d.Parquet", "e.parquet.gz", "f.gz", "g.json", "h", ".csv"]
    assert [table_kind(Path(name)) for name in names] == [".csv", ".tsv", ".csv", ".parquet", "", "", "", "", ""]


def test_a_file_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here.csv").touch()
    assert existing_file("~/here.csv") == tmp_path / "here.csv"
    with pytest.raises(UserError, match=r"There is no file ~/gone.csv\."):
        existing_file("~/gone.csv")
    with pytest.raises(UserError, match="is a folder; a file is needed"):
        existing_file(tmp_path)


def test_where_nobody_can_look_is_told():
    with pytest.raises(UserError, match=r"xxx\.csv cannot be looked at: File name too long"):
        user_path("x" * 300 + ".csv")
    with pytest.raises(UserError, match=r"~nobody-at-all/a\.csv cannot be looked at: Could not determine home"):
        existing_file("~nobody-at-all/a.csv")


def test_a_file_that_is_not_there_is_named_with_those_like_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "clicks.csv").touch()
    assert str(no_file("./phots", "file or folder")) == "There is no file or folder ./phots. Did you mean './photos'?"
    assert str(no_file("click.csv")) == "There is no file click.csv. Did you mean 'clicks.csv'?"
    assert str(no_file(tmp_path / "log.txt")) == f"There is no file {tmp_path}/log.txt."
    assert similar_files(f"{tmp_path}/photo") == [f"{tmp_path}/photos"]
    assert similar_files("./folder/nets.py:make") == ["folder.nets:make"]
    for nothing in ("", ".", "..", "/", "nowhere/photos", "clicks.csv/photos"):
        assert similar_files(nothing) == []


def test_a_table_with_another_separator_is_refused():
    with pytest.raises(UserError, match=r"a\.csv: columns are separated by ';', where ',' is needed"):
        check_separator("a.csv", ["user;item;label"], ",")
    with pytest.raises(UserError, match=r"a\.tsv: columns are separated by ',', where '.t' is needed"):
        check_separator("a.tsv", ["user,item,label"], "\t")
    check_separator("a.csv", ["label"], ",")
    check_separator("a.csv", ["a;b", "label"], ",")
