"""The atlas: its numbers against the sums they stand for, its pages in a browser from a file."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from conftest import tiny_network
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from gig_helpers import Concepts, Profile, attribute, decompose, fit_concepts, load_pictures, sample
from gig_helpers.data.profiles import CHAIN
from gig_helpers.data.weights import Preprocessing
from gig_helpers.report import atlas_data
from gig_helpers.report.atlas import atlas
from gig_helpers.report.atlas_data import TOLERANCE, gather, stability

HOSTILE = "<img src=x onerror=alert(1)>"
CLASSES = ("junco", HOSTILE, "owl", "wren")
NAME = 'beak"><script>alert(2)</script>'
"""Names that would be HTML if they were not escaped."""
BYTES = 200_000
"""Of the atlas for each photograph: 60 MB for 300."""


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A folder, and PFVs and families of two blocks of 24 photographs of two classes."""
    here, colours = tmp_path_factory.mktemp("atlas"), np.random.default_rng(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIG_ARTIFACTS", str(here / "artifacts"))
        for name in ("junco", "owl"):
            (here / "birds" / name).mkdir(parents=True)
            for n in range(12):
                pixels = colours.integers(0, 256, (4, 4, 3), dtype=np.uint8)
                image = Image.fromarray(pixels).resize((64, 64), 0)
                image.save(here / "birds" / name / f"{n}.png")
        network = tiny_network(classes=CLASSES, preprocessing=Preprocessing(16, 16))
        pictures = load_pictures(str(here / "birds"), network)
        # The owls' class gets the name that would be HTML.
        labels = tuple(1 if label == 2 else label for label in pictures.labels)
        pictures = replace(pictures, labels=labels)
        profile = Profile(blocks=network.blocks, families=6, pfvs_per_concept=6)
        pfvs = sample(network, pictures, profile)
        yield here, pfvs, fit_concepts(pfvs, profile)


@pytest.fixture(scope="module")
def found(chain):
    _, pfvs, concepts = chain
    return gather(pfvs, concepts)


@pytest.fixture(scope="module")
def pages(chain, found):
    here, pfvs, concepts = chain
    return atlas(pfvs, concepts, here / "pages", names={f"{pfvs.blocks[0]}/0": NAME}).parent


def _data(pages, name):
    text = (pages / "data" / f"{name}.js").read_text(encoding="utf-8")
    return json.loads(re.fullmatch(r".*?\] = (.*);\n", text)[1])


def test_families_are_sums_of_atoms(chain, found):
    _, pfvs, concepts = chain
    for n in (0, 20):
        d = decompose(pfvs.network, pfvs.pictures[[found.pictures[n]]], concepts)
        for block, here in d.concepts.items():
            wanted = attribute(d, block, int(found.classes[n]), rest=True, tolerance=TOLERANCE)
            values = here.gathered(found.relevance[block][n, :-1])
            torch.testing.assert_close(values, wanted[0, 0, :-1], rtol=1e-4, atol=1e-5)
            # In 16 bits, and a mean over cells: what is where adds up to what there is.
            places = found.where[block][n].float().sum(dim=(1, 2))
            assert torch.allclose(places, values, atol=0.02 * float(values.abs().max()))


def test_edges_are_the_mean_over_the_photographs_of_a_class(chain, found):
    _, pfvs, concepts = chain
    source, later = concepts
    rows = found.of_class(0).tolist()
    targets = found.targets[0][later]
    assert len(rows) == 12 and targets
    d = decompose(pfvs.network, pfvs.pictures[[found.pictures[n] for n in rows]], concepts)
    parts = [
        attribute(d[[n]], source, (later, targets), rest=True, tolerance=TOLERANCE)[0]
        for n in range(len(d))
    ]
    brought = concepts[source].gathered(found.mean_fed(rows)[source][:, :-1])
    torch.testing.assert_close(brought, torch.stack(parts).mean(0)[:, :-1], rtol=1e-4, atol=1e-5)


def test_relevance_and_rest_make_the_logits_change(chain, found):
    _, pfvs, concepts = chain
    logits = pfvs.network.logits(pfvs.pictures[found.pictures])
    said = logits[torch.arange(len(logits)), found.classes]
    for block, here in concepts.items():
        start = pfvs.network.segment(block)(here.beta.expand(1, found_positions(pfvs, block), -1))
        change = said - start[0][found.classes]
        missed = (found.relevance[block].sum(dim=1) - change).abs() / change.abs()
        torch.testing.assert_close(missed, found.gaps[block], rtol=1e-3, atol=1e-4)
        assert float(missed.detach().median()) <= TOLERANCE


def test_edges_of_other_families_are_kept_apart(chain, artifacts_folder):
    _, pfvs, concepts = chain
    d = decompose(pfvs.network, pfvs.pictures[[0]], concepts)
    source, later = d.blocks
    first, other, both = (
        atlas_data._fed(d, {later: targets}, TOLERANCE, 16)[source]
        for targets in ([0], [1], [0, 1])
    )
    torch.testing.assert_close(torch.cat([first, other]), both, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(first, other)


def found_positions(pfvs, block):
    rows, columns = pfvs.network.map_size(block)
    return rows * columns


@pytest.mark.slow
def test_a_photograph_costs_at_most_sixty_passes(network, pictures, artifacts_folder):
    """On average, in operations, whatever the machine: relevance, edges, iERFs, at six blocks."""
    profile = Profile(blocks=CHAIN, families=6, pfvs_per_concept=4)
    pfvs = sample(network, pictures.subset([10, 20, 40]), profile)
    concepts = fit_concepts(pfvs, profile)
    with FlopCounterMode(display=False) as one, torch.no_grad():
        network.logits(pfvs.pictures[[0]])
    with FlopCounterMode(display=False) as every:
        atlas(pfvs, concepts, artifacts_folder / "atlas")
    assert every.get_total_flops() <= 3 * 60 * one.get_total_flops()


def test_a_second_run_computes_nothing(chain, found, monkeypatch):
    _, pfvs, concepts = chain
    monkeypatch.setattr(atlas_data, "attribute", lambda *args, **options: 1 / 0)
    again = gather(pfvs, concepts)
    assert all(torch.equal(again.relevance[b], found.relevance[b]) for b in concepts)


def test_concepts_of_other_pfvs_are_refused(chain):
    _, pfvs, concepts = chain
    halves = {block: replace(c, labels=c.labels[::2]) for block, c in concepts.items()}
    with pytest.raises(ValueError, match="made of all of them"):
        gather(pfvs, halves)


def test_stability_tells_families_from_noise():
    generator = torch.Generator().manual_seed(0)
    photographs = torch.arange(200) // 4
    planted = torch.arange(200) % 4
    x = torch.eye(16)[planted] + 0.1 * torch.randn(200, 16, generator=generator)
    by_chance = torch.randint(4, (200,), generator=generator)
    assert float(stability(x, planted, photographs).min()) > 0.9
    assert float(stability(x, by_chance, photographs).max()) < 0.4
    # A family of one photograph is in one half of each split, and does not spoil the mean.
    assert not stability(x, planted, photographs).isnan().any()


def test_stability_is_the_jaccard_index_of_halves_of_the_photographs(monkeypatch):
    """Of a clustering that tells nothing apart: each family's share of the PFVs of every half."""

    class One:
        def __init__(self, clusters, random_state):
            self.clusters = clusters

        def fit(self, x):
            return SimpleNamespace(labels_=np.zeros(len(x), np.int64))

    monkeypatch.setattr(atlas_data, "BisectingSphericalKMeans", One)
    photographs = torch.arange(6).repeat_interleave(torch.arange(2, 8))  # one of each in family 1
    families = torch.cat([torch.eye(n)[0].long() for n in range(2, 8)])
    expected = []
    for split in range(3):
        order = torch.randperm(6, generator=torch.Generator().manual_seed(5 + split)).tolist()
        for half in (order[:3], order[3:]):
            expected.append(3 / sum(n + 2 for n in half))
    found = stability(torch.randn(27, 4), families, photographs, splits=3, seed=5)
    share = sum(expected) / 6
    assert found.tolist() == pytest.approx([1 - share, share]) and len({*expected}) > 2


def test_stability_is_asked_of_centred_pfvs_and_photographs(chain, monkeypatch):
    _, pfvs, concepts = chain
    asked = []
    monkeypatch.setattr(
        atlas_data, "stability", lambda *given, **options: asked.append(given) or torch.zeros(6)
    )
    block, here = next(iter(concepts.items()))
    atlas_data._stability(pfvs, here, 2, 17)
    ((x, families, photographs),) = asked
    torch.testing.assert_close(x, pfvs.vectors(block) - here.beta)
    assert torch.equal(families, here.assigned)
    assert torch.equal(photographs, pfvs.photographs[pfvs.picture_ids(block)])


def test_one_view_stands_for_a_photograph(chain, artifacts_folder):
    network = chain[1].network
    views = load_pictures("sample", network).subset(range(10))
    views = replace(views, labels=(0,) * 10)
    profile = Profile(blocks=network.blocks[-1:], families=2, pfvs_per_concept=30)
    pfvs = sample(network, views, profile)
    found = gather(pfvs, fit_concepts(pfvs, profile))
    assert found.pictures == [0, 5] and len(found.fed) == 2


def test_places_names_and_what_is_strongest_by_hand():
    values = torch.arange(10.0).reshape(5, 2)  # a class token and four places of two families
    tokens = SimpleNamespace(map_size=lambda block: (2, 2), placeless=lambda block: 1)
    places = atlas_data._places(tokens, "b", values)
    assert places.tolist() == [[[2, 4], [6, 8]], [[3, 5], [7, 9]]]
    here = Concepts(torch.eye(4), torch.zeros(4), torch.arange(4))
    relevance = torch.tensor([[-9.0, 1, 2, 0.5, 50], [-7, 3, 4, 0.5, 60]])
    assert atlas_data._strongest(relevance, here) == [2, 1], "the rest is none of them"
    brings = {"junco": 3.0, "owl": 2.0, "wren": 1.5, "crane": -9.0}
    assert atlas_data.proposed(brings) == "junco, owl", "half of 6.5"
    assert atlas_data.proposed({"owl": -1.0}) == ""
    assert atlas_data.proposed(dict.fromkeys("abcdefgh", 1.0)) == "many classes"
    vectors = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    longer = vectors * torch.arange(1.0, 7)[:, None]
    one, other = (
        atlas_data.plane(Concepts(v, torch.zeros(4), torch.arange(6))) for v in (vectors, longer)
    )
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert one.amin(dim=0).tolist() == [0, 0] and one.amax(dim=0).tolist() == [1, 1]


def test_pages_hold_what_was_computed(chain, pages, found):
    _, pfvs, concepts = chain
    about = _data(pages, "index")
    assert [name for _, name, _ in about["classes"]] == ["junco", HOSTILE]
    assert len(about["photographs"]) == 24
    for n, (block, here) in enumerate(concepts.items()):
        shown = _data(pages, about["blocks"][n]["slug"])
        assert sum(family["pfvs"] for family in shown["families"]) == pfvs.count(block)
        assert sum(pfvs_ for _, pfvs_, _ in shown["atoms"]) == pfvs.count(block)
        every = [c for family in shown["families"] for of in family["crops"].values() for c in of]
        assert max(every) < len(shown["crops"])
        for label, *_ in about["classes"]:
            atoms = {atom: value for atom, value, *_ in
                     _data(pages, f"class-{label}")["blocks"][block]["atoms"]}  # fmt: skip
            for f, family in enumerate(shown["families"]):
                mean = {c: value for c, value, *_ in family["classes"]}.get(label)
                if mean is not None:  # of atoms, each rounded to four digits
                    own = [atoms.get(atom, 0.0) for atom in here.atoms(f).tolist()]
                    assert sum(own) == pytest.approx(mean, abs=5e-4 * sum(map(abs, own)) + 1e-9)


def test_members_are_members_and_the_nearest_is(chain, pages):
    _, pfvs, concepts = chain
    block, here = next(iter(concepts.items()))
    unit = torch.nn.functional.normalize(pfvs.vectors(block) - here.beta, dim=1)
    shown = _data(pages, _data(pages, "index")["blocks"][0]["slug"])
    photographs = pfvs.photographs[pfvs.picture_ids(block)]
    for f, family in enumerate(shown["families"]):
        members = here.members(f)
        near = members[(unit[members] @ here.directions[f]).argmax()]
        # Pictures are photographs here, in one order.
        assert shown["crops"][family["crops"]["nearest"][0]] == int(photographs[near])
        assert family["photographs"] == len(photographs[members].unique())


def test_pages_are_light_and_names_are_escaped(pages):
    size = sum(path.stat().st_size for path in pages.rglob("*") if path.is_file())
    assert size < 24 * BYTES
    for path in pages.glob("*.html"):
        assert HOSTILE not in path.read_text(encoding="utf-8")


SCREENS = {"desktop, light": (1280, 900, "light"), "phone, dark": (390, 800, "dark")}


@pytest.fixture(params=list(SCREENS))
def opened(browser, pages, request):
    """Opens pages offline; what goes wrong or leaves fails the test at its end."""
    width, height, scheme = SCREENS[request.param]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
    )
    page, troubles = context.new_page(), []
    page.on("request", lambda r: urlsplit(r.url).scheme in {"file", "data", "blob"}
            or troubles.append(r.url))  # fmt: skip
    page.on("requestfailed", lambda request: troubles.append(f"failed: {request.url}"))
    page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
    page.on("console", lambda line: line.type == "error" and troubles.append(line.text))
    page.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))

    def go(address):
        page.goto("about:blank")
        page.goto(f"{pages.as_uri()}/{address}")
        page.wait_for_selector("main section, main .card, main .map")
        return page

    yield go
    wide = page.evaluate("() => document.documentElement.scrollWidth")
    context.close()
    assert not troubles
    assert wide <= width


def test_pages_can_be_read_by_a_screen_reader(opened, pages):
    slug = _data(pages, "index")["blocks"][1]["slug"]
    for address in ("index.html", f"{slug}.html", f"{slug}.html#family=0", f"{slug}.html#view=map",
                    "class.html#of=0&and=1", "test.html"):  # fmt: skip
        page = opened(address)
        # It would read the style sheet itself, which a page that is a file may not.
        options = {"resultTypes": ["violations"], "preload": False}
        found = Axe().run(page, options=options).response["violations"]
        assert not [(address, rule["id"], rule["nodes"][0]["html"][:200]) for rule in found]
        small = "() => [...document.querySelectorAll('button, select, nav a, a.family, .card')]"
        small += ".filter((e) => e.offsetParent && e.getBoundingClientRect().height < 40).length"
        assert page.evaluate("() => document.title") and not page.evaluate(small)
        assert "alert" not in page.evaluate("() => document.querySelector('main').innerHTML") or (
            page.locator("main img, main script").count() == 0
        )


def test_a_class_leads_to_the_family_that_brings_it_most(opened, pages, found, chain):
    _, _, concepts = chain
    block, here = [*concepts.items()][-1]
    mean = here.gathered(found.relevance[block][found.of_class(0), :-1].mean(0))
    page = opened("index.html")
    page.get_by_label("Find a class").fill("junc")
    assert page.locator("ul.tiles").first.locator("li:visible").count() == 1
    page.get_by_role("link", name="junco").first.click()
    page.wait_for_selector("main section li")
    # The last block stands first.
    best = page.locator("#list-0 section").first.locator("a.family").first
    assert f"family {int(mean.argmax())}" in best.inner_text()
    best.click()
    page.wait_for_selector(".places figure")
    assert f"family {int(mean.argmax())}" in page.locator("h1").inner_text()
    assert "What feeds it" in page.locator("main").inner_text()
    assert page.locator(".places figure").count() == 3


def test_a_click_opens_a_node_and_the_address_says_so(opened):
    page = opened("class.html#of=0")
    brought = """() => [...document.querySelectorAll('.stage .column')].map((column) =>
        [...column.querySelectorAll('button')].map((e) => Number(
            e.getAttribute('aria-label').match(/: ([+−][\\d.]+)/)?.[1].replace('−', '-'))))"""
    before = page.evaluate(brought)
    labels = page.locator(".stage button").evaluate_all("(all) => all.map((e) => e.ariaLabel)")
    node = page.locator(".stage button").first
    node.focus()
    assert page.locator(".about").inner_text().count("null") == 0
    assert labels[0].split(", ")[1].split(":")[0] in page.locator(".about").inner_text()
    page.keyboard.press("Enter")
    page.wait_for_selector(".stage .opened")
    after = page.evaluate(brought)
    assert len(after[0]) == len(before[0]) + 1
    # Shown to three digits.
    assert sum(after[0][:2]) == pytest.approx(before[0][0], abs=0.02 * max(map(abs, after[0][:2])))
    assert after[1:] == before[1:]
    assert "open=" in page.url and "at=" in page.url
    page.reload()
    page.wait_for_selector(".stage .opened")
    assert page.evaluate(brought) == after
    page.get_by_role("button", name="close its family").click()
    assert page.evaluate(brought) == before
    seen = page.evaluate("() => document.activeElement.ariaLabel")
    # To the next block: on a phone the row above.
    page.keyboard.press("ArrowUp" if page.viewport_size["width"] < 600 else "ArrowRight")
    assert page.evaluate("() => document.activeElement.ariaLabel") != seen
    page.locator(".stage line:not(.off)").first.wait_for(state="attached")  # drawn a moment later


def test_a_photograph_has_its_own_graph(opened, found, chain):
    _, _, concepts = chain
    block, here = [*concepts.items()][-1]
    every = here.gathered(found.relevance[block][found.of_class(0)[:8], :-1])
    n = int(every.amax(dim=1).argmax())  # of those that the class's page shows
    relevance = every[n]
    page = opened("class.html#of=0")
    page.get_by_role("link", name="Graph of the photograph").nth(n).click()
    page.get_by_role("heading", name="What junco in ").wait_for()
    first = page.locator(".stage .column").nth(len(concepts) - 1).locator("button").first
    title = first.get_attribute("aria-label")
    assert f"family {int(relevance.argmax())}," in title.replace(":", ",")
    assert f"+{float(relevance.max()):.3g} for junco in " in title


def test_names_stay_text_and_travel(opened, pages, tmp_path):
    name = _data(pages, "index")["blocks"][0]["name"]
    page = opened(f"{_data(pages, 'index')['blocks'][0]['slug']}.html#family=0")
    field = page.get_by_label("your name for it")
    assert field.input_value() == NAME
    field.fill("a <b>wing</b>")
    opened("index.html")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export names").click()
    kept = json.loads(download.value.path().read_text())
    assert kept == {f"{name}/0": "a <b>wing</b>"}
    own = tmp_path / "names.json"
    own.write_text(json.dumps({f"{name}/1": "feather", f"{name}/99": "no such family", "x": 1}))
    page.get_by_label("Import names").set_input_files(own)
    page.get_by_text("1 name taken in.").wait_for()


def test_the_intruder_is_told_and_counted(opened):
    page = opened("test.html")
    for n in range(1, 4):
        page.get_by_role("button", name="crop 1").click()
        assert page.locator(".five .right").count() == 1
        assert f"of {n}" in page.locator("table").inner_text()
        page.get_by_role("button", name="Next").click()
    page = opened("test.html")
    assert "of 3" in page.locator("table").inner_text()


def test_ten_thousand_atoms_are_drawn_as_they_come_near(opened, pages):
    slug = _data(pages, "index")["blocks"][1]["slug"]
    large = pages / "data" / f"{slug}.js"
    text, shown = large.read_text(encoding="utf-8"), _data(pages, slug)
    shown["families"] = (shown["families"] * 1000)[:1000]
    shown["atoms"] = [[n % 1000, 1, 0] for n in range(10_000)]
    large.write_text(f"(window.atlasData ??= {{}})[{json.dumps(slug)}] = {json.dumps(shown)};\n")
    try:
        page = opened(f"{slug}.html#view=atoms")
        count = "() => document.querySelectorAll('.card').length"
        assert 0 < page.evaluate(count) < 1500
        # At once: a smooth scroll draws what it passes, as much as the machine's pace lets it.
        jump = "{ top: document.documentElement.scrollHeight, behavior: 'instant' }"
        page.evaluate(f"() => scrollTo({jump})")
        page.get_by_text("atom 9999", exact=True).wait_for()
        assert page.evaluate(count) < 5000
    finally:
        large.write_text(text, encoding="utf-8")
