// Makes the plotly figure of plots.interactive_graph explorable: a card for the concept under the
// pointer or the keyboard's focus, a click that follows one concept, sliders for what is shown.
// Calling it again, after Plotly has drawn anew, keeps what the reader has chosen.
function exploreGraph(element) {
  const { nodes, threshold, columns, hint } = element.layout.meta.graph;
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
        .gig-graph { font-family: system-ui, sans-serif }
        .gig-graph > .gig-controls { display: flex; flex-wrap: wrap; gap: .3em 2em; font-size: .9em }
        .gig-graph > .gig-controls label { display: inline-flex; align-items: center; gap: .5em }
        .gig-graph > .gig-card { display: flex; flex-wrap: wrap; gap: 1em; min-height: 10em;
          padding: .5em 0; font-size: .85em; position: sticky; z-index: 3;
          top: var(--pst-header-height, 0); background: var(--pst-color-background, white) }
        .gig-graph > .gig-card img { height: 7.5em; margin: 0; background: white }
        .gig-graph > .gig-card p { margin: 0; flex: 1 1 20em; white-space: pre-line }
        .gig-graph > .gig-scroll { overflow-x: auto }
        .gig-graph .gig-stage { position: relative; min-width: ${columns * 46}px;
          height: ${element.layout.height}px }
        .gig-graph .gig-stage > button { position: absolute; transform: translate(-50%, -50%);
          padding: 0; background: none; border: 0; cursor: pointer }
        .gig-graph .gig-stage > button:is(:hover, :focus-visible, [aria-pressed=true]) {
          outline: 3px solid #D55E00 }`,
    });
    const controls = make("div", frame, { className: "gig-controls" });
    const card = make("div", frame, { className: "gig-card" });
    card.setAttribute("aria-live", "polite");
    make("p", card, { textContent: hint });
    const stage = make("div", make("div", frame, { className: "gig-scroll" }), {
      className: "gig-stage",
    });
    stage.append(element);
    const buttons = nodes.map((node, i) => {
      const button = make("button", stage, { type: "button" });
      button.setAttribute("aria-label", node.title);
      button.addEventListener("mouseenter", () => show(i));
      button.addEventListener("focus", () => show(i));
      button.addEventListener("click", () => focus(state.focus === i ? null : i));
      return button;
    });
    frame.addEventListener("keydown", (event) => event.key === "Escape" && focus(null));
    const weights = { min: 0.02, max: 1, step: 0.02, value: threshold };
    slider(controls, "weakest line", weights, (value) => (state.threshold = value));
    const counts = { min: 1, max: ranks(), step: 1, value: ranks() };
    slider(controls, "concepts a class and block", counts, (value) => (state.top = value));
    element.on("plotly_afterplot", place);
    return { card, buttons };
  }

  function show(i) {
    state.card.replaceChildren();
    const { title, lines, card } = nodes[i];
    if (card) make("img", state.card, { src: card, alt: `Nearest feature vectors of ${title}` });
    make("p", state.card, { textContent: [title, ...lines].join("\n") });
  }

  function focus(i) {
    state.focus = i;
    update();
  }

  function place() {
    const { xaxis, yaxis } = element._fullLayout;
    element.explored?.buttons.forEach((button, i) => {
      const { x, y, width, height } = nodes[i];
      button.style.left = `${xaxis._offset + xaxis.l2p(x)}px`;
      button.style.top = `${yaxis._offset + yaxis.l2p(y)}px`;
      button.style.width = `${xaxis.l2p(x + width) - xaxis.l2p(x)}px`;
      button.style.height = `${yaxis.l2p(y) - yaxis.l2p(y + height)}px`;
    });
  }

  // All nodes that lines lead to from `start`: forwards (from = 0, to = 1) or backwards.
  function reached(start, edges, from, to) {
    const found = new Set([start]);
    for (const node of found) {
      edges.forEach((edge) => edge[from] === node && found.add(edge[to]));
    }
    return found;
  }

  function update() {
    const there = nodes.map((node) => node.rank < state.top);
    const shown = (edge) => edge[2] >= state.threshold && there[edge[0]] && there[edge[1]];
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
    Plotly.update(element, { x: along("x"), y: along("y") }, { images }, solid.flatMap((i) => [i, i + 1]));
  }

  update();
  Plotly.Plots.resize(element);
}
