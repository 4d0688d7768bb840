"""Mind the Gap: labels in one modality, only images in the other.

Paper: arXiv 2205.11888; see :mod:`nnunet_ext.networks.mind_the_gap.translator` for what is
certain. Images without labels lie in ``imagesUn`` of the raw data set.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn
from torch.optim import Optimizer

from nnunet_ext._common.attributes import replaced
from nnunet_ext._common.errors import UserError
from nnunet_ext._common.precision import full_precision
from nnunet_ext.domains.preprocessing import preprocessed_unlabelled
from nnunet_ext.losses import alignment_losses, critic_loss
from nnunet_ext.networks import LocallyMaskedUNet, OutputCritic, frozen
from nnunet_ext.networks.catenorm import Logits
from nnunet_ext.networks.mind_the_gap.translator import SOURCE, TARGET
from nnunet_ext.settings import PLANS_KEY
from nnunet_ext.settings.mind_the_gap import MindTheGapSettings
from nnunet_ext.trainers.base import ExtensionTrainer
from nnunet_ext.trainers.configured import SettingsByMethod
from nnunet_ext.trainers.distributed import first_rank_first, unwrap
from nnunet_ext.trainers.mind_the_gap_teacher import Teacher
from nnunet_ext.trainers.optimisation import Losses, Update
from nnunet_ext.trainers.phases import Phase
from nnunet_ext.trainers.stopping import finish
from nnunet_ext.translation.cases import translated_cases

CRITIC_BETAS = (0.9, 0.99)
SHEET = "translations.png"
SELF_TRAINING = "self_training"
"""A phase, and a part of the loss."""
TEACHER = "teacher"
TRANSLATIONS_KEY = "translations"
"""In a checkpoint: the folder of the translated images that it was trained on."""


class MindTheGapTrainer(ExtensionTrainer):
    """Step A, before the first epoch, then a U-Net that critics make blind to the domain.

    Every batch of translated labelled images has one of unlabelled images beside it. Labels of
    unlabelled images, should they exist, are never read: validation is on held-out labelled
    cases, translated, and says nothing about the other modality.

    Deviations from the authors' implementation, besides those of the network: nnU-Net's loss,
    optimiser, augmentation and gradient clipping (the critics', too); and critics do not see the
    labelled patches that nnU-Net draws for their foreground.
    """

    settings_key: ClassVar[str] = "mind_the_gap"
    settings_class: ClassVar[type | None] = MindTheGapSettings

    preprocessed_dataset_folder: str
    _loads_unlabelled = False

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  (nnU-Net's own signature)
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.labelled_folder = Path(self.preprocessed_dataset_folder)
        self._unlabelled_cases: Any = None  # data set of target images
        self._unlabelled: Any = None  # their loader
        self._translations = ""  # name of the folder that a checkpoint was trained on

    @classmethod
    def read_settings(
        cls, configuration: Mapping[str, Any], where: str = PLANS_KEY
    ) -> SettingsByMethod:
        """Read settings, and refuse a cascade before nnU-Net makes a folder for its model."""
        if configuration.get("previous_stage") is not None:
            raise UserError(
                f"{cls.__name__} cannot train {where}, because nnU-Net does not predict the "
                "previous stage for images without labels. Train 3d_lowres or 3d_fullres."
            )
        return super().read_settings(configuration, where)

    @classmethod
    def wrap_network(
        cls,
        unet: nn.Module,
        settings: SettingsByMethod,
        configuration: ConfigurationManager,
        num_output_channels: int,
    ) -> nn.Module:
        """Give the planned network the local mask."""
        chosen = settings.of(MindTheGapSettings)
        return LocallyMaskedUNet(
            unet,
            configuration.patch_size,
            chosen.mask_stride,
            scope=chosen.mask_scope,
            renorm=chosen.mask_renorm,
            mask_at_inference=chosen.mask_at_inference,
        )

    @property
    def aligns(self) -> bool:
        """Whether there are critics that align features and answers, or a mask."""
        settings = self.settings.of(MindTheGapSettings)
        return settings.lambda_adv > 0 or settings.mask_scope != "off"

    @property
    def teaches_itself(self) -> bool:
        """Whether self-training is, or will be, part of this training."""
        return self.settings.of(MindTheGapSettings).self_training > 0

    def phases(self) -> list[Phase]:
        """Self-training last, if there is to be some."""
        share = self.settings.of(MindTheGapSettings).self_training
        last = [Phase(SELF_TRAINING, 1 - share)] if share else []
        return [*super().phases(), *last]

    def on_phase_begin(self, phase: Phase) -> None:
        """Let the teacher begin where the network is."""
        super().on_phase_begin(phase)
        if phase.name == SELF_TRAINING:
            self._teacher().follow(self.network)

    def _teacher(self) -> Teacher:  # no property, because nnU-Net reads them all
        teacher = self.auxiliary[TEACHER]
        assert isinstance(teacher, Teacher)
        return teacher

    @property
    def _masked(self) -> LocallyMaskedUNet:
        network = unwrap(self.network)
        assert isinstance(network, LocallyMaskedUNet)
        return network

    # ---------------------------------------------------------------------------------- images

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Run Step A if it has not been run, then load translated and unlabelled images."""
        with first_rank_first():
            self._use_translated_images()
        loaders = super().get_dataloaders()
        if self.aligns or self.teaches_itself:
            with replaced(self, _loads_unlabelled=True, oversample_foreground_percent=0.0):
                self._unlabelled, unused = super().get_dataloaders()
            finish(unused)
        return loaders

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """Give the unlabelled images to the loader that is theirs."""
        if self._loads_unlabelled:
            return self._unlabelled_cases, self._unlabelled_cases
        labelled: tuple[Any, Any] = super().get_tr_and_val_datasets()
        return labelled

    def _use_translated_images(self) -> None:
        """Have nnU-Net read labelled cases in target looks, which may need Step A first."""
        if "CTNormalization" in self.configuration_manager.normalization_schemes:
            self.print_to_log_file(
                "WARNING: the plans clip and scale all images by the intensities of the labelled "
                "CT images. Unless the images without labels are CT as well, give the channel "
                'another name in dataset.json (such as "image"), then plan and preprocess again.'
            )
        unlabelled = preprocessed_unlabelled(
            self.plans_manager,
            self.configuration_manager,
            self.dataset_json,
            self.print_to_log_file,
        )
        labelled_cases, self._unlabelled_cases = (
            infer_dataset_class(str(folder))(str(folder))
            for folder in (self.labelled_folder, unlabelled)
        )
        settings = self.settings.of(MindTheGapSettings)
        if not settings.translates:
            return
        translated = translated_cases(
            [labelled_cases, self._unlabelled_cases],
            settings,
            self.labelled_folder,
            self.device,
            self.print_to_log_file,
            get_allowed_n_proc_DA(),
            self.configuration_manager.use_mask_for_norm,
        )
        if self._translations not in ("", translated.parent.name):
            self.print_to_log_file(
                f"WARNING: this training began with the translated images in {self._translations}. "
                "Preprocessed images have changed since, so it continues with those in "
                f"{translated.parent.name}."
            )
        self._translations = translated.parent.name
        self.preprocessed_dataset_folder = str(translated)
        sheets = sorted(translated.parent.glob("translations_*.png"))
        if sheets and self.local_rank == 0:
            shutil.copyfile(sheets[-1], Path(self.output_folder, SHEET))

    def _accept(self, state: dict[str, Any], filename: str) -> None:
        super()._accept(state, filename)
        self._translations = state.get(TRANSLATIONS_KEY, "")

    def _extension_state(self) -> dict[str, Any]:
        return super()._extension_state() | {TRANSLATIONS_KEY: self._translations}

    def on_train_end(self) -> None:
        """Stop the loader of unlabelled images, too."""
        super().on_train_end()
        finish(self._unlabelled)

    def loaders(self) -> list[Any]:
        """The loader of unlabelled images, too."""
        return [*super().loaders(), self._unlabelled]

    # ------------------------------------------------------------------------------------ Step B

    def build_auxiliary(self) -> dict[str, nn.Module]:
        """Build the critic of outputs; that of features is part of the network, for its mask."""
        heads = self.label_manager.num_segmentation_heads
        built: dict[str, nn.Module] = {
            "output_critic": OutputCritic(heads, self.configuration_manager.patch_size)
        }
        if self.teaches_itself:
            built[TEACHER] = Teacher(
                unwrap(self.network),
                heads,
                regions=self.label_manager.has_regions,
                batch_dice=self.configuration_manager.batch_dice,
                ddp=self.is_ddp,
            )
        return built

    def build_auxiliary_optimizers(self) -> dict[str, Optimizer]:
        """Build one optimiser for both critics."""
        # nnU-Net's optimiser has the feature critic, too, but never sees it with a gradient
        output_critic = self.auxiliary["output_critic"]
        critics = [*self._masked.feature_critic.parameters(), *output_critic.parameters()]
        lr = self.settings.of(MindTheGapSettings).critic_lr
        return {"critics": torch.optim.Adam(critics, lr, betas=CRITIC_BETAS)}

    def compute_losses(
        self, data: Tensor, target: Any, keys: list[str]
    ) -> Iterator[Losses | Update]:
        """One update of the segmenter, one of both critics."""
        teaches = self.teaches_itself and self.reached(SELF_TRAINING)
        if not (self.aligns or teaches):
            yield {"segmentation": self.loss(self.network(data), target)}
            return
        output_critic = self.auxiliary["output_critic"]
        drawn = next(self._unlabelled)["data"].to(self.device, non_blocking=True)
        images = self.augmented(drawn)
        # what a graph leaves out no later backward pass reaches, so this block is long enough
        with frozen(self._masked.feature_critic, output_critic):
            domains = [torch.full((len(data),), d, device=self.device) for d in (SOURCE, TARGET)]
            ask = partial(self.network, return_features=True)
            # no name for both together, or nothing would be freed before the critics' update
            (source, source_features), (logits, features) = self.answers(
                ask, [data, images], domains, counted=TARGET
            )
            parts: Losses = {"segmentation": self.loss(source, target)}
            if teaches:
                parts[SELF_TRAINING] = self._teacher().teach(drawn, _finest(logits))
            if self.aligns:
                outputs = self._probabilities(logits)
                parts |= self._alignment(outputs, features)
        if not self.aligns:
            yield parts
            self._teacher().follow(self.network)
            return
        alike = self._drawn_alike
        outputs, source_outputs = outputs.detach(), self._probabilities(source).detach()[:alike]
        features, source_features = features.detach(), source_features.detach()[:alike]
        del source, logits
        yield parts
        if teaches:
            self._teacher().follow(self.network)
        with full_precision(self.device):
            losses = {
                "feature_critic": critic_loss(
                    low=self._masked.score(source_features), high=self._masked.score(features)
                ),
                "output_critic": critic_loss(
                    low=output_critic(source_outputs), high=output_critic(outputs)
                ),
            }
        yield Update(losses, self.auxiliary_optimizers["critics"])

    def _alignment(self, outputs: Tensor, features: Tensor) -> Losses:
        """What makes the critics take target images for source."""
        with full_precision(self.device):
            scores = self.auxiliary["output_critic"](outputs)
            losses = alignment_losses(self._masked.score(features), scores)
        weight = self.settings.of(MindTheGapSettings).lambda_adv
        return {f"{name}_alignment": weight * part for name, part in losses.items()}

    @property
    def _drawn_alike(self) -> int:
        """How many patches of a labelled batch, the first, were drawn as unlabelled ones are.

        The others show foreground, because nnU-Net draws them there. By how often there is some
        the critics would tell the domains apart, whatever it looks like.
        """
        at_random = round(self.batch_size * (1 - self.oversample_foreground_percent))
        return at_random or self.batch_size  # under DDP, a rank may have none

    def _probabilities(self, logits: Logits) -> Tensor:
        if self.label_manager.has_regions:
            return _finest(logits).float().sigmoid()
        return _finest(logits).float().softmax(dim=1)

    # -------------------------------------------------------------------------------- validation

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score translated images, which are never masked."""
        with self._answering_as_source():
            return super().validation_step(batch)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Predict translated held-out cases, which are never masked."""
        untranslated = Path(self.preprocessed_dataset_folder) == self.labelled_folder
        if untranslated and self.settings.of(MindTheGapSettings).translates:
            self._use_translated_images()  # with --val
        with self._answering_as_source():
            super().perform_actual_validation(save_probabilities)

    @contextmanager
    def _answering_as_source(self) -> Iterator[None]:
        """Have the network take images for labelled ones, which are never masked."""
        usual = self._masked.inference_domain.clone()
        self._masked.inference_domain.fill_(SOURCE)
        try:
            yield
        finally:
            self._masked.inference_domain.copy_(usual)


def _finest(logits: Logits) -> Tensor:
    return logits if isinstance(logits, Tensor) else logits[0]
