// -- words and numbers ----------------------------------------------------------------------------------------------

const SIGNS = { right: "✓", wrong: "✗", unknown: "?" };
const LETTERS = "AB";
const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;

function number(value, digits = 4) {
  return value === null ? "not finite" : String(Number(value.toPrecision(digits)));
}

function percent(value) {
  return value === null ? "not finite" : `${(100 * value).toFixed(1)}%`;
}

function count(n) {
  return n.toLocaleString("en");
}

// A value with its unit, or a probability.
function amount(value) {
  if (!areValues) return percent(value);
  return page.unit ? `${number(value)} ${page.unit}` : number(value);
}

// A name that turns nothing round that stands beside it, whatever its letters.
function name(text) {
  return element("bdi", text);
}

// The same where there can be no elements.
function isolated(text) {
  return RIGHT_TO_LEFT.test(text) ? `\u2068${text}\u2069` : text;
}

function element(tag, ...content) {
  const node = document.createElement(tag);
  node.append(...content);
  return node;
}

// What the model says, as text and names.
function verdict(row, k) {
  const side = row.sides[k];
  const letter = comparing ? `${LETTERS[k]} ` : "";
  if (areValues) return [letter, name(className(side.target)), `: ${amount(side.logit)}`];
  const sign = `${letter}${SIGNS[side.result]} ${side.result}: `;
  const truth = side.result === "wrong" ? [", is ", name(className(row.label))] : [];
  if (areLabels && truth.length && side.truth !== null) truth.push(` ${percent(side.truth)}`);
  return [sign, ...predictions(side), ...truth];
}

function predictions(side) {
  const named = (each, i) => [i ? ", " : "", name(className(each)), ` ${percent(side.numbers[i])}`];
  if (!areLabels) return named(side.top[0], 0);
  if (!side.predicted.length) return ["no label, at most ", ...named(side.top[0], 0)];
  const more = side.predicted.length - 3;
  return [...side.predicted.slice(0, 3).flatMap(named), more > 0 ? ` and ${count(more)} more` : ""];
}

// What is explained.
function explained(side) {
  if (side.predicted.includes(side.target) && !areLabels) return ["predicted class"];
  return [name(className(side.target)), side.probability === null ? "" : ` ${percent(side.probability)}`];
}

// The second line of a card.
function figures(row) {
  if (comparing) {
    const alike = row.correlation === null ? "no correlation" : `correlation ${number(row.correlation, 3)}`;
    const [one, other] = row.sides.map((side) => name(className(side.target)));
    const both = row.sides[0].target === row.sides[1].target ? [one] : [one, " (A), ", other, " (B)"];
    const change = difference(row);
    const from = !change ? "" : ` · ${shortWord} ${change < 0 ? "−" : "+"}${number(Math.abs(change), 3)}`;
    return [`${alike}${from} · explains `, ...both];
  }
  const [side] = row.sides;
  const sum = `relevance ${number(side.sum)}`;
  return areValues ? [sum] : ["explains ", ...explained(side), ` · ${page.words[0]} ${number(side.logit)} · ${sum}`];
}

// How much larger the logit is that the second run explains, where both explain the same.
function difference(row) {
  const [one, other] = row.sides;
  if (!other || one.logit === null || other.logit === null || one.target !== other.target) return null;
  return other.logit - one.logit;
}

const shortWord = areValues ? "value" : page.words[0];

// Names of one folder differ at their ends.
function end(file) {
  const letters = [...file];
  return letters.length > 36 ? `…${letters.slice(-35).join("")}` : file;
}
