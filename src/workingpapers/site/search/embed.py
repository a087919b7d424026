"""The worker that embeds papers: each once, resumable at any moment."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Engine, and_, func, select

from workingpapers.site.database import inserting, writing
from workingpapers.site.schema import embeddings, papers
from workingpapers.site.search.encoder import MODEL, Encoder, digest, embedded_text, make_encoder

AT_ONCE = 256  # papers per commit: some seconds of work, all that a kill can cost

_JOINED = papers.outerjoin(embeddings, and_(embeddings.c.paper_id == papers.c.id, embeddings.c.model == MODEL))
_MISSING = embeddings.c.paper_id.is_(None)


def embed_missing(
    engine: Engine,
    encoder: Encoder | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Embed every paper that has no embedding, then bring the vector index up to date; return how many there were.

    Papers are embedded by title and abstract. A change of either has removed the embedding (`fulltext.ensure`), so
    that it is made again here. What was committed stays when the worker is stopped; the next call goes on from there.

    Args:
        engine: of the page's database.
        encoder: to embed with; None takes the cached one, exported first where it is missing.
        progress: called after each commit with the number of papers done and that of all to do.

    Raises:
        UserError: the embedding model is not installed.
    """
    from workingpapers.site.search.vectors import update_index

    with engine.connect() as connection:
        todo = connection.execute(select(func.count()).select_from(_JOINED).where(_MISSING)).scalar_one()
    done = 0
    if todo:
        encoder = encoder or make_encoder()
        last = 0
        while batch := _next(engine, last):
            _embed(engine, encoder, batch)
            last = max(batch)
            done += len(batch)
            if progress:
                progress(done, max(todo, done))
    update_index(engine)
    return done


def _next(engine: Engine, last: int) -> dict[int, str]:
    """Return the texts of the next papers to embed, by id."""
    found = select(papers.c.id, papers.c.title, papers.c.abstract).select_from(_JOINED)
    found = found.where(_MISSING, papers.c.id > last).order_by(papers.c.id).limit(AT_ONCE)
    with engine.connect() as connection:
        return {number: embedded_text(title, abstract) for number, title, abstract in connection.execute(found)}


def _embed(engine: Engine, encoder: Encoder, texts: dict[int, str]) -> None:
    """Embed texts and commit."""
    import numpy as np

    vectors = encoder.encode(list(texts.values())).astype(np.float16)
    rows = [
        {"paper_id": number, "model": MODEL, "digest": digest(text), "vector": vector.tobytes()}
        for (number, text), vector in zip(texts.items(), vectors, strict=True)
    ]
    with writing(engine) as connection:
        put = inserting(connection, embeddings)
        put = put.on_conflict_do_update(
            index_elements=["paper_id"], set_={name: put.excluded[name] for name in ("model", "digest", "vector")}
        )
        # Papers that were deleted in the meantime would break the foreign key.
        there = set(connection.execute(select(papers.c.id).where(papers.c.id.in_(texts))).scalars())
        if kept := [row for row in rows if row["paper_id"] in there]:
            connection.execute(put, kept)
