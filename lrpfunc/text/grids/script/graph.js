// -- graph: tokens in streams, and the edges between them --------------------------------------------------------------

const RESTS = { constants: "constants", dropped: "not shown" };

class Graph {
  constructor(section, graph) {
    this.section = section;
    this.hint = section.querySelector(".hint");
    this.answer = graph.answer;
    this.streams = graph.streams.map((stream) => ({
      ...stream,
      values: floats(stream.values),
      rests: Object.fromEntries(Object.entries(stream.rests).map(([kind, values]) => [kind, floats(values)])),
      branches: stream.branches.map(({ name, values }) => ({ name, values: floats(values) })),
    }));
    this.upward = true;
    this.height = 68;
    this.cell = 28;
    this.place(graph.sides);
    this.join(graph.pairs);
    this.rows = this.streams.map(({ short }) => ({ label: short }));
    this.ends = this.streams.map(({ values }) => largest(values));
    this.explained = this.streams.at(-1).values[0];
    this.first = { row: this.streams.length - 1, column: this.targetColumn };
    this.sort();
    this.start();
  }

  // Columns: constants, what is not shown, then the tokens, one side behind the other.
  place(sides) {
    const kinds = Object.keys(RESTS).filter((kind) => this.streams.some(({ rests }) => kind in rests));
    this.kinds = kinds;
    this.columns = kinds.map((kind) => ({ label: RESTS[kind] }));
    this.starts = [];
    this.words = sides;
    for (const side of sides) {
      this.starts.push(this.columns.length);
      side.forEach((label, i) => this.columns.push({ label, gap: i === 0 && this.columns.length > 0 }));
    }
  }

  column(stream, token) {
    const { side } = this.streams[stream];
    return side === null ? this.targetColumn : this.starts[side] + token;
  }

  token(row, column) {
    const { side, values } = this.streams[row];
    if (side === null) return column === this.targetColumn ? 0 : null;
    const token = column - this.starts[side];
    return token >= 0 && token < values.length ? token : null;
  }

  // All edges, those to constants and to what is not shown among them, and which cells they join.
  join(pairs) {
    const top = this.streams.length - 1;
    this.edges = [];
    this.pairs = pairs.map((pair) => ({ ...pair, by_heads: floats(pair.by_heads), on: Array(pair.heads + 1).fill(true) }));
    this.targetColumn = this.strongestBelow(top);
    for (const pair of this.pairs) {
      const values = floats(pair.values);
      const [rows, columns] = [places(pair.rows), places(pair.columns)];
      values.forEach((value, k) => {
        const from = { row: pair.upper, column: this.column(pair.upper, rows[k]) };
        const to = { row: pair.lower, column: this.column(pair.lower, columns[k]) };
        this.add(from, to, value, pair, k);
      });
    }
    this.streams.forEach(({ rests }, row) => {
      for (const [kind, values] of Object.entries(rests)) {
        values.forEach((value, token) => {
          const to = { row: row - 1, column: this.kinds.indexOf(kind) };
          if (value !== 0) this.add({ row, column: this.column(row, token) }, to, value);
        });
      }
    });
    this.up = new Map();
    this.down = new Map();
    for (const edge of this.edges) {
      append(this.down, key(edge.from), edge);
      append(this.up, key(edge.to), edge);
    }
  }

  add(from, to, value, pair = null, k = 0) {
    this.edges.push({ from, to, value, whole: value, pair, k });
  }

  // Where the target stands: above the token that got most of it.
  strongestBelow(top) {
    let [most, column] = [-1, 0];
    for (const pair of this.pairs.filter(({ upper }) => upper === top)) {
      const columns = places(pair.columns);
      floats(pair.values).forEach((value, k) => {
        if (Math.abs(value) > most) [most, column] = [Math.abs(value), this.column(pair.lower, columns[k])];
      });
    }
    return most < 0 ? this.kinds.length : column;
  }

  // -- what the grid asks for ------------------------------------------------------------------------------------------

  value(row, column) {
    if (column < this.kinds.length) {
      const found = this.up.get(key({ row, column }));
      return found ? found.reduce((sum, { value }) => sum + value, 0) : null;
    }
    const token = this.token(row, column);
    return token === null ? null : this.streams[row].values[token];
  }

  end(row) {
    return $("scale").value === "row" ? this.ends[row] : Math.max(...this.ends);
  }

  word(row, column) {
    if (column < this.kinds.length) return this.columns[column].label;
    return this.streams[row].side === null ? this.answer : this.words[this.streams[row].side][this.token(row, column)];
  }

  where(row, column) {
    if (column < this.kinds.length) return `below ${this.streams[row + 1].short}`;
    const { side, short } = this.streams[row];
    return side === null ? "explained" : `${short}, ${this.token(row, column)}`;
  }

  tell(row, column) {
    const value = this.value(row, column);
    const share = this.explained ? `, ${percent(value / this.explained)} of what is explained` : "";
    return [token(this.word(row, column)), ` (${this.where(row, column)}): relevance ${signed(value)}${share}`];
  }

  paint(context, grid, seen) {
    const focus = grid.hovered ?? grid.chosen;
    const own = focus ? [...(this.up.get(key(focus)) ?? []), ...(this.down.get(key(focus)) ?? [])] : [];
    const end = Math.abs(this.sorted[0]?.value ?? 0) || 1;
    for (let i = this.above() - 1; i >= 0; i--) this.stroke(context, grid, seen, this.sorted[i], end, focus ? 0.12 : 1);
    const most = largest(own.map(({ value }) => value)) || 1;
    own.sort((one, other) => Math.abs(one.value) - Math.abs(other.value));
    for (const edge of own) this.stroke(context, grid, seen, edge, most, 1);
  }

  stroke(context, grid, seen, { from, to, value }, end, opacity) {
    const size = Math.abs(value) / end;
    if (!(size > 0.002)) return;
    const [one, other] = [grid.centre(from.row, from.column), grid.centre(to.row, to.column)];
    if (Math.max(one.x, other.x) < seen.from || Math.min(one.x, other.x) > seen.to) return;
    const out = Math.min(this.cell, grid.rowHeight) / 2; // of a cell
    const [upper, lower] = [one.y + out, other.y - out];
    const half = (lower - upper) / 2;
    context.globalAlpha = opacity * (0.15 + 0.75 * Math.min(1, size));
    context.strokeStyle = value > 0 ? grid.colours.high : grid.colours.low;
    context.lineWidth = 0.75 + 4.5 * Math.min(1, size);
    context.beginPath();
    context.moveTo(one.x, upper);
    context.bezierCurveTo(one.x, upper + half, other.x, lower - half, other.x, lower);
    context.stroke();
    context.globalAlpha = 1;
  }

  // -- which edges are shown -------------------------------------------------------------------------------------------

  sort() {
    this.sorted = this.edges.filter(({ value }) => value !== 0).sort((one, other) => Math.abs(other.value) - Math.abs(one.value));
  }

  least() {
    const step = Number($("threshold").value);
    if (!step || !this.strongest) return 0;
    return this.weakest * (this.strongest / this.weakest) ** (step / 100) * (1 - 1e-6);
  }

  // How many edges are at least as strong as the threshold.
  above() {
    const least = this.least();
    let [low, high] = [0, this.sorted.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (Math.abs(this.sorted[middle].value) >= least) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  start() {
    this.strongest = Math.abs(this.sorted[0]?.value ?? 0);
    this.weakest = Math.max(Math.abs(this.sorted.at(-1)?.value ?? 0), 1e-5 * this.strongest);
    const wanted = Math.abs(this.sorted[Math.min(this.sorted.length, 100) - 1]?.value ?? 0);
    const span = Math.log(this.strongest / this.weakest);
    $("threshold").value = span > 0 && this.sorted.length > 100 ? Math.floor((100 * Math.log(wanted / this.weakest)) / span) : 0;
    this.heads();
    this.grid = new Grid(this.section, this);
    $("threshold").addEventListener("input", () => this.tellEdges());
    $("scale").addEventListener("input", () => this.tellEdges());
    $("controls").addEventListener("submit", (event) => event.preventDefault());
    $("explained").textContent = signed(this.explained, 4);
    this.tellEdges();
  }

  tellEdges() {
    const least = this.least();
    const share = this.explained && least ? `, ${percent(least / Math.abs(this.explained))} of what is explained` : "";
    $("least").textContent = least ? signed(least).slice(1) + share : "any size";
    $("threshold").setAttribute("aria-valuetext", $("least").textContent);
    $("count").textContent = `${this.above().toLocaleString("en")} of ${count(this.sorted.length, "edge")} drawn, those to constants among them`;
    const byRow = $("scale").value === "row";
    const end = Math.max(...this.ends);
    legend(this.section, byRow ? "− the largest of the layer" : signed(-end), byRow ? "+ the largest of the layer" : signed(end));
    this.grid.draw();
  }

  // -- heads -----------------------------------------------------------------------------------------------------------

  heads() {
    const split = this.pairs.filter(({ heads }) => heads);
    if (!split.length) return;
    $("heads").hidden = false;
    const names = split.map(({ upper }) => this.streams[upper].short);
    $("heads-of").append(...["all layers", ...names].map((name, i) => new Option(name, i - 1)));
    const of = () => (Number($("heads-of").value) < 0 ? split : [split[Number($("heads-of").value)]]);
    const set = (to) => {
      for (const pair of of()) pair.on.fill(to);
      this.rework(of());
    };
    $("heads-of").addEventListener("input", () => this.chips(of()));
    $("heads-all").addEventListener("click", () => set(true));
    $("heads-none").addEventListener("click", () => set(false));
    this.of = of;
    this.chips(split);
  }

  chips(pairs) {
    const most = Math.max(...pairs.map(({ heads }) => heads));
    const chip = (label, number) => {
      const found = pairs.map((pair) => pair.on[number < 0 ? pair.heads : number]).filter((on) => on !== undefined);
      const button = element("button", "", label);
      button.type = "button";
      button.dataset.head = number;
      button.setAttribute("aria-pressed", found.every(Boolean) ? "true" : found.some(Boolean) ? "mixed" : "false");
      button.setAttribute("aria-label", number < 0 ? "stays at its token" : `head ${number}`);
      button.addEventListener("click", () => this.toggle(pairs, number, !found.every(Boolean)));
      return button;
    };
    $("chips").replaceChildren(chip("stays", -1), ...Array.from({ length: most }, (_, head) => chip(String(head), head)));
  }

  toggle(pairs, number, to) {
    for (const pair of pairs) {
      const at = number < 0 ? pair.heads : number;
      if (at < pair.on.length && (number < 0 || at < pair.heads)) pair.on[at] = to;
    }
    this.rework(pairs);
    $("chips").querySelector(`[data-head="${number}"]`).focus();
  }

  // What edges are without the heads that are off.
  rework(pairs) {
    const changed = new Set(pairs);
    for (const edge of this.edges) {
      if (!changed.has(edge.pair)) continue;
      const { on } = edge.pair;
      const parts = this.parts(edge);
      edge.value = on.every(Boolean) ? edge.whole : parts.reduce((sum, part, h) => (on[h] ? sum + part : sum), 0);
    }
    this.sort();
    this.chips(this.of());
    this.chosen(this.grid.chosen);
    this.tellEdges();
  }

  // An edge by heads, and last what no head took: nothing, but for rounding, between different tokens.
  parts({ pair, k, whole }) {
    const parts = [...pair.by_heads.subarray(k * pair.heads, (k + 1) * pair.heads)];
    const left = whole - parts.reduce((sum, part) => sum + part, 0);
    return [...parts, Math.abs(left) > 1e-5 * Math.max(Math.abs(whole), largest(parts)) ? left : 0];
  }

  headsOf(edge) {
    if (!edge.pair?.heads) return "";
    const named = this.parts(edge).map((part, h) => [h === edge.pair.heads ? "stays" : `head ${h}`, part, edge.pair.on[h]]);
    const least = 0.01 * largest(named.map(([, part]) => part));
    const shown = named.filter(([, part, on]) => on && Math.abs(part) > least);
    shown.sort((one, other) => Math.abs(other[1]) - Math.abs(one[1]));
    return shown.slice(0, 4).map(([name, part]) => `${name} ${signed(part, 2)}`).join(", ");
  }

  // -- the token that is chosen ----------------------------------------------------------------------------------------

  chosen(cell) {
    const panel = this.section.querySelector(".panel");
    if (!cell) {
      panel.replaceChildren(this.hint);
      return;
    }
    const { row, column } = cell;
    const heading = element("h3", "", token(this.word(row, column)), " ", element("span", "note", this.where(row, column)));
    const isTarget = this.streams[row].side === null;
    const isRead = !this.pairs.some(({ upper }) => upper === row);
    const up = this.list(cell, "up", "Counts for (above)", isTarget ? "It is what is explained." : "No edge comes from above.");
    const down = this.list(cell, "down", "Rests on (below)", isRead ? "It is what the model reads." : "No edge goes below.");
    panel.replaceChildren(heading, this.facts(cell), ...(column < this.kinds.length ? [up] : [down, up]));
  }

  facts({ row, column }) {
    const value = this.value(row, column);
    const pairs = [["relevance", signed(value, 4)]];
    if (this.explained) pairs.push(["of what is explained", percent(value / this.explained)]);
    const at = this.token(row, column);
    if (column >= this.kinds.length) {
      pairs.push(["stream", this.streams[row].name]);
      for (const { name, values } of this.streams[row].branches) pairs.push([`added by ${name}`, signed(values[at])]);
    }
    return facts(pairs);
  }

  list(cell, way, heading, nothing) {
    const ends = (way === "up" ? this.up : this.down).get(key(cell)) ?? [];
    const items = ends.filter(({ value }) => value !== 0).map((edge) => {
      const end = way === "up" ? edge.from : edge.to;
      return {
        value: edge.value,
        label: [token(this.word(end.row, end.column))],
        where: this.where(end.row, end.column),
        more: this.headsOf(edge),
        choose: () => this.follow(end, way),
      };
    });
    return element("div", way, ...list(heading, items, nothing));
  }

  // Goes on to the other end of an edge; the keys stay in the list.
  follow(cell, way) {
    this.grid.choose(cell);
    const next = this.section.querySelector(`.panel .${way} button`) ?? this.grid.scroll;
    next.focus({ preventScroll: true });
  }
}

function key({ row, column }) {
  return row * 2 ** 24 + column;
}

function append(map, at, value) {
  if (map.has(at)) map.get(at).push(value);
  else map.set(at, [value]);
}
