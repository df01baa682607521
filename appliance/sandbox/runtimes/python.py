"""Python runtimes: Debian's own interpreter, no packages of its own.

Owns: ``PYTHON_3_11``, ``PYTHON_3_11_TORCH``.
Never: does I/O.
Read next: ``guest/python_runner.py`` (what runs inside).
"""

from __future__ import annotations

from dataclasses import replace

from appliance.sandbox.runtimes.language import Language

PYTHON_3_11 = Language(
    name="python3.11",
    # mount sets the inode quotas of a container before its first own instruction (its setuid bit
    # is dropped); libgomp1 and libstdc++6 are what compiled wheels (NumPy) expect of a system.
    packages=(
        "python3",
        "python3.11",
        "libgomp1",
        "libstdc++6",
        "ca-certificates",
        "tzdata",
        "mount",
    ),
    proof="usr/bin/python3.11",
    runner="python_runner.py",
    # Without -S every start would wait for the site module, which the runner imports later.
    command=("/usr/bin/python3.11", "-I", "-S", "-B", "/run/app/python_runner.py"),
    helpers=(
        "python_serve.py",
        "python_joining.py",
        "python_calling.py",
        "python_tables.py",
        "python_sklearn.py",
        "python_onnx.py",
        "python_mlflow.py",
    ),
    imports_ahead=True,
    makes_calls=True,
    packager="wheels",
    builder="python_builder.py",
    build_command=("/usr/bin/python3.11", "-I", "-B", "/run/app/python_builder.py"),
    entry_pattern=r"[A-Za-z_][\w.]{0,127}:[A-Za-z_][\w.]{0,127}"
    r"|@(?:sklearn|onnx):[\w][\w. +/-]{0,250}|@mlflow",
    entry_example="model:Model",
)

# The index has PyTorch for Linux with CUDA only, gigabytes of it. The distribution's own is built
# for the processor; what else such a model needs goes into its folder.
PYTHON_3_11_TORCH = replace(
    PYTHON_3_11,
    name="python3.11-torch1.13",
    packages=(*PYTHON_3_11.packages, "python3-torch", "python3-numpy"),
    proof="usr/lib/python3/dist-packages/torch/__init__.py",
    packager="",
    builder="",
    build_command=(),
)
