// One pair: pictures at a chosen lambda2, curves, Pareto front, scores beside their references, where the numbers come from.
const dialog = document.getElementById("pair");
const CURVE_BARS = { correlation: ["mean_map", "supervised", "chance"], iou_at_10: ["mean_map", "supervised", "chance"] };
let shownPair = null, openedFrom = null, pairDrawings = [];

function scoreOf(name) { return data.scores.find((score) => score.name === name); }

// The cells of a pair as rows, with whether they keep the accuracy.
function cellRows(pair) {
  const names = Object.keys(pair.cells);
  return pair.cells.alpha.map((_, i) => {
    const row = Object.fromEntries(names.map((name) => [name, pair.cells[name][i]]));
    row.keeps = data.constraint === null || (row.normalized_accuracy_lower ?? 0) >= data.constraint;
    row.isChosen = row.alpha === pair.alpha && row.lambda2 === pair.lambda2 && row.trial === pair.trial;
    return row;
  });
}

function alphasOf(rows) { return [...new Set(rows.map((row) => row.alpha))].sort((a, b) => a - b); }

function alphaColour(alpha, alphas) {
  const share = alphas.length > 1 ? alphas.indexOf(alpha) / (alphas.length - 1) : 1;
  return `color-mix(in oklab, var(--last) ${Math.round(100 * share)}%, var(--first))`;
}

// The prediction-only model's score on the split of the cells: what their normalised scores were divided by.
function divisorOf(rows, score) {
  const row = rows.find((one) => one[`normalized_${score}`] > 0);
  return row ? row[score] / row[`normalized_${score}`] : null;
}

function pointText(row, ...names) {
  const scores = names.map((name) => `${scoreOf(name).title} ${shown(row[name])}`).join(", ");
  return `alpha ${shown(row.alpha, 2)}, lambda2 ${shown(row.lambda2, 2)}: ${scores}${row.isChosen ? " (chosen)" : ""}${row.keeps ? "" : " (loses accuracy)"}`;
}

// Of a score on test, over the test pictures.
function intervalText(pair, name) {
  return rangeText(pair.intervals[name]);
}

function referenceIntervalText(pair, reference, name) {
  const of = data.reference_intervals[pair.target];
  return rangeText((of[reference] ?? of[`${reference} ${pair.alpha}`])?.[name]);
}

function rangeText([low, high] = []) {
  return isNumber(low) ? `[${shown(low)}, ${shown(high)}]` : "";
}

function curve(pair, rows, name) {
  const alphas = alphasOf(rows), divisor = divisorOf(rows, name), score = scoreOf(name);
  const series = alphas.map((alpha) => ({
    colour: alphaColour(alpha, alphas), isLine: true,
    points: rows.filter((row) => row.alpha === alpha && isNumber(row[name]))
      .map((row) => ({ x: row.lambda2, y: row[name], text: pointText(row, name), chosen: row.isChosen })),
  }));
  if (data.split === "validation" && isNumber(pair.scores[name])) {
    const text = `the chosen point on test: ${score.title} ${shown(pair.scores[name])} ${intervalText(pair, name)}`;
    series.push({ colour: "var(--ink)", isLine: false, points: [{ x: pair.lambda2, y: pair.scores[name], text, test: true }] });
  }
  const bars = isNumber(divisor) ? [{ kind: "prediction_only", y: divisor }] : [];
  if (name === "accuracy" && isNumber(divisor) && data.constraint !== null) bars.push({ kind: "constraint", y: divisor * data.constraint });
  for (const reference of CURVE_BARS[name] ?? []) {
    const value = pair.references[reference]?.[name];
    if (isNumber(value)) bars.push({ kind: reference, y: value });
  }
  const direction = score.lower_is_better ? "smaller is better" : "larger is better";
  return chart({ title: `${score.title} over lambda2`, xTitle: "lambda2", yTitle: `${score.title} (${direction})`, series, bars });
}

// Points that no other point beats in both scores, by falling E-RMSE.
function paretoFront(rows) {
  const isBeaten = (a) => rows.some((b) => b.e_rmse <= a.e_rmse && b.accuracy >= a.accuracy && (b.e_rmse < a.e_rmse || b.accuracy > a.accuracy));
  return rows.filter((row) => isNumber(row.e_rmse) && isNumber(row.accuracy) && !isBeaten(row)).sort((a, b) => a.e_rmse - b.e_rmse);
}

function pareto(rows) {
  const alphas = alphasOf(rows), accuracy = divisorOf(rows, "accuracy"), error = divisorOf(rows, "e_rmse");
  const series = alphas.map((alpha) => ({
    colour: alphaColour(alpha, alphas), isLine: false,
    points: rows.filter((row) => row.alpha === alpha && isNumber(row.e_rmse) && isNumber(row.accuracy))
      .map((row) => ({ x: row.e_rmse, y: row.accuracy, hollow: !row.keeps, chosen: row.isChosen, text: pointText(row, "e_rmse", "accuracy") })),
  }));
  const bars = [];
  if (isNumber(error)) bars.push({ kind: "prediction_only", x: error });
  if (isNumber(accuracy)) bars.push({ kind: "prediction_only", y: accuracy });
  if (isNumber(accuracy) && data.constraint !== null) bars.push({ kind: "constraint", y: accuracy * data.constraint });
  return chart({ title: "Pareto front: E-RMSE against accuracy", xTitle: "E-RMSE (smaller is better)", yTitle: "accuracy (larger is better)",
    series, bars, front: paretoFront(rows).map((row) => [row.e_rmse, row.accuracy]) });
}

function chartKeys(rows) {
  const alphas = alphasOf(rows);
  const keys = alphas.map((alpha) => dotKey(alphaColour(alpha, alphas), `alpha ${shown(alpha, 2)}`));
  keys.push(key(svg("circle", { class: "chosen", cx: 13, cy: 6, r: 5 }), "chosen"));
  if (data.split === "validation") keys.push(key(svg("path", { class: "test", d: "M13 1l5 5l-5 5l-5 -5z" }), "chosen, on test"));
  if (rows.some((row) => !row.keeps)) keys.push(dotKey("var(--ink)", "may miss the constraint", true));
  keys.push(barKey("prediction_only", "prediction-only"));
  if (data.constraint !== null) keys.push(barKey("constraint", `constraint: ${shown(data.constraint, 2)} of its accuracy`));
  return element("ul", { class: "keys" }, ...keys, barKey("front", "Pareto front"), barKey("mean_map", "mean map, test"),
    barKey("supervised", "supervised, test"), barKey("chance", "chance"));
}

function charts(pair, rows) {
  const curves = data.curves.filter((name) => rows.some((row) => isNumber(row[name]))).map((name) => curve(pair, rows, name));
  pairDrawings.push(...curves.map((one) => one.moveCursor));
  return [
    element("h3", {}, "Curves over lambda2, and the trade-off"),
    element("p", { class: "quiet" }, `Every evaluated point, on the ${data.split} split, where the chosen point was picked. The dashed vertical line follows the slider.`),
    chartKeys(rows),
    element("div", { class: "charts" }, ...curves.map((one) => one.figure), pareto(rows).figure),
    cellTable(rows),
  ];
}

function cellTable(rows) {
  const names = Object.keys(rows[0]).filter((name) => !["keeps", "isChosen"].includes(name));
  const title = (name) => scoreOf(name)?.title ?? name.replaceAll("_", " ");
  return element("details", {}, element("summary", {}, "The points as a table"), element("div", { class: "scroll" }, element("table", {},
    element("thead", {}, element("tr", {}, ...names.map((name) => element("th", { scope: "col" }, title(name))))),
    element("tbody", {}, ...rows.map((row) => element("tr", { class: row.isChosen ? "own" : null },
      ...names.map((name) => element("td", {}, name === "trial" ? shown(row[name], 0) : shown(row[name], name === "alpha" || name === "lambda2" ? 2 : 3)))))))));
}

// A table that scrolls where it is wide, below its caption, which does not. The table has an id.
function captioned(table, text) {
  const id = `${table.id}-caption`;
  table.setAttribute("aria-labelledby", id);
  return [element("p", { class: "caption", id }, text), element("div", { class: "scroll" }, table)];
}

function scoreTable(pair) {
  const scores = data.scores.filter((score) => isNumber(pair.scores[score.name]));
  const references = Object.keys(pair.references).filter((name) => scores.some((score) => isNumber(pair.references[name][score.name])));
  const row = (name, text, kind = null) => element("tr", { class: kind }, element("td", { class: "name" }, name),
    ...scores.map((score) => element("td", {}, ...[text(score.name)].flat())));
  const withInterval = (reference) => (name) => {
    const range = referenceIntervalText(pair, reference, name);
    return [shown(pair.references[reference][name]), ...(range ? [element("br"), element("small", {}, range)] : [])];
  };
  const valueOf = (values) => (name) => shown(values[name]);
  const intervals = Object.keys(pair.intervals).length ? [
    row("its 95 % interval", (name) => intervalText(pair, name) || shown(null), "of-own"),
    row("over n test pictures", (name) => pair.intervals[name]?.[2] ?? shown(null), "of-own")] : [];
  const meaning = intervals.length ? element("p", { class: "quiet" }, "The intervals are over these n test pictures (of the label ceiling over those "
    + "that were labelled twice), for these models and these labels: neither over targets nor over seeds (see the definitions at the end of the page).") : null;
  const table = element("table", { id: "pair-scores" },
    element("thead", {}, element("tr", {}, element("th", { class: "name" }, "model"), ...scores.map((s) => element("th", { scope: "col" }, s.title)))),
    element("tbody", {}, row("transferred", valueOf(pair.scores), "own"), ...intervals,
      ...references.map((name) => row(data.titles[name], withInterval(name)))));
  return element("div", {}, ...captioned(table, "On the target's test pictures; supervised: at the pair's alpha."), meaning);
}

function provenanceTable(pair) {
  const rows = Object.entries(pair.artifacts).map(([name, key]) => element("tr", {}, element("td", { class: "name" }, name),
    element("td", { class: "name long" }, element("code", {}, key))));
  if (!rows.length) return element("p", {}, "This result names no artifacts.");
  const table = element("table", { id: "pair-provenance" }, element("tbody", {}, ...rows));
  return element("div", {}, ...captioned(table,
    "Keys of the artifacts in the sweep's store that these numbers were made from; each artifact's manifest names its settings and inputs."));
}
