// Read on in this order: what the page holds, colours, views, what is shown, gallery, class means, plot, one sample.

const STEP = 60; // cards made at once
const $ = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];
const parsed = (script) => JSON.parse(script.textContent);

// -- what the page holds --------------------------------------------------------------------------------------------

const page = parsed($("page"));
const bytes = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
const colormaps = Object.fromEntries(
  page.colors.map(([name, diverging, table]) => [name, { diverging, table: bytes(table) }]),
);
const classNames = unambiguous(page.categories);
const pictures = all("script.picture"); // their text is read when they are shown
const rows = all("script.rows").flatMap(parsed).map(record);
const means = parsed($("mean-maps")).map(([target, count, largest, map]) => ({ target, count, largest, map }));

function record([index, file, label, target, logit, sum, probability, top, probabilities, largest], i) {
  const predicted = top[0];
  const result = label < 0 ? "unknown" : label === predicted ? "right" : "wrong";
  const confidence = probabilities[0];
  const source = pictures[i];
  return { index, file, label, target, logit, sum, probability, top, probabilities, largest, predicted, result, confidence, source };
}

// Some data sets give two classes one name; their numbers tell them apart.
function unambiguous(names) {
  const counts = new Map();
  for (const name of names) counts.set(name, (counts.get(name) ?? 0) + 1);
  return names.map((name, i) => (counts.get(name) > 1 ? `${name} (${i})` : name));
}

function className(number) {
  return number < 0 ? "unknown" : (classNames[number] ?? `class ${number}`);
}

function number(value, digits = 4) {
  return value === null ? "not finite" : String(Number(value.toPrecision(digits)));
}

function percent(value) {
  return value === null ? "not finite" : `${(100 * value).toFixed(1)}%`;
}

function count(n) {
  return n.toLocaleString("en");
}

async function inflated(base64) {
  const stream = new Blob([bytes(base64)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// -- colours --------------------------------------------------------------------------------------------------------

// The position in a colour map of a value between -1 and 1. Where the middle colour stands for zero it does so in both ranges.
function position(value) {
  const { levels } = page;
  if ($("range").value === "symmetric") return levels + Math.round(levels * Math.min(1, Math.max(-1, value)));
  const positive = Math.min(1, Math.max(0, value));
  return colormaps[$("colors").value].diverging ? levels + Math.round(levels * positive) : Math.round(2 * levels * positive);
}

function opacity(value) {
  return Math.min(1, $("range").value === "symmetric" ? Math.abs(value) : Math.max(0, value));
}

// Paints levels as colours: level l is the value (l - 1 - levels) / levels * factor.
function paint(canvas, levels, factor, transparent, width = page.width, height = page.height) {
  const { table } = colormaps[$("colors").value];
  const pixel = new Uint8Array(4);
  const word = new Uint32Array(pixel.buffer);
  const palette = new Uint32Array(2 * page.levels + 2);
  for (let level = 0; level < palette.length; level++) {
    const value = ((level - 1 - page.levels) / page.levels) * factor;
    const at = 3 * position(value);
    pixel.set([table[at], table[at + 1], table[at + 2], transparent ? Math.round(255 * opacity(value)) : 255]);
    palette[level] = word[0];
  }
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  new Uint32Array(image.data.buffer).set(Uint32Array.from(levels, (level) => palette[level]));
  context.putImageData(image, 0, 0);
}

function drawLegend() {
  const { levels } = page;
  const symmetric = $("range").value === "symmetric";
  const first = symmetric ? 1 : levels + 1;
  const ramp = Uint8Array.from({ length: 2 * levels + 2 - first }, (_, i) => first + i);
  paint(all("#legend canvas")[0], ramp, 1, false, ramp.length, 1);
  $("low").textContent = symmetric ? "−m, against the class" : "0 and below";
  $("middle").textContent = symmetric ? "0" : "";
  $("high").textContent = "m, for the class";
  $("meaning").textContent =
    $("scale").value === "own"
      ? "m is the largest magnitude in each map."
      : `m is ${number(scales.rows)} for samples, the largest magnitude in the maps shown, and ${number(scales.means)} for class means.`;
}

// -- views: pictures that are decoded when they come on screen and let go when they leave ---------------------------

const scales = { rows: 1, means: 1 };
const views = new WeakMap();
const visible = new Set();

const watcher = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      const view = views.get(entry.target);
      if (entry.isIntersecting) view.show();
      else view.hide();
    }
  },
  { rootMargin: "400px" },
);

class View {
  constructor(element, kind, what) {
    this.element = element;
    this.kind = kind; // of scale
    this.what = what;
    this.levels = null;
    this.wanted = false;
  }

  async show() {
    this.wanted = true;
    const { what } = this;
    const [image, map] = what.source ? what.source.textContent.split(" ") : ["", what.map];
    for (const img of this.element.querySelectorAll("img")) img.src = image;
    const levels = await inflated(map);
    if (!this.wanted || what !== this.what) return; // it left, or shows another, meanwhile
    this.levels = levels;
    visible.add(this);
    this.paint();
  }

  hide() {
    this.wanted = false;
    this.levels = null;
    visible.delete(this);
    for (const img of this.element.querySelectorAll("img")) img.removeAttribute("src");
    for (const canvas of this.element.querySelectorAll("canvas")) canvas.width = 0;
  }

  paint() {
    const factor = $("scale").value === "own" ? 1 : (this.what.largest ?? 0) / (scales[this.kind] || 1);
    for (const canvas of this.element.querySelectorAll("canvas")) {
      paint(canvas, this.levels, factor, canvas.classList.contains("over"));
    }
  }
}

function watch(element, kind, what) {
  views.set(element, new View(element, kind, what));
  watcher.observe(element);
}

function forget(list) {
  for (const element of list.querySelectorAll("button")) {
    watcher.unobserve(element);
    views.get(element).hide();
  }
  list.replaceChildren();
}

function recolour() {
  drawLegend();
  for (const view of visible) view.paint();
}

// -- what is shown --------------------------------------------------------------------------------------------------

const KINDS = ["label", "predicted", "target"];
const FILTERS = ["search", "result", ...KINDS];
let shown = [];

function choose() {
  const text = $("search").value.trim().toLowerCase();
  const wanted = KINDS.filter((kind) => $(kind).value !== "").map((kind) => [kind, Number($(kind).value)]);
  const result = $("result").value;
  shown = rows.filter(
    (row) =>
      (text === "" || row.file.toLowerCase().includes(text)) &&
      (result === "" || row.result === result) &&
      wanted.every(([kind, value]) => row[kind] === value),
  );
  const key = $("sort").value;
  const direction = Number($("direction").value);
  // What is not finite comes last, whatever the direction.
  shown.sort((a, b) => (a[key] === null) - (b[key] === null) || direction * (a[key] - b[key]));
  scales.rows = shown.reduce((most, row) => Math.max(most, row.largest ?? 0), 0);
  scales.means = means.reduce((most, mean) => Math.max(most, mean.largest), 0);
  $("count").textContent = `showing ${count(shown.length)} of ${count(rows.length)}`;
  $("none").hidden = shown.length > 0;
  restart();
  markMeans();
  drawPlot();
  recolour();
}

function fillSelects() {
  for (const kind of KINDS) {
    const counts = new Map();
    for (const row of rows) counts.set(row[kind], (counts.get(row[kind]) ?? 0) + 1);
    $(kind).append(new Option("any", ""));
    for (const value of [...counts.keys()].sort((a, b) => a - b)) {
      $(kind).append(new Option(`${className(value)}: ${count(counts.get(value))}`, String(value)));
    }
  }
  for (const name of Object.keys(colormaps)) $("colors").append(new Option(name, name));
}

// -- gallery --------------------------------------------------------------------------------------------------------

const gallery = $("gallery");
const cards = () => gallery.children.length;
const cardAt = (i) => gallery.children[i]?.firstElementChild;
const SIGNS = { right: "✓", wrong: "✗", unknown: "?" };

function verdict(row) {
  const predicted = `${className(row.predicted)} ${percent(row.confidence)}`;
  if (row.result === "right") return `✓ right: ${predicted}`;
  if (row.result === "wrong") return `✗ wrong: ${predicted}, is ${className(row.label)}`;
  return `? unknown: ${predicted}`;
}

function explained(row) {
  return row.target === row.predicted ? "predicted class" : `${className(row.target)} ${percent(row.probability)}`;
}

// Names of one folder differ at their ends.
function end(file) {
  const letters = [...file];
  return letters.length > 36 ? `…${letters.slice(-35).join("")}` : file;
}

function addCard(row) {
  const item = $("card").content.firstElementChild.cloneNode(true);
  const card = item.firstElementChild;
  const lines = [
    [".file", end(row.file)],
    [".verdict", verdict(row)],
    [".numbers", `explains ${explained(row)} · logit ${number(row.logit)} · relevance ${number(row.sum)}`],
  ];
  for (const [selector, text] of lines) card.querySelector(selector).textContent = text;
  card.classList.add(row.result);
  card.title = row.file;
  card.setAttribute("aria-label", [row.file, ...lines.slice(1).map(([, text]) => text)].join(", "));
  card.tabIndex = -1;
  gallery.append(item);
  watch(card, "rows", row);
}

function more(least = cards() + STEP) {
  const empty = cards() === 0;
  while (cards() < Math.min(least, shown.length)) addCard(shown[cards()]);
  if (empty && cards()) cardAt(0).tabIndex = 0;
  const left = shown.length - cards();
  $("more").hidden = left === 0;
  $("more").textContent = `Show ${Math.min(STEP, left)} more of ${count(left)}`;
}

function restart() {
  forget(gallery);
  more();
}

// One card is a stop for Tab, and arrow keys move that stop: hundreds of stops would bar the way to what comes after.
function focusCard(i) {
  if (i < 0 || i >= shown.length) return;
  if (i >= cards()) more(Math.ceil((i + 1) / STEP) * STEP);
  for (const card of gallery.querySelectorAll('.card[tabindex="0"]')) card.tabIndex = -1;
  cardAt(i).tabIndex = 0;
  cardAt(i).focus();
}

function columns() {
  const top = gallery.firstElementChild.offsetTop;
  const second = [...gallery.children].findIndex((item) => item.offsetTop !== top);
  return second < 0 ? cards() : second;
}

function moved(key, i) {
  const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns() };
  if (key === "Home") return 0;
  if (key === "End") return cards() - 1;
  return key in moves ? i + moves[key] : null;
}

function indexOf(card) {
  return [...gallery.children].indexOf(card.parentElement);
}

gallery.addEventListener("keydown", (event) => {
  const to = event.target.matches(".card") ? moved(event.key, indexOf(event.target)) : null;
  if (to === null || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  focusCard(to);
});

gallery.addEventListener("click", (event) => {
  const card = event.target.closest(".card");
  if (card) open(indexOf(card));
});

$("more").addEventListener("click", () => {
  const first = cards();
  more();
  focusCard(first);
});

new IntersectionObserver(([entry]) => entry.isIntersecting && more(), { rootMargin: "600px" }).observe($("end"));

// -- class means ----------------------------------------------------------------------------------------------------

function addMeans() {
  for (const mean of means) {
    const item = $("mean").content.firstElementChild.cloneNode(true);
    const button = item.firstElementChild;
    button.dataset.target = mean.target;
    button.querySelector(".name").textContent = className(mean.target);
    button.querySelector(".numbers").textContent = `mean of ${count(mean.count)}`;
    $("means").append(item);
    watch(button, "means", mean);
  }
}

function markMeans() {
  for (const button of all(".mean")) button.setAttribute("aria-pressed", String(button.dataset.target === $("target").value));
}

$("means").addEventListener("click", (event) => {
  const button = event.target.closest(".mean");
  if (!button) return;
  $("target").value = button.getAttribute("aria-pressed") === "true" ? "" : button.dataset.target;
  choose();
});

// -- conservation plot ----------------------------------------------------------------------------------------------

const plot = $("plot");
const MARGIN = { left: 58, right: 12, top: 10, bottom: 40 };
let points = []; // of what is shown, by logit: {x, y, i}
let pointed = -1;

function median(values) {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

function ticks(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function drawPlot() {
  const finite = shown.map((row, i) => ({ row, i })).filter(({ row }) => row.logit !== null && row.sum !== null);
  const ratios = finite.filter(({ row }) => row.logit !== 0).map(({ row }) => row.sum / row.logit);
  $("ratio").textContent = ratios.length ? `Median of sum / logit: ${number(median(ratios), 3)}.` : "";
  const values = finite.flatMap(({ row }) => [row.logit, row.sum]);
  // One range for both axes: the diagonal is the plot's own.
  let low = values.reduce((a, b) => Math.min(a, b), 0);
  let high = values.reduce((a, b) => Math.max(a, b), 0);
  const room = 0.05 * (high - low || 1);
  [low, high] = [low - room, high + room];
  const width = plot.clientWidth;
  const height = plot.clientHeight;
  const x = (value) => MARGIN.left + ((value - low) / (high - low)) * (width - MARGIN.left - MARGIN.right);
  const y = (value) => height - MARGIN.bottom - ((value - low) / (high - low)) * (height - MARGIN.top - MARGIN.bottom);
  points = finite.map(({ row, i }) => ({ x: x(row.logit), y: y(row.sum), i, row }));
  points.sort((a, b) => a.row.logit - b.row.logit);

  const context = scaled(plot, width, height);
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`);
  drawAxes(context, { low, high, x, y, width, height, colour });
  context.lineWidth = 1.5;
  context.globalAlpha = points.length > 500 ? 0.6 : 0.9;
  for (const point of points) drawMark(context, point, colour(point.row.result));
  context.globalAlpha = 1;
  if (pointed >= 0 && pointed < points.length) {
    context.strokeStyle = colour("ink");
    context.beginPath();
    context.arc(points[pointed].x, points[pointed].y, 8, 0, 2 * Math.PI);
    context.stroke();
  }
}

function scaled(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return context;
}

function drawAxes(context, { low, high, x, y, width, height, colour }) {
  const line = (x0, y0, x1, y1) => {
    context.beginPath();
    context.moveTo(x0, y0);
    context.lineTo(x1, y1);
    context.stroke();
  };
  context.font = "12px system-ui, sans-serif";
  context.fillStyle = colour("faint");
  context.strokeStyle = colour("line");
  for (const tick of ticks(low, high)) {
    line(x(tick), y(low), x(tick), y(high));
    line(x(low), y(tick), x(high), y(tick));
    context.textAlign = "center";
    context.textBaseline = "top";
    context.fillText(number(tick), x(tick), y(low) + 5);
    context.textAlign = "right";
    context.textBaseline = "middle";
    context.fillText(number(tick), x(low) - 6, y(tick));
  }
  context.strokeStyle = colour("faint");
  context.setLineDash([5, 4]);
  line(x(low), y(low), x(high), y(high));
  context.setLineDash([]);
  context.textAlign = "center";
  context.textBaseline = "bottom";
  context.fillText("explained logit", (MARGIN.left + width - MARGIN.right) / 2, height - 2);
  context.save();
  context.translate(2, (MARGIN.top + height - MARGIN.bottom) / 2);
  context.rotate(-Math.PI / 2);
  context.textBaseline = "top";
  context.fillText("relevance sum", 0, 0);
  context.restore();
}

// Shapes as well as colours tell right from wrong.
function drawMark(context, { x, y, row }, colour) {
  context.beginPath();
  context.fillStyle = context.strokeStyle = colour;
  if (row.result === "wrong") {
    for (const sign of [-1, 1]) {
      context.moveTo(x - 3.5, y - 3.5 * sign);
      context.lineTo(x + 3.5, y + 3.5 * sign);
    }
    context.stroke();
  } else {
    context.arc(x, y, 3, 0, 2 * Math.PI);
    if (row.result === "right") context.fill();
    else context.stroke();
  }
}

function nearest(event) {
  const box = plot.getBoundingClientRect();
  const distance = ({ x, y }) => Math.hypot(x - event.clientX + box.left, y - event.clientY + box.top);
  let best = -1;
  let least = 20; // pixels
  points.forEach((point, i) => {
    const far = distance(point);
    if (far < least) [best, least] = [i, far];
  });
  return best;
}

function point(i) {
  pointed = i;
  const row = points[i]?.row;
  $("point").textContent = row ? `${row.file}: logit ${number(row.logit)}, relevance sum ${number(row.sum)}` : "";
  drawPlot();
}

plot.addEventListener("pointermove", (event) => {
  const i = nearest(event);
  if (i !== pointed) point(i);
});
plot.addEventListener("pointerleave", () => point(-1));
plot.addEventListener("blur", () => point(-1));
plot.addEventListener("click", (event) => {
  const i = nearest(event);
  if (i >= 0) open(points[i].i);
});
plot.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
  if (step && points.length) point(Math.min(points.length - 1, Math.max(0, pointed + step)));
  else if (event.key === "Enter" && pointed >= 0) open(points[pointed].i);
  else return;
  event.preventDefault();
});
new ResizeObserver(drawPlot).observe(plot);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawPlot);

// -- one sample -----------------------------------------------------------------------------------------------------

const dialog = $("dialog");
const large = new View(dialog, "rows", null);
let current = 0;

function open(i) {
  current = i;
  const row = shown[i];
  $("dialog-title").textContent = row.file;
  $("previous").disabled = i === 0;
  $("next").disabled = i === shown.length - 1;
  list($("facts"), [
    ["Shown", `${count(i + 1)} of ${count(shown.length)}`],
    ["Place in data set", String(row.index)],
    ["Result", `${SIGNS[row.result]} ${row.result}`],
    ["True class", className(row.label)],
    ["Predicted class", `${className(row.predicted)}, ${percent(row.confidence)}`],
    ["Explained class", `${className(row.target)}, ${percent(row.probability)}`],
    ["Explained logit", number(row.logit, 6)],
    ["Relevance sum", number(row.sum, 6)],
    ["Sum / logit", row.logit && row.sum !== null ? number(row.sum / row.logit, 4) : "none"],
    ["Largest magnitude", number(row.largest, 4)],
  ]);
  $("top").replaceChildren(...row.top.map((each, k) => tableRow(className(each), percent(row.probabilities[k]))));
  dialog.querySelector(".input").alt = `Input ${row.file}`;
  dialog.querySelector(".heat").ariaLabel = `Relevance for ${className(row.target)}`;
  dialog.querySelector(".over").ariaLabel = `Relevance for ${className(row.target)} over the gray input`;
  if (!dialog.open) dialog.showModal();
  large.what = row;
  large.show();
}

function list(target, entries) {
  target.replaceChildren(
    ...entries.flatMap(([name, value]) => [element("dt", name), element("dd", value)]),
  );
}

function tableRow(...cells) {
  const row = document.createElement("tr");
  row.append(...cells.map((cell) => element("td", cell)));
  return row;
}

function element(tag, text) {
  const node = document.createElement(tag);
  node.textContent = text;
  return node;
}

function turn(step) {
  if (current + step >= 0 && current + step < shown.length) open(current + step);
}

// Not on the dialog's "close": browsers fire it later, and meanwhile the card that opened the dialog has the focus.
function shut() {
  dialog.close();
  large.hide();
  focusCard(current);
}

$("previous").addEventListener("click", () => turn(-1));
$("next").addEventListener("click", () => turn(1));
$("close").addEventListener("click", shut);
// On the document: a button that is disabled while it has the focus loses it, and with it the dialog its keys.
document.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || !dialog.open) return;
  event.preventDefault();
  turn(step);
});
dialog.addEventListener("click", (event) => event.target === dialog && shut()); // outside of it
dialog.addEventListener("cancel", (event) => {
  event.preventDefault();
  shut();
});

// -- start ----------------------------------------------------------------------------------------------------------

document.documentElement.style.setProperty("--aspect", `${page.width} / ${page.height}`);
document.body.classList.toggle("pixelated", Math.max(page.width, page.height) <= 64);
fillSelects();
addMeans();
for (const id of [...FILTERS, "sort", "direction"]) $(id).addEventListener("input", choose);
for (const id of ["colors", "range", "scale"]) $(id).addEventListener("input", recolour);
$("controls").addEventListener("submit", (event) => event.preventDefault());
$("all").addEventListener("click", () => {
  for (const id of FILTERS) $(id).value = "";
  choose();
});
choose();
