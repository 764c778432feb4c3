"""How a net lies on the workers: whole on each, or each layer shared out.

Needs torch alone, so that a net trains on a machine that has nothing else of ours.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from penstock.training.estimators.torch_rows import Seat

if TYPE_CHECKING:
    from penstock.training.torch_declarations import TorchConfig

Weights = dict[str, Tensor]


class Spread(Protocol):
    """A net on all workers; its weights and the optimiser's state are whole where they leave it."""

    model: nn.Module
    """What is called: the net with what workers tell each other around it."""

    def gathering(self, *, is_last: bool) -> AbstractContextManager[Any]:
        """Let workers share their gradients only in the last part of a step."""
        ...

    def weights(self) -> Weights:
        """Give the net's whole weights, on the first worker at least; all workers must ask."""
        ...

    def state(self, optimizer: torch.optim.Optimizer) -> Mapping[str, Any]:
        """Give the optimiser's whole state, likewise."""
        ...

    def take_weights(self, weights: Weights) -> None:
        """Set the net's weights; every worker gives the whole ones."""
        ...

    def take_state(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """Set the optimiser's state, likewise."""
        ...


def spread(net: nn.Module, config: "TorchConfig", seat: Seat) -> Spread:
    """Put the net on this worker's device, together with the other workers."""
    made = _Sharded(net, seat) if config.sharding == "fsdp2" else _Whole(net, seat)
    if config.compile:
        made.model = cast(nn.Module, torch.compile(made.model))
    return made


class _Whole:
    """The whole net on each worker; DDP takes the mean of their gradients."""

    def __init__(self, net: nn.Module, seat: Seat) -> None:
        self._net = net.to(seat.device)
        self.model: nn.Module = self._net
        self._ddp: DistributedDataParallel | None = None
        if seat.world > 1:
            devices = [seat.device] if seat.device.type == "cuda" else None
            self._ddp = DistributedDataParallel(
                self._net, device_ids=devices, gradient_as_bucket_view=True
            )
            self.model = self._ddp

    def gathering(self, *, is_last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if is_last or self._ddp is None else self._ddp.no_sync()

    def weights(self) -> Weights:
        return {name: value.detach().cpu() for name, value in self._net.state_dict().items()}

    def state(self, optimizer: torch.optim.Optimizer) -> Mapping[str, Any]:
        return optimizer.state_dict()

    def take_weights(self, weights: Weights) -> None:
        self._net.load_state_dict(weights)

    def take_state(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        optimizer.load_state_dict(dict(state))


class _Sharded:
    """Each worker has its share of every layer that has weights (FSDP2)."""

    def __init__(self, net: nn.Module, seat: Seat) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(seat.device.type, (seat.world,))
        for layer in net.children():
            if any(True for _ in layer.parameters()):
                fully_shard(layer, mesh=mesh)
        self._net = fully_shard(net.to(seat.device), mesh=mesh)
        self.model: nn.Module = net

    def gathering(self, *, is_last: bool) -> AbstractContextManager[Any]:
        self._net.set_requires_gradient_sync(is_last)
        return nullcontext()

    def weights(self) -> Weights:
        from torch.distributed.checkpoint import state_dict

        return cast(Weights, state_dict.get_model_state_dict(self._module, options=self._options()))

    def state(self, optimizer: torch.optim.Optimizer) -> Mapping[str, Any]:
        from torch.distributed.checkpoint import state_dict

        return state_dict.get_optimizer_state_dict(self._module, optimizer, options=self._options())

    def take_weights(self, weights: Weights) -> None:
        from torch.distributed.checkpoint import state_dict

        state_dict.set_model_state_dict(self._module, cast(Any, weights), options=self._options())

    def take_state(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        from torch.distributed.checkpoint import state_dict

        state_dict.set_optimizer_state_dict(
            self._module, optimizer, cast(Any, state), options=self._options()
        )

    @property
    def _module(self) -> nn.Module:
        return cast(nn.Module, self._net)

    @staticmethod
    def _options() -> Any:
        from torch.distributed.checkpoint.state_dict import StateDictOptions

        return StateDictOptions(full_state_dict=True, cpu_offload=True)
