"""Every public function on a pretended GPU: a tensor left on the wrong device fails here."""

from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from conftest import random_network, randomised
from pretend_gpu import CPU, GPU, MixedDevices, on_gpu, pretend_gpu
from torch.utils._pytree import tree_leaves
from torchvision.models import VisionTransformer

from gig_helpers import Concepts, Network, concept_graph, pfv, picture_codes, reconstruct, srd
from gig_helpers.clustering import BisectingSphericalKMeans
from gig_helpers.codes import encode, load_codes, relative_l2
from gig_helpers.concepts import extract, load_concepts, nearest_concept, tune
from gig_helpers.curves import class_curves, interlayer_curves, largest, per_class
from gig_helpers.data import profiles
from gig_helpers.data.pictures import Pictures
from gig_helpers.data.weights import Preprocessing
from gig_helpers.extractors import EXTRACTORS, kmeans
from gig_helpers.gig import attribute, class_relevance, gig
from gig_helpers.importance import METHODS, class_importance, interlayer_importance
from gig_helpers.lasso import duality_gap, objective
from gig_helpers.paths import control_path, logits_without, strongest_path
from gig_helpers.report.examples import examples, localize, nearest_examples
from gig_helpers.report.fidelity import class_fidelity
from gig_helpers.report.statistics import compare
from gig_helpers.report.studies import WRONG_TARGET, class_study, interlayer_study

A, B = "layer3.0", "layer4.0"
PROFILE = replace(
    profiles.get("quick"), blocks=(A, B), per_image=8, pfvs_per_concept=4, gap=0.5, bracket=0.3,
    evaluation_targets=1,
)  # fmt: skip
METHOD_NAMES = [*METHODS, WRONG_TARGET]

pytestmark = pytest.mark.usefixtures("artifacts_folder")


class Doubles(Pictures):
    """Float64, in which sums in another order hardly switch a ReLU."""

    def __getitem__(self, index):
        return super().__getitem__(index).double()


class Chain:
    """What the functions need: a network, PFVs, concepts of two blocks, codes of two pictures."""

    def __init__(self, network, pictures):
        self.network, self.pictures = network, pictures
        self.dataset = pfv.sample(network, pictures, PROFILE)
        self.concepts = load_concepts(network, self.dataset, PROFILE)
        self.images = torch.stack([pictures[0], pictures[1]])  # from the CPU, as a reader has them
        self.codes = picture_codes(network, self.images, self.concepts)
        self.a, self.b = self.concepts[A], self.concepts[B]
        self.given = network, self.codes[A], self.a
        own = Concepts(self.a.vectors.cpu(), self.a.beta.cpu(), self.a.labels.cpu(), A)
        self.from_cpu = network, self.codes[A].cpu(), own


@pytest.fixture(scope="module")
def chains(pictures, tmp_path_factory):
    """On the CPU and on the GPU. What one left on disk the other would read and not make."""
    few = replace(pictures.subset([0, 5, 10, 15]), preprocessing=Preprocessing(64, 64))
    few = Doubles(**vars(few))
    network = random_network("v1.5", torch.float64, width_per_group=8)
    with pytest.MonkeyPatch.context() as here:
        here.setitem(pfv._READERS, "cuda", 0)
        here.setenv("GIG_ARTIFACTS", str(tmp_path_factory.mktemp("cpu")))
        cpu = Chain(network, few)
        here.setenv("GIG_ARTIFACTS", str(tmp_path_factory.mktemp("gpu")))
        with pretend_gpu():
            return cpu, Chain(Network(deepcopy(network.model), input_size=(64, 64)), few)


USES = {
    "forward": lambda c: [
        c.network.logits(c.images),
        c.network.between(c.network.preactivations(c.images)[A], A, B),
        c.network.logits_from(c.network.preactivations(c.images)[B], B),
    ],
    "contributions": lambda c: srd.contributions(c.network, c.images, [A, B], [0, 1]),
    "iERF": lambda c: srd.ierf(c.network, c.images, A, torch.tensor([[1, 2], [0, 3]])),
    "iERF, whole picture": lambda c: srd.ierf(c.network, c.images, B, torch.tensor([[0, 1]] * 2)),
    "codes": lambda c: [
        load_codes(c.network, c.images, c.a) @ c.a.vectors,
        relative_l2(c.dataset.vectors(A).to(c.a.beta), reconstruct(
            encode(c.dataset.vectors(A).to(c.a.beta), c.a), c.a)),
        encode(c.dataset.vectors(A).to(c.a.beta), c.a, tol=1e-9),  # in float64
        objective(c.a.vectors, c.a.vectors, torch.eye(len(c.a)).to(c.a.beta), 0.1),
        duality_gap(c.a.vectors, c.a.vectors, torch.eye(len(c.a)).to(c.a.beta), 0.1),
    ],
    "concepts": lambda c: [
        tune(replace(c.a, lam=None), c.dataset.vectors(A)).vectors,
        nearest_concept(c.dataset.vectors(A).to(c.a.beta), c.a),
        c.a.nearest(c.dataset.vectors(A), 2),
        c.a.class_entropy(c.dataset.picture_ids(A).to(c.a.labels.device)),
    ],
    "extractors": lambda c: [
        make(c.dataset.vectors(A).to(c.a.beta), c.a.beta, 5, block=A).vectors
        for name, make in EXTRACTORS.items() if name != "SAE, converged"
    ],
    "clustering": lambda c: [
        torch.from_numpy(model.predict(x) if new else model.labels_)
        for x in (c.dataset.vectors(A) - c.a.beta.cpu(), c.dataset.vectors(A).to(c.a.beta))
        for model in [BisectingSphericalKMeans(3, random_state=0).fit(x)]
        for new in (True, False)
    ],
    "averages": lambda c: kmeans(
        c.dataset.vectors(B).to(c.b.beta), c.b.beta, 4, average="raw").vectors,
    "GIG": lambda c: [
        gig(c.network, c.codes[A].cpu(), c.a.vectors.cpu(), A, B, c.b.vectors[:2], tolerance=0.5),
        gig(c.network, c.codes[A], c.a.vectors, A, B, c.b.vectors[:2], points=3, positions=True,
            beta=c.a.beta, return_convergence_delta=True),
        class_relevance(c.network, c.codes[A], c.a.vectors, A, [0, 3], output="probability"),
        class_relevance(c.network, c.codes[A], c.a.vectors, A, [[0], [2]], points=2,
                        baseline="zero"),
        attribute(c.network, lambda x, rows: x.flatten(1).gather(1, rows[:, None]), c.codes[A],
                  c.a.vectors, A, points=2),
    ],
    **{
        f"importance, {name}": lambda c, name=name: [
            class_importance(name, *c.given, [1, 2], tolerance=0.5),
            interlayer_importance(name, *c.given, B, c.b.vectors[:2].cpu(), tolerance=0.5),
        ]
        for name in METHODS
    },
    "curves": lambda c: [
        curves.auc() for curves in class_curves(
            *c.from_cpu, c.codes[A].abs().sum(1), [0, 1], tolerance=0.3).values()
    ],
    "interlayer curves": lambda c: [
        interlayer_curves(
            *c.given, B, positive(c).cpu(), c.codes[A].abs().sum(1)[:, None], tolerance=0.3,
            **options
        ).auc()
        for options in (
            {},
            {"residual": torch.zeros(2, c.codes[A].shape[1], len(c.a.beta))},
            {"reference": reconstruct(*c.from_cpu[1:])},
            {"project": lambda w, unit: largest(w - w.mean(1, keepdim=True), unit) + 1e3,
             "held": torch.arange(len(c.a)) < 2},
        )
    ],
    "rankings by class": lambda c: per_class(
        c.codes[A].abs().sum(1).cpu(), torch.tensor([3, 3]).to(c.a.beta.device)),
    "class study": lambda c: list(class_study(
        c.network, c.images, [0, 1], c.a, METHOD_NAMES, PROFILE).importance.values()),
    "interlayer study": lambda c: list(interlayer_study(
        c.network, c.images, [0, 1], c.a, reached(c), METHOD_NAMES[:4], PROFILE
    ).importance.values()),
    "fidelity": lambda c: class_fidelity(
        *c.given, c.codes[A].abs().sum(1)[:, None].cpu(), [0, 1], subsets=4),
    "graph": lambda c: [
        torch.tensor(sorted(weight for _, _, weight in concept_graph(
            c.network, {b: u[:1] for b, u in c.codes.items()}, c.concepts, [0], top=3
        ).edges(data="weight")))
    ],
    "paths": lambda c: [
        logits_without(c.network, c.images[:1], codes, c.concepts, [
            {}, path, control_path(codes, c.concepts, path, torch.Generator().manual_seed(0))])
        for codes in [{b: u[:1] for b, u in c.codes.items()}]
        for path in [strongest_path(c.network, codes, c.concepts, 0, tolerance=0.5)]
    ],
    "examples": lambda c: [
        torch.from_numpy(shot.ierf) for shot in [
            *examples(c.network, c.pictures, c.dataset, B, torch.tensor([3])),
            *nearest_examples(c.network, c.pictures, c.dataset, c.a, [0], 2)[0],
        ]
    ],
    "localisation": lambda c: localize(
        c.network, c.images[:1], A, torch.ones(c.codes[A].shape[1]), 3),
    "comparison": lambda c: torch.tensor(compare(c.codes[A][0, :, 0], c.codes[A][0, :, 1]).mean),
}  # fmt: skip


def positive(chain):
    """Directions of the later block whose largest projection is positive in both pictures."""
    x = chain.network.preactivations(chain.images.to(chain.network.device), [B])[B]
    return chain.network.positions(x, B).mean(dim=(0, 1))[None].abs()


def reached(chain):
    """Concepts of the later block that both pictures have: their own PFVs."""
    x = chain.network.preactivations(chain.images.to(chain.network.device), [B])[B]
    vectors = chain.network.positions(x, B).flatten(0, 1) - chain.b.beta
    return replace(chain.b, vectors=vectors, lam=0.1)


@pytest.mark.parametrize("use", USES)
def test_functions_run_on_a_gpu_as_on_the_cpu(use, chains, artifacts_folder, monkeypatch):
    cpu, gpu = chains
    expected = tree_leaves(USES[use](cpu))
    monkeypatch.setenv("GIG_ARTIFACTS", str(artifacts_folder / "gpu"))
    with pretend_gpu():
        found = [tensor.cpu() for tensor in tree_leaves(USES[use](gpu))]
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        # Weights lie otherwise on a GPU, and sums round otherwise.
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_concepts_lie_where_the_network_does(chains):
    _, gpu = chains
    with pretend_gpu():
        assert gpu.network.class_vectors.device == gpu.network.bn_shift(A).device == GPU
        assert gpu.a.vectors.device == gpu.codes[A].device == GPU
        assert gpu.dataset.vectors(A).device == CPU
        x = gpu.dataset.vectors(A).to(GPU)
        assert extract(x, gpu.a.beta, 3).labels.device == GPU
        assert BisectingSphericalKMeans()._unit(x.cpu(), reset=True).device == GPU


def test_a_batch_is_moved_to_the_gpu_once(chains):
    _, gpu = chains
    with pretend_gpu(), patch.object(gpu.network, "checked", wraps=gpu.network.checked) as checked:
        pfv._sample_batch(gpu.network, gpu.images, torch.arange(2), gpu.pictures, PROFILE)
        assert {call.args[0].device for call in checked.call_args_list} == {GPU}


class Reordered(VisionTransformer):
    """A transformer that first puts the pictures' channels in another order."""

    def forward(self, x):
        return super().forward(x[:, self.order])


def test_a_transformer_runs_on_a_gpu_as_on_the_cpu():
    torch.manual_seed(0)
    model = randomised(Reordered(16, 4, 2, 2, 8, 16, num_classes=3))
    model.register_buffer("order", torch.tensor([2, 1, 0]))
    images, found = torch.randn(2, 3, 16, 16), []
    for on in (nullcontext(), pretend_gpu()):
        with on:
            network = Network(deepcopy(model), input_size=(16, 16))
            relevance = srd.contributions(network, images, network.blocks)
            found.append([part.cpu() for part in (network.logits(images), *relevance.values())])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_the_pretended_gpu_refuses_what_cuda_refuses():
    with pretend_gpu():
        here, there = torch.ones(3), torch.ones(3, device="cuda")
        assert on_gpu(there) and there[:2].device == GPU and there.sum().device == GPU
        for refused in (
            lambda: here + there, lambda: here @ there, lambda: torch.cat([here, there]),
            lambda: here[torch.tensor([0], device="cuda")], lambda: there.add_(here),
        ):  # fmt: skip
            with pytest.raises(MixedDevices):
                refused()
        with pytest.raises(TypeError, match="Tensor.cpu"):
            there.numpy()
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(2, device="cuda", generator=torch.Generator())
        # A number on the CPU, an index there, and copies are no mixture.
        assert (there * torch.tensor(2.0) + there[torch.tensor([0, 1, 2])]).device == GPU
        assert there.copy_(here).device == GPU and there.to(here).device == CPU
