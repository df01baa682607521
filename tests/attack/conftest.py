"""A real appliance process for the modules that ask for one."""

from running_fixtures import run_root, running  # noqa: F401
