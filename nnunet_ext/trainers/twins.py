"""Twins of nnU-Net's own trainers: the same method, but with settings from the plans.

``ExtensionTrainerDA5`` trains as ``nnUNetTrainerDA5`` does, for as many epochs and batches, with
the seed and the learning rate that the plans ask for. That makes fair baselines of all variants.
"""

from functools import cache

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ext.nnunet.lookup import find_trainer_of_nnunet
from nnunet_ext.trainers.base import ExtensionTrainer


@cache  # one class per name
def twin(name: str) -> type[ExtensionTrainer] | None:
    """Make the twin of a trainer of nnU-Net's.

    Args:
        name: ``ExtensionTrainer`` and the rest of the name in nnU-Net, such as ``DA5``.

    Returns:
        The class, or None if nnU-Net has no trainer with such a name.
    """
    stock = find_trainer_of_nnunet(name.replace("Extension", "nnUNet", 1))
    # a step of its own would be lost to ours; up to nnU-Net 2.8 only the Primus trainers, which
    # are called otherwise, have one
    if stock is None or stock.train_step is not nnUNetTrainer.train_step:
        return None
    body = {
        "__module__": __package__,  # from where it pickles by reference
        "__doc__": f"nnU-Net's {stock.__name__} whose settings come from the plans.",
    }
    return type(name, (ExtensionTrainer, stock), body)
