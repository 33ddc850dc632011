"""What the driver is told, by a stand-in for it; and that cuda.h lays it out so."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pixelcnn_fast.errors import RuntimeUnavailable
from pixelcnn_fast.runtimes.cuda import driver
from pixelcnn_fast.runtimes.cuda.driver import Attribute, Configuration, Launch, LoadedKernel

CUDA_H = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "include", "cuda.h")


class Driver:
    """Records calls. fails: statuses of those that are to fail, by name."""

    def __init__(self, **fails: int) -> None:
        self.called: list[str] = []
        self.fails = fails
        self.launched: tuple[Configuration, list[int] | None, bytes] | None = None
        self.shared_bytes = 0
        self.device = -1

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.called.append(name)
            if name == "cuGetErrorString":
                arguments[1]._obj.value = b"no kernel image is available"
            if name == "cuDriverGetVersion":
                arguments[0]._obj.value = 12080
            if name == "cuDeviceGet":
                arguments[0]._obj.value = self.device = arguments[1]
            if name == "cuDevicePrimaryCtxRetain":
                assert arguments[1].value == self.device
            if name == "cuFuncSetAttribute":
                assert arguments[1] == 8
                self.shared_bytes = arguments[2]
            if name == "cuOccupancyMaxActiveClusters":
                arguments[0]._obj.value = 5
            if name == "cuLaunchKernelEx":
                config = arguments[0]._obj
                cluster = list(config.attributes[0].value[:3]) if config.n_attributes else None
                self.launched = config, cluster, ctypes.string_at(arguments[2][0], 4)
            return self.fails.get(name, 0)

        return call


def loaded(monkeypatch: pytest.MonkeyPatch, device: int = 0, **fails: int) -> tuple[LoadedKernel, Driver]:
    found = Driver(**fails)
    monkeypatch.setattr(driver, "_library", lambda: found)
    driver._context.cache_clear()
    return LoadedKernel(b"cubin", device, 232448), found


def test_pytorch_s_context_is_current_while_it_is_called(monkeypatch) -> None:
    kernel, found = loaded(monkeypatch)
    assert found.called == [
        *("cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2"),
        *("cuModuleLoadData", "cuModuleGetFunction", "cuFuncSetAttribute", "cuCtxPopCurrent_v2"),
    ]
    assert found.shared_bytes == 232448
    found.called.clear()
    kernel.launch(Launch(6, 256, 2, 1000), b"abcd", 77)
    assert found.called == ["cuCtxPushCurrent_v2", "cuLaunchKernelEx", "cuCtxPopCurrent_v2"]


@pytest.mark.parametrize("device", [0, 3])
def test_the_context_is_that_of_the_model_s_gpu(monkeypatch, device: int) -> None:
    assert loaded(monkeypatch, device)[1].device == device


@pytest.mark.parametrize("cluster", [1, 2, 8])
def test_a_launch(monkeypatch, cluster: int) -> None:
    kernel, found = loaded(monkeypatch)
    kernel.launch(Launch(16, 256, cluster, 1000), b"abcd", 77)
    assert found.launched is not None
    config, told, parameters = found.launched
    assert list(config.grid) == [16, 1, 1] and list(config.block) == [256, 1, 1]
    assert (config.shared_bytes, config.stream, parameters) == (1000, 77, b"abcd")
    assert told == (None if cluster == 1 else [cluster, 1, 1])


def test_how_many_clusters_run_at_once(monkeypatch) -> None:
    assert loaded(monkeypatch)[0].clusters_at_once(Launch(8, 256, 8, 1000)) == 5
    kernel, _ = loaded(monkeypatch, cuOccupancyMaxActiveClusters=1)
    assert kernel.clusters_at_once(Launch(8, 256, 8, 1000)) == 0


def test_a_refusal_is_quoted_and_the_context_put_back(monkeypatch) -> None:
    with pytest.raises(
        RuntimeUnavailable, match="CUDA error 209 of cuModuleLoadData: no kernel image"
    ) as refused:
        loaded(monkeypatch, cuModuleLoadData=209)
    assert refused.value.why.startswith("CUDA error 209")
    stand_in: Any = driver._library()
    called = stand_in.called
    assert called.count("cuCtxPushCurrent_v2") == called.count("cuCtxPopCurrent_v2") == 1


def test_versions(monkeypatch) -> None:
    monkeypatch.setattr(driver, "_library", Driver)
    assert driver.version() == 12080
    monkeypatch.setattr(driver, "_library", lambda: Driver(cuDriverGetVersion=3))
    assert driver.version() == 0


def test_no_driver_is_a_clear_refusal(monkeypatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    driver._library.cache_clear()
    monkeypatch.setattr(
        driver, "ctypes", SimpleNamespace(CDLL=missing, c_int=ctypes.c_int, byref=ctypes.byref)
    )
    with pytest.raises(RuntimeUnavailable, match="no CUDA driver is installed.*libcuda.so.1.*install"):
        driver._library()
    assert driver.version() == 0


@pytest.mark.skipif(not CUDA_H.exists() or not shutil.which("g++"), reason="no cuda.h or no g++")
def test_structures_are_cuda_s(tmp_path: Path) -> None:
    source = tmp_path / "layout.cpp"
    source.write_text("""
#include <cstddef>
#include <cstdio>
#include <cuda.h>
int main() {
  std::printf("%zu %zu %zu %zu ", sizeof(CUlaunchAttribute), offsetof(CUlaunchAttribute, value),
              sizeof(CUlaunchConfig), offsetof(CUlaunchConfig, blockDimX));
  std::printf("%zu %zu %zu %zu ", offsetof(CUlaunchConfig, sharedMemBytes), offsetof(CUlaunchConfig, hStream),
              offsetof(CUlaunchConfig, attrs), offsetof(CUlaunchConfig, numAttrs));
  std::printf("%d %d", CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
}
""")
    program = tmp_path / "layout"
    subprocess.run(["g++", f"-I{CUDA_H.parent}", "-o", program, source], check=True)
    found = [
        int(x) for x in subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    ]
    fields = ("block", "shared_bytes", "stream", "attributes", "n_attributes")
    offsets = [getattr(Configuration, name).offset for name in fields]
    attribute = [ctypes.sizeof(Attribute), Attribute.value.offset]
    constants = [driver.CLUSTER_DIMENSION, driver.MOST_SHARED_BYTES]
    assert found == [*attribute, ctypes.sizeof(Configuration), *offsets, *constants]
