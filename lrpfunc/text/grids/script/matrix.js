// -- matrix: tokens of an answer, and what they rest on ----------------------------------------------------------------

class Matrix {
  constructor(section, { rows, columns, values, limit }) {
    this.section = section;
    this.hint = section.querySelector(".hint");
    this.rows = rows.map((label) => ({ label }));
    this.columns = columns.map((label) => ({ label }));
    this.values = floats(values);
    this.limit = limit;
    this.upward = false;
    this.height = 30;
    this.cell = 44;
    this.first = { row: 0, column: 0 };
    // Whether the answer's tokens are the last of the columns.
    const start = columns.length - rows.length;
    this.start = rows.every((label, i) => columns[start + i] === label) ? start : null;
    legend(section, signed(-limit), signed(limit));
    this.grid = new Grid(section, this);
    this.write();
  }

  value(row, column) {
    return this.values[row * this.columns.length + column];
  }

  end() {
    return this.limit;
  }

  paint() {}

  tell(row, column) {
    const value = signed(this.value(row, column));
    return [token(this.rows[row].label), ` (${row} of the answer) rests on `, token(this.columns[column].label), ` (${column}): ${value}`];
  }

  chosen(cell) {
    const panel = this.section.querySelector(".panel");
    this.colour(cell);
    if (!cell) {
      panel.replaceChildren(this.hint);
      return;
    }
    const { row, column } = cell;
    const along = this.columns.map(({ label }, j) => this.item(label, `${j}`, row, j)).filter(({ value }) => value !== 0);
    const across = this.rows.map(({ label }, i) => this.item(label, `${i} of the answer`, i, column)).filter(({ value }) => value !== 0);
    const sum = along.reduce((total, { value }) => total + value, 0);
    const counts = element("h3", "", "What counts on ", token(this.columns[column].label), " ", element("span", "note", `${column}`));
    panel.replaceChildren(
      element("h3", "", token(this.rows[row].label), " ", element("span", "note", `${row} of the answer`)),
      facts([["sum of its row", signed(sum, 4)]]),
      element("div", "down", ...list("Rests on", along, "It rests on nothing.")),
      element("div", "up", counts, ...list("", across, "Nothing counts on it.").slice(1)),
    );
  }

  item(label, where, row, column) {
    return { value: this.value(row, column), label: [token(label)], where, choose: () => this.grid.choose({ row, column }) };
  }

  // -- the text, in the colours of a row -------------------------------------------------------------------------------

  write() {
    const span = ({ label }, cell) => {
      const made = element("span", "", label);
      made.addEventListener("click", () => this.grid.choose(cell()));
      return made;
    };
    const row = () => this.grid.chosen?.row ?? 0;
    this.spans = this.columns.map((each, j) => span(each, () => this.cellOf(j) ?? { row: row(), column: j }));
    const parts = this.spans.flatMap((made, j) => (this.columns[j].label.endsWith("⏎") ? [made, "\n"] : [made]));
    this.answers = this.start === null ? this.rows.map((each, i) => span(each, () => this.strongestOf(i))) : this.spans.slice(this.start);
    if (this.start === null) parts.push("\n→ ", ...this.answers);
    $("text").tabIndex = 0;
    $("text").append(...parts);
  }

  // The cell of an answer's token in the text.
  cellOf(column) {
    return this.start !== null && column >= this.start ? this.strongestOf(column - this.start) : null;
  }

  strongestOf(row) {
    return this.grid.strongest(this.columns.map((_, column) => [row, column]));
  }

  colour(cell) {
    this.spans.forEach((span, column) => {
      const value = cell ? this.value(cell.row, column) : 0;
      const share = Math.min(1, Math.abs(value) / this.limit);
      span.style.backgroundColor = share ? `color-mix(in srgb, var(--${value > 0 ? "high" : "low"}) ${100 * share}%, transparent)` : "";
      span.style.color = share > 0.55 ? "var(--on-high)" : "";
      span.title = cell ? signed(value) : "";
    });
    this.answers.forEach((span, row) => span.classList.toggle("is-row", cell?.row === row));
  }
}
