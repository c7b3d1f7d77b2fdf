// -- lists: what a token rests on and counts for, the strongest first --------------------------------------------------

const MOST = 12;

// `items`: {value, label: nodes, where, more, choose}; those that cannot be chosen are plain lines.
function list(heading, items, nothing) {
  const sorted = items.toSorted((one, other) => Math.abs(other.value) - Math.abs(one.value));
  const end = Math.abs(sorted[0]?.value ?? 0) || 1;
  const shown = sorted.slice(0, MOST);
  const made = element("ol", "", ...shown.map((each) => element("li", "", lineOf(each, end))));
  const parts = [element("h3", "", heading), sorted.length ? made : element("p", "note", nothing)];
  if (sorted.length > MOST) {
    const rest = sorted.slice(MOST).reduce((sum, { value }) => sum + value, 0);
    parts.push(element("p", "note", `and ${count(sorted.length - MOST, "more")}, together ${signed(rest)}`.replace("mores", "more")));
  }
  return parts;
}

function lineOf({ value, label, where, more, choose }, end) {
  const share = element("span", value < 0 ? "share against" : "share");
  share.style.width = `${(100 * Math.abs(value)) / end}%`;
  const words = element("span", "", ...label, " ", element("span", "where", where ?? ""));
  const node = element(choose ? "button" : "div", "", words, element("span", "number", signed(value)), share);
  if (more) node.append(element("span", "of-heads", more));
  if (choose) {
    node.type = "button";
    node.addEventListener("click", choose);
  }
  return node;
}

function facts(pairs) {
  return element("dl", "", ...pairs.flatMap(([name, value]) => [element("dt", "", name), element("dd", "", value)]));
}

function legend(section, low, high) {
  section.querySelector(".low").textContent = low;
  section.querySelector(".high").textContent = high;
}
