"""Says what to do in place of a refused call, for messages and for docs/supported_calls.md."""

from __future__ import annotations

from typing import NamedTuple

from pixelcnn_fast.program.calls import Call, plain_name


class Refused(NamedTuple):
    """Calls as users write them, separated by spaces; why they are refused; what to do instead, in Markdown."""

    calls: str
    why: str
    instead: str

    @property
    def names(self) -> list[str]:
        return self.calls.split()


REFUSED = [
    Refused(
        "max_pool2d adaptive_avg_pool2d adaptive_max_pool2d interpolate(x,mode='bilinear') grid_sample",
        "They are no sums, or sums that differ from pixel to pixel.",
        "`max_pool2d` of whole cells, such as `max_pool2d(x, 2)`, is `x.view(n, c, h, 2, w, 2).amax((3, 5))`, and of "
        "others the `maximum` of maps that are shifted by `pad` and a slice; to average and to enlarge, there are "
        "`avg_pool2d`, `interpolate` with the nearest pixel, and `conv2d` and `conv_transpose2d` with a stride.",
    ),
    Refused(
        "conv3d",
        "Only convolutions over the two axes of an image have an instruction.",
        "Write it as a `conv2d` whose kernel has size 1 along the other axis.",
    ),
    Refused(
        "group_norm(x,groups) instance_norm batch_norm(x,training=True) layer_norm(x,(C,H,W)) mean(x,(2,3)) "
        "sum(x,(2,3))",
        "What is taken over an image includes pixels that are not drawn yet, so such a model is not causal.",
        "Use `batch_norm` in eval mode, or a `layer_norm`, `mean` or `sum` over the channels of each pixel.",
    ),
    Refused(
        "local_response_norm",
        "Statistics over neighbouring channels have no step.",
        "Use a `layer_norm` or `rms_norm` over all channels of each pixel.",
    ),
    Refused(
        "matmul(x,y)",
        "What is summed over is not the features of one pixel.",
        "At each pixel, the product of two features is `(x * y).sum(1)`; across pixels, attention is the product of "
        "[.., pixels, features] and [.., features, pixels], a mask, a softmax and the product with [.., pixels, "
        "features].",
    ),
    Refused(
        "bilinear cdist dot",
        "Sums of products of features have no instruction of their own.",
        "Multiply the maps, and sum by `sum` or a 1×1 `conv2d`: at each pixel, the distance of two maps is "
        "`(x - y).square().sum(1).sqrt()`.",
    ),
    Refused(
        "argmax argmin median sort topk cummax",
        "Which element is found depends on the image.",
        "The largest and the smallest element over the channels are `amax` and `amin`, and of two maps `maximum` and "
        "`minimum`.",
    ),
    Refused(
        "logcumsumexp cumprod",
        "They have no step of their own.",
        "Write it with `exp`, `log` and `cumsum`, as in `x.exp().cumsum(1).log()`.",
    ),
    Refused(
        "gt ge lt le eq ne logical_and logical_or logical_not isnan isfinite",
        "A mask that depends on features has no step; on one level of the image, it is looked up.",
        "`where(x > 0, x, a * x)` is `leaky_relu(x, a)`; many others are a `clamp`, `maximum` or `minimum`.",
    ),
    Refused(
        "round floor ceil trunc frac sign heaviside floor_divide remainder fmod div(x,rounding_mode='floor')",
        "They jump, so float rounding would decide between two results; on one level of the image, they are looked up.",
        "Leave it out, or apply it to the image itself.",
    ),
    Refused(
        "sin cos tan sinh cosh atan atan2 log1p expm1 log2 log10 logaddexp hypot",
        "They have no step; on one level of the image, they are looked up.",
        "Use `exp`, `log` and `sqrt`, as in `(1 + x).log()`, or an activation that has a step.",
    ),
    Refused("pow(x,y)", "The exponent depends on the image.", "Write `x ** y` as `(y * x.log()).exp()`."),
    Refused(
        "threshold hardshrink copysign",
        "They jump.",
        "`threshold(x, 0, 0)` is `relu(x)`, and in place of `hardshrink` there is `softshrink`.",
    ),
    Refused(
        "nan_to_num",
        "It has no step.",
        "Leave it out: a model whose logits are not finite is refused when it is sampled.",
    ),
    Refused(
        "mse_loss cross_entropy",
        "Their result is one number for all images.",
        "Return what the loss is taken of, or name it with `output=`.",
    ),
    Refused("fmax fmin", "They have no step.", "Use `maximum` and `minimum`, which differ for NaN only."),
    Refused(
        "rrelu(x,training=True) bernoulli rand_like randn_like randint_like",
        "They draw random numbers, as `dropout` does, which would become part of the model.",
        "Draw none in eval mode: pass `training=self.training`.",
    ),
    Refused(
        "multinomial",
        "It draws levels, as a forward does that draws the image itself.",
        "Pass the module that gives logits for a whole image: drawing is what a sampler does.",
    ),
    Refused(
        "gather(x,1,y) take(x,y) scatter(x,1,y,z) index_put(x,y,z)",
        "Which elements are read or written depends on the image.",
        "For levels, use `embedding`, `weight[levels]`, `index_select` or `one_hot`; for `x[mask] = y`, `where`.",
    ),
    Refused(
        "index_add scatter_add index_reduce embedding_bag masked_scatter",
        "They have no instruction.",
        "With constant indices that differ, write `x[:, indices] += y`, or a `linear` layer whose weight sums.",
    ),
    Refused(
        "bucketize searchsorted isin count_nonzero any all",
        "They have no instruction.",
        "Compare the levels with constants, and sum: `(levels[..., None] >= bounds).float().sum(-1)`.",
    ),
    Refused("pad(reflect) pad(replicate)", "What they copy is no shift of the map.", "Pad with a number."),
    Refused("fold", "It sums windows that overlap.", "Write `unfold`, a product and `fold` as one `conv2d`."),
    Refused(
        "complex fft", "A program has real numbers only.", "Keep the real and the imaginary part as channels."
    ),
    Refused(
        "to(x,half)",
        "It rounds features to a dtype of lower precision than the model's own.",
        "Leave the conversion, or `autocast`, out; convert the whole model instead.",
    ),
    Refused(
        "embedding(max_norm=1)",
        "It changes its weight when it is called.",
        "Scale the weight once, before the sampler is built.",
    ),
]

_INSTEAD = {name.partition("(x")[0]: refused.instead for refused in REFUSED for name in refused.names}
GENERAL = (
    "Write it with the calls that docs/supported_calls.md lists; on weights, labels and conditions alone, any call is "
    "supported"
)


def instead(name: str) -> str:
    """What to do instead of a call that friendly_name names."""
    return _INSTEAD.get(name, GENERAL).removesuffix(".").replace("`", "")


NAMES = {
    "max_pool2d_with_indices": "max_pool2d",
    "avg_pool3d": "local_response_norm",
    "grid_sampler_2d": "grid_sample",
    "im2col": "unfold",
    "col2im": "fold",
    "_trilinear": "bilinear",
    "_cdist_forward": "cdist",
    "_embedding_bag_forward_only": "embedding_bag",
    "embedding_renorm": "embedding(max_norm=1)",
    "rrelu_with_noise": "rrelu",
    "mkldnn_rnn_layer": "lstm",
    "_cudnn_rnn": "lstm",
    "reflection_pad2d": "pad(reflect)",
    "replication_pad2d": "pad(replicate)",
    "constant_pad_nd": "pad",
    "_to_copy": "to",
    **dict.fromkeys(("mm", "bmm", "mv", "addmm", "baddbmm"), "matmul"),
}
FAMILIES = {
    **dict.fromkeys(("upsample_", "_upsample_"), "interpolate"),
    "_scaled_dot_product_": "scaled_dot_product_attention",
    "nll_loss": "cross_entropy",
    "_fft_": "fft",
}


def friendly_name(call: Call) -> str:
    name = plain_name(call.name)
    if name == "convolution":
        stride, transposed = call.args[3], call.args[6]
        return f"conv{'_transpose' if transposed else ''}{len(stride)}d"
    family = next((family for prefix, family in FAMILIES.items() if name.startswith(prefix)), None)
    return family or NAMES.get(name, name.removeprefix("_").removeprefix("native_"))
