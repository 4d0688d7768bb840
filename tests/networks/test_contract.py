"""The networks that keep the contract; a new one joins by one class."""

from torch import nn

from nnunet_ext.networks import CateNormUNet, LocallyMaskedUNet
from tests.contract import NetworkContract
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


class TestLocallyMaskedUNet(NetworkContract):
    def build(self, task: Task) -> nn.Module:
        return LocallyMaskedUNet(task.unet(), stride=4)
