"""data/pictures.py: pictures come whole or are named, and labels are read from folders."""

import urllib.error
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from imagenet_w import AddWatermark
from PIL import Image, ImageOps

from gig_helpers import class_names, load_pictures
from gig_helpers.data import profiles
from gig_helpers.data.pictures import SOURCES, UnreadablePicture
from gig_helpers.data.weights import MEAN, STD, AssetUnavailable, Preprocessing


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


def test_several_indices_give_a_batch(pictures):
    expected = torch.stack([pictures[3], pictures[0]])
    for several in ([3, 0], range(3, -1, -3), slice(3, None, -3), torch.tensor([3, 0])):
        some = pictures.subset(range(4))[several]
        assert torch.equal(some, expected), several
    for one in ([3], torch.tensor([3])):
        assert torch.equal(pictures[one], expected[:1])
    assert torch.equal(pictures[torch.tensor(3)], expected[0])
    assert torch.equal(pictures.subset([0, 3])[-1], expected[0])
    assert len(list(pictures.subset([0, 3]))) == 2
    with pytest.raises(IndexError, match="106 is out of bounds"):
        pictures[[0, 106]]


def test_a_network_brings_its_preprocessing_and_classes(picture_folder, monkeypatch):
    small = Preprocessing(32, 40, mean=(0.5,) * 3)
    network = SimpleNamespace(preprocessing=small, classes=("other", "junco"))
    pictures = load_pictures(str(picture_folder), network)
    assert pictures.preprocessing == small and pictures.classes == network.classes
    labels = dict(zip(pictures.paths, pictures.labels, strict=True))
    assert (labels["junco/b.png"], labels["other/d.png"], labels["e.png"]) == (1, 0, None)
    again = load_pictures(str(picture_folder), network, preprocessing=Preprocessing())
    assert again.preprocessing == Preprocessing() and again.labels == pictures.labels
    monkeypatch.setenv("HOME", str(picture_folder))
    assert load_pictures("~/junco", network).labels == (1,)


def test_tensor_is_the_image_normalised(pictures):
    image = np.asarray(pictures.image(7), dtype=np.float32) / 255
    expected = (image - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(pictures[7].permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_pictures_are_made_ready_as_their_network_asks(tmp_path):
    """Black up to column 66 of 120, white from there on, twice as wide as high: by hand."""
    pixels = np.zeros((60, 120, 3), dtype=np.uint8)
    pixels[:, 66:] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    mean, std = (0.1, 0.2, 0.4), (0.5, 0.25, 0.2)
    (seen,) = load_pictures(str(tmp_path), preprocessing=Preprocessing(20, 40, mean, std))[[0]]
    # The shorter side becomes 40, the longer 80, and the edge column 44, of which 30 are cut off.
    assert seen.shape == (3, 20, 20)
    for value, columns in ((0.0, slice(0, 8)), (1.0, slice(17, 20))):
        expected = [(value - m) / s for m, s in zip(mean, std, strict=True)]
        wanted = torch.tensor(expected)[:, None, None].expand(3, 20, 20)[:, :, columns]
        torch.testing.assert_close(seen[:, :, columns], wanted)
    assert seen[0, 0].diff().argmax() == 13, "squashed it would be 11"


def test_labels_come_from_the_nearest_folder(picture_folder):
    (picture_folder / "junco" / "house_finch" / "more").mkdir(parents=True)
    source, nested = picture_folder / "junco" / "b.png", "junco/house_finch/more/f.png"
    (picture_folder / nested).write_bytes(source.read_bytes())
    pictures = load_pictures(str(picture_folder))
    labels = dict(zip(pictures.paths, pictures.labels, strict=True))
    assert labels == {
        "n01534433/a.png": 13,
        "junco/b.png": 13,
        "house_finch/c.JPG": 12,
        nested: 12,
        "other/d.png": None,
        "e.png": None,
    }
    assert pictures.subset([1]).paths == (pictures.paths[1],)


def test_fingerprint_follows_the_files(picture_folder):
    before = load_pictures(str(picture_folder)).fingerprint
    assert before == load_pictures(str(picture_folder)).fingerprint
    whole = load_pictures(str(picture_folder))
    others = [replace(whole, boxes=((0.0, 0.0, 0.5, 0.5), *whole.boxes[1:]))]
    others += [replace(whole, paths=("z.png", *whole.paths[1:])), whole.subset([1, 0, 2, 3, 4])]
    assert len({before, *(other.fingerprint for other in others)}) == 4
    (picture_folder / "e.png").write_bytes(b"shorter")
    assert before != load_pictures(str(picture_folder)).fingerprint


@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_broken_pictures_are_named(picture_folder, content):
    path = picture_folder / "e.png"
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    pictures = load_pictures(str(picture_folder))
    with pytest.raises(UnreadablePicture, match=r"e\.png"):
        pictures[pictures.paths.index("e.png")]


def test_bad_folders_are_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("GIG_IMAGES", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="GIG_IMAGES"):
        load_pictures(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="no picture in"):
        load_pictures(str(tmp_path))
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(ValueError, match="no picture in"):
        load_pictures(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no folder imagenet-val: GIG_IMAGES must name"):
        load_pictures(profiles.get("paper").pictures)


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


def test_a_change_is_seen_by_the_network_and_by_the_eye(pictures):
    mark = AddWatermark(224)
    clean = pictures.subset([0, 6])
    marked = clean.changed(mark)
    assert marked.labels == clean.labels and marked.paths == clean.paths
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    for i in range(2):
        expected = (mark(clean[i] * std + mean) - mean) / std  # as imagenet-w has it
        assert (marked[i] - expected).abs().max() < 0.02, "up to the rounding of a byte"
        assert np.array_equal(np.asarray(marked.image(i)), np.asarray(mark(clean.image(i))))
    mask = (marked[:] != clean[:]).any(dim=1)
    rows = mask.any(dim=2).nonzero()[:, 1]
    assert 0.02 < mask.float().mean() < 0.1 and 80 < rows.min() < rows.max() < 140
    assert torch.equal(marked.subset([1])[0], marked[1])


def test_a_change_is_known_by_what_it_does(pictures):
    one, same = (pictures.changed(AddWatermark(224)) for _ in range(2))
    other = pictures.changed(AddWatermark(224, text="once"))
    assert one.fingerprint == same.fingerprint
    assert len({p.fingerprint for p in (pictures, one, other, one.changed(ImageOps.flip))}) == 4


def test_changes_follow_each_other(pictures):
    both = pictures.subset([0]).changed(AddWatermark(224)).changed(ImageOps.flip)
    expected = ImageOps.flip(AddWatermark(224)(pictures.image(0)))
    assert np.array_equal(np.asarray(both.image(0)), np.asarray(expected))


def test_pictures_and_their_twins_are_one_set(pictures):
    clean = pictures.subset([0, 6])
    both = clean.joined(clean.changed(ImageOps.flip))
    assert both.paths == 2 * clean.paths and repr(both) == "sample: 2 photographs (4 views)"
    assert torch.equal(both[:2], clean[:]) and torch.equal(both[2:], clean[:].flip(2))
    assert torch.equal(both.subset([3, 0])[:], torch.stack([clean[1].flip(1), clean[0]]))
    twins = clean.changed(ImageOps.flip)
    prints = {p.fingerprint for p in (clean, twins, both, twins.joined(clean), clean.joined(clean))}
    assert len(prints) == 5
    turned = both.changed(ImageOps.flip)
    assert torch.equal(turned[:], both[:].flip(2)), "of some a second change"
    with pytest.raises(ValueError, match="for two networks"):
        clean.joined(replace(clean, preprocessing=Preprocessing(32)))
