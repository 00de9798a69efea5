"""Many processes that train one network: the group that `torchrun` starts, and what its processes tell each other.

Without torchrun there is a group of one, and everything here then costs nothing and changes nothing. With it, every process
holds the whole network and its own rows of every batch. All processes make the same calls in the same order; what a call
returns is the same in all of them, unless it says otherwise.
"""

import contextlib
import datetime
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from spiketrain.errors import UserError
from spiketrain.placement import let_gloo_wait_its_turn, own_cores

TIMEOUT_VARIABLE = "SPIKETRAIN_TIMEOUT"
"""Environment variable: seconds after which a process gives up waiting for another one (600 where it is not set)."""
Made = TypeVar("Made")


class GroupLost(RuntimeError):
    """Another process of the group has ended, or cannot be reached any more."""


def launched() -> bool:
    """Whether torchrun started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def world() -> int:
    """How many processes the group has."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process in the group: 0 … world() − 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def leads() -> bool:
    """Whether this is the one process that writes files and speaks to the user, before and after the group is joined too."""
    return (rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))) == 0


def _patience() -> float:
    """Seconds that a process waits for another one."""
    text = os.environ.get(TIMEOUT_VARIABLE, "600")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e8:
        raise UserError(f"{TIMEOUT_VARIABLE}={text}: a number of seconds above 0 is expected")
    return seconds


@contextlib.contextmanager
def join(device: torch.device) -> Iterator[torch.device]:
    """The group that torchrun made, over NCCL for CUDA and gloo else, while inside; yields the device of this process.

    A failure of the connection is raised as `GroupLost`. After an error the group stays open: others may still be told of it.
    """
    if not launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield device
        return
    if device.type == "cuda":
        device = _own_gpu()
    mine = not dist.is_initialized()
    places = contextlib.ExitStack()
    try:
        if device.type == "cpu":
            part, parts = (int(os.environ.get(name, default)) for name, default in (("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1")))
            places.enter_context(own_cores(part, parts))
        if mine:
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            seconds = _patience()
            store, rank_, world_ = _own_store(seconds)
            dist.init_process_group(backend, store=store, rank=rank_, world_size=world_, timeout=datetime.timedelta(seconds=seconds))
            let_gloo_wait_its_turn()
        yield device
    except RuntimeError as error:
        text = str(error)
        if not (isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text):
            raise
        me = f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}"
        raise GroupLost(f"{me} has lost the others ({text.splitlines()[0][-120:]})") from error
    finally:
        places.close()
    if mine:
        dist.destroy_process_group()


def _own_store(seconds: float) -> tuple[Store, int, int]:
    """The store by which these processes find each other, the number of this one, and how many there are.

    torchrun keeps one store for all its restarts, in which the addresses of processes that have died still lie; a process that reads
    one of these waits for nobody. (How often this torchrun has restarted is no name either: with several machines each counts for
    itself.) So process 0 makes up a name, under which nothing lies yet, and tells it to those alone who ask with a name of their own.
    """
    store, me, count = next(rendezvous("env://", timeout=datetime.timedelta(seconds=seconds)))
    name = mine = uuid.uuid4().hex
    others = range(1, count)

    def all_here() -> bool:
        for asking in (f"asks {i}" for i in others if store.check([f"asks {i}"])):
            store.set(f"to {store.get(asking).decode()}", name)
        return all(store.check([f"{name} has {i}"]) for i in others)

    if me == 0:
        _wait(all_here, seconds)
    else:
        store.set(f"asks {me}", mine)
        _wait(lambda: store.check([f"to {mine}"]), seconds)
        name = store.get(f"to {mine}").decode()
        store.set(f"{name} has {me}", "")
    store.set_timeout(datetime.timedelta(seconds=seconds))
    return PrefixStore(name, store), me, count


def _wait(happened: Callable[[], bool], seconds: float) -> None:
    """Waits here and not in the store, where no signal would be heard."""
    until = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > until:
            me = f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}"
            raise GroupLost(f"{me} has not found the others in {seconds:g} s ({TIMEOUT_VARIABLE})")
        time.sleep(0.02)


def _own_gpu() -> torch.device:
    """The GPU of this process, each on a machine having its own."""
    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= count:
        raise UserError(f"more processes than GPUs on this machine: --nproc-per-node {count}, or --device cpu")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def first_to_say(text: str) -> bool:
    """Whether no other process has said this: true in exactly one process, so that what goes wrong in all is printed once."""
    if not dist.is_initialized():
        return leads()
    return dist.distributed_c10d._get_default_store().add(f"said {text}", 1) == 1


def rows(total: int, parts: int, rank_: int | None = None, world_: int | None = None) -> list[slice]:
    """The rows of a batch of `total` that are this process's, in each of its `parts` consecutive parts.

    Parts have ⌈total/parts⌉ rows (the last one what is left); within a part, processes have consecutive rows, as many as
    each other or one more.
    """
    n, i = (world() if world_ is None else world_), (rank() if rank_ is None else rank_)
    size = -(-total // parts)
    found = []
    for low in range(0, total, size):
        length = min(size, total - low)
        found.append(slice(low + length * i // n, low + length * (i + 1) // n))
    return found


def add_up(values: Tensor) -> Tensor:
    """The sum over all processes of a few numbers, written into `values` (contiguous); no gradient passes.

    On the CPU every process gathers them and adds them up in the order of ranks: gloo's own reduction of a few numbers takes several
    times as long where there are no more cores than processes, as its threads then wait for each other.
    """
    if world() > 1 and values.is_cuda:
        dist.all_reduce(values)
    elif world() > 1:
        every = values.new_empty(world(), *values.shape)
        dist.all_gather(list(every), values)
        values.copy_(every.sum(0))
    return values


def any_of(*mine: bool) -> tuple[bool, ...]:
    """For each question, whether any process says yes."""
    return tuple(votes > 0 for votes in add_up(torch.tensor(mine, dtype=torch.int32)).tolist())


def gather(mine: Made) -> list[Made]:
    """What every process gives, in the order of ranks."""
    if world() == 1:
        return [mine]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, mine)
    return found


def first_does(function: Callable[[], Made]) -> Made:
    """What `function` returns in process 0, which alone calls it. Its `UserError` is raised in all."""
    if world() == 1:
        return function()
    box: list[Any] = [None, ""]
    if rank() == 0:
        try:
            box[0] = function()
        except UserError as error:
            box[1] = str(error)
    dist.broadcast_object_list(box)
    if box[1]:
        raise UserError(box[1])
    made: Made = box[0]
    return made


def of_first(values: Tensor) -> Tensor:
    """The tensor of process 0, written into `values`."""
    if world() > 1:
        dist.broadcast(values, 0)
    return values


def spread(network: nn.Module, device: torch.device) -> nn.Module:
    """The network as the training step calls it: gradients become means over all processes during the backward pass."""
    if world() == 1:
        return network
    devices = [device] if device.type == "cuda" else None
    with warnings.catch_warnings():  # of a new name for broadcast_buffers, which not every version has
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(network, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True)


def alone(network: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """While inside, gradients of a network that is `spread` are added up in this process only, unless it is the `last` part."""
    if isinstance(network, DistributedDataParallel) and not last:
        return network.no_sync()
    return contextlib.nullcontext()
