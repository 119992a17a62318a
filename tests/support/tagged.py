"""A GPU that is none: tensors that say ``pretended:0`` and hold their numbers on the CPU.

Inside of `pretended_gpu`, an operator that meets tensors of both devices raises `MixedDevices`, as a GPU would, and
everything else gives the CPU's numbers. So a forgotten ``.to(device)`` is found on any machine, also behind branches
that depend on the data, at which torch's fake tensors stop. There is no backward pass.

All of torch takes the device for a GPU from the import of this module on, so that a process of its own is best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretended"
backend_registration._setup_privateuseone_for_python_backend(NAME)
CPU, GPU = torch.device("cpu"), torch.device(NAME, 0)

#: operators that move numbers from one device to another
_MOVES = {"_to_copy", "copy_", "copy", "_copy_from"}
#: operators of which a GPU takes indices on the CPU, too
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
#: what makes a tensor of Python's numbers, or of none
_FACTORIES = (torch.tensor, torch.as_tensor, torch.arange, torch.zeros, torch.ones, torch.full, torch.empty)


class MixedDevices(RuntimeError):
    """An operator with tensors of two devices."""


class Tagged(torch.Tensor):
    """A tensor on the device that is none; ``inner`` holds the numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Tagged:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=GPU,
        )

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    def __repr__(self, **_: Any) -> str:
        return f"Tagged({self.inner})"

    def tolist(self) -> Any:
        """torch reads the memory itself, where there is none."""
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """An operator on the numbers; what it gives is tagged as a GPU would place it."""
    name = func.overloadpacket.__name__
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    tagged = any(isinstance(tensor, Tagged) for tensor in tensors)
    _refuse_mixes(func, name, tensors, tagged)
    asked = kwargs.get("device")
    on_gpu = torch.device(asked).type == NAME if asked is not None else tagged
    if name == "copy_":
        on_gpu = isinstance(args[0], Tagged)
    args_in, kwargs_in = tree_map(_untag, (args, kwargs))
    kwargs_in.pop("pin_memory", None)
    out = func(*args_in, **kwargs_in)
    if name.endswith("_") and not name.endswith("__"):
        return args[0]
    if not on_gpu or name == "_local_scalar_dense":
        return out
    return tree_map(lambda leaf: Tagged(leaf) if isinstance(leaf, torch.Tensor) else leaf, out)


def _refuse_mixes(func: Any, name: str, tensors: list[torch.Tensor], tagged: bool) -> None:
    if not tagged or name in _MOVES:
        return
    others = [tensor for tensor in tensors if not isinstance(tensor, Tagged) and tensor.dim()]
    if name in _INDEXED:
        others = [] if isinstance(tensors[0], Tagged) else others
    if others:
        raise MixedDevices(f"{func} has tensors on the GPU and on the CPU, of shape {tuple(others[0].shape)}")


def _untag(value: Any) -> Any:
    if isinstance(value, Tagged):
        return value.inner
    return CPU if isinstance(value, torch.device) else value


class _Operators(TorchDispatchMode):
    """Sees the operators without a tagged tensor, too: those that move one there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Python(TorchFunctionMode):
    """Sees what Python does without an operator: tensors from numbers, and indices in brackets, for which a build of
    torch without CUDA has no device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if name in ("__getitem__", "__setitem__"):
            return _in_brackets(func, name, args)
        if name == "new_tensor" and isinstance(args[0], Tagged):
            kwargs.pop("device", None)
            return Tagged(args[0].inner.new_tensor(*args[1:], **kwargs))
        device = kwargs.get("device")
        if func in _FACTORIES and device is not None and torch.device(device).type == NAME:
            return Tagged(func(*args, **{**kwargs, "device": CPU}))
        return func(*args, **kwargs)


def _in_brackets(func: Any, name: str, args: tuple) -> Any:
    """``args[0][args[1]]``, or ``args[0][args[1]] = args[2]``; indices on the CPU are fine."""
    on_gpu = isinstance(args[0], Tagged)
    others = [leaf for leaf in tree_leaves(args[1:]) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    if not on_gpu and any(isinstance(leaf, Tagged) for leaf in others):
        raise MixedDevices(f"a tensor on the CPU and {name} with one on the GPU")
    if on_gpu and name == "__setitem__" and any(leaf is args[2] and not isinstance(leaf, Tagged) for leaf in others):
        raise MixedDevices("a tensor on the GPU gets values on the CPU")
    out = func(*tree_map(_untag, args))
    return Tagged(out) if on_gpu and name == "__getitem__" else out


@contextmanager
def pretended_gpu() -> Iterator[Callable[[Any], Any]]:
    """Within it the device works; gives what moves a tensor, or the weights of a module (in place), there."""
    with (
        mock.patch.object(torch, "inference_mode", torch.no_grad),  # whose tensors cannot be wrapped
        _Operators(),
        _Python(),
    ):
        yield _move


def _move(what: Any) -> Any:
    if isinstance(what, torch.Tensor):
        return Tagged(what.detach().contiguous())
    for module in what.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = torch.nn.Parameter(_move(weight), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _move(buffer)
    return what
