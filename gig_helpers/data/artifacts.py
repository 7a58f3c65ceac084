"""What a run has made, kept on disk: found again by a hash of everything that it depends on.

What a result depends on is its arguments and its code: the module of the function that makes it,
and all that this one imports, directly or not, of this package or of the reader's own files. Nobody
keeps a list.
"""

import ast
import functools
import hashlib
import importlib.util
import inspect
import json
import os
import re
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import CodeType
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

    A list of numbers is one line: values are kept of each photograph, thousands in a file.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as here:
    ...     write_json(Path(here) / "run.json", {"seed": 0, "each": [0.5, 1]})
    ...     (Path(here) / "run.json").read_text()
    '{\\n "each": [0.5, 1],\\n "seed": 0\\n}\\n'
    """
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    # No string holds a line's end, and no match a quote: what is in strings stays as it is.
    text = re.sub(r"\[\n([^][{}\"]*)\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def key(stage: str, depends: Any, code: str = "") -> str:
    """Hash of a stage's name, settings and code.

    Parameters
    ----------
    depends
        JSON-compatible settings and the fingerprints of what comes before.
    code
        What :func:`code_of` says of the function that makes it.

    Examples
    --------
    >>> key("codes", {"k": 3}) == key("codes", {"k": 3}) != key("codes", {"k": 4})
    True
    """
    parts = {"stage": stage, "depends": depends, "code": code}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def code_of(something: Any) -> str:
    """Hash of the code that a function or class depends on; not in the paper.

    That of its module and of all modules that this one imports, directly or not, of this package
    or of the reader's own files; installed libraries do not count, nor do comments, layout and
    docstrings. Of what was written in a notebook, its own code alone.

    Examples
    --------
    >>> code_of(key) == code_of(digest), len(code_of(lambda x: x + 1))  # of one module
    (True, 16)
    """
    while isinstance(something, functools.partial):
        something = something.func
    spec = _spec(something.__module__)
    if spec is None:
        return hashlib.sha256("".join(_bytecode(something)).encode()).hexdigest()[:16]
    return _code_hash(spec.name, str(spec.origin))


def cached(
    stage: str, *, ignore: tuple[str, ...] = ()
) -> Callable[[Callable[..., dict[str, Tensor]]], Callable[..., dict[str, Tensor]]]:
    """Decorate a function that returns tensors by name: an equal call reads what the first made.

    Calls are equal if their arguments are (see :func:`fingerprint`) and the code is
    (:func:`code_of`).

    Parameters
    ----------
    stage
        Name of the step; the first part of the file's name.
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
            given = bound.arguments.items()
            depends = {name: fingerprint(value) for name, value in given if name not in ignore}
            name = key(stage, depends, code_of(function))
            path = folder() / f"{stage}-{name}.safetensors"
            if not path.exists():
                metadata = {"depends": json.dumps(depends, sort_keys=True)}
                write_tensors(path, function(*args, **kwargs), metadata)
            return load_file(path)

        return run

    return decorate


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors by name as safetensors, atomically; not in the paper.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as here:
    ...     write_tensors(Path(here) / "x.safetensors", {"x": torch.arange(6).reshape(2, 3).T})
    ...     load_file(Path(here) / "x.safetensors")["x"].tolist()
    [[0, 3], [1, 4], [2, 5]]
    """
    # A copy in rows: safetensors takes no views and no tensors that share memory.
    rows = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    write_atomically(path, lambda file: save_file(rows, file, dict(metadata or {})))


def fingerprint(value: Any) -> Any:
    """What stands for an argument in a hash: JSON-compatible, equal for equal values.

    Tensors count by value, what has a ``fingerprint`` (a network, a dataset, concepts) by that,
    functions by their code, the rest as JSON.

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
    if isinstance(value, functools.partial):
        return fingerprint([value.func, value.args, value.keywords])
    if inspect.isroutine(value):
        # A module's functions share its code; those that a function makes differ in what they hold.
        held = inspect.unwrap(value).__closure__ or ()
        inside = [fingerprint(cell.cell_contents) for cell in held]
        return [code_of(value), *_bytecode(value), *inside]
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


def _spec(name: str) -> ModuleSpec | None:
    """Where a module's code stands, of this package or of the reader's files; else None."""
    top, *below = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # a notebook's own
        return None
    for part in below:
        if spec is None or spec.submodule_search_locations is None or _installed(spec):
            return None
        # Not find_spec, which imports the package that it looks into.
        spec = PathFinder.find_spec(f"{spec.name}.{part}", spec.submodule_search_locations)
    own = spec is not None and Path(str(spec.origin)).suffix == ".py" and not _installed(spec)
    return spec if own else None


def _installed(spec: ModuleSpec) -> bool:
    """Whether it is Python's own or stands beside an installer's records."""
    places = [*(spec.submodule_search_locations or ()), str(spec.origin)]
    return _ROOT.name != spec.name.partition(".")[0] and any(map(_holds_libraries, places))


@functools.cache
def _holds_libraries(place: str) -> bool:
    standard = {Path(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib")}
    return any(
        folder in standard or any(folder.glob("*.dist-info")) for folder in Path(place).parents
    )


@functools.cache
def _code_hash(name: str, path: str) -> str:
    """Of a module and those that it imports, directly or not."""
    seen, waiting = {name: path}, [name]
    while waiting:
        for spec in map(_spec, _parsed(seen[name := waiting.pop()], name)[1]):
            if spec is not None and spec.name not in seen:
                seen[spec.name] = str(spec.origin)
                waiting.append(spec.name)
    hashes = sorted((name, _parsed(path, name)[0]) for name, path in seen.items())
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()[:16]


@functools.cache
def _parsed(path: str, name: str) -> tuple[str, tuple[str, ...]]:
    """A file's hash without docstrings, and the names of the modules that it may import."""
    tree = _WithoutDocstrings().visit(ast.parse(Path(path).read_text(encoding="utf-8")))
    package = name if Path(path).name == "__init__.py" else name.rpartition(".")[0]
    modules: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative, package)
            inside = [f"{base}.{alias.name}" for alias in node.names]
            # What is no module is a name that its package's own file holds.
            modules += [module if _spec(module) else base for module in inside]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), tuple(modules)


def _bytecode(something: Any) -> Iterator[str]:
    """What a function, or a class's functions, do: without a file there is no source to read."""
    if isinstance(something, type):
        yield from (code_of(base) for base in something.__bases__ if base is not object)
        for name, part in vars(something).items():
            if inspect.isroutine(part) or isinstance(part, property | functools.cached_property):
                yield name
                yield from _bytecode(part)
            elif not name.startswith("__"):
                yield f"{name} {part!r}"
        return
    something = getattr(something, "fget", None) or getattr(something, "func", something)
    something = inspect.unwrap(getattr(something, "__func__", something))
    yield f"{something.__defaults__!r} {something.__kwdefaults__!r}"
    waiting = [something.__code__]
    while waiting:
        code = waiting.pop()
        inner = [part for part in code.co_consts if isinstance(part, CodeType)]
        plain = [
            # A set has another order in every process.
            sorted(map(repr, part)) if isinstance(part, frozenset) else part
            for part in code.co_consts
            if not isinstance(part, CodeType) and part != something.__doc__
        ]
        yield f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {plain!r}"
        waiting += inner


class _WithoutDocstrings(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node
