"""Language support: one file per runtime and one line in ``RUNTIMES``.

Owns: what a runtime is (``Language``) and the list of those this appliance can run.
Never: imports guest code.
Read next: ``python``.
"""

from __future__ import annotations

from appliance.sandbox.runtimes import python
from appliance.sandbox.runtimes.language import Language

RUNTIMES: dict[str, Language] = {
    python.PYTHON_3_11.name: python.PYTHON_3_11,
}
