// The parts of this script are put together in the order: data, grid, lists, graph, matrix, start. This one: what the
// page holds, and how numbers and words are written.

const $ = (id) => document.getElementById(id);
const bytes = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)).buffer;
const floats = (base64) => new Float32Array(bytes(base64));
const places = (base64) => new Uint32Array(bytes(base64));
const data = JSON.parse($("data").textContent);

function signed(value, digits = 3) {
  const text = String(Number(Math.abs(value).toPrecision(digits)));
  return value === 0 ? "0" : `${value < 0 ? "−" : "+"}${text}`;
}

function percent(share) {
  return `${signed(100 * share, Math.abs(share) < 1 ? 2 : 3).replace("+", "")}\u00a0%`;
}

function count(n, what) {
  return `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;
}

function element(tag, name, ...content) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  node.append(...content);
  return node;
}

// A token that turns nothing round that stands beside it, whatever its letters.
function token(text) {
  return element("bdi", "token", text);
}

// The same where there can be no elements.
function isolated(text) {
  return `\u2068${text}\u2069`;
}

function largest(values) {
  let most = 0;
  for (const value of values) most = Math.max(most, Math.abs(value));
  return most;
}
