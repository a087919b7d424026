"""Random embeddings, and papers that have them."""

import numpy as np
from papers_made import made
from sqlalchemy import insert

from workingpapers.site.database import writing
from workingpapers.site.schema import embeddings
from workingpapers.site.search.encoder import DIMENSIONS, MODEL


def unit(rows):
    vectors = np.random.default_rng(rows).normal(size=(rows, DIMENSIONS))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def embed(engine, vectors, model=MODEL):
    with writing(engine) as connection:
        ids = made(connection, len(vectors))
        rows = [
            {"paper_id": number, "model": model, "digest": "", "vector": vector.tobytes()}
            for number, vector in zip(ids, vectors, strict=True)
        ]
        connection.execute(insert(embeddings), rows)
    return ids


def nearest(ids, vectors, query, count):
    """Return what all pairs say."""
    order = np.argsort(-(vectors.astype(np.float32) @ query), kind="stable")
    return [ids[place] for place in order[:count]]
