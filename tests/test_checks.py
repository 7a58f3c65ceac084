"""checks.py: what a network must be is asked when it is made, and a refusal says what to do."""

import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from conftest import randomised
from torch import Tensor, nn
from torch.nn import functional as F

from gig_helpers import Network, checks

SIZE = (12, 12)


class Small(nn.Module):
    """A convolution, a batch norm and a linear layer, between which a test writes its own."""

    def __init__(self, change=lambda y: y, end=lambda logits: logits, channels=3):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.body, self.fc = nn.Conv2d(8, 8, 3), nn.Linear(8, 5)
        self.change, self.end = change, end

    def forward(self, x):
        y = self.change(self.norm(self.conv(x)).relu())
        return self.end(self.fc(self.body(y).relu().mean((2, 3))))


def test_answers_of_another_shape_are_others():
    assert checks._close(torch.ones(1, 2), torch.ones(1, 2))
    assert not checks._close(torch.ones(2), torch.ones(1, 2)), "though all differences are 0"


def made(change=lambda y: y, end=lambda logits: logits, **options):
    torch.manual_seed(0)
    model = randomised(Small(change, end))
    return model, Network(model, device="cpu", input_size=SIZE, **options)


def zeroed(y):
    y[:, :4] = 0
    return y


def scaled(y):
    y[:, 2:5] *= 3
    return y


def filled(y):
    y.flatten(1)[:, 3:90].fill_(2)
    return y


def swapped(y):
    y[:, 0], y[:, 1] = y[:, 1].clone(), y[:, 0].clone()
    return y


def clipped(y):
    y.clamp_(max=0.5)
    return y.add_(1)


@pytest.mark.parametrize("change", (zeroed, scaled, filled, swapped, clipped))
@torch.no_grad()
def test_what_is_written_in_place_is_in_the_graph(change):
    model, network = made(change)
    images = torch.randn(3, 3, *SIZE)
    expected = model.eval()(images.clone())
    assert (expected - made()[0].eval()(images)).norm() > 0.01 * expected.norm()
    assert network.blocks
    for block, x in network.preactivations(images).items():
        torch.testing.assert_close(network.logits_from(x, block), expected)


class Attributes:
    """No tensor, mapping or sequence."""

    def __init__(self, features, logits):
        self.features, self.logits = features, logits


@dataclass
class Record:
    features: Tensor
    logits: Tensor


class Row(NamedTuple):
    features: Tensor
    logits: Tensor


def both(kind):
    return lambda logits: kind(logits[:, :2] * 7, logits)


SEVERAL = {
    "mapping": (both(lambda a, b: {"features": a, "logits": b}), "logits"),
    "tuple": (both(lambda a, b: (a, b)), 1),
    "list": (both(lambda a, b: [a, b]), 1),
    "named tuple": (both(Row), "logits"),
    "dataclass": (both(Record), "logits"),
    "attributes": (both(Attributes), "logits"),
    "namespace": (both(lambda a, b: SimpleNamespace(features=a, logits=b)), "logits"),
}


@pytest.mark.parametrize(("end", "name"), SEVERAL.values(), ids=SEVERAL)
def test_of_several_outputs_the_reader_names_the_logits(end, name):
    with pytest.raises(TypeError, match=rf"several outputs.*output={name!r}\).*\(2, 2\).*\(2, 5\)"):
        made(end=end)
    with pytest.raises(KeyError, match=r"no output 'scores'.*\(2, 2\).*\(2, 5\)"):
        made(end=end, output="scores")
    model, network = made(end=end, output=name)
    images = torch.randn(3, 3, *SIZE)
    found = model.eval()(images)
    expected = found[name] if isinstance(found, dict | list) or name == 1 else found.logits
    for again in (network, Network(network.model, device="cpu", input_size=SIZE)):
        assert again.n_classes == 5
        torch.testing.assert_close(again.logits(images), expected)
        torch.testing.assert_close(again.double().logits(images).float(), expected)
        block = again.blocks[0]
        x = again.preactivations(images)[block]
        torch.testing.assert_close(again.logits_from(x, block), expected)
    with pytest.raises(TypeError, match=r"\(2, 2, 5\) for 2 pictures, and not one row"):
        made(end=end, output=lambda _: torch.zeros(2, 2, 5))


def test_one_output_needs_no_name():
    """As Hugging Face's models give: what holds nothing but logits."""
    images = torch.randn(3, 3, *SIZE)
    ends = [
        lambda y: {"logits": y, "loss": None},
        lambda y: (y,),
        lambda y: SimpleNamespace(logits=y),
        lambda y: Attributes(None, y),
    ]
    for end in ends:
        torch.testing.assert_close(made(end=end)[1].logits(images), made()[1].logits(images))
    nested = made(end=lambda y: [{"logits": y}], output=lambda y: y[0]["logits"])[1]
    torch.testing.assert_close(nested.logits(images), made()[1].logits(images))
    with pytest.raises(TypeError, match=r"list, which is no tensor.*output=lambda"):
        made(end=lambda y: [{"logits": y}])
    with pytest.raises(TypeError, match=r"output=… gives dict"):
        made(end=lambda y: [{"logits": y}], output=lambda y: y[0])
    with pytest.raises(KeyError, match=r"no output 1: it gives one Tensor"):
        made(output=1)


NO_LOGITS = {
    "a map": (
        lambda y: y[:, :, None, None].expand(-1, -1, 4, 6),
        r"\(2, 5, 4, 6\).*y.mean\(\(2, 3",
    ),
    "one number": (lambda y: y[:, 0], r"\(2,\) for 2 pictures.*y\[:, None\]"),
    "a row of rows": (lambda y: y[:, None], r"\(2, 1, 5\) for 2 pictures"),
    "a sum over pictures": (lambda y: y.sum(0), r"\(5,\) for 2 pictures"),
    "transposed": (lambda y: y.T, r"\(5, 2\) for 2 pictures"),
    "classes": (lambda y: y.round().long(), r"int64, and no logits"),
    "batch squeezed": (lambda y: y.squeeze(), r"for one alone \(5,\).*squeeze\(dim\)"),
    "batch squeezed first": (lambda y: y.squeeze(0), r"for one alone \(5,\).*squeeze\(dim\)"),
    "not a number": (lambda y: y / (y - y), "NaN or infinite"),
    "random": (lambda y: F.dropout(y), r"other logits each time.*training=self.training"),
    "random, small": (lambda y: F.dropout(y) * 1e-6, r"other logits each time"),
    "noisy": (lambda y: y + torch.randn_like(y) * 1e-3, r"other logits each time"),
    "normalised by the batch": (lambda y: y - y.mean(0), r"what else is in its batch"),
    "of the picture before": (lambda y: y + y.roll(1, 0), r"what else is in its batch"),
}


@pytest.mark.parametrize(("end", "message"), NO_LOGITS.values(), ids=NO_LOGITS)
def test_what_gives_no_logits_of_each_picture_is_refused(end, message):
    with pytest.raises(TypeError, match=message):
        made(end=end)


def test_probabilities_are_taken_with_a_warning_that_says_how_to_have_logits():
    images = torch.randn(2, 3, *SIZE)
    with pytest.warns(UserWarning, match="gives probabilities.*output=torch.log"):
        model, network = made(end=lambda y: y.softmax(1))
    with pytest.warns(UserWarning, match="gives probabilities"):
        made(end=lambda y: (1e6 * y).softmax(1))  # of which most are 0
    assert torch.equal(network.logits(images), network.model(images))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logs = made(end=lambda y: y.softmax(1), output=torch.log)[1]
        made(end=lambda y: y.square())  # of another sum
        made(end=lambda y: 99 * (y - y.mean(1, keepdim=True)) + 0.2)  # some are negative
    torch.testing.assert_close(logs.logits(images), made()[1].logits(images).log_softmax(1))


def test_batch_statistics_are_refused_when_the_network_is_made():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    with pytest.raises(TypeError, match="what else is in its batch.*without running statistics"):
        Network(model, device="cpu", input_size=SIZE)


def test_one_picture_without_a_batch_is_refused():
    class Alone(Small):
        def forward(self, x):
            if x.ndim != 3:
                raise ValueError("one picture, please")
            return super().forward(x[None])[0]

    with pytest.raises(TypeError, match="one batch of pictures.*one picture, please"):
        Network(Alone(), device="cpu", input_size=SIZE)


class OfTwoMinds(Small):
    """It computes something else while it is exported."""

    def forward(self, x):
        return super().forward(2 * x if torch.compiler.is_exporting() else x)


def test_a_graph_that_is_not_the_model_is_refused():
    with pytest.raises(TypeError, match="graph does not give its logits.*torch.where or torch.cat"):
        Network(OfTwoMinds(), device="cpu", input_size=SIZE)


def test_the_readers_model_stays_as_it_was():
    model = Small().train()
    model.body.weight.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    network = Network(model, device="cpu", input_size=SIZE)
    assert all(m.training for m in model.modules()) and not model._forward_hooks
    assert [k for k, p in model.named_parameters() if not p.requires_grad] == ["body.weight"]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    images, given = torch.randn(4, 3, *SIZE), network.logits(torch.ones(1, 3, *SIZE))
    step = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model(images).square().sum().backward()
    step.step()
    ones = torch.ones(1, 3, *SIZE)
    assert torch.equal(network.logits(ones), given)
    x = network.preactivations(ones)[network.blocks[0]]
    torch.testing.assert_close(network.logits_from(x, network.blocks[0]), given)
    torch.testing.assert_close(network.double().logits(ones).float(), given)
    assert Network(model, device="cpu", input_size=SIZE).fingerprint != network.fingerprint


def test_the_random_numbers_that_follow_stay_the_same():
    torch.manual_seed(0)
    model = Small()
    expected = torch.random.get_rng_state()
    Network(model, device="cpu", input_size=SIZE)
    assert torch.equal(torch.random.get_rng_state(), expected)


@pytest.mark.parametrize("wrap", (nn.DataParallel, torch.compile), ids=("parallel", "compiled"))
def test_wrappers_are_taken_off(wrap):
    model = randomised(Small()).eval()
    network = Network(wrap(model), device="cpu", input_size=SIZE)
    plain = Network(model, device="cpu", input_size=SIZE)
    assert network.blocks == plain.blocks and network.name == plain.name == "small"
    assert network.fingerprint == plain.fingerprint
    images = torch.randn(2, 3, *SIZE)
    assert torch.equal(network.logits(images), plain.logits(images))


class Quantised(Small):
    def __init__(self):
        super().__init__()
        self.fc = torch.ao.nn.quantized.dynamic.Linear(8, 5)


class ByValue(Small):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


class ByLength(Small):
    def forward(self, x):
        return super().forward(x).reshape(len(x), -1)


class Holding(Small):
    """It keeps what it has computed, as hooks do."""

    def forward(self, x):
        self.seen = super().forward(x)
        return self.seen


def test_models_of_other_kinds_are_refused_in_words():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, that both ways are old
        script, quantised = torch.jit.script(nn.Sequential(nn.Conv2d(3, 2, 3))), Quantised()
        holding = Holding()
        holding(torch.randn(2, 3, *SIZE))
    for model, message in (
        (script, "TorchScript.*give the Python model"),
        (nn.Sequential(script, nn.Flatten()), "TorchScript.*give the Python model"),
        (quantised, "quantised.*give the float model"),
        (ByLength(), r"batches of 2 pictures alone.*x.shape\[0\]"),
        (ByValue(), "ByValue cannot be traced.*not depend on their values"),
        (holding, "cannot be copied: take from it what copy.deepcopy refuses"),
    ):
        with pytest.raises(TypeError, match=message):
            Network(model, device="cpu", input_size=SIZE)


class HeadFirst(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.head, self.body = nn.Conv2d(48, 5, 1), nn.Conv2d(channels, 48, 3)

    def forward(self, x):
        return self.head(self.body(x).relu()).mean((2, 3))


@pytest.mark.parametrize("channels", (1, 2, 3, 4, 13))
def test_channels_are_found_by_trying(channels):
    network = Network(HeadFirst(channels), device="cpu", input_size=SIZE)
    assert network.logits(torch.randn(2, channels, *SIZE)).shape == (2, 5)
    if channels == 1:  # grey: ImageNet's means and deviations, averaged
        assert network.preprocessing.mean == pytest.approx([0.449]), "of 0.485, 0.456, 0.406"
        assert network.preprocessing.std == pytest.approx([0.226]), "of 0.229, 0.224, 0.225"
    with pytest.raises(ValueError, match=rf"pictures: expected \(N, {channels}, H, W\)"):
        network.logits(torch.randn(2, channels + 1, *SIZE))
    assert network.double().logits(torch.randn(2, channels, *SIZE)).dtype == torch.float64


def test_channels_may_be_given():
    model = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(60, 3))
    network = Network(model, device="cpu", input_size=(5, 6, 8), blocks=[])
    assert network.input_size == (6, 8) and network.logits(torch.ones(1, 5, 6, 8)).shape == (1, 3)
    with pytest.raises(TypeError, match=r"pictures \(2, 3, 6, 8\); its forward.*channels, H, W"):
        Network(HeadFirst(4), device="cpu", input_size=(3, 6, 8))
    with pytest.raises(TypeError, match=r"pictures \(2, 3, 9, 9\) \(nor with 1, 7 chan"):
        Network(nn.Sequential(nn.Conv2d(7, 2, 20), nn.Flatten()), device="cpu", input_size=(9, 9))


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float64))
def test_other_types_of_numbers(dtype):
    """Half precision is computed with in float32; pictures of any type are taken."""
    model = randomised(Small()).eval()
    network = Network(model.to(dtype), device="cpu", input_size=SIZE)
    assert network.dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert next(model.parameters()).dtype == dtype
    images = torch.randn(2, 3, *SIZE).to(dtype)
    rounding = {"rtol": 0.05, "atol": 0.05} if dtype != torch.float64 else {}
    torch.testing.assert_close(network.logits(images).to(dtype), model(images), **rounding)
    assert network.logits(images.half()).dtype == network.dtype
    with pytest.raises(ValueError, match="expected floating-point numbers, got torch.uint8"):
        network.logits(torch.ones(1, 3, *SIZE, dtype=torch.uint8))


class Constants(nn.Module):
    """Its text and its weights are the same, whatever these numbers are."""

    def __init__(self, factor=1.0, scale=2.0, offset=3.0):
        super().__init__()
        self.conv, self.scale, self.factor = nn.Conv2d(3, 4, 3), torch.tensor(scale), factor
        self.register_buffer("offset", torch.tensor(offset), persistent=False)

    def forward(self, x):
        return (self.conv(x * self.factor) * self.scale + self.offset).relu().mean((2, 3))


def fingerprint(*numbers):
    torch.manual_seed(0)
    return Network(Constants(*numbers), device="cpu", input_size=(8, 8)).fingerprint


def test_the_fingerprint_counts_operations_and_constants_and_is_the_same_in_another_process():
    every = [fingerprint(*n) for n in ((1, 2.0, 3.0), (3, 2.0, 3.0), (1, 5.0, 3.0), (1, 2.0, 4.0))]
    assert len(set(every)) == 4
    call = "from test_checks import fingerprint; print(fingerprint(1, 2.0, 3.0))"
    folder = Path(__file__).parent
    again = subprocess.run(
        [sys.executable, "-c", call], cwd=folder, check=True, capture_output=True
    )
    assert again.stdout.decode().strip() == every[0]
