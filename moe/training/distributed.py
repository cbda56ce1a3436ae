"""Training by several processes that ``torchrun`` started; with one process nothing here communicates.

Every rank goes through the same batches in the same order and computes its share of the examples of each; gradients,
counts and losses are summed, so a step is the one that a single process would make. Rank 0 alone writes files, which
the other ranks must be able to read.
"""

from __future__ import annotations

import datetime
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from moe.data.packing import Batch, Example, make_batch
from moe.errors import UserError
from moe.training.interrupt import ignore_signals

BUCKET = 64 << 20  # bytes of gradients that one all-reduce sums at most
WAIT = datetime.timedelta(days=30)  # for a rank that scores or writes; torchrun ends the job where a rank dies
_NETWORK = re.compile(r"gloo/transport|connection (was )?(closed|reset|refused)|broken pipe|timed? ?out", re.IGNORECASE)
_traffic: Counter[str] = Counter()  # bytes that each rank handed to collectives, by what they were
_control: dist.ProcessGroup | None = None  # for flags and for waiting, on the CPU


class LostRank(UserError):
    """Another process of the job ended or cannot be reached."""


def started_by_torchrun() -> bool:
    """Whether the environment names several ranks."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def local_rank() -> int:
    """This process's place on its machine, which is that of its card; 0 without ``torchrun``."""
    return int(os.environ.get("LOCAL_RANK", "0")) if started_by_torchrun() else 0


def local_world() -> int:
    """Processes on this machine; 1 without ``torchrun``."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world() > 1 else 1


def world() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number among them."""
    return dist.get_rank() if world() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


@contextmanager
def process_group() -> Iterator[None]:
    """Joins the ranks that ``torchrun`` started: NCCL between cards, gloo between CPUs; else does nothing."""
    global _control
    if not started_by_torchrun():
        yield
        return
    cards = torch.cuda.device_count() > local_rank()
    if cards:
        torch.cuda.set_device(local_rank())
    with lost_ranks():
        dist.init_process_group("cpu:gloo,cuda:nccl" if cards else "gloo")
        _control = dist.new_group(backend="gloo", timeout=WAIT)
        yield
        wait_for_all()
        # Whoever is done with the last collective may not close its connections while another still reads from them.
        store = dist.distributed_c10d._get_default_store()
        store.add("finished", 1)
        while store.add("finished", 0) < world():
            time.sleep(0.01)
    dist.destroy_process_group()
    _control = None


@contextmanager
def lost_ranks() -> Iterator[None]:
    """Turns the error of a collective into :class:`LostRank`.

    From then on signals are ignored: ``torchrun`` sends SIGTERM, which would replace the one message about the loss.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistNetworkError) and not _NETWORK.search(str(error)):
            raise
        ignore_signals()
        raise LostRank(
            f"another of the {world()} processes ended or cannot be reached; the last saved state is intact"
        ) from error


@contextmanager
def main_first() -> Iterator[None]:
    """Rank 0 goes through the block before the others enter it."""
    if not is_main():
        wait_for_all()
    yield
    if is_main():
        wait_for_all()


def speaks_first() -> bool:
    """Whether no other rank has reported the end of this job yet: of all ranks that ask, one is told so."""
    if world() == 1:
        return True
    try:
        store = dist.distributed_c10d._get_default_store()
        return store.add("reported", 1) == 1
    except RuntimeError:  # the rank that kept the store is gone
        return is_main()


@contextmanager
def counted_traffic() -> Iterator[Counter[str]]:
    """Counts the bytes that this rank hands to collectives within the block, by what they are."""
    before = _traffic.copy()
    counted: Counter[str] = Counter()
    try:
        yield counted
    finally:
        counted.update(_traffic - before)


def count_traffic(what: str, nbytes: int) -> None:
    """Counts bytes that this rank hands to a collective."""
    _traffic[what] += nbytes


def wait_for_all() -> None:
    """Waits until every rank is here, however long one takes; a signal interrupts it."""
    agree(0)


def agree(*values: int) -> list[int]:
    """The largest of each value over all ranks."""
    if world() == 1:
        return list(values)
    flags = torch.tensor(values, dtype=torch.int64)
    _traffic["flags"] += flags.nbytes
    _finish(dist.all_reduce(flags, dist.ReduceOp.MAX, group=_control, async_op=True))
    return flags.tolist()


def number_from_main(number: int = 0) -> int:
    """Rank 0's ``number``, on every rank."""
    sent = torch.tensor(number)
    _finish(dist.broadcast(sent, 0, group=_control, async_op=True))
    return int(sent)


def _finish(work: dist.Work | None) -> None:
    assert work is not None
    pause = 1e-5
    while not work.is_completed():  # a plain wait would keep Python from seeing a signal
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    work.wait()


def same_text(text: str) -> str:
    """Rank 0's text, on every rank."""
    if world() == 1:
        return text
    length = agree(len(text.encode()) if is_main() else 0)[0]
    encoded = torch.zeros(length, dtype=torch.uint8)
    if is_main():
        encoded = torch.tensor(list(text.encode()), dtype=torch.uint8)
    dist.broadcast(encoded, 0, group=_control)
    return bytes(encoded.tolist()).decode()


def share_of(examples: Sequence[Example]) -> tuple[Batch, bool]:
    """This rank's part of a batch: every ``world()``-th example; whether it counts.

    A rank for which none is left gets an example without a learned token, which does not count: it still takes part in
    every collective of the step.
    """
    own = examples[rank() :: world()]
    if own:
        return make_batch(own), True
    empty = make_batch(examples[:1])
    return Batch(empty.tokens, empty.documents, empty.languages, empty.positions[:0], empty.targets[:0]), False


@torch.no_grad()
def sum_over_ranks(what: str, tensors: Iterable[Tensor]) -> None:
    """Replaces each tensor by its sum over all ranks; one dtype travels together, :data:`BUCKET` bytes at a time.

    ``what`` they are is the name under which :func:`counted_traffic` counts them.
    """
    if world() == 1:
        return
    buckets: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        bucket = buckets.setdefault(tensor.dtype, [])
        if bucket and sum(t.nbytes for t in bucket) + tensor.nbytes > BUCKET:
            _sum_bucket(what, bucket)
            bucket.clear()
        bucket.append(tensor)
    for bucket in buckets.values():
        _sum_bucket(what, bucket)


def _sum_bucket(what: str, tensors: list[Tensor]) -> None:
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    _traffic[what] += flat.nbytes
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


@torch.no_grad()
def copy_from_main(tensors: Iterable[Tensor]) -> None:
    """Gives every rank the tensors of rank 0, in place."""
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)
