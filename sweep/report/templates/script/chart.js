// Small charts as SVG: lines and points against two axes, straight bars for references. Colours are the style sheet's.
const CHART = { width: 360, height: 230, left: 46, right: 12, top: 10, bottom: 36 };

function niceTicks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((f) => f * power).find((s) => s >= rough * 0.999);
  const ticks = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-6; n++) ticks.push(n * step);
  return { ticks, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9) + (step / power === 2.5 ? 1 : 0)) };
}

// The range of an axis: of the points, and of the bars that lie near enough not to squeeze them.
const LEAST_SPAN = 0.1;
function extent(values, bars) {
  const low = Math.min(...values), high = Math.max(...values), span = Math.max(high - low, LEAST_SPAN);
  const near = bars.filter((bar) => isNumber(bar) && bar > low - 2 * span && bar < high + 2 * span);
  const [first, last] = [Math.min(low, ...near), Math.max(high, ...near)];
  const margin = Math.max((last - first) * 0.07, (LEAST_SPAN - (last - first)) / 2);
  return [first - margin, last + margin];
}

// One chart. series: [{colour, points: [{x, y, text, hollow, chosen, test}], isLine}]; bars: [{kind, y} or {kind, x}];
// front: [[x, y], ...], a line through points. A bar out of the axis' range is named beside the title. Gives {figure, moveCursor}.
function chart({ title, xTitle, yTitle, series, bars = [], front = null }) {
  const { width, height, left, right, top, bottom } = CHART;
  const points = series.flatMap((one) => one.points);
  const [xLow, xHigh] = extent(points.map((p) => p.x), bars.map((bar) => bar.x));
  const [yLow, yHigh] = extent(points.map((p) => p.y), bars.map((bar) => bar.y));
  const x = (value) => left + (value - xLow) / (xHigh - xLow) * (width - left - right);
  const y = (value) => height - bottom - (value - yLow) / (yHigh - yLow) * (height - top - bottom);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}: ${yTitle} against ${xTitle}` });
  const xTicks = niceTicks(xLow, xHigh, 6), yTicks = niceTicks(yLow, yHigh, 5);
  for (const tick of xTicks.ticks) {
    drawing.append(svg("line", { class: "grid", x1: x(tick), x2: x(tick), y1: top, y2: height - bottom }),
      svg("text", { x: x(tick), y: height - bottom + 14, "text-anchor": "middle" }, tick.toFixed(xTicks.digits)));
  }
  for (const tick of yTicks.ticks) {
    drawing.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }),
      svg("text", { x: left - 5, y: y(tick) + 4, "text-anchor": "end" }, tick.toFixed(yTicks.digits)));
  }
  drawing.append(
    svg("path", { class: "axis", fill: "none", d: `M${left} ${top}V${height - bottom}H${width - right}` }),
    svg("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, xTitle),
    svg("text", { x: 11, y: (top + height - bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 11 ${(top + height - bottom) / 2})` }, yTitle));
  const away = [];
  for (const bar of bars) {
    const value = bar.x ?? bar.y, [low, high] = isNumber(bar.y) ? [yLow, yHigh] : [xLow, xHigh];
    if (value < low || value > high) {
      const arrow = isNumber(bar.y) ? (value > high ? "\u2191" : "\u2193") : value > high ? "\u2192" : "\u2190";
      away.push(`${bar.kind === "constraint" ? bar.kind : data.titles[bar.kind]} at ${shown(value, 2)} ${arrow}`);
      continue;
    }
    const ends = isNumber(bar.y) ? { x1: left, x2: width - right, y1: y(bar.y), y2: y(bar.y) } : { x1: x(bar.x), x2: x(bar.x), y1: top, y2: height - bottom };
    drawing.append(svg("line", { class: `bar ${bar.kind}`, ...ends }));
  }
  const path = (list) => list.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join("");
  if (front) drawing.append(svg("path", { class: "bar front", d: path(front) }));
  const cursor = svg("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" });
  drawing.append(cursor);
  for (const { colour, points: own, isLine } of series) {
    const group = svg("g", { style: { "--series": colour } });
    if (isLine) group.append(svg("path", { class: "line", d: path(own.map((p) => [p.x, p.y])) }));
    for (const p of own) {
      if (p.test) {
        const [a, b] = [x(p.x), y(p.y)];
        group.append(svg("path", { class: "test", d: `M${a} ${b - 6}l6 6l-6 6l-6 -6z` }, svg("title", {}, p.text)));
        continue;
      }
      group.append(svg("circle", { class: p.hollow ? "dot hollow" : "dot", cx: x(p.x), cy: y(p.y), r: 4 }, svg("title", {}, p.text)));
      if (p.chosen) group.append(svg("circle", { class: "chosen", cx: x(p.x), cy: y(p.y), r: 8 }));
    }
    drawing.append(group);
  }
  function moveCursor(value) {
    cursor.setAttribute("x1", x(value));
    cursor.setAttribute("x2", x(value));
    cursor.setAttribute("visibility", value >= xLow && value <= xHigh ? "visible" : "hidden");
  }
  return { figure: element("figure", { class: "chart" }, element("figcaption", {}, title, element("small", {}, away.join(", "))), drawing), moveCursor };
}

// A row of a legend: a sample of the line or the mark, and its name.
function key(sample, text) {
  return element("li", {}, svg("svg", { viewBox: "0 0 26 12", class: "chart" }, sample), text);
}
function barKey(kind, text) { return key(svg("line", { class: `bar ${kind}`, x1: 0, x2: 26, y1: 6, y2: 6 }), text); }
function dotKey(colour, text, hollow = false) {
  return key(svg("circle", { class: hollow ? "dot hollow" : "dot", cx: 13, cy: 6, r: 4.5, style: { "--series": colour } }), text);
}
