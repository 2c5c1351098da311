// Elements, numbers and the page's state. Names that users gave are only ever set as text.
const data = JSON.parse(document.getElementById("data").textContent);
const TOP_PATCHES = 10;
document.documentElement.classList.add("has-script");

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "style") Object.entries(value).forEach(([key, text]) => node.style.setProperty(key, text));
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function svg(name, attributes = {}, ...children) {
  const space = document.getElementById("drawing").namespaceURI;
  return fill(document.createElementNS(space, name), attributes, children);
}

function isNumber(value) { return typeof value === "number"; }

function shown(value, digits = 3) { return isNumber(value) ? value.toFixed(digits) : "\u2013"; }

// A name that may be broken after the signs that join its parts.
function breakable(name) {
  return name.split(/(?<=[_+ -])/).flatMap((part, i) => i ? [element("wbr"), part] : [part]);
}

function pairTitle(pair) { return `${data.sources[pair.source]} \u2192 ${data.targets[pair.target]}`; }

function pairAt(source, target) { return data.pairs.find((pair) => pair.source === source && pair.target === target); }

// How pictures are shown, alike everywhere on the page; `redraw` holds what must be drawn again when that changes.
const view = { mode: "map", opacity: 0.8, scale: "own" };
const redraw = new Set();

function changeView(changes) {
  Object.assign(view, changes);
  document.querySelectorAll("[data-sets]").forEach((control) => { control.value = view[control.dataset.sets]; });
  redraw.forEach((draw) => draw());
}

function choice(name, title, options) {
  const select = element("select", { "data-sets": name, onchange: (event) => changeView({ [name]: event.target.value }) },
    ...options.map(([value, text]) => element("option", { value }, text)));
  select.value = view[name];
  return element("label", {}, title, select);
}

function viewControls() {
  const opacity = element("input", { type: "range", min: 0, max: 1, step: 0.05, "data-sets": "opacity",
    oninput: (event) => changeView({ opacity: Number(event.target.value) }) });
  opacity.value = view.opacity;
  return [
    choice("mode", "Show", [["map", "attributions"], ["top", `the ${TOP_PATCHES} strongest patches`]]),
    element("label", {}, "Opacity", opacity),
    choice("scale", "Colours", [["own", "each map to its largest"], ["centred", "around each map's mean"], ["label", "all to the label's largest"]]),
    element("span", { class: "quiet" }, "against ", element("i", { class: "map-legend" }), " for the class"),
  ];
}

// The switch goes from what is seen to the other one.
const themeSwitch = document.getElementById("theme");
function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}
function nameTheme() { themeSwitch.textContent = isDark() ? "Light" : "Dark"; }
themeSwitch.addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  nameTheme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameTheme);
nameTheme();
