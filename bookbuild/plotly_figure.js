// Draws the page's plotly figures, in the page's colours, at the page's width.
(() => {
  const base = document.currentScript.src.replace(/[^/]*$/, "");
  const figures = [...document.querySelectorAll(".plotly-figure")].map((element) => {
    const script = element.querySelector("script");
    const figure = JSON.parse(script.textContent);
    script.remove();
    return { element, ...figure };
  });

  function themed(layout) {
    const style = getComputedStyle(document.documentElement);
    const text = style.getPropertyValue("--pst-color-text-base").trim();
    const line = style.getPropertyValue("--pst-color-border").trim();
    const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true };
    const template = layout.template || {};
    const given = template.layout || {};
    const plain = "rgba(0,0,0,0)";
    return {
      ...layout,
      width: undefined,
      autosize: true,
      template: {
        ...template,
        layout: {
          ...given,
          font: { ...given.font, color: text },
          paper_bgcolor: plain,
          plot_bgcolor: plain,
          margin: { l: 20, r: 20, b: 40, t: layout.title ? 60 : 20 },
          xaxis: { ...given.xaxis, ...axis },
          yaxis: { ...given.yaxis, ...axis },
        },
      },
    };
  }

  function draw() {
    for (const { element, data, layout } of figures) {
      // One of the toolbar's buttons offers to upload the figure.
      Plotly.react(element, data, themed(layout), { responsive: true, displayModeBar: false });
      if (layout.meta?.graph) exploreGraph(element);
    }
  }

  const script = document.createElement("script");
  script.src = base + "plotly.min.js";
  script.onload = () => {
    draw();
    new MutationObserver(draw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  };
  document.head.append(script);
})();
