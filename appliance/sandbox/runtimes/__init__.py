"""Language support: one file per runtime and one line in ``RUNTIMES``.

Owns: what a runtime is (``Language``) and the list of those this appliance can run.
Never: imports guest code.
Read next: ``language``, ``python``.
"""

from __future__ import annotations

from appliance.sandbox.runtimes import cpp, dotnet, java, node, python, r, ruby
from appliance.sandbox.runtimes.language import Language

RUNTIMES: dict[str, Language] = {
    python.PYTHON_3_11.name: python.PYTHON_3_11,
    python.PYTHON_3_11_TORCH.name: python.PYTHON_3_11_TORCH,
    node.NODE_18.name: node.NODE_18,
    ruby.RUBY_3_1.name: ruby.RUBY_3_1,
    r.R_4_2.name: r.R_4_2,
    cpp.CPP.name: cpp.CPP,
    cpp.CPP_BUILD.name: cpp.CPP_BUILD,
    java.JAVA_17.name: java.JAVA_17,
    java.JAVA_17_BUILD.name: java.JAVA_17_BUILD,
    dotnet.MONO_6_8.name: dotnet.MONO_6_8,
    dotnet.MONO_6_8_BUILD.name: dotnet.MONO_6_8_BUILD,
}


def names() -> list[str]:
    """The names a manifest may give as its runtime."""
    return [name for name, one in RUNTIMES.items() if not one.is_compiler]


def known() -> str:
    """The same as words, for messages."""
    return ", ".join(names())


def with_compiler(name: str) -> list[str]:
    """What has to be installed for a runtime: itself last, before it what compiles for it."""
    compiler = RUNTIMES[name].compiler if name in RUNTIMES else ""
    return [compiler, name] if compiler else [name]
