// The pair's dialog with its slider, and the first drawing of everything.
const dialogBody = document.getElementById("pair-body");
let drawMaps = null;
redraw.add(() => drawMaps?.());

// Slider over the evaluated lambda2 of which maps are kept; every drawing of the dialog follows it.
function pictures(pair, rows) {
  const indices = data.examples.map((_, i) => i).filter((i) => data.examples[i].target === pair.target && data.examples[i].over_lambda[pair.source]);
  if (!indices.length) return [element("p", { class: "quiet" }, "No maps over lambda2 are kept of this pair.")];
  const { lambdas } = data.examples[indices[0]].over_lambda[pair.source];
  const slider = element("input", { type: "range", id: "lambda2", min: 0, max: lambdas.length - 1, step: 1 });
  const distances = lambdas.map((value) => Math.abs(value - pair.lambda2));
  slider.value = distances.indexOf(Math.min(...distances));
  const output = element("output", { for: "lambda2" });
  const tiles = indices.map((index) => {
    const maps = data.examples[index].over_lambda[pair.source];
    const limit = Math.max(...maps.maps.map(largest));
    // The example has the own models of one source, that of its `transferred`.
    const names = data.examples[index].source === pair.source ? MAP_NAMES : MAP_NAMES.filter((name) => !SOURCE_MAPS.includes(name));
    return mapTiles(index, names, () => {
      const i = Number(slider.value);
      return { values: maps.maps[i], limit, title: `transferred, lambda2 ${shown(maps.lambdas[i], 2)}`,
        note: `predicts ${maps.class_names[i]} (${shown(100 * maps.probabilities[i], 0)} %)` };
    });
  });
  function draw() {
    const lambda2 = lambdas[Number(slider.value)];
    const row = rows.find((one) => one.lambda2 === lambda2 && one.alpha === pair.alpha) ?? rows.find((one) => one.lambda2 === lambda2);
    const scores = row ? data.curves.map((name) => `${scoreOf(name).title} ${shown(row[name])}`).join(", ") : "";
    output.textContent = `lambda2 = ${shown(lambda2, 2)}${lambda2 === pair.lambda2 ? " (chosen)" : ""}${scores ? `; on ${data.split}: ${scores}` : ""}`;
    slider.setAttribute("aria-valuetext", output.textContent);
    pairDrawings.forEach((move) => move(lambda2));
    tiles.flat().forEach((tile) => tile.draw());
  }
  slider.addEventListener("input", draw);
  drawMaps = draw;
  return [
    element("h3", {}, "Pictures of the target at a chosen lambda2"),
    element("div", { class: "controls" }, ...viewControls()),
    element("div", { class: "point" }, element("label", { for: "lambda2" }, "lambda2"), slider, output),
    element("div", { class: "pictures" }, ...tiles.map((own) => element("div", { class: "maps" }, ...own.map((tile) => tile.figure)))),
  ];
}

function drawPair(pair) {
  pairDrawings = [];
  drawMaps = null;
  shownPair = pair;
  const rows = cellRows(pair), similarities = pair.similarities;
  document.getElementById("pair-title").textContent = pairTitle(pair);
  const drawnCharts = rows.length ? charts(pair, rows) : [];
  dialogBody.replaceChildren(
    element("p", {}, `Chosen on ${data.split}: alpha ${shown(pair.alpha, 2)}, lambda1 ${shown(pair.lambda1, 2)}, lambda2 ${shown(pair.lambda2, 2)}; `
      + (pair.merge ? `merged by ${pair.merge}; ` : "")
      + `maps scaled by ${pair.attribution_scale.toPrecision(2)}. Cosine of the two domains' prediction-only vectors ${shown(similarities.similarity_prediction_only)}, `
      + `of their explainability vectors ${shown(similarities.similarity_explainability)}.`),
    ...pictures(pair, rows),
    ...drawnCharts,
    element("h3", {}, "Scores beside their references"), scoreTable(pair),
    element("h3", {}, "Where these numbers come from"), provenanceTable(pair));
  drawMaps?.();
}

function openPair(pair, from) {
  openedFrom = from;
  drawPair(pair);
  dialog.showModal();
  dialog.scrollTop = 0;
}

function step(by) {
  drawPair(data.pairs[(data.pairs.indexOf(shownPair) + by + data.pairs.length) % data.pairs.length]);
  dialog.scrollTop = 0;
}

document.getElementById("previous").addEventListener("click", () => step(-1));
document.getElementById("next").addEventListener("click", () => step(1));
document.getElementById("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("keydown", (event) => {
  if (event.target.matches("input, select") || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
  event.preventDefault();
  step(event.key === "ArrowLeft" ? -1 : 1);
});
// Where the matrix opened it, the cell of the pair that was last seen has the focus again.
dialog.addEventListener("close", () => {
  if (matrix.contains(openedFrom)) focusCell(shownPair);
  else openedFrom?.focus();
});

document.querySelectorAll("[data-view]").forEach((place) => place.append(...viewControls()));
drawGallery();
drawColumns();
drawMatrix();
