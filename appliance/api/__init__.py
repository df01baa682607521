"""The public HTTP contracts, one file each, and the table that joins them.

Owns: ``build``, which turns the table into the two ASGI applications.
Never: holds logic; a handler is a few lines over ``store``, ``lifecycle`` and ``invoke``.
Read next: ``operation`` (what a row declares), ``dispatch`` (what happens to a request).
"""
