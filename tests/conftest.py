"""Fixtures that any test may ask for by name."""

from tests.support.s3 import s3  # noqa: F401
