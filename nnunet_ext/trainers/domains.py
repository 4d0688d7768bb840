"""What every trainer does with domains: cases drawn by domain, and scores of each."""

from pathlib import Path
from typing import Any, ClassVar

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ext.domains import sampling
from nnunet_ext.domains.assignment import refuse_unfit_for_training
from nnunet_ext.evaluation import validation
from nnunet_ext.evaluation.scoring import SUMMARY
from nnunet_ext.trainers.distributed import gather


class DomainTrainer(nnUNetTrainer):
    """Trains and validates as nnU-Net, but knows the domains of cases where there are any."""

    requires_domains: ClassVar[bool] = False
    """Whether training needs two domains and the domain of every training case."""
    domains: dict[str, str]
    """Case -> domain."""

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """Refuse data without the domains that this training needs; draw alike by domain.

        Raises:
            UserError: If training cases lack a domain, or have too few.
        """
        training, held_out = super().get_tr_and_val_datasets()
        evenly = self.training_settings.sampling == "domains"
        if self.requires_domains or evenly:
            refuse_unfit_for_training(
                self.domains,
                training.identifiers,
                type(self).__name__ if self.requires_domains else 'sampling "domains"',
                self.plans_manager.dataset_name,
                least=2 if self.requires_domains else 1,
            )
        if evenly:
            training.identifiers = sampling.evenly(training.identifiers, self.domains)
        return training, held_out

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Count voxels by domain, too, if there are domains."""
        if not self.domains:
            scores: dict[str, Any] = super().validation_step(batch)
            return scores
        with validation.counted_by_image(self) as counted:
            scores = super().validation_step(batch)
        return scores | {
            "counts": validation.with_domains(counted, batch.get("keys", ()), self.domains)
        }

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """Record the pseudo-Dice of each domain."""
        counts = [count for output in val_outputs for count in output.pop("counts", ())]
        super().on_validation_epoch_end(val_outputs)
        counts = [count for rank in gather(counts) for count in rank]
        background = not self.label_manager.has_regions
        for domain, dice in validation.pseudo_dice(counts, background).items():
            self.record(f"{domain}_pseudo_dice", dice)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Score held-out cases by domain, too."""
        super().perform_actual_validation(save_probabilities)
        folder = Path(self.output_folder, "validation")
        # some of nnU-Net's trainers, made for measuring speed, do not validate
        if self.domains and self.local_rank == 0 and (folder / SUMMARY).exists():
            table = validation.summarise(
                folder,
                self.dataset_json,
                self.plans_manager.image_reader_writer_class(),
                self.label_manager.ignore_label,
            )
            self.print_to_log_file(f"Validation by domain:\n{table}")
