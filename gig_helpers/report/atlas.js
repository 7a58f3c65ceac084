"use strict";
// What all pages of an atlas share: data, pictures, the reader's names, the address.
// Text reaches a page by textContent alone, never as HTML.
const Atlas = (() => {
  const data = (window.atlasData ??= {});
  const about = data.index;
  const block = Object.fromEntries(about.blocks.map((each, n) => [each.name, { ...each, n }]));
  const className = Object.fromEntries(about.classes.map(([number, name]) => [number, name]));
  const drawers = [];

  function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in element && name !== "list") element[name] = value;
      else element.setAttribute(name, value);
    }
    element.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return element;
  }

  // A script, since a page that is a file may load no other file in another way.
  function load(name) {
    if (name in data) return Promise.resolve(data[name]);
    return new Promise((resolve, reject) => {
      const script = make("script", { src: `data/${encodeURIComponent(name)}.js` });
      script.onload = () => resolve(data[name]);
      script.onerror = () => reject(new Error(`data/${name}.js is missing: make the atlas again`));
      document.head.append(script);
    });
  }

  // One square of a sheet; `alt` says what it shows, "" that its neighbour does.
  function crop(slug, side, n, alt) {
    const at = n % side ** 2;
    const element = make("span", { className: "crop" });
    if (alt) {
      element.setAttribute("role", "img");
      element.setAttribute("aria-label", alt);
      element.title = alt;
    } else element.setAttribute("aria-hidden", "true");
    const place = (i) => `${(100 * i) / (side - 1)}%`;
    Object.assign(element.style, {
      backgroundImage: `url("sheets/${encodeURIComponent(slug)}-${Math.floor(n / side ** 2)}.webp")`,
      backgroundSize: `${100 * side}%`,
      backgroundPosition: `${place(at % side)} ${place(Math.floor(at / side))}`,
    });
    return element;
  }

  const ofBlock = (name, n, alt) => crop(block[name].slug, block[name].side, n, alt);
  const photograph = (n, alt = about.photographs[n][0]) => crop("photographs", about.album.side, n, alt);
  const face = (name, family, alt = "") => {
    const [first] = block[name].faces[family];
    return first === undefined ? make("span", { className: "crop" }) : ofBlock(name, first, alt);
  };

  // Names: those that the atlas was made with, and over them the reader's own, kept here.
  const key = `gig-atlas ${about.key}`;
  function kept(what, otherwise) {
    try {
      return JSON.parse(localStorage.getItem(`${key} ${what}`)) ?? otherwise;
    } catch {
      return otherwise; // a browser that keeps nothing for files
    }
  }
  function keep(what, value) {
    try {
      localStorage.setItem(`${key} ${what}`, JSON.stringify(value));
    } catch {
      // Then it lasts as long as the page.
    }
  }
  const names = { ...about.names, ...kept("names", {}) };
  const named = (name, family) => names[`${name}/${family}`] || "";
  const called = (name, family) => named(name, family) || block[name].suggested[family];
  function rename(name, family, text) {
    names[`${name}/${family}`] = text.trim();
    keep("names", names);
  }
  function takeNames(given) {
    const known = /^(.+)\/(\d+)$/;
    const right = ([node, text]) => typeof text === "string" && known.test(node)
      && Number(node.match(known)[2]) < (block[node.match(known)[1]]?.families ?? 0);
    const taken = Object.entries(given ?? {}).filter(right);
    for (const [node, text] of taken) names[node] = text;
    keep("names", names);
    return taken.length;
  }

  function save(name, content) {
    const text = `${JSON.stringify(content, null, 1)}\n`;
    const link = make("a", { download: name });
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  // The address behind #: what the page shows, so that a link leads there again.
  const asked = () => new URLSearchParams(location.hash.slice(1));
  const address = (page, wanted) => `${page}.html#${new URLSearchParams(wanted)}`;
  const familyPage = (name, family) => address(block[name].slug, { family });
  const classPage = (number) => address("class", { of: number });
  function go(wanted, replace = false) {
    const hash = `#${new URLSearchParams(wanted)}`;
    if (hash === location.hash) return;
    if (replace) history.replaceState(null, "", hash);
    else location.hash = hash;
  }

  const number = (value) => (value === null || value === undefined ? "–"
    : Number(value).toLocaleString("en-GB", { maximumSignificantDigits: 3 }));
  const signed = (value) => (value ? `${value < 0 ? "−" : "+"}${number(Math.abs(value))}` : "0");
  const plural = (count, what) => `${count.toLocaleString("en-GB")} ${what}${count === 1 ? "" : "s"}`;
  function relevance([mean, low, high]) {
    return low === null ? signed(mean) : `${signed(mean)} [${signed(low)}, ${signed(high)}]`;
  }
  // A family as a link with its picture, the name beside or below it.
  function familyLink(name, family, ...more) {
    const text = called(name, family);
    return make("a", { className: "family", href: familyPage(name, family) }, face(name, family),
      make("span", {}, `${name} · family ${family}`, text ? make("b", {}, text) : null, ...more));
  }
  function classLink(label, ...more) {
    return make("a", { href: classPage(label) }, className[label], ...more);
  }

  // A menu of classes that can be typed into.
  function classSearch(text, choose) {
    const options = make("datalist", { id: `classes-${drawers.length}-${Math.random()}` },
      about.classes.map(([, name]) => make("option", { value: name })));
    const input = make("input", { type: "search", autocomplete: "off", placeholder: "type a class" });
    input.setAttribute("list", options.id);
    input.addEventListener("change", () => {
      const wanted = input.value.trim().toLowerCase();
      const found = about.classes.find(([, name]) => name.toLowerCase() === wanted)
        ?? (wanted && about.classes.find(([, name]) => name.toLowerCase().includes(wanted)));
      if (found || !wanted) choose(found ? found[0] : null);
    });
    return make("label", {}, `${text} `, input, options);
  }

  function slider(text, range, change) {
    const output = make("output", {}, String(range.value));
    const input = make("input", { type: "range", ...range });
    input.addEventListener("input", () => {
      output.textContent = input.value;
      change(Number(input.value));
    });
    return make("label", {}, `${text} `, input, output);
  }

  function navigation() {
    const here = decodeURIComponent(location.pathname.split("/").pop());
    const link = (page, text) => {
      const made = make("a", { href: `${page}.html` }, text);
      if (here === `${page}.html`) made.setAttribute("aria-current", "page");
      return made;
    };
    document.getElementById("nav").append(link("index", "Atlas"),
      ...about.blocks.map((each) => link(each.slug, each.name)), link("test", "Test"));
  }

  // A page draws itself when it opens and when its address changes.
  function page(draw) {
    const run = () => Promise.resolve(draw(asked())).catch((error) => {
      document.getElementById("main").append(make("p", { role: "alert" }, error.message));
    });
    window.addEventListener("hashchange", run);
    navigation();
    run();
  }

  return {
    about, address, block, called, className, classLink, classPage, classSearch, crop, face,
    familyLink, familyPage, go, keep, kept, load, make, named, names, number, ofBlock, page,
    photograph, plural, relevance, rename, save, signed, slider, takeNames,
  };
})();
