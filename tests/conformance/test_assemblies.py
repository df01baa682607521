"""Assemblies that were compiled elsewhere: as the model, and as what a model needs."""

from __future__ import annotations

import json

import pytest
from boxes import box, spec_of
from languages import installed, with_program

from appliance.errors import BuildFailed, LoadFailed
from appliance.sandbox.podman import PodmanExecutor

pytestmark = [
    pytest.mark.podman,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif("mono6.8" not in installed(), reason="the runtime mono6.8 is not installed"),
]

# Answers with an assembly that no compiler of ours made: a class Acme.Model that answers with what
# it gets, and a function Acme.Tools.Twice; told "newer", one made for a framework not there.
MAKER = rb"""
using System;
using System.IO;
using System.Reflection;
using System.Reflection.Emit;

public class Model
{
    public Model(string path) { }

    public object Predict(object inputs)
    {
        var name = new AssemblyName("Acme");
        var made = AppDomain.CurrentDomain.DefineDynamicAssembly(
            name, AssemblyBuilderAccess.Save, "/tmp");
        var module = made.DefineDynamicModule("Acme", "Acme.dll");
        Type parent = inputs as string == "newer" ? Newer() : typeof(object);
        var model = module.DefineType("Acme.Model", TypeAttributes.Public, parent);
        var constructor = model.DefineConstructor(
            MethodAttributes.Public, CallingConventions.Standard, new[] { typeof(string) });
        ILGenerator code = constructor.GetILGenerator();
        code.Emit(OpCodes.Ldarg_0);
        code.Emit(OpCodes.Call, typeof(object).GetConstructor(Type.EmptyTypes));
        code.Emit(OpCodes.Ret);
        var predict = model.DefineMethod(
            "Predict", MethodAttributes.Public, typeof(object), new[] { typeof(object) });
        code = predict.GetILGenerator();
        code.Emit(OpCodes.Ldarg_1);
        code.Emit(OpCodes.Ret);
        model.CreateType();
        var tools = module.DefineType("Acme.Tools", TypeAttributes.Public);
        var twice = tools.DefineMethod("Twice", MethodAttributes.Public | MethodAttributes.Static,
            typeof(int), new[] { typeof(int) });
        code = twice.GetILGenerator();
        code.Emit(OpCodes.Ldarg_0);
        code.Emit(OpCodes.Ldc_I4_2);
        code.Emit(OpCodes.Mul);
        code.Emit(OpCodes.Ret);
        tools.CreateType();
        made.Save("Acme.dll");
        return File.ReadAllBytes("/tmp/Acme.dll");
    }

    static Type Newer()
    {
        var name = new AssemblyName("System.Runtime");
        var made = AppDomain.CurrentDomain.DefineDynamicAssembly(
            name, AssemblyBuilderAccess.Save, "/tmp");
        var module = made.DefineDynamicModule("System.Runtime", "System.Runtime.dll");
        var type = module.DefineType("System.Newest", TypeAttributes.Public);
        type.DefineDefaultConstructor(MethodAttributes.Public);
        return type.CreateType();
    }
}
"""

USER = rb"""
public class Model
{
    public Model(string path) { Acme.Tools.Twice(1); }
    public object Predict(object inputs) { return new { answer = Acme.Tools.Twice(21) }; }
}
"""

# Every kind of value that C# has a word for.
VALUES = rb"""
using System;
using System.Collections.Generic;
using System.Threading.Tasks;

public enum Colour { Red, Green }

public class Point
{
    public double X { get; set; }
    public float Y { get { return 0.1f; } }
    public int[] Many { get { return new[] { 1, 2 }; } }
    public Point Next { get; set; }
}

public class Model
{
    public Model(string path) { }

    public object Predict(object inputs)
    {
        if (inputs as string == "loop")
        {
            var point = new Point();
            point.Next = point;
            return point;
        }
        return Task.FromResult<object>(new Dictionary<int, object>
        {
            { 1, new Point { X = 1.5 } },
            { 2, new object[] { Colour.Green, 'x', 12.50m, ulong.MaxValue, (byte)1, null, true } },
            { 3, new SortedList<string, double> { { "a", 1e300 }, { "b", -1 / 0.0 } } },
            { 4, new[,] { { 1, 2 }, { 3, 4 } } },
        });
    }
}
"""


async def answered(
    executor: PodmanExecutor,
    entry: str,
    files: dict[str, bytes],
    body: bytes = b"[1]",
    media: str = "application/json",
) -> bytes:
    files = await with_program(executor, "mono6.8", entry, files)
    spec = spec_of(runtime="mono6.8", entry=entry, files=files)
    async with box(executor, spec, files) as one:
        return (await one.ask(body, media))[1]


async def loaded(executor: PodmanExecutor, files: dict[str, bytes]) -> None:
    """Load these files as they are."""
    spec = spec_of(runtime="mono6.8", entry="Model.cs:Model", files=files)
    async with box(executor, spec, files):
        pass


async def acme(executor: PodmanExecutor, kind: bytes = b"usual") -> bytes:
    """The assembly."""
    files = {"Model.cs": MAKER}
    return await answered(executor, "Model.cs:Model", files, kind, "text/plain")


async def test_an_assembly_is_a_model(podman_executor: PodmanExecutor) -> None:
    files = {"acme.dll": await acme(podman_executor)}
    body = b'{"a": [1, 2.5]}'
    assert json.loads(
        await answered(podman_executor, "acme.dll:Acme.Model", files, body)
    ) == json.loads(body)
    with pytest.raises(LoadFailed, match=r"'acme\.dll' has no class 'Acme\.Nobody'"):
        await answered(podman_executor, "acme.dll:Acme.Nobody", files)
    with pytest.raises(LoadFailed, match="a public constructor"):
        await answered(podman_executor, "acme.dll:Acme.Tools", files)
    with pytest.raises(LoadFailed, match=r"'acme\.dll' is no assembly"):
        await answered(podman_executor, "acme.dll:Acme.Model", {"acme.dll": b"MZ no assembly"})
    files = {"acme.dll": await acme(podman_executor, b"newer")}
    with pytest.raises(LoadFailed, match=r"System\.Runtime.*Standard 2, or bring a newer"):
        await answered(podman_executor, "acme.dll:Acme.Model", files)
    with pytest.raises(BuildFailed, match=r"no file 'acme\.dll'"):
        await answered(podman_executor, "acme.dll:Acme.Model", {"other.dll": b""})


@pytest.mark.parametrize("folder", ["", "lib/"])
async def test_a_model_finds_the_assemblies_it_brings_and_names_those_it_does_not(
    podman_executor: PodmanExecutor, folder: str
) -> None:
    files = {"Model.cs": USER, f"{folder}Acme.dll": await acme(podman_executor)}
    files = await with_program(podman_executor, "mono6.8", "Model.cs:Model", files)
    answer = await answered(podman_executor, "Model.cs:Model", files)
    assert json.loads(answer) == {"answer": 42}
    del files[f"{folder}Acme.dll"]
    with pytest.raises(LoadFailed, match=r"assembly 'Acme\.dll', which is not installed") as caught:
        await loaded(podman_executor, files)
    assert caught.value.extensions["missing"] == "Acme.dll"


async def test_values_of_the_language_become_json(podman_executor: PodmanExecutor) -> None:
    files = {"Model.cs": VALUES}
    answer = await answered(podman_executor, "Model.cs:Model", files)
    assert json.loads(answer) == {
        "1": {"X": 1.5, "Y": 0.1, "Many": [1, 2], "Next": None},
        "2": ["Green", "x", 12.5, 2**64 - 1, 1, None, True],
        "3": {"a": 1e300, "b": None},
        "4": [1, 2, 3, 4],
    }
    files = await with_program(podman_executor, "mono6.8", "Model.cs:Model", files)
    spec = spec_of(runtime="mono6.8", entry="Model.cs:Model", files=files)
    async with box(podman_executor, spec, files) as one:
        with pytest.raises(Exception, match="nested too deep"):
            await one.ask(b"loop", "text/plain")
        assert (await one.ask(b"1"))[1]


async def test_source_that_does_not_compile_names_file_and_line(
    podman_executor: PodmanExecutor,
) -> None:
    files = {"Model.cs": VALUES, "more/Second.cs": b"class Second\n{\n  int x = ;\n}\n"}
    with pytest.raises(BuildFailed, match=r"more/Second\.cs\(3,"):
        await answered(podman_executor, "Model.cs:Model", files)
