"""C++: compiled once, at registration, in a sandbox with the compiler; run in one without.

Owns: ``CPP`` and its compiler ``CPP_BUILD``.
Never: does I/O.
Read next: ``guest/appliance.hpp`` (the contract and the runner), ``guest/cpp_build.sh``.
"""

from __future__ import annotations

from appliance.sandbox.runtimes.language import BASE_PACKAGES, MONITOR, Language, monitored

_ENTRY = r"[\w][\w./-]{0,127}\.(?:cpp|cc|cxx):[A-Za-z_][\w:]{0,127}"
_EXAMPLE = "model.cpp:Model"

CPP = Language(
    name="cpp",
    packages=("libstdc++6", "libgomp1", *BASE_PACKAGES),
    proof="usr/bin/perl",
    runner="native_runner.pl",
    helpers=(MONITOR,),
    command=monitored(
        "/usr/bin/perl",
        "/run/app/native_runner.pl",
        "cpp",
        "/model/bin/model",
        memory="std::bad_alloc",
    ),
    entry_pattern=_ENTRY,
    entry_example=_EXAMPLE,
    own_threads=1,  # the one that reads answers to the calls a model makes
    makes_calls=True,
    compiler="cpp-build",
    compiled="bin/model",
)

CPP_BUILD = Language(
    name="cpp-build",
    packages=("g++", *BASE_PACKAGES),
    proof="usr/bin/g++",
    runner="native_runner.pl",
    helpers=(MONITOR, "appliance.hpp", "cpp_build.sh"),
    command=monitored(
        "/usr/bin/perl",
        "/run/app/native_runner.pl",
        "--compile",
        "cpp-build",
        "/bin/sh",
        "/run/app/cpp_build.sh",
        memory="out of memory",
    ),
    entry_pattern=_ENTRY,
    entry_example=_EXAMPLE,
    own_threads=8,
    is_compiler=True,
)
