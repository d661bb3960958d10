"""The people who review, and the tokens they log in with: a token is kept as a salted hash only."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from sqlite3 import Row

from aura.datagen.store.database import Database
from aura.datagen.store.pairs import GENERATOR_AUTHOR

MAX_NAME = 60


@dataclass(frozen=True)
class Annotator:
    """A person who reviews."""

    id: int
    name: str
    active: bool


class Annotators:
    """The annotators of a project: adding them, and telling who they are."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def add(self, name: str) -> str:
        """Add a person and return their token, which is kept only as a salted hash and cannot be shown again.

        Raises:
            ValueError: The name is empty, too long or taken.
        """
        name = " ".join(name.split())
        if not name or len(name) > MAX_NAME or name.casefold() == GENERATOR_AUTHOR or not name.isprintable():
            raise ValueError(f"an annotator's name has 1 to {MAX_NAME} characters and is not {GENERATOR_AUTHOR!r}")
        secret, salt = secrets.token_urlsafe(24), secrets.token_bytes(16)
        with self.database.write() as cursor:
            if self.database.row("SELECT 1 FROM annotators WHERE name = ?", [name]):
                raise ValueError(
                    f"{self.database.path}: there is an annotator {name!r}; new_token() replaces a lost token"
                )
            cursor.execute(
                "INSERT INTO annotators (name, salt, token_hash, created) VALUES (?, ?, ?, ?)",
                [name, salt, _hash(secret, salt), self.database.clock()],
            )
            return f"{cursor.lastrowid}.{secret}"

    def new_token(self, name: str) -> str:
        """Replace an annotator's token and return the new one.

        Raises:
            KeyError: No such annotator.
        """
        annotator = self.get(name)
        secret, salt = secrets.token_urlsafe(24), secrets.token_bytes(16)
        with self.database.write() as cursor:
            cursor.execute(
                "UPDATE annotators SET salt = ?, token_hash = ? WHERE id = ?",
                [salt, _hash(secret, salt), annotator.id],
            )
        return f"{annotator.id}.{secret}"

    def set_active(self, name: str, active: bool) -> None:
        """An inactive annotator cannot log in and gets no work; their verdicts stay.

        Raises:
            KeyError: No such annotator.
        """
        annotator = self.get(name)
        with self.database.write() as cursor:
            cursor.execute("UPDATE annotators SET active = ? WHERE id = ?", [active, annotator.id])

    def all(self) -> list[Annotator]:
        """All, in the order they were added."""
        return [_annotator(row) for row in self.database.rows("SELECT * FROM annotators ORDER BY id")]

    def get(self, name: str | int) -> Annotator:
        """One, by name or by id.

        Raises:
            KeyError: No such annotator.
        """
        column = "id" if isinstance(name, int) else "name"
        row = self.database.row(f"SELECT * FROM annotators WHERE {column} = ?", [name])
        if row is None:
            raise KeyError(f"{self.database.path}: no annotator {name!r}")
        return _annotator(row)

    def authenticate(self, token: str) -> Annotator | None:
        """The active annotator with this token, if there is one; takes equally long for a wrong secret."""
        number, _, secret = token.strip().partition(".")
        row = None
        if number.isascii() and number.isdigit() and len(number) < 10:
            row = self.database.row("SELECT * FROM annotators WHERE id = ?", [int(number)])
        salt, expected = (row["salt"], row["token_hash"]) if row is not None else (b"no such annotator", b"")
        right = hmac.compare_digest(_hash(secret, salt), expected)
        return _annotator(row) if row is not None and right and row["active"] else None


def _hash(secret: str, salt: bytes) -> bytes:
    return hashlib.scrypt(secret.encode(), salt=salt, n=2**12, r=8, p=1)


def _annotator(row: Row) -> Annotator:
    return Annotator(row["id"], row["name"], bool(row["active"]))
