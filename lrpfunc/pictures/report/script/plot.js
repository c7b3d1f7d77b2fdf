// -- conservation plot ----------------------------------------------------------------------------------------------

const plot = $("plot");
const drawn = document.createElement("canvas"); // the plot without the point that is looked at
const MARGIN = { left: 58, right: 12, top: 10, bottom: 40 };
const COLOURS = ["right", "wrong", "unknown", "value", "first", "second", "ink", "faint", "line"];
let points = []; // of what is shown: {x, y, i, row, side, kind}
let areSorted = false; // by logit, for the keys
let pointed = null;
let laying = 0; // a timer

// The plot comes after the list: of thousands of points it takes longer.
function laySoon() {
  clearTimeout(laying);
  points = [];
  plot.ariaBusy = "true";
  laying = setTimeout(layPlot);
}

function median(values) {
  const sorted = Float64Array.from(values).sort();
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

// Places a point for each explanation shown.
function layPlot() {
  points = [];
  shown.forEach((row, i) => {
    row.sides.forEach((side, k) => {
      if (side.logit === null || side.sum === null) return;
      const kind = comparing ? ["first", "second"][k] : (side.result ?? "value");
      points.push({ row, side, i, k, kind, x: 0, y: 0 });
    });
  });
  areSorted = false;
  pointed = null;
  $("point").textContent = "";
  tellRatio();
  drawPlot();
  plot.ariaBusy = "false";
}

function tellRatio() {
  const told = page.sides.map((_, k) => {
    const ratios = [];
    for (const { side, k: each } of points) if (each === k && side.logit !== 0) ratios.push(side.sum / side.logit);
    return ratios.length ? `${comparing ? `${LETTERS[k]} ` : ""}${number(median(ratios), 3)}` : "";
  });
  const found = told.filter(Boolean).join(", ");
  $("ratio").textContent = found ? `Median of sum / ${shortWord}: ${found}.` : "";
}

function drawPlot() {
  let low = 0;
  let high = 0;
  for (const { side } of points) {
    low = Math.min(low, side.logit, side.sum);
    high = Math.max(high, side.logit, side.sum);
  }
  // One range for both axes: the diagonal is the plot's own.
  const room = 0.05 * (high - low || 1);
  [low, high] = [low - room, high + room];
  const width = plot.clientWidth;
  const height = plot.clientHeight;
  const x = (value) => MARGIN.left + ((value - low) / (high - low)) * (width - MARGIN.left - MARGIN.right);
  const y = (value) => height - MARGIN.bottom - ((value - low) / (high - low)) * (height - MARGIN.top - MARGIN.bottom);
  const context = scaled(plot, width, height);
  const colours = currentColours();
  drawAxes(context, { low, high, x, y, width, height, colours });
  context.lineWidth = 1.5;
  context.globalAlpha = points.length > 500 ? 0.6 : 0.9;
  const taken = new Set(); // of thousands of marks most lie on others
  for (const point of points) {
    point.x = x(point.side.logit);
    point.y = y(point.side.sum);
    const place = (COLOURS.indexOf(point.kind) * 8192 + Math.round(point.y)) * 8192 + Math.round(point.x);
    if (!taken.has(place)) drawMark(context, point, colours[point.kind]);
    taken.add(place);
  }
  drawn.width = plot.width;
  drawn.height = plot.height;
  if (plot.width && plot.height) drawn.getContext("2d").drawImage(plot, 0, 0);
  drawPointed();
}

function drawPointed() {
  if (!plot.width || !plot.height) return;
  const context = plot.getContext("2d");
  context.save();
  context.resetTransform();
  context.globalAlpha = 1;
  context.clearRect(0, 0, plot.width, plot.height);
  context.drawImage(drawn, 0, 0);
  context.restore();
  if (!pointed) return;
  context.globalAlpha = 1;
  context.lineWidth = 1.5;
  context.strokeStyle = currentColours().ink;
  context.beginPath();
  context.arc(pointed.x, pointed.y, 8, 0, 2 * Math.PI);
  context.stroke();
}

function currentColours() {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries(COLOURS.map((each) => [each, style.getPropertyValue(`--${each}`)]));
}

function scaled(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return context;
}

function drawAxes(context, { low, high, x, y, width, height, colours }) {
  const line = (x0, y0, x1, y1) => {
    context.beginPath();
    context.moveTo(x0, y0);
    context.lineTo(x1, y1);
    context.stroke();
  };
  context.font = "12px system-ui, sans-serif";
  context.fillStyle = colours.faint;
  context.strokeStyle = colours.line;
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
  context.strokeStyle = colours.faint;
  context.setLineDash([5, 4]);
  line(x(low), y(low), x(high), y(high));
  context.setLineDash([]);
  context.textAlign = "center";
  context.textBaseline = "bottom";
  context.fillText(`explained ${isolated(page.words[0])}`, (MARGIN.left + width - MARGIN.right) / 2, height - 2);
  context.save();
  context.translate(2, (MARGIN.top + height - MARGIN.bottom) / 2);
  context.rotate(-Math.PI / 2);
  context.textBaseline = "top";
  context.fillText("relevance sum", 0, 0);
  context.restore();
}

// Shapes as well as colours tell right from wrong, and one run from the other.
function drawMark(context, { x, y, kind }, colour) {
  context.beginPath();
  context.fillStyle = context.strokeStyle = colour;
  if (kind === "wrong" || kind === "second") {
    for (const sign of [-1, 1]) {
      context.moveTo(x - 3.5, y - 3.5 * sign);
      context.lineTo(x + 3.5, y + 3.5 * sign);
    }
    context.stroke();
  } else {
    context.arc(x, y, 3, 0, 2 * Math.PI);
    if (kind === "unknown") context.stroke();
    else context.fill();
  }
}

function nearest(event) {
  const box = plot.getBoundingClientRect();
  const [x, y] = [event.clientX - box.left, event.clientY - box.top];
  let best = null;
  let least = 20; // pixels
  for (const point of points) {
    const far = Math.hypot(point.x - x, point.y - y);
    if (far < least) [best, least] = [point, far];
  }
  return best;
}

function pointAt(point) {
  pointed = point;
  $("point").replaceChildren(...(point ? told(point) : []));
  drawPointed();
}

function told({ row, side, k }) {
  const letter = comparing ? ` (${LETTERS[k]})` : "";
  return [name(row.file), `${letter}: ${shortWord} ${number(side.logit)}, relevance sum ${number(side.sum)}`];
}

plot.addEventListener("pointermove", (event) => {
  const point = nearest(event);
  if (point !== pointed) pointAt(point);
});
plot.addEventListener("pointerleave", () => pointAt(null));
plot.addEventListener("blur", () => pointAt(null));
plot.addEventListener("click", (event) => {
  const point = nearest(event);
  if (point) open(point.i);
});
plot.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
  if (step && points.length) {
    if (!areSorted) points.sort((a, b) => a.side.logit - b.side.logit);
    areSorted = true;
    const to = points.indexOf(pointed) + step;
    pointAt(points[Math.min(points.length - 1, Math.max(0, to))]);
  } else if (event.key === "Enter" && pointed) open(pointed.i);
  else return;
  event.preventDefault();
});
new ResizeObserver(drawPlot).observe(plot);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawPlot);
