"""The user's own folders, tables, arrays and functions: what is read, and what every bad input is told."""

import io
import os
import shutil
import sys
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.sparse import csr_array

from workingpapers.data import images
from workingpapers.data.datasets import load_dataset
from workingpapers.data.features import extract, pooled
from workingpapers.data.images import Encoded, digest, inspect, read_image
from workingpapers.data.models import load_model
from workingpapers.data.own import keep
from workingpapers.errors import UserError

RED, GREEN, GREY = (255, 0, 0), (0, 128, 0), (77, 77, 77)


def picture(path, colour=RED, size=(6, 4), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        picture(tmp_path / "photos/cat" / f"{i}.png", (i, 0, 0))
        picture(tmp_path / "photos/dog/deeper" / f"{i}.JPG", (0, i, 0), format="JPEG")
    return tmp_path / "photos"


def test_names_that_are_no_text(folder):
    (folder / "dog").rename(folder / os.fsdecode(b"d\xf6g"))
    picture(folder / "cat" / os.fsdecode(b"\xe9t\xe9.png"), GREEN)
    data = load_dataset(folder)
    assert len(data) == 7
    assert data.class_names == ("cat", "d\udcf6g")


# Pictures


def test_exif_orientation_is_honoured():
    image = Image.new("RGB", (6, 4), "white")
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    array = read_image(encoded(image, exif=exif))
    assert array.shape == (6, 4, 3)
    assert tuple(array[0, 3]) == RED


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (Image.new("RGBA", (2, 2), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (0, 0, 0, 51)), (204, 204, 204)),  # a fifth of black on white
        (Image.new("LA", (2, 2), (10, 0)), (255, 255, 255)),
        (Image.new("L", (2, 2), 77), GREY),
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.new("RGB", (2, 2), GREEN).quantize(4), GREEN),
        (Image.fromarray(np.full((2, 2), 77 * 257, np.uint16)), GREY),
    ],
    ids=["transparent", "translucent", "grey-alpha", "grey", "bits", "palette", "16-bit"],
)
def test_every_mode_becomes_rgb(image, colour):
    array = read_image(encoded(image))
    assert array.dtype == np.uint8
    assert array.shape == (2, 2, 3)
    assert {tuple(pixel) for pixel in array.reshape(-1, 3).tolist()} == {colour}


def test_transparent_palette_lies_on_white():
    image = Image.new("P", (2, 2), 0)
    image.putpalette([0, 0, 0])
    assert (read_image(encoded(image, transparency=0)) == 255).all()


def test_cmyk_becomes_rgb():
    array = read_image(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(array.astype(int) - RED).max() <= 4  # JPEG is lossy


def test_floating_point_pictures_are_refused():
    with pytest.raises(ValueError, match="no fixed range"):
        read_image(encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"))


def test_the_sequence_reads_when_indexed(folder):
    files = sorted(folder.rglob("*.png"))
    images = Encoded(files)
    assert images[-1][0, 0, 0] == images[2][0, 0, 0] == 2
    assert [image[0, 0, 0] for image in images[1:]] == [1, 2]
    assert len(list(images)) == 3
    with pytest.raises(IndexError):
        images[3]
    files[0].unlink()
    with pytest.raises(FileNotFoundError):
        images[0]


@pytest.mark.parametrize(("total", "broken", "fine"), [(3, 1, True), (3, 2, False), (40, 2, True), (40, 3, False)])
def test_five_percent_or_one_may_be_unreadable(total, broken, fine):
    good = encoded(Image.new("RGB", (2, 2)))
    sources = [good[:40]] * broken + [good] * (total - broken)
    names = [str(i) for i in range(total)]
    if fine:
        seen, skipped = inspect(sources, names)
        assert seen.count(None) == len(skipped) == broken
    else:
        with pytest.raises(UserError, match=f"{broken} of {total} images cannot be read, more than 5%; the first: 0:"):
            inspect(sources, names)


def test_digests_tell_arrays_apart():
    arrays = [np.zeros(4, np.uint8), np.zeros((2, 2), np.uint8), np.zeros(1, np.uint32), np.array(["a", "b"])]
    assert len({digest(a) for a in arrays} | {digest("ab"), digest("a", "b"), digest()}) == 7


# Folders


def test_image_folder(folder):
    data = load_dataset(str(folder))
    assert data.class_names == ("cat", "dog")
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.images[2].tolist()[0][0] == [2, 0, 0]
    assert data.part is data.features is data.masks is None
    assert data.skipped == ()


def test_the_fingerprint_follows_names_and_contents_alone(folder, tmp_path):
    first = load_dataset(str(folder)).fingerprint
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    assert load_dataset(str(copy)).fingerprint == first
    (copy / "cat/0.png").rename(copy / "cat/00.png")
    renamed = load_dataset(str(copy)).fingerprint
    picture(copy / "cat/1.png", GREEN)
    changed = load_dataset(str(copy)).fingerprint
    (copy / "cat/2.png").rename(copy / "dog/2.png")
    assert len({first, renamed, changed, load_dataset(str(copy)).fingerprint}) == 4


def test_train_and_test_folders_are_parts(folder, tmp_path):
    for part in ("train", "test"):
        shutil.copytree(folder, tmp_path / "split" / part)
    data = load_dataset(str(tmp_path / "split"))
    assert data.class_names == ("cat", "dog")
    assert (data.part == "test").sum() == 6
    assert load_dataset(str(folder)).fingerprint != data.fingerprint


@pytest.mark.parametrize("names", [("Train", "Test"), ("Training", "Testing"), ("TRAIN", "test")])
def test_folders_of_parts_are_known_whatever_their_case(folder, tmp_path, names):
    """As two classes, "Train" and "Test", they would make a board of nonsense."""
    for name in names:
        shutil.copytree(folder, tmp_path / "split" / name)
    picture(tmp_path / "split/val/cat/0.png")
    data = load_dataset(str(tmp_path / "split"))
    assert data.class_names == ("cat", "dog")
    assert data.part.tolist() == ["train", "train", "train", "test", "test", "test"] * 2
    assert data.remarks == ("Not used, since neither to train nor to test on: split/val.",)
    shutil.rmtree(tmp_path / "split" / names[1])
    with pytest.raises(UserError, match=f"{names[0]!r} but no folder 'test' .* If 'val' is what to test on, rename it"):
        load_dataset(str(tmp_path / "split"))


def test_a_class_may_be_called_training(folder):
    (folder / "cat").rename(folder / "Training")
    assert load_dataset(str(folder)).class_names == ("Training", "dog")


def test_an_unreadable_image_is_skipped_and_named(folder):
    (folder / "cat/1.png").write_bytes((folder / "cat/1.png").read_bytes()[:40])
    data = load_dataset(str(folder))
    assert len(data) == len(data.images) == 5
    assert len(data.skipped) == 1
    assert data.skipped[0].startswith("cat/1.png: ")


def test_hidden_files_and_other_files_are_left_alone(folder):
    (folder / "cat/notes.txt").write_text("")
    (folder / "cat/._0.png").write_text("")
    (folder / ".cache").mkdir()
    picture(folder / "cat/.thumbnails/0.png")
    (folder / "__MACOSX/cat").mkdir(parents=True)
    assert len(load_dataset(str(folder))) == 6


def make_empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def make_flat(folder):
    make_empty(folder)
    picture(folder / "0.png")


def make_one_class(folder):
    shutil.rmtree(folder / "dog")


def make_hollow(folder):
    (folder / "bird").mkdir()


def make_half_split(folder):
    (folder / "cat").rename(folder / "train")


def make_two_of_a_part(folder):
    for part in ("train", "Training", "test"):
        shutil.copytree(folder / "cat", folder / part / "cat")


def lose_a_class(folder):
    picture(folder / "bird/0.png").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (make_empty, r"holds no folder of images. Allowed: FOLDER/class"),
        (make_flat, r"holds no folder of images"),
        (make_one_class, r"one class only, 'cat'; at least two"),
        (make_hollow, r"bird holds no images \(.bmp"),
        (make_half_split, r"has a folder 'train' but no folder 'test'"),
        (make_two_of_a_part, r"has folders \['Training', 'train'\], which are one part twice"),
        (lose_a_class, r"no image of class 'bird' can be read; the first: bird/0.png: "),
    ],
)
def test_bad_folders_are_explained(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message):
        load_dataset(str(folder))


def test_folders_that_may_not_be_read_are_named(folder, monkeypatch):
    walk = os.walk

    def locked(place, onerror):
        onerror(PermissionError(13, "Permission denied", str(place)))
        return walk(place)

    monkeypatch.setattr(os, "walk", locked)
    with pytest.raises(UserError, match=r"photos/cat cannot be read: .*Permission denied"):
        load_dataset(folder)


# MVTec's layout


@pytest.fixture
def mvtec(tmp_path):
    root = tmp_path / "bottle"
    for i in range(3):
        picture(root / "train/good" / f"{i}.png", (i, 0, 0))
    picture(root / "test/good/0.png", GREY)
    picture(root / "test/crack/0.png", GREEN)
    picture(root / "test/dirt/7.png", GREEN)
    for kind, stem in (("crack", "0"), ("dirt", "7")):
        mask = Image.new("L", (6, 4))
        mask.putpixel((5, 1), 255)
        (root / "ground_truth" / kind).mkdir(parents=True)
        mask.save(root / "ground_truth" / kind / f"{stem}_mask.png")
    return root


def test_mvtec_folder(mvtec):
    data = load_dataset(str(mvtec))
    assert data.class_names == ("normal", "anomalous")
    assert data.part.tolist() == ["train"] * 3 + ["test"] * 3
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 0]
    assert [mask.sum() for mask in data.masks] == [0, 0, 0, 1, 1, 0]
    assert data.masks[3][1, 5]
    assert all(mask.shape == (4, 6) and mask.dtype == bool for mask in data.masks)


def test_mvtec_masks_count_in_the_fingerprint(mvtec):
    first = load_dataset(str(mvtec)).fingerprint
    Image.new("L", (6, 4), 255).save(mvtec / "ground_truth/crack/0_mask.png")
    assert load_dataset(str(mvtec)).fingerprint != first
    shutil.rmtree(mvtec / "ground_truth")
    assert load_dataset(str(mvtec)).masks is None


def test_transparent_pixels_of_masks_are_black_and_small_numbers_of_16_bits_are_not(mvtec):
    drawn = Image.new("RGBA", (6, 4), (255, 255, 255, 0))
    drawn.putpixel((1, 2), (255, 255, 255, 255))
    deep = np.zeros((4, 6), np.uint16)
    deep[2, 1] = 1
    for made in (drawn, Image.fromarray(deep)):
        made.save(mvtec / "ground_truth/crack/0_mask.png")
        assert load_dataset(mvtec).masks[3].nonzero() == (2, 1)


def test_mvtec_skips_an_image_with_its_mask(mvtec):
    (mvtec / "test/crack/0.png").write_bytes(b"")
    data = load_dataset(str(mvtec))
    assert [mask.sum() for mask in data.masks] == [0, 0, 0, 1, 0]
    assert len(data.skipped) == 1


def test_bad_masks_are_named(mvtec):
    mask = mvtec / "ground_truth/dirt/7_mask.png"
    picture(mask, size=(9, 9))
    with pytest.raises(UserError, match=r"7_mask.png is 9 x 9 pixels, its image 4 x 6"):
        load_dataset(str(mvtec))
    mask.write_bytes(b"")
    with pytest.raises(UserError, match=r"1 of 2 masks cannot be read.*7_mask.png"):
        load_dataset(str(mvtec))
    mask.unlink()
    with pytest.raises(UserError, match=r"1 of 2 masks are missing; the first: .*7_mask.png"):
        load_dataset(str(mvtec))


# Tables


def frame():
    return pd.DataFrame({"a": [1.0, 2, 3, 4], "b": [1, 0, 1, 0], "label": ["x", "y", "x", "y"]})


def save(table, path):
    (table.to_parquet if path.suffix == ".parquet" else table.to_csv)(path, index=False)
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_numeric_columns_are_features(tmp_path, suffix):
    data = load_dataset(save(frame(), tmp_path / f"t{suffix}"))
    np.testing.assert_array_equal(data.features, frame()[["a", "b"]])
    assert data.class_names == ("x", "y")
    assert data.labels.tolist() == [0, 1, 0, 1]
    assert data.part is None


@pytest.mark.parametrize("name", ["t.tsv", "t.csv.gz", "t.TSV.gz"])
def test_tables_of_text_may_have_tabs_and_be_compressed(tmp_path, name):
    frame().to_csv(tmp_path / name, sep="\t" if "tsv" in name.lower() else ",", index=False)
    found = load_dataset(tmp_path / name)
    assert found.fingerprint == load_dataset(save(frame(), tmp_path / "t.csv")).fingerprint
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"There is no file or folder .*{name}"):
        load_dataset(tmp_path / name)


def test_rows_that_a_quote_swallows_are_not_lost_in_silence(tmp_path):
    (tmp_path / "t.tsv").write_text('a\tlabel\n1\tx\n2\t"x\n3\ty\n4\t"y\n5\ty\n')
    with pytest.raises(UserError, match=r"'label' holds .* in row 1, over several lines and columns: a quote opens"):
        load_dataset(tmp_path / "t.tsv")
    table = pd.DataFrame({"a": range(4), "label": ["x\ty", "x\nz"] * 2})  # quoted as it should be
    table.to_csv(tmp_path / "t.tsv", sep="\t", index=False)
    assert load_dataset(tmp_path / "t.tsv").class_names == ("x\ty", "x\nz")


def test_parquet_columns_are_known_by_their_names(tmp_path):
    frame()[["a", "label"]].set_axis([5, 7], axis=1).to_parquet(tmp_path / "t.parquet")
    assert len(load_dataset(tmp_path / "t.parquet", label="7")) == 4
    pq.write_table(pa.table([[1, 2], [3, 4], ["x", "y"]], ["a", "a", "label"]), tmp_path / "twice.parquet")
    with pytest.raises(UserError, match=r"has columns \['a'\] more than once"):
        load_dataset(tmp_path / "twice.parquet")


def test_csv_and_parquet_of_one_table_have_one_fingerprint(tmp_path):
    prints = {load_dataset(save(frame(), tmp_path / f"t{s}")).fingerprint for s in (".csv", ".parquet")}
    prints.add(load_dataset(save(frame().assign(a=0), tmp_path / "u.csv")).fingerprint)
    assert len(prints) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a;b;label\n1;2;x\n3;4;y\n", r"t.csv: columns are separated by ';'"),
        (b"a,a,label\n1,2,x\n3,4,y\n", r"columns \['a'\] more than once"),
        (b"a,label\n1,2,x\n3,4,y\n", r"more values than the header has names \(2\)"),
        ("a,label\n1,\xe9\n2,x\n".encode("latin1"), r"not UTF-8 \(byte 0xe9\)"),
    ],
)
def test_a_csv_file_that_pandas_would_misread_is_refused(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_dataset(str(tmp_path / "t.csv"))


def test_label_and_part_columns(tmp_path):
    table = frame().rename(columns={"label": "kind"}).assign(part=["train", "train", "test", "test"])
    data = load_dataset(save(table, tmp_path / "t.csv"), label="kind")
    assert data.features.shape == (4, 2)
    assert data.part.tolist() == ["train", "train", "test", "test"]


def test_labels_that_pandas_would_take_for_missing_or_numbers(tmp_path):
    table = frame().assign(label=["NA", "None", "NA", "007"])
    assert load_dataset(save(table, tmp_path / "t.csv")).class_names == ("007", "NA", "None")
    table = frame().assign(label=[10, 9, 10, 9])
    assert load_dataset(save(table, tmp_path / "t.csv")).class_names == ("9", "10")


def image_tables(folder):
    paths = [str(p.relative_to(folder)) for p in sorted(folder.rglob("*.png"))]
    data = [(folder / p).read_bytes() for p in paths]
    yield "paths", paths
    yield "bytes", data
    yield "structs", [{"bytes": d, "path": None} for d in data]


def test_one_image_column(folder):
    found = {}
    for kind, column in image_tables(folder):
        table = pd.DataFrame({"image": column, "width": [1, 2, 3], "label": [1, 0, 1]})
        data = load_dataset(save(table, folder / f"{kind}.parquet"))
        assert data.features is None
        assert [image[0, 0, 0] for image in data.images] == [0, 1, 2]
        assert data.class_names == ("0", "1")
        found[kind] = data.fingerprint
    assert len(set(found.values())) == 1


def test_a_missing_image_is_skipped_with_its_row(folder):
    table = pd.DataFrame({"file": ["cat/0.png", "cat/9.png", "cat/2.png"], "label": ["u", "u", "v"]})
    data = load_dataset(save(table, folder / "t.csv"))
    assert data.labels.tolist() == [0, 1]
    assert data.images[1][0, 0, 0] == 2
    assert "9.png: FileNotFoundError" in data.skipped[0]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (frame().rename(columns={"label": "labels"}), r"no column 'label' for the labels; nearest: 'labels'"),
        (
            frame().rename(columns={"label": "kind"}),
            r"no column 'label' for the labels; it has: 'a', 'b', 'kind'\. The",
        ),
        (
            pd.DataFrame(np.eye(14), columns=[f"v{i}" for i in range(13)] + ["kind"]),
            r"it has: 'v0', 'v1', 'v2', 'v3', 'v4', \.\.\., 'v10', 'v11', 'v12', 'kind'\. The",
        ),
        (frame().assign(label=["x", None, "x", None]), r"2 of 4 rows have no label in column 'label'"),
        (frame().assign(a=[1, np.nan, np.inf, 2]), r"NaN or infinity: 2 values in 1 columns.*\(2\) in column 'a'"),
        (
            frame().assign(city=["1", None, "1,5", "p"], town="q"),
            r"2 columns hold neither numbers nor images: 'city', 'town'\. The first holds '1,5' in row 2\.",
        ),
        (frame().assign(u=["1.png"] * 4, v=["2.png"] * 4), r"several image columns \(u, v\)"),
        (frame().assign(label="x"), r"one class only, 'x'"),
        (frame().assign(label=[0.5, 1.25, 2, 3]), r"labels hold 0.5, which is not a whole number"),
        (frame().assign(part=["train"] * 3 + ["valid"]), r"part holds 'valid'; allowed: 'train', 'test'"),
        (frame().assign(part=["train"] * 3 + [None]), r"part holds ''; allowed: 'train', 'test'"),
        (frame().assign(part="test"), r"every example is of part 'test'"),
        (frame()[["label"]], "no column beside the labels"),
        (frame()[:0], r"holds no rows"),
        (frame().assign(a="1.png"), r"4 of 4 images cannot be read"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_bad_tables_are_explained(tmp_path, table, message, suffix):
    with pytest.raises(UserError, match=message):
        load_dataset(save(table, tmp_path / f"t{suffix}"))


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.npz"])
@pytest.mark.parametrize("content", [b"", b"\x00\xffPK\x03\x04 no table"])
def test_files_that_are_something_else(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} (cannot be read|has no column|is damaged)"):
        load_dataset(str(tmp_path / name))


# Arrays


def arrays(**changes):
    rng = np.random.default_rng(0)
    return {"features": rng.normal(size=(6, 3)).astype(np.float32), "labels": np.arange(6) % 2} | changes


def saved(tmp_path, content):
    np.savez(tmp_path / "t.npz", **content)
    return str(tmp_path / "t.npz")


def test_npz(tmp_path):
    data = load_dataset(saved(tmp_path, arrays(class_names=["p", "q"], part=np.repeat(["train", "test"], 3))))
    np.testing.assert_array_equal(data.features, arrays()["features"])
    assert data.features.dtype == np.float32
    assert data.class_names == ("p", "q")
    assert data.part.tolist() == ["train"] * 3 + ["test"] * 3


def test_npz_by_scikit_learn_s_names_and_with_tokens(tmp_path):
    data = load_dataset(saved(tmp_path, {"X": np.zeros((4, 2, 3), int), "y": np.array(["b", "a", "b", "a"])}))
    assert data.features.shape == (4, 2, 3)
    assert data.features.dtype == np.float64
    assert data.labels.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.arange(5) % 2}, "lengths differ: labels 5, features 6"),
        ({"part": np.repeat(["train", "test"], 2)}, "lengths differ: labels 6, features 6, part 4"),
        ({"labels": np.zeros(6, int)}, "one class only"),
        ({"labels": np.zeros((6, 2), int)}, r"labels have shape \(6, 2\)"),
        ({"labels": np.array([0, 1, np.nan, 1, 0, np.nan])}, "2 of 6 labels are missing"),
        ({"features": np.zeros(6)}, r"shape \(6,\); allowed: \(N, D\)"),
        ({"features": np.zeros((6, 2, 2, 2))}, r"shape \(6, 2, 2, 2\); allowed"),
        ({"features": np.full((6, 3), np.nan)}, "NaN or infinity: 18 values in 3 columns"),
        ({"features": np.array([["a"]] * 6)}, "must be numbers"),
        ({"features": np.full((6, 3), -9.96e36)}, r"hold ±9.96e\+36; allowed: up to 1e\+18"),
        ({"features": np.array([[None]] * 6)}, "plain arrays: it holds Python objects"),
        ({"labels": np.array(["a", "b"] * 3, dtype=object)}, r"labels=y\.astype\(str\)"),
        ({"features": np.zeros((0, 3)), "labels": np.zeros(0, int)}, "is empty"),
        ({"class_names": ["only"]}, "labels reach from 0 to 1, but 1 class names"),
        ({"class_names": ["p", "q"], "labels": np.arange(6) - 1}, "labels reach from -1 to 4"),
        ({"class_names": ["p", "q"], "labels": np.zeros(6)}, "must be .* whole numbers"),
    ],
)
def test_bad_arrays_are_explained(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        load_dataset(saved(tmp_path, arrays(**changes)))


def test_arrays_that_nobody_asked_for_are_not_read(tmp_path):
    assert len(load_dataset(saved(tmp_path, arrays(files=np.array([None] * 6))))) == 6


def test_half_precision_gives_no_warning(tmp_path):
    with warnings.catch_warnings(action="error"):
        load_dataset(saved(tmp_path, arrays(features=np.ones((6, 2), np.float16))))


def test_npz_without_the_arrays(tmp_path):
    with pytest.raises(UserError, match=r"no array 'features' \(or 'X'\); it holds: Z"):
        load_dataset(saved(tmp_path, {"Z": np.zeros(3)}))


# Functions

MODULE = """
import numpy as np
from workingpapers.data.types import LabelledData
y = ["b", "a", "b"]
number = 3
def features(): return np.arange(6.0).reshape(3, 2), y
def pixels(): return np.zeros((3, 5, 4), np.uint8), y
def images(): return [np.full((i + 2, 4, 3), i, np.uint8) for i in range(3)], y
def whole(): return LabelledData(name="", fingerprint="", labels=np.array([0, 1]), class_names=("a", "b"),
                                 features=np.eye(2))
def floats(): return [np.zeros((4, 4, 3))] * 3, y
def scaled(): return np.zeros((3, 4, 4, 3)), y
def lazy(): return (row for row in np.eye(3)), y
def ragged(): return [[1.0], [1.0, 2.0], [3.0]], y
def nothing(): return None
def listed(): return LabelledData(name="", fingerprint="", labels=[0, 1, 0], class_names=["a", "b"],
                                  features=[[1.0], [2.0], [3.0]], part=["train", "train", "test"])
def neither(): return LabelledData(name="", fingerprint="", labels=np.array([0, 1]), class_names=("a", "b"))
def broken(): raise KeyError("photos")
def unlabelled(): return np.eye(3), ["a", None, "b"]
def mixed(): return [np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)], ["a", "b"]
def trained():
    import torch
    return torch.eye(3, requires_grad=True), y
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "own_module.py").write_text(MODULE)
    (tmp_path / "own_broken.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)  # the folder where the user is counts
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("own_module", None)


@pytest.mark.usefixtures("module")
def test_functions():
    assert load_dataset("own_module:features").features.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert load_dataset("own_module:features").labels.tolist() == [1, 0, 1]
    assert load_dataset("own_module:pixels").images[0].shape == (5, 4, 3)
    assert [image.shape[0] for image in load_dataset("own_module:images").images] == [2, 3, 4]
    listed = load_dataset("own_module:listed")
    assert (listed.labels.tolist(), listed.part.tolist(), listed.class_names) == (
        [0, 1, 0],
        ["train", "train", "test"],
        ("a", "b"),
    )
    whole = load_dataset("own_module:whole")
    assert whole.name == "own_module:whole"
    assert len(whole.fingerprint) == 64


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_module:feature", "Unknown object 'feature' of module own_module. Did you mean 'features'"),
        ("own_module:number", "own_module:number is a int; it must be a function"),
        ("own_modul:features", "'own_modul:features' cannot be imported: No module named 'own_modul'"),
        ("own_broken:features", "'own_broken:features' cannot be imported: ZeroDivisionError"),
        ("own_module:broken", "own_module:broken raised KeyError: 'photos'"),
        ("own_module:unlabelled", "returned labels that are no array: 1 of 3 values are missing"),
        ("own_module:mixed", r"an image is uint8 \(4, 4\); images must be"),
        ("own_module:trained", "returned what is no array: .*requires grad"),
        ("own_module:nothing", "returned NoneType; allowed: LabelledData, or a pair"),
        ("own_module:neither", "must hold images or features"),
        ("own_module:floats", r"an image is float64 \(4, 4, 3\); images must be uint8"),
        ("own_module:scaled", r"returned float64 \(3, 4, 4, 3\); allowed: images, uint8 \(N, H, W\)"),
        ("own_module:lazy", "returned what is no array: it is a generator"),
        ("own_module:ragged", "own_module:ragged returned what is no array: .*inhomogeneous shape"),
    ],
)
def test_bad_functions_are_explained(name, message):
    with pytest.raises(UserError, match=message):
        load_dataset(name)


def test_kept_arrays_are_a_data_set_by_path(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(tmp_path))
    X, y = np.arange(12.0).reshape(6, 2), ["a", "b"] * 3
    path = keep(X, y)
    data = load_dataset(path)
    np.testing.assert_array_equal(data.features, X)
    assert [data.class_names[label] for label in data.labels] == y
    assert keep(X, y) == path
    assert keep(X + 1, y) != path
    with pytest.raises(UserError, match=r"NaN|finite"):
        keep(np.where(X > 5, np.nan, X), y)
    assert [file.suffix for file in (tmp_path / "own").iterdir()] == [".npz", ".npz"], "nothing half-written is left"


@pytest.mark.parametrize(
    "labels", [pd.Series(["a", "b"] * 3), pd.Categorical(["a", "b"] * 3), np.array(["a", "b"] * 3, dtype=object)]
)
def test_keep_takes_the_objects_of_pandas(tmp_path, monkeypatch, labels):
    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(tmp_path))
    X = pd.DataFrame(np.arange(12.0).reshape(6, 2))
    assert keep(X.astype(object), labels) == keep(X.to_numpy(), ["a", "b"] * 3)
    assert keep(X.astype("float64[pyarrow]"), labels) == keep(X, np.array(labels, dtype=np.dtypes.StringDType()))
    twice = X.set_axis(["a", "a"], axis=1).set_index(pd.date_range("2020", periods=6))  # other rows than the labels'
    assert keep(twice.astype({"a": "Float64"}), labels) == keep(X, labels)


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        ([[1.0], ["word"]], pd.Series(["a", "b"]), "must be numbers"),
        (pd.DataFrame({"x": [1.0, "word"]}), ["a", "b"], "features cannot be kept as an array: in column 'x' could"),
        (pd.DataFrame({"x": [1, 2], "t": pd.to_datetime(["2020", "2021"])}), ["a", "b"], "in column 't' it is of type"),
        (np.ma.masked_array([[1.0], [2.0]], [[False], [True]]), ["a", "b"], "1 of 2 values are missing"),
        (csr_array(np.eye(2)), ["a", "b"], r"it is sparse; \.toarray\(\) makes it a plain one"),
        (torch.eye(2, requires_grad=True), ["a", "b"], "requires grad"),
        ("features.npy", ["a", "b"], "The features cannot be kept as an array: it is a str."),
        (np.zeros((2, 4, 4), np.uint8), ["a", "b"], r"uint8 \(2, 4, 4\), which are images"),
        (pd.DataFrame({"x": [1, 2]}, index=[1, 0]), pd.Series(["a", "b"]), "rows in another order"),
        ([[1.0], [2.0, 3.0]], ["a", "b"], "The features cannot be kept as an array: .*inhomogeneous"),
        ([[1.0], [2.0]], ["a", None], "The labels cannot be kept as an array: 1 of 2 values are missing."),
        ([[1.0], [2.0]], [["a"], ["b"]], r"^the given data: labels have shape \(2, 1\)"),
    ],
)
def test_keep_refuses_what_are_no_arrays(tmp_path, monkeypatch, features, labels, message):
    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=message):
        keep(features, labels)


def test_a_path_may_be_a_path(tmp_path):
    np.savez(tmp_path / "own.npz", features=np.zeros((4, 2)), labels=[0, 1, 0, 1])
    assert load_dataset(tmp_path / "own.npz").name == str(tmp_path / "own.npz")


def test_a_broken_image_is_told_without_addresses_in_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "0.png").write_bytes(b"no image")
    assert inspect([tmp_path / "0.png"], ["0.png"])[1] == ["0.png: UnidentifiedImageError: not an image"]


def test_a_folder_that_takes_long_to_look_at_says_how_far_it_is(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich draws bars on terminals only
    monkeypatch.setattr("workingpapers.progress.PATIENCE", -1.0)
    load_dataset(str(folder))
    assert "looking at the images" in capsys.readouterr().err
    load_dataset(str(folder))
    assert capsys.readouterr().err == ""  # what was looked at is known


def test_a_large_image_is_read_without_a_warning(tmp_path, monkeypatch):
    """As maps and microscopes' pictures are; Pillow's limit is lowered, as a large one takes a second to decode."""
    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for name, side in (("a", 12), ("b", 8)):
        picture(tmp_path / "photos" / name / "0.png", size=(side, side))
    with warnings.catch_warnings(action="error"):
        data = load_dataset(str(tmp_path / "photos"))
        assert extract(data, load_model("pixels"), pooled(16)).shape == (2, 768)
    picture(tmp_path / "photos/b/1.png", size=(16, 16))
    assert "DecompressionBombError" in load_dataset(str(tmp_path / "photos")).skipped[0]


def test_images_are_decoded_once_and_again_when_they_change(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(tmp_path / "cache"))
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "photos" / name / f"{i}.png")
    decoded = []
    decode = images._decoded
    monkeypatch.setattr(images, "_decoded", lambda data: decoded.append(1) or decode(data))
    first = load_dataset(str(tmp_path / "photos"))
    once = len(decoded)
    assert once >= 6
    assert load_dataset(str(tmp_path / "photos")).fingerprint == first.fingerprint
    assert len(decoded) <= once + 1, "known again by path, size and time; only the first is looked at"
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "photos" / "a" / "0.png")
    assert load_dataset(str(tmp_path / "photos")).fingerprint != first.fingerprint
    (note,) = [f for f in (tmp_path / "cache" / "inspected").iterdir() if f.stat().st_mtime_ns][:1]
    note.write_text("{")
    assert load_dataset(str(tmp_path / "photos")).labels.tolist() == first.labels.tolist(), (
        "a damaged note is made anew"
    )
