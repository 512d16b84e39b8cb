"""Adam (Kingma and Ba, ICLR 2015) for small models, whose steps are short."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from refine import shards


class Adam:
    """PyTorch's fused Adam: the same numbers and the same state.

    Of a step of LightGCN on MovieLens 100K, PyTorch's own ``step`` takes a tenth to find out in
    which of its many ways it is to go; this one knows. And the first optimiser of PyTorch's in a
    process imports its compiler, which takes as long as importing PyTorch.
    """

    def __init__(self, parameters: Iterable[Tensor], learning_rate: float) -> None:
        """Begins with no moments.

        Args:
            parameters: floating point tensors; matrices may be shared, see ``refine.shards``.
            learning_rate: the size of a step.
        """
        self._parameters = list(parameters)
        self._state: dict[int, dict[str, Tensor]] = {}
        # Under PyTorch's names, as the state tells them; those below the first three are fixed.
        options = {
            "lr": learning_rate,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": 0,
            "amsgrad": False,
            "maximize": False,
            "foreach": None,
            "capturable": False,
            "differentiable": False,
            "fused": True,
            "decoupled_weight_decay": False,
        }
        self.param_groups: list[dict[str, Any]] = [options]

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Updates every parameter that has a gradient."""
        (options,) = self.param_groups
        beta1, beta2 = options["betas"]
        for index, parameter in enumerate(self._parameters):
            if parameter.grad is None:
                continue
            if index not in self._state:
                self._state[index] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
            state = self._state[index]
            state["step"].add_(1)
            torch._fused_adam_(
                [parameter],
                [parameter.grad],
                [state["exp_avg"]],
                [state["exp_avg_sq"]],
                [],
                [state["step"]],
                lr=options["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=0.0,
                eps=options["eps"],
                amsgrad=False,
                maximize=False,
            )

    def state_dict(self) -> dict[str, Any]:
        """As of PyTorch's Adam; with all columns of moments that processes share."""
        (options,) = self.param_groups
        group = {**options, "params": list(range(len(self._parameters)))}
        state = {
            index: _each_matrix(values, shards.all_columns) for index, values in self._state.items()
        }
        return {"state": state, "param_groups": [group]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state, of which it keeps its own columns.

        Args:
            state: what ``state_dict`` has given, here or in any number of processes.
        """
        (group,) = state["param_groups"]
        self.param_groups = [{name: value for name, value in group.items() if name != "params"}]
        self._state = {
            index: {
                name: value.to(self._parameters[index].device)
                for name, value in _each_matrix(values, shards.own_columns).items()
            }
            for index, values in state["state"].items()
        }


def _each_matrix(
    values: dict[str, Tensor], change: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """The state of a parameter with its matrices changed."""
    return {name: change(v) if v.dim() == 2 else v for name, v in values.items()}
