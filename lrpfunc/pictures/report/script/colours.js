// -- colours --------------------------------------------------------------------------------------------------------

const colormaps = Object.fromEntries(
  page.colors.map(([name, diverging, table]) => [name, { diverging, table: bytes(table) }]),
);

// The position in a colour map of a value between -1 and 1. Where the middle colour stands for zero it does so in both ranges.
function position(value) {
  const { levels } = page;
  if ($("range").value === "symmetric") return levels + Math.round(levels * Math.min(1, Math.max(-1, value)));
  const positive = Math.min(1, Math.max(0, value));
  return colormaps[$("colors").value].diverging ? levels + Math.round(levels * positive) : Math.round(2 * levels * positive);
}

function opacity(value) {
  return Math.min(1, $("range").value === "symmetric" ? Math.abs(value) : Math.max(0, value));
}

// Paints levels as colours: level l is the value (l - 1 - levels) / levels * factor.
function paint(canvas, levels, factor, transparent, width = page.width, height = page.height) {
  const { table } = colormaps[$("colors").value];
  const pixel = new Uint8Array(4);
  const word = new Uint32Array(pixel.buffer);
  const palette = new Uint32Array(2 * page.levels + 2);
  for (let level = 0; level < palette.length; level++) {
    const value = ((level - 1 - page.levels) / page.levels) * factor;
    const at = 3 * position(value);
    pixel.set([table[at], table[at + 1], table[at + 2], transparent ? Math.round(255 * opacity(value)) : 255]);
    palette[level] = word[0];
  }
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  new Uint32Array(image.data.buffer).set(Uint32Array.from(levels, (level) => palette[level]));
  context.putImageData(image, 0, 0);
}

function drawLegend() {
  const { levels } = page;
  const symmetric = $("range").value === "symmetric";
  const first = symmetric ? 1 : levels + 1;
  const ramp = Uint8Array.from({ length: 2 * levels + 2 - first }, (_, i) => first + i);
  paint(all("#legend canvas")[0], ramp, 1, false, ramp.length, 1);
  $("low").textContent = symmetric ? `−m, ${areValues ? "lowers the value" : `against the ${page.thing}`}` : "0 and below";
  $("middle").textContent = symmetric ? "0" : "";
  $("high").textContent = `m, ${areValues ? "raises the value" : `for the ${page.thing}`}`;
  $("meaning").textContent =
    $("scale").value === "own"
      ? "m is the largest magnitude in each map."
      : `m is ${number(scales.rows)} for samples, the largest magnitude in the maps shown, and ${number(scales.means)} for means.`;
}
