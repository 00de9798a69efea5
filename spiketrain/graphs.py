"""A network's passes in training as replays of CUDA graphs: one launch forward and one backward, where there are hundreds."""

from typing import cast

import torch
from torch import Tensor, nn

from spiketrain.errors import UserError
from spiketrain.models import Network


class _Shell(nn.Module):
    """A module whose `forward` torch may exchange for a replay."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.network(x)
        return found


class Replayed(nn.Module):
    """The network, for training on a GPU: a shape of inputs that comes twice in a row is captured, and replayed from then on.

    Other shapes (an epoch's last batch), other numbers of steps and evaluation are computed as without. One graph is kept: another shape
    that comes twice in a row takes its place. Capturing changes neither the norms' statistics nor the state of the random numbers, but
    layers that draw random numbers draw others in a replay. A gradient lies in the graph's memory, so it is to be used, and let go, before
    the next forward pass: there is one backward pass an update, in one process (`check`).

    Source: `torch.cuda.make_graphed_callables`.
    """

    def __init__(self, network: Network, bf16: bool) -> None:
        """bf16: whether it is called under autocast to bfloat16."""
        super().__init__()
        self.network, self.bf16 = network, bf16
        self._graphs: dict[object, nn.Module] = {}
        self._last: object = None

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self._way(x)(x) if self.network.training and torch.is_grad_enabled() else self.network(x)
        return found

    def _way(self, x: Tensor) -> nn.Module:
        form, before = (x.shape, x.stride(), x.dtype, self.network.steps), self._last
        self._last = form
        if form not in self._graphs and form == before:
            self._graphs.clear()  # so that its memory is free before another is made
            self._graphs[form] = self._capture(x)
        return self._graphs.get(form, self.network)

    def _capture(self, x: Tensor) -> nn.Module:
        kept = [b.clone() for b in self.network.buffers()]
        autocast = torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False)
        try:
            with torch.random.fork_rng([x.device] if x.is_cuda else []), torch.cuda.device(x.device if x.is_cuda else -1), autocast:
                graph = torch.cuda.make_graphed_callables(_Shell(self.network).train(), (x.clone(),), allow_unused_input=True)
        except RuntimeError as error:
            said = str(error).split("\n")[0]
            raise UserError(f"--graph: this network's passes cannot be captured ({said}); leave --graph out") from error
        with torch.no_grad():
            for buffer, value in zip(self.network.buffers(), kept, strict=True):
                buffer.copy_(value)
        return cast(nn.Module, graph)


def check(device: torch.device, processes: int, accumulate: int) -> None:
    """`UserError` where passes cannot be replayed."""
    if device.type != "cuda":
        raise UserError(f"--graph is for CUDA devices, not for {device.type}: leave it out")
    if processes > 1:
        raise UserError(f"--graph is for one process, not for {processes}: leave it out")
    if accumulate > 1:
        raise UserError(f"--graph needs a batch in one part: set --accumulate 1 (it is {accumulate})")
