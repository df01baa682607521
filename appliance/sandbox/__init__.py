"""Sandboxes: where other people's models run.

Owns: containers, the runner link, the pool, runtimes and dependency builds.
Never: sees the store, keys, names of tenants, or HTTP.
Read next: ``executor`` (the interface), ``podman`` (the engine), ``PROTOCOL.md`` (the wire).
"""
