"""A GPU for machines without one: tensors that say so, and refuse what CUDA refuses.

Where a tensor lies is written on its storage. A function mode answers ``device`` and moves tensors;
a dispatch mode looks at every operation's inputs. Numerics and memory are the CPU's.
"""

from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.overrides import _pop_mode_temporarily as without_function_mode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._python_dispatch import _pop_mode_temporarily as without_dispatch_mode
from torch.utils._pytree import tree_leaves

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")

_COPIES = {"aten::copy_", "aten::_to_copy", "aten::lift_fresh", "aten::_local_scalar_dense"}
_INDEX = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class MixedDevices(RuntimeError):
    """An operation got tensors of both devices."""


def _inner(tensor):
    """What lies below the wrappers of torch.func."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def on_gpu(tensor):
    inner = _inner(tensor)
    if inner.layout != torch.strided:
        return on_gpu(inner._values())
    return getattr(inner.untyped_storage(), "on_gpu", False)


def _mark(tensor, where):
    inner = _inner(tensor)
    parts = [inner] if inner.layout == torch.strided else [inner._indices(), inner._values()]
    for part in parts:
        part.untyped_storage().on_gpu = where


def _tensors(*parts):
    return [leaf for leaf in tree_leaves(parts) if isinstance(leaf, torch.Tensor)]


class _Operations(TorchDispatchMode):
    """Refuses mixed inputs; what an operation makes lies where its inputs do."""

    def __init__(self, pretended):
        super().__init__()
        self.pretended = pretended

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given, name = _tensors(args, kwargs), func._schema.name
        sides = {on_gpu(t) for t in given if t.ndim or on_gpu(t)}
        if len(sides) == 2 and name not in _COPIES:
            first = given[0]
            # A tensor on the GPU may be indexed from the CPU.
            others = [t for t in given[1:] if t.dtype not in (torch.long, torch.bool)]
            allowed = (
                name in _INDEX and on_gpu(first) and all(on_gpu(t) or not t.ndim for t in others)
            )
            if not allowed:
                raise MixedDevices(f"{name}: {[(tuple(t.shape), on_gpu(t)) for t in given]}")
        made = func(*args, **kwargs)
        new = not given or name == "aten::lift_fresh"
        where = self.pretended.making if new else True in sides
        for tensor in _tensors(made):
            if new or not (func.is_view or any(tensor is one for one in given)):
                _mark(tensor, where)
        return made


class _Functions(TorchFunctionMode):
    """Answers for the device, moves tensors, and makes new ones on the device that is named."""

    making = False
    """Whether what is made of no tensor lies on the GPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func == torch.Tensor.device.__get__:
            return GPU if on_gpu(args[0]) else CPU
        if func == torch.Tensor.is_cuda.__get__:
            return on_gpu(args[0])
        if func in (torch.Tensor.numpy, torch.Tensor.__array__) and on_gpu(args[0]):
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first"
            )
        if func is torch.Tensor.cpu:
            return self._moved(args[0], False)
        if func is torch.Tensor.to:
            return self._to(*args, **kwargs)
        before, given = self.making, _tensors(args, kwargs)
        device = kwargs.pop("device", None)
        if device is not None:
            where = torch.device(device).type == "cuda"
            generator = kwargs.get("generator")
            if where and generator is not None and generator.device.type == "cpu":
                raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
            if name in ("tensor", "as_tensor"):
                return self._moved(func(*args, **kwargs), where)
            self.making = where
        elif given:
            self.making = on_gpu(given[0])
        try:
            return func(*args, **kwargs)
        finally:
            self.making = before

    def _moved(self, tensor, where):
        if on_gpu(tensor) == where:
            return tensor
        made = tensor.clone()
        _mark(made, where)
        return made

    def _to(self, tensor, *args, **kwargs):
        kwargs.pop("non_blocking", None)
        where, rest = on_gpu(tensor), []
        for value in [*args, *([kwargs.pop("device")] if "device" in kwargs else [])]:
            if isinstance(value, torch.Tensor):
                where = on_gpu(value)
                rest.append(value.dtype)
            elif isinstance(value, str | torch.device):
                where = torch.device(value).type == "cuda"
            elif isinstance(value, torch.dtype):
                rest.append(value)
        made = torch.Tensor.to(tensor, *rest, **kwargs) if rest or kwargs else tensor
        return self._moved(made, where)


@contextmanager
def pretend_gpu():
    """Within, the process has one GPU."""
    functions, export = _Functions(), torch.export.export

    def exported(*args, **kwargs):  # its tensors are none: neither mode may see them
        with without_function_mode(), without_dispatch_mode():
            return export(*args, **kwargs)

    with (
        patch("torch.cuda.is_available", lambda: True),
        patch("torch.cuda.synchronize", lambda *_: None),
        patch("torch.cuda.empty_cache", lambda: None),
        # What optimizers ask before a step:
        patch("torch.accelerator.current_accelerator", lambda **_: None),
        patch("torch.cuda.is_current_stream_capturing", lambda: False),
        patch("torch.cuda.get_device_name", lambda *_: "a pretended GPU"),
        patch("torch.export.export", exported),
        _Operations(functions), functions,
    ):  # fmt: skip
        yield
