// The parts of this script are put together in the order: data, wording, colours, views, choosing, gallery, means, plot,
// dialog, start. This one: what the page holds.

const $ = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];
const parsed = (script) => JSON.parse(script.textContent);
const bytes = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));

const page = parsed($("page"));
const comparing = page.sides.length > 1;
const areValues = page.kind === "values";
const areLabels = page.kind === "labels";
const classNames = unambiguous(page.names);
const pictures = all("script.picture"); // their text is read when they are shown
const rows = all("script.rows").flatMap(parsed).map(record);
const means = parsed($("mean-maps")).map(mean);

function record(values, i) {
  const [index, file, label] = values;
  const sides = values.slice(3, 3 + page.sides.length).map(explanation);
  const [correlation, cosine] = comparing ? values.slice(-2) : [];
  const results = sides.map((side) => side.result);
  const same = comparing && String(sides[0].predicted) === String(sides[1].predicted);
  return {
    index,
    file,
    label,
    sides,
    correlation,
    cosine,
    largest: sides.map((side) => side.largest),
    result: comparing ? results.join("-") : results[0],
    change: same ? "same" : "other",
    source: pictures[i],
    searched: searched([file, className(label), ...sides.flatMap((side) => [...side.predicted, side.target].map(className))]),
  };
}

function explanation([target, logit, sum, probability, truth, top, numbers, largest, result]) {
  return { target, logit, sum, probability, truth, top, numbers, largest, result, predicted: predicted(top, numbers) };
}

// The classes that are predicted: one, or all labels that hold; among values there are none.
function predicted(top, numbers) {
  if (areValues) return [];
  return areLabels ? top.filter((_, i) => numbers[i] >= 0.5) : top.slice(0, 1);
}

function mean([target, found]) {
  const mean = { target, count: 0, largest: [], maps: [] };
  for (const [side, count, largest, map] of found) {
    mean.count = Math.max(mean.count, count);
    mean.largest[side] = largest;
    mean.maps[side] = map;
  }
  return mean;
}

// What a search looks through: small letters, and one form of those with accents.
function searched(names) {
  return names.join("\n").normalize("NFC").toLowerCase();
}

// Some data sets give two classes one name; their numbers tell them apart.
function unambiguous(names) {
  const counts = new Map();
  for (const name of names) counts.set(name, (counts.get(name) ?? 0) + 1);
  return names.map((name, i) => (counts.get(name) > 1 ? `${name} (${i})` : name));
}

function className(number) {
  return number < 0 ? "unknown" : (classNames[number] ?? `${page.thing} ${number}`);
}

// The text of a row's picture script: an input for each side ("-": that of the first), then a map for each.
function unpacked(source) {
  const parts = source.textContent.split(" ");
  const images = parts.slice(0, page.sides.length);
  return { images: images.map((image) => (image === "-" ? images[0] : image)), maps: parts.slice(page.sides.length) };
}

async function inflated(base64) {
  const stream = new Blob([bytes(base64)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
