"""One adapted linear map, forward and backward: ours beside PEFT's, LoRA and DoRA. Prints times and ratios.

    python benchmarks/adapter_layers.py [--rows 1024] [--repeats 15]

The four are timed in turn, round after round, and the best of each is compared, so that other work on the machine
touches all of them alike. Before that, outputs and gradients are compared in fp32.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from tunesmith.model.low_rank import DoraLinear, LoraLinear

SHAPES = ((576, 576), (576, 1536), (1536, 576), (2048, 8192))  # in, out: SmolLM2-135M's, and one of a 1B model
RANK, ALPHA = 16, 32


def ours(base: nn.Linear, dora: bool) -> nn.Module:
    layer = (DoraLinear if dora else LoraLinear)(base, RANK, ALPHA / RANK, 0.0)
    return layer.train()


def theirs(base: nn.Linear, dora: bool) -> nn.Module:
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"], use_dora=dora)
    model = get_peft_model(nn.Sequential(base), config, autocast_adapter_dtype=True)  # pyright: ignore[reportArgumentType]
    return model.train()


def build(make: Callable[[nn.Linear, bool], nn.Module], shape: tuple[int, int], dora: bool, dtype: torch.dtype) -> Any:
    """A layer with the same weights whoever makes it."""
    torch.manual_seed(0)
    layer = make(nn.Linear(*shape, bias=False).to(dtype), dora)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in layer.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return layer


def trained(layer: nn.Module) -> list[torch.Tensor]:
    return [
        p for _, p in sorted(layer.named_parameters(), key=lambda each: each[0].split("lora_")[-1]) if p.requires_grad
    ]


def check(shape: tuple[int, int], dora: bool) -> float:
    """Largest relative difference of output and gradients between ours and PEFT's, fp32."""
    x, results = torch.randn(64, shape[0], generator=torch.Generator().manual_seed(2)), []
    for make in (ours, theirs):
        layer = build(make, shape, dora, torch.float32)
        given = x.clone().requires_grad_(True)
        out = layer(given)
        (out * torch.linspace(-1, 1, out.shape[1])).sum().backward()
        results.append([out.detach(), given.grad, *(p.grad for p in trained(layer))])
    return max(float((a - b).norm() / b.norm()) for a, b in zip(*results, strict=True))


def seconds(layer: nn.Module, x: torch.Tensor, direction: torch.Tensor) -> float:
    started = time.perf_counter()
    layer(x).backward(direction)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    print(
        f"{torch.get_num_threads()} threads, {options.rows} rows, bf16, rank {RANK}; milliseconds, best of {options.repeats}"
    )
    print(f"{'in x out':>12} {'':5} {'ours':>8} {'PEFT':>8} {'ratio':>6}  {'differs by (fp32)':>18}")
    for shape in SHAPES:
        x = torch.randn(options.rows, shape[0]).bfloat16().requires_grad_(True)
        direction = torch.randn(options.rows, shape[1]).bfloat16()
        layers = {
            (dora, make): build(make, shape, dora, torch.bfloat16) for dora in (False, True) for make in (ours, theirs)
        }
        best = dict.fromkeys(layers, float("inf"))
        for _ in range(options.repeats + 1):  # the first round warms up, and is never the best
            for key, layer in layers.items():
                best[key] = min(best[key], seconds(layer, x, direction))
        for dora in (False, True):
            mine, peer = best[dora, ours] * 1e3, best[dora, theirs] * 1e3
            name = "DoRA" if dora else "LoRA"
            print(
                f"{shape[0]:>5} x{shape[1]:>5} {name:>5} {mine:8.2f} {peer:8.2f} {peer / mine:6.2f}  {check(shape, dora):18.1e}"
            )


if __name__ == "__main__":
    main()
