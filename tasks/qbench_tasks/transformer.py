"""The decoder-only transformer of the language tasks.

It has RMSNorm before each part, RoPE, causal attention, SwiGLU and no biases. This is exactly
Llama's network (with `qk_norm`, Qwen3's), rotary halves included, so an exported model maps to a
configuration that other libraries load. Without the gate there is no such configuration. Every
matmul of the body is a QuantLinear; the embedding, the norms and the head stay in full precision.

Everything may have axes of runs in front: weights (K, outputs, inputs), norms (K, width), and
tokens (K, batch, time), or (batch, time) shared by all runs. With one such axis each run has, on
the CPU, the same bits as a single run. Apart from the matmuls, two operations would break this, and
are therefore computed run by run where needed: attention, if a run's numbers do not begin on a
cache line, and the function between the matmuls, if they do not fill vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbench.api import Layout, QuantLinear, per_run, per_run_where_bits_depend

EPS = 1e-6
ROPE_BASE = 10_000.0


@dataclass(frozen=True)
class Shape:
    """The size of a network.

    `mlp` is the width between the matmuls of a SwiGLU, or without `gated` of an MLP with GELU,
    which has one matmul less.
    """

    vocab: int
    width: int
    depth: int
    heads: int
    mlp: int
    context: int
    qk_norm: bool = False
    gated: bool = True

    @property
    def body(self) -> int:
        """The number of weights in the body's matmuls, which a method quantizes."""
        return self.depth * self.width * (4 * self.width + (2 + self.gated) * self.mlp)

    @property
    def parameters(self) -> int:
        """The number of all parameters."""
        head_norms = 2 * self.width // self.heads if self.qk_norm else 0
        norms = self.depth * (2 * self.width + head_norms) + self.width
        return self.body + 2 * self.vocab * self.width + norms

    def flops(self, tokens: int) -> float:
        """Return the operations of a forward and a backward pass over `tokens` tokens.

        There are 6 for each token and weight of a matmul. Attention's two products, over the half
        of the context that a token sees on average, add 6 · depth · width · context for each token.
        """
        attention = self.depth * self.width * self.context
        return 6.0 * tokens * (self.body + self.vocab * self.width + attention)


class Transformer(nn.Module):
    """The network from tokens (…, batch, time) to logits (…, batch, time, vocab)."""

    def __init__(self, shape: Shape, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = Embedding(shape.vocab, shape.width)
        self.rope = Rope(shape.context, shape.width // shape.heads)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.norm = RMSNorm(shape.width)
        self.head = QuantLinear(shape.width, shape.vocab, bias=False)
        self.initialise_weights(generator)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        cos, sin = self.rope(tokens.shape[-1])
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.head(self.norm(x))  # type: ignore[no-any-return]

    def layout(self) -> Layout:
        """Return the configuration and names of Llama, or with `qk_norm` of Qwen3."""
        shape = self.shape
        config = {
            "model_type": "qwen3" if shape.qk_norm else "llama",
            "architectures": ["Qwen3ForCausalLM" if shape.qk_norm else "LlamaForCausalLM"],
            "vocab_size": shape.vocab,
            "hidden_size": shape.width,
            "num_hidden_layers": shape.depth,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.heads,
            "head_dim": shape.width // shape.heads,
            "intermediate_size": shape.mlp,
            "max_position_embeddings": shape.context,
            "hidden_act": "silu",
            "rms_norm_eps": EPS,
            "rope_theta": ROPE_BASE,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "torch_dtype": "float32",
        }
        return Layout(config, {translate_name(name): name for name in self.state_dict()})

    def body(self) -> Iterator[tuple[str, QuantLinear]]:
        """Yield the matmuls of the blocks by name."""
        for name, module in self.blocks.named_modules(prefix="blocks"):
            if isinstance(module, QuantLinear):
                yield name, module

    @torch.no_grad()
    def initialise_weights(self, generator: torch.Generator) -> None:
        """Draw weights from normal distributions with deviation inputs^−½.

        The layers that add to the residual stream start smaller: the deeper the network,
        the smaller.
        """
        if self.head.weight.is_meta:
            return  # there is no memory to fill
        for name, layer in self.body():
            residual = name.endswith((".o", ".down"))
            parts = 2 * self.shape.depth if residual else 1
            layer.weight.normal_(0.0, (parts * layer.weight.shape[-1]) ** -0.5, generator=generator)
        self.embedding.weight.normal_(0.0, 1.0, generator=generator)
        self.head.weight.normal_(0.0, (3 * self.shape.width) ** -0.5, generator=generator)


class Block(nn.Module):
    """Attention and an MLP, each with a norm before it and a residual connection."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = RMSNorm(shape.width), RMSNorm(shape.width)
        self.attention, self.mlp = Attention(shape), MLP(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.before_attention(x), cos, sin)
        return x + self.mlp(self.before_mlp(x))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Causal self-attention.

    Queries, keys and values are three layers: on a CPU one fused matmul was no faster, and each
    matrix keeps a scale of its own.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.q, self.k, self.v, self.o = (
            QuantLinear(shape.width, shape.width, bias=False) for _ in range(4)
        )
        self.q_norm = RMSNorm(shape.width // shape.heads) if shape.qk_norm else None
        self.k_norm = RMSNorm(shape.width // shape.heads) if shape.qk_norm else None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate_pairs(q, cos, sin), rotate_pairs(k, cos, sin)
        y = per_run_where_bits_depend(causal_attention, self.q.weight.dim() - 2, q, k, v)
        return self.o(y.reshape(x.shape))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """A SwiGLU, or without a gate two matmuls around GELU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate = QuantLinear(shape.width, shape.mlp, bias=False) if shape.gated else None
        self.up = QuantLinear(shape.width, shape.mlp, bias=False)
        self.down = QuantLinear(shape.mlp, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        run_axes = self.up.weight.dim() - 2
        if self.gate is None:
            inner = per_run(F.gelu, self.up(x), run_axes)
        else:
            inner = per_run(F.silu, self.gate(x), run_axes) * self.up(x)
        return self.down(inner)  # type: ignore[no-any-return]


class RMSNorm(nn.Module):
    """Division by the root mean square of the last axis, and a weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if run_axes := weight.dim() - 1:
            weight = weight.view(*weight.shape[:-1], *(1,) * (x.dim() - run_axes - 1), -1)
        # Without its own weight argument the built-in is faster on a CPU, forward and backward.
        return F.rms_norm(x, x.shape[-1:], eps=EPS) * weight


class Embedding(nn.Module):
    """A vector for each token, from a table of each run."""

    def __init__(self, vocab: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab, width))

    def forward(self, tokens: Tensor) -> Tensor:
        *run_shape, vocab, _ = self.weight.shape
        if not run_shape:
            return F.embedding(tokens, self.weight)
        # The tables of all runs lie one after another, so a run's tokens are shifted to its own.
        runs = torch.arange(self.weight[..., 0, 0].numel(), device=tokens.device)
        runs = runs.view(*run_shape, 1, 1)
        return F.embedding(tokens + runs * vocab, self.weight.flatten(0, -2))


class Rope(nn.Module):
    """Tables of the rotation at each position, (time, 1, features).

    They are not in the state, because they follow from the shape.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, context: int, features: int) -> None:
        super().__init__()
        # On the CPU, wherever the weights are: on the device `meta` torch would load its compiler
        # for this. In float64, because the angles of late positions lose digits in float32.
        rates = ROPE_BASE ** -(
            torch.arange(0, features, 2, dtype=torch.float64, device="cpu") / features
        )
        angles = torch.arange(context, dtype=torch.float64, device="cpu").view(-1, 1, 1) * rates
        self.register_buffer(
            "cos", torch.cat((angles.cos(), angles.cos()), -1).float(), persistent=False
        )
        self.register_buffer(
            "sin", torch.cat((-angles.sin(), angles.sin()), -1).float(), persistent=False
        )

    def forward(self, time: int) -> tuple[Tensor, Tensor]:
        return self.cos[:time], self.sin[:time]


# What a part of a tensor's name is called in Hugging Face's transformers. One with a point in front
# stands inside a block.
HUGGING_FACE_NAMES = {
    "embedding.": "model.embed_tokens.",
    "head.": "lm_head.",
    "norm.": "model.norm.",
    "blocks.": "model.layers.",
    ".before_attention.": ".input_layernorm.",
    ".before_mlp.": ".post_attention_layernorm.",
    ".attention.": ".self_attn.",
    **{f".{part}.": f".{part}_proj." for part in ("q", "k", "v", "o", "gate", "up", "down")},
}


def translate_name(name: str) -> str:
    """Return the name of one of our tensors in Hugging Face's transformers."""
    for ours, other in HUGGING_FACE_NAMES.items():
        name = name.replace(ours, other) if ours.startswith(".") or name.startswith(ours) else name
    return name


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + half) of a head's features by its angle.

    `sin` carries the sign of the first half.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return causal attention over (…, batch, time, heads, features).

    SDPA's fast kernels take (batch, heads, time, features) and no further axes in front.
    """
    q, k, v = (t.flatten(0, -4).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
