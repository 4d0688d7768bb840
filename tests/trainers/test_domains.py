"""What every trainer does with domains: sampling, scores by domain, refusals."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from nnunet_ext._common.errors import SettingsError, UserError
from nnunet_ext.evaluation import validation
from nnunet_ext.trainers import ExtensionTrainer
from nnunet_ext.trainers import domains as by_domain
from tests import contract, tiny
from tests.tiny import World

MakeWorld = Callable[..., World]


class Needing(ExtensionTrainer):
    """Stands for a method that learns from the difference of domains."""

    requires_domains: ClassVar[bool] = True


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    contract.without_progress_plot(monkeypatch)
    monkeypatch.setattr("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.default_num_processes", 1)
    monkeypatch.setattr(validation, "default_num_processes", 1)


def with_domains(world: World, *domains: str | None) -> World:
    """The same, but the cases have these domains."""
    return replace(world, task=replace(world.task, domains=domains))


def loaders(trainer: Any) -> tuple[Any, Any]:
    trainer.initialize()
    loaded: tuple[Any, Any] = trainer.get_dataloaders()
    return loaded


def drawn(loader: Any, batches: int) -> Counter[str]:
    return Counter(str(key) for _ in range(batches) for key in next(loader)["keys"])


# --------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("workers", ["0", "2"])
def test_domains_are_drawn_evenly_also_by_workers(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", workers)
    trainer = make_world(dim=2, domains=tiny.TWO_SITES).trainer(
        "ExtensionTrainer", {"sampling": "domains"}
    )
    training, held_out = loaders(trainer)
    try:
        counted = drawn(training, batches=200)
    finally:
        for loader in (training, held_out):
            getattr(loader, "_finish", lambda: None)()
    # two training cases are of site_a, one of site_b
    assert counted["case_2"] / 400 == pytest.approx(1 / 2, abs=0.1)
    assert counted["case_0"] / 400 == pytest.approx(1 / 4, abs=0.1)


@pytest.mark.parametrize("settings", [{}, {"sampling": "cases"}])
def test_cases_are_drawn_alike_unless_asked_otherwise(
    make_world: MakeWorld, settings: dict[str, str]
) -> None:
    training, _ = loaders(
        make_world(dim=2, domains=tiny.TWO_SITES).trainer("ExtensionTrainer", settings)
    )
    assert training.data_loader.indices == ["case_0", "case_1", "case_2"]


def test_validation_cases_are_drawn_alike_in_any_case(make_world: MakeWorld) -> None:
    trainer = make_world(dim=2, domains=tiny.TWO_SITES).trainer(
        "ExtensionTrainer", {"sampling": "domains"}
    )
    _, held_out = loaders(trainer)
    assert held_out.data_loader.indices == ["case_3"]


def test_a_twin_of_nnunets_trainers_draws_evenly_too(make_world: MakeWorld) -> None:
    trainer = make_world(dim=3, domains=tiny.TWO_SITES).trainer(
        "ExtensionTrainerDA5", {"sampling": "domains"}
    )
    training, _ = loaders(trainer)
    assert training.data_loader.indices == ["case_0", "case_1", "case_2", "case_2"]


def test_sampling_is_cases_or_domains(make_world: MakeWorld) -> None:
    with pytest.raises(SettingsError, match="'cases' or 'domains'"):
        make_world().trainer("ExtensionTrainer", {"sampling": "sites"})


# ------------------------------------------------------------------------------- scores by domain


def test_pseudo_dice_of_domains_is_recorded_and_the_rest_stays_as_it_was(
    make_world: MakeWorld,
) -> None:
    world = make_world(dim=2, domains=tiny.TWO_SITES, ignore=True)
    plain = with_domains(world)
    trained = []
    for each in (plain, world):
        trainer = each.trainer("ExtensionTrainer", {"num_val_iterations_per_epoch": 2})
        trainer.run_training()
        trained.append(trainer)
    stock, ours = trained
    for name in ("dice_per_class_or_region", "val_losses", "train_losses"):
        values = [trainer.logger.get_value(name, step=None) for trainer in trained]
        np.testing.assert_array_equal(*values)
    # the only validation case is of site_b, so its Dice is that of all
    for epoch, row in enumerate(ours.history.rows):
        overall = float(ours.logger.get_value("mean_fg_dice", step=epoch))
        assert row["site_b_pseudo_dice"] == pytest.approx(overall)
        assert "site_a_pseudo_dice" not in row
    assert "site_b_pseudo_dice" in Path(ours.output_folder, "losses.csv").read_text()
    assert "site_b_pseudo_dice" in Path(ours.log_file).read_text()
    assert not any("pseudo_dice" in name for row in stock.history.rows for name in row)


def test_ranks_pool_what_they_count(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_world(dim=2, domains=tiny.TWO_SITES).trainer("ExtensionTrainer")
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_validation_epoch_start()
    output = trainer.validation_step(next(trainer.dataloader_val))
    other = [("site_a", np.array([[9, 3, 3], [9, 1, 1], [9, 1, 1]]))]
    monkeypatch.setattr(by_domain, "gather", lambda counts: [counts, other])
    trainer.on_validation_epoch_end([output])
    assert trainer._figures.keys() == {"site_a_pseudo_dice", "site_b_pseudo_dice"}
    assert trainer._figures["site_a_pseudo_dice"] == 0.75


def test_batches_without_case_names_are_scored_without_domains(make_world: MakeWorld) -> None:
    trainer = make_world(dim=2, domains=tiny.TWO_SITES).trainer("ExtensionTrainer")
    trainer.on_train_start()
    trainer.on_epoch_start()
    batch = next(trainer.dataloader_val)
    del batch["keys"]
    trainer.on_validation_epoch_end([trainer.validation_step(batch)])
    assert trainer._figures == {}


@pytest.mark.parametrize(
    "task",
    [pytest.param({"dim": 2}, marks=pytest.mark.slow), {"dim": 3, "regions": True, "ignore": True}],
)
def test_the_final_validation_is_summarised_by_domain(
    make_world: MakeWorld, task: dict[str, Any]
) -> None:
    trainer = make_world(domains=tiny.TWO_SITES, **task).trainer("CateNormTrainer")
    trainer.run_training()
    trainer.perform_actual_validation()
    folder = Path(trainer.output_folder, "validation")
    summary = json.loads((folder / "summary_by_domain.json").read_text())
    stock = json.loads((folder / "summary.json").read_text())
    of_b = summary["domains"]["site_b"]
    assert of_b["mean"]["dice"] == pytest.approx(stock["foreground_mean"]["Dice"])
    names = ["whole", "core"] if "regions" in task else ["organ", "lesion"]
    assert list(of_b["labels"]) == names
    assert summary["worst_domain"] == "site_b"
    log = Path(trainer.log_file).read_text()
    assert "Validation by domain:" in log
    assert "site_b" in log.rpartition("Validation by domain:")[2]


# -------------------------------------------------------------------------------------- refusals


def test_a_trainer_that_needs_domains_trains_with_them(make_world: MakeWorld) -> None:
    trainer = make_world(dim=2, domains=tiny.TWO_SITES).trainer(Needing)
    trainer.run_training()
    assert len(trainer.history.rows) == 2


ONE = ("A", "A", "A", "B")  # B is held out


@pytest.mark.parametrize(
    ("recipe", "sampling", "domains", "message"),
    [
        (Needing, "cases", (), "Needing needs the domain of every training case"),
        (Needing, "cases", ("A", None, None, "B"), r"2 cases \(case_1, case_2\)"),
        (Needing, "cases", ONE, r"at least 2 domains .*finds 1 \(A: 3 cases"),
        (ExtensionTrainer, "domains", (), r'sampling "domains" needs .*3 cases \(case_0'),
    ],
)
def test_missing_domains_are_refused_before_training(
    make_world: MakeWorld,
    recipe: type[ExtensionTrainer],
    sampling: str,
    domains: tuple[str | None, ...],
    message: str,
) -> None:
    world = with_domains(make_world(dim=2), *domains)
    with pytest.raises(UserError, match=message) as refusal:
        world.trainer(recipe, {"sampling": sampling}).run_training()
    assert f"nnunet-ext domains {tiny.DATASET}" in str(refusal.value)
    assert not list(world.results.rglob("*.pth"))


def test_sampling_by_domains_works_where_only_one_is_left_to_train_on(
    make_world: MakeWorld,
) -> None:
    world = with_domains(make_world(dim=2), *ONE)
    training, _ = loaders(world.trainer("ExtensionTrainer", {"sampling": "domains"}))
    assert training.data_loader.indices == ["case_0", "case_1", "case_2"]


def test_domains_that_are_no_names_are_refused_and_leave_no_folder(make_world: MakeWorld) -> None:
    world = with_domains(make_world(dim=2), "")
    with pytest.raises(UserError, match=r"domain of case .case_0. must be a name, not ''"):
        world.trainer("ExtensionTrainer")
    assert not list(world.results.parent.iterdir())
