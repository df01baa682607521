"""A real appliance process for each module here."""

from running_fixtures import run_root, running  # noqa: F401
