"""The trainers that keep the contract; a new one joins by one line."""

from tests.contract import Recipe, TrainerContract

TRAINERS = (
    Recipe("ExtensionTrainer"),
    Recipe("CateNormTrainer", quick=False),
    Recipe(
        "CateNormTrainer",
        {"catenorm": {"updates": "joint", "stages": "low", "prior_augmentation": 1.0}},
        quick=False,
    ),
    Recipe("ConDSegTrainer", {"condseg": {"first_phase": 0.5}}),
    Recipe("TopKSigmaTrainer", {"topk_sigma": {"warm_up": 0.0, "top_fraction": 0.5}}, quick=False),
    Recipe("CateNormTopKSigmaTrainer"),
    Recipe("RAMDSIRTrainer"),
)


class TestTrainers(TrainerContract):
    recipes = TRAINERS
