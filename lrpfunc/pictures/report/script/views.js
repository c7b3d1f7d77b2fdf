// -- views: pictures that are decoded when they come on screen and let go when they leave ---------------------------

const scales = { rows: 1, means: 1 };
const views = new WeakMap();
const visible = new Set();

const watcher = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      const view = views.get(entry.target);
      if (entry.isIntersecting) view.show();
      else view.hide();
    }
  },
  { rootMargin: "400px" },
);

class View {
  constructor(element, kind, what) {
    this.element = element;
    this.kind = kind; // of scale
    this.what = what; // a row, or a mean
    this.levels = null;
    this.wanted = false;
    this.images = [...element.querySelectorAll("img")];
    this.canvases = [...element.querySelectorAll("canvas")];
  }

  async show() {
    this.wanted = true;
    const { what } = this;
    const { images, maps } = what.source ? unpacked(what.source) : { images: [], maps: what.maps };
    for (const image of this.images) image.src = images[sideOf(image)];
    const levels = await Promise.all(maps.map(inflated));
    if (!this.wanted || what !== this.what) return; // it left, or shows another, meanwhile
    this.levels = levels;
    visible.add(this);
    this.paint();
  }

  hide() {
    this.wanted = false;
    this.levels = null;
    visible.delete(this);
    for (const image of this.images) image.removeAttribute("src");
    for (const canvas of this.canvases) canvas.width = 0;
  }

  paint() {
    for (const canvas of this.canvases) {
      const side = sideOf(canvas);
      if (!this.levels[side]) continue;
      const factor = $("scale").value === "own" ? 1 : (this.what.largest[side] ?? 0) / (scales[this.kind] || 1);
      paint(canvas, this.levels[side], factor, canvas.classList.contains("over"));
    }
  }
}

function sideOf(node) {
  return Number(node.dataset.side ?? 0);
}

function watch(element, kind, what) {
  views.set(element, new View(element, kind, what));
  watcher.observe(element);
}

function forget(list) {
  for (const element of list.querySelectorAll("button")) {
    watcher.unobserve(element);
    views.get(element).hide();
  }
  list.replaceChildren();
}

function recolour() {
  drawLegend();
  for (const view of visible) view.paint();
}
