"""Self-training of Mind the Gap: who is believed, and who learns from it when."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnunet_ext.losses.mind_the_gap import SURE, confident_classes, confident_regions
from nnunet_ext.networks.mind_the_gap.translator import TARGET
from nnunet_ext.trainers.mind_the_gap_teacher import DECAY, Teacher
from tests import tiny
from tests.tiny import World

MakeWorld = Callable[..., World]

ALONE = {"translator": "none", "lambda_adv": 0.0, "mask_scope": "off", "self_training": 0.5}


def make(world: World, **training: Any) -> Any:
    trainer = world.trainer("MindTheGapTrainer", training | {"mind_the_gap": ALONE})
    tiny.ready(trainer)
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    return trainer


def test_of_each_class_the_surer_half_is_believed_and_whatever_is_sure() -> None:
    first = torch.tensor([0.99, 0.95, 0.92, 0.60, 0.45, 0.40, 0.35, 0.30])
    labels, kept = confident_classes(torch.stack([first, 1 - first])[None])
    assert labels[0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert kept[0, 0].tolist() == [True, True, True, False, False, True, True, True]


def test_a_voxel_is_believed_if_all_its_regions_are_sure() -> None:
    sure, unsure = SURE + 0.01, SURE - 0.01
    inside = torch.tensor([[sure, sure, 1 - sure], [1 - sure, unsure, 1 - sure]])[None]
    regions, kept = confident_regions(inside)
    assert regions[0].tolist() == [[True, True, False], [False, True, False]]
    assert kept[0, 0].tolist() == [True, False, True]


class Student(nn.Module):
    """A network with what an average of it is asked for."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.decoder = nn.Conv2d(1, 3, 1)
        self.decoder.deep_supervision = True  # type: ignore[assignment]
        nn.init.constant_(self.decoder.weight, value)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.decoder(images)
        return logits


def teacher_of(student: Student, *, regions: bool = False) -> Teacher:
    return Teacher(student, 3, regions=regions, batch_dice=False, ddp=False)


def test_the_teacher_begins_as_the_student_and_then_lags_behind() -> None:
    teacher = teacher_of(Student(0.0))
    average: Any = teacher.module
    for value, expected in ((1.0, 1.0), (2.0, DECAY * 1 + (1 - DECAY) * 2)):
        teacher.follow(Student(value))
        torch.testing.assert_close(average.decoder.weight, torch.full((3, 1, 1, 1), expected))
    assert not any(p.requires_grad for p in teacher.parameters())
    assert average.decoder.deep_supervision is False


@pytest.mark.parametrize("regions", [False, True])
def test_the_student_learns_what_the_teacher_says_only_where_it_is_sure(regions: bool) -> None:
    teacher = teacher_of(Student(0.0), regions=regions)
    bias: Any = teacher.module.decoder.bias
    with torch.no_grad():
        bias.copy_(torch.tensor([9.0, -9.0, -9.0]))
    images = torch.zeros(2, 1, 8, 8)
    answer = torch.zeros(2, 3, 8, 8, requires_grad=True)
    teacher.teach(images, answer).backward()
    assert answer.grad is not None
    assert (answer.grad[:, 0] < 0).all()  # descending raises the class of the teacher
    assert (answer.grad[:, 1:] > 0).all()
    if regions:
        with torch.no_grad():
            bias.zero_()
        answer.grad.zero_()
        teacher.teach(images, answer).backward()
        assert not answer.grad.any()


def test_it_is_the_last_phase_in_which_the_teacher_sees_what_was_drawn(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(make_world(dim=2), num_epochs=2, augmentation="gin")
    drawn: list[Tensor] = []
    loader = trainer._unlabelled

    def recording() -> Any:
        while True:
            batch = next(loader)
            drawn.append(batch["data"])
            yield batch

    trainer._unlabelled = recording()
    seen: list[Tensor] = []
    teach = Teacher.teach

    def observing(teacher: Teacher, images: Tensor, answer: Tensor) -> Tensor:
        seen.append(images)
        return teach(teacher, images, answer)

    monkeypatch.setattr(Teacher, "teach", observing)
    given: list[Tensor] = []
    forward = trainer.network.forward

    def asked(images: Tensor, domain: Tensor | None = None, **options: Any) -> Any:
        if domain is not None:
            given.extend(image for image, d in zip(images, domain, strict=True) if d == TARGET)
        return forward(images, domain, **options)

    monkeypatch.setattr(trainer.network, "forward", asked)
    parts = []
    for trainer.current_epoch in (0, 1):
        trainer.on_train_epoch_start()
        batch = next(trainer.dataloader_train)
        parts.append(list(trainer.train_step(batch)["parts"]))
    assert parts == [["segmentation"], ["segmentation", "self_training"]]
    assert len(drawn) == len(seen) == 1
    assert torch.equal(drawn[0], seen[0])
    assert not torch.equal(torch.stack(given), drawn[0])  # the student sees other contrasts


def test_the_teacher_survives_a_checkpoint(make_world: MakeWorld, tmp_path: Any) -> None:
    world = make_world(dim=2)
    trainer = make(world, num_epochs=2)
    trainer.current_epoch = 1
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    checkpoint = str(tmp_path / "checkpoint.pth")
    trainer.save_checkpoint(checkpoint)
    continued = make(world, num_epochs=2)
    continued.load_checkpoint(checkpoint)
    taught, before = (each.auxiliary["teacher"].state_dict() for each in (continued, trainer))
    assert int(taught["n_averaged"]) == 2
    assert tiny.same(taught, before)
