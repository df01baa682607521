"""Language support: one file per runtime and one line in ``RUNTIMES``.

Owns: the list of runtimes this appliance can run.
Never: imports guest code.
Read next: ``python``.
"""
