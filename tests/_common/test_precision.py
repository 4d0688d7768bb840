import pytest
import torch

from nnunet_ext._common.precision import full_precision


def test_mixed_precision_is_off_within() -> None:
    with torch.autocast("cpu", torch.bfloat16), full_precision(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_autocast_is_not_touched_on_apple_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: pytest.fail("touched"))
    with full_precision(torch.device("mps")):
        pass
