"""Skeleton."""


class Projection:
    """DuckDB projection."""
