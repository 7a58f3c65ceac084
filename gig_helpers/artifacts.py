"""What a run has made, kept on disk: found again by a hash of everything that it depends on."""

import ast
import hashlib
import json
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def folder() -> Path:
    """Folder of all artifacts: ``GIG_ARTIFACTS``, else ``artifacts`` in the working directory."""
    path = Path(os.environ.get("GIG_ARTIFACTS", "artifacts")).absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a temporary path, then rename it: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid4().hex}-{path.name}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, with sorted keys, so that equal content gives equal bytes."""
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def key(stage: str, depends: dict[str, Any], code: tuple[ModuleType, ...] = ()) -> str:
    """Hash of a stage's name, settings and code.

    Parameters
    ----------
    depends
        JSON-compatible settings and the keys or fingerprints of what comes before.
    code
        Modules whose code the result depends on. Comments, layout and docstrings do not count.
    """
    parts = {"stage": stage, "depends": depends, "code": [_code_hash(module) for module in code]}
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cached(
    stage: str,
    depends: dict[str, Any],
    compute: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]],
    code: tuple[ModuleType, ...] = (),
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what ``compute`` returns, from disk where an equal run has left it.

    Parameters
    ----------
    stage
        Name of the step; the first part of the file's name.
    depends, code
        See :func:`key`.
    compute
        Function of no arguments that returns tensors by name and a JSON-compatible record.

    Returns
    -------
    tensors, record
        The tensors are on the CPU.
    """
    path = folder() / f"{stage}-{key(stage, depends, code)}.safetensors"
    record_path = path.with_suffix(".json")
    if path.exists() and record_path.exists():
        return load_file(path), json.loads(record_path.read_text(encoding="utf-8"))["record"]
    tensors, record = compute()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_json(record_path, {"stage": stage, "depends": depends, "record": record})
    write_atomically(path, lambda temporary: save_file(tensors, temporary))
    return tensors, json.loads(json.dumps(record))


def digest(*tensors: Tensor) -> str:
    """Hash of the values of tensors of any shape (...,), wherever they lie."""
    values = hashlib.sha256()
    for tensor in tensors:
        values.update(tensor.cpu().contiguous().numpy().tobytes())
    return values.hexdigest()[:16]


def recorded(name: str) -> dict[str, Any]:
    """Figures of a larger run than the reader's own: ``book/results/NAME.json``.

    Raises
    ------
    FileNotFoundError
        If no such file was recorded.
    """
    # An install carries the folder inside the package, a checkout beside it.
    here = Path(__file__).parent
    places = [here / "results", here.parent / "book" / "results"]
    for path in (place / f"{name}.json" for place in places):
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))
    raise FileNotFoundError(f"no {name}.json in {' or '.join(map(str, places))}: make results")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages whose numerics a result depends on."""
    packages = ("torch", "torchvision", "captum", "scikit-learn", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def provenance(profile: Any, network: Any, pictures: Any) -> str:
    """One line that says what a chapter ran on: network, weights, pictures, sizes, machine."""
    device = (
        torch.cuda.get_device_name(network.device)
        if network.device.type == "cuda"
        else f"{torch.get_num_threads()} CPU threads"
    )
    packages = ", ".join(f"{name} {number}" for name, number in versions().items())
    return (
        f"{network.name} (weights: {network.weights}, {network.version}) · {pictures} · "
        f"profile {profile.name}, seed {profile.seed} · {device} · {packages}"
    )


def _code_hash(module: ModuleType) -> str:
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not _is_docstring(part)]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
