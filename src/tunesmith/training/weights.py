"""The weights that change: an fp32 master of each, and AdamW over the masters.

A weight whose model computes in bf16 keeps an fp32 copy that collects gradients and takes the steps: bf16 has eight
bits of mantissa, and a step of a ten-thousandth would be rounded away. Refuses to know models, losses and data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.hooks import RemovableHandle

from tunesmith.errors import TrainingError

_MOMENTS = ("exp_avg", "exp_avg_sq")


class TrainableWeights:
    """Every parameter of a model that requires a gradient, its master, and the optimiser. Close it when all steps are
    taken, or use it in a with block: until then the gradients of the model's parameters go to these masters."""

    def __init__(
        self,
        model: nn.Module,
        *,
        learning_rate: float,
        betas: tuple[float, float],
        epsilon: float,
        weight_decay: float,
    ) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self._parameters:
            raise TrainingError("no weight of the model is trainable")
        self.masters: dict[str, torch.Tensor] = {}
        self._hooks: list[RemovableHandle] = []
        for name, parameter in self._parameters.items():
            if parameter.dtype == torch.float32:
                self.masters[name] = parameter
            else:
                self.masters[name] = parameter.detach().float()
                collect = self._collector(self.masters[name])
                self._hooks.append(parameter.register_post_accumulate_grad_hook(collect))
        self.optimizer = torch.optim.AdamW(
            _groups(list(self.masters.values()), weight_decay), lr=learning_rate, betas=betas, eps=epsilon, fused=True
        )

    def __enter__(self) -> TrainableWeights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the model's parameters alone: a gradient they get from now on is theirs, and another training's masters
        may collect it. The masters keep their values. Closing twice is harmless."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self.drop_gradients()

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
        norm = _norm([master.grad for master in masters if master.grad is not None])
        if bool(torch.isfinite(norm)):
            torch.nn.utils.clip_grads_with_norm_([_local_gradient(master) for master in masters], max_norm, norm)
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
                master.copy_(_like(master, tensors[f"weights/{name}"]))
                state = {key: _like(master, tensors[f"{key}/{name}"]).clone() for key in _MOMENTS}
                state["step"] = tensors[f"step/{name}"].clone().to(master.device)
                self.optimizer.state[master] = state
        self._publish()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor of `state` once a step is taken: a whole one's, where weights are spread."""
        found: dict[str, tuple[int, ...]] = {}
        for name, master in self.masters.items():
            found |= {f"{key}/{name}": tuple(master.shape) for key in ("weights", *_MOMENTS)}
            found[f"step/{name}"] = ()
        return found

    def blank(self) -> dict[str, torch.Tensor]:
        """Tensors of the names and shapes of `state`, a part of each where weights are spread, to read a checkpoint into."""
        tensors = {f"weights/{name}": torch.empty_like(master.detach()) for name, master in self.masters.items()}
        for name, master in self.masters.items():
            tensors |= {f"{key}/{name}": torch.empty_like(master.detach()) for key in _MOMENTS}
            tensors[f"step/{name}"] = torch.zeros(())
        return tensors

    def whole(self, *, keep: bool) -> dict[str, torch.Tensor]:
        """Every master in one piece, by name: on the CPU where weights are spread. For all ranks at once; keep: whether
        this one needs them, else there are none."""
        found: dict[str, torch.Tensor] = {}
        for name, master in self.masters.items():
            tensor = master.full_tensor().detach() if isinstance(master, DTensor) else master
            if keep:
                found[name] = tensor.cpu() if isinstance(master, DTensor) else tensor
        return found


def _groups(masters: Sequence[torch.Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Of the optimiser: norms and biases do not decay, and tensors that are spread are stepped apart from whole ones."""
    kinds: dict[tuple[bool, bool], list[torch.Tensor]] = {}
    for master in masters:
        kinds.setdefault((master.ndim <= 1, isinstance(master, DTensor)), []).append(master)
    return [{"params": kinds[kind], "weight_decay": 0.0 if kind[0] else weight_decay} for kind in sorted(kinds)]


def _like(master: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a whole tensor where the master is spread; what is in parts already, as it is."""
    if isinstance(master, DTensor) and not isinstance(tensor, DTensor):
        tensor = tensor.to(master.device)
        return distribute_tensor(tensor, master.device_mesh, master.placements, src_data_rank=None)
    return tensor.to(master.device)


def _norm(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """() length of all gradients together; each part of one that is spread counts once."""
    spread = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
    whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    if not spread:
        return torch.nn.utils.get_total_norm(whole)
    norm = cast("DTensor", torch.nn.utils.get_total_norm(spread)).full_tensor()
    return torch.hypot(norm, torch.nn.utils.get_total_norm(whole)) if whole else norm


def _local_gradient(master: torch.Tensor) -> torch.Tensor:
    """A tensor whose gradient is the part of the master's gradient that this rank has."""
    if not isinstance(master, DTensor):
        return master
    local = cast("DTensor", master.detach()).to_local()
    local.grad = cast("DTensor", master.grad).to_local() if master.grad is not None else None
    return local
