"""A real appliance process, and every way of making a sandbox, for the modules that ask."""

from __future__ import annotations

from running_fixtures import run_root, running  # noqa: F401
from way_fixtures import (  # noqa: F401
    each_tier,
    each_tier_and_image,
    each_way,
    each_way_and_tier,
)
