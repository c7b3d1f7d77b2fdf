// -- what is shown --------------------------------------------------------------------------------------------------

const TYPING = 150; // milliseconds without a key, after which a search begins
const FILTERS = ["search", "result", "change", "label", "predicted", "predicted-b", "target"].filter($);
// The classes of a row that a filter goes by.
const CLASSES = {
  label: (row) => [row.label],
  predicted: (row) => row.sides[0].predicted,
  "predicted-b": (row) => row.sides[1].predicted,
  target: (row) => [row.sides[0].target],
};
const KEYS = {
  index: (row) => row.index,
  sum: (row) => row.sides[0].sum,
  logit: (row) => row.sides[0].logit,
  confidence: (row) => row.sides[0].numbers[0],
  correlation: (row) => row.correlation,
  cosine: (row) => row.cosine,
  change: difference,
};
const orders = new Map(); // rows in each order that was asked for: typing need not sort again
let shown = [];
let typing = 0; // a timer
let isTyping = false;

function ordered() {
  const key = $("sort").value;
  const direction = Number($("direction").value);
  const which = `${key} ${direction}`;
  if (!orders.has(which)) {
    const keyed = rows.map((row) => ({ row, value: KEYS[key](row) }));
    // What is not finite comes last, whatever the direction.
    keyed.sort((a, b) => (a.value === null) - (b.value === null) || direction * (a.value - b.value));
    orders.set(which, keyed.map(({ row }) => row));
  }
  return orders.get(which);
}

// What must hold of a row to be shown, as far as anything is asked.
function conditions() {
  const value = (id) => $(id)?.value ?? "";
  const found = searched([value("search")]).split(/\s+/).filter(Boolean).map((word) => (row) => row.searched.includes(word));
  for (const id of ["result", "change"]) if (value(id)) found.push((row) => row[id] === value(id));
  for (const [id, classes] of Object.entries(CLASSES)) {
    const wanted = Number(value(id));
    if (value(id)) found.push((row) => classes(row).includes(wanted));
  }
  return found;
}

function choose() {
  clearTimeout(typing);
  isTyping = false;
  const wanted = conditions();
  shown = ordered().filter((row) => wanted.every((holds) => holds(row)));
  scales.rows = greatest(shown);
  scales.means = greatest(means);
  $("count").textContent = `showing ${count(shown.length)} of ${count(rows.length)}`;
  $("none").hidden = shown.length > 0;
  restart();
  markMeans();
  laySoon();
  recolour();
  $("gallery").ariaBusy = "false";
}

// A key that is pressed waits for no list: the search begins when the typing stops.
function chooseSoon() {
  clearTimeout(typing);
  isTyping = true;
  $("gallery").ariaBusy = "true";
  typing = setTimeout(choose, TYPING);
}

function greatest(list) {
  let most = 0;
  for (const { largest } of list) for (const each of largest) most = Math.max(most, each ?? 0);
  return most;
}

function fillSelects() {
  for (const id of Object.keys(CLASSES).filter($)) {
    const counts = new Map();
    for (const row of rows) for (const each of CLASSES[id](row)) counts.set(each, (counts.get(each) ?? 0) + 1);
    const options = [new Option("any", "")];
    for (const value of [...counts.keys()].sort((a, b) => a - b)) {
      options.push(new Option(`${isolated(className(value))}: ${count(counts.get(value))}`, String(value)));
    }
    $(id).append(...options);
  }
  for (const colors of Object.keys(colormaps)) $("colors").append(new Option(colors, colors));
}
