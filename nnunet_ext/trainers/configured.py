"""What a trainer takes from the plans: settings, network, length of the training."""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_ext.settings import PLANS_KEY, TrainingSettings, read_method_settings

ADAM_LR = 1e-3

S = TypeVar("S")


class SettingsByMethod(dict[str, Any]):
    """Settings of all methods that a trainer is mixed from, by the methods' names in the plans."""

    def of(self, settings_class: type[S]) -> S:
        """Return those of this class, which a recipe has named as its ``settings_class``."""
        return next(each for each in self.values() if isinstance(each, settings_class))


class ConfiguredTrainer(nnUNetTrainer):
    """A trainer whose settings, and all that shapes its network, stand in the plans."""

    settings_key: ClassVar[str] = ""
    """The method's name, under which a configuration of the plans holds its settings."""
    settings_class: ClassVar[type | None] = None
    """The method's settings dataclass; settings of trainers that are mixed add up."""
    epochs_from_name: ClassVar[int | None] = None
    """Set by names such as CateNormTrainer_250epochs."""

    training_settings: TrainingSettings
    settings: SettingsByMethod
    num_epochs: int
    _usual_epochs: int  # without settings

    @classmethod
    def collected_method_settings(cls) -> dict[str, type]:
        """Method -> settings class, over all classes that this trainer is mixed from."""
        bases: list[Any] = [
            base for base in reversed(cls.__mro__) if "settings_class" in vars(base)
        ]
        return {each.settings_key: each.settings_class for each in bases if each.settings_class}

    @classmethod
    def read_settings(
        cls, configuration: Mapping[str, Any], where: str = PLANS_KEY
    ) -> SettingsByMethod:
        """Read the settings of all methods from a configuration, inheritance already resolved.

        Args:
            configuration: Of the plans.
            where: How error messages name the place.

        Raises:
            SettingsError: If one is unknown or out of range.
        """
        return SettingsByMethod(
            (method, read_method_settings(configuration, method, settings_class, where))
            for method, settings_class in cls.collected_method_settings().items()
        )

    def apply_training_settings(self) -> None:
        """Put the settings of training itself into nnU-Net's attributes."""
        self._usual_epochs = self.num_epochs
        self.num_epochs = self.epochs_under(self.training_settings.num_epochs)
        for name in ("num_iterations_per_epoch", "num_val_iterations_per_epoch", "save_every"):
            setattr(self, name, getattr(self.training_settings, name) or getattr(self, name))
        if self.training_settings.optimizer == "adam":
            self.initial_lr = ADAM_LR
        self.initial_lr = self.training_settings.initial_lr or self.initial_lr

    def epochs_under(self, setting: int | None) -> int:
        """Length of a training with this ``num_epochs`` in its settings."""
        return self.epochs_from_name or setting or self._usual_epochs

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:
        """Leave out mirroring in prediction if the settings say so."""
        configured: tuple[Any, ...] = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        if not self.training_settings.mirror_prediction:
            self.inference_allowed_mirroring_axes = None
        return configured

    # -------------------------------------------------------------------------------- the network

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Build the planned network, changed as the recipe wants it; prediction calls this, too."""
        settings = cls.read_settings(configuration_manager.configuration)
        unet = super().build_network_architecture(
            plans_manager,
            cls.adapt_configuration(configuration_manager, settings),
            num_input_channels,
            num_output_channels,
            enable_deep_supervision,
        )
        return cls.wrap_network(unet, settings, configuration_manager, num_output_channels)

    @classmethod
    def adapt_configuration(
        cls, configuration: ConfigurationManager, settings: SettingsByMethod
    ) -> ConfigurationManager:
        """Return the configuration that the planned network is to be built from."""
        return configuration

    @classmethod
    def wrap_network(
        cls,
        unet: nn.Module,
        settings: SettingsByMethod,
        configuration: ConfigurationManager,
        num_output_channels: int,
    ) -> nn.Module:
        """Return the network to be trained, made of the planned one; its weights are drawn already.

        Args:
            unet: The planned network.
            settings: Of all methods of this trainer.
            configuration: Of the plans, as it stands there.
            num_output_channels: Classes, or regions.
        """
        return unet
