"""data/pictures.py: pictures come whole or are named, and labels are read from folders."""

import urllib.error

import numpy as np
import pytest
from PIL import Image

from gig_helpers import class_names, load_pictures
from gig_helpers.data.pictures import SOURCES, UnreadablePicture
from gig_helpers.data.weights import MEAN, STD, AssetUnavailable


@pytest.fixture
def picture_folder(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("n01534433/a.png", "junco/b.png", "house_finch/c.JPG", "other/d.png", "e.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        pixels = generator.integers(0, 255, (60, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path


def test_sample_counts_photographs_and_views(pictures):
    assert len(pictures) == 106
    assert repr(pictures) == "sample: 26 photographs (106 views)"
    assert sum(label is None for label in pictures.labels) == 6
    assert class_names()[pictures.labels[0]] == "bull mastiff"
    assert pictures[0].shape == (3, 224, 224)
    views = [np.asarray(pictures.image(i), dtype=float) for i in range(5)]
    assert all(abs(a - b).mean() > 1 for a, b in zip(views, views[1:], strict=False))


def test_tensor_is_the_image_normalised(pictures):
    image = np.asarray(pictures.image(7), dtype=np.float32) / 255
    expected = (image - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(pictures[7].permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_labels_come_from_the_nearest_folder(picture_folder):
    found = load_pictures(str(picture_folder))
    labels = dict(zip(found.paths, found.labels, strict=True))
    assert labels == {
        "n01534433/a.png": 13,
        "junco/b.png": 13,
        "house_finch/c.JPG": 12,
        "other/d.png": None,
        "e.png": None,
    }
    assert found.subset([1]).paths == (found.paths[1],)


def test_fingerprint_follows_the_files(picture_folder):
    before = load_pictures(str(picture_folder)).fingerprint
    assert before == load_pictures(str(picture_folder)).fingerprint
    (picture_folder / "e.png").write_bytes(b"shorter")
    assert before != load_pictures(str(picture_folder)).fingerprint


@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_broken_pictures_are_named(picture_folder, content):
    path = picture_folder / "e.png"
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    found = load_pictures(str(picture_folder))
    with pytest.raises(UnreadablePicture, match=r"e\.png"):
        found[found.paths.index("e.png")]


def test_bad_folders_are_refused(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="GIG_IMAGES"):
        load_pictures(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="no picture in"):
        load_pictures(str(tmp_path))
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(ValueError, match="no picture in"):
        load_pictures(str(tmp_path))
    monkeypatch.delenv("GIG_IMAGENET_VAL", raising=False)
    with pytest.raises(FileNotFoundError, match="GIG_IMAGENET_VAL"):
        load_pictures("imagenet-val")


def test_a_set_that_cannot_be_downloaded_says_what_to_do(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("GIG_CACHE", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(AssetUnavailable, match="GIG_IMAGES"):
        load_pictures("imagenette")


def test_sources_go_before_folders(tmp_path, monkeypatch):
    (tmp_path / "sample").mkdir()
    monkeypatch.chdir(tmp_path)
    assert len(load_pictures("sample")) == 106
    mine = load_pictures("sample").subset([3])
    monkeypatch.setitem(SOURCES, "mine", lambda: mine)
    assert load_pictures("mine").paths == mine.paths
