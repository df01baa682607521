"""Ruby: Debian's own interpreter.

Owns: ``RUBY_3_1``.
Never: does I/O.
Read next: ``guest/ruby_runner.rb`` (what runs inside).
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

RUBY_3_1 = Language(
    name="ruby3.1",
    packages=("ruby3.1", *BASE_PACKAGES),
    proof="usr/bin/ruby3.1",
    runner="ruby_runner.rb",
    helpers=(MONITOR, "ruby_calling.rb"),
    command=monitored(
        "/usr/bin/ruby3.1",
        "--disable=gems,did_you_mean,error_highlight,rubyopt",
        "/run/app/ruby_runner.rb",
        memory="failed to allocate memory",
    ),
    packager="gems",
    builder=NATIVE_BUILDER,
    build_helpers=("ruby_build.sh",),
    build_command=built_by("ruby_build.sh", "ruby-build"),
    entry_pattern=r"[\w][\w./-]{0,127}\.rb:[A-Z][\w:]{0,127}",
    entry_example="model.rb:Model",
    own_threads=3,  # with the one that reads answers to the calls a model makes
    makes_calls=True,
    part="library",
    part_hint="add it to requirements in appliance.toml, or bring it in the model folder",
)
