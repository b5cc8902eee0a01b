"use strict";
(() => {
  const controls = document.getElementById("controls");
  if (!controls) return;
  const list = document.getElementById("cards");
  const cards = [...list.children];
  const layers = JSON.parse(document.getElementById("layers").textContent);
  const count = document.getElementById("count");

  const isShown = (card, want) =>
    (!want.label || card.dataset.label === want.label) &&
    (!want.source || card.dataset.source === want.source) &&
    (!want.problem || card.dataset.problem.split(" ").includes(want.problem)) &&
    (!want.find || card.dataset.id.toLowerCase().includes(want.find.toLowerCase()));

  // Images without a value, such as the Dice of normal images, come last.
  const compare = (key, sign) => (a, b) => {
    const [x, y] = [a.dataset[key], b.dataset[key]];
    if (x === "" || y === "") return (x === "") - (y === "");
    return sign * (Number(x) - Number(y));
  };

  const update = () => {
    const want = Object.fromEntries(new FormData(controls));
    let shown = 0;
    for (const card of cards) {
      card.hidden = !isShown(card, want);
      shown += !card.hidden;
    }
    const isDescending = want.sort.startsWith("-");
    cards.sort(compare(want.sort.replace("-", ""), isDescending ? -1 : 1));
    list.append(...cards);
    count.textContent = `${shown} of ${cards.length} images`;
  };

  const changeLayer = () => {
    const layer = controls.elements.layer.value;
    for (const card of cards) {
      const picture = card.querySelector(".layer");
      const source = layer && layers[card.id][layer];
      picture.hidden = !source;
      if (source) picture.src = source;
    }
  };

  // The choice stands in the address, so that a link leads to it: #images?label=malignant&sort=dice
  const PREFIX = "#images?";
  const defaults = Object.fromEntries(new FormData(controls));

  const writeAddress = () => {
    const chosen = [...new FormData(controls)].filter(([name, value]) => value !== defaults[name]);
    const page = location.href.split("#")[0];
    history.replaceState(null, "", chosen.length ? page + PREFIX + new URLSearchParams(chosen) : page);
  };

  const readAddress = () => {
    controls.reset();
    for (const [name, value] of new URLSearchParams(location.hash.slice(PREFIX.length))) {
      if (!(name in defaults)) continue;
      controls.elements[name].value = value;
      if (!(name in Object.fromEntries(new FormData(controls)))) {
        controls.elements[name].value = defaults[name]; // not an option of this page
      }
    }
    update();
    changeLayer();
    controls.scrollIntoView({ behavior: "instant" });
  };

  const follow = () => {
    if (location.hash.startsWith(PREFIX)) return readAddress();
    const card = document.getElementById(location.hash.slice(1));
    if (!card || card.parentElement !== list) return;
    if (card.hidden) {
      controls.reset();
      update();
      changeLayer();
    }
    card.scrollIntoView({ block: "center" });
    card.focus({ preventScroll: true });
  };

  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("input", (event) => {
    event.target.name === "layer" ? changeLayer() : update();
    writeAddress();
  });
  addEventListener("hashchange", follow);
  follow();
})();
