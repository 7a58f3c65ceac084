"use strict";
// A class: its graph over the data set, to zoom, and the families that bring it, block by block.
// Families are sums of atoms, so a node that is opened into its halves is their sum exactly.
(() => {
  const { about, address, block, called, className, classSearch, face, familyLink, familyPage, go, load, make,
    ofBlock, page, photograph, plural, relevance, signed, slider } = Atlas;
  const main = document.getElementById("main");
  const title = main.querySelector("h1");
  const state = { classes: [], open: new Set(), at: null, top: 5, weakest: 0.1 };
  let graphs, stage, card, drawn;

  // What a graph is of: a class, by its number, or a photograph, "p" and its number in the album.
  const isPhotograph = (c) => String(c).startsWith("p");
  const nameOf = (c) => {
    const shot = about.photographs[String(c).slice(1)];
    return isPhotograph(c) ? `${className[shot[1]]} in ${shot[0]}` : className[c];
  };
  const known = (c) => (isPhotograph(c) ? String(c).slice(1) in about.photographs : c in className);
  const shots = (c) => graphs[c].photographs.slice(0, 8).map((n) => make("a", {
    href: address("class", { of: `p${n}` }), ariaLabel: `Graph of the photograph ${about.photographs[n][0]}`,
  }, photograph(n, "")));

  // A node is what a cut of the tree at `since` calls `label`; a family, cut at the block's level.
  const idOf = ({ name, label, since }) => `${name}/${label}@${since}`;
  const family = (name, label) => ({ name, label, since: block[name].families, family: label });
  function atomsOf({ name, label, since }) {
    const { tree, atoms } = block[name];
    if (!tree.length) return [label];
    return [...Array(atoms).keys()].filter((atom) => {
      let at = atom;
      while (at >= since) at = tree[at];
      return at === label;
    });
  }
  function halves(node) {
    const { tree } = block[node.name];
    const split = tree.findIndex((from, t) => t >= node.since && from === node.label);
    return split < 0 ? [] : [node.label, split].map((label) => ({ ...node, label, since: split + 1 }));
  }
  const title_ = ({ name, label, since, family: of }) => since === block[name].families
    ? `${name}, family ${of}` : `${name}, part ${label} of family ${of}`;

  // What a node brings to class c (column 0), or to its target j of the next block (column 1 + j).
  function brings(c, node, column = 0) {
    const { values } = graphs[c][node.name];
    return node.atoms.reduce((sum, atom) => sum + (values.get(atom)?.[column] ?? 0), 0);
  }

  function chosen(name) {
    const some = new Set(state.classes.flatMap((c) => {
      const { families, targets } = graphs[c][name];
      return [...families.slice(0, state.top).map(([f]) => f), ...targets.slice(0, state.top)];
    }));
    const nodes = [...some].map((f) => family(name, f)).map((node) => ({ ...node, atoms: atomsOf(node) }));
    const [a, b] = state.classes;
    const most = (c) => Math.max(1e-12, ...nodes.map((node) => brings(c, node)));
    const rank = (node) => brings(a, node) / most(a) - (b === undefined ? 0 : brings(b, node) / most(b));
    return nodes.sort((x, y) => rank(y) - rank(x));
  }

  const picture = (node) => {
    if (node.since === block[node.name].families) return face(node.name, node.label);
    const { atoms } = window.atlasData[block[node.name].slug];
    const strongest = [...node.atoms].sort((x, y) => brings(state.classes[0], { ...node, atoms: [y] })
      - brings(state.classes[0], { ...node, atoms: [x] }));
    const shown = strongest.find((atom) => atoms[atom][2] >= 0);
    return shown === undefined ? make("span", { className: "crop" }) : ofBlock(node.name, atoms[shown][2], "");
  };

  function button(node) {
    const id = idOf(node);
    const text = called(node.name, node.family);
    const made = make("button", { type: "button", tabIndex: -1, ariaPressed: "false" }, picture(node));
    made.setAttribute("aria-label", `${title_(node)}${text ? `, ${text}` : ""}: ${
      state.classes.map((c) => `${signed(brings(c, node))} for ${nameOf(c)}`).join(", ")}`);
    let before = null;
    made.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && select(id));
    made.addEventListener("focus", () => select(id));
    made.addEventListener("pointerdown", () => (before = state.at));
    // A finger's first touch selects, as the mouse's pointer and the keyboard's focus do.
    made.addEventListener("click", (event) => {
      if (event.detail === 0 || event.pointerType === "mouse" || before === id) open(node);
    });
    drawn.set(id, { node, element: made, button: made });
    return made;
  }

  function grown(node) {
    if (!state.open.has(idOf(node))) return button(node);
    const group = make("div", { className: "opened", role: "group", ariaLabel: `${title_(node)}, opened` },
      halves(node).map((half) => grown({ ...half, atoms: atomsOf(half) })));
    drawn.set(idOf(node), { node, element: group });
    return group;
  }

  async function open(node) {
    const parts = halves(node);
    if (!parts.length) return;
    await load(block[node.name].slug);
    state.open.add(idOf(node));
    state.at = idOf(parts[0]);
    draw();
    drawn.get(state.at).button.focus();
  }

  // A part's own family stands again, with all that was opened in it.
  function close({ name, family: of }) {
    const inside = (id) => id.startsWith(`${name}/`) && drawn.get(id)?.node.family === of;
    for (const id of [...state.open]) if (inside(id)) state.open.delete(id);
    state.at = idOf(family(name, of));
    draw();
    drawn.get(state.at)?.button.focus();
  }

  function draw() {
    drawn = new Map();
    const columns = about.blocks.map(({ name }) => make("div", { className: "column" },
      make("small", {}, name), make("div", { className: "nodes" }, chosen(name).map(grown))));
    const ends = state.classes.map((c) => {
      const made = make("button", { type: "button", tabIndex: -1, ariaPressed: "false" },
        photograph(graphs[c].photographs[0], ""));
      made.setAttribute("aria-label", `class ${nameOf(c)}`);
      drawn.set(`class/${c}`, { element: made, button: made });
      for (const come of ["focus", "click"]) made.addEventListener(come, () => select(`class/${c}`));
      return made;
    });
    columns.push(make("div", { className: "column" }, make("small", {}, "class"),
      make("div", { className: "nodes" }, ends)));
    stage.replaceChildren(document.createElementNS("http://www.w3.org/2000/svg", "svg"), ...columns);
    const shown = drawn.get(state.at)?.button ? state.at : null;
    select(shown, true);
    const buttons = [...stage.querySelectorAll("button")];
    (drawn.get(shown)?.button ?? buttons[0]).tabIndex = 0;
    requestAnimationFrame(lines);
  }

  function edges() {
    const all = [];
    const leaves = (name) => [...drawn.values()].filter((each) => each.button && each.node?.name === name);
    about.blocks.forEach(({ name }, n) => {
      const next = about.blocks[n + 1]?.name;
      const some = [];
      state.classes.forEach((c, of) => {
        const targets = next ? graphs[c][next].targets.map((f) => idOf(family(next, f))) : [`class/${c}`];
        targets.forEach((to, j) => {
          if (!drawn.has(to)) return;
          for (const { node } of leaves(name)) {
            const value = brings(c, node, next ? 1 + j : 0);
            if (value) some.push({ from: idOf(node), to, of, value });
          }
        });
      });
      const most = Math.max(...some.map(({ value }) => Math.abs(value)));
      all.push(...some.map((edge) => ({ ...edge, weight: Math.abs(edge.value) / most })));
    });
    return all;
  }

  function lines() {
    const svg = stage.querySelector("svg");
    if (!svg) return;
    Object.assign(svg.style, { width: `${stage.scrollWidth}px`, height: `${stage.scrollHeight}px` });
    const origin = stage.getBoundingClientRect();
    // On a phone blocks are rows, with the class on top.
    const rows = upright();
    const side = (id, leaving) => {
      const { left, right, top, bottom } = drawn.get(id).element.getBoundingClientRect();
      const x = rows ? (left + right) / 2 : leaving ? right : left;
      const y = !rows ? (top + bottom) / 2 : leaving ? top : bottom;
      return [x - origin.left + stage.scrollLeft, y - origin.top];
    };
    svg.replaceChildren(...edges().filter(({ weight }) => weight >= state.weakest)
      .sort((a, b) => a.weight - b.weight).map(({ from, to, of, value, weight }) => {
        const [[x1, y1], [x2, y2]] = [side(from, true), side(to, false)];
        const line = document.createElementNS(svg.namespaceURI, "line");
        const about_ = { x1, y1, x2, y2, "stroke-width": 0.5 + 4.5 * weight, class: `of-${of}`,
          ...(value < 0 ? { "stroke-dasharray": "5 4" } : {}) };
        for (const [key, text] of Object.entries(about_)) line.setAttribute(key, text);
        Object.assign(line.dataset, { from, to });
        return line;
      }));
    light();
  }

  function light() {
    const at = drawn.get(state.at)?.node;
    const ends = new Set([state.at, at && idOf(family(at.name, at.family))]);
    for (const line of stage.querySelectorAll("line")) {
      const { from, to } = line.dataset;
      line.classList.toggle("off", state.at !== null && from !== state.at && !ends.has(to));
    }
  }

  function select(id, again = false) {
    if (id === state.at && !again) return;
    state.at = id;
    for (const { button: made } of drawn.values()) made?.setAttribute("aria-pressed", "false");
    drawn.get(id)?.button?.setAttribute("aria-pressed", "true");
    remember();
    light();
    card.replaceChildren(...(id ? said(id) : [make("p", {}, "Point at a family, touch it, or reach the "
      + "graph with the Tab key and go on with the arrows, to see it here; click it, touch it again or "
      + "press Enter to open it into its two halves.")]));
  }

  function remember() {
    const [of, and] = state.classes;
    go({ of, ...(and === undefined ? {} : { and }), ...(state.open.size ? { open: [...state.open].join(" ") } : {}),
      ...(state.at ? { at: state.at } : {}) }, true);
  }

  function said(id) {
    const { node } = drawn.get(id);
    if (!node) {
      const c = id.split("/")[1];
      return [make("p", {}, make("b", {}, nameOf(c))), make("span", { className: "row" }, shots(c))];
    }
    const text = called(node.name, node.family);
    const crops = node.since === block[node.name].families
      ? block[node.name].faces[node.family].slice(0, 4).map((n) => ofBlock(node.name, n, "")) : [picture(node)];
    const way = (word, some, end) => some.length ? make("p", {}, `${word} `, some
      .sort((a, b) => Math.abs(b.value) - Math.abs(a.value)).slice(0, 3)
      .map((edge) => `${edge[end].replace(/@.*/, "").replace("/", " · ")} (${signed(edge.value)})`).join(", ")) : null;
    const all = edges();
    const into = idOf(family(node.name, node.family));
    const controls = [make("a", { className: "chip", href: familyPage(node.name, node.family) }, "its page →")];
    if (halves(node).length) {
      const more = make("button", { type: "button" }, "open");
      more.addEventListener("click", () => open(node));
      controls.push(more);
    }
    if (node.since !== block[node.name].families) {
      const less = make("button", { type: "button" }, "close its family");
      less.addEventListener("click", () => close(node));
      controls.push(less);
    }
    return [make("p", {}, make("b", {}, title_(node)), text ? ` “${text}”` : "", ` · ${
      plural(node.atoms.length, "atom")} · `, state.classes.map((c) =>
      `${signed(brings(c, node))} for ${nameOf(c)}`).join(", ")),
    make("div", { className: "controls" }, make("span", { className: "row" }, crops), ...controls),
    way("fed by", all.filter(({ to }) => to === into), "from"),
    way("feeds", all.filter(({ from }) => from === id), "to")].filter(Boolean);
  }

  const upright = () => getComputedStyle(stage).flexDirection !== "row";

  // Arrows go along a block, and to the nearest node of the next one.
  function step(event) {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const buttons = [...stage.querySelectorAll("button")];
    const here = buttons.indexOf(document.activeElement);
    if (event.key === "Escape") return select(null);
    if (!way || here < 0) return undefined;
    event.preventDefault();
    const centre = (e) => ((box) => [box.left + box.width / 2, box.top + box.height / 2])(e.getBoundingClientRect());
    const [x, y] = centre(buttons[here]);
    const own = buttons[here].closest(".column");
    const across = upright() ? way[1] : way[0];
    const ahead = (e) => ((c) => (c[0] - x) * way[0] + (c[1] - y) * way[1] > 5
      && (e.closest(".column") === own) === !across)(centre(e));
    const far = (e) => ((c) => Math.hypot((c[0] - x) * (way[0] ? 10 : 1),
      (c[1] - y) * (way[1] ? 10 : 1)))(centre(e));
    const next = buttons.filter(ahead).sort((a, b) => far(a) - far(b))[0];
    if (!next) return undefined;
    buttons.forEach((e) => (e.tabIndex = e === next ? 0 : -1));
    return next.focus();
  }

  function legend() {
    const line = (of, dash, width) => `<svg aria-hidden="true"><line class="of-${of}" x1="0" y1="50%" x2="100%"
      y2="50%" stroke-width="${width}" stroke-dasharray="${dash}"/></svg>`;
    const kinds = state.classes.map((c, of) => [of, "", 4, `brings, for ${nameOf(c)}`]);
    return make("div", { className: "legend" }, [...kinds, [0, "5 4", 2, "takes"]].map(([of, dash, width, text]) =>
      make("span", { innerHTML: line(of, dash, width) }, text)));
  }

  function lists(c) {
    const { photographs } = graphs[c];
    const item = (name) => ([f, ...about_]) => make("li", {}, familyLink(name, f, make("small", {},
      `${relevance(about_)}, in ${about_[3]} of ${plural(photographs.length, "photograph")}`)));
    return about.blocks.map(({ name }) => {
      const { families } = graphs[c][name];
      const more = families.length > 5 ? make("details", {}, make("summary", { className: "chip" },
        `${families.length - 5} more`), make("ol", { className: "plain", start: 6 }, families.slice(5).map(item(name)))) : null;
      return make("section", {}, make("h3", {}, make("a", { href: address(block[name].slug, { class: c }) }, name)), families.length
        ? make("ol", { className: "plain" }, families.slice(0, 5).map(item(name)))
        : make("p", {}, "None brings it."), more);
    }).reverse();
  }

  // The address stays the graph's.
  function jump(event) {
    event.preventDefault();
    document.getElementById(event.currentTarget.getAttribute("href").slice(1)).scrollIntoView();
  }

  async function taken(c) {
    const { photographs, blocks } = await load(isPhotograph(c) ? `photograph-${c.slice(1)}` : `class-${c}`);
    const made = Object.entries(blocks).map(([name, { atoms, ...rest }]) =>
      [name, { ...rest, values: new Map(atoms.map(([atom, ...values]) => [atom, values])) }]);
    return [c, { photographs, ...Object.fromEntries(made) }];
  }

  addEventListener("resize", () => stage && requestAnimationFrame(lines));
  page(async (hash) => {
    state.classes = [...new Set([hash.get("of"), hash.get("and")].filter((c) => c && known(c)))];
    const pick = classSearch("class", (c) => c !== null && go({ of: c }));
    if (!state.classes.length) {
      main.replaceChildren(title, make("p", {}, "Which class? ", make("a", { href: "index.html" }, "See all.")), pick);
      return;
    }
    graphs = Object.fromEntries(await Promise.all(state.classes.map(taken)));
    state.open = new Set((hash.get("open") ?? "").split(" ").filter(Boolean));
    await Promise.all([...state.open].map((id) => load(block[id.replace(/\/[^/]*$/, "")].slug)));
    state.at = hash.get("at");
    const names = state.classes.map((c) => nameOf(c));
    title.textContent = `What ${names.join(" and ")} rest${names.length === 1 ? "s" : ""} on`;
    document.title = title.textContent;
    const [first] = state.classes;
    const other = classSearch("compare with", (c) => go(c === null || String(c) === first ? { of: first } : { of: first, and: c }));
    stage = make("div", { className: "stage", role: "group", ariaLabel: "Graph of families" });
    stage.addEventListener("keydown", step);
    card = make("div", { className: "about" });
    const controls = make("div", { className: "controls" },
      slider("families per class and block", { min: 1, max: 12, step: 1, value: state.top }, (value) => {
        state.top = value;
        draw();
      }), slider("weakest line", { min: 0.02, max: 1, step: 0.02, value: state.weakest }, (value) => {
        state.weakest = value;
        lines();
      }));
    const photographs = make("span", { className: "row" }, state.classes.flatMap(shots));
    const gap = Math.max(...state.classes.flatMap((c) => about.blocks.map(({ name }) => graphs[c][name].gap)));
    main.replaceChildren(title, make("div", { className: "controls" }, pick, other), photographs,
      make("section", {}, make("h2", {}, "Its graph over the data set"),
        make("p", {}, "From the pixels' side to the class, in each block the family that brings most first. ",
          ...state.classes.map((c) => make("a", { className: "chip", href: `#list-${c}`, onclick: jump },
            `As a list: ${nameOf(c)}`))), controls, legend(), card, stage,
        make("small", {}, "Values are means over the class's photographs: relevance for the class (eq. 7), on "
          + "lines GIG (eq. 5). Lines lead to the families whose inputs were asked for, the strongest of each "
          + `class and block. Attributions miss at most ${(100 * gap).toFixed(0)} % of the class's change in a mean.`)),
      ...state.classes.map((c) => make("section", { id: `list-${c}` }, make("h2", {}, `Families that bring ${nameOf(c)}, most first`),
        make("div", { className: "sides" }, lists(c)))));
    draw();
  });
})();
