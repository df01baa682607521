"""R: Debian's own, with jsonlite.

Owns: ``R_4_2``.
Never: does I/O.
Read next: ``guest/r_runner.R`` (what runs inside), ``guest/native_runner.pl`` (its connection).
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

R_4_2 = Language(
    name="r4.2",
    packages=("r-base-core", "r-cran-jsonlite", *BASE_PACKAGES),
    proof="usr/bin/Rscript",
    runner="r_runner.R",
    helpers=(MONITOR, "native_runner.pl"),
    # R speaks to no unix socket: native_runner.pl carries its bytes.
    command=monitored(
        "/usr/bin/perl",
        "/run/app/native_runner.pl",
        "--relay",
        "r",
        "/usr/lib/R/bin/exec/R",
        "--no-echo",
        "--no-restore",
        "--vanilla",
        "--file=/run/app/r_runner.R",
        memory="cannot allocate",
    ),
    environment={"R_HOME": "/usr/lib/R", "R_SHARE_DIR": "/usr/share/R/share"},
    packager="cran",
    builder=NATIVE_BUILDER,
    build_helpers=("r_build.sh",),
    build_command=built_by("r_build.sh", "r-build"),
    entry_pattern=(r"[\w][\w./-]{0,127}\.(?:R|r):[A-Za-z.][\w.]{0,127}|@rds:[\w][\w. +/-]{0,250}"),
    entry_example="model.R:load_model",
    own_threads=2,
    makes_calls=True,
)
