"""What a check computes by the library's own kernels is what PyTorch computes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelcnn_fast.check import fast_products
from pixelcnn_fast.check.fast_products import FastProducts
from pixelcnn_fast.native import native

GENERATOR = torch.Generator().manual_seed(0)
needs_native = pytest.mark.skipif(native() is None, reason="the compiled module is not built")


def numbers(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=GENERATOR, dtype=dtype)


X, KERNEL, BIAS = numbers(2, 24, 20, 18), numbers(40, 24, 3, 5), numbers(40)
MATRIX = numbers(300, 200)
OWN: dict[str, Callable[[], Tensor]] = {
    "of a padded map": lambda: F.conv2d(X, KERNEL, BIAS, padding=(1, 4)),
    "of an even kernel": lambda: F.conv2d(X, KERNEL[..., :2, :4], padding=(2, 3), dilation=(3, 2)),
    "with channels last": lambda: F.conv2d(X.contiguous(memory_format=torch.channels_last), KERNEL),
    "of matrices": lambda: MATRIX @ MATRIX[:200, :100],
    "of transposed matrices": lambda: MATRIX.t() @ MATRIX,
}
PYTORCHS: dict[str, Callable[[], Tensor]] = {
    "with strides": lambda: F.conv2d(X, KERNEL, stride=(1, 2)),
    "in groups": lambda: F.conv2d(X, KERNEL[:, :12], groups=2),
    "transposed": lambda: F.conv_transpose2d(X, KERNEL.transpose(0, 1)),
    "along one axis": lambda: F.conv1d(X.flatten(2), KERNEL[..., 0]),
    "of a small map": lambda: F.conv2d(X[:, :, :4, :6], KERNEL),
    "of batches": lambda: MATRIX[None] @ MATRIX.t()[None],
    "of integers": lambda: MATRIX.long() @ MATRIX.t().long(),
    "as the model rounds": lambda: F.conv2d(X.float(), KERNEL.float()),
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """The arguments with which the library's own convolution was called."""
    found, own = list[tuple[object, ...]](), fast_products.masked_conv2d

    def noted(*args: object, **kwargs: object) -> Tensor:
        found.append(args)
        result: Tensor = own(*args, **kwargs)  # type: ignore[arg-type]  # as they come
        return result

    monkeypatch.setattr(fast_products, "masked_conv2d", noted)
    return found


@needs_native
@pytest.mark.parametrize("product", [*OWN, *PYTORCHS])
def test_large_products_are_the_same(product: str, calls: list[tuple[object, ...]]) -> None:
    compute = {**OWN, **PYTORCHS}[product]
    with torch.inference_mode(product == "of matrices"), FastProducts():
        found = compute()
    torch.testing.assert_close(found, compute(), rtol=1e-12, atol=1e-12)
    assert len(calls) == (product in OWN)


def test_without_the_compiled_module_pytorch_computes_them(
    monkeypatch: pytest.MonkeyPatch, calls: list[tuple[object, ...]]
) -> None:
    monkeypatch.setenv("PIXELCNN_FAST_NATIVE", "0")
    with torch.no_grad(), FastProducts():
        found = F.conv2d(X, KERNEL)
    assert torch.equal(found, F.conv2d(X, KERNEL)) and not calls
