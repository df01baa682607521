"""Java: compiled once, at registration, in a sandbox with the compiler; run in one without.

Owns: ``JAVA_17`` and its compiler ``JAVA_17_BUILD``.
Never: does I/O.
Read next: ``guest/JavaRunner.java`` (what runs inside), ``guest/java_build.sh``.
"""

from __future__ import annotations

from appliance.sandbox.runtimes.language import BASE_PACKAGES, MONITOR, Language, monitored

_ENTRY = r"[\w][\w./-]{0,127}\.(?:java|jar):[A-Za-z_][\w.$]{0,127}"
_EXAMPLE = "Model.java:Model"
# The package fails to configure without this folder, which is left out with the manual pages.
_SETUP = ('mkdir -p "$1/usr/share/man/man1"',)
# A key store that holds its time of making, for a network that is not there.
_FINISH = ('rm -f "$1/etc/ssl/certs/java/cacerts"',)

JAVA_17 = Language(
    name="java17",
    packages=("openjdk-17-jre-headless", *BASE_PACKAGES),
    proof="etc/java-17-openjdk/security/java.security",
    runner="native_runner.pl",
    helpers=(MONITOR,),
    command=monitored(
        "/usr/bin/perl",
        "/run/app/native_runner.pl",
        "java",
        "/usr/bin/java",
        "-Xmx{heap_mb}m",
        "-Xss512k",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-XX:CICompilerCount=1",
        "-XX:ReservedCodeCacheSize=32m",
        "-Xshare:auto",
        "-XX:-UsePerfData",
        "-Djdk.nio.maxCachedBufferSize=262144",
        "-cp",
        "/model/bin/model.jar:/model/*:/model/lib/*:/model:/deps/*",
        "JavaRunner",
        memory="OutOfMemoryError|insufficient memory for the Java",
    ),
    heap_share=0.5,
    entry_pattern=_ENTRY,
    entry_example=_EXAMPLE,
    setup=_SETUP,
    finish=_FINISH,
    own_threads=26,  # with the two that carry the calls a model makes
    makes_calls=True,
    packager="jars",
    part="class",
    part_hint="add its jar to requirements in appliance.toml, or put it into lib/",
    compiler="java17-build",
    compiled="bin/model.jar",
)

JAVA_17_BUILD = Language(
    name="java17-build",
    packages=("openjdk-17-jdk-headless", *BASE_PACKAGES),
    proof="etc/java-17-openjdk/security/java.security",
    runner="native_runner.pl",
    helpers=(MONITOR, "JavaRunner.java", "Models.java", "java_build.sh"),
    command=monitored(
        "/usr/bin/perl",
        "/run/app/native_runner.pl",
        "--compile",
        "java-build",
        "/bin/sh",
        "/run/app/java_build.sh",
        memory="OutOfMemoryError|insufficient memory for the Java",
    ),
    entry_pattern=_ENTRY,
    entry_example=_EXAMPLE,
    setup=_SETUP,
    finish=_FINISH,
    own_threads=40,
    is_compiler=True,
)
