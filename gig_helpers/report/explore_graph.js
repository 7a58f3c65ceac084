// Makes the plotly figure of interactive_graph explorable: a card for the concept under the
// pointer or the keyboard's focus, a click that follows one concept, sliders for what is shown.
// The graph is one stop of the Tab key; arrows go from concept to concept.
// Calling it again, after Plotly has drawn anew, keeps what the reader has chosen.
function exploreGraph(element) {
  const { nodes, threshold, columns, legend } = element.layout.meta.graph;
  const hint = "Point at a concept, tap it, or reach the graph with the Tab key and go on with the "
    + "arrows, to see its card here. Click it, or press Enter, to follow it; Escape shows all again.";
  const kinds = [["supports, strongly", 4.5, ""], ["supports, weakly", 1.5, ""], ["opposes", 2.5, "6 4"]];
  const solid = element.data.flatMap((trace, i) => (trace.meta?.edges ? [i] : []));
  const state = (element.explored ??= { ...build(), threshold, top: ranks(), focus: null });

  function ranks() {
    return 1 + Math.max(...nodes.map((node) => node.rank));
  }

  function make(tag, parent, properties) {
    const made = Object.assign(document.createElement(tag), properties);
    parent.append(made);
    return made;
  }

  function slider(parent, text, range, change) {
    const label = make("label", parent, { textContent: `${text} ` });
    const input = make("input", label, { type: "range", ...range });
    const shown = make("output", label, { textContent: input.value });
    input.addEventListener("input", () => {
      shown.textContent = input.value;
      change(Number(input.value));
      update();
    });
  }

  function build() {
    const frame = document.createElement("div");
    frame.className = "gig-graph";
    element.before(frame);
    make("style", frame, {
      textContent: `
        .gig-graph { font-family: system-ui, sans-serif; font-size: .9rem; text-align: left }
        .gig-graph > p { margin: .5em 0 }
        .gig-graph > .gig-controls { display: flex; flex-wrap: wrap; gap: .3em 2em }
        .gig-graph > .gig-controls label { display: inline-flex; align-items: center; gap: .5em }
        .gig-graph > .gig-scroll { overflow-x: auto }
        .gig-graph .gig-stage { position: relative; min-width: ${columns * 46}px;
          height: ${element.layout.height}px }
        .gig-graph > .gig-legend { display: flex; flex-wrap: wrap; gap: .2em 1.5em }
        .gig-graph .gig-legend svg { width: 3em; height: .8em; margin-right: .4em }
        .gig-graph .gig-card { position: sticky; top: var(--pst-header-height, 0); z-index: 3;
          min-height: 8.6em; padding: .5em; display: flex; flex-wrap: wrap; gap: .2em 1em;
          box-sizing: border-box; border: 1px solid grey; border-radius: .3em; font-size: .8rem;
          color: var(--pst-color-text-base, black); background: var(--pst-color-background, white) }
        .gig-graph .gig-card div { display: flex; align-items: start; gap: .4em; max-width: 100% }
        .gig-graph .gig-card img { width: 6.5em; min-width: 0; margin: 0; background: white }
        .gig-graph .gig-card p { margin: 0; flex: 1 1 14em; white-space: pre-line;
          overflow-wrap: anywhere }
        .gig-graph .gig-stage > button { position: absolute; transform: translate(-50%, -50%);
          padding: 0; background: none; border: 0; cursor: pointer }
        .gig-graph .gig-stage > button:is(:hover, :focus-visible, [aria-pressed=true]) {
          outline: 3px solid #D55E00 }
        .gig-graph .gig-stage > button:not([data-number=""])::after { content: attr(data-number);
          position: absolute; left: 0; bottom: 0; padding: 0 .2em; font-size: .65rem;
          color: black; background: rgb(255 255 255 / 85%) }
        @media (max-width: 600px) { .gig-graph .gig-stage > button::after { display: none } }`,
    });
    const controls = make("div", frame, { className: "gig-controls" });
    const key = make("div", frame, { className: "gig-legend" });
    for (const [text, width, dash] of kinds) {
      const line = `<line x1="0" y1="50%" x2="100%" y2="50%" stroke-width="${width}"
        stroke-dasharray="${dash}"/>`;
      make("span", key, { innerHTML: `<svg aria-hidden="true">${line}</svg>` }).append(text);
    }
    const card = make("div", frame, { className: "gig-card" });
    make("p", card, { textContent: hint });
    card.setAttribute("aria-live", "polite");
    const scroll = make("div", frame, { className: "gig-scroll" });
    const stage = make("div", scroll, { className: "gig-stage" });
    stage.append(element);
    const buttons = nodes.map((node, i) => {
      const button = make("button", stage, { type: "button", tabIndex: i ? -1 : 0 });
      button.setAttribute("aria-label", node.title);
      button.dataset.number = node.number;
      for (const come of ["mouseenter", "focus"]) button.addEventListener(come, () => show(i));
      button.addEventListener("click", () => focus(state.focus === i ? null : i));
      button.addEventListener("keydown", (event) => step(event, i));
      return button;
    });
    frame.addEventListener("keydown", (event) => event.key === "Escape" && focus(null));
    const weights = { min: 0.02, max: 1, step: 0.02, value: threshold };
    slider(controls, "weakest line", weights, (value) => (state.threshold = value));
    const counts = { min: 1, max: ranks(), step: 1, value: ranks() };
    slider(controls, "concepts per class and block", counts, (value) => (state.top = value));
    element.on("plotly_afterplot", place);
    return { card, buttons, key: [...key.querySelectorAll("line")] };
  }

  function show(i) {
    const { title, lines, card } = nodes[i];
    state.card.replaceChildren();
    const near = make("div", state.card, {});
    for (const [src, alt] of card) make("img", near, { src, alt });
    make("p", state.card, { textContent: [title, ...lines].join("\n") });
  }

  // An arrow key goes to the next concept of the row, or to the nearest one of the next row.
  function step(event, i) {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    const [x, y] = way[event.key] ?? [0, 0];
    if (!x && !y) return;
    event.preventDefault();
    const ahead = (node) => (x ? node.y === nodes[i].y && (node.x - nodes[i].x) * x > 0
      : (node.y - nodes[i].y) * y > 0);
    const far = (node) => Math.hypot(node.x - nodes[i].x, 100 * (node.y - nodes[i].y));
    const there = nodes.filter((node, j) => ahead(node) && !state.buttons[j].hidden);
    const next = there.sort((a, b) => far(a) - far(b))[0];
    if (next) {
      const button = state.buttons[nodes.indexOf(next)];
      state.buttons.forEach((other) => (other.tabIndex = other === button ? 0 : -1));
      button.focus();
    }
  }

  function focus(i) {
    state.focus = i;
    update();
  }

  function place() {
    const { xaxis, yaxis } = element._fullLayout;
    element.explored?.buttons.forEach((button, i) => {
      const { x, y, side } = nodes[i];
      button.style.left = `${xaxis._offset + xaxis.l2p(x)}px`;
      button.style.top = `${yaxis._offset + yaxis.l2p(y)}px`;
      // Plotly keeps a picture's shape, a square.
      const wide = xaxis.l2p(x + side) - xaxis.l2p(x);
      const edge = `${Math.min(wide, yaxis.l2p(y) - yaxis.l2p(y + side))}px`;
      Object.assign(button.style, { width: edge, height: edge });
    });
  }

  // All nodes that lines lead to from `start`: forwards (from = 0, to = 1) or backwards.
  function reached(start, edges, from, to) {
    const reach = new Set([start]);
    for (const node of reach) {
      edges.forEach((edge) => edge[from] === node && reach.add(edge[to]));
    }
    return reach;
  }

  function update() {
    const there = nodes.map((node) => node.rank < state.top);
    const strong = (edge) => edge[2] >= state.threshold || !nodes[edge[1]].card.length;  // to a class
    const shown = (edge) => strong(edge) && there[edge[0]] && there[edge[1]];
    const edges = solid.flatMap((i) => element.data[i].meta.edges).filter(shown);
    const lines = state.focus === null || !there[state.focus]
      ? [new Set(nodes.keys())]
      : [reached(state.focus, edges, 0, 1), reached(state.focus, edges, 1, 0)];
    const bright = ([from, to]) => lines.some((line) => line.has(from) && line.has(to));
    const split = solid.flatMap((i) => {
      const visible = element.data[i].meta.edges.filter(shown);
      return [visible.filter(bright), visible.filter((edge) => !bright(edge))];
    });
    const along = (axis) =>
      split.map((some) => some.flatMap(([from, to]) => [nodes[from][axis], nodes[to][axis], null]));
    const images = element.layout.images.map((image, i) => ({
      ...image,
      visible: there[i],
      opacity: lines.some((line) => line.has(i)) ? 1 : 0.15,
    }));
    state.buttons.forEach((button, i) => {
      button.hidden = !there[i];
      button.setAttribute("aria-pressed", state.focus === i);
    });
    const dark = Number(document.documentElement.dataset.theme === "dark");
    state.key.forEach((line, n) => line.setAttribute("stroke", legend[n][dark]));
    const colours = solid.flatMap((i) => Array(2).fill(element.data[i].meta.colours[dark]));
    const change = { x: along("x"), y: along("y"), "line.color": colours };
    Plotly.update(element, change, { images }, solid.flatMap((i) => [i, i + 1]));
  }

  update();
  Plotly.Plots.resize(element);
}
