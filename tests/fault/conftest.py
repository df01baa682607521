"""A run folder for the modules that start a whole appliance."""

from running_fixtures import run_root  # noqa: F401
