"""Builds, tests and measures on a machine with a GPU, in under ten minutes: `make gpu-check`.

Needs torch, nvcc, pybind11, ninja, cmake and pytest; no network. Each stage is a process with its own time limit, so
that the others still give their figures if one fails or hangs. Ends by printing one table, under 10,000 characters, and
writes benchmarks/results/<device>.json. Without a GPU, it builds, runs the tests it can, and prints the predictions.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BATCHES = (1, 8, 64, 1024)
SAMPLERS = ("naive", "naive, torch.compile", "naive, CUDA graph", "cached", "block", "pipeline")
OPS = (
    "masked_conv2d 3x3 B",
    "masked_conv2d 7x7 A",
    "masked_conv_block",
    "gated_activation",
    "categorical_nll",
    "row_lstm, batch 64, forward + backward",
    "diagonal_lstm, batch 64, forward + backward",
)
MOST_CHARACTERS = 10_000
ALL_IN, OF_A_NETWORK = 570, 100  # seconds: all stages; a network of the table of acceleration, at most


def run(name: str, command: list[str], limit: float, **env: str) -> dict:
    """-> status, seconds, and what the process printed last; 'result' is the JSON of its last line, if it is one."""
    start = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | env,
            timeout=limit,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        status, output = "ok" if done.returncode == 0 else f"status {done.returncode}", done.stdout
    except subprocess.TimeoutExpired as error:
        status, output = f"not finished in {limit:.0f} s", (error.stdout or b"").decode(errors="replace")
    lines = output.strip().splitlines() or [""]
    found: dict[str, Any] = {
        "stage": name,
        "status": status,
        "seconds": round(time.monotonic() - start, 1),
        "tail": lines[-12:],
    }
    if lines[-1].startswith("{"):
        found["result"] = json.loads(lines[-1])
    print(f"{name}: {status}, {found['seconds']} s", flush=True)
    if status != "ok":
        print("\n".join("    " + line[:200] for line in found["tail"]), flush=True)
    return found


def stages(gpu: bool) -> list[dict]:
    python = sys.executable
    pip = [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "-q", "-e", "."]
    archs = {"PIXELCNN_FAST_CUDA_ARCHS": "native"} if gpu else {}
    begin = time.monotonic()
    done = [run("build", pip, 180, **archs)]
    done.append(run("tests of the CUDA runtime", [python, "-m", "pytest", "-q", "tests/csrc/test_gpu.py"], 120))
    done.append(run("tests of the ops", [python, "-m", "pytest", "-q", "tests/ops/test_ops_on_cuda.py"], 120))
    measure = [python, str(Path(__file__).resolve())]
    if not gpu:
        return done
    for sampler in SAMPLERS:
        done.append(run(f"sampling: {sampler}", [*measure, "sampling", sampler], 40))
    done.append(run("layers", [*measure, "layers"], 90))
    accelerated = ROOT / "benchmarks" / "acceleration_targets.py"  # writes a table of its own
    left = ALL_IN - (time.monotonic() - begin)
    within = ["--device", "cuda", "--within", str(max(left - OF_A_NETWORK, 1))]
    done.append(run("acceleration", [python, str(accelerated), *within], max(left, OF_A_NETWORK)))
    return done


# -- measuring, in a process of its own


def default_model():
    import torch

    from pixelcnn_fast.models import PixelCNN

    torch.manual_seed(0)
    return PixelCNN().eval().cuda()


def sampling_seconds(name: str) -> dict[int, float]:
    """Batch size -> seconds for all images. Naive ones are extrapolated from a few of the 1,024 pixels."""
    import torch

    from pixelcnn_fast import Sampler
    from pixelcnn_fast.capture.wrapped_model import WrappedModel
    from pixelcnn_fast.compiler import compiled
    from pixelcnn_fast.runtimes.cuda import CudaRuntime
    from pixelcnn_fast.runtimes.job import Job

    model, shape = default_model(), (3, 32, 32)
    results = {}
    if name in ("block", "pipeline"):
        wrapped = WrappedModel(model, shape)
        found = compiled(wrapped, "bf16")
        engine = CudaRuntime(found.program, found.conditions, wrapped.head, "bf16", name)
    for n in BATCHES:
        if name.startswith("naive"):
            forward = naive_forward(model, name, n, shape)
            results[n] = 1024 * seconds_of(forward, repeat=5 if n < 1024 else 2)
        elif name == "cached":
            few = Sampler(model, (3, 4, 32))  # 4 of 32 rows
            results[n] = 8 * seconds_of(lambda n=n, s=few: s.sample(n, runtime="eager", batch_size=n), repeat=1)
        else:
            noise = torch.rand(n, *shape, dtype=torch.float64)

            def batch(n=n, noise=noise):
                levels = torch.zeros(n, *shape, dtype=torch.int32)
                engine.run(Job(values=levels, noise=noise))

            results[n] = seconds_of(batch, repeat=3)
    return results


def naive_forward(model, name: str, n: int, shape):
    import torch

    images = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, device="cuda")
    call = torch.compile(model) if name.endswith("compile") else model

    @torch.no_grad()
    def forward():
        return call(images)

    if not name.endswith("graph"):
        return forward
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            forward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward()
    return graph.replay


def seconds_of(call, repeat: int) -> float:
    """The median, after one call that warms up."""
    import torch

    call()
    times = []
    for _ in range(repeat):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def layer_milliseconds() -> dict[str, dict[str, float | str]]:
    """Layer -> contestant -> milliseconds, forward, batch 256, if it is not called otherwise; or 'failed' -> why."""
    import torch
    from torch.nn import functional as F

    from pixelcnn_fast import ops

    found: dict[str, dict[str, float | str]] = {}

    def masked(size, kind):
        mask = torch.zeros(size, size, device="cuda")
        mask[: size // 2] = 1
        mask[size // 2, : size // 2 + (kind == "B")] = 1
        return mask

    def convolution(title, c, size, kind, hw, dtype, joined=False):
        """joined: with batch norm's shift, residual and activation, each a call of its own where they are not fused."""
        x = torch.randn(256, c, hw, hw, device="cuda", dtype=dtype).contiguous(
            memory_format=torch.channels_last
        )
        w = torch.randn(c, c, size, size, device="cuda", dtype=dtype)
        m = masked(size, kind).to(dtype).expand_as(w).contiguous()
        live, half = (w * m)[:, :, : size // 2 + 1].contiguous(), size // 2
        shift = torch.randn(c, device="cuda", dtype=dtype) if joined else None

        def finished(y):
            return F.relu(y + x) if joined else y

        def fast():
            if joined:
                return ops.masked_conv_block(x, w, None, m, shift=shift, residual=x, activation="relu")
            return ops.masked_conv2d(x, w, None, m)

        def dense():
            return finished(F.conv2d(x, w * m, shift, padding=half))

        contestants = {
            "pixelcnn_fast": fast,
            "cuDNN, masked": dense,
            "cuDNN, cropped": lambda: finished(F.conv2d(F.pad(x, (half, half, half, 0)), live, shift)),
            "torch.compile": torch.compile(dense),
        }
        found[title] = {name: 1e3 * seconds_of(call, 20) for name, call in contestants.items()}

    def tolerant(title, call):
        try:
            call()
        except Exception as error:  # one layer's failure leaves the others' figures
            found[title] = {"failed": f"{type(error).__name__}: {error}"[:120]}

    a = torch.randn(256, 256, 32, 32, device="cuda", dtype=torch.bfloat16)
    logits = torch.randn(256, 256, 32, 32, device="cuda")
    levels = torch.randint(0, 256, (256, 32, 32), device="cuda")

    def gated():
        left, right = a.chunk(2, 1)
        return torch.tanh(left) * torch.sigmoid(right)

    def gate():
        contestants = {
            "pixelcnn_fast": lambda: ops.gated_activation(a),
            "eager": gated,
            "torch.compile": torch.compile(gated),
        }
        found[OPS[3]] = {name: 1e3 * seconds_of(call, 20) for name, call in contestants.items()}

    def entropy():
        return F.cross_entropy(logits, levels, reduction="none").sum((1, 2))

    def nll():
        last = logits.permute(0, 2, 3, 1).contiguous()[:, None]
        contestants = {
            "pixelcnn_fast": lambda: ops.categorical_nll(last, levels[:, None]),
            "eager": entropy,
            "torch.compile": torch.compile(entropy),
        }
        found[OPS[4]] = {name: 1e3 * seconds_of(call, 20) for name, call in contestants.items()}

    def recurrence(title, op, taps):
        sums = torch.randn(64, 512, 32, 32, device="cuda", requires_grad=True)
        weight = (0.05 * torch.randn(512, 128, taps, device="cuda")).requires_grad_()
        grad = torch.randn(64, 128, 32, 32, device="cuda")

        def step(backend):
            torch.autograd.grad(op(sums, weight, backend=backend), (sums, weight), grad)

        contestants = {"pixelcnn_fast": "triton", "loop": "reference"}
        found[title] = {
            name: 1e3 * seconds_of(lambda b=backend: step(b), 5) for name, backend in contestants.items()
        }

    tolerant(OPS[0], lambda: convolution(OPS[0], 128, 3, "B", 32, torch.bfloat16))
    tolerant(OPS[1], lambda: convolution(OPS[1], 64, 7, "A", 28, torch.bfloat16))
    tolerant(OPS[2], lambda: convolution(OPS[2], 128, 3, "B", 32, torch.bfloat16, joined=True))
    tolerant(OPS[3], gate)
    tolerant(OPS[4], nll)
    tolerant(OPS[5], lambda: recurrence(OPS[5], ops.row_lstm, 3))
    tolerant(OPS[6], lambda: recurrence(OPS[6], ops.diagonal_lstm, 2))
    return found


# -- the table


def predictions(device: str) -> dict[tuple[str, int], float]:
    """(variant, batch) -> seconds for the default model in bf16; on an H100 if there is no GPU."""
    from cuda_resources import ARCHS, plans_of_default

    from pixelcnn_fast.native import native
    from pixelcnn_fast.runtimes.cuda_cost import GPUS, gpu_like, seconds

    module = native()
    if module is None or not module.build_info()["cuda"]:
        return {}
    arch = next((a for a, figures in ARCHS.items() if figures.gpu in device), "90a")
    plans, gpu = plans_of_default(module, ("bf16",), (arch,)), gpu_like(device, GPUS["H100"].multiprocessors)
    found = {}
    for (_, _, variant), facts in plans.items():
        cluster = 1 < facts["stages"] <= ARCHS[arch].largest_cluster
        for n in BATCHES:
            found[variant, n] = seconds(facts, variant, gpu, n, cluster, 32, 32)
    return found


def table(device: str, done: list[dict]) -> str:
    predicted = predictions(device)
    lines = [f"# {device}", "", "| stage | status | seconds |", "|---|---|---|"]
    lines += [f"| {d['stage']} | {d['status']} | {d['seconds']} |" for d in done]
    lines += ["", "Sampling 3x32x32 with the default PixelCNN: seconds for the batch, predicted | measured", ""]
    lines += ["| | " + " | ".join(map(str, BATCHES)) + " |", "|---" * (len(BATCHES) + 1) + "|"]
    measured = {d["stage"].removeprefix("sampling: "): d.get("result", {}) for d in done}
    for name in SAMPLERS:
        cells = []
        for n in BATCHES:
            guess, value = predicted.get((name, n)), measured.get(name, {}).get(str(n))
            cells.append(
                f"{f'{guess:.4g}' if guess else '-'} / {f'{value:.4g}' if value else 'not yet measured'}"
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    layers: dict = next((d["result"] for d in done if d["stage"] == "layers" and "result" in d), {})
    if layers:
        lines += [
            "",
            "Layers, forward, batch 256, where they don't say otherwise: milliseconds",
            "",
            "| layer | |",
            "|---|---|",
        ]
        for layer, times in layers.items():
            shown = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k}: {v}" for k, v in times.items())
            lines.append(f"| {layer} | {shown} |")
    acceleration = next((d for d in done if d["stage"] == "acceleration"), None)
    if acceleration and (path := Path(acceleration["tail"][-1])).suffix == ".md" and path.is_file():
        lines += ["", *path.read_text().splitlines()]
    return "\n".join(lines)[:MOST_CHARACTERS]


def main() -> None:
    if sys.argv[1:2] == ["sampling"]:
        print(json.dumps(sampling_seconds(sys.argv[2])))
        return
    if sys.argv[1:2] == ["layers"]:
        print(json.dumps(layer_milliseconds()))
        return
    import torch

    gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else "no GPU (predictions are for an H100)"
    done = stages(gpu)
    if gpu:
        name = re.sub(r"\W+", "-", device.lower()).strip("-")
        path = ROOT / "benchmarks" / "results" / f"{name}.json"
        path.write_text(
            json.dumps({"device": device, "torch": torch.__version__, "stages": done}, indent=1) + "\n"
        )
    print(table(device, done))
    sys.exit(any(d["status"] != "ok" for d in done))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
