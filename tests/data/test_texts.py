"""Texts by name, from a file and from a function, and what is refused."""

import subprocess
import sys

import pytest

from workingpapers.data.datasets import DATASETS, load_dataset
from workingpapers.data.texts import TEXTS, load_text
from workingpapers.errors import UserError


@pytest.mark.parametrize("name", TEXTS)
def test_packaged_texts_hold_what_they_say(name):
    text, info = load_text(name), TEXTS[name]
    assert text.name == info.name == name
    assert info.here()
    assert all((info.title, info.source, info.licence))
    documents, characters = (float(w) for w in info.size.replace(",", "").split() if w[0].isdigit())
    assert len(text.documents) == pytest.approx(documents, rel=0.1)
    assert len(text.whole) / 1e6 == pytest.approx(characters, rel=0.1)
    assert load_text(name).fingerprint == text.fingerprint
    assert not set(TEXTS) & set(DATASETS)


def test_packaged_texts_differ():
    assert len({load_text(name).fingerprint for name in TEXTS}) == len(TEXTS)
    assert "def " in load_text("python-source").documents[0]
    assert any("assert" in document for document in load_text("python-docs").documents)


def test_a_file(tmp_path):
    file = tmp_path / "own.txt"
    file.write_text("Grüße\n\naus dem All", encoding="utf-8")
    text = load_text(str(file))
    assert text.documents == ("Grüße\n\naus dem All",)
    first = text.fingerprint
    file.write_text("Grüße\n\naus dem Tal", encoding="utf-8")
    assert load_text(str(file)).fingerprint != first
    file.write_text("Grüße\r\n\r\naus dem All", encoding="utf-8-sig", newline="")  # as editors on Windows save it
    assert load_text(str(file)).fingerprint == first


def test_a_function(tmp_path, monkeypatch):
    (tmp_path / "mytexts_here.py").write_text(
        "def one(): return 'a text'\n"
        "def many(): return ['a', ' ', 'text']\n"
        "def wrong(): return 3\n"
        "def fails(): return 1 / 0\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load_text("mytexts_here:one").documents == ("a text",)
    assert load_text("mytexts_here:many").whole == "a\n\ntext"
    assert load_text("mytexts_here:one").fingerprint != load_text("mytexts_here:many").fingerprint
    with pytest.raises(UserError, match="returned int; allowed: a str"):
        load_text("mytexts_here:wrong")
    with pytest.raises(UserError, match="raised ZeroDivisionError"):
        load_text("mytexts_here:fails")
    with pytest.raises(UserError, match="'one'"):
        load_text("mytexts_here:on")


def test_bad_input(tmp_path):
    (tmp_path / "bytes.txt").write_bytes(b"ab\xff")
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "picture.txt").write_bytes(b"\x89PNG\r\n\0\0\xff")
    (tmp_path / "zeros.txt").write_bytes(b"w\0o\0r\0d\0")
    (tmp_path / "windows.txt").write_bytes("word".encode("utf-16"))
    for name, message in {
        str(tmp_path / "bytes.txt"): r"it is not UTF-8 \(byte 0xff\)",
        str(tmp_path / "blank.txt"): "holds no text",
        str(tmp_path / "picture.txt"): "is not text: it holds zero bytes",
        str(tmp_path / "zeros.txt"): "is not text: it holds zero bytes",
        str(tmp_path / "windows.txt"): "convert it first, from UTF-16",
        str(tmp_path): "is a folder",
        "nowhere.txt": "There is no file nowhere.txt",
        "python-doc": "Did you mean 'python-docs'",
        "openmoji": "'openmoji' holds no text. These do: python-docs",
    }.items():
        with pytest.raises(UserError, match=message):
            load_text(name)


def test_a_text_is_no_labelled_data():
    with pytest.raises(UserError, match="'python-docs' is a text without labels; it serves the tasks long-context"):
        load_dataset("python-docs")


def test_importing_the_module_is_cheap():
    script = (
        "import sys, workingpapers.data.texts as t; [i.here() for i in t.TEXTS.values()]\n"
        "print(sorted({'numpy', 'torch', 'pydoc_data.topics'} & set(sys.modules)))\n"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"
