"""The networks that keep the contract; a new one joins by one class."""

from dataclasses import replace

from torch import nn

from nnunet_ext.networks import CateNormUNet, ConDSegNet, LocallyMaskedUNet
from tests.contract import TASKS, NetworkContract
from tests.tiny import Task


class TestCateNormUNet(NetworkContract):
    def build(self, task: Task) -> nn.Module:
        network = CateNormUNet(task.unet(), task.heads, recompute=True)
        network.use_regions(task.regions)
        network.activate()
        return network


class TestCateNormUNetBeforeItsSecondPass(NetworkContract):
    def build(self, task: Task) -> nn.Module:
        return CateNormUNet(task.unet(), task.heads, decoder_stages=(0,))


class TestCateNormUNetUnderThePreviousStage(NetworkContract):
    tasks = tuple(replace(task, cascade=True) for task in TASKS)

    def build(self, task: Task) -> nn.Module:
        images = task.channels
        network = CateNormUNet(task.unet(), task.heads, stages="low", image_channels=images)
        network.activate()
        return network


class TestConDSegNet(NetworkContract):
    # the method has no deep supervision
    tasks = tuple(replace(task, deep_supervision=False) for task in TASKS)

    def build(self, task: Task) -> nn.Module:
        return ConDSegNet(task.unet(), task.heads, task.patch_size)


class TestConDSegNetWithThePlannedDecoder(NetworkContract):
    def build(self, task: Task) -> nn.Module:
        return ConDSegNet(task.unet(), task.heads, task.patch_size, "plan")


class TestLocallyMaskedUNet(NetworkContract):
    def build(self, task: Task) -> nn.Module:
        return LocallyMaskedUNet(task.unet(), task.patch_size, stride=4)
