"use strict";
// A test of interpretability: four crops of one family and one of another; which is the intruder?
(() => {
  const { about, block, familyLink, keep, kept, load, make, ofBlock, page, plural, save } = Atlas;
  const main = document.getElementById("main");
  const title = main.querySelector("h1");
  const score = kept("test", {});

  const any = (list) => list[Math.floor(Math.random() * list.length)];
  function shuffled(list) {
    const order = [...list];
    for (let i = order.length - 1; i > 0; i -= 1) {
      const j = Math.floor(Math.random() * (i + 1));
      [order[i], order[j]] = [order[j], order[i]];
    }
    return order;
  }

  // Families with four photographs; the intruder's photograph is none of theirs.
  function task({ families, crops }) {
    const apart = (f) => families[f].crops.nearest.filter((n, i, all) =>
      all.findIndex((m) => crops[m] === crops[n]) === i);
    const wide = [...families.keys()].filter((f) => apart(f).length >= 4);
    for (let tries = 0; wide.length && tries < 100; tries += 1) {
      const f = any(wide);
      const four = apart(f).slice(0, 4);
      const g = any([...families.keys()]);
      const [intruder] = families[g].crops.nearest;
      if (g !== f && intruder !== undefined && !four.some((n) => crops[n] === crops[intruder])) {
        return { f, g, intruder, five: shuffled([...four, intruder]) };
      }
    }
    return null;
  }

  function ask(name, data) {
    const asked = task(data);
    const body = make("section");
    if (!asked) {
      body.append(make("p", {}, `At ${name} no family is of four photographs: a test needs more of them.`));
      return body;
    }
    const said = make("p", { role: "status" });
    const next = make("button", { type: "button", disabled: true }, "Next");
    next.addEventListener("click", () => show(name));
    const buttons = asked.five.map((n, i) => {
      const button = make("button", { type: "button" }, ofBlock(name, n, ""), `crop ${i + 1}`);
      button.addEventListener("click", () => {
        const right = n === asked.intruder;
        const own = (score[name] ??= { right: 0, asked: 0, tasks: [] });
        own.right += right;
        own.asked += 1;
        own.tasks.push({ family: asked.f, intruder: asked.g, right });
        keep("test", score);
        buttons.forEach((each, j) => {
          each.disabled = true;
          if (asked.five[j] === asked.intruder) each.className = "right";
          else if (j === i) each.className = "wrong";
        });
        said.replaceChildren(right ? "Right. " : "No: the framed one is of another family. ");
        body.append(make("div", { className: "sides" }, familyLink(name, asked.f), familyLink(name, asked.g)));
        next.disabled = false;
        next.focus();
        drawScore();
      });
      return button;
    });
    body.append(make("div", { className: "five", role: "group", ariaLabel: "Five crops" }, buttons), said, next);
    return body;
  }

  const table = make("section");
  function drawScore() {
    const lines = Object.entries(score).map(([name, { right, asked }]) => make("tr", {}, make("td", {}, name),
      make("td", {}, `${right} of ${asked}`), make("td", {}, `${Math.round((100 * right) / asked)} %`)));
    const out = make("button", { type: "button" }, "Export score");
    out.addEventListener("click", () => save("intruder-test.json", score));
    const anew = make("button", { type: "button" }, "Forget it");
    anew.addEventListener("click", () => {
      for (const name of Object.keys(score)) delete score[name];
      keep("test", score);
      drawScore();
    });
    table.replaceChildren(make("h2", {}, "Your score"), lines.length ? make("table", {}, make("thead", {},
      make("tr", {}, ["block", "right", "share"].map((text) => make("th", { scope: "col" }, text)))),
    make("tbody", {}, lines)) : make("p", {}, "Nothing answered yet."),
    make("p", { className: "controls" }, out, anew), make("small", {}, "By chance 20 %. It stays in this browser."));
  }

  async function show(name) {
    const data = await load(block[name].slug);
    const choice = make("select", {}, about.blocks.map((each) =>
      make("option", { value: each.name, selected: each.name === name }, each.name)));
    choice.addEventListener("change", () => show(choice.value));
    main.replaceChildren(title, make("p", {}, `Four of these crops are the nearest members of one family, each of `
      + `another photograph; one belongs to another of the ${plural(block[name].families, "family")
        .replace("familys", "families")}. Which? Who finds it sees what the family has in common.`),
    make("p", { className: "controls" }, make("label", {}, "block ", choice)), ask(name, data), table);
    drawScore();
    main.querySelector(".five button")?.focus();
  }

  page((hash) => show(block[hash.get("block")] ? hash.get("block") : about.blocks.at(-1).name));
})();
