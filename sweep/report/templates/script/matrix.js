// The matrix of pairs: a row a source, a column a target, and below them what a column is judged by.
const matrix = document.getElementById("matrix");
const BARS = ["supervised", "label_ceiling", "mean_map", "prediction_only", "zero_shot", "chance", "zero_predictor"];
let column = data.columns.find((one) => one.name === "iou_at_10") ?? data.columns[0];

function valueOf(pair) {
  if (column.is_score) return pair.scores[column.name];
  return column.name in pair.similarities ? pair.similarities[column.name] : pair[column.name];
}

// The colour of a value: a side of the scale, and how far out it lies, 0 to 1.
function colourOf(value) {
  const { low, middle, high, lower_is_better: isLowBetter, name } = column;
  if (!isNumber(value)) return {};
  const strength = middle === null ? (value - low) / (high - low) : Math.abs(value - middle) / (high - middle);
  const isBetter = middle === null || (value > middle) !== isLowBetter;
  const clipped = Math.max(0, Math.min(1, strength));
  return {
    "data-side": name === "lambda2" ? "neutral" : isBetter ? "better" : "worse",
    "data-strong": clipped > 0.72,
    style: { "--strength": clipped.toFixed(3) },
  };
}

function loses(pair) { return (pair.scores.normalized_accuracy ?? 0) < data.kept_accuracy; }

function pairCell(source, target) {
  const pair = pairAt(source, target);
  if (!pair) {
    const isPlanned = data.planned.some(([s, t]) => s === source && t === target);
    return element("div", { class: "cell none", title: isPlanned ? "this pair has no result" : "not a pair of this sweep" }, isPlanned ? "?" : "");
  }
  const value = valueOf(pair), colour = colourOf(value);
  return element("button", {
    type: "button", class: `cell${loses(pair) ? " loses" : ""}`, "data-pair": data.pairs.indexOf(pair), tabindex: -1, ...colour,
    "aria-label": `${pairTitle(pair)}: ${column.title} ${shown(value)}${loses(pair) ? ", loses accuracy" : ""}. Open`,
    onclick: (event) => openPair(pair, event.currentTarget),
  }, shown(value, 2), column.name === "lambda2" ? element("small", {}, shown(pair.alpha, 2)) : null);
}

function drawMatrix(focused = 0) {
  const head = element("thead", {}, element("tr", {}, element("td"), ...data.targets.map((name) => element("th", { scope: "col" }, ...breakable(name)))));
  const rows = data.sources.map((name, source) => element("tr", {}, element("th", { scope: "row" }, ...breakable(name)),
    ...data.targets.map((_, target) => element("td", {}, pairCell(source, target)))));
  const bars = column.is_score ? BARS.filter((name) => (data.references[name] ?? []).some((row) => isNumber(row[column.name]))) : [];
  const barRows = bars.map((name) => element("tr", {}, element("th", { scope: "row" }, data.titles[name]),
    ...data.references[name].map((row) => element("td", {}, element("div", { class: "cell", ...colourOf(row[column.name]) }, shown(row[column.name], 2))))));
  document.getElementById("matrix-caption").textContent = `${column.title}, row: source, column: target`;
  matrix.replaceChildren(head, element("tbody", {}, ...rows), element("tbody", { class: "bars" }, ...barRows));
  const cell = matrix.querySelector(`[data-pair="${focused}"]`);
  if (cell) cell.tabIndex = 0;
  document.getElementById("reading").textContent = column.reading;
  drawScale();
  document.getElementById("bars").textContent = inSentences();
}

function drawScale() {
  const { low, middle, high, lower_is_better: isLowBetter, name } = column;
  const [better, worse] = ["var(--better)", "var(--worse)"];
  const colours = name === "lambda2" ? ["var(--none)", "var(--neutral)"] : middle === null ? ["var(--none)", better]
    : isLowBetter ? [better, "var(--none)", worse] : [worse, "var(--none)", better];
  const end = middle === null && name !== "lambda2" ? `${shown(low, 2)} (chance) or less` : shown(low, 2);
  document.getElementById("scale").replaceChildren(end,
    element("i", { style: { background: `linear-gradient(90deg, ${colours.join(", ")})` } }), shown(high, 2),
    element("span", { class: "quiet" }, `${middle === null ? "" : `no colour at ${shown(middle, 0)}; `}underlined: keeps less than ${100 * data.kept_accuracy} % of the accuracy`));
}

// Chance, mean map and the others in words.
function inSentences() {
  const { means, is_score: isScore, title, lower_is_better: isLowBetter } = column;
  if (!isScore) return isNumber(means.transferred) ? `Mean over the pairs: ${shown(means.transferred)}.` : "";
  const known = BARS.filter((name) => isNumber(means[name])).map((name) => `${data.titles[name]} ${shown(means[name])}`);
  return `${title}, ${isLowBetter ? "smaller" : "larger"} is better; mean over the pairs: transferred ${shown(means.transferred)}; `
    + `by the references of the same targets: ${known.join(", ")}.`;
}

function drawColumns() {
  const switches = data.columns.map((one) => {
    const input = element("input", { type: "radio", name: "column", value: one.name, onchange: () => {
      column = one;
      drawMatrix(Number(matrix.querySelector(".cell[tabindex='0']")?.dataset.pair ?? 0));
    } });
    input.checked = one === column;
    return element("label", {}, input, element("span", {}, one.name === "lambda2" ? "lambda2 and alpha" : one.title));
  });
  document.getElementById("columns").append(...switches);
}

// One cell is in the order of the Tab key; the arrows go to the next pair in their direction.
matrix.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  const from = event.target.closest("[data-pair]");
  if (!step || !from) return;
  event.preventDefault();
  let { source, target } = data.pairs[Number(from.dataset.pair)];
  for (;;) {
    source += step[0];
    target += step[1];
    if (!(source in data.sources) || !(target in data.targets)) return;
    const pair = pairAt(source, target);
    if (pair) return focusCell(pair);
  }
});

function focusCell(pair) {
  matrix.querySelectorAll(".cell[tabindex='0']").forEach((cell) => { cell.tabIndex = -1; });
  const cell = matrix.querySelector(`[data-pair="${data.pairs.indexOf(pair)}"]`);
  cell.tabIndex = 0;
  cell.focus();
}
