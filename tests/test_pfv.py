"""pfv.py: draws follow p ∝ max(R, 0), vectors are the network's, a kill loses nothing."""

import gc
import json
import os
import shutil
import signal
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import processes, random_network, tiny_network
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from gig_helpers import Network, load_pictures, pfv, srd
from gig_helpers.data import artifacts
from gig_helpers.data.profiles import Profile
from gig_helpers.report.examples import ierfs

pytestmark = pytest.mark.usefixtures("artifacts_folder")

PROFILE = Profile(blocks=("0", "3"), per_image=3, batch_size=2, seed=7)


def test_draws_follow_the_positive_contributions():
    """Frequencies of 20,000 first draws against p; 4 standard errors of a proportion ≤ 0.015."""
    relevance = torch.tensor([[[3.0, -5.0], [1.0, 0.0]]])
    count = 20_000
    first = pfv.draw(relevance.expand(count, 2, 2), 1, list(range(count)))[:, 0]
    share = torch.bincount(2 * first[:, 0] + first[:, 1], minlength=4) / count
    torch.testing.assert_close(share, torch.tensor([0.75, 0, 0.25, 0]), atol=0.015, rtol=0)


def test_draws_are_without_replacement_and_positive_ones_come_first():
    relevance = torch.tensor([[[3.0, -5.0], [1.0, 0.0]]])
    for seed in range(50):
        drawn = pfv.draw(relevance, 4, [seed])[0]
        flat = (2 * drawn[:, 0] + drawn[:, 1]).tolist()
        assert sorted(flat) == [0, 1, 2, 3]
        assert set(flat[:2]) == {0, 2}


def test_draws_are_uniform_where_nothing_is_positive():
    relevance = torch.tensor([[[-3.0, -5.0], [0.0, 0.0]]])
    count = 8_000
    first = pfv.draw(relevance.expand(count, 2, 2), 1, list(range(count)))[:, 0]
    share = torch.bincount(2 * first[:, 0] + first[:, 1], minlength=4) / count
    torch.testing.assert_close(share, torch.full((4,), 0.25), atol=0.02, rtol=0)


def test_every_view_block_and_seed_has_a_draw_of_its_own(pictures):
    whole, quarter = 0, 1
    assert pictures.paths[whole] == pictures.paths[quarter]
    cases = [(0, "layer1.0", whole), (0, "layer1.0", quarter), (0, "layer1.1", whole)]
    cases.append((1, "layer1.0", whole))
    seeds = [pfv._seed(seed, block, pictures, i) for seed, block, i in cases]
    assert len(set(seeds)) == 4 and seeds[0] == pfv._seed(0, "layer1.0", pictures, whole)


def test_nan_contributions_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        pfv.draw(torch.full((1, 2, 2), torch.nan), 1, [0])


@torch.no_grad()
def test_dataset_holds_the_networks_vectors(photographs):
    network, pictures = random_network(), load_pictures(str(photographs))
    dataset = pfv.sample(network, pictures, replace(PROFILE, blocks=("layer1.1", "layer3.0")))
    for block in dataset.blocks:
        ids, positions = dataset.picture_ids(block), dataset.positions(block)
        assert torch.bincount(ids).tolist() == [3] * 20
        assert len(torch.cat([ids[:, None], positions], dim=1).unique(dim=0)) == 60
        for row in (0, 31, 59):
            image = pictures[int(ids[row])][None]
            y, x = positions[row].tolist()
            expected = network.preactivations(image, [block])[block][0, :, y, x]
            torch.testing.assert_close(dataset.vectors(block)[row], expected, rtol=1e-4, atol=1e-5)
            relevance = srd.contributions(network, image, [block])[block][0, y, x]
            torch.testing.assert_close(
                dataset.contributions(block)[row], relevance, rtol=1e-3, atol=1e-5
            )
    logits = network.logits(torch.stack([pictures[i] for i in range(4)]))
    assert dataset.predictions()[:4].tolist() == logits.argmax(dim=1).tolist()
    assert dataset.network is network and dataset.pictures is pictures
    assert dataset.count("layer1.1") == 60
    with pytest.raises(KeyError, match=r"no PFVs of 'layer2.0'.*layer1.1"):
        dataset.vectors("layer2.0")


def test_small_columns_are_read_alone(photographs, monkeypatch):
    dataset = pfv.sample(tiny_network(), load_pictures(str(photographs)), PROFILE)
    read, real = [], pfv.safe_open

    class Watched:
        """An open file that tells which of its tensors are read."""

        def __init__(self, *arguments, **options):
            self.file = real(*arguments, **options)

        def __enter__(self):
            self.opened = self.file.__enter__()
            return self

        def __exit__(self, *problem):
            return self.file.__exit__(*problem)

        def keys(self):
            return self.opened.keys()

        def get_tensor(self, name):
            read.append(name)
            return self.opened.get_tensor(name)

    monkeypatch.setattr(pfv, "safe_open", Watched)
    for call, names in (
        (dataset.predictions, {"pictures", "predictions"}),
        (lambda: dataset.count("3"), {"3.picture_ids"}),
        (lambda: dataset.held_out("3"), {"3.picture_ids"}),
        (lambda: dataset.vectors("3"), {"3.vectors"}),
    ):
        read.clear()
        call()
        assert set(read) == names, "the PFVs themselves are gigabytes"


def test_views_of_a_photograph_are_held_out_together():
    paths = ("b.png", "a.png", "b.png", "e.png", "c.png", "d.png", "e.png")
    pictures = SimpleNamespace(paths=paths)
    dataset = pfv.PFVDataset(None, "", ("0",), None, pictures, {})
    assert dataset.photographs.tolist() == [1, 0, 1, 4, 2, 3, 4]
    ids = torch.tensor([0, 1, 1, 3, 6, 5])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pfv.PFVDataset, "picture_ids", lambda self, block: ids)
        held = dataset.held_out("0")
    # Photographs a and e, the first and the fifth.
    assert held.tolist() == [False, True, True, True, True, False]


def test_right_and_wrong_are_the_readable_ones_with_a_label(monkeypatch):
    pictures = SimpleNamespace(labels=(7, 8, None, 0, 9))
    dataset = pfv.PFVDataset(None, "", (), None, pictures, {})
    said = torch.tensor([7, 9, 7, 0, -1])
    monkeypatch.setattr(pfv.PFVDataset, "predictions", lambda self: said)
    assert dataset.right() == [0, 3] and dataset.wrong() == [1]


def test_a_profile_without_blocks_samples_all_of_them(photographs):
    network = tiny_network()
    pictures = load_pictures(str(photographs)).subset([0, 1])
    every = pfv.sample(network, pictures, replace(PROFILE, blocks=()))
    named = pfv.sample(network, pictures, replace(PROFILE, blocks=network.blocks))
    assert every.blocks == network.blocks and every.folder == named.folder
    assert all(every.count(block) == 6 for block in network.blocks)


def test_pictures_that_broke_since_they_were_found_are_skipped_and_listed(photographs, capsys):
    network, pictures = tiny_network(), load_pictures(str(photographs))
    broken = [photographs / "junco" / name for name in ("00.png", "01.png", "07.png")]
    for path in broken:
        path.write_bytes(b"")
    dataset = pfv.sample(network, pictures, PROFILE)
    assert sorted(dataset.skipped) == ["junco/00.png", "junco/01.png", "junco/07.png"]
    assert "skipped 3 of 20" in capsys.readouterr().out
    assert not set(dataset.picture_ids("0").tolist()) & {0, 1, 7}
    assert dataset.predictions()[[0, 1, 7]].tolist() == [-1, -1, -1]
    for path in photographs.rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="no picture of pictures could be read"):
        pfv.sample(network, pictures, PROFILE)


class Odd(nn.Module):
    """Ends in an operation without a rule of its own, and without a sum of parts."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 8, 8), nn.Linear(4, 5)

    def forward(self, x):
        return self.head(torch.logcumsumexp(self.conv(x).relu(), 2).mean((2, 3)))


@pytest.mark.filterwarnings("ignore:SRD's relevance")
def test_a_rule_goes_all_the_way(photographs):
    pictures = load_pictures(str(photographs)).subset([0, 1])
    network, profile = Network(Odd(), device="cpu", blocks=["conv"]), replace(PROFILE, blocks=())
    with pytest.raises(NotImplementedError, match="logcumsumexp"):
        pfv.sample(network, pictures, profile)
    dataset = pfv.sample(network, pictures, profile, rule="gradient")
    assert ierfs(dataset, "conv", [0]).shape == (1, 224, 224)
    linear = tiny_network()
    one, other = (pfv.sample(linear, pictures, profile, rule=r) for r in ("error", "gradient"))
    assert one.folder != other.folder


def test_a_broken_shard_is_named(photographs):
    network, pictures = tiny_network(), load_pictures(str(photographs))
    dataset = pfv.sample(network, pictures, PROFILE)
    (_, shard, _) = sorted(dataset.folder.glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:100])
    for read in (dataset.predictions, lambda: pfv.sample(network, pictures, PROFILE)):
        with pytest.raises(ValueError, match=rf"{shard.name} is broken .*: delete it"):
            read()


def test_unknown_block_is_refused_before_any_work(photographs):
    profile = replace(PROFILE, blocks=("layer7.0",))
    with pytest.raises(KeyError, match="layer7.0"):
        pfv.sample(tiny_network(), load_pictures(str(photographs)), profile)
    assert list(artifacts.folder().iterdir()) == []


def test_memory_that_runs_out_makes_batches_smaller(photographs, monkeypatch):
    network, pictures = tiny_network(), load_pictures(str(photographs))
    expected = pfv.sample(network, pictures, PROFILE)
    sizes, real = [], pfv._sample_batch

    def tight(network, images, *rest):
        sizes.append(len(images))
        if len(images) > 1 and len(sizes) > 4:  # the second shard's first
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Made up.")
        return real(network, images, *rest)

    monkeypatch.setattr(pfv, "_sample_batch", tight)
    monkeypatch.setenv("GIG_ARTIFACTS", str(photographs / "tight"))
    smaller = pfv.sample(network, pictures, PROFILE)
    # The first shard stays as it is, and all others take the size that the second one finds.
    assert sizes == [2] * 4 + [2] + [1] * 12
    for block in PROFILE.blocks:
        assert torch.equal(smaller.positions(block), expected.positions(block))
        # Sums of a batch of one run in another order.
        torch.testing.assert_close(
            smaller.vectors(block), expected.vectors(block), rtol=1e-4, atol=1e-5
        )

    def never(network, images, *rest):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Made up.")

    monkeypatch.setattr(pfv, "_sample_batch", never)
    monkeypatch.setenv("GIG_ARTIFACTS", str(photographs / "never"))
    with pytest.raises(RuntimeError, match="No executable batch size found"):
        pfv.sample(network, pictures, PROFILE)


def test_a_block_of_one_vector_is_refused_before_any_work(photographs):
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5))
    network = Network(model, device="cpu", blocks=["0", "4"])
    with pytest.raises(ValueError, match="4 is one vector of a picture"):
        pfv.sample(network, photographs, Profile())


def test_rank_outside_of_the_world_is_refused(photographs):
    with pytest.raises(ValueError, match="rank 2 is not one of 0 … 1"):
        pfv.sample_part(tiny_network(), load_pictures(str(photographs)), PROFILE, 2, 2)


def _sample_in_child(folder: str, pictures: str) -> None:
    os.environ["GIG_ARTIFACTS"] = folder
    torch.set_num_threads(1)
    pfv.sample(tiny_network(), load_pictures(pictures), PROFILE)


def _killed_in_child(folder: str, pictures: str, batches: int) -> None:
    """Dies before it begins another batch than so many."""
    real, done = pfv._sample_batch, []

    def sampled(*given):
        if len(done) == batches:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(given)
        return real(*given)

    pfv._sample_batch = sampled
    _sample_in_child(folder, pictures)


def _part_in_child(folder: str, pictures: str, rank: int) -> None:
    os.environ["GIG_ARTIFACTS"] = folder
    torch.set_num_threads(1)
    pfv.sample_part(tiny_network(), load_pictures(pictures), PROFILE, rank, 2)


def _bytes(folder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def test_ten_kills_end_with_the_same_bytes(photographs, tmp_path):
    """Ten batches are three shards, of four batches, four and two."""

    def ended(target, folder, *given):
        process = processes().Process(target=target, args=(str(folder), str(photographs), *given))
        process.start()
        process.join()
        return process.exitcode

    assert ended(_sample_in_child, tmp_path / "whole") == 0
    kept = []
    for batches in (0, 1, 3, 2, 5, 3, 2, 4, 0, 1):
        code = ended(_killed_in_child, tmp_path / "killed", batches)
        assert code == -signal.SIGKILL
        kept.append(len([*(tmp_path / "killed").rglob("shard-*")]))
    assert kept == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2], "what was whole stays"
    assert ended(_sample_in_child, tmp_path / "killed") == 0
    assert _bytes(tmp_path / "killed") == _bytes(tmp_path / "whole")


def test_two_processes_make_the_bytes_of_one(photographs, tmp_path):
    where = str(photographs)
    work = [(_sample_in_child, (str(tmp_path / "whole"), where))]
    # Each in a folder of its own, as on machines without a common disk.
    work += [(_part_in_child, (str(tmp_path / f"part{rank}"), where, rank)) for rank in (0, 1)]
    for target, arguments in work:
        process = processes().Process(target=target, args=arguments)
        process.start()
        process.join()
        assert process.exitcode == 0
    parts = [{p.name for p in (tmp_path / f"part{r}").rglob("shard-*")} for r in (0, 1)]
    assert [len(names) for names in parts] == [2, 1] and not parts[0] & parts[1]
    shutil.copytree(tmp_path / "part1", tmp_path / "part0", dirs_exist_ok=True)
    merge = processes().Process(target=_sample_in_child, args=(str(tmp_path / "part0"), where))
    merge.start()
    merge.join()
    assert merge.exitcode == 0
    assert _bytes(tmp_path / "part0") == _bytes(tmp_path / "whole")


def _read_in_child(folder: str, photographs: str, readers: int) -> None:
    """A photograph breaks after it was found."""
    os.environ["GIG_ARTIFACTS"] = folder
    pfv._READERS["cpu"] = readers
    pictures = load_pictures(photographs)
    broken = Path(photographs) / "junco" / "03.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"")
    pfv.sample(tiny_network(), pictures, PROFILE)
    broken.write_bytes(whole)


def test_readers_change_nothing(photographs, tmp_path):
    for readers in (0, 2):
        folder = str(tmp_path / f"readers{readers}")
        child = processes().Process(target=_read_in_child, args=(folder, str(photographs), readers))
        child.start()
        child.join(timeout=300)
        child.kill()
        assert child.exitcode == 0
    assert _bytes(tmp_path / "readers0") == _bytes(tmp_path / "readers2")
    (shard, *_) = sorted((tmp_path / "readers0").rglob("shard-*.safetensors"))
    with safe_open(shard, framework="pt") as file:
        assert list(json.loads(file.metadata()["skipped"])) == ["junco/03.png"]


def test_memory_does_not_grow_with_the_number_of_pictures(photographs, monkeypatch):
    """Ten batches, of which one's pictures and one shard's PFVs are alive at a time."""
    pixels, vectors, most = [], [], [0, 0]
    read, real = pfv._Readable.__getitem__, pfv._sample_batch

    def alive(references):
        return sum(reference() is not None for reference in references)

    def watched_read(self, index):
        item = read(self, index)
        pixels.append(weakref.ref(item[1]))
        return item

    def watched(network, images, *rest):
        gc.collect()
        most[:] = max(most[0], alive(pixels)), max(most[1], alive(vectors))
        columns = real(network, images, *rest)
        vectors.append(weakref.ref(columns["0.vectors"]))
        return columns

    monkeypatch.setattr(pfv._Readable, "__getitem__", watched_read)
    monkeypatch.setattr(pfv, "_sample_batch", watched)
    pfv.sample(tiny_network(), load_pictures(str(photographs)), PROFILE)
    assert len(pixels) == 20 and len(vectors) == 10
    assert most[0] <= 2 * PROFILE.batch_size and most[1] < 2 * pfv.SHARD_BATCHES


def test_a_picture_is_of_its_label_or_of_what_the_network_says(tmp_path):
    """By hand: a label, none; of what could not be read no label counts."""
    pictures = SimpleNamespace(paths=("a", "b", "c", "d"), labels=(8, None, 5, None))
    columns = {"pictures": torch.tensor([0, 1]), "predictions": torch.tensor([7, 3])}
    save_file(columns, tmp_path / "shard-000000.safetensors")
    pfvs = pfv.PFVDataset(tmp_path, "", (), None, pictures, {})
    assert pfvs.classes().tolist() == [8, 3, -1, -1]
