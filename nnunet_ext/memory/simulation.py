"""Running code without computing anything, and following what its tensors hold meanwhile.

Fake tensors have shapes, types and storages but no values. Whatever runs on them lets go of memory
when it would with values, so that the peak is that of the real thing.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

PARAMETERS = "parameters"
GRADIENTS = "gradients"
OPTIMISER = "optimiser"
IMAGES = "images"
ACTIVATIONS = "activations"
TEMPORARIES = "temporaries"
KINDS = (PARAMETERS, GRADIENTS, OPTIMISER, IMAGES, ACTIVATIONS, TEMPORARIES)
"""What memory is held for. Images come with labels, in prediction with logits; activations are what
a forward pass makes, temporaries what comes and goes elsewhere."""


@dataclass(frozen=True)
class Peak:
    """What is held when most is held: bytes by kind."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """Bytes of all kinds together."""
        return sum(self.parts.values())


class Follower(TorchDispatchMode):
    """Follows what tensors hold, real or fake ones.

    A storage counts from when an operation returns it until no tensor needs it any more. What an
    operation takes and gives back inside itself stays unseen.
    """

    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[int, tuple[str, int, Any]] = {}  # kind, bytes, reference
        self._held = dict.fromkeys(KINDS, 0)
        self.held = 0
        """Bytes held at this moment."""
        self._kind: str | None = None
        self._in_update = False  # of an optimiser
        self._hooks = ExitStack()
        self.start()

    def start(self) -> None:
        """Forget the peaks so far."""
        self._peaks = {False: Peak(dict(self._held)), True: Peak({})}  # by _in_update
        self._most = {False: self.held - self._held[OPTIMISER], True: 0}

    @property
    def peak(self) -> Peak:
        """What was held when most was held, since the start."""
        return max(self._peaks.values(), key=lambda peak: peak.total)

    def peak_of(self, step: Callable[[], Any]) -> Peak:
        """The peak of a step that is taken again and again."""
        self.start()
        step()
        # all steps but the first begin with what the optimiser keeps
        state = self._held[OPTIMISER]
        usual = Peak({**self._peaks[False].parts, OPTIMISER: state})
        if usual.total < self._peaks[True].total + state:
            self.start()
            step()
            return self.peak
        return usual

    @contextmanager
    def counting_as(self, kind: str) -> Iterator[None]:
        """Within it, whatever is new is of this kind."""
        self._kind = kind
        try:
            yield
        finally:
            self._kind = None

    def is_now(self, kind: str, tensors: Any) -> None:
        """Take what these tensors, in nested containers, hold for another kind."""
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor):
                key = tensor.untyped_storage()._cdata
                if key in self._storages:
                    before, size, reference = self._storages[key]
                    self._storages[key] = kind, size, reference
                    self._held[before] -= size
                    self._held[kind] += size

    def watch(self, parameters: Iterable[Tensor]) -> None:
        """Count these as parameters, and what backward passes leave in them as gradients."""
        for parameter in parameters:
            self.is_now(PARAMETERS, parameter)
            parameter.register_post_accumulate_grad_hook(lambda p: self.is_now(GRADIENTS, p.grad))

    def __enter__(self) -> "Follower":
        for register, note in (
            (register_optimizer_step_pre_hook, self._begin_update),
            (register_optimizer_step_post_hook, self._end_update),
        ):
            self._hooks.callback(register(note).remove)
        super().__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        super().__exit__(*details)
        self._hooks.close()

    def _begin_update(self, *_: Any) -> None:
        self._in_update = True

    def _end_update(self, optimizer: Optimizer, *_: Any) -> None:
        self._in_update = False
        self.is_now(OPTIMISER, [list(state.values()) for state in optimizer.state.values()])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and look at what it returns."""
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # most operations ask, and torch's own way there is slow
        result = func(*args, **(kwargs or {}))
        for tensor in [result] if isinstance(result, Tensor) else tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._follow(tensor)
        return result

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        # autograd computes backward passes, and optimisers their steps, without recording
        kind = self._kind or (ACTIVATIONS if torch.is_grad_enabled() else TEMPORARIES)
        size = storage.nbytes()
        self._storages[key] = kind, size, weakref.ref(storage, lambda _: self._forget(key))
        self._held[kind] += size
        self.held += size
        # optimisers make what they keep in the first step, so it is left out of the comparison
        if self.held - self._held[OPTIMISER] > self._most[self._in_update]:
            self._most[self._in_update] = self.held - self._held[OPTIMISER]
            self._peaks[self._in_update] = Peak(dict(self._held))

    def _forget(self, key: int) -> None:
        kind, size, _ = self._storages.pop(key)
        self._held[kind] -= size
        self.held -= size


# fmt: off
FLOAT32 = {
    "binary_cross_entropy_with_logits", "cdist", "cosine_embedding_loss",
    "cosine_similarity", "cross_entropy", "cumprod", "cumsum", "dist", "exp", "expm1",
    "group_norm", "hinge_embedding_loss", "kl_div", "l1_loss", "layer_norm", "log", "log10",
    "log1p", "log2", "log_softmax", "margin_ranking_loss", "mse_loss", "multi_margin_loss",
    "multilabel_margin_loss", "nll_loss", "norm", "normalize", "pdist", "poisson_nll_loss",
    "pow", "prod", "reciprocal", "rsqrt", "smooth_l1_loss", "soft_margin_loss", "softmax",
    "softmin", "softplus", "sum", "triplet_margin_loss",
}
# fmt: on
"""What mixed precision computes in float32 on a GPU, by torch's own list; a CPU does less of it."""


class _FakeTensorMode(FakeTensorMode):
    """Fake tensors that have values, if somebody asks: 1.0, 0 and False."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return _values(args[0]).flat[0].item()
        return super().__torch_dispatch__(func, types, args, kwargs)


def _values(tensor: Tensor) -> NDArray[Any]:
    if tensor.is_floating_point():
        return np.ones(tensor.shape, np.float32)
    return np.zeros(tensor.shape, bool if tensor.dtype == torch.bool else np.int64)


class _LikeGpu(TorchFunctionMode):
    """Lets mixed precision on a CPU be that of a GPU, and fake tensors become arrays and lists."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("numpy", "__array__") and isinstance(args[0], FakeTensor):
            return _values(args[0])
        if name == "tolist" and isinstance(args[0], FakeTensor):
            return _values(args[0]).tolist()
        if name in FLOAT32:
            args = tree_map_only(Tensor, _in_float32, args)
        return func(*args, **(kwargs or {}))


def _in_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


@contextmanager
def simulated(on_gpu: bool = True) -> Iterator[Follower]:
    """Within it, nothing is computed; what tensors would hold is followed.

    Args:
        on_gpu: As on a GPU, with mixed precision and optimisers that update all parameters at
            once. Otherwise as on a CPU. Tensors are always on the CPU: without CUDA, backward
            passes of fake tensors on a GPU are not to be had.
    """
    follower = Follower()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        fake: Any = _FakeTensorMode(allow_non_fake_inputs=True)
        # it would refer to parameters, and torch moves no module to whose parameters others refer
        fake.fake_tensor_converter.set_tensor_memo = lambda *_: None
        stack.enter_context(fake)
        stack.enter_context(_LikeGpu())
        if on_gpu:
            stack.callback(register_optimizer_step_pre_hook(_update_all_at_once).remove)
        yield stack.enter_context(follower)


def _update_all_at_once(optimizer: Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        if not group.get("fused"):
            group["foreach"] = True
