"use strict";
// The first page: classes to search, blocks to enter, the reader's names to take along.
(() => {
  const { about, address, block, classLink, face, make, page, photograph, plural, save, names,
    takeNames } = Atlas;

  function classes() {
    const list = make("ul", { className: "tiles" }, about.classes.map(([number, name, of]) => {
      const link = classLink(number, make("small", {}, plural(of.length, "photograph")));
      link.prepend(photograph(of[0], ""));
      return make("li", { "data-name": name.toLowerCase() }, link);
    }));
    const search = make("input", { type: "search", placeholder: "type a part of its name" });
    const found = make("p", { role: "status" });
    search.addEventListener("input", () => {
      const wanted = search.value.trim().toLowerCase();
      for (const item of list.children) item.hidden = !item.dataset.name.includes(wanted);
      const left = [...list.children].filter((item) => !item.hidden).length;
      found.textContent = left ? "" : "No photograph here is of such a class.";
    });
    return make("section", {}, make("h2", {}, "Which families bring a class?"),
      make("p", {}, "Choose a class to see the families that bring it, block by block, the most "
        + "relevant first, and its graph over the data set."),
      make("label", {}, "Find a class ", search), found, list);
  }

  function blocks() {
    const card = ({ name, slug, families, atoms, pfvs, photographs }) => {
      const most = [...photographs.keys()].sort((a, b) => photographs[b] - photographs[a]);
      const more = `${plural(families, "family").replace("familys", "families")}, ${plural(atoms,
        "atom")}, ${plural(pfvs, "PFV")}`;
      return make("li", {}, make("a", { href: `${slug}.html` }, make("span", { className: "row" },
        most.slice(0, 4).map((family) => face(name, family))), make("b", {}, name),
      make("small", {}, more)));
    };
    return make("section", {}, make("h2", {}, "Blocks, from the pixels up"),
      make("ul", { className: "tiles wide" }, about.blocks.map(card)));
  }

  function own() {
    const said = make("p", { role: "status" });
    const file = make("input", { type: "file", accept: "application/json,.json" });
    file.addEventListener("change", async () => {
      try {
        const taken = takeNames(JSON.parse(await file.files[0].text()));
        said.textContent = `${plural(taken, "name")} taken in.`;
      } catch {
        said.textContent = "This is no file of names: choose one that an atlas has exported.";
      }
    });
    const given = () => Object.fromEntries(Object.entries(names).filter(([, name]) => name));
    const button = make("button", { type: "button" }, "Export names");
    button.addEventListener("click", () => save("names.json", given()));
    return make("section", {}, make("h2", {}, "Your names"),
      make("p", {}, "Names that you give to families stay in this browser. Export them to take them "
        + "along; concept_graph(…, names=…) and atlas(…, names=…) read the same file."),
      make("p", { className: "controls" }, button, make("label", {}, "Import names ", file)), said,
      make("p", {}, "How well do you know them? ",
        make("a", { href: "test.html" }, "A test: which of five crops does not belong?")));
  }

  page(() => {
    const main = document.getElementById("main");
    if (main.querySelector("section")) return;
    main.append(make("p", {}, `${about.network}, ${about.pictures}. A family is a group of concepts `
      + "that point in about the same direction; atoms are its finest parts. A crop shows where a "
      + "feature vector (PFV) of it was; where it is grey around a coloured spot, the vector looks "
      + "at the spot alone."), classes(), blocks(), own());
  });
})();
