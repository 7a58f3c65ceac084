// Makes the plotly figure of interactive_graph explorable: a card for the concept under the
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
        .gig-graph { font-family: system-ui, sans-serif; font-size: .9rem; text-align: left }
        .gig-graph > p { margin: .5em 0 }
        .gig-graph > .gig-controls { display: flex; flex-wrap: wrap; gap: .3em 2em }
        .gig-graph > .gig-controls label { display: inline-flex; align-items: center; gap: .5em }
        .gig-graph > .gig-scroll { overflow-x: auto }
        .gig-graph .gig-stage { position: relative; min-width: ${columns * 46}px;
          height: ${element.layout.height}px }
        .gig-graph .gig-card { position: absolute; z-index: 3; pointer-events: none; padding: .6em;
          box-sizing: border-box; border: 1px solid grey; border-radius: .3em; font-size: .8rem;
          color: var(--pst-color-text-base, black); background: var(--pst-color-background, white) }
        .gig-graph .gig-card img { height: 6.5em; max-width: 100%; margin: 0; background: white }
        .gig-graph .gig-card p { margin: 0; white-space: pre-line; overflow-wrap: anywhere }
        .gig-graph .gig-stage > button { position: absolute; transform: translate(-50%, -50%);
          padding: 0; background: none; border: 0; cursor: pointer }
        .gig-graph .gig-stage > button:is(:hover, :focus-visible, [aria-pressed=true]) {
          outline: 3px solid #D55E00 }`,
    });
    const controls = make("div", frame, { className: "gig-controls" });
    make("p", frame, { textContent: hint });
    const scroll = make("div", frame, { className: "gig-scroll" });
    const stage = make("div", scroll, { className: "gig-stage" });
    stage.append(element);
    const buttons = nodes.map((node, i) => {
      const button = make("button", stage, { type: "button" });
      button.setAttribute("aria-label", node.title);
      for (const come of ["mouseenter", "focus"]) button.addEventListener(come, () => show(i));
      for (const go of ["mouseleave", "blur"]) button.addEventListener(go, hide);
      button.addEventListener("click", () => focus(state.focus === i ? null : i));
      return button;
    });
    const card = make("div", stage, { className: "gig-card", hidden: true });
    card.setAttribute("aria-live", "polite");
    frame.addEventListener("keydown", (event) => event.key === "Escape" && focus(null));
    const weights = { min: 0.02, max: 1, step: 0.02, value: threshold };
    slider(controls, "weakest line", weights, (value) => (state.threshold = value));
    const counts = { min: 1, max: ranks(), step: 1, value: ranks() };
    slider(controls, "concepts a class and block", counts, (value) => (state.top = value));
    element.on("plotly_afterplot", place);
    return { card, buttons, scroll };
  }

  // The card hangs below its node, or stands above it in the lower half, within what is in view.
  function show(i) {
    const { card, buttons, scroll } = state;
    const { title, lines, card: source } = nodes[i];
    card.replaceChildren();
    if (source) make("img", card, { src: source, alt: `Nearest feature vectors of ${title}` });
    make("p", card, { textContent: [title, ...lines].join("\n") });
    const { offsetLeft, offsetTop, offsetHeight } = buttons[i];
    const height = scroll.clientHeight;
    const width = Math.min(440, scroll.clientWidth);
    const last = scroll.scrollLeft + scroll.clientWidth - width;
    const below = offsetTop < height / 2;
    Object.assign(card.style, {
      width: `${width}px`,
      left: `${Math.max(scroll.scrollLeft, Math.min(offsetLeft - width / 2, last))}px`,
      top: below ? `${offsetTop + offsetHeight / 2 + 8}px` : "auto",
      bottom: below ? "auto" : `${height - offsetTop + offsetHeight / 2 + 8}px`,
    });
    card.hidden = false;
  }

  function hide() {
    state.card.hidden = true;
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
      const wide = xaxis.l2p(x + width) - xaxis.l2p(x);
      button.style.width = `${wide}px`;
      // Plotly keeps a picture's shape; a concept's is 3 : 2.
      button.style.height = `${Math.min(wide / 1.5, yaxis.l2p(y) - yaxis.l2p(y + height))}px`;
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
