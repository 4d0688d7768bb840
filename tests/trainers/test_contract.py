"""The trainers that keep the contract; a new one joins by one line."""

from tests.contract import Recipe, TrainerContract

TRAINERS = (
    Recipe("ExtensionTrainer"),
    Recipe("CateNormTrainer"),
    Recipe("CateNormTrainer", {"catenorm": {"plain_fraction": 0.0, "updates": "joint"}}),
)


class TestTrainers(TrainerContract):
    recipes = TRAINERS
