"""What a run has made, kept on disk: found again by a hash of everything that it depends on."""

import ast
import functools
import hashlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_ROOT = Path(__file__).parent.parent


def folder() -> Path:
    """Folder of all artifacts: ``GIG_ARTIFACTS``, else ``artifacts`` in the working directory.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from unittest.mock import patch
    >>> with TemporaryDirectory() as here, patch.dict(os.environ, GIG_ARTIFACTS=f"{here}/mine"):
    ...     folder().name, folder().is_dir()
    ('mine', True)
    """
    path = Path(os.environ.get("GIG_ARTIFACTS", "artifacts")).absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a temporary path, then rename it: a reader never sees half a file.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as here:
    ...     write_atomically(Path(here) / "whole.txt", lambda file: file.write_text("all of it"))
    ...     os.listdir(here)
    ['whole.txt']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid4().hex}-{path.name}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, with sorted keys, so that equal content gives equal bytes.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as here:
    ...     write_json(Path(here) / "run.json", {"seed": 0, "blocks": 6})
    ...     (Path(here) / "run.json").read_text()
    '{\\n "blocks": 6,\\n "seed": 0\\n}\\n'
    """
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def key(stage: str, depends: dict[str, Any], code: tuple[ModuleType, ...] = ()) -> str:
    """Hash of a stage's name, settings and code.

    Parameters
    ----------
    depends
        JSON-compatible settings and the fingerprints of what comes before.
    code
        Modules whose code the result depends on. Comments, layout and docstrings do not count.

    Examples
    --------
    >>> key("codes", {"k": 3}) == key("codes", {"k": 3}) != key("codes", {"k": 4})
    True
    """
    parts = {"stage": stage, "depends": depends, "code": [_code_hash(module) for module in code]}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def cached(
    stage: str, *code: ModuleType, ignore: tuple[str, ...] = ()
) -> Callable[[Callable[..., dict[str, Tensor]]], Callable[..., dict[str, Tensor]]]:
    """Decorate a function that returns tensors by name: an equal call reads what the first made.

    Calls are equal if their arguments are: tensors by value, what has a ``fingerprint`` (a
    network, a dataset, concepts) by that, the rest as JSON.

    Parameters
    ----------
    stage
        Name of the step; the first part of the file's name.
    code
        Modules whose code the result depends on, besides the function's own.
    ignore
        Arguments that leave the result as it is, such as a batch size.

    Returns
    -------
    Callable
        The decorated function. Its tensors are on the CPU.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from unittest.mock import patch
    >>> @cached("squares")
    ... def squares(n):
    ...     print("computed")
    ...     return {"all": torch.arange(n) ** 2}
    >>> with TemporaryDirectory() as here, patch.dict(os.environ, GIG_ARTIFACTS=here):
    ...     squares(3)["all"], squares(3)["all"]
    computed
    (tensor([0, 1, 4]), tensor([0, 1, 4]))
    """

    def decorate(function: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            depends = {
                name: fingerprint(value)
                for name, value in bound.arguments.items()
                if name not in ignore
            }
            name = key(stage, depends, (sys.modules[function.__module__], *code))
            path = folder() / f"{stage}-{name}.safetensors"
            if not path.exists():
                found = function(*args, **kwargs)
                # A copy in rows: safetensors takes no views and no tensors that share memory.
                found = {
                    part: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
                    for part, tensor in found.items()
                }
                metadata = {"depends": json.dumps(depends, sort_keys=True)}
                write_atomically(path, lambda file: save_file(found, file, metadata))
            return load_file(path)

        return run

    return decorate


def fingerprint(value: Any) -> Any:
    """What stands for an argument in a hash: JSON-compatible, equal for equal values.

    Raises
    ------
    TypeError
        If the value is of a kind that has no fingerprint.

    Examples
    --------
    >>> fingerprint((1, "gig", None))
    [1, 'gig', None]
    """
    if isinstance(value, Tensor):
        return digest(value)
    if hasattr(value, "fingerprint"):
        return value.fingerprint
    if isinstance(value, Mapping):
        return {str(name): fingerprint(part) for name, part in value.items()}
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Sequence):
        return [fingerprint(part) for part in value]
    raise TypeError(f"{type(value).__name__} has no fingerprint to be found again by")


def digest(*tensors: Tensor) -> str:
    """Hash of the values, types and shapes of tensors (...,), wherever they lie.

    Examples
    --------
    >>> digest(torch.zeros(2)) == digest(torch.zeros(2)) != digest(torch.zeros(1, 2))
    True
    """
    values = hashlib.sha256()
    for tensor in tensors:
        values.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        values.update(tensor.cpu().contiguous().numpy().tobytes())
    return values.hexdigest()[:16]


def recorded(name: str) -> dict[str, Any]:
    """Figures of a larger run than the reader's own: ``book/results/NAME.json``.

    Raises
    ------
    FileNotFoundError
        If no such file was recorded.

    Examples
    --------
    >>> run = recorded("concepts")
    >>> run["pictures"] > 1000, len(run["rows"]) > 0  # one row per block
    (True, True)
    """
    # An install carries the folder inside the package, a checkout beside it.
    places = [_ROOT / "results", _ROOT.parent / "book" / "results"]
    for path in (place / f"{name}.json" for place in places):
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))
    raise FileNotFoundError(f"no {name}.json in {' or '.join(map(str, places))}: make results")


@functools.cache
def _code_hash(module: ModuleType) -> str:
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    return hashlib.sha256(ast.dump(_WithoutDocstrings().visit(tree)).encode()).hexdigest()


class _WithoutDocstrings(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node
