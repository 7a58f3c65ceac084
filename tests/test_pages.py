"""The built book in a browser without internet: every page as a reader sees it."""

import re
from contextlib import suppress
from copy import copy
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup, Tag
from PIL import Image
from playwright.sync_api import Error

from bookbuild import ROOT, chapters, contents
from bookbuild.pages import HTML, build
from bookbuild.setup_cell import address

pytestmark = pytest.mark.slow

SCREENS = {
    f"{name}, {scheme}": (width, height, scheme, "screen")
    for name, width, height in (("desktop", 1280, 900), ("phone", 390, 800))
    for scheme in ("light", "dark")
} | {"paper": (794, 1123, "light", "print")}  # A4 at 96 pixels an inch
HTML_BYTES, PAGE_BYTES, ATLAS_BYTES = 3_000_000, 12_000_000, 15_000_000
"""Of one page's own file, and of it with its pictures; vendor/ is shared by all pages. And of
the atlas."""

EMPTY = """() => {
    const all = (selector, bad) => [...document.querySelectorAll(selector)].filter(bad)
        .map((element) => element.outerHTML.slice(0, 120));
    const drawn = ".main-svg, img, svg";
    const text = (e) => e.closest(".solution.toggle-hidden") ? e.textContent : e.innerText;
    return [
        ...all(".plotly-figure", (e) => !(e.querySelector(".main-svg")?.clientWidth > 50)),
        ...all("[type='application/vnd.jupyter.widget-view+json']", () => true),
        ...all("article :is(button, input, select):not(.copybtn, .toggle-button)",
            (e) => !e.closest(".flipbook, .gig-graph, .quiz")),
        ...all(".math", (e) => !e.querySelector("mjx-container") || e.querySelector("mjx-merror")),
        ...all("article img:not([hidden])", (e) => !e.naturalWidth || !e.alt.trim()),
        ...all(".cell_output", (e) => !text(e).trim() && !e.querySelector(drawn)),
    ];
}"""
"""Every figure, formula, picture and output that shows nothing, or has no alt text; controls that
would need a kernel."""

CUT = """() => {
    const frame = (e) => e.matches("mjx-math") ? e.closest("p, li, dd, td, div")
        : e.matches("table") ? e.parentElement : e;
    const wide = (e) => e === frame(e) ? e.scrollWidth : e.getBoundingClientRect().width;
    return [...document.querySelectorAll("article pre, article table, article mjx-math")]
        .filter((e) => e.offsetParent && wide(e) > frame(e).clientWidth + 1)
        .map((e) => (e.innerText || frame(e).id).slice(0, 120));
}"""
"""Code, output, tables and formulas that reach beyond their frame. A phone scrolls them."""

CLIPPED = """() => {
    const scrolls = (e) => e && e.tagName !== "ARTICLE"
        && (/auto|scroll/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
    const right = document.documentElement.clientWidth + 1;
    return [...document.querySelectorAll("article :is(pre, table, mjx-math, img)")]
        .filter((e) => e.checkVisibility() && e.getBoundingClientRect().right > right)
        .filter((e) => !scrolls(e)).map((e) => e.outerHTML.slice(0, 120));
}"""
"""What runs off the screen where nothing scrolls it back."""

CODE_SHARE, SHARE = (
    0.2,
    """() => {
    const tall = (e) => e.getBoundingClientRect().height;
    const code = [...document.querySelectorAll("article .cell_input")];
    const seen = code.filter((e) => e.checkVisibility({contentVisibilityAuto: true}));
    return seen.reduce((sum, e) => sum + tall(e), 0) / tall(document.querySelector("article"));
}""",
)
"""Of a chapter's height what may be code, folded as shipped, and what is."""

SHRUNK, SMALLEST = (
    0.7,
    """() => Math.min(1, ...[...document.querySelectorAll("article figure:not(.moving) img")]
    .filter((e) => e.checkVisibility() && !e.src.endsWith("svg"))
    .map((e) => e.getBoundingClientRect().width / e.naturalWidth))""",
)
"""How far a phone may shrink a figure, and does: small text, 8.3 points at 110 to the inch, still
has 9 pixels. The moving picture has none but of 10 points, and is seen whole."""

THINGS = "atoms blocks classes concepts families latents PFVs photographs pictures views".split()
"""What there is no half of."""


@pytest.fixture(scope="module")
def html() -> Path:
    build()
    return HTML


def _open(browser, url, screen):
    """Open a page offline; return it with every request to elsewhere, failed load and error."""
    width, height, scheme, media = SCREENS[screen]
    size = {"width": width, "height": height}
    context = browser.new_context(viewport=size, color_scheme=scheme, offline=True)
    page = context.new_page()
    page.emulate_media(media=media, color_scheme=scheme)
    troubles: list[str] = []
    page.on("request", lambda request: _local(request.url) or troubles.append(request.url))
    page.on("requestfailed", lambda request: troubles.append(f"failed: {request.url}"))
    page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
    page.on("console", lambda line: line.type == "error" and troubles.append(line.text))
    page.goto(url, wait_until="load")
    # Drawing takes a moment; what stays empty is for the assertions to name, not for this wait.
    with suppress(Error):
        page.wait_for_function(f"() => !({EMPTY})().length", timeout=20_000)
    return page, troubles


@cache
def _soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def _prose(path: Path) -> Tag:
    """What a page says, without code and formulas."""
    article = copy(_soup(path).find("article"))
    for part in article.select("pre, code, script, style, .math"):
        part.decompose()
    return article


def _local(url: str) -> bool:
    return urlsplit(url).scheme in {"file", "data", "blob"}


@pytest.fixture(scope="module", params=list(SCREENS))
def screen(request):
    return request.param


@pytest.fixture(scope="module", params=contents())
def opened(html, browser, screen, request):
    """Every page on every screen, opened once for the tests that look at it."""
    page, troubles = _open(browser, (html / f"{request.param}.html").as_uri(), screen)
    yield page, troubles
    page.context.close()


def test_page_is_whole_without_internet(opened, screen):
    page, troubles = opened
    page_width = page.evaluate("() => document.documentElement.scrollWidth")
    assert not troubles
    assert not page.evaluate(EMPTY)
    assert page_width <= SCREENS[screen][0] + 1, "wider than the screen"  # 1 for rounding
    assert not page.evaluate(CLIPPED if screen.startswith("phone") else CUT)
    assert screen != "phone, light" or page.evaluate(SMALLEST) >= SHRUNK


# Contrast depends on the theme, nothing that axe looks at on the width.
@pytest.mark.parametrize("screen", ["desktop, light", "desktop, dark"], indirect=True)
def test_page_can_be_read_by_a_screen_reader(opened, screen):
    page, _ = opened
    # What stands outside the article is the theme's; the roles in the list of references, Sphinx's.
    exclude = [".citation-list"]
    # One style sheet colours all code: of the API, whose pages have thousands of words of it, the
    # page is read that shows, with the chapters, every kind of word, tracebacks among them.
    if "/api/" in page.url and not page.url.endswith("/data.html"):
        exclude += [".highlight", ".sig"]
    context = {"include": ["article"], "exclude": exclude}
    # Of what is right, axe would list a megabyte.
    options: dict[str, list[str]] = {"resultTypes": ["violations"]}
    if screen.endswith("dark"):
        options["runOnly"] = ["color-contrast", "link-in-text-block"]
    found = Axe().run(page, context=context, options=options).response["violations"]
    serious = [rule for rule in found if rule["impact"] in {"serious", "critical"}]
    assert not [(rule["id"], rule["nodes"][0]["html"][:200]) for rule in serious]


@pytest.mark.parametrize("name", ["02_concepts", "04_gig", "05_concept_evaluation"])
def test_a_slider_turns_the_pages_without_a_kernel(html, browser, name):
    page, troubles = _open(browser, (html / f"book/{name}.html").as_uri(), "desktop, light")
    slider = page.locator(".flipbook input").first
    slider.focus()
    names = page.evaluate("() => [...document.querySelectorAll('.flipbook')[0]"
                          ".querySelectorAll('img')].map((e) => e.alt)")  # fmt: skip
    shown = "() => [...document.querySelectorAll('.flipbook')[0].querySelectorAll('img')]"
    shown += ".filter((e) => e.offsetParent).map((e) => e.alt)"
    assert page.evaluate(shown) == names[:1]
    for stop in range(1, len(names)):
        page.keyboard.press("ArrowRight")
        assert page.evaluate(shown) == [names[stop]] == [slider.get_attribute("aria-valuetext")]
    assert len(names) >= 6 and not troubles
    page.context.close()


def test_figures_follow_the_theme(html, browser):
    for name in contents():
        if 'class="plotly-figure"' in (html / f"{name}.html").read_text(encoding="utf-8"):
            break
    else:
        pytest.skip("no page has a plotly figure")
    page, _ = _open(browser, (html / f"{name}.html").as_uri(), "desktop, light")
    colour = "() => document.querySelector('.plotly-figure')._fullLayout.font.color"
    light = page.evaluate(colour)
    page.evaluate("() => { document.documentElement.dataset.theme = 'dark' }")
    page.wait_for_function(f"(light) => ({colour})() !== light", arg=light, timeout=10_000)
    page.context.close()


def test_the_graph_can_be_explored(html, browser):
    page, troubles = _open(browser, (html / "book/07_concept_graph.html").as_uri(), "phone, dark")
    drawn = """() => document.querySelector('.gig-stage .plotly-figure').data
        .flatMap((t, i, all) => t.meta?.edges ? [[t.x.length, all[i + 1].x.length]] : [])
        .reduce((sum, [a, b]) => [sum[0] + a / 3, sum[1] + b / 3], [0, 0])"""
    every, faded = page.evaluate(drawn)
    assert every > 20 and not faded
    nodes = page.locator(".gig-stage > button:visible")
    concept = nodes.nth(0)
    concept.hover()
    title = concept.get_attribute("aria-label")
    card = page.locator(".gig-card")
    assert title in card.inner_text() and "relevance for" in card.inner_text()
    assert card.locator("img").evaluate("(image) => image.decode().then(() => image.naturalWidth)")
    concept.click()
    bright, faded = page.evaluate(drawn)
    assert bright + faded == every and bright < every
    concept.press("Escape")
    assert page.evaluate(drawn) == [every, 0]
    # One stop of the Tab key; the arrows go through a row and to the next one.
    assert nodes.evaluate_all("(all) => all.filter((e) => e.tabIndex === 0).length") == 1
    concept.focus()
    seen = [title]
    for key in ("ArrowRight", "ArrowUp", "ArrowDown", "ArrowLeft"):
        page.keyboard.press(key)
        seen.append(page.evaluate("() => document.activeElement.ariaLabel"))
        assert seen[-1] in card.inner_text() and seen[-1] != seen[-2]
    assert "opposes" in page.locator(".gig-legend").inner_text()
    assert page.locator(".modebar-btn").count() == 0
    page.evaluate("() => { document.documentElement.dataset.theme = 'light' }")
    page.get_by_label("weakest line").fill("0.5")
    assert 0 < page.evaluate(drawn)[0] < every
    page.context.close()
    assert not troubles


@pytest.mark.parametrize("chapter", chapters(), ids=lambda path: path.stem)
def test_a_chapter_is_not_mostly_code(html, browser, chapter):
    page, _ = _open(browser, (html / f"book/{chapter.stem}.html").as_uri(), "desktop, light")
    assert page.evaluate(SHARE) <= CODE_SHARE
    page.context.close()


def test_the_moving_picture_stands_still_for_who_asks(html, browser):
    page, _ = _open(browser, (html / "book/intro.html").as_uri(), "desktop, light")
    source = "() => document.querySelector('.moving img').currentSrc"
    # No address is there before the picture is chosen, which a busy machine does late.
    page.wait_for_function(source, timeout=10_000)
    moving = page.evaluate(source)
    page.emulate_media(reduced_motion="reduce")
    another = f"(moving) => !['', moving].includes(({source})())"
    page.wait_for_function(another, arg=moving, timeout=10_000)
    frames = [
        getattr(Image.open(Path(unquote(urlsplit(url).path))), "n_frames", 1)
        for url in (moving, page.evaluate(source))
    ]
    assert frames[0] >= 3 and frames[1] == 1
    page.context.close()


def test_a_chosen_answer_says_why(html, browser):
    page, _ = _open(browser, (html / "book/04_gig.html").as_uri(), "phone, dark")
    quiz = page.locator(".quiz").first
    answers, whys = quiz.locator("label"), quiz.locator(".why")
    assert not any(why.is_visible() for why in whys.all())
    for n, answer in enumerate(answers.all()):
        answer.click()
        assert [why.is_visible() for why in whys.all()] == [i == n for i in range(whys.count())]
    page.context.close()


def test_the_summary_is_one_sheet(html, browser):
    page, _ = _open(browser, (html / "book/summary.html").as_uri(), "paper")
    assert len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4"))) == 1
    page.context.close()


def test_formulas_and_references_are_rendered(html):
    raw = re.compile(r"\$[^$\n]{1,80}\$|\{(?:numref|doc|eq|term|cite|py:\w+)\}")
    found = {name: raw.findall(_prose(html / f"{name}.html").get_text(" ")) for name in contents()}
    assert not {name: some for name, some in found.items() if some}


def test_things_are_counted_in_whole_numbers(html):
    """Neither "83.00 concepts" in a sentence, nor 83.00 in a table's row or column of concepts."""
    broken = re.compile(rf"\d+\.\d+ (?:{'|'.join(THINGS)})\b")
    found = []
    for name in contents():
        article = _prose(html / f"{name}.html")
        found += broken.findall(article.get_text(" "))
        for row in article.select("tbody tr"):
            columns = [
                head.get_text(strip=True)
                for head in row.find_parent("table").select("thead tr:last-child th")
            ]
            cells = [cell.get_text(strip=True) for cell in row.find_all(["th", "td"])]
            of_row = row.th is not None and row.th.get_text(strip=True) in THINGS
            found += [
                f"{name}: {head} {cell}"
                for head, cell in zip(columns[-len(cells) :], cells, strict=False)
                if (of_row or head in THINGS) and re.fullmatch(r"-?\d+\.\d+", cell)
            ]
    assert not found


def test_internal_links_lead_somewhere(html):
    broken = []
    anchors: dict[Path, set[str]] = {}

    def names(path: Path) -> set[str]:
        if path not in anchors:
            soup = _soup(path)
            anchors[path] = {tag["id"] for tag in soup.find_all(id=True)} | {""}
        return anchors[path]

    for path in html.glob("**/*.html"):
        soup = _soup(path)
        for link in soup.find_all("a", href=True):
            url = urlsplit(link["href"])
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            exists = target.is_file()
            if not exists or (
                target.suffix == ".html" and unquote(url.fragment) not in names(target)
            ):
                broken.append(f"{path.relative_to(html)}: {link['href']}")
    assert not broken


def test_external_links_are_these(html):
    """The repository, Colab, arXiv. Whoever adds another link lists it, and has looked at it."""
    known = {address(), "https://colab.research.google.com", "https://arxiv.org/abs/"}
    found = set()
    for path in html.glob("**/*.html"):
        soup = _soup(path)
        found |= {link["href"] for link in soup.find_all("a", href=True)}
    outside = {link for link in found if urlsplit(link).scheme in {"http", "https"}}
    assert outside
    assert not [link for link in sorted(outside) if not link.startswith(tuple(known))]


def test_pages_are_light(html):
    heavy = {}
    for name in contents():
        path = html / f"{name}.html"
        soup = _soup(path)
        images = {
            (path.parent / image["src"]).resolve()
            for image in soup.find_all("img", src=True)
            if not image["src"].startswith("data:")  # a part of the page's own file
        }
        size = sum(file.stat().st_size for file in {path, *images} if file.is_file())
        if size > PAGE_BYTES or path.stat().st_size > HTML_BYTES:
            heavy[name] = path.stat().st_size, size
    assert not heavy
    assert len(list(html.glob("**/plotly*.min.js"))) == 1, "plotly once for the book"


def test_the_atlas_is_linked_and_light(html):
    links = {link["href"] for link in _soup(html / "book/intro.html").find_all("a", href=True)}
    assert "../atlas/index.html" in links
    files = [path for path in (html / "atlas").rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) < ATLAS_BYTES


def test_chapters_have_a_colab_button_to_the_one_address(html):
    for chapter in chapters():
        name = chapter.relative_to(ROOT).with_suffix(".html")
        repository = address().removeprefix("https://github.com/")
        wanted = (
            f"https://colab.research.google.com/github/{repository}/blob/main/book/{chapter.name}"
        )
        assert wanted in (html / name).read_text(encoding="utf-8")
