"""The trainers that keep the contract; a new one joins by one line."""

from tests.contract import Recipe, TrainerContract

TRAINERS = (
    Recipe("ExtensionTrainer"),
    Recipe("CateNormTrainer"),
    Recipe(
        "CateNormTrainer",
        {"catenorm": {"updates": "joint", "stages": "low", "prior_augmentation": 1.0}},
    ),
    Recipe("ConDSegTrainer", {"condseg": {"first_phase": 0.5}}),
    Recipe("TopKSigmaTrainer", {"topk_sigma": {"warm_up": 0.0, "top_fraction": 0.5}}),
    Recipe("CateNormTopKSigmaTrainer"),
    Recipe("RAMDSIRTrainer"),
)


class TestTrainers(TrainerContract):
    recipes = TRAINERS
