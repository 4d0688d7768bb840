"""Several processes: what they share, and that nobody waits for ever."""

import pickle
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_ext._common.errors import UserError
from nnunet_ext.nnunet import ddp
from nnunet_ext.trainers import base
from nnunet_ext.trainers.distributed import average_gradients, first_rank_first, unwrap
from nnunet_ext.trainers.optimisation import Losses
from tests import tiny
from tests.tiny import World

MakeWorld = Callable[..., World]

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")


def run(check: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """Results of two processes that run the same function."""
    mp.spawn(_rank, args=(check, str(folder), arguments), nprocs=2)
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in (0, 1)]


def _rank(rank: int, check: Callable[..., Any], folder: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    join = partial(
        dist.init_process_group, "gloo", f"file://{folder}/store", rank=rank, world_size=2
    )
    result = check(rank, join, *arguments)
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(result))
    dist.destroy_process_group()


# ------------------------------------------------------------------------------- small helpers


def _helpers(rank: int, join: Callable[[], None]) -> dict[str, Any]:
    join()
    sent: list[int] = []
    all_reduce = dist.all_reduce

    def counting(tensor: Tensor) -> None:
        sent.append(tensor.numel())
        all_reduce(tensor)

    setattr(dist, "all_reduce", counting)  # noqa: B010
    parameters = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(4)), nn.Parameter()]
    for number, parameter in enumerate(parameters[:2], start=1):
        parameter.grad = torch.full_like(parameter, float(number + 2 * rank))
    average_gradients(parameters)
    with first_rank_first():
        pass
    found: dict[str, Any] = {"sent": sent, "gradients": [p.grad for p in parameters]}
    try:
        with first_rank_first():
            found["worked"] = True
            raise UserError("no image can be read")
    except UserError as error:
        found["error"] = str(error)
    return found


@pytest.fixture(scope="module")
def helpers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found."""
    return run(_helpers, tmp_path_factory.mktemp("helpers"))


def test_gradients_are_averaged_and_sent_at_once(helpers: list[dict[str, Any]]) -> None:
    for found in helpers:
        assert found["sent"] == [10]
        assert tiny.same(found["gradients"], [torch.full((2, 3), 2.0), torch.full((4,), 3.0), None])


def test_others_do_not_wait_for_a_first_process_that_has_failed(
    helpers: list[dict[str, Any]],
) -> None:
    first, second = helpers
    assert first["error"] == "no image can be read"
    assert second["error"] == "The first process of this training failed: no image can be read"
    assert "worked" not in second


# ------------------------------------------------------------------------------ whole trainers


class Counting(tiny.OnCpu):
    """Counts the wrappers of this process."""

    made: list[DistributedDataParallel] = []  # noqa: RUF012

    def __init__(self, module: nn.Module, device_ids: list[int], **kwargs: Any) -> None:
        super().__init__(module, device_ids, **kwargs)
        self.made.append(self)


class WithSide(base.ExtensionTrainer):
    """An auxiliary network with batch statistics shares the optimiser."""

    def build_auxiliary(self) -> dict[str, nn.Module]:
        return {"side": nn.Linear(1, 1)}

    def compute_losses(self, data: Tensor, target: Any, keys: list[str]) -> Losses:
        logits = self.network(data)
        guess = self.auxiliary["side"](logits[0].mean().reshape(1, 1))
        return {"segmentation": self.loss(logits, target), "side": (guess - 1).square().mean()}


def _trainer(rank: int, join: Callable[[], None], world: World, *arguments: Any) -> Any:
    """A trainer of one rank, although nnU-Net's constructor insists on CUDA under DDP."""
    trainer = world.trainer(*arguments)
    if not dist.is_initialized():
        join()
    for module in (ddp, base):
        setattr(module, "DistributedDataParallel", Counting)  # noqa: B010
    setattr(nn.SyncBatchNorm, "convert_sync_batchnorm", lambda module: module)  # noqa: B010
    trainer.is_ddp, trainer.local_rank = True, rank
    trainer.device = torch.device("cpu")  # once the process group stands, nnU-Net takes a GPU
    return trainer


def _steps(
    rank: int, join: Callable[[], None], world: World, name: Any, settings: dict[str, Any]
) -> dict[str, Any]:
    trainer = tiny.ready(_trainer(rank, join, world, name, settings))
    for seed in (0, 1):
        batch = tiny.batch_for(trainer, world.task)
        batch["data"] = world.task.images(2, seed=2 * seed + rank)  # ranks see different images
        trainer.train_step(batch)
    return {
        "wrappers": [
            (each.find_unused_parameters, getattr(each, next(iter(ddp.OWN_BUFFERS))))
            for each in Counting.made
        ],
        "optimize_ddp": torch._dynamo.config.optimize_ddp,
        "names": list(unwrap(trainer.network).state_dict()),
        "weights": [
            p.detach() for p in (*trainer.network.parameters(), *trainer.auxiliary.parameters())
        ],
    }


CATENORM = {"plain_fraction": 0.0, "recompute": True, "prior_augmentation": 1.0}


def _whole_trainers(
    rank: int, join: Callable[[], None], world: World, updates: str
) -> dict[str, Any]:
    settings = {"catenorm": {**CATENORM, "updates": updates}}
    found = _steps(rank, join, world, "CateNormTrainer", settings)
    return found | {"tiles": _unequal_tiles(rank, join, world)}


@pytest.mark.parametrize("updates", [pytest.param("alternating", marks=pytest.mark.slow), "joint"])
def test_ranks_agree_where_updates_leave_parameters_unused_and_may_have_unequal_tiles(
    make_world: MakeWorld, tmp_path: Path, updates: str
) -> None:
    world = make_world(dim=2, norm="batch")
    first, second = run(_whole_trainers, tmp_path, world, updates)
    assert tiny.same(first["weights"], second["weights"])
    # one wrapper, no matter what nnU-Net asks for; ranks may have no case to validate
    assert first["wrappers"] == second["wrappers"] == [(True, False)]
    assert not first["optimize_ddp"]  # torch 2.1 cannot split what is recomputed
    trainer = world.trainer("CateNormTrainer", {"catenorm": CATENORM})
    trainer.initialize()
    assert first["names"] == list(trainer.network.state_dict())
    # also with batch normalisation, whose buffers nobody sends around
    assert [first["tiles"], second["tiles"]] == [0, 2]


@pytest.mark.slow
def test_auxiliary_networks_learn_alike_on_all_ranks(make_world: MakeWorld, tmp_path: Path) -> None:
    first, second = run(_steps, tmp_path, make_world(dim=2), WithSide, {})
    assert tiny.same(first["weights"], second["weights"])
    assert first["wrappers"] == [(False, False)] * 2


def _stops(rank: int, join: Callable[[], None], world: World, asked: int) -> tuple[Any, ...]:
    trainer = _trainer(rank, join, world)
    folder = Path(trainer.output_folder)
    if rank != asked:
        folder = folder.with_name(f"seen_by_{rank}")  # as on a network disk that is late
        trainer.output_folder = str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if rank == asked:
        (folder / "stop").touch()
    code: Any = "trained to its end"
    try:
        trainer.run_training()
    except SystemExit as leaving:
        code = leaving.code
    return code, trainer.current_epoch, sorted(path.name for path in folder.iterdir())


def test_first_process_decides_whether_all_stop(make_world: MakeWorld, tmp_path: Path) -> None:
    (code, epoch, files), second = run(_stops, tmp_path, make_world(dim=2), 0)
    assert (code, epoch) == second[:2] == (0, 1)
    assert "checkpoint_latest.pth" in files
    assert "stop" not in files


def _unequal_tiles(rank: int, join: Callable[[], None], world: World) -> int:
    trainer = _trainer(rank, join, world, "MindTheGapTrainer")
    trainer.initialize()
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    tiles = 2 * rank  # the first rank has no case
    with torch.no_grad():
        for tile in range(tiles):
            trainer.network(world.task.images(1, seed=tile))
    dist.monitored_barrier(timeout=timedelta(minutes=2))
    return tiles
