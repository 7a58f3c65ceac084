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
from torch.utils.data import DataLoader
from torchvision.models import VisionTransformer

from gig_helpers import (
    EXTRACTORS,
    METHODS,
    Concepts,
    Decomposition,
    Network,
    Profile,
    attribute,
    class_concepts,
    concept_graph,
    contrast,
    decompose,
    deletion_insertion,
    fit_concepts,
    matches,
    pfv,
    srd,
    suspects,
)
from gig_helpers.clustering import BisectingSphericalKMeans, nearest_centre
from gig_helpers.codes import relative_l2
from gig_helpers.concepts import extract, nearest_concept, tune
from gig_helpers.curves import largest
from gig_helpers.data.pictures import Pictures
from gig_helpers.data.weights import Preprocessing
from gig_helpers.extractors import overcomplete
from gig_helpers.extractors.simple import kmeans
from gig_helpers.gig import class_relevance, gig, integrate
from gig_helpers.lasso import duality_gap, objective
from gig_helpers.paths import control_path, strongest_path
from gig_helpers.report.atlas_data import gather
from gig_helpers.report.examples import examples, localize, nearest_examples, on_mask
from gig_helpers.report.fidelity import class_fidelity
from gig_helpers.report.statistics import compare
from gig_helpers.report.studies import WRONG_TARGET, present_targets, study

A, B = "layer3.0", "layer4.0"
PROFILE = Profile(
    blocks=(A, B),
    per_image=8,
    pfvs_per_concept=4,
    gap=0.5,
    bracket=0.3,
    evaluation_targets=1,
    families=None,
)
METHOD_NAMES = [*METHODS, WRONG_TARGET]

pytestmark = pytest.mark.usefixtures("artifacts_folder")


class Doubles(Pictures):
    """Float64, in which sums in another order hardly switch a ReLU."""

    def __getitem__(self, index):
        return super().__getitem__(index).double()


class Chain:
    """What the functions need: a network, PFVs, concepts of two blocks, two pictures in these."""

    def __init__(self, network, pictures):
        self.network, self.pictures = network, pictures
        self.pfvs = pfv.sample(network, pictures, PROFILE)
        self.concepts = fit_concepts(self.pfvs, PROFILE)
        self.images = pictures[[0, 1]]  # from the CPU, as a reader has them
        self.d = decompose(network, self.images, self.concepts)
        self.codes, (self.a, self.b) = self.d.codes, self.concepts.values()
        self.x, self.mass = self.pfvs.vectors(A).to(self.a.beta), self.codes[A].abs().sum(1)


def in_this_process(*given, **options):
    """A loader without processes of its own, which would not pretend."""
    return DataLoader(*given, **options | {"num_workers": 0, "pin_memory": False})


@pytest.fixture(scope="module")
def chains(pictures, tmp_path_factory):
    """On the CPU and on the GPU. What one left on disk the other would read and not make."""
    few = replace(pictures.subset([0, 5, 10, 15]), preprocessing=Preprocessing(64, 64))
    few = Doubles(**vars(few))
    network = random_network("v1.5", torch.float64, width_per_group=8)
    with pytest.MonkeyPatch.context() as here:
        here.setattr(pfv, "DataLoader", in_this_process)
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
        relative_l2(c.x, c.a.decode(c.a.encode(c.x))),
        c.a.encode(c.x, tol=1e-9),  # in float64
        objective(c.a.vectors, c.a.vectors, torch.eye(len(c.a)).to(c.a.beta), 0.1),
        duality_gap(c.a.vectors, c.a.vectors, torch.eye(len(c.a)).to(c.a.beta), 0.1),
    ],
    "decomposition": lambda c: [
        from_cpu(c).reconstruction(A), c.d.residual(A), c.d.logits(), c.d[[1]].at(B).logits({B: 1}),
        c.d.without({A: [0, 2]}).logits({A: torch.tensor([1, 3]), B: 0}),
    ],
    "concepts": lambda c: [
        tune(replace(c.a, lam=None), c.pfvs.vectors(A)).vectors,
        nearest_concept(c.x, c.a),
        c.a.nearest(c.pfvs.vectors(A), 2),
        c.a.class_entropy(c.pfvs.picture_ids(A).to(c.a.labels.device)),
    ],
    "extractors": lambda c: [
        each.fit(c.x, c.a.beta, 5, block=A).vectors
        for name, each in EXTRACTORS.items()
        if overcomplete.available(name) and name not in ("sae", "ica")  # rounding grows
    ],
    "clustering": lambda c: [
        torch.from_numpy(model.predict(x) if new else model.labels_)
        for x in (c.pfvs.vectors(A) - c.a.beta.cpu(), c.x)
        for model in [BisectingSphericalKMeans(3, random_state=0).fit(x)]
        for new in (True, False)
    ],
    "averages": lambda c: kmeans(
        c.pfvs.vectors(B).to(c.b.beta), c.b.beta, 4, average="raw").vectors,
    "GIG": lambda c: [
        gig(c.network, c.codes[A].cpu(), c.a.vectors.cpu(), A, B, c.b.vectors[:2],
            beta=c.a.beta.cpu(), tolerance=0.5),
        gig(c.network, c.codes[A], c.a.vectors, A, B, c.b.vectors[:2], points=3, positions=True,
            beta=c.a.beta, return_convergence_delta=True),
        class_relevance(c.network, c.codes[A], c.a.vectors, A, [0, 3], beta=c.a.beta,
                        output="probability"),
        class_relevance(c.network, c.codes[A], c.a.vectors, A, [[0], [2]], beta=c.a.beta, points=2,
                        baseline="zero"),
        integrate(lambda x, rows: x.flatten(1).gather(1, rows[:, None]), c.codes[A], c.a.vectors,
                  c.a.beta, points=2),
    ],
    **{
        f"importance, {name}": lambda c, name=name: [
            attribute(c.d, A, [1, 2], method=name, tolerance=0.5),
            attribute(from_cpu(c), A, (B, torch.tensor([0, 1])), method=name, tolerance=0.5),
        ]
        for name in METHODS
    },
    "curves": lambda c: [
        curves.auc() for curves in deletion_insertion(
            from_cpu(c), A, [[0], [1]], c.mass[:, None], tolerance=0.3).values()
    ],
    "interlayer curves": lambda c: [
        deletion_insertion(
            reached(c), A, (B, 0), c.mass[:, None].cpu(), tolerance=0.3, **options
        )["projection"].auc()
        for options in (
            {}, {"residual": True}, {"reference": "picture"},
            {"project": lambda w, unit: largest(w - w.mean(1, keepdim=True), unit) + 1e3,
             "held": torch.arange(len(c.a)) < 2},
        )
    ],
    "study of classes": lambda c: list(study(
        c.d, A, [[0], [1]], METHOD_NAMES, PROFILE).importance.values()),
    "study of later concepts": lambda c: [
        importance
        for d in [reached(c)]
        for targets in [present_targets(d, A, B, [0, 1], PROFILE)]
        for importance in [targets, *study(
            d, A, (B, targets), METHOD_NAMES[:4], PROFILE).importance.values()]
    ],
    "fidelity": lambda c: class_fidelity(c.d, A, [0, 1], c.mass[:, None].cpu(), subsets=4),
    "questions": lambda c: [
        torch.tensor(table.sort_index().to_numpy().astype(float))
        for d in [decompose(c.network, c.pictures[[0, 1, 2]], c.concepts)]
        for table in (
            class_concepts(
                unlabelled(c), c.concepts, int(c.pfvs.predictions()[0]), tolerance=0.5),
            contrast(c.d, A, 0, 1, tolerance=0.5),
            matches(d, A, d, B),
            suspects(d, A, [0, 1, 2], tolerance=0.5),
        )
    ],
    "repair": lambda c: c.network.without(A, c.a.vectors[:2].cpu(), c.a.beta)(c.network.checked(
        c.images)),
    "graph": lambda c: [
        torch.tensor(sorted(weight for _, _, weight in concept_graph(
            c.d[[0]], [0], top=3).edges(data="weight")))
    ],
    "paths": lambda c: [
        d.logits(taken)
        for d in [c.d[[0]]]
        for path in [strongest_path(d, 0, tolerance=0.5)]
        for taken in (path, control_path(d, path, torch.Generator().manual_seed(0)))
    ],
    "examples": lambda c: [
        torch.from_numpy(shot.ierf) for shot in [
            *examples(c.pfvs, B, torch.tensor([3])),
            *nearest_examples(c.pfvs, c.a, [0], 2)[0],
        ]
    ],
    "localisation": lambda c: localize(
        c.network, c.images[:1], A, torch.ones(c.codes[A].shape[1]), 3),
    "atlas": lambda c: [*gather(unlabelled(c), c.concepts).relevance.values()],
    "scores on a mask": lambda c: list(on_mask(c.codes[A], c.codes[A] > 0)),
    "comparison": lambda c: torch.tensor(compare(c.codes[A][0, :, 0], c.codes[A][0, :, 1]).mean),
}  # fmt: skip


def from_cpu(chain):
    """The decomposition, made of parts that lie on the CPU."""
    codes = {block: u.cpu() for block, u in chain.codes.items()}
    concepts = {block: here.to("cpu") for block, here in chain.concepts.items()}
    return Decomposition(chain.network, chain.images, concepts, codes)


def unlabelled(chain):
    """PFVs of pictures of no class of ImageNet, which this network does not know."""
    none = (None,) * len(chain.pictures)
    return replace(chain.pfvs, pictures=replace(chain.pictures, labels=none))


def reached(chain):
    """With concepts of the later block that both pictures have: their own PFVs, and the mean."""
    x = chain.network.preactivations(chain.images, [B])[B]
    flat = chain.network.positions(x, B).flatten(0, 1)
    vectors = torch.cat([flat.mean(dim=0, keepdim=True).abs(), flat - chain.b.beta])
    later = Concepts(vectors, chain.b.beta, chain.b.labels, B, lam=0.1)
    return decompose(chain.network, chain.images, {A: chain.a, B: later})


@pytest.mark.parametrize("use", USES)
def test_functions_run_on_a_gpu_as_on_the_cpu(use, chains, artifacts_folder, monkeypatch):
    cpu, gpu = chains
    expected = tree_leaves(USES[use](cpu))
    monkeypatch.setenv("GIG_ARTIFACTS", str(artifacts_folder / "gpu"))
    with pretend_gpu():
        results = [tensor.cpu() for tensor in tree_leaves(USES[use](gpu))]
    assert len(results) == len(expected) > 0
    for result, wanted in zip(results, expected, strict=True):
        # Weights lie otherwise on a GPU, and sums round otherwise.
        torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_concepts_lie_where_the_network_does(chains):
    _, gpu = chains
    with pretend_gpu():
        assert gpu.network.bn_shift(A).device == GPU
        assert gpu.a.vectors.device == gpu.codes[A].device == gpu.d.images.device == GPU
        assert gpu.pfvs.vectors(A).device == CPU
        x = gpu.pfvs.vectors(A).to(GPU)
        assert extract(x, gpu.a.beta, 3).labels.device == GPU
        model = BisectingSphericalKMeans(3, random_state=0).fit(x.cpu())
        with patch("gig_helpers.clustering.nearest_centre", wraps=nearest_centre) as nearest:
            model.predict(x.cpu())
        assert nearest.call_args.args[0].device == GPU, "it computes there whatever it is given"


def test_a_batch_is_moved_to_the_gpu_once(chains, monkeypatch):
    _, gpu = chains
    monkeypatch.setattr(pfv, "DataLoader", in_this_process)
    with pretend_gpu(), patch.object(gpu.network, "checked", wraps=gpu.network.checked) as checked:
        pfv.sample(gpu.network, gpu.pictures, PROFILE)
        assert {call.args[0].device for call in checked.call_args_list} == {GPU}


class Reordered(VisionTransformer):
    """A transformer that first puts the pictures' channels in another order."""

    def forward(self, x):
        return super().forward(x[:, self.order])


def test_a_transformer_runs_on_a_gpu_as_on_the_cpu():
    torch.manual_seed(0)
    model = randomised(Reordered(16, 4, 2, 2, 8, 16, num_classes=3))
    model.register_buffer("order", torch.tensor([2, 1, 0]))
    images, of_device = torch.randn(2, 3, 16, 16), []
    for on in (nullcontext(), pretend_gpu()):
        with on:
            network = Network(deepcopy(model), input_size=(16, 16))
            relevance = srd.contributions(network, images, network.blocks)
            of_device.append([part.cpu() for part in (network.logits(images), *relevance.values())])
    torch.testing.assert_close(*of_device, rtol=1e-4, atol=1e-5)


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
