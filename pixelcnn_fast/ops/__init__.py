"""Stateless operators, each with a compiled CPU kernel, a Triton kernel and a plain
reference. All but ``masked_conv_block`` are differentiable; all work under
``torch.compile(fullgraph=True)`` and autocast."""

from pixelcnn_fast.ops.categorical_nll.op import categorical_nll
from pixelcnn_fast.ops.concat_elu.op import concat_elu
from pixelcnn_fast.ops.diagonal_lstm.op import diagonal_lstm
from pixelcnn_fast.ops.gated_activation.op import gated_activation
from pixelcnn_fast.ops.masked_conv2d.op import masked_conv2d
from pixelcnn_fast.ops.masked_conv_block.op import masked_conv_block
from pixelcnn_fast.ops.row_lstm.op import row_lstm

__all__ = [
    "categorical_nll",
    "concat_elu",
    "diagonal_lstm",
    "gated_activation",
    "masked_conv2d",
    "masked_conv_block",
    "row_lstm",
]
