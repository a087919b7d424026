"""API tokens for tests, and what answers of the API are about."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Engine, insert, select

from workingpapers.site import people
from workingpapers.site.database import writing
from workingpapers.site.people import User
from workingpapers.site.schema import users


def token_for(engine: Engine, email: str) -> str:
    """Return an API token of a person who is made if they are new."""
    with writing(engine) as connection:
        number = connection.execute(select(users.c.id).where(users.c.email == email)).scalar()
        if number is None:
            row = insert(users).values(email=email, created=0.0).returning(users.c.id)
            number = connection.execute(row).scalar_one()
        return people.make_api_token(connection, User(number, email), "test", time.time())


def slugs(items: list[dict[str, Any]]) -> list[str]:
    """Return the slugs of the papers in a list of the API."""
    return [(item.get("paper") or item)["slug"] for item in items]
