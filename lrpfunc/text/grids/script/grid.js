// -- grid: rows and columns of cells on a canvas that shows what is scrolled to; labels stay in sight ------------------

const FONT = "13px system-ui, sans-serif";
const BOLD = `600 ${FONT}`;
const LONGEST = 116; // of a label above or below a column, in pixels
const coarse = matchMedia("(pointer: coarse)");
const dark = matchMedia("(prefers-color-scheme: dark)");
const letters = new Intl.Segmenter(undefined, { granularity: "grapheme" });

// What it draws is a `model`: `rows` and `columns` ({label, gap}), whether rows go `upward`, `height` of a row and of a
// `cell` in it, `value(row, column)` (null where there is no cell), `end(row)` of the colours, `first` cell; `paint`s
// what lies between cells, `tell`s in words what a cell is, and is told which one is `chosen`.
class Grid {
  constructor(section, model) {
    this.scroll = section.querySelector(".scroll");
    this.canvas = section.querySelector("canvas");
    this.context = this.canvas.getContext("2d");
    this.space = section.querySelector(".space");
    this.told = section.querySelector(".told");
    this.model = model;
    this.cursor = null; // where the keys are
    this.hovered = null;
    this.chosen = null;
    this.drawing = 0;
    this.listen();
    this.lay();
  }

  listen() {
    const { scroll } = this;
    new ResizeObserver(() => this.lay()).observe(scroll.parentElement);
    for (const query of [coarse, dark]) query.addEventListener("change", () => this.lay());
    scroll.addEventListener("scroll", () => this.draw());
    scroll.addEventListener("pointermove", (event) => event.pointerType === "mouse" && this.hover(this.cellAt(event, false)));
    scroll.addEventListener("pointerleave", () => this.hover(null));
    scroll.addEventListener("click", (event) => this.choose(this.cellAt(event)));
    scroll.addEventListener("keydown", (event) => this.press(event));
    scroll.addEventListener("focus", () => {
      this.cursor ??= this.chosen ?? this.model.first;
      this.draw();
    });
    scroll.addEventListener("blur", () => this.draw());
  }

  // -- where things are: columns and rows from the left and top of what is scrolled ------------------------------------

  lay() {
    const { scroll, model, context, canvas } = this;
    canvas.style.width = canvas.style.height = "0";
    const style = getComputedStyle(document.documentElement);
    this.colours = Object.fromEntries(
      ["paper", "panel", "ink", "faint", "line", "accent", "high", "low"].map((name) => [name, style.getPropertyValue(`--${name}`)]),
    );
    context.font = BOLD;
    const measured = (parts) => Math.ceil(parts.reduce((most, { label }) => Math.max(most, context.measureText(label).width), 0));
    const width = scroll.clientWidth;
    this.left = Math.min(measured(model.rows) + 16, Math.max(72, Math.min(190, 0.28 * width)));
    const widest = Math.min(measured(model.columns), LONGEST);
    const n = model.columns.length;
    const least = coarse.matches ? 44 : 30;
    const flat = Math.max(least, widest + 12);
    const gaps = model.columns.filter(({ gap }) => gap).length * 16;
    const room = (width - this.left - gaps - 4) / n;
    this.isFlat = flat <= Math.max(room, least + 12);
    this.width = Math.min(Math.max(this.isFlat ? flat : least, room), 104);
    this.band = this.isFlat ? 30 : widest + 14;
    this.xs = [];
    let x = 0;
    for (const { gap } of model.columns) {
      if (gap) x += 16;
      this.xs.push(x);
      x += this.width;
    }
    this.rowHeight = coarse.matches ? Math.max(model.height, 44) : model.height;
    this.total = { width: this.left + x + 4, height: this.band + this.rowHeight * model.rows.length };
    this.space.style.width = `${this.total.width}px`;
    this.space.style.height = `${this.total.height}px`;
    const bars = scroll.offsetHeight - scroll.clientHeight;
    scroll.style.height = `${Math.min(this.total.height + Math.max(bars, 2), Math.max(240, 0.72 * innerHeight))}px`;
    if (!this.isLaid) this.show(model.first);
    this.isLaid = true;
    this.draw();
  }

  get top() {
    return this.model.upward ? 0 : this.band;
  }

  y(row) {
    return this.rowHeight * (this.model.upward ? this.model.rows.length - 1 - row : row);
  }

  centre(row, column) {
    return { x: this.xs[column] + this.width / 2, y: this.y(row) + this.rowHeight / 2 };
  }

  // The cell under a pointer; where that is on a label, if it may be, the strongest one of its row or column.
  cellAt(event, mayBeLabel = true) {
    const box = this.canvas.getBoundingClientRect();
    const x = event.clientX - box.left;
    const y = event.clientY - box.top;
    const row = this.rowAt(y - this.top + this.scroll.scrollTop);
    const column = this.columnAt(x - this.left + this.scroll.scrollLeft);
    const isOnBand = this.model.upward ? y > this.scroll.clientHeight - this.band : y < this.band;
    if (!mayBeLabel && (x < this.left || isOnBand)) return null;
    if (x < this.left) return isOnBand || row === null ? null : this.strongest(this.model.columns.map((_, j) => [row, j]));
    if (isOnBand) return column === null ? null : this.strongest(this.model.rows.map((_, i) => [i, column]));
    if (row === null || column === null || this.model.value(row, column) === null) return null;
    return { row, column };
  }

  rowAt(y) {
    const i = Math.floor(y / this.rowHeight);
    const n = this.model.rows.length;
    if (i < 0 || i >= n) return null;
    return this.model.upward ? n - 1 - i : i;
  }

  columnAt(x) {
    const near = this.xs.findLastIndex((start) => start <= x);
    return near >= 0 && x < this.xs[near] + this.width ? near : null;
  }

  strongest(cells) {
    const size = ([row, column]) => Math.abs(this.model.value(row, column));
    const found = cells.filter(([row, column]) => this.model.value(row, column) !== null);
    const best = found.reduce((one, other) => (one && size(one) >= size(other) ? one : other), null);
    return best && { row: best[0], column: best[1] };
  }

  // -- what is pointed at and chosen -----------------------------------------------------------------------------------

  hover(cell) {
    if (same(cell, this.hovered)) return;
    this.hovered = cell;
    this.tell(cell ?? this.chosen);
    this.draw();
  }

  tell(cell) {
    this.told.replaceChildren(...(cell ? this.model.tell(cell.row, cell.column) : []));
  }

  choose(cell) {
    this.chosen = cell;
    if (cell) this.cursor = cell;
    this.tell(cell);
    this.model.chosen(cell);
    if (cell) this.show(cell);
    this.draw();
  }

  press(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const at = this.cursor ?? this.model.first;
    const up = this.model.upward ? 1 : -1;
    const moves = {
      ArrowLeft: () => this.along(at, -1),
      ArrowRight: () => this.along(at, 1),
      ArrowUp: () => this.across(at, up),
      ArrowDown: () => this.across(at, -up),
      Home: () => this.along({ row: at.row, column: -1 }, 1),
      End: () => this.along({ row: at.row, column: this.model.columns.length }, -1),
    };
    if (event.key in moves) {
      this.cursor = moves[event.key]() ?? at;
      this.tell(this.cursor);
      this.show(this.cursor);
      this.draw();
    } else if (event.key === "Enter" || event.key === " ") this.choose(at);
    else if (event.key === "Escape") this.choose(null);
    else return;
    event.preventDefault();
  }

  // The next cell of a row.
  along({ row, column }, step) {
    for (let j = column + step; j >= 0 && j < this.model.columns.length; j += step) {
      if (this.model.value(row, j) !== null) return { row, column: j };
    }
    return null;
  }

  // The next cell of a column, or else the nearest cell of the next row that has any.
  across({ row, column }, step) {
    const n = this.model.columns.length;
    for (let i = row + step; i >= 0 && i < this.model.rows.length; i += step) {
      if (this.model.value(i, column) !== null) return { row: i, column };
    }
    for (let i = row + step; i >= 0 && i < this.model.rows.length; i += step) {
      for (let away = 0; away < n; away++) {
        for (const j of [column - away, column + away]) {
          if (j >= 0 && j < n && this.model.value(i, j) !== null) return { row: i, column: j };
        }
      }
    }
    return null;
  }

  // Scrolls a cell out from under the labels.
  show({ row, column }) {
    const { scroll } = this;
    const seen = { width: scroll.clientWidth - this.left, height: scroll.clientHeight - this.band };
    const margin = Math.min(this.width, seen.width / 4);
    const x = this.xs[column];
    const y = this.y(row);
    if (x - margin < scroll.scrollLeft) scroll.scrollLeft = x - margin;
    else if (x + this.width + margin > scroll.scrollLeft + seen.width) scroll.scrollLeft = x + this.width + margin - seen.width;
    if (y < scroll.scrollTop) scroll.scrollTop = y;
    else if (y + this.rowHeight > scroll.scrollTop + seen.height) scroll.scrollTop = y + this.rowHeight - seen.height;
  }

  // -- drawing ---------------------------------------------------------------------------------------------------------

  draw() {
    cancelAnimationFrame(this.drawing);
    this.drawing = requestAnimationFrame(() => this.paint());
  }

  paint() {
    const { canvas, context, scroll } = this;
    const [width, height] = [scroll.clientWidth, scroll.clientHeight];
    const ratio = devicePixelRatio;
    [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
    [canvas.style.width, canvas.style.height] = [`${width}px`, `${height}px`];
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = this.colours.paper;
    context.fillRect(0, 0, width, height);
    context.save();
    context.beginPath();
    context.rect(this.left, this.top, width - this.left, height - this.band);
    context.clip();
    context.translate(this.left - scroll.scrollLeft, this.top - scroll.scrollTop);
    const seen = { from: scroll.scrollLeft, to: scroll.scrollLeft + width - this.left };
    const rows = this.model.rows.map((_, i) => i).filter((i) => this.isSeen(i, height));
    this.model.paint(context, this, seen);
    for (const row of rows) this.paintRow(row, seen);
    for (const [cell, colour] of this.rings()) this.paintRing(cell, colour);
    context.restore();
    this.paintLabels(rows, width, height);
  }

  isSeen(row, height) {
    const y = this.y(row) - this.scroll.scrollTop;
    return y + this.rowHeight > 0 && y < height - this.band;
  }

  paintRow(row, seen) {
    const { context, colours, model } = this;
    const end = model.end(row) || 1;
    const tall = Math.min(model.cell, this.rowHeight) - 2;
    const y = this.y(row) + (this.rowHeight - tall) / 2;
    for (let column = 0; column < this.xs.length; column++) {
      const x = this.xs[column];
      if (x + this.width < seen.from || x > seen.to) continue;
      const value = model.value(row, column);
      if (value === null) continue;
      context.beginPath();
      context.roundRect(x + 1.5, y, this.width - 3, tall, 4);
      context.fillStyle = colours.paper;
      context.fill();
      context.globalAlpha = Math.min(1, Math.abs(value) / end);
      context.fillStyle = value > 0 ? colours.high : colours.low;
      context.fill();
      context.globalAlpha = 1;
      context.strokeStyle = colours.line;
      context.lineWidth = 1;
      context.stroke();
    }
  }

  rings() {
    const isHere = document.activeElement === this.scroll;
    const rings = [[this.hovered, "faint"], [isHere ? this.cursor : null, "ink"], [this.chosen, "accent"]];
    return rings.filter(([cell]) => cell);
  }

  paintRing({ row, column }, colour) {
    const { context, model } = this;
    const tall = Math.min(model.cell, this.rowHeight) - 2;
    context.beginPath();
    context.roundRect(this.xs[column] + 1, this.y(row) + (this.rowHeight - tall) / 2 - 0.5, this.width - 2, tall + 1, 4);
    context.lineWidth = colour === "accent" ? 3 : 2;
    context.strokeStyle = this.colours[colour];
    context.stroke();
  }

  paintLabels(rows, width, height) {
    const { context, colours, model, scroll } = this;
    const bandTop = model.upward ? height - this.band : 0;
    context.fillStyle = colours.panel;
    context.fillRect(0, 0, this.left, height);
    context.fillRect(0, bandTop, width, this.band);
    context.strokeStyle = colours.line;
    context.lineWidth = 1;
    const edge = model.upward ? bandTop + 0.5 : this.band - 0.5;
    line(context, this.left - 0.5, 0, this.left - 0.5, height);
    line(context, 0, edge, width, edge);
    context.font = FONT;
    context.textBaseline = "middle";
    context.save();
    context.beginPath();
    context.rect(0, this.top, this.left, height - this.band);
    context.clip();
    for (const row of rows) {
      const y = this.y(row) + this.rowHeight / 2 + this.top - scroll.scrollTop;
      this.paintLabel(model.rows[row].label, 8, y, this.left - 14, this.isMarked("row", row), "left", model.upward);
    }
    context.restore();
    context.beginPath();
    context.rect(this.left, bandTop, width - this.left, this.band);
    context.clip();
    this.xs.forEach((start, column) => {
      const x = start + this.left - scroll.scrollLeft;
      if (x + this.width < this.left || x > width) return;
      this.paintColumnLabel(column, x + this.width / 2, bandTop);
    });
  }

  paintColumnLabel(column, x, bandTop) {
    const { context, model } = this;
    const { label } = model.columns[column];
    const isMarked = this.isMarked("column", column);
    if (this.isFlat) {
      this.paintLabel(label, x, bandTop + this.band / 2, this.width - 6, isMarked, "center");
      return;
    }
    context.save();
    context.translate(x, model.upward ? bandTop + 7 : this.band - 7);
    context.rotate(-Math.PI / 2);
    this.paintLabel(label, 0, 0, LONGEST, isMarked, model.upward ? "right" : "left");
    context.restore();
  }

  paintLabel(text, x, y, room, isMarked, align = "left", keepsEnd = false) {
    const { context, colours } = this;
    context.fillStyle = isMarked ? colours.ink : colours.faint;
    context.font = isMarked ? BOLD : FONT;
    context.textAlign = align;
    context.fillText(shortened(context, text, room, keepsEnd), x, y);
  }

  isMarked(axis, number) {
    return [this.hovered, this.chosen, document.activeElement === this.scroll ? this.cursor : null].some((cell) => cell?.[axis] === number);
  }
}

function same(one, other) {
  return one?.row === other?.row && one?.column === other?.column;
}

function line(context, ...ends) {
  context.beginPath();
  context.moveTo(ends[0], ends[1]);
  context.lineTo(ends[2], ends[3]);
  context.stroke();
}

// As many whole letters of a text as there is room for, the first or the last ones: joined emoji stay whole.
function shortened(context, text, room, keepsEnd) {
  if (context.measureText(text).width <= room) return isolated(text);
  const parts = Array.from(letters.segment(keepsEnd ? text.slice(-200) : text.slice(0, 200)), ({ segment }) => segment);
  const joined = () => (keepsEnd ? `…${parts.join("")}` : `${parts.join("")}…`);
  while (parts.length && context.measureText(joined()).width > room) keepsEnd ? parts.shift() : parts.pop();
  return isolated(joined());
}
