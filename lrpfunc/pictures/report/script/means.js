// -- class means ----------------------------------------------------------------------------------------------------

function addMeans() {
  const items = [];
  for (const mean of means) {
    const item = $("mean").content.firstElementChild.cloneNode(true);
    const button = item.firstElementChild;
    button.dataset.target = mean.target;
    button.querySelector(".name").textContent = className(mean.target);
    button.querySelector(".numbers").textContent = `mean of ${count(mean.count)}`;
    items.push(item);
    watch(button, "means", mean);
  }
  $("means").append(...items);
}

function markMeans() {
  for (const button of all(".mean")) button.setAttribute("aria-pressed", String(button.dataset.target === $("target").value));
}

$("means").addEventListener("click", (event) => {
  const button = event.target.closest(".mean");
  if (!button) return;
  $("target").value = button.getAttribute("aria-pressed") === "true" ? "" : button.dataset.target;
  choose();
});
