"""Where models may connect to: rules, decisions, and their record.

Owns: what an egress rule means, which addresses are never reached by accident, and the guard that
every connection out of a sandbox passes.
Never: speaks HTTP or moves bytes (``sandbox.proxy`` does); is asked when a tenant has no rules.
Read next: ``rules`` (pure), ``addresses`` (pure), ``guard``.
"""
