"""Which kernel a GPU gets, from where, and what is said if it gets none."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pixelcnn_fast.errors import RuntimeUnavailable
from pixelcnn_fast.runtimes.cuda import driver, kernels
from pixelcnn_fast.runtimes.cuda.compilers import Compiler
from pixelcnn_fast.runtimes.cuda.kernels import DeviceKernels, Instance
from pixelcnn_fast.runtimes.cuda.store import Store
from tests.needs import needs_native

pytestmark = needs_native
H100 = (9, 0)
KERNEL = Instance("bf16", 1)


class Pretended(Compiler):
    """Cubins that name what was asked for."""

    path = Path("/pretended")

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.version = 1

    @property
    def identity(self) -> str:
        return f"pretended-{self.version}"

    def architectures(self) -> list[int]:
        return [75, 80, 86, 90, 100]

    def compiled(self, sources, architecture, options=()) -> bytes:
        self.asked.append(architecture)
        return f"{architecture} {' '.join(options)}".encode()


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pretended:
    found = Pretended()
    monkeypatch.setattr(kernels, "compilers", lambda: [found])
    monkeypatch.setenv("PIXELCNN_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PIXELCNN_FAST_KERNELS", raising=False)
    return found


def test_there_is_one_for_each_number_of_tiles_and_each_size_of_a_cluster() -> None:
    found = kernels.instances(["fp32", "bf16"])
    assert found[:3] == [Instance("fp32", 1), Instance("fp32", 2), Instance("fp32", 1, 2)]
    assert len(found) == 5 + 11 and len({str(instance) for instance in found}) == 16


def test_the_sources_are_the_compiled_module_s() -> None:
    sources = kernels.sources()
    assert {"tables.h", "cuda/layout.h", "cuda/kernels/kernel.cu"} < set(sources)
    included = {
        line.split('"')[1] for text in sources.values() for line in text.splitlines() if '#include "' in line
    }
    assert included - set(sources) == {"emulation/device.h"}  # of the host's


def test_a_kernel_is_compiled_once_and_kept(compiler: Pretended) -> None:
    first = kernels.cubin(KERNEL, H100)
    assert kernels.cubin(KERNEL, H100) == first == b"90 -DPCF_MATH=bf16 -DPCF_TILES=1 -DPCF_BLOCKS=1"
    assert b"BLOCKS=8" in kernels.cubin(Instance("bf16", 1, 8), H100)
    assert compiler.asked == [90, 90]


def test_another_compiler_and_other_sources_make_it_again(compiler: Pretended, monkeypatch) -> None:
    kernels.cubin(KERNEL, H100)
    compiler.version = 2
    kernels.cubin(KERNEL, H100)
    monkeypatch.setattr(kernels, "digest", lambda: "0" * 64)
    kernels.cubin(KERNEL, H100)
    assert compiler.asked == [90, 90, 90]


@pytest.mark.parametrize("capability, expected", [((8, 0), 80), ((8, 9), 86), ((9, 0), 90), ((10, 3), 100)])
def test_the_largest_architecture_that_the_gpu_executes(capability, expected) -> None:
    assert kernels.architecture_for(capability, Pretended().architectures()) == expected


def test_a_gpu_that_the_compiler_does_not_know(compiler: Pretended) -> None:
    with pytest.raises(
        RuntimeUnavailable, match="knows no architecture for compute capability 12.0: a newer one"
    ):
        kernels.cubin(KERNEL, (12, 0))


def test_those_of_a_folder_come_first(compiler: Pretended, monkeypatch, tmp_path: Path) -> None:
    ready = Store(tmp_path / "ready", kernels.digest())
    ready.put(f"{KERNEL}-sm_80", b"ready")
    monkeypatch.setenv("PIXELCNN_FAST_KERNELS", str(ready.folder))
    assert kernels.cubin(KERNEL, (8, 6)) == b"ready" and compiler.asked == []
    assert kernels.cubin(KERNEL, H100).startswith(b"90") and compiler.asked == [90]
    Store(ready.folder, "other").put(f"{KERNEL}-sm_90", b"old")
    with pytest.raises(RuntimeUnavailable, match="bf16-1x1-sm_90.kernel was compiled from other sources"):
        kernels.cubin(KERNEL, H100)


def test_without_a_compiler(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernels, "compilers", list)
    monkeypatch.setattr(driver, "version", lambda: 13000)
    monkeypatch.delenv("PIXELCNN_FAST_KERNELS", raising=False)
    assert "nvidia-cuda-nvrtc" in (kernels.why_no_kernels() or "")
    monkeypatch.setenv("PIXELCNN_FAST_KERNELS", str(tmp_path))
    assert kernels.why_no_kernels() is None
    with pytest.raises(
        RuntimeUnavailable, match=f"{tmp_path} has no kernel bf16-1x1 for compute capability 9.0"
    ):
        kernels.cubin(KERNEL, H100)
    monkeypatch.setenv("PIXELCNN_FAST_KERNELS", "")
    with pytest.raises(RuntimeUnavailable, match="no compiler to make one: .* compile --arch 90"):
        kernels.cubin(KERNEL, H100)


@pytest.mark.parametrize("version, why", [(0, "no CUDA driver"), (11040, "serves CUDA 11.4"), (11080, None)])
def test_drivers(compiler: Pretended, monkeypatch, version: int, why: str | None) -> None:
    monkeypatch.setattr(driver, "version", lambda: version)
    found = kernels.why_no_kernels()
    assert found is None if why is None else why in (found or "")


def test_a_failure_is_not_tried_again(compiler: Pretended, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: False)
    device = DeviceKernels(0, (12, 0), 1 << 16)
    for _ in range(2):
        with pytest.raises(RuntimeUnavailable, match="compute capability 12.0"):
            device.get(KERNEL)
    monkeypatch.setattr(kernels, "architecture_for", lambda *_: 90)
    monkeypatch.setattr(kernels, "LoadedKernel", lambda *given: given)
    with pytest.raises(RuntimeUnavailable, match="compute capability 12.0") as again:
        device.get(KERNEL)
    assert device.get(Instance("bf16", 1, 2))  # which is another one's
    assert len(again.traceback) == 2, "an error of its own, which holds nobody else's frames"


def test_each_kernel_is_loaded_once_and_on_its_own_gpu(compiler: Pretended, monkeypatch) -> None:
    properties = SimpleNamespace(major=9, minor=0, shared_memory_per_block_optin=1 << 16)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: properties)
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(kernels, "LoadedKernel", lambda *given: given)
    device, another = kernels.kernels_of.__wrapped__(3), Instance("bf16", 1, 2)
    for instance in (KERNEL, another):
        found, again = (cast(object, device.get(instance)) for _ in range(2))
        assert found == (kernels.cubin(instance, H100), 3, 1 << 16) and again is found


@pytest.mark.parametrize(
    "error",
    [AttributeError("it is odd"), OSError("it is odd"), UnicodeEncodeError("ascii", "é", 0, 1, "it is odd")],
)
def test_what_is_no_compiler_is_a_reason(compiler: Pretended, monkeypatch, error: Exception) -> None:
    def compiled(*_: object) -> bytes:
        raise error

    monkeypatch.setattr(compiler, "compiled", compiled)
    with pytest.raises(RuntimeUnavailable, match=f"{type(error).__name__}: .*it is odd"):
        kernels.cubin(KERNEL, H100)


def test_where_one_compiler_fails_the_next_is_asked(compiler: Pretended, monkeypatch) -> None:
    broken = Pretended()
    monkeypatch.setattr(broken, "architectures", lambda: [][0])
    monkeypatch.setattr(kernels, "compilers", lambda: [broken, compiler])
    with pytest.raises(IndexError):
        kernels.cubin(KERNEL, H100)  # a mistake of ours is not hidden

    def architectures() -> list[int]:
        raise OSError("it is no library")

    monkeypatch.setattr(broken, "architectures", architectures)
    assert kernels.cubin(KERNEL, H100).startswith(b"90")
    compiler.architectures = list  # type: ignore[method-assign]  # it knows none
    for all_fail in ([broken], [broken, compiler]):  # what is told is why the first does
        monkeypatch.setattr(kernels, "compilers", lambda all_fail=all_fail: all_fail)
        with pytest.raises(RuntimeUnavailable, match="it is no library"):
            kernels.cubin(Instance("bf16", 2), H100)


def test_nothing_is_said_where_nothing_compiles(compiler: Pretended, monkeypatch, capsys) -> None:
    with pytest.raises(RuntimeUnavailable, match="knows no architecture"):
        kernels.cubin(KERNEL, (13, 0))
    kernels.cubin(KERNEL, H100)
    assert capsys.readouterr().err.count("compiling") == 1
    broken = Pretended()
    broken.version = 7
    monkeypatch.setattr(kernels, "compilers", lambda: [broken, compiler])
    monkeypatch.setattr(broken, "architectures", list)
    assert kernels.cubin(KERNEL, H100).startswith(b"90") and capsys.readouterr().err == ""


def test_a_graph_s_capture_needs_prepare(compiler: Pretended, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"call sampler.prepare\(n\)"):
        DeviceKernels(0, H100, 1 << 16).get(KERNEL)
    assert compiler.asked == []


def test_a_folder_that_is_not_there_is_named(compiler: Pretended, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIXELCNN_FAST_KERNELS", str(tmp_path / "none"))
    with pytest.raises(RuntimeUnavailable, match="PIXELCNN_FAST_KERNELS=.*none is not a folder"):
        kernels.cubin(KERNEL, H100)
    for name, why in {"~nobody99/x": "determine home", "a" * 300: "File name too long"}.items():
        monkeypatch.setenv("PIXELCNN_FAST_KERNELS", name)
        with pytest.raises(RuntimeUnavailable, match=f"PIXELCNN_FAST_KERNELS={name} can't be used: .*{why}"):
            kernels.cubin(KERNEL, H100)


def test_kernels_of_changed_sources_have_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for changed in ({"a": "1", "b": "2"}, {"a": "1", "b": "3"}, {"a": "1", "c": "2"}, {"a": "1"}):
        monkeypatch.setattr(kernels, "sources", lambda changed=changed: changed)
        found.add(kernels.digest.__wrapped__())
    assert len(found) == 4
