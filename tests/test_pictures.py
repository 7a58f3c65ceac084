"""data/pictures.py: pictures come whole or are named, and labels are read from folders."""

import os
import urllib.error
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from imagenet_w import AddWatermark
from PIL import Image, ImageOps, features
from torchvision.models import resnet18

from gig_helpers import Network, Profile, class_names, load_pictures, sample
from gig_helpers.data import images, profiles
from gig_helpers.data.pictures import SOURCES, UnreadablePicture
from gig_helpers.data.weights import MEAN, STD, AssetUnavailable, Preprocessing
from gig_helpers.report.studies import evaluated

pytestmark = pytest.mark.filterwarnings("ignore:.*called as these folders")


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
    halves = (0.0, 0.5), (0.5, 1.0)
    quarters = [(left, top, right, low) for top, low in halves for left, right in halves]
    assert pictures.boxes[:5] == ((0.0, 0.0, 1.0, 1.0), *quarters), "row by row"


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
    nearest = Preprocessing(20, 40, mean, std, "nearest")
    (blunt,) = load_pictures(str(tmp_path), preprocessing=nearest)[[0]]
    assert len(blunt[0].unique()) == 2 < len(seen[0].unique())


def test_an_oblong_crop_is_filled(tmp_path):
    """White below row 36 of 60 and right of column 66 of 120: halved, 30 rows, of which 20 stay."""
    pixels = np.zeros((60, 120, 3), dtype=np.uint8)
    pixels[36:, 66:] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (seen,) = load_pictures(str(tmp_path), preprocessing=Preprocessing((20, 60), 20))[[0]]
    assert seen.shape == (3, 20, 60)
    assert seen[0, :, -1].diff().argmax() == 12 and seen[0, -1].diff().argmax() == 32


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
    made_ready = Preprocessing(32, 40), Preprocessing(mean=(0.5,) * 3), Preprocessing(resize=300)
    others += [replace(whole, preprocessing=ready) for ready in made_ready]
    assert len({before, *(other.fingerprint for other in others)}) == 7
    (picture_folder / "e.png").write_bytes(b"shorter")
    assert before != load_pictures(str(picture_folder)).fingerprint


def test_fingerprint_follows_the_content_whatever_its_size_and_time(tmp_path):
    file = tmp_path / "a.bmp"
    Image.new("RGB", (8, 8), "red").save(file)
    before, was = load_pictures(str(tmp_path)), file.stat()
    kept = before.fingerprint
    Image.new("RGB", (8, 8), "blue").save(file)
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (was.st_size, was.st_mtime_ns)
    assert load_pictures(str(tmp_path)).fingerprint == before.fingerprint != kept


@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_broken_pictures_are_left_out_and_named(picture_folder, content):
    path = picture_folder / "e.png"
    before = load_pictures(str(picture_folder))
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with pytest.warns(UserWarning, match=r"left out 1: e\.png \("):
        assert len(load_pictures(str(picture_folder))) == len(before) - 1
    with pytest.raises(UnreadablePicture, match=r"e\.png"):  # it broke after it was found
        before[before.paths.index("e.png")]


QUADRANTS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
"""Red and green over blue and white."""


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(tmp_path, orientation):
    upright = QUADRANTS.repeat(8, axis=0).repeat(8, axis=1)
    # What the EXIF standard says of the file's row 0 and column 0, undone by hand.
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.swapaxes(0, 1), 6: np.rot90(upright, 1), 7: upright.swapaxes(0, 1)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.png", "a.tiff", "a.jpg"):
        how = {"quality": 100, "subsampling": 0} if name == "a.jpg" else {}
        Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / name, exif=exif, **how)
    for file in sorted(tmp_path.iterdir()):
        off = abs(np.asarray(images.read(file), dtype=int) - upright).max()
        assert off <= (2 if file.suffix == ".jpg" else 0), file  # a JPEG rounds


@pytest.mark.parametrize("header", [b"Exif\0\0no TIFF header", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_a_photograph_with_broken_exif_is_read_all_the_same(tmp_path, header):
    image = Image.new("RGB", (16, 8), "white")
    image.paste("black", (0, 0, 8, 8))
    image.save(tmp_path / "a.jpg", exif=header)
    read = images.read(tmp_path / "a.jpg")
    assert read.size == (16, 8) and max(read.getpixel((1, 4))) < 50, "as it lies there"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 257, 65535]], np.uint16), [0, 1, 255]),
        (np.array([[0, 4095, 32896]], np.uint16), [0, 16, 128]),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
        (np.array([[-100, 0, 100]], np.int32), [0, 128, 255]),
        (np.array([[0.0, 0.2, 1.0]], np.float32), [0, 51, 255]),
        (np.array([[0.0, 51.0, 200.0]], np.float32), [0, 51, 200]),
        (np.array([[-1.0, 0.0, 4.0]], np.float32), [0, 51, 255]),
        (np.array([[-3.0, -3.0]], np.float32), [0, 0]),
    ],
)
def test_values_of_16_and_32_bits_have_their_range(tmp_path, values, expected):
    Image.fromarray(values).save(tmp_path / "a.tiff")
    if values.dtype == np.uint16:
        Image.fromarray(values).save(tmp_path / "a.png")
    for file in sorted(tmp_path.iterdir()):
        grey = np.asarray(images.read(file))
        assert (grey[..., :1] == grey).all() and grey[0, :, 0].tolist() == expected, file


def test_values_that_are_no_numbers_are_named(tmp_path):
    Image.fromarray(np.full((2, 2), np.nan, np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match="NaN"):
        images.read(tmp_path / "a.tiff")


def test_what_is_transparent_is_white(tmp_path):
    clear = Image.fromarray(np.array([[[9, 9, 9, 0], [255, 0, 0, 255]]], np.uint8))
    clear.save(tmp_path / "rgba.png")
    clear.save(tmp_path / "rgba.webp", lossless=True)
    clear.convert("LA").save(tmp_path / "la.png")
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    palette.putpalette([9, 9, 9, 255, 0, 0])
    palette.save(tmp_path / "palette.png", transparency=0)
    palette.save(tmp_path / "palette.gif", transparency=0)
    palette.convert("RGB").save(tmp_path / "key.png", transparency=(9, 9, 9))
    for file in sorted(tmp_path.iterdir()):
        there = images.read(file)
        assert there.getpixel((0, 0)) == (255, 255, 255), file
        assert there.getpixel((1, 0)) == ((76,) * 3 if "la" == file.stem else (255, 0, 0)), file


def test_every_suffix_that_pillow_reads_counts(tmp_path):
    ends = [".jpe", ".jfif", ".JPG", ".jp2", ".ppm", ".tga", ".dib", ".ico", ".apng"]
    ends += [".avif"] if features.check("avif") else []
    for end in ends:
        Image.new("RGB", (16, 16), "red").save(tmp_path / f"a{end}")
    assert {path[1:] for path in load_pictures(str(tmp_path)).paths} == set(ends)


def test_links_are_followed_and_what_is_hidden_is_not(tmp_path):
    for name in ("far/b.png", "here/.ipynb_checkpoints/c.png", "here/._d.png", "here/e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "here/junco").symlink_to(tmp_path / "far")
    (tmp_path / "far/round").symlink_to(tmp_path / "far")  # back into where one is
    (tmp_path / "here/gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.warns(UserWarning, match=r"left out 1: gone\.png \(No such file"):
        pictures = load_pictures(str(tmp_path / "here"))
    assert dict(zip(pictures.paths, pictures.labels, strict=True)) == {
        "e.png": None, "junco/b.png": 13,
    }  # fmt: skip


def test_all_that_is_left_out_is_named_in_one_warning(picture_folder, monkeypatch):
    (picture_folder / "e.png").write_bytes(b"")
    for n in range(12):
        (picture_folder / f"f{n:02}.txt").write_text("text")
    (picture_folder / "shut").mkdir()
    scandir = os.scandir

    def guarded(path):
        if os.fspath(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.warns(UserWarning) as said:
        load_pictures(str(picture_folder))
    (text,) = {str(warning.message) for warning in said}
    assert "left out 14: " in text and "; and 4 more" in text
    assert "shut/ (Permission denied)" in text and "e.png (no picture" in text
    assert "f00.txt (no suffix of a picture)" in text
    assert "called as these folders: other (pictures: 1)" in text


def test_class_folders_match_with_spaces_or_underscores(tmp_path):
    for name in ("tiger_beetle/a.png", "sea lion/b.png", "HOG/c.png", "crane/d.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    ours = ("tiger_beetle", "sea_lion", "hog", "Hog")
    with pytest.warns(UserWarning, match=r"HOG \(pictures: 1\); crane \(pictures: 1\)"):
        pictures = load_pictures(str(tmp_path), classes=ours)
    assert pictures.labels == (None, None, 1, 0)  # in the order HOG, crane, sea lion, tiger_beetle
    assert load_pictures(str(tmp_path), classes=("crane", *ours[:3])).labels == (3, 0, 2, 1)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Network(resnet18(), device="cpu", input_size=(32, 32))


@pytest.fixture
def flat(tmp_path, network, monkeypatch):
    """A folder of ten photographs without classes."""
    monkeypatch.setenv("GIG_ARTIFACTS", str(tmp_path / "artifacts"))
    generator = np.random.default_rng(0)
    for n in range(10):
        pixels = generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)
        (tmp_path / "flat").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"flat/{n}.png")
    return load_pictures(str(tmp_path / "flat"), preprocessing=Preprocessing(32, 32))


def test_predictions_stand_in_where_there_are_no_classes(flat, network):
    said = network.logits(flat[:]).argmax(dim=1).tolist()
    stood = flat.labelled(network)
    assert stood.labels == tuple(said) and stood.paths == flat.paths
    assert "the network's own predictions in place of classes" in repr(stood)
    assert stood.subset([0]).stand_in and flat.joined(stood).stand_in and not flat.stand_in
    assert stood.labelled(network) == stood
    # What the chapters follow and evaluate is there, as it is where pictures have classes.
    pfvs = sample(network, stood, Profile(blocks=("layer4.1",), per_image=1))
    assert pfvs.right() == [*range(10)] and pfvs.wrong() == []
    assert len(evaluated(pfvs, 4)) == 4


@pytest.mark.parametrize(("recognised", "stands_in"), [(4, False), (3, True)])
def test_labels_stay_where_enough_photographs_are_recognised(flat, network, recognised, stands_in):
    said = network.logits(flat[:]).argmax(dim=1).tolist()
    labels = tuple((c + (n < 10 - recognised)) % 1000 for n, c in enumerate(said))
    given = replace(flat, labels=labels)
    made = given.labelled(network)
    assert made.stand_in is stands_in
    assert made.labels == (tuple(said) if stands_in else labels)


def test_too_few_photographs_are_refused(flat, network):
    with pytest.raises(ValueError, match="flat has 7 photographs: the chapters need 8 or more"):
        flat.subset(range(7)).labelled(network)


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
    with pytest.raises(FileNotFoundError, match=r"no folder /.*imagenet-val: GIG_IMAGES must name"):
        load_pictures(profiles.get("paper").pictures)


def test_a_set_that_cannot_be_downloaded_says_what_to_do(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("GIG_CACHE", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(AssetUnavailable, match="GIG_IMAGES"):
        load_pictures("imagenette")


def test_thirty_of_each_class_of_imagenette(tmp_path, monkeypatch):
    inside, counts = tmp_path / "imagenette/imagenette2-320/val", {"n01440764": 31, "n02102040": 2}
    for folder, count in counts.items():
        (inside / folder).mkdir(parents=True)
        for n in range(count):
            Image.new("RGB", (8, 8)).save(inside / folder / f"{n:02}.png")
    monkeypatch.setenv("GIG_CACHE", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.Imagenette", lambda *args, **options: None)
    every, some = load_pictures("imagenette"), load_pictures("imagenette-30")
    assert len(every) == 33 and str(some) == "imagenette-30: 32 photographs"
    assert {*every.paths} - {*some.paths} == {"n01440764/30.png"}
    assert Counter(some.labels) == {0: 30, 217: 2}


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
