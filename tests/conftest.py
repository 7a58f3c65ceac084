"""What the tests share: networks, pictures, a browser, the values to agree with."""

import gc
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from gig_helpers import Concepts, Decomposition, Network, load_network, load_pictures

torch.set_num_threads(min(2, torch.get_num_threads()))

collect_ignore = ["benchmarks"]  # scripts, which looking for doctests would import

SMALL = {
    "basic": (BasicBlock, {}),
    "v1": (Bottleneck, {"width_per_group": 80}),
    "v1.5": (Bottleneck, {}),
    "grouped": (Bottleneck, {"groups": 4, "width_per_group": 16}),
    "dilated": (Bottleneck, {"replace_stride_with_dilation": [False, True, False]}),
}
"""ResNets of a few blocks: the kinds of blocks there are."""


def pytest_collection_finish():
    """A collection of garbage, of which some tests make dozens, passes over what imports left."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()


def random_network(
    name: str = "resnet18",
    dtype: torch.dtype = torch.float32,
    *,
    layers: tuple[int, ...] = (2, 1, 1, 1),
    seed: int = 0,
    input_size: tuple[int, int] = (64, 64),
    **options,
) -> Network:
    """A network with random weights, and BN statistics that are not the identity.

    ``name`` is torchvision's, or one of SMALL, with so many blocks a stage. The weights of two
    types are the same ones, rounded.
    """
    torch.manual_seed(seed)
    if name in SMALL:
        block, own = SMALL[name]
        model = ResNet(block, list(layers), **{"num_classes": 5, **own, **options})
    else:
        model = torchvision.models.get_model(name, weights=None, **options)
    if name == "v1":
        for stage in (model.layer2, model.layer3, model.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    return Network(randomised(model).to(dtype), name, device="cpu", input_size=input_size)


def processes():
    """Context of processes that find imported what any stage imports, also when it needs it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["conftest", "gig_helpers.report.studies", "accelerate.utils", "captum.attr", "timm.data"]
    )
    return context


def tiny_network(seed: int = 0, **options) -> Network:
    """Two convolutions and four classes for pictures of 16 × 16: passes take no time."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1),
        nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    return Network(randomised(model), "tiny", device="cpu", input_size=(16, 16), **options)


def randomised(model: nn.Module) -> nn.Module:
    """The model, with BN statistics that are not the identity and no weights that are all 0."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, 0, 0.1)
    return model


def sparse_codes(*shape: int, share: float = 0.4, dtype=torch.float32, seed: int = 1) -> Tensor:
    """Normal numbers, of which so many are kept and the others 0."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randn(shape, generator=generator, dtype=dtype)
    return codes * (torch.rand(shape, generator=generator) < share)


def random_decomposition(network: Network, sides: dict[str, int], pictures: int) -> Decomposition:
    """Some pictures in twelve random concepts per block; maps' sides given."""
    codes, concepts = {}, {}
    for block, side in sides.items():
        vectors = torch.randn(12, network.channels(block))
        concepts[block] = Concepts(
            vectors, network.bn_shift(block), torch.arange(12), block, lam=0.1
        )
        codes[block] = sparse_codes(pictures, side * side, 12, share=0.3, seed=side)
    images = torch.randn(pictures, 3, *network.input_size)
    return Decomposition(network, images, concepts, codes)


def save_pictures(folder: Path, count: int) -> Path:
    """Make so many pictures of coarse noise, of the class "junco"; return the folder."""
    generator = np.random.default_rng(0)
    (folder / "junco").mkdir(parents=True)
    for number in range(count):
        pixels = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((256, 256))
        image.save(folder / "junco" / f"{number:02d}.png")
    return folder


@pytest.fixture
def artifacts_folder(tmp_path, monkeypatch) -> Path:
    """Artifacts go to, and come from, an empty folder."""
    folder = tmp_path / "artifacts"
    monkeypatch.setenv("GIG_ARTIFACTS", str(folder))
    return folder


@pytest.fixture
def photographs(tmp_path) -> Path:
    """Folder of twenty pictures."""
    return save_pictures(tmp_path / "pictures", 20)


@pytest.fixture(scope="session")
def network():
    """The ResNet-50 of the book, with real weights."""
    return load_network()


@pytest.fixture(scope="session")
def pictures():
    """The sample's photographs."""
    return load_pictures("sample")


# Of a module: while it is open an event loop runs, and papermill would not start its own.
@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    # Imported here: processes that tests start import this file too.
    from playwright.sync_api import Error, sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    system = next(filter(None, map(shutil.which, names)), None)
    # A browser run by root, as in a container, starts only without its sandbox.
    sandbox = [] if os.geteuid() else ["--no-sandbox"]
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=system, args=sandbox)
        except Error as problem:
            pytest.skip(
                "no Chromium: install it (Debian: apt-get install chromium; elsewhere: "
                f".venv/bin/playwright install chromium): {problem.message.splitlines()[0]}"
            )
        yield browser
        browser.close()


def _folder(variable: str, what: str) -> Path:
    given = os.environ.get(variable)
    if not given:
        pytest.skip(f"{variable} is not set: it names {what}")
    return Path(given)


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder with srd_golden.npz, the reference values of SRD."""
    return _folder("GIG_REFERENCE", "the folder with srd_golden.npz")


@pytest.fixture(scope="session")
def validation() -> Path:
    """Folder with 1,300 validation pictures, a folder a class."""
    return _folder("GIG_VALIDATION", "a folder of ImageNet validation pictures, a folder a class")
