// -- gallery --------------------------------------------------------------------------------------------------------

const STEP = 60; // cards made at once
const gallery = $("gallery");
const cards = () => gallery.children.length;
const cardAt = (i) => gallery.children[i]?.firstElementChild;

function addCard(row) {
  const item = $("card").content.firstElementChild.cloneNode(true);
  const card = item.firstElementChild;
  card.querySelector(".file").textContent = end(row.file);
  card.querySelectorAll(".verdict").forEach((line, k) => {
    line.append(...verdict(row, k));
    line.classList.add(row.sides[k].result ?? "value");
  });
  card.querySelector(".numbers").append(...figures(row));
  card.title = row.file;
  const lines = card.querySelectorAll(".verdict, .numbers");
  card.setAttribute("aria-label", [row.file, ...[...lines].map((line) => line.textContent)].join(", "));
  card.tabIndex = -1;
  gallery.append(item);
  watch(card, "rows", row);
}

function more(least = cards() + STEP) {
  const empty = cards() === 0;
  while (cards() < Math.min(least, shown.length)) addCard(shown[cards()]);
  if (empty && cards()) cardAt(0).tabIndex = 0;
  const left = shown.length - cards();
  $("more").hidden = left === 0;
  $("more").textContent = `Show ${Math.min(STEP, left)} more of ${count(left)}`;
}

function restart() {
  forget(gallery);
  more();
}

// One card is a stop for Tab, and arrow keys move that stop: hundreds of stops would bar the way to what comes after.
function focusCard(i) {
  if (i < 0 || i >= shown.length) return;
  if (i >= cards()) more(Math.ceil((i + 1) / STEP) * STEP);
  for (const card of gallery.querySelectorAll('.card[tabindex="0"]')) card.tabIndex = -1;
  cardAt(i).tabIndex = 0;
  cardAt(i).focus();
}

function columns() {
  const top = gallery.firstElementChild.offsetTop;
  const second = [...gallery.children].findIndex((item) => item.offsetTop !== top);
  return second < 0 ? cards() : second;
}

function moved(key, i) {
  const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns() };
  if (key === "Home") return 0;
  if (key === "End") return cards() - 1;
  return key in moves ? i + moves[key] : null;
}

function indexOf(card) {
  return [...gallery.children].indexOf(card.parentElement);
}

gallery.addEventListener("keydown", (event) => {
  const to = event.target.matches(".card") ? moved(event.key, indexOf(event.target)) : null;
  if (to === null || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  focusCard(to);
});

gallery.addEventListener("click", (event) => {
  const card = event.target.closest(".card");
  if (card) open(indexOf(card));
});

$("more").addEventListener("click", () => {
  const first = cards();
  more();
  focusCard(first);
});

new IntersectionObserver(([entry]) => entry.isIntersecting && more(), { rootMargin: "600px" }).observe($("end"));
