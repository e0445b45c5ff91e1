"""The output head over the rows that predict something: log-probabilities and their gradients, chunk by chunk.

Owns the product with the vocabulary and its log-sum-exp. The logits never exist as a whole: a chunk of rows at a time, matrix
products in the model's dtype, soft-max and log-sum-exp in fp32, and the gradient formed in the forward pass, so nothing
is recomputed but the gradient of a trainable head whose row weights are known only afterwards. Refuses to know losses.

Legend: N supervised rows, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

_LOGITS_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}
"""fp32 logits formed at once. On a CPU they should stay in the last-level cache: 448 rows of 49,152 take 357 ms in
chunks of 128 rows, 381 ms at once, 364 ms in chunks of 64."""


@dataclass(frozen=True)
class Head:
    """A linear output head."""

    weight: torch.Tensor  # (V, D)
    bias: torch.Tensor | None  # (V,)

    def detach(self) -> Head:
        """One that asks for no gradient of itself."""
        return Head(self.weight.detach(), None if self.bias is None else self.bias.detach())

    def negative_log_likelihood(
        self, hidden: torch.Tensor, targets: torch.Tensor, row_weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Sum over rows of weight * -log softmax(W h + b)[target]: a scalar in fp32.

        hidden (N, D), targets (N,), row_weights (N,) fp32 or None for ones. No rows: zero, tied to the graph.
        """
        return _Sum.apply(hidden, self.weight, self.bias, targets, row_weights)  # pyright: ignore[reportReturnType]

    def log_probs(self, hidden: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
        """(N,) fp32: log softmax((W h + b) / temperature)[target] of each row, for losses whose row weights follow from it.

        hidden (N, D), targets (N,).
        """
        return _LogProbs.apply(hidden, self.weight, self.bias, targets, temperature)  # pyright: ignore[reportReturnType]

    def entropies(self, hidden: torch.Tensor, temperature: float) -> torch.Tensor:
        """(N,) fp32: -sum p log p in nats of p = softmax((W h + b) / temperature) of each row. hidden (N, D).

        Chunk by chunk and computed again in the backward pass: it costs three products with the vocabulary more.
        """
        parts = [
            checkpoint(_entropy, hidden[rows], self.weight, self.bias, temperature, use_reentrant=False)
            for rows in _chunks(len(hidden), self.weight)
        ]
        return torch.cat(parts) if parts else hidden.sum(-1).float()


def _chunks(num_rows: int, weight: torch.Tensor) -> Iterator[slice]:
    size = max(_LOGITS_BYTES.get(weight.device.type, 64 << 20) // (4 * weight.shape[0]), 1)
    return (slice(start, start + size) for start in range(0, num_rows, size))


def _softmax(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, target: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probability of the targets (n,), probabilities (n, V)) in fp32. target (n, 1)."""
    logits = F.linear(hidden, weight, bias).float()
    if temperature != 1.0:
        logits /= temperature
    largest, picked = logits.amax(-1), logits.gather(1, target)[:, 0]
    probabilities = torch.softmax(logits, -1)
    # The largest probability is at least 1 / V, so its logarithm is exact to fp32: log-sum-exp without another pass of
    # exponentials (torch.logsumexp takes 400 ms where the soft-max takes 60).
    log_sum = largest - probabilities.amax(-1).log()
    return picked - log_sum, probabilities


def _less_one(probabilities: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Probabilities minus the one-hot targets, in place: the gradient of -log p by the logits."""
    return probabilities.scatter_add_(1, target, torch.full_like(target, -1, dtype=torch.float32))


def _entropy(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, temperature: float) -> torch.Tensor:
    log_probs = torch.log_softmax(F.linear(hidden, weight, bias).float() / temperature, -1)
    return -(log_probs.exp() * log_probs).sum(-1)


class _Sum(torch.autograd.Function):
    """Every gradient is known in the forward pass, up to the one factor that comes back."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        row_weights: torch.Tensor | None,
    ) -> torch.Tensor:
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias and bias is not None else None
        for rows in _chunks(len(targets), weight):
            h, target = hidden[rows], targets[rows, None]
            log_probs, probabilities = _softmax(h, weight, bias, target, 1.0)
            factors = None if row_weights is None else row_weights[rows]
            total -= (log_probs if factors is None else log_probs * factors).sum()
            if grad_hidden is None and grad_weight is None:
                continue
            grad = _less_one(probabilities, target)
            if factors is not None:
                grad *= factors[:, None]
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[rows])
            if grad_weight is not None:
                grad_weight += grad.t() @ h
        ctx.save_for_backward(*(g for g in (grad_hidden, grad_weight, grad_bias) if g is not None))
        ctx.present = tuple(g is not None for g in (grad_hidden, grad_weight, grad_bias))
        ctx.dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        hidden, weight, bias = (next(saved) if there else None for there in ctx.present)
        scaled = [None if g is None else (g * grads[0]).to(ctx.dtype) for g in (hidden, weight, bias)]
        return (*scaled, None, None)


class _LogProbs(torch.autograd.Function):
    """The gradient of each row by its hidden state is formed in the forward pass and scaled when its factor comes."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperature: float,
    ) -> torch.Tensor:
        needs_hidden = ctx.needs_input_grad[0]
        result = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        for rows in _chunks(len(targets), weight):
            target = targets[rows, None]
            result[rows], probabilities = _softmax(hidden[rows], weight, bias, target, temperature)
            if grad_hidden is not None:
                grad = _less_one(probabilities, target).to(hidden.dtype)
                torch.mm(grad, weight, out=grad_hidden[rows])
        ctx.save_for_backward(hidden, weight, bias, targets, grad_hidden)
        ctx.temperature = temperature
        return result

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, targets, grad_hidden = ctx.saved_tensors
        factors = -grads[0] / ctx.temperature  # (N,)
        by_hidden = None if grad_hidden is None else (grad_hidden * factors[:, None]).to(hidden.dtype)
        if not ctx.needs_input_grad[1]:
            return by_hidden, None, None, None, None
        by_weight = torch.zeros_like(weight, dtype=torch.float32)
        by_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        for rows in _chunks(len(targets), weight):
            h, target = hidden[rows], targets[rows, None]
            _, probabilities = _softmax(h, weight, bias, target, ctx.temperature)
            grad = _less_one(probabilities, target).mul_(factors[rows, None])
            if by_bias is not None:
                by_bias += grad.sum(0)
            by_weight += grad.to(h.dtype).t() @ h
        return by_hidden, by_weight.to(weight.dtype), None if by_bias is None else by_bias.to(weight.dtype), None, None
