"""The console: a terminal user interface for the people who run the appliance.

Owns: every screen an administrator sees in a terminal.
Never: imports anything from ``appliance``, opens its files or knows its store; it speaks HTTP only.
Read next: ``app`` (entry point ``run``), ``nav`` (one line per screen), ``feed`` (where data comes
from), ``client`` (what it looks like).
"""
