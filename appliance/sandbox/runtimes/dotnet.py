"""C# and every other language of the Common Language Infrastructure: Debian's Mono.

Owns: ``MONO_6_8`` and its compiler ``MONO_6_8_BUILD``.
Never: does I/O.
Read next: ``guest/DotnetRunner.cs`` (what runs inside), ``guest/dotnet_build.sh``.
"""

from __future__ import annotations

from appliance.sandbox.runtimes.language import BASE_PACKAGES, MONITOR, Language, monitored

_ENTRY = r"[\w][\w./-]{0,127}\.(?:cs|dll):[A-Za-z_][\w.+]{0,127}"
_EXAMPLE = "Model.cs:Model"
_MEMORY = "OutOfMemoryException|Garbage collector could not allocate|Out of memory"
# What models may expect of the framework.
_FRAMEWORK = (
    "mono-runtime",
    "libmono-microsoft-csharp4.0-cil",
    "libmono-system-core4.0-cil",
    "libmono-system-io-compression4.0-cil",
    "libmono-system-numerics-vectors4.0-cil",
    "libmono-system-numerics4.0-cil",
    "libmono-system-runtime-serialization4.0-cil",
    "libmono-system-xml-linq4.0-cil",
    "libmono-system4.0-cil",
)
# Through these an assembly made for .NET Standard, as NuGet's and F#'s are, finds the framework.
# Their package would bring all of Mono, 300 MB of windows and web servers.
_FINISH = (
    'cd "$1/tmp" && APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get -qq download mono-devel'
    " && dpkg-deb --fsys-tarfile mono-devel_*.deb"
    ' | tar -C "$1" --no-same-owner -x ./usr/lib/mono/4.5/Facades'
    " && rm mono-devel_*.deb",
    # Compiled ahead of time with random ids: with it no two builds would be the same bytes. It
    # would save 0.13 s of a cold start.
    'rm -rf "$1/usr/lib/mono/aot-cache"',
)

MONO_6_8 = Language(
    name="mono6.8",
    packages=(*_FRAMEWORK, *BASE_PACKAGES),
    proof="usr/lib/mono/4.5/Facades/netstandard.dll",
    runner="native_runner.pl",
    helpers=(MONITOR,),
    command=monitored(
        "/usr/bin/perl",
        "/run/app/native_runner.pl",
        "mono",
        "/usr/bin/env",
        "MONO_GC_PARAMS=max-heap-size={heap_mb}m,nursery-size=4m",
        "/usr/bin/mono-sgen",
        "/model/bin/model.exe",
        memory=_MEMORY,
    ),
    heap_share=0.6,
    environment={"MONO_PATH": "/model:/model/lib"},
    entry_pattern=_ENTRY,
    entry_example=_EXAMPLE,
    finish=_FINISH,
    own_threads=13,  # with the one that reads answers to the calls a model makes
    makes_calls=True,
    part="assembly",
    part_hint="put it beside the model or into lib/ of its folder",
    compiler="mono6.8-build",
    compiled="bin/model.exe",
)

MONO_6_8_BUILD = Language(
    name="mono6.8-build",
    packages=("mono-mcs", *_FRAMEWORK, *BASE_PACKAGES),
    proof="usr/bin/mcs",
    runner="native_runner.pl",
    helpers=(MONITOR, "DotnetRunner.cs", "DotnetCalling.cs", "dotnet_build.sh"),
    command=monitored(
        "/usr/bin/perl",
        "/run/app/native_runner.pl",
        "--compile",
        "mono-build",
        "/bin/sh",
        "/run/app/dotnet_build.sh",
        memory=_MEMORY,
    ),
    entry_pattern=_ENTRY,
    entry_example=_EXAMPLE,
    finish=_FINISH,
    own_threads=24,
    is_compiler=True,
)
