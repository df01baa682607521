"""Comparisons: one data set, or recorded calls, through several versions, and what that shows.

Owns: ``metrics`` and ``report`` (the figures), ``dataset`` (rows) and ``pieces`` (where they lie),
``answers`` (what models said), ``runner`` (the work) and ``replay`` (recorded calls).
Never: calls a model but through ``invoke``, or shows a row to anybody: ``api`` decides that.
Read next: ``runner`` (what a comparison goes through), ``report`` (what comes out).
"""
