"use strict";
// A block: its families and atoms as cards or on a map, and one family.
(() => {
  const { about, address, block, called, className, classLink, classSearch, face, familyLink,
    familyPage, go, load, make, named, number, ofBlock, page, photograph, plural, relevance, rename,
    signed, slider } = Atlas;
  const here = block[document.body.dataset.block];
  const main = document.getElementById("main");
  const title = main.querySelector("h1");
  const shown = { order: "use", class: null, least: 1, back: false, text: "", zoom: 1 };
  const HOLDS = 0.6; // Hennig (2007): a pattern is found again with this Jaccard index
  let families, atoms, origin, list;

  const orders = {
    use: ["photographs that use it", (f) => -families[f].uses],
    class: ["relevance for the class", (f) => -(ofClass(f, shown.class)?.[1] ?? -Infinity)],
    back: ["how much it comes back", (f) => -(families[f].back ?? -1)],
    entropy: ["classes, the fewest first", (f) => families[f].entropy ?? Infinity],
    pfvs: ["PFVs", (f) => -families[f].pfvs],
  };
  const ofClass = (f, label) => families[f].classes.find(([number]) => number === label);
  const from = (n) => about.photographs[origin[n]];
  const alt = (n) => `${className[from(n)[1]]}, ${from(n)[0]}`;

  function wanted() {
    const text = shown.text.toLowerCase();
    const says = (f) => [named(here.name, f), families[f].suggested, `family ${f}`,
      ...families[f].classes.filter(([, mean]) => mean > 0).map(([label]) => className[label])];
    const key = orders[shown.order === "class" && shown.class === null ? "use" : shown.order][1];
    return [...families.keys()].filter((f) =>
      families[f].photographs >= shown.least
      && (!shown.back || families[f].back >= HOLDS)
      && (shown.class === null || ofClass(f, shown.class)?.[1] > 0)
      && (!text || says(f).some((said) => said.toLowerCase().includes(text))),
    ).sort((a, b) => key(a) - key(b) || a - b);
  }

  function familyCard(f) {
    const { photographs, crops, classes } = families[f];
    const own = shown.class === null ? classes[0] : ofClass(f, shown.class);
    const text = called(here.name, f);
    return make("a", { className: "card", href: familyPage(here.name, f) },
      make("span", { className: "row" }, crops.nearest.slice(0, 3).map((n) => ofBlock(here.name, n, ""))),
      make("b", {}, text || `family ${f}`), `family ${f} · ${plural(photographs, "photograph")}`,
      make("br"), own ? `${signed(own[1])} ${className[own[0]]}` : "in no class's photographs");
  }

  function atomCard(atom) {
    const [family, pfvs, crop] = atoms[atom];
    return make("a", { className: "card atom", href: familyPage(here.name, family) },
      crop < 0 ? null : ofBlock(here.name, crop, ""), make("b", {}, `atom ${atom}`),
      `of family ${family}`, make("br"), plural(pfvs, "PFV"));
  }

  // Chunks of some rows, of known height: what they hold is made when they come near.
  function cards(items, card, narrow, high) {
    const columns = Math.max(2, Math.floor((main.clientWidth - 32) / narrow));
    const size = columns * 4;
    const near = new IntersectionObserver((seen) => {
      for (const { isIntersecting, target } of seen) {
        if (isIntersecting && !target.childElementCount) target.append(...target.items.map(card));
      }
    }, { rootMargin: "1200px" });
    const made = make("div", { className: "cards" });
    made.style.setProperty("--columns", columns);
    made.style.setProperty("--high", `${high}px`);
    for (let start = 0; start < items.length; start += size) {
      const chunk = make("div", { className: "chunk" });
      chunk.items = items.slice(start, start + size);
      const tall = Math.ceil(chunk.items.length / columns) * (high + 8) - 8;
      Object.assign(chunk.style, { minHeight: `${tall}px`, containIntrinsicSize: `auto ${tall}px` });
      made.append(chunk);
      near.observe(chunk);
    }
    if (!items.length) made.append(make("p", {}, "Nothing here: loosen a filter."));
    return made;
  }

  function map(items) {
    const ground = make("div");
    const place = () => Object.assign(ground.style,
      { width: `calc(${100 * shown.zoom}% - 4rem)`, height: `calc(${100 * shown.zoom}% - 4rem)` });
    place();
    ground.append(...items.map((f) => {
      const [x, y] = families[f].place;
      const text = called(here.name, f);
      const link = make("a", { href: familyPage(here.name, f), title: text || `family ${f}` }, face(here.name, f));
      link.setAttribute("aria-label", `family ${f} ${text}`);
      Object.assign(link.style, { left: `${100 * x}%`, top: `${100 * y}%` });
      return link;
    }));
    const zoom = slider("zoom", { min: 1, max: 8, step: 1, value: shown.zoom }, (value) => {
      shown.zoom = value;
      place();
    });
    return make("div", {}, zoom, make("small", {}, "Near each other: of about the same direction, as "
      + "far as the two principal components of their directions can say it."),
    make("div", { className: "map", tabIndex: 0, role: "group", ariaLabel: "Map of families" }, ground));
  }

  function refresh(view) {
    const some = wanted();
    const chosen = new Set(some);
    const kinds = {
      families: () => cards(some, familyCard, 190, 150),
      atoms: () => cards([...atoms.keys()].filter((a) => chosen.has(atoms[a][0])), atomCard, 112, 162),
      map: () => map(some),
    };
    list.said.textContent = `${some.length} of ${families.length} families`;
    list.body.replaceChildren(kinds[view]());
  }

  function overview(hash) {
    const view = ["atoms", "map"].find((each) => each === hash.get("view")) ?? "families";
    if (hash.get("class")) [shown.class, shown.order] = [Number(hash.get("class")), "class"];
    title.textContent = `Concepts of ${here.name}`;
    document.title = title.textContent;
    list = { said: make("span", { role: "status" }), body: make("div") };
    const again = () => refresh(view);
    const views = ["families", "atoms", "map"].map((each) => {
      const button = make("button", { type: "button", ariaPressed: String(each === view) }, each);
      button.addEventListener("click", () => go({ view: each }));
      return button;
    });
    const order = make("select", {}, Object.entries(orders).map(([value, [text]]) =>
      make("option", { value, selected: value === shown.order }, text)));
    order.addEventListener("change", () => ((shown.order = order.value), again()));
    const text = make("input", { type: "search", placeholder: "a class or a name", value: shown.text });
    text.addEventListener("input", () => ((shown.text = text.value), again()));
    const of = classSearch("of class", (label) => {
      shown.class = label;
      if (label !== null) order.value = shown.order = "class";
      again();
    });
    if (shown.class !== null) of.querySelector("input").value = className[shown.class] ?? "";
    const most = Math.max(1, ...families.map(({ photographs }) => photographs));
    const least = slider("photographs, at least", { min: 1, max: most, step: 1, value: shown.least },
      (value) => ((shown.least = value), again()));
    const back = make("input", { type: "checkbox", checked: shown.back });
    back.addEventListener("change", () => ((shown.back = back.checked), again()));
    main.replaceChildren(title, make("div", { className: "controls" }, ...views),
      make("div", { className: "controls" }, make("label", {}, "find ", text), of,
        make("label", {}, "order by ", order), least,
        make("label", {}, back, `comes back (${HOLDS} or more)`)), list.said, list.body);
    again();
  }

  function members(crops) {
    const kind = (name) => make("div", {}, make("h3", {}, name), make("span", { className: "row" },
      crops[name].map((n) => ofBlock(here.name, n, alt(n)))));
    return make("section", {}, make("h2", {}, "Members"), make("div", { className: "members" },
      kind("nearest"), kind("median"), kind("random")));
  }

  // Red brings, blue takes; where the family brings nothing the photograph is bare.
  function place([n, value, rows]) {
    const frame = make("span", { className: "place" }, photograph(n));
    if (rows.length) {
      const canvas = make("canvas", { width: rows[0].length, height: rows.length });
      canvas.setAttribute("aria-hidden", "true");
      const pen = canvas.getContext("2d");
      rows.forEach((row, y) => [...row].forEach((digit, x) => {
        const level = (parseInt(digit, 36) - 18) / 17;
        pen.fillStyle = level > 0 ? `rgb(214 39 40 / ${0.85 * level})` : `rgb(31 90 200 / ${-0.85 * level})`;
        pen.fillRect(x, y, 1, 1);
      }));
      frame.append(canvas);
    }
    const [name, label] = about.photographs[n];
    return make("figure", {}, make("a", { href: address("class", { of: `p${n}` }), ariaLabel: `Graph of ${name}` },
      frame), make("figcaption", {}, classLink(label), make("small", {}, `${name}: ${signed(value)}`)));
  }

  function table(f) {
    const line = ([label, ...values]) => make("tr", {}, make("td", {}, classLink(label)),
      make("td", {}, relevance(values)), make("td", {}, `${values[3]} of ${
        about.classes.find(([number]) => number === label)[2].length}`));
    const { classes } = families[f];
    const head = ["class", "mean relevance (logits) [95 %]", "photographs that use it"];
    return make("div", { className: "scroll", tabIndex: 0, role: "group", ariaLabel: "Classes" }, make("table", {},
      make("thead", {}, make("tr", {}, head.map((text) => make("th", { scope: "col" }, text)))),
      make("tbody", {}, classes.slice(0, 12).map(line))));
  }

  function edges(f, way) {
    const other = about.blocks[here.n + (way === "from" ? -1 : 1)];
    const labels = Object.keys(families[f][way]);
    if (!other || !labels.length) return null;
    const first = families[f].classes.map(([label]) => String(label)).find((label) => labels.includes(label));
    const body = make("ol", { className: "plain" });
    const choice = make("select", {}, labels.map((label) => make("option",
      { value: label, selected: label === first }, className[label])));
    const draw = () => body.replaceChildren(...[...families[f][way][choice.value]]
      .sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, 8).map(([g, value]) =>
        make("li", {}, familyLink(other.name, g, make("small", {}, `mean GIG ${signed(value)}`)))));
    choice.addEventListener("change", draw);
    draw();
    return make("div", {}, make("h3", {}, way === "from" ? "What feeds it" : "What it feeds"),
      make("label", {}, "over photographs of ", choice), body);
  }

  function kin(f) {
    const { tree } = here;
    const atomsOf = [...atoms.keys()].filter((atom) => atoms[atom][0] === f);
    // At the first split of the family, of which the second half has the split's own number.
    const split = tree.findIndex((from_, t) => t >= here.families && from_ === f);
    const under = (atom) => {
      let at = atom;
      while (at > split) at = tree[at];
      return at;
    };
    const parent = here.tree.length && f ? here.tree[f] : null;
    return make("section", {}, make("h2", {}, "In the tree"),
      parent === null ? null : make("p", {}, `Split ${f} of the clustering parted it from:`),
      parent === null ? null : familyLink(here.name, parent),
      split < 0 ? make("p", {}, "It is one atom, with no parts.")
        : make("p", {}, `Its ${plural(atomsOf.length, "atom")}, as its first split parts them:`),
      split < 0 ? null : make("div", { className: "members" }, [f, split].map((half) =>
        make("div", {}, make("h3", {}, `part ${half}`), make("span", { className: "row" },
          atomsOf.filter((atom) => under(atom) === half && atoms[atom][2] >= 0).slice(0, 30).map((atom) =>
            ofBlock(here.name, atoms[atom][2], `atom ${atom}, ${plural(atoms[atom][1], "PFV")}`)))))));
  }

  function one(f) {
    const { pfvs, photographs, back, entropy, uses, suggested, crops, where } = families[f];
    title.textContent = `${here.name}, family ${f}`;
    document.title = title.textContent;
    const name = make("input", { value: named(here.name, f), placeholder: suggested, maxLength: 80 });
    name.addEventListener("input", () => rename(here.name, f, name.value));
    const facts = { PFVs: pfvs, "photographs they are from": photographs,
      "photographs that use it": `${uses} of ${about.photographs.length}`,
      "comes back": back === null ? "–" : `${number(back)} of 1`,
      "entropy of classes": entropy === null ? "–" : `${number(entropy)} bits` };
    const sides = [edges(f, "from"), edges(f, "to")].filter(Boolean);
    main.replaceChildren(title,
      make("p", { className: "controls" }, make("a", { className: "chip", href: address(here.slug, {}) },
        `← all of ${here.name}`), make("label", {}, "your name for it ", name),
      suggested ? make("span", {}, `by rule: ${suggested}`) : null),
      members(crops),
      make("section", {}, make("h2", {}, "Photographs that it brings most to, and where"),
        make("p", {}, "Red brings the photograph's class, blue takes from it."),
        make("div", { className: "places" }, where.map(place))),
      make("section", {}, make("h2", {}, "Classes"), table(f)),
      make("dl", { className: "numbers" }, Object.entries(facts).map(([what, value]) =>
        make("div", {}, make("dt", {}, what), make("dd", {}, String(value))))),
      make("section", {}, make("h2", {}, "Edges"), sides.length
        ? make("div", { className: "sides" }, sides)
        : make("p", {}, "It is among the strongest of no class here, so no edges were asked for.")),
      kin(f));
    scrollTo(0, 0);
  }

  let wide = innerWidth;
  addEventListener("resize", () => {
    if (wide !== innerWidth && list?.body.isConnected) overview(new URLSearchParams(location.hash.slice(1)));
    wide = innerWidth;
  });
  page(async (hash) => {
    ({ families, atoms, crops: origin } = await load(here.slug));
    const f = hash.has("family") ? Number(hash.get("family")) : null;
    if (f !== null && families[f]) one(f);
    else overview(hash);
  });
})();
