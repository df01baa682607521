"""The Open Inference Protocol, version 2, with its binary, repository and statistics extensions.

Owns: the list of its operations, at ``/t/{tenant}/v2``.
Never: holds logic; ``tensors`` converts, ``calls`` and ``repository`` answer.
Read next: ``tensors`` (what a tensor becomes for a model), ``calls``.

Source of the protocol: github.com/kserve/open-inference-protocol, ``specification/protocol``.
"""

from __future__ import annotations

from appliance.api.inference import calls, repository

# The router tries them in order: "stats" is no model's name there.
OPERATIONS = (*repository.OPERATIONS, *calls.OPERATIONS)
