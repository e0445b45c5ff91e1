"""Linear maps with a trainable low-rank map beside them: LoRA, and DoRA, which trains the length of every row as well.

Owns the arithmetic, its gradients and the merged weight. Refuses to know files, configurations and which maps of a model
get one (adapters.py).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.model.quantised import dequantise

_SHORTEST = 1e-12  # length of a row of zeros: its magnitude is 0 too, and 0 / 0 would spread


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map that may get an adapter: nn.Linear, or GPT-2's Conv1D, which stores W^T."""
    return isinstance(module, nn.Linear | Conv1D)


def with_lengths(weight: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """(out, in) the rows of a matrix, each made as long as magnitude (out,) says."""
    lengths = torch.linalg.vector_norm(weight, dim=1).clamp_min(_SHORTEST)  # (O,)
    return weight * (magnitude / lengths)[:, None]


class _LowRank(torch.autograd.Function):
    """y = x W^T (+ bias) + scale (x A^T) B^T with W and bias frozen. Saves x and x A^T, forms no product of size W."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])  # (N, I)
        low = flat @ a.t()  # (N, R)
        out = F.linear(flat, weight, bias)  # (N, O)
        out.addmm_(low, b.t(), alpha=scale)
        ctx.save_for_backward(flat, weight, a, b, low)
        ctx.scale, ctx.shape = scale, x.shape
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, weight, a, b, low = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])  # (N, O)
        grad_low = (grad @ b).mul_(ctx.scale)  # (N, R)
        grad_a = grad_low.t() @ flat if ctx.needs_input_grad[3] else None
        grad_b = (grad.t() @ low).mul_(ctx.scale) if ctx.needs_input_grad[4] else None
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_low, a).view(ctx.shape)
        return grad_x, None, None, grad_a, grad_b, None


class _LowRankBesideFourBits(torch.autograd.Function):
    """_LowRank with W kept in 4 bits: it is unpacked for the product, forgotten, and unpacked again for the backward pass.

    bitsandbytes has a product of its own, whose kernel (and whether it has a gradient) depends on device and mode.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, base: Any, a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])  # (N, I)
        low = flat @ a.t()  # (N, R)
        out = F.linear(flat, dequantise(base).to(x.dtype), base.bias)  # (N, O)
        out.addmm_(low, b.t(), alpha=scale)
        ctx.save_for_backward(flat, a, b, low)
        ctx.base, ctx.scale, ctx.shape = base, scale, x.shape
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, a, b, low = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])  # (N, O)
        grad_low = (grad @ b).mul_(ctx.scale)  # (N, R)
        grad_a = grad_low.t() @ flat if ctx.needs_input_grad[2] else None
        grad_b = (grad.t() @ low).mul_(ctx.scale) if ctx.needs_input_grad[3] else None
        grad_x = None
        if ctx.needs_input_grad[0]:
            weight = dequantise(ctx.base).to(grad.dtype)
            grad_x = (grad @ weight).addmm_(grad_low, a).view(ctx.shape)
        return grad_x, None, grad_a, grad_b, None


class _ScaledLowRank(torch.autograd.Function):
    """y = (m / n) (x W^T + scale (x A^T) B^T) (+ bias), with the row lengths n held constant (DoRA, section 4.3).

    Saves the bracket beside what _LowRank saves: the gradient of m is its product with that of y, summed over rows.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        magnitude: torch.Tensor,
        lengths: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])  # (N, I)
        low = flat @ a.t()  # (N, R)
        inner = F.linear(flat, weight)  # (N, O)
        inner.addmm_(low, b.t(), alpha=scale)
        gain = magnitude / lengths  # (O,) fp32: in bf16 its steps would be 0.4 %
        out = torch.mul(inner, gain, out=torch.empty_like(inner))
        if bias is not None:
            out.add_(bias)
        ctx.save_for_backward(flat, weight, a, b, low, inner, gain, lengths)
        ctx.scale, ctx.shape = scale, x.shape
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, weight, a, b, low, inner, gain, lengths = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])  # (N, O)
        grad_magnitude = None
        if ctx.needs_input_grad[5]:
            grad_magnitude = (grad * inner).sum(0, dtype=torch.float32) / lengths
        grad = torch.mul(grad, gain, out=torch.empty_like(grad))
        grad_low = (grad @ b).mul_(ctx.scale)  # (N, R)
        grad_a = grad_low.t() @ flat if ctx.needs_input_grad[3] else None
        grad_b = (grad.t() @ low).mul_(ctx.scale) if ctx.needs_input_grad[4] else None
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_low, a).view(ctx.shape)
        return grad_x, None, None, grad_a, grad_b, grad_magnitude, None, None


class LoraLinear(nn.Module):
    """A frozen linear map with a trainable low-rank one beside it. lora_A (rank, in), lora_B (out, rank).

    base: nn.Linear, transformers' Conv1D, or a linear map of bitsandbytes in 4 bits.
    """

    parts: tuple[str, ...] = ("lora_A", "lora_B")
    """Names of the trainable tensors, as files have them."""

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.base: Any = base.requires_grad_(False)
        self.scale = scale
        self.dropout = dropout
        self.transposed = isinstance(base, Conv1D)  # W is stored as (in, out)
        self.quantised = not self.base.weight.is_floating_point()  # W is packed in 4 bits
        inputs, outputs = (
            (self.base.nx, self.base.nf) if self.transposed else (self.base.in_features, self.base.out_features)
        )
        like: dict[str, Any] = {"dtype": torch.float32, "device": self.base.weight.device}
        self.lora_A = nn.Parameter(torch.zeros(rank, inputs, **like))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank, **like))

    @property
    def weight(self) -> torch.Tensor:
        """(out, in) the frozen weight."""
        return self.base.weight.t() if self.transposed else self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out), in the dtype of the base weight."""
        a, b = self.lora_A.to(x.dtype), self.lora_B.to(x.dtype)
        if self.training and self.dropout > 0:
            low = F.linear(F.dropout(x, self.dropout), a)
            return torch.add(self.base(x), F.linear(low, b), alpha=self.scale)
        if self.quantised:
            return _LowRankBesideFourBits.apply(x, self.base, a, b, self.scale)  # pyright: ignore[reportReturnType]
        return _LowRank.apply(x, self.weight, self.base.bias, a, b, self.scale)  # pyright: ignore[reportReturnType]

    def tuned_weight(self) -> torch.Tensor:
        """(out, in) the weight of the one linear map that this layer is, fp32: W + scale B A."""
        return self.weight.float() + self.scale * (self.lora_B.float() @ self.lora_A.float())

    def merged_weight(self) -> torch.Tensor:
        """tuned_weight, cast once to the dtype of W and in the orientation in which W is stored."""
        merged = self.tuned_weight().to(self.base.weight.dtype)
        return merged.t() if self.transposed else merged


class DoraLinear(LoraLinear):
    """A linear map whose rows have a trained length and a direction that LoRA moves (Liu et al. 2024, arXiv 2402.09353).

    y = (m / |W + scale B A|) (W + scale B A) x, the lengths taken row by row and held constant in the backward pass
    (their section 4.3). lora_magnitude_vector: m (out,). Dropout acts on the low-rank path alone, as it does in LoRA.
    """

    parts = ("lora_A", "lora_B", "lora_magnitude_vector")

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float) -> None:
        super().__init__(base, rank, scale, dropout)
        lengths = torch.linalg.vector_norm(self.weight.detach(), dim=1, dtype=torch.float32)  # (O,)
        self.register_buffer("_squared", lengths.square(), persistent=False)
        self.lora_magnitude_vector = nn.Parameter(self.row_lengths(self.lora_A.detach(), self.lora_B.detach()))

    @torch.no_grad()
    def row_lengths(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """(out,) lengths of the rows of W + scale B A, fp32, without forming that matrix.

        |w + s b A|^2 = |w|^2 + s b (2 w A^T + s b A A^T): rank times fewer operations than one row of activations costs.
        """
        across = (self.weight @ a.t().to(self.base.weight.dtype)).float()  # (O, R)
        wide_a, wide_b = a.float(), b.float()
        gram = wide_a @ wide_a.t()  # (R, R)
        added = (across.mul_(2).add_(wide_b @ gram, alpha=self.scale) * wide_b).sum(1)
        return torch.add(self._squared, added, alpha=self.scale).clamp_min(_SHORTEST**2).sqrt()  # pyright: ignore[reportCallIssue, reportArgumentType]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out), in the dtype of the base weight."""
        a, b = self.lora_A.to(x.dtype), self.lora_B.to(x.dtype)
        lengths = self.row_lengths(a, b)
        if self.training and self.dropout > 0:
            low = F.linear(F.dropout(x, self.dropout), a)
            inner = torch.add(F.linear(x, self.weight), F.linear(low, b), alpha=self.scale)
            out = (inner * (self.lora_magnitude_vector / lengths)).to(x.dtype)
            return out if self.base.bias is None else out + self.base.bias
        return _ScaledLowRank.apply(  # pyright: ignore[reportReturnType]
            x, self.weight, self.base.bias, a, b, self.lora_magnitude_vector, lengths, self.scale
        )

    def tuned_weight(self) -> torch.Tensor:
        """(out, in) (m / |W + scale B A|) (W + scale B A), fp32. Its difference from W has no low rank."""
        return with_lengths(super().tuned_weight(), self.lora_magnitude_vector)
