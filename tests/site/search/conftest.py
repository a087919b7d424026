"""Databases with every kind of index, an encoder that needs no model, and papers to search."""

import zlib

import numpy as np
import pytest
from papers_made import made

from workingpapers.site.database import open_database, writing
from workingpapers.site.search.encoder import DIMENSIONS
from workingpapers.site.search.query import split, stem
from workingpapers.site.settings import Settings


@pytest.fixture(params=["sqlite", "postgresql", "pgvector"])
def database(request, tmp_path):
    """An empty database of the page; a test that takes it runs on SQLite, and PostgreSQL without and with pgvector."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/site.sqlite"
    else:
        makers = {"postgresql": "postgres_database", "pgvector": "pgvector_database"}
        url = request.getfixturevalue(makers[request.param])()
    engine = open_database(url)
    yield engine
    engine.dispose()


SYNONYMS = {"picture": "image", "forecast": "predict"}


class WordEncoder:
    """Embeds a text as the sum of one random vector for each stem; synonyms have the same."""

    def encode(self, texts):
        rows = [sum((self._vector(word) for word in split(text)), np.full(DIMENSIONS, 1e-3)) for text in texts]
        return np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32)

    @staticmethod
    def _vector(word):
        name = SYNONYMS.get(stem(word), stem(word))
        return np.random.default_rng(zlib.crc32(name.encode())).normal(size=DIMENSIONS)


@pytest.fixture
def word_encoder():
    return WordEncoder()


@pytest.fixture
def settings_for():
    """Make settings for an engine."""

    def make(engine, **changes):
        url = engine.url.render_as_string(hide_password=False)
        return Settings(**{"database": url, "secret": "s" * 32, "embeddings": False} | changes)

    return make


PAPERS = {
    "attention": {
        "title": "Sparse attention for long context",
        "abstract": "Attention <b>costs</b> less.",
        "year": 2020,
    },
    "graphs": {"title": "Graph neural networks", "abstract": "Message passing on graphs of people.", "year": 2021},
    "image": {"title": "Image segmentation", "abstract": "Segmenting an image with few labels.", "year": 2022},
    "robots": {"title": "Robots that learn to walk", "abstract": "Walking robots learned a policy.", "year": 2023},
}


@pytest.fixture
def shelf():
    """Insert the papers above and return their ids by name."""

    def fill(engine):
        with writing(engine) as connection:
            return {name: made(connection, 1, venue="ICML", **values)[0] for name, values in PAPERS.items()}

    return fill
