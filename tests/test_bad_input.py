"""Everything that a user may give and that cannot be used: one line that says what to do, exit code 2, nothing lost."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from workingpapers.cli import main
from workingpapers.papers import catalogue
from workingpapers.runs.store import Store


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """A cache, a store and a working directory of its own for every test."""
    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WORKINGPAPERS_STORE", str(tmp_path / "runs.sqlite"))
    monkeypatch.chdir(tmp_path)


def told(stderr):
    """Return what is told beside the remark that data and model are being prepared."""
    return [line for line in stderr.splitlines() if not line.startswith("Preparing ")]


def refused(*command):
    """Return the line with which a command is refused; nothing else may be printed, and no run is recorded."""
    result = CliRunner().invoke(main, [str(word) for word in command])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert not Path("runs.sqlite").exists()
    [line] = told(result.stderr)
    assert line.startswith("papers: ")
    return line.removeprefix("papers: ")


def probe(**options):
    """Return the command for a quick look at data with a model."""
    given = {"model": "pixels", "entries": "nearest-mean", "seeds": 1} | options
    if given.get("setting") == "novel-classes":  # it trains a network of its own
        given |= {"model": None, "entries": "softmax"}
    return [
        "try",
        "probe",
        *(word for name, value in given.items() if value is not None for word in (f"--{name}", value)),
    ]


def program(*command, **environment):
    """Run the program in a process of its own, as people do."""
    line = [sys.executable, "-c", "from workingpapers.cli import main; main(prog_name='papers')", *map(str, command)]
    return subprocess.run(line, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)


def make_folder(root, **classes):
    """Write a folder of images, some of each class."""
    rng = np.random.default_rng(0)
    for k, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(100 * k, 100 * k + 50, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:02d}.png")
    return root


def truncate(folder, count):
    for file in sorted(folder.rglob("*.png"))[:count]:
        file.write_bytes(file.read_bytes()[:100])


# Names


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["try", "prob"], "Unknown task 'prob'. Did you mean 'probe'?"),
        (["try", "nothing:task"], "The task 'nothing:task' cannot be imported: No module named 'nothing'."),
        (
            ["try", "probe", "--setting", "unseen"],
            "Unknown setting 'unseen' of task probe. Did you mean 'unseen-classes'?",
        ),
        (["try", "probe", "--entries", "logistic"], "Unknown entry 'logistic'. Did you mean 'logistic-regression'"),
        (["try", "probe", "--entries", "loki"], "Entry 'loki' takes part in unseen-classes, not in 'standard'."),
        (["show", "moment-probes"], "Unknown paper 'moment-probes'. Did you mean 'moment-probing'"),
        (["reproduce", "lokki"], "Unknown paper 'lokki'. Did you mean 'loki'"),
        (["reproduce"], "Name one or more papers, or --all"),
        (["reproduce", "--all", "moment-probing"], "Name papers or --all, not both"),
        (["leaderboard", "probes"], "Unknown task 'probes'. Did you mean 'probe'?"),
        (["leaderboard", "probe", "--setting", "standrad"], "Did you mean 'standard'?"),
        (probe(data="cifar"), "Unknown data set 'cifar'. Did you mean 'cifar10'"),
        (probe(data="./cifar"), "There is no file or folder ./cifar."),
        (probe(data="own.csv"), "There is no file or folder own.csv."),
        (probe(data="nothing:data"), "nothing:data"),
        (probe(data="digits", model="efficientnet"), "Unknown model 'efficientnet'. Did you mean 'efficientnet-lite0'"),
        (probe(data="digits", model="./vit"), "Model './vit': there is no such folder."),
        (probe(data="digits", model="nothing:net"), "nothing"),
        (probe(data="digits", seeds=0), "seeds is 0; it must be at least 1."),
        (probe(data="digits", seeds=-1), "seeds is -1; it must be at least 1."),
        (probe(data="digits", workers=0), "workers is 0"),
        (probe(data="digits", threads=-2), "threads is -2"),
        (probe(data="digits", timeout=0), "timeout is 0 s; it must be above 0."),
        (["report", "--output", "file/below"], "No runs in the store"),
        (["report", "--output", ""], "output is empty. Name a folder, or leave it out for the default."),
        (["rank-features", "own.csv"], "There is no file own.csv."),
        (probe(data="digits", label="species"), "label is 'species', but digits is no table: only tables have"),
        (["try", "ctr", "--label", "clicked"], "label is 'clicked', but movielens is no table"),
        (["try", "recommend", "--label", "clicked"], "label is 'clicked', but movielens is no table"),
    ],
    ids=str,
)
def test_unknown_names_and_numbers_out_of_range(command, message):
    assert message in refused(*command)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": "x"}, "Invalid value for '--seeds': 'x' is not a valid integer."),
        ({"budget": "half"}, "'half' is not one of 'quick', 'full'."),
        ({"timeout": "soon"}, "'soon' is not a valid float."),
        ({"seed": 3}, "--seeds"),
    ],
)
def test_what_is_no_option(options, message):
    result = CliRunner().invoke(main, list(map(str, probe(data="digits", **options))))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_metric():
    X = np.random.default_rng(0).normal(size=(30, 3))
    np.savez("own.npz", features=X, labels=np.arange(30) % 3)
    assert CliRunner().invoke(main, list(map(str, probe(data="own.npz")))).exit_code == 0
    result = CliRunner().invoke(main, ["leaderboard", "probe", "--metric", "acuracy"])
    assert result.exit_code == 2
    assert result.stdout == ""
    [line] = told(result.stderr)
    assert line == "papers: Unknown metric 'acuracy'. Did you mean 'accuracy'?"


@pytest.mark.slow
def test_debug_shows_where_an_error_comes_from():
    shown = program("--debug", *probe(data="nowhere.csv"))
    assert shown.returncode != 0
    assert "Traceback" in shown.stderr
    assert "There is no file or folder nowhere.csv." in shown.stderr


@pytest.mark.slow
def test_the_program_itself_prints_one_line():
    shown = program(*probe(data="nowhere.csv"))
    assert (shown.returncode, shown.stdout) == (2, "")
    assert told(shown.stderr) == ["papers: There is no file or folder nowhere.csv."]


# Folders


def test_an_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no folder of images. Allowed: FOLDER/class/*.jpg" in refused(*probe(data="empty"))


def test_a_class_without_images(tmp_path):
    make_folder(tmp_path / "some", cat=6, dog=6)
    (tmp_path / "some" / "cow").mkdir()
    assert "some/cow holds no images" in refused(*probe(data="some"))


def test_one_class(tmp_path):
    make_folder(tmp_path / "one", cat=10)
    assert refused(*probe(data="one")) == "one has one class only, 'cat'; at least two are needed."


@pytest.mark.parametrize("setting", ["standard", "label-efficiency", "novel-classes"])
def test_a_class_with_too_few_examples(tmp_path, setting):
    make_folder(tmp_path / "few", cat=10, dog=4)
    line = refused(*probe(data="few", setting=setting))
    assert "few: classes with fewer than 5 examples cannot be split" in line
    assert line.endswith("dog (4).")


def test_a_class_without_training_examples(tmp_path):
    make_folder(tmp_path / "parts" / "train", cat=6, dog=6)
    make_folder(tmp_path / "parts" / "test", cat=6, dog=6, cow=6)
    assert "classes without an example to train on: cow." in refused(*probe(data="parts"))


@pytest.mark.parametrize("setting", ["standard", "novel-classes"])
def test_a_few_truncated_images_are_skipped_with_a_count(tmp_path, setting):
    truncate(make_folder(tmp_path / "many", **{f"kind{k}": 20 for k in range(3)}), 3)
    result = CliRunner().invoke(main, list(map(str, probe(data="many", setting=setting))))
    assert "3 images were skipped: kind0/00.png: " in result.stderr
    assert "Traceback" not in result.output


def test_many_truncated_images_are_refused(tmp_path):
    truncate(make_folder(tmp_path / "many", cat=20, dog=20), 3)
    line = refused(*probe(data="many"))
    assert "3 of 40 images cannot be read, more than 5%; the first: cat/00.png: " in line


# Tables and arrays


def table(**columns):
    frame = pd.DataFrame({"a": np.arange(20.0), "b": np.arange(20.0) ** 2, "label": ["x", "y"] * 10}).assign(**columns)
    frame.to_csv("own.csv", index=False)
    frame.to_parquet("own.parquet")


@pytest.mark.parametrize("file", ["own.csv", "own.parquet"])
def test_a_label_column_that_does_not_exist(file):
    table()
    assert refused(*probe(data=file, label="lable")) == (
        f"{file} has no column 'lable' for the labels; nearest: 'label'. The option label names it."
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("file", ["own.csv", "own.parquet"])
def test_numbers_that_are_none(file, value):
    table(b=[value, value, *range(18)])
    assert refused(*probe(data=file)) == (
        "The features hold NaN or infinity: 2 values in 1 columns, most of them (2) in column 'b'."
    )


def test_a_column_that_is_neither_number_nor_image():
    table(b=["text"] * 20)
    assert "1 columns hold neither numbers nor images: 'b'." in refused(*probe(data="own.csv"))


def test_rows_without_label():
    table(label=["x", ""] * 10)
    assert "10 of 20 rows have no label in column 'label'." in refused(*probe(data="own.csv"))


def test_labels_that_are_quantities():
    table(label=np.arange(20) / 10)
    assert "labels are classes" in refused(*probe(data="own.parquet"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"features": np.zeros((20, 2)), "labels": np.arange(19) % 2}, "lengths differ: labels 19, features 20."),
        ({"features": np.zeros((20, 2)), "labels": np.arange(20) % 2, "part": ["train"] * 9}, "part 9"),
        ({"features": np.zeros((20, 2)), "labels": np.arange(20) % 2, "part": "train"}, "part has shape ()"),
        ({"features": np.zeros((20, 2)), "labels": np.arange(20) % 2, "part": [["train"]] * 20}, "shape (20, 1)"),
        ({"features": np.full((20, 2), np.nan), "labels": np.arange(20) % 2}, "NaN or infinity: 40 values"),
        ({"features": np.zeros((20, 2)), "labels": np.zeros(20)}, "one class only"),
        ({"features": np.zeros((0, 2)), "labels": np.zeros(0)}, "is empty"),
        ({"features": np.zeros(20), "labels": np.arange(20) % 2}, "allowed: (N, D) vectors or (N, L, D) tokens."),
        ({"features": np.zeros((20, 2))}, "holds no array 'labels' (or 'y'); it holds: features."),
        ({"features": np.zeros((20, 2)), "labels": np.array([1, None] * 10)}, "cannot be read as an .npz of plain"),
        ({"features": np.full((20, 2), -1e300), "labels": np.arange(20) % 2}, "hold ±1e+300"),
    ],
)
def test_arrays_that_do_not_fit(arrays, message):
    np.savez("own.npz", **arrays)
    assert message in refused(*probe(data="own.npz"))


@pytest.mark.parametrize("file", ["own.csv", "own.parquet", "own.npz"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff" * 50, b"PK\x03\x04 not really"])
def test_files_that_are_damaged(file, content):
    Path(file).write_bytes(content)
    said = refused(*probe(data=file))
    assert file in said
    assert said.endswith(": it is empty") == (not content)


def test_a_folder_and_arrays_have_no_column_of_labels():
    make_folder(Path("photos"), cats=1)
    np.savez("own.npz", features=np.zeros((20, 2)), labels=np.arange(20) % 2)
    for data in ("photos", "own.npz"):
        assert refused(*probe(data=data, label="kind")).startswith(f"label is 'kind', but {data} is no table")


def test_a_table_of_labels_alone():
    pd.DataFrame({"label": ["x", "y"] * 10}).to_csv("own.csv", index=False)
    assert refused(*probe(data="own.csv")) == "own.csv has no column beside the labels, 'label'."


def test_row_numbers_are_no_feature():
    pd.DataFrame({"a": np.arange(20.0), "label": ["x", "y"] * 10}).to_csv("own.csv")
    assert "own.csv has a column without a name. Row numbers" in refused(*probe(data="own.csv"))
    pd.read_csv("own.csv").to_csv("own.csv", index=False)  # read and written once more
    assert "own.csv has a column 'Unnamed: 0'. Row numbers" in refused(*probe(data="own.csv"))
    pd.read_csv("own.csv").to_parquet("own.parquet")
    assert "own.parquet has a column 'Unnamed: 0'. Row numbers" in refused(*probe(data="own.parquet"))


def test_a_single_array():
    np.save("own.npy", np.zeros(3))
    Path("own.npy").rename("own.npz")
    assert "it is the .npy of a single array" in refused(*probe(data="own.npz"))


def test_a_file_of_another_type():
    Path("own.txt").write_text("a, b\n")
    allowed = "a folder, .csv, .tsv (either also .gz), .parquet, .npz"
    assert refused(*probe(data="own.txt")) == f"own.txt is of type .txt; allowed: {allowed}."


# Code of one's own


@pytest.mark.parametrize("option", ["data", "model"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def make(:\n", "SyntaxError"),
        ("import no_such_package\n", "no_such_package"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("def mak():\n    pass\n", "Did you mean 'mak'"),
        ("def make():\n    raise KeyError('column')\n", "raised KeyError: 'column'"),
        ("def make():\n    return 3\n", "int"),
        ("raise SystemExit('usage')\n", "SystemExit: usage"),
        ("def make():\n    raise SystemExit(3)\n", "SystemExit: 3"),
    ],
)
def test_functions_that_fail(option, text, message):
    Path("broken.py").write_text(text)
    line = refused(*probe(**({"data": "digits"} | {option: "broken:make"})))
    assert message in line
    assert "broken" in line


def test_a_function_without_labels():
    Path("bare.py").write_text("import numpy\ndef make():\n    return numpy.zeros((20, 2)), None\n")
    assert refused(*probe(data="bare:make")) == "bare:make returned labels of shape (); they must be (N,)."


def test_a_folder_that_is_gone(tmp_path):
    command = "mkdir gone; cd gone; rmdir ../gone; exec {} -c {!r} try probe --data digits --model pixels".format(
        sys.executable, "from workingpapers.cli import main; main(prog_name='papers')"
    )
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 2
    assert told(done.stderr) == ["papers: the folder that you are in is gone. Change to another: cd"]


def test_a_network_that_cannot_take_images():
    Path("nets.py").write_text("from torch import nn\n\ndef flat():\n    return nn.Linear(7, 3)\n")
    assert "nets:flat" in refused(*probe(data="digits", model="nets:flat"))


def test_a_network_that_gives_no_numbers(tmp_path):
    make_folder(tmp_path / "some", cat=6, dog=6)
    Path("nets.py").write_text(
        "from torch import nn\n\nclass Nan(nn.Module):\n    image_size = 32\n"
        "    def forward(self, x):\n        return x[:, :, ::16, ::16] * float('nan')\n"
    )
    assert "Model 'nets:Nan' gives features that are not finite" in refused(*probe(data="some", model="nets:Nan"))


# The cache


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "some", cat=10, dog=10)


def test_a_cache_that_cannot_be_written(tmp_path, folder, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(tmp_path / "file" / "cache"))
    line = refused(*probe(data=folder))
    assert f"The cache {tmp_path}/file/cache" in line
    assert "is not writable" in line
    assert "Set WORKINGPAPERS_CACHE to another folder" in line


def test_a_full_cache(tmp_path, folder, monkeypatch):
    place = tmp_path / "small"
    place.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        monkeypatch.setenv("WORKINGPAPERS_CACHE", str(place))
        (place / "ballast").write_bytes(b"\0" * 48 * 1024)
        line = refused(*probe(data=folder))
        assert f"The cache {place}/" in line
        assert " is full (" in line
        assert not [file for file in place.rglob("*") if file.suffix == ".part"]
        (place / "ballast").unlink()
        assert CliRunner().invoke(main, list(map(str, probe(data=folder)))).exit_code == 0
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.slow
def test_corrupted_cache_entries_are_computed_again_with_a_warning(tmp_path, folder):
    before = CliRunner().invoke(main, list(map(str, probe(data=folder))))
    assert before.exit_code == 0
    files = [file for kind in ("features", "feature-shapes") for file in (tmp_path / "cache" / kind).glob("*.npy")]
    whole = [file.read_bytes() for file in files]
    for file, content in zip(files, whole, strict=True):
        file.write_bytes(content[:-8] + b"\x01" * 8)
    after = program(*probe(data=folder), "--force")
    assert after.returncode == 0
    assert len(files) == 2
    for file, content in zip(files, whole, strict=True):
        assert f"The cache entry {file} is damaged (its checksum does not match); it is computed again." in after.stderr
        assert file.read_bytes() == content
    assert "Traceback" not in after.stderr
    scores = [[line.split()[:4] for line in shown.stdout.splitlines()] for shown in (before, after)]
    assert scores[0] == scores[1]


# The store


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\x00" + b"\x01" * 3000])
@pytest.mark.parametrize(
    "command", [probe(data="digits"), ["leaderboard", "probe"], ["report"], ["list"], ["show", "loki"]], ids=str
)
def test_a_corrupted_store_is_refused_and_left_alone(command, content):
    Path("broken.sqlite").write_bytes(content)
    line = refused(*command, "--store", "broken.sqlite")
    assert "broken.sqlite" in line
    assert line.endswith("It was left as it is.")
    assert Path("broken.sqlite").read_bytes() == content


def test_a_store_that_lost_its_end_is_refused_and_left_alone():
    np.savez("own.npz", features=np.random.default_rng(0).normal(size=(30, 3)), labels=np.arange(30) % 3)
    for _ in range(3):
        assert (
            CliRunner().invoke(main, list(map(str, probe(data="own.npz", store="kept.sqlite", seeds=3)))).exit_code == 0
        )
    whole = Path("kept.sqlite").read_bytes()
    Path("kept.sqlite").write_bytes(whole[: len(whole) // 2])
    assert "kept.sqlite" in refused(*probe(data="own.npz", store="kept.sqlite"))
    assert Path("kept.sqlite").read_bytes() == whole[: len(whole) // 2]
    Path("kept.sqlite").write_bytes(whole)
    assert len(Store("kept.sqlite").runs()) == 6


# Elsewhere


def test_a_ray_address_that_does_not_answer():
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for given in (address, f"ray://{address}"):
        assert f"No Ray cluster answers at '{given}'" in refused(*probe(data="digits", ray=given))
    assert "Allowed: host:port" in refused(*probe(data="digits", ray="somewhere"))


@pytest.mark.parametrize("command", [["list"], ["search", "loki"], ["show", "loki"], ["reproduce", "loki"]], ids=str)
def test_a_card_with_an_unknown_topic(tmp_path, monkeypatch, command):
    cards = shutil.copytree(catalogue.CARDS, tmp_path / "cards")
    text = (cards / "loki.toml").read_text(encoding="utf-8")
    (cards / "loki.toml").write_text(text.replace('topics = ["', 'topics = ["compresion", "'), encoding="utf-8")
    monkeypatch.setattr(catalogue, "CARDS", cards)
    catalogue.load_catalogue.cache_clear()
    try:
        line = refused(*command)
    finally:
        monkeypatch.undo()
        catalogue.load_catalogue.cache_clear()
    assert line.startswith("Card loki.toml: topics: Unknown topic 'compresion'. Did you mean 'compression'")
