"""What ``packaging/gpu-check`` runs as the service user: real models on a real GPU, in sandboxes.

Owns: the models, the checks and the transcript on stdout. Exit code 0: all held; 1: one did not;
69: there is no GPU to check.
Never: installs anything (the shell script does), or needs a running appliance.
Read next: ``packaging/gpu-check``, ``appliance/sandbox/gpu.py``.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from appliance import config
from appliance.errors import ApplianceError
from appliance.records import CallLimits, Resources
from appliance.sandbox import dependencies, gpu, images
from appliance.sandbox.podman import PodmanExecutor
from appliance.sandbox.pool import Pool
from appliance.sandbox.spec import MIB, Request, SandboxSpec

RUNTIME = "python3.11"
NO_GPU = 69
TOLERANCE = 1e-3

LOOK = b"""
import ctypes, glob, os
class Model:
    def __init__(self, path):
        pass
    def predict(self, inputs):
        try:
            ctypes.CDLL("libcuda.so.1")
            has_driver = True
        except OSError:
            has_driver = False
        names = ("NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")
        return {"nodes": sorted(glob.glob("/dev/nvidia*") + glob.glob("/dev/nvidia-caps/*")),
                "has_driver": has_driver,
                "libraries": sorted(os.listdir("/gpu/lib")) if os.path.isdir("/gpu/lib") else [],
                "env": {name: os.environ[name] for name in names if name in os.environ}}
"""

# The CUDA driver's own interface by ctypes: nothing to install, and the kernel is compiled by the
# driver inside the sandbox.
DRIVER = b'''
import array, ctypes

PTX = b"""
.version 6.0
.target sm_50
.address_size 64
.visible .entry axpy(.param .u64 x, .param .u64 y, .param .f32 a, .param .u32 n)
{
    .reg .pred %p<2>;
    .reg .f32 %f<5>;
    .reg .b32 %r<6>;
    .reg .b64 %rd<8>;
    ld.param.u64 %rd1, [x];
    ld.param.u64 %rd2, [y];
    ld.param.f32 %f1, [a];
    ld.param.u32 %r1, [n];
    mov.u32 %r2, %ntid.x;
    mov.u32 %r3, %ctaid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r3, %r2, %r4;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra DONE;
    cvta.to.global.u64 %rd3, %rd1;
    cvta.to.global.u64 %rd4, %rd2;
    mul.wide.u32 %rd5, %r5, 4;
    add.s64 %rd6, %rd3, %rd5;
    add.s64 %rd7, %rd4, %rd5;
    ld.global.f32 %f2, [%rd6];
    ld.global.f32 %f3, [%rd7];
    fma.rn.f32 %f4, %f1, %f2, %f3;
    st.global.f32 [%rd7], %f4;
DONE:
    ret;
}
"""

class Model:
    def __init__(self, path):
        self.cuda = ctypes.CDLL("libcuda.so.1")

    def must(self, what, *arguments):
        code = getattr(self.cuda, what)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self.cuda.cuGetErrorName(code, ctypes.byref(text))
            raise RuntimeError(f"{what}: {(text.value or b'?').decode()} ({code})")

    def predict(self, inputs):
        must, ref, n = self.must, ctypes.byref, inputs["n"]
        count, device, context = ctypes.c_int(), ctypes.c_int(), ctypes.c_void_p()
        must("cuInit", 0)
        must("cuDeviceGetCount", ref(count))
        must("cuDeviceGet", ref(device), 0)
        name = ctypes.create_string_buffer(100)
        must("cuDeviceGetName", name, 100, device)
        must("cuDevicePrimaryCtxRetain", ref(context), device)
        must("cuCtxSetCurrent", context)
        module, kernel = ctypes.c_void_p(), ctypes.c_void_p()
        must("cuModuleLoadData", ref(module), PTX + b"\\\\0")
        must("cuModuleGetFunction", ref(kernel), module, b"axpy")
        x = array.array("f", (i % 1000 for i in range(n)))
        y = array.array("f", (i % 77 for i in range(n)))
        expected = array.array("f", (2 * p + q for p, q in zip(x, y)))
        at = [ctypes.c_uint64(), ctypes.c_uint64()]
        for where, values in zip(at, (x, y)):
            size = ctypes.c_size_t(4 * n)
            must("cuMemAlloc_v2", ref(where), size)
            must("cuMemcpyHtoD_v2", where, ctypes.c_void_p(values.buffer_info()[0]), size)
        values = [at[0], at[1], ctypes.c_float(2), ctypes.c_uint32(n)]
        pointers = (ctypes.c_void_p * 4)(*(ctypes.addressof(v) for v in values))
        must("cuLaunchKernel", kernel, (n + 255) // 256, 1, 1, 256, 1, 1, 0, None, pointers, None)
        must("cuCtxSynchronize")
        must("cuMemcpyDtoH_v2", ctypes.c_void_p(y.buffer_info()[0]), at[1], ctypes.c_size_t(4 * n))
        locked = ctypes.c_void_p()
        must("cuMemAllocHost_v2", ref(locked), ctypes.c_size_t(1 << 20))
        must("cuMemFreeHost", locked)
        held = []
        for _ in range(inputs.get("hold_mib", 0) // 64):
            held.append(ctypes.c_uint64())
            must("cuMemAlloc_v2", ref(held[-1]), ctypes.c_size_t(64 << 20))
        if held:
            import time
            time.sleep(inputs.get("hold_s", 0))
        wrong = sum(p != q for p, q in zip(y, expected))
        return {"devices": count.value, "name": name.value.decode(), "n": n, "wrong": wrong}
'''.replace(b"\\\\0", b"\\0")

TORCH = b"""
import torch
class Model:
    def __init__(self, path):
        torch.manual_seed(7)
        layers = [torch.nn.Linear(64, 512), torch.nn.ReLU(), torch.nn.Linear(512, 512),
                  torch.nn.ReLU(), torch.nn.Linear(512, 10)]
        self.net = torch.nn.Sequential(*layers).eval()
        self.rows = torch.randn(256, 64)
    def predict(self, inputs):
        torch.backends.cuda.matmul.allow_tf32 = False
        with torch.no_grad():
            cpu = self.net.to("cpu")(self.rows)
            found = {"torch": torch.__version__, "cuda": torch.cuda.is_available(),
                     "sum": float(cpu.sum())}
            if found["cuda"]:
                gpu = self.net.to("cuda")(self.rows.to("cuda")).cpu()
                found["device"] = torch.cuda.get_device_name(0)
                found["devices"] = torch.cuda.device_count()
                found["difference"] = float((cpu - gpu).abs().max())
        return found
"""


class Check:
    """Runs models and prints what they answered; ``failed`` counts what did not hold."""

    def __init__(self, pool: Pool, runtime: images.Runtime) -> None:
        self.failed = 0
        self._pool = pool
        self._runtime = runtime
        self._made = 0

    async def ask(
        self, model: bytes, body: Any, *, deps_key: str = "", **resources: Any
    ) -> dict[str, Any]:
        """What a model answered in a fresh sandbox."""
        self._made += 1
        files = _tar({"model.py": model})
        settings = {"memory_bytes": 1024 * MIB, "pids": 256, **resources}
        spec = SandboxSpec(
            version_key=f"gpu-check/{self._made}",
            tenant_id="gpu-check",
            runtime=self._runtime.name,
            runtime_digest=self._runtime.digest,
            deps_key=deps_key,
            resources=Resources(**settings),
            limits=CallLimits(load_timeout_ms=300_000, invoke_timeout_ms=300_000),
            model_bytes=len(files),
            idle_timeout_s=0,
            entry="model:Model",
        )

        async def load() -> AsyncIterator[bytes]:
            yield files

        async with self._pool.lease(spec, load) as lease:
            request = Request(
                id=str(self._made),
                content_type="application/json",
                body=json.dumps(body).encode(),
                timeout_ms=300_000,
                reply_bytes_max=1 << 20,
            )
            reply = await lease.request(request)
        found: dict[str, Any] = json.loads(reply.body)
        return found

    async def step(
        self, text: str, work: Callable[[], Any], holds: Callable[[dict[str, Any]], bool]
    ) -> None:
        """Do one thing, print it with its time, and count it if it does not hold."""
        started = time.monotonic()
        try:
            found = await work()
            is_ok = holds(found)
        except ApplianceError as error:
            found = {"problem": error.slug, "detail": error.detail, "hint": error.hint}
            found["stderr"] = list(getattr(error, "stderr", ()))[-20:]
            is_ok = holds(found)
        self.failed += not is_ok
        word = "ok    " if is_ok else "FAILED"
        say(f"{word} {text}  ({time.monotonic() - started:.1f} s)")
        say("         " + json.dumps(found))


def say(text: str) -> None:
    """One line of the transcript."""
    print(text, flush=True)


def _tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


async def on_cpu(check: Check) -> None:
    """A model that asks for no GPU has no trace of one."""
    await check.step(
        "a model without gpus sees no node, no library, no variable",
        lambda: check.ask(LOOK, None),
        lambda found: found.get("nodes") == [] and not found["has_driver"] and not found["env"]
        and not found["libraries"],
    )  # fmt: skip


async def on_gpu(check: Check, unit: gpu.Gpu) -> None:
    """A model that asks for one GPU has that one, computes on it, and is held to its budget."""
    mine = {path for _, path in unit.nodes}
    await check.step(
        "a model with gpus = 1 sees its own nodes and the driver's libraries",
        lambda: check.ask(LOOK, None, gpus=1),
        lambda found: (
            bool(found.get("has_driver"))
            and mine <= {*found["nodes"], *(p for p in mine if not p.startswith("/dev/nvidia"))}
            and set(found["nodes"]) <= mine
        ),
    )
    await check.step(
        "the driver compiles a kernel and computes as the processor does",
        lambda: check.ask(DRIVER, {"n": 1 << 20}, gpus=1),
        lambda found: found.get("wrong") == 0 and found.get("devices") == 1,
    )
    if unit.driver and unit.memory_bytes:
        await check.step(
            "more GPU memory than declared ends the sandbox",
            lambda: check.ask(DRIVER, {"n": 1024, "hold_mib": 2048, "hold_s": 10},
                              gpus=1, gpu_memory_bytes=1024 * MIB),
            lambda found: found.get("problem") == "gpu-out-of-memory",
        )  # fmt: skip


async def with_torch(
    check: Check, executor: PodmanExecutor, runtime: images.Runtime, asked: argparse.Namespace
) -> None:
    """PyTorch: the same numbers on the GPU as on the processor."""
    build = config.Build(wheelhouse=asked.wheelhouse, timeout_s=3600, size_bytes_max=16 * 1024**3)
    say(f"       installing {asked.torch} in a build sandbox")
    try:
        built = await dependencies.ensure(
            executor, runtime, (asked.torch,), build, lambda _detail, _fraction: None
        )
    except ApplianceError as error:
        check.failed += 1
        say(f"FAILED PyTorch cannot be installed: {error.detail}")
        for line in error.extensions.get("lines", ())[-10:]:
            say(f"         {line}")
        return
    resources: dict[str, Any] = {"deps_key": built.key, "memory_bytes": 4096 * MIB}
    if not asked.rehearse:
        await check.step(
            "PyTorch on the GPU gives the processor's numbers",
            lambda: check.ask(TORCH, None, gpus=1, **resources),
            lambda found: found.get("cuda") is True and found["difference"] <= TOLERANCE,
        )
    await check.step(
        "PyTorch without a GPU in the manifest has none",
        lambda: check.ask(TORCH, None, **resources),
        lambda found: found.get("cuda") is False,
    )


async def run(asked: argparse.Namespace) -> int:
    """Every check; the exit code."""
    settings = config.Sandbox(
        accept_supervised_limits=True, zygote_memory_bytes_max=0, memory_bytes_max=64 * 1024**3
    )
    found = gpu.find(settings)
    for problem in found.problems:
        say(f"       {problem}; {gpu.fix_of(problem)}")
    units = [unit for unit in found.gpus if unit.vendor == gpu.NVIDIA]
    for unit in found.gpus:
        say(f"       {unit.index}: {unit.text}, compute {unit.compute or '-'}, "
            f"driver {unit.driver or '-'}, {unit.id}")  # fmt: skip
        say("         " + " ".join(host for host, _ in unit.nodes))
    if not units and not asked.rehearse:
        say("no NVIDIA GPU that can be used: nothing was checked")
        return NO_GPU
    executor = PodmanExecutor(settings, run_dir=asked.run_dir, data_dir=asked.data_dir)
    await executor.start()
    try:
        say(f"       podman {executor.info()['version']} with {executor.info()['oci_runtime']}; "
            f"limits {executor.limits.level} by {executor.limits.mechanism}")  # fmt: skip
        runtime = images.require(asked.data_dir, RUNTIME)
        pool = Pool(executor, settings)
        check = Check(pool, runtime)
        await on_cpu(check)
        if not asked.rehearse:
            await on_gpu(check, units[0])
        if asked.torch:
            await with_torch(check, executor, runtime, asked)
        await pool.close()
    finally:
        await executor.close()
    if asked.rehearse:
        say("       rehearsed: what needs the GPU itself was left out")
    say("all held" if not check.failed else f"{check.failed} did not hold")
    return 1 if check.failed else 0


def main() -> int:
    """The command line; see ``packaging/gpu-check``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--torch", default="", help="requirement, e.g. torch==2.9.1; empty: skip")
    parser.add_argument("--wheelhouse", default="")
    parser.add_argument("--rehearse", action="store_true")
    try:
        return asyncio.run(run(parser.parse_args()))
    except ApplianceError as error:
        say(f"FAILED {error.slug}: {error.detail} {error.hint}".rstrip())
        return 1


if __name__ == "__main__":
    sys.exit(main())
