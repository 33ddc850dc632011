"""Networks with attention as people write them, of which ``foreign.py`` has the settings."""

import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

# -- attention over what the convolutions saw, and over the image itself; the first pixel attends to nothing


class Snail(nn.Module):
    places: torch.Tensor

    def __init__(self, levels, width=8, heads=2, size=(5, 6)):
        super().__init__()
        self.heads = heads
        self.above, self.left = nn.Conv2d(1, width, (2, 3)), nn.Conv2d(1, width, (1, 2))
        self.inner, self.gates = nn.Conv2d(width, width, 2), nn.Conv2d(width, 2 * width, 1)
        self.query, self.pairs = nn.Conv2d(width + 2, width, 1), nn.Conv2d(width + 3, 2 * width, 1)
        self.mix, self.out = nn.Conv2d(width, width, 1), nn.Conv2d(width, levels, 1)
        rows, columns = (torch.linspace(-0.5, 0.5, each) for each in size)
        grid = torch.meshgrid(rows, columns, indexing="ij")
        self.register_buffer("places", torch.stack(grid)[None])

    def forward(self, x):
        n, _, height, width = x.shape
        up = F.pad(self.above(F.pad(x, (1, 1, 2, 0))), (0, 0, 0, 0))[:, :, :height]
        h = up + self.left(F.pad(x, (2, 0)))[..., :width]
        a, b = self.gates(F.elu(self.inner(F.pad(F.elu(h), (1, 0, 1, 0))))).chunk(2, 1)
        h = h + a * b.sigmoid()
        places = self.places.expand(n, -1, -1, -1)
        q, (k, v) = (
            self.query(torch.cat([h, places], 1)),
            self.pairs(torch.cat([h, x, places], 1)).chunk(2, 1),
        )
        q, k, v = (y.reshape(n, self.heads, -1, height * width) for y in (q, k, v))
        earlier = torch.ones(height * width, height * width, dtype=x.dtype).tril(-1)
        scores = (q.transpose(2, 3) @ k / k.shape[2] ** 0.5).masked_fill(earlier == 0, -1e4)
        weights = F.dropout(scores.softmax(3) * earlier.amax(1, keepdim=True), 0.1, self.training)
        found = (v @ weights.transpose(2, 3)).view(h.shape)
        return 4 * self.out(F.elu(h + self.mix(F.elu(found))))


# -- a transformer over the pixels as tokens, the first of which is a start


class Tokens(nn.Module):
    def __init__(self, levels, width=8, heads=2, layers=2, tokens=30):
        super().__init__()
        self.start, self.embed = nn.Parameter(torch.randn(1, 1, width)), nn.Embedding(levels, width)
        self.places = nn.Parameter(torch.randn(tokens, width))
        layer = nn.TransformerEncoderLayer(width, heads, 12, 0.1, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, levels)
        for weights in self.layers.parameters():
            nn.init.normal_(weights, std=0.5) if weights.dim() > 1 else nn.init.normal_(weights, std=0.1)

    def forward(self, images):
        n, _, height, width = images.shape
        x = self.embed(images.flatten(1).long())
        x = torch.cat([self.start.expand(n, 1, -1), x[:, :-1]], 1) + self.places
        mask = nn.Transformer.generate_square_subsequent_mask(height * width, dtype=x.dtype)
        x = self.layers(x, mask=mask, is_causal=True)
        return 3 * self.out(self.norm(x)).view(n, 1, height, width, self.out.out_features)


# -- a transformer with the tokens' axis first: positions in a table, blocks after a norm, a mask of numbers


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width))
        for weights in (self.attn.in_proj_weight, self.attn.out_proj.weight):
            nn.init.normal_(weights, std=0.5)

    def forward(self, x):
        mask = torch.full((len(x), len(x)), -float("inf"), dtype=x.dtype)
        x = self.norm_1(x)
        found, _ = self.attn(x, x, x, attn_mask=torch.triu(mask, diagonal=1), need_weights=False)
        x = x + found
        return x + self.mlp(self.norm_2(x))


class StartToken(nn.Module):
    def __init__(self, levels, width=8, heads=4, layers=1, tokens=30):
        super().__init__()
        self.start = nn.Parameter(torch.randn(width))
        self.tokens, self.places = nn.Embedding(levels, width), nn.Embedding(tokens, width)
        self.layers = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, levels, bias=False)

    def forward(self, images):
        n, _, height, width = images.shape
        x = images.view(n, -1).permute(1, 0).long()
        places = self.places(torch.arange(len(x)))[:, None]
        h = torch.cat([self.start.expand(1, n, -1), self.tokens(x[:-1])]) + places
        for layer in self.layers:
            h = layer(h)
        return 2 * self.head(self.norm(h)).permute(1, 2, 0).view(n, -1, height, width)


# -- along columns, in a stack that sees the rows above; along rows; in windows


def split_heads(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)  # [..., heads, places, channels]


class Axial(nn.Module):
    def __init__(self, levels, width=8, heads=2):
        super().__init__()
        self.heads = heads
        self.embed, self.above = nn.Conv2d(1, width, 1), nn.Conv2d(width, width, (1, 3), padding=(0, 1))
        self.of_columns, self.to_columns = nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.link = nn.Linear(width, width)
        self.of_rows, self.of_windows = nn.Linear(width, 3 * width), nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, levels)

    def attend(self, q, k, v, mask):
        q, k, v = (split_heads(x, self.heads) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(-3, -2).flatten(-2)

    def forward(self, x):
        e = self.embed(2 * x - 1)
        n, c, height, width = e.shape
        above = self.above(F.pad(e, (0, 0, 1, -1))).permute(0, 3, 2, 1)  # [N, W, H, C]
        k, v = self.of_columns(e.permute(0, 3, 2, 1)).chunk(2, -1)
        earlier = torch.ones(height, height, dtype=torch.bool).tril(-1)
        vertical = torch.tanh(above + self.attend(self.to_columns(above), k, v, earlier)).transpose(1, 2)
        h = self.link(vertical) + F.pad(e, (1, -1)).permute(0, 2, 3, 1)  # [N, H, W, C]
        q, k, v = (3 * self.of_rows(h)).chunk(3, -1)
        h = h + self.attend(q, k, v, torch.ones(width, width, dtype=torch.bool).tril())
        y, across = torch.arange(height * width) // width, torch.arange(height * width) % width
        down, right = y[:, None] - y, across[:, None] - across
        near = (down == 1) & (right.abs() <= 1) | (down == 0) & (right >= 0) & (right <= 2)
        q, k, v = (2 * self.of_windows(h.flatten(1, 2))).chunk(3, -1)
        found = self.attend(q, k, v, near)
        h = F.gelu(h + found.view(h.shape))
        return 3 * self.out(h).permute(0, 3, 1, 2)


# -- weights by hand, and weights whose first row is cleared; background coordinates; gated residuals of ELUs


class Weights(nn.Module):
    """Attention over the pixels before, to features that see their own pixel."""

    def __init__(self, of_query, of_key, width, heads, by_hand):
        super().__init__()
        self.heads, self.by_hand = heads, by_hand
        self.q = weight_norm(nn.Conv2d(of_query, width, 1))
        self.kv = weight_norm(nn.Conv2d(of_key, 2 * width, 1))
        self.proj = weight_norm(nn.Conv2d(width, width, 1))

    def forward(self, of_query, of_key):
        n, _, height, width = of_query.shape
        mask = torch.tril(torch.ones(1, 1, height * width, height * width), diagonal=-1)
        q, k, v = (
            x.view(n, self.heads, -1, height * width)
            for x in (self.q(of_query), *self.kv(of_key).chunk(2, 1))
        )
        scores = torch.einsum("nhdi,nhdj->nhij", q, k) / math.sqrt(k.size(2))
        if self.by_hand:
            scores = scores - 1e10 * (1 - mask)
            powers = torch.exp(scores - torch.amax(scores, dim=-1, keepdim=True)) * mask
            weights = powers / (powers.sum(dim=-1, keepdim=True) + 1e-6)
        else:
            scores = scores.masked_fill(mask == 0, -torch.inf)
            weights = F.softmax(scores, dim=-1).masked_fill(mask == 0, 0)
        weights = F.dropout(weights, 0.1, self.training)
        return self.proj(torch.einsum("nhij,nhdj->nhdi", weights, v).reshape(n, -1, height, width))


class ByHand(nn.Module):
    background: torch.Tensor

    def __init__(self, levels, channels=2, width=8, heads=2, size=(4, 5)):
        super().__init__()
        self.above, self.left = nn.Conv2d(channels, width, (2, 3)), nn.Conv2d(channels, width, (1, 2))
        self.conv, self.gate = (
            weight_norm(nn.Conv2d(width, width, 2)),
            weight_norm(nn.Conv2d(width, 2 * width, 1)),
        )
        of_key = width + channels + 2
        self.weights = nn.ModuleList(
            Weights(width + 2, of_key, width, heads, by_hand) for by_hand in (True, False)
        )
        self.out = nn.Conv2d(width, channels * levels, 1)
        y, x = ((torch.arange(k) - k / 2) / k for k in size)
        self.register_buffer("background", torch.stack(torch.meshgrid(y, x, indexing="ij"))[None])

    def forward(self, x):
        n, _, height, width = x.shape
        h = self.above(F.pad(x, (1, 1, 2, -1))) + self.left(F.pad(x, (2, -1)))
        a, b = self.gate(F.elu(self.conv(F.pad(F.elu(h), (1, 0, 1, 0))))).chunk(2, 1)
        h = h + a * torch.sigmoid(b)
        background = self.background.expand(n, -1, -1, -1)
        for weights in self.weights:
            h = h + F.elu(weights(torch.cat((h, background), 1), torch.cat((x, h, background), 1)))
        return 4 * self.out(F.elu(h))
