// -- one sample -----------------------------------------------------------------------------------------------------

const dialog = $("dialog");
const large = new View(dialog, "rows", null);
let current = 0;

function open(i) {
  clearTimeout(typing); // what is shown stays while one goes through it
  current = i;
  const row = shown[i];
  $("dialog-title").textContent = row.file;
  $("previous").disabled = i === 0;
  $("next").disabled = i === shown.length - 1;
  const common = [
    ["Shown", `${count(i + 1)} of ${count(shown.length)}`],
    ["Place in data set", String(row.index)],
    ...(areValues ? [] : [[`True ${page.thing}`, name(className(row.label))]]),
  ];
  const own = row.sides.map((side, k) => ownFacts(row, side, k));
  if (comparing) {
    list($("facts"), [...common, ...alike(row)]);
    all("#dialog .of-side").forEach((target, k) => list(target, own[k]));
  } else list($("facts"), [...common, ...own[0]]);
  all("#dialog .top").forEach((body, k) => {
    const { top, numbers } = row.sides[k];
    body.replaceChildren(...top.map((each, rank) => tableRow(name(className(each)), amount(numbers[rank]))));
  });
  describe(row);
  if (!dialog.open) dialog.showModal();
  large.what = row;
  large.show();
}

function ownFacts(row, side, k) {
  const word = page.words[k];
  const facts = [];
  if (!areValues) facts.push(["Result", `${SIGNS[side.result]} ${side.result}`]);
  if (areLabels) facts.push(["Labels of 50% or more", labels(side)]);
  else if (!areValues) facts.push(["Predicted class", withPercent(side.top[0], side.numbers[0])]);
  facts.push([`Explained ${page.thing}`, withPercent(side.target, areValues ? undefined : side.probability)]);
  return [
    ...facts,
    [areValues ? capital(word) : `Explained ${word}`, number(side.logit, 6)],
    ["Relevance sum", number(side.sum, 6)],
    [`Sum / ${areValues ? "value" : word}`, side.logit && side.sum !== null ? number(side.sum / side.logit, 4) : "none"],
    ["Largest magnitude", number(side.largest, 4)],
  ];
}

function withPercent(each, probability) {
  return element("span", name(className(each)), probability === undefined ? "" : `, ${percent(probability)}`);
}

function labels({ predicted }) {
  if (!predicted.length) return "none";
  return element("span", ...predicted.flatMap((each, i) => [i ? ", " : "", name(className(each))]));
}

function alike(row) {
  const shownAs = (value) => (value === null ? "none" : number(value, 4));
  const change = difference(row);
  return [
    ["Correlation of the maps", shownAs(row.correlation)],
    ["Cosine of the maps", shownAs(row.cosine)],
    [`Change of the ${page.words[0]}`, change === null ? `none: each explains another ${page.thing}` : number(change, 4)],
    ...(areValues ? [] : [["Predictions", row.change === "same" ? "the same" : "different"]]),
  ];
}

// For those who do not see the pictures.
function describe(row) {
  const letter = (node) => (comparing ? ` (${LETTERS[sideOf(node)]})` : "");
  for (const input of all("#dialog .input")) input.alt = `Input ${row.file}${letter(input)}`;
  for (const canvas of all("#dialog canvas")) {
    const over = canvas.classList.contains("over") ? " over the gray input" : "";
    canvas.ariaLabel = `Relevance for ${className(row.sides[sideOf(canvas)].target)}${over}${letter(canvas)}`;
  }
}

function capital(text) {
  return text[0].toUpperCase() + text.slice(1);
}

function list(target, entries) {
  target.replaceChildren(...entries.flatMap(([term, value]) => [element("dt", term), element("dd", value)]));
}

function tableRow(...cells) {
  return element("tr", ...cells.map((cell) => element("td", cell)));
}

function turn(step) {
  if (current + step >= 0 && current + step < shown.length) open(current + step);
}

// Not on the dialog's "close": browsers fire it later, and meanwhile the card that opened the dialog has the focus.
function shut() {
  dialog.close();
  large.hide();
  if (isTyping) choose();
  focusCard(Math.min(current, shown.length - 1));
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
