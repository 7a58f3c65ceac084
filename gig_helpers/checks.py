"""What a network must be to be taken apart: asked, on random pictures, when it is made.

A refusal is one sentence that says what to do. Not in the paper.
"""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from .traced import BATCH, Node, trace

Output: TypeAlias = "str | int | Callable[[Any], Tensor] | None"
"""Which of a model's outputs are its logits: a key or attribute, an index, or what takes them."""

_Call: TypeAlias = Callable[[Any, Tensor], Tensor]

_CLOSE = {torch.float32: 1e-5, torch.float64: 1e-9}
"""How far apart, as a share, rounding alone may bring what is equal."""


def own_copy(model: nn.Module) -> nn.Module:
    """A copy for evaluation, frozen: the reader's model stays as it is, and may be trained on.

    ``DataParallel`` and ``torch.compile`` are unwrapped. Half precision becomes float32, in which
    sums add up.

    Raises
    ------
    TypeError
        If the model is TorchScript, quantised, or cannot be copied.

    Examples
    --------
    >>> model = nn.DataParallel(nn.Linear(2, 2).bfloat16())
    >>> made = own_copy(model)
    >>> made, made.weight.dtype, made.weight.requires_grad, model.module.weight.requires_grad
    (Linear(in_features=2, out_features=2, bias=True), torch.float32, False, True)
    """
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(model, torch._dynamo.eval_frame.OptimizedModule):
            model = model._orig_mod
        else:
            break
    name = type(model).__name__
    if any(isinstance(m, torch.jit.ScriptModule) for m in model.modules()):
        raise TypeError(
            f"{name} is TorchScript, which has no operations to take apart: give the Python model "
            "that it was made of, with these weights (load_state_dict)"
        )
    if any("quantized" in type(m).__module__ for m in model.modules()):
        raise TypeError(
            f"{name} is quantised, so that nothing in it has a gradient: give the float model that "
            "it was made of"
        )
    try:
        made = copy.deepcopy(model).eval().requires_grad_(False)
    except Exception as error:
        raise TypeError(
            f"{name} cannot be copied: take from it what copy.deepcopy refuses, such as hooks, "
            f"results of a forward pass or weight_norm: {_first_line(error)}"
        ) from error
    types = {p.dtype for p in made.parameters() if p.is_floating_point()}
    return made if types <= set(_CLOSE) else made.float()


def tried(model: nn.Module, sizes: Sequence[Sequence[int]]) -> tuple[Tensor, Any]:
    """Random pictures of the first of these sizes that the model takes, and what it gives for them.

    Parameters
    ----------
    sizes
        Channels, rows and columns.

    Raises
    ------
    TypeError
        If it takes none.

    Examples
    --------
    >>> images, given = tried(nn.Conv2d(1, 2, 3), [(3, 9, 9), (1, 9, 9)])
    >>> images.shape, given.shape
    (torch.Size([2, 1, 9, 9]), torch.Size([2, 2, 7, 7]))
    """
    like = next(model.parameters(), torch.empty(0))
    failures: dict[int, Exception] = {}
    for size in sizes:
        images = torch.randn(BATCH, *size, generator=torch.Generator().manual_seed(0)).to(like)
        try:
            return images, _run(model, images)
        except Exception as error:
            failures[size[0]] = error
    why, *_ = failures.values()
    others = ", ".join(map(str, [*failures][1:6]))
    others = f" (nor with {others} channels)" if others else ""
    raise TypeError(
        f"{type(model).__name__} cannot be traced with pictures {(BATCH, *sizes[0])}{others}; its "
        "forward must take one batch of pictures and not depend on their values; another size is "
        f"input_size=(H, W), or (channels, H, W): {_first_line(why)}"
    ) from why


def logits_alone(model: nn.Module, given: Any, output: Output = None) -> Tensor:
    """Let the model's forward pass give its logits alone, (N, classes), from now on.

    Parameters
    ----------
    given
        What it gave for :data:`gig_helpers.traced.BATCH` pictures.
    output
        Which of several outputs the logits are; what holds one tensor alone needs no name.

    Returns
    -------
    Tensor
        The logits of these pictures.

    Raises
    ------
    TypeError
        If it does not give one tensor of this shape.
    KeyError
        If it has no output of this name.

    Examples
    --------
    >>> class Two(nn.Linear):
    ...     def forward(self, x):
    ...         return {"features": x, "logits": super().forward(x)}
    >>> model, images = Two(4, 3), torch.ones(2, 4)
    >>> logits = logits_alone(model, model(images), "logits")
    >>> torch.equal(model(images), logits), logits.shape
    (True, torch.Size([2, 3]))
    """
    name = type(model).__name__
    take = output if callable(output) else _taker(name, given, output)
    if take is not None:
        model.register_forward_hook(lambda _, __, result: take(result))
        given = take(given)
    if not isinstance(given, Tensor):
        raise TypeError(f"{name}: output=… gives {type(given).__name__}, and no tensor of logits")
    shape = tuple(given.shape)
    if given.ndim != 2 or len(given) != BATCH:
        one_each = shape == (BATCH,)
        do = "y[:, None]" if one_each else "y.mean((2, 3))" if given.ndim == 4 else "y[:, 0]"
        raise TypeError(
            f"{name} gives {shape} for {BATCH} pictures, and not one row of logits each, "
            f"(N, classes): say how these come of it, as in output=lambda y: {do}"
        )
    if not given.is_floating_point():
        raise TypeError(f"{name} gives {given.dtype}, and no logits: leave out its argmax")
    if not given.isfinite().all():
        raise TypeError(
            f"{name} gives NaN or infinite logits for random pictures: mend its weights"
        )
    sums = given.sum(1)
    if given.shape[1] > 1 and (given >= 0).all() and torch.allclose(sums, torch.ones_like(sums)):
        warnings.warn(
            f"{name} gives probabilities, which are explained in the place of logits: leave its "
            "softmax out, or give output=torch.log",
            stacklevel=3,
        )
    return given


def _taker(name: str, given: Any, output: str | int | None) -> Callable[[Any], Any] | None:
    """What takes the logits out of a model's output; nothing where it is a tensor already."""  # noqa: DOC501
    if isinstance(given, Tensor) and output is None:
        return None
    parts = _parts(given)
    if output is None and len(parts) == 1:
        (output,) = parts
    if output in parts:
        return lambda result: _parts(result)[output]
    some = ", ".join(f"{key!r} {tuple(part.shape)}" for key, part in parts.items())
    there = f"it gives {some}" if parts else f"it gives one {type(given).__name__}"
    if output is not None:
        raise KeyError(f"{name} has no output {output!r}: {there}")
    if not parts:
        raise TypeError(
            f"{name} gives {type(given).__name__}, which is no tensor: say how the logits come of "
            "it, as in output=lambda y: y[0]['logits']"
        )
    like = "logits" if "logits" in parts else [*parts][-1]
    raise TypeError(
        f"{name} gives several outputs: say which are the logits, as in Network(model, "
        f"output={like!r}); {there}"
    )


def _parts(given: Any) -> dict[Any, Tensor]:
    """The tensors in an output, by key, attribute or index."""
    if isinstance(given, Mapping):
        every = dict(given)
    elif isinstance(given, list | tuple):
        every = given._asdict() if hasattr(given, "_asdict") else dict(enumerate(given))
    else:
        every = getattr(given, "__dict__", {})
    return {key: part for key, part in every.items() if isinstance(part, Tensor)}


def traced(model: nn.Module, images: Tensor, logits: Tensor) -> tuple[fx.GraphModule, list[Node]]:
    """The model's graph (:func:`gig_helpers.traced.trace`), which gives the model's logits.

    Where they are not the same in float32, they are compared again in float64.

    Raises
    ------
    TypeError
        If the graph gives other logits, or the model's are no function of one picture each.

    Examples
    --------
    >>> model, images = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten()), torch.randn(2, 3, 3, 3)
    >>> traced(model, images, model(images))[1]
    [x, conv2d, flatten]
    """
    name, size = type(model).__name__, images.shape[1:]
    made = trace(model, size)
    try:
        alone = _run(model, images[1:])
    except Exception as error:
        raise TypeError(
            f"{name} takes no picture alone: let its forward keep the batch, with squeeze(dim) or "
            f"flatten(1): {_first_line(error)}"
        ) from error
    if alone.shape != logits[1:].shape:
        raise TypeError(
            f"{name} gives {tuple(logits.shape)} for {BATCH} pictures, but for one alone "
            f"{tuple(alone.shape)}: let its forward keep the batch, with squeeze(dim) or flatten(1)"
        )
    if not _close(alone, logits[1:]):
        if not _close(_run(model, images), logits):
            raise TypeError(
                f"{name} gives the same pictures other logits each time: something in it is random "
                "in evaluation too; give F.dropout and the like training=self.training"
            )
        if not _exactly(model, images, lambda m, x: m(x[1:]), lambda m, x: m(x)[1:]):
            raise TypeError(
                f"{name}'s logits of a picture depend on what else is in its batch: let nothing in "
                "it mix pictures, such as batch norms without running statistics"
            )

    try:
        fits = _run(made[0], images[1:]).shape == alone.shape
    except Exception:
        fits = False
    if not fits:
        raise TypeError(
            f"{name} would be traced for batches of {BATCH} pictures alone: let its forward take "
            "their number from x.shape[0], and not from len(x)"
        )
    # Only where it must, for it takes some layers apart, a functional graph; float64 last, for it
    # is a trace more.
    if _close(_run(made[0], images), logits):
        return made
    functional = trace(model, size, functional=True)
    if _close(_run(functional[0], images), logits):
        return functional
    for exact in (False, True):

        def graph(m: nn.Module, x: Tensor, exact: bool = exact) -> Tensor:
            return trace(m, size, functional=exact)[0](x)

        if _exactly(model, images, graph, _run):
            return functional if exact else made
    raise TypeError(
        f"{name}'s graph does not give its logits, for something in its forward escapes the trace: "
        "write into no tensor (y[:, :4] = 0), but make new ones, with torch.where or torch.cat"
    )


@torch.no_grad()
def _run(model: nn.Module, images: Tensor) -> Any:
    return model(images)


@torch.no_grad()
def _exactly(model: nn.Module, images: Tensor, one: _Call, other: _Call) -> bool:
    """Whether two ways to logits agree in float64: they are the same, but for float32's digits."""
    if images.dtype == torch.float64:
        return False
    wide = copy.deepcopy(model).double(), images.double()
    try:
        return _close(one(*wide), other(*wide))
    except Exception:  # a forward pass that casts to float32 by itself
        return False


def _close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    return bool((found - expected).norm() <= _CLOSE[expected.dtype] * expected.norm())


def _first_line(error: Exception) -> str:
    return f"{error}".split("\n")[0]
