"""JavaScript: Debian's Node.

Owns: ``NODE_18``.
Never: does I/O.
Read next: ``guest/node_runner.js`` (what runs inside).
"""

from __future__ import annotations

from appliance.sandbox.runtimes.language import (
    BASE_PACKAGES,
    MONITOR,
    NATIVE_BUILDER,
    Language,
    built_by,
    monitored,
)

NODE_18 = Language(
    name="node18",
    packages=("nodejs", *BASE_PACKAGES),
    proof="usr/bin/node",
    runner="node_runner.js",
    helpers=(MONITOR, "node_calling.js"),
    command=monitored(
        "/usr/bin/node",
        "--max-old-space-size={heap_mb}",
        "--v8-pool-size=1",
        "/run/app/node_runner.js",
        memory="heap out of memory|process out of memory|Zone Allocation failed",
    ),
    environment={"UV_THREADPOOL_SIZE": "2", "NODE_PATH": "/model/node_modules:/deps/node_modules"},
    packager="npm",
    builder=NATIVE_BUILDER,
    build_helpers=("node_build.sh",),
    build_command=built_by("node_build.sh", "node-build"),
    entry_pattern=r"[\w][\w./-]{0,127}\.c?js:[A-Za-z_$][\w$.]{0,127}",
    entry_example="model.js:Model",
    own_threads=12,
    makes_calls=True,
    part="module",
    part_hint="add it to requirements in appliance.toml, or bring it in node_modules/",
)
