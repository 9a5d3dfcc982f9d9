"use strict";
// Filters of the gallery, and one player for all sounds. Everything else on the page works without a script.

document.documentElement.classList.remove("scriptless");

const form = document.querySelector(".filters");
const cards = [...document.querySelectorAll(".card")];
const groups = [...document.querySelectorAll(".direction")];
const words = new Map(cards.map((card) => [card, card.textContent.toLowerCase()]));

function isShown(card, wanted) {
  const rank = Number(card.dataset.rank);
  const [first, last] = (wanted.rank || "1-").split("-");
  return (
    (!wanted.direction || card.closest(".direction").dataset.direction === wanted.direction) &&
    (!wanted.kind || card.dataset.kind === wanted.kind) &&
    rank >= Number(first) &&
    rank <= (last ? Number(last) : Infinity) &&
    words.get(card).includes(wanted.text.trim().toLowerCase())
  );
}

function filter() {
  const wanted = Object.fromEntries(new FormData(form));
  const shown = cards.filter((card) => (card.hidden = !isShown(card, wanted), !card.hidden));
  for (const group of groups) group.hidden = !shown.some((card) => group.contains(card));
  document.querySelector(".none").hidden = shown.length > 0;
  form.querySelector(".status").textContent = `${shown.length} of ${cards.length} examples`;
}

form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
// One direction to begin with: all of them are a long page.
form.elements.direction.selectedIndex = groups.length ? 1 : 0;
filter();

const sounds = JSON.parse(document.getElementById("sounds").textContent);
const player = new Audio();
let playing = null;

function stop() {
  player.pause();
  playing?.setAttribute("aria-pressed", "false");
  playing = null;
}

player.addEventListener("ended", stop);
document.addEventListener("click", (event) => {
  const button = event.target.closest(".play");
  if (!button) return;
  const again = button === playing;
  stop();
  if (again) return;
  playing = button;
  button.setAttribute("aria-pressed", "true");
  player.src = sounds[button.dataset.sound];
  player.play().catch((error) => {
    if (error.name !== "AbortError") stop();
  });
});
