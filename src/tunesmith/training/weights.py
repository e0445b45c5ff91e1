"""The weights that change: an fp32 master of each, and AdamW over the masters.

A weight whose model computes in bf16 keeps an fp32 copy that collects gradients and takes the steps: bf16 has eight
bits of mantissa, and a step of a ten-thousandth would be rounded away. Refuses to know models, losses and data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tunesmith.errors import TrainingError

_EPS = 1e-8  # AdamW's; Loshchilov and Hutter 2019, arXiv 1711.05101


class TrainableWeights:
    """Every parameter of a model that requires a gradient, its master, and the optimiser."""

    def __init__(
        self, model: nn.Module, *, learning_rate: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self._parameters:
            raise TrainingError("no weight of the model is trainable")
        self.masters: dict[str, torch.Tensor] = {}
        for name, parameter in self._parameters.items():
            if parameter.dtype == torch.float32:
                self.masters[name] = parameter
            else:
                self.masters[name] = parameter.detach().float()
                parameter.register_post_accumulate_grad_hook(self._collector(self.masters[name]))
        decayed = [master for master in self.masters.values() if master.ndim > 1]
        plain = [master for master in self.masters.values() if master.ndim <= 1]  # norms and biases do not decay
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=learning_rate, betas=betas, eps=_EPS, fused=True
        )

    @staticmethod
    def _collector(master: torch.Tensor) -> Any:
        def collect(parameter: torch.Tensor) -> None:
            grad = parameter.grad
            parameter.grad = None  # frees the bf16 gradient while the backward pass still runs
            if grad is not None:
                master.grad = grad.float() if master.grad is None else master.grad.add_(grad)

        return collect

    @property
    def num_trainable(self) -> int:
        """Trainable numbers."""
        return sum(master.numel() for master in self.masters.values())

    def clip(self, max_norm: float) -> float:
        """Scale all gradients so that their norm is at most max_norm; returns the norm they had. A norm that is not
        finite scales nothing, so that `bad_gradients` can still tell where it came from."""
        masters = list(self.masters.values())
        norm = torch.nn.utils.get_total_norm([master.grad for master in masters if master.grad is not None])
        if bool(torch.isfinite(norm)):
            torch.nn.utils.clip_grads_with_norm_(masters, max_norm, norm)
        return float(norm)

    def bad_gradients(self) -> list[str]:
        """Names of the weights whose gradient is not finite."""
        return [
            name
            for name, master in self.masters.items()
            if master.grad is not None and not bool(torch.isfinite(master.grad).all())
        ]

    def step(self, learning_rate: float) -> None:
        """One AdamW step of the masters; the model gets their rounded values; gradients are dropped."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.drop_gradients()
        self._publish()

    def drop_gradients(self) -> None:
        """Forget gradients, for the next step or after an interrupted one."""
        for master in self.masters.values():
            master.grad = None

    def _publish(self) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                if self.masters[name] is not parameter:
                    parameter.copy_(self.masters[name])

    def state(self) -> dict[str, torch.Tensor]:
        """Masters and moments by name, for a checkpoint."""
        tensors = {f"weights/{name}": master.detach() for name, master in self.masters.items()}
        for name, master in self.masters.items():
            for key, value in self.optimizer.state[master].items():
                tensors[f"{key}/{name}"] = value
        return tensors

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `state`. TrainingError where the tensors belong to other weights."""
        expected = {f"weights/{name}" for name in self.masters}
        found = {name for name in tensors if name.startswith("weights/")}
        if expected != found:
            raise TrainingError("the checkpoint holds other weights than this training has", hint="delete it")
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(tensors[f"weights/{name}"])
                moments = {key: tensors[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
                self.optimizer.state[master] = {key: value.clone().to(master.device) for key, value in moments.items()}
        self._publish()
