"""``compile``: compiles the CUDA sampler's kernels ahead of time."""

from __future__ import annotations

import argparse
import os
import shlex
from contextlib import closing
from pathlib import Path

import torch

from pixelcnn_fast.bench.arguments import output_folder, path, whole
from pixelcnn_fast.bench.streams import say
from pixelcnn_fast.cli.interrupts import interrupts
from pixelcnn_fast.errors import RuntimeUnavailable
from pixelcnn_fast.progress import progress_bar
from pixelcnn_fast.runtimes import DTYPES
from pixelcnn_fast.runtimes.cuda import compilers
from pixelcnn_fast.runtimes.cuda.kernels import READY, digest, instances, sources
from pixelcnn_fast.runtimes.cuda.store import Store

MATHS = {"float32" if dtype is torch.float32 else math: math for math, dtype in DTYPES.items()}
EPILOG = f"""examples:
  python -m pixelcnn_fast compile --arch 90 --precision bf16 --out kernels     for an H100, and a model in bf16
  python -m pixelcnn_fast compile --arch 80 90 100 --out kernels               for A100, H100 and B200
  {READY}=kernels python -m pixelcnn_fast sample --runtime cuda

Without this command, a kernel compiles when it is first needed, which takes some ten seconds, and is kept in a cache.
Compile them for containers, clusters and other machines that have no compiler or no cache that lasts. No GPU is needed.
What is in the folder is not compiled again, and what is finished is kept, so the same command goes on where it was
stopped. The kernels of other versions of this library are refused, so compile them again after an update. --arch is the
compute capability without its dot, such as 90 for 9.0; a GPU also takes those of smaller minor versions.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    about = "compile the CUDA sampler's kernels ahead of time"
    parser = commands.add_parser("compile", help=about, description=about, epilog=EPILOG)
    add = parser.add_argument
    gpus = "for these GPUs, such as 90 (default: those of this machine)"
    add("--arch", type=whole(80, 199), nargs="+", metavar="ARCH", help=gpus)
    default, what = ["float32", "bf16"], "what is multiplied (default: float32 bf16)"
    add("--precision", nargs="+", choices=MATHS, default=default, help=what)
    add("--out", type=path, default=Path("kernels"), metavar="FOLDER", help="(default: kernels)")
    add("--compiler", choices=("nvrtc", "nvcc"), help="(default: nvrtc, or nvcc where that is missing)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    try:
        return _compiled(args, _compiler(args.compiler))
    except RuntimeUnavailable as error:  # nobody has asked for a runtime
        raise ValueError(error.why) from error


def _compiled(args: argparse.Namespace, compiler: compilers.Compiler) -> int:
    archs = sorted(set(args.arch or _own_archs()))
    known = compiler.architectures()
    if unknown := [arch for arch in archs if arch not in known]:
        raise ValueError(f"--arch {unknown[0]}: {compiler} knows {', '.join(map(str, known))}")
    maths = dict.fromkeys(MATHS[precision] for precision in args.precision)
    wanted = [(arch, kernel) for arch in archs for kernel in instances(maths, divmod(arch, 10))]
    store = Store(args.out, digest())
    output_folder(store.folder, *(store.path(kernel.name_for(arch)).name for arch, kernel in wanted))
    missing = [(arch, kernel) for arch, kernel in wanted if store.get(kernel.name_for(arch)) is None]
    cubins = compiler.compiled_each(sources(), [(arch, kernel.options) for arch, kernel in missing])
    bar = progress_bar(shown=True, initial=len(wanted) - len(missing), total=len(wanted), unit="kernel")
    with bar, closing(cubins):
        for index, cubin in cubins:
            arch, kernel = missing[index]
            with interrupts.wait():
                store.put(kernel.name_for(arch), cubin)
            bar.update()
    folder = shlex.quote(str(store.folder.resolve()))
    say(f"{len(wanted)} kernels in {store.folder}, by {compiler}: {READY}={folder} uses them")
    return 0


def _compiler(name: str | None) -> compilers.Compiler:
    found: compilers.Compiler | None = getattr(compilers, name or "compiler")()
    if found is None:
        named = (
            f": CUDACXX is {os.environ['CUDACXX']}" if name == "nvcc" and os.environ.get("CUDACXX") else ""
        )
        raise ValueError(f"there is no {name or 'NVRTC (pip install nvidia-cuda-nvrtc) and no nvcc'}{named}")
    return found


def _own_archs() -> list[int]:
    """Those of this machine's GPUs, such as 90 for compute capability 9.0."""
    if not torch.cuda.is_available():
        raise ValueError("--arch is needed, as this machine has no GPU: such as --arch 90 for an H100")
    capabilities = map(torch.cuda.get_device_capability, range(torch.cuda.device_count()))
    return [10 * major + minor for major, minor in capabilities]
