// Maps of attributions over their picture, on a canvas; M = g * g numbers row by row.
const SIDE = 252;
const images = data.examples.map((example) => {
  const image = new Image();
  image.src = example.picture;
  return image;
});
// In the order of the paper's Figure 5, which has all but the last.
const SOURCE_MAPS = ["source_prediction_only", "source_self_explaining"];
const MAP_NAMES = ["label", "transferred", "prediction_only", ...SOURCE_MAPS, "zero_shot", "supervised"];

function largest(values) { return Math.max(...values.map(Math.abs)); }

function centred(values) {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  return values.map((value) => value - mean);
}

// Ties are broken by the index, as in the scores.
function topPatches(values) {
  const order = values.map((value, i) => [value, i]).sort((a, b) => b[0] - a[0] || a[1] - b[1]);
  return new Set(order.slice(0, TOP_PATCHES).map(([, i]) => i));
}

function overlap(values, label) {
  const a = topPatches(values), b = topPatches(label);
  const both = [...a].filter((i) => b.has(i)).length;
  return both / (a.size + b.size - both);
}

function drawPicture(canvas, image) {
  const context = canvas.getContext("2d");
  context.globalCompositeOperation = "source-over";
  context.imageSmoothingEnabled = image.naturalWidth >= 112;
  context.drawImage(image, 0, 0, SIDE, SIDE);
  return context;
}

function drawMap(canvas, image, values, limit) {
  const context = drawPicture(canvas, image);
  const grid = Math.round(Math.sqrt(values.length)), step = SIDE / grid;
  const patch = (i) => [(i % grid) * step, Math.floor(i / grid) * step, step, step];
  if (view.mode === "top") return drawTop(context, topPatches(values), grid, patch);
  // Without its own colours, and paler, a picture leaves red and blue to the map.
  context.globalCompositeOperation = "saturation";
  context.fillStyle = "rgb(128, 128, 128)";
  context.fillRect(0, 0, SIDE, SIDE);
  context.globalCompositeOperation = "source-over";
  context.fillStyle = `rgba(255, 255, 255, ${0.5 * view.opacity})`;
  context.fillRect(0, 0, SIDE, SIDE);
  values.forEach((value, i) => {
    const strength = Math.min(1, limit > 0 ? Math.abs(value) / limit : 0) * view.opacity;
    context.fillStyle = value > 0 ? `rgba(198, 42, 47, ${strength})` : `rgba(31, 102, 184, ${strength})`;
    context.fillRect(...patch(i));
  });
}

function drawTop(context, top, grid, patch) {
  context.fillStyle = `rgba(240, 240, 240, ${0.9 * view.opacity})`;
  for (let i = 0; i < grid * grid; i++) if (!top.has(i)) context.fillRect(...patch(i));
  context.strokeStyle = "#d6336c";
  context.lineWidth = 3;
  context.beginPath();
  for (const i of top) {
    const [x, y, step] = patch(i), column = i % grid;
    if (!top.has(i - grid)) { context.moveTo(x, y); context.lineTo(x + step, y); }
    if (!top.has(i + grid)) { context.moveTo(x, y + step); context.lineTo(x + step, y + step); }
    if (column === 0 || !top.has(i - 1)) { context.moveTo(x, y); context.lineTo(x, y + step); }
    if (column === grid - 1 || !top.has(i + 1)) { context.moveTo(x + step, y); context.lineTo(x + step, y + step); }
  }
  context.stroke();
}

function inWords(values) {
  const grid = Math.round(Math.sqrt(values.length)), strongest = values.indexOf(Math.max(...values));
  return `strongest patch in row ${Math.floor(strongest / grid) + 1}, column ${strongest % grid + 1} of ${grid}`;
}

// One map with its caption. read: () -> {values, limit, note, title}; without values the picture alone. Gives {figure, draw}.
function mapTile(index, read) {
  const canvas = element("canvas", { width: SIDE, height: SIDE, role: "img" });
  const caption = element("figcaption"), note = element("small");
  function draw() {
    const { title, values, limit, note: text } = read();
    caption.replaceChildren(title, note);
    note.textContent = text;
    canvas.setAttribute("aria-label", values ? `${title}: ${inWords(values)}` : title);
    if (!images[index].complete) return images[index].addEventListener("load", draw, { once: true });
    if (!values) drawPicture(canvas, images[index]);
    else if (view.scale === "label") drawMap(canvas, images[index], values, largest(data.examples[index].maps.label));
    else if (view.scale === "own") drawMap(canvas, images[index], values, limit);
    else drawMap(canvas, images[index], centred(values), largest(centred(values)));
  }
  return { figure: element("figure", { class: "map" }, canvas, caption), draw };
}

function mapNote(index, name, values) {
  const label = data.examples[index].maps.label;
  return (name === "label" ? "" : `IoU@10 ${shown(overlap(values, label), 2)}, `) + `largest ${largest(values).toPrecision(2)}`;
}

// The input, and the map of each model that was run. transferred: () -> {values, limit, title} in place of the example's own.
function mapTiles(index, names, transferred = null) {
  const example = data.examples[index];
  const tiles = [mapTile(index, () => ({ title: "input", note: example.class_name }))];
  for (const name of names.filter((n) => example.maps[n] || (n === "transferred" && transferred))) {
    tiles.push(mapTile(index, () => {
      const found = name === "transferred" && transferred ? transferred()
        : { values: example.maps[name], limit: largest(example.maps[name]), title: name === "transferred" || name === "label" ? name : data.titles[name] };
      return { ...found, note: [found.note, mapNote(index, name, found.values)].filter(Boolean).join("; ") };
    }));
  }
  return tiles;
}

function drawGallery() {
  const gallery = document.getElementById("gallery");
  if (!gallery) return;
  data.examples.forEach((example, index) => {
    const tiles = mapTiles(index, MAP_NAMES);
    const pair = pairAt(example.source, example.target);
    const open = pair ? element("button", { type: "button", onclick: (event) => openPair(pair, event.target) }, "open the pair") : null;
    gallery.append(element("div", { class: "card" },
      element("p", {}, element("b", {}, data.targets[example.target]), `, vector from ${data.sources[example.source]} `, open),
      element("div", { class: "maps" }, ...tiles.map((tile) => tile.figure))));
    tiles.forEach((tile) => { tile.draw(); redraw.add(tile.draw); });
  });
}
