"""Picture files as everybody sees them: upright, with the range of their type, on white."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError


def suffixes() -> set[str]:
    """What the names of files end in that this Pillow reads, with the plug-ins imported so far.

    Examples
    --------
    >>> {".jpg", ".jpe", ".jfif", ".png", ".tiff", ".webp"} <= suffixes(), ".txt" in suffixes()
    (True, False)
    """
    return {end for end, form in Image.registered_extensions().items() if form in Image.OPEN}


def read(file: Path | BytesIO, *, draft: bool = False) -> Image.Image:
    """Read a picture file as RGB: turned as its EXIF says, what is transparent on white.

    Grey of 16 bits goes from 0 (black) to 65,535 (white). Numbers of 32 bits have no white of their
    own: integers from 0 to 65,535 are taken as 16 bits; floats from 0 to 1, or else from 0 to 255,
    have these ends as black and white; others go from the picture's lowest value to its highest. Of
    several frames the first is read.

    Parameters
    ----------
    draft
        A JPEG is read at an eighth of its size: enough to know whether it can be read.

    Raises
    ------
    ValueError
        If it is no picture, broken, or holds NaN or infinite values.

    Examples
    --------
    >>> buffer = BytesIO()
    >>> Image.new("RGBA", (1, 1), (255, 0, 0, 51)).save(buffer, "PNG")  # a fifth of red
    >>> read(buffer).getpixel((0, 0))
    (255, 204, 204)
    """
    try:
        with Image.open(file) as opened:
            if draft:
                opened.draft(None, (1, 1))
            opened.load()  # a TIFF turns itself
            turn = _TURNS.get(_orientation(opened))
            image = opened if turn is None else opened.transpose(turn)
            if image.mode.startswith(("I", "F")):
                values = np.asarray(image)
                if not np.isfinite(values).all():
                    raise ValueError("holds NaN or infinite values")
                image = Image.fromarray(_bytes(values))
            elif image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")
    except UnidentifiedImageError as error:  # names no file where it was read from memory
        raise ValueError("no picture that Pillow reads") from error
    except Exception as error:  # of a broken file a decoder may raise anything
        raise ValueError(str(error) or type(error).__name__) from error


_TURNS = {
    number: Image.Transpose[name]
    for number, name in {
        2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
        6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90",
    }.items()
}  # fmt: skip
"""What undoes an EXIF orientation."""


def _orientation(image: Image.Image) -> int:
    # Not ImageOps.exif_transpose, which writes all of EXIF anew and fails on what it cannot write.
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # a photograph whose EXIF is broken is whole all the same
        return 1


def _bytes(values: np.ndarray) -> np.ndarray:
    """Grey values (H, W) of 16 or 32 bits as bytes; see :func:`read`."""
    values, whole = values.astype(np.float64), values.dtype.kind in "iu"
    low, high = float(values.min()), float(values.max())
    ends = [65535.0] if whole else [1.0, 255.0]
    black, white = next(((0.0, end) for end in ends if 0 <= low and high <= end), (low, high))
    return np.rint(255 * (values - black) / (white - black or 1)).astype(np.uint8)


def content(file: Path) -> tuple[str, str]:
    """Hash of a file's bytes, and what is wrong with the picture in them, if anything.

    A file is read again when its place on disk, its size or one of its times has changed.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as here:
    ...     path = Path(here) / "a.png"
    ...     size = path.write_bytes(b"no picture")
    ...     digest, problem = content(path)
    >>> digest == hashlib.sha256(b"no picture").hexdigest(), problem
    (True, 'no picture that Pillow reads')
    """
    try:
        now = file.stat()
        if not file.is_file():
            return "", "no file"
        return _content(file, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)
    except OSError as error:
        return "", error.strerror or str(error)


@lru_cache(maxsize=100_000)
def _content(file: Path, *state: int) -> tuple[str, str]:
    data = file.read_bytes()
    problem = ""
    try:
        read(BytesIO(data), draft=True)
    except ValueError as error:
        problem = str(error)
    return hashlib.sha256(data).hexdigest(), problem


def found(root: Path) -> tuple[list[Path], dict[str, str]]:
    """Picture files in a folder and below, sorted, and what is left out, with the reason.

    Links are followed, but not back into a folder that one is in. What is hidden (its name begins
    with a full stop) is passed over.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as here:
    ...     Image.new("RGB", (2, 2)).save(Path(here) / "a.jpe")
    ...     size = (Path(here) / "notes.txt").write_text("text")
    ...     files, left_out = found(Path(here))
    >>> [file.name for file in files], left_out
    (['a.jpe'], {'notes.txt': 'no suffix of a picture'})
    """
    files: list[Path] = []
    left_out: dict[str, str] = {}

    def unreadable(error: OSError) -> None:
        place = os.path.relpath(error.filename, root)
        left_out[f"{Path(place).as_posix()}/"] = error.strerror or str(error)

    for here, folders, names in os.walk(root, onerror=unreadable, followlinks=True):
        above = {os.path.realpath(place) for place in (Path(here), *Path(here).parents)}
        folders[:] = [
            name for name in folders
            if name[0] != "." and os.path.realpath(Path(here, name)) not in above
        ]  # fmt: skip
        files += (Path(here, name) for name in names if name[0] != ".")
    known = suffixes()
    named = [file for file in files if file.suffix.lower() in known]
    with ThreadPoolExecutor() as readers:
        each = readers.map(content, named)
        problems = {file: problem for file, (_, problem) in zip(named, each, strict=True)}
    left_out |= {_below(root, file): problem for file, problem in problems.items() if problem}
    left_out |= {
        _below(root, file): "no suffix of a picture" for file in sorted({*files} - {*named})
    }
    return sorted(file for file in named if not problems[file]), left_out


def _below(root: Path, file: Path) -> str:
    return file.relative_to(root).as_posix()
