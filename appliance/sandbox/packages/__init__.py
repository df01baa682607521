"""Packages a model needs, one file per language's way of shipping them.

Owns: the list of packagers.
Never: installs anything; that happens in a sandbox.
Read next: ``packager`` (what one is), ``wheels``, ``dependencies`` (who uses them).
"""

from __future__ import annotations

from appliance.sandbox.packages import cran, gems, jars, npm, wheels
from appliance.sandbox.packages.packager import Packager

PACKAGERS: dict[str, Packager] = {
    "wheels": wheels.WHEELS,
    "npm": npm.NPM,
    "gems": gems.GEMS,
    "cran": cran.CRAN,
    "jars": jars.JARS,
}
"""By the name a ``Language`` gives as its ``packager``."""
