// -- start ----------------------------------------------------------------------------------------------------------

document.documentElement.style.setProperty("--aspect", `${page.width} / ${page.height}`);
document.body.classList.toggle("pixelated", Math.max(page.width, page.height) <= 64);
fillSelects();
addMeans();
for (const id of [...FILTERS, "sort", "direction"]) $(id).addEventListener("input", id === "search" ? chooseSoon : choose);
for (const id of ["colors", "range", "scale"]) $(id).addEventListener("input", recolour);
$("controls").addEventListener("submit", (event) => {
  event.preventDefault();
  choose();
});
$("all").addEventListener("click", () => {
  for (const id of FILTERS) $(id).value = "";
  choose();
});
choose();
