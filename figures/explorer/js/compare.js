// Samples of all models beside real digits, and a game: which one is real?

import { Random } from "./maths.js";
import { greyOf } from "./models.js";
import { byId, element, paint, pictureButton } from "./ui.js";

const N_COLUMNS = 5;

/** Set up the view. */
export function setUpCompare({ vae20, vae2, gan, flow }, digits) {
  const random = new Random(Math.random() * 2 ** 32);
  const vae = vae20 ?? vae2;
  const sources = {};
  if (vae) sources.VAE = () => vae.decode(random.normals(vae.nLatents));
  if (gan) sources.GAN = () => gan.generate(random.normals(gan.nLatents));
  if (flow) sources.flow = () => greyOf(flow.fromNoise(random.normals(784)).states.at(-1));
  sources.real = () => digits.image(digits.any());
  const models = Object.keys(sources).filter((name) => name !== "real");

  const grids = Object.keys(sources).map((name) => {
    const canvas = element("canvas", { className: "digit grid" });
    const title = name === "real" ? "real test digits" : name;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", name === "real" ? "Real test digits" : `Samples: ${name}`);
    const caption = element("figcaption", { textContent: title });
    byId("compare-grids").append(element("figure", {}, canvas, caption));
    return [canvas, sources[name]];
  });
  const sample = () => {
    for (const [canvas, draw] of grids) {
      paint(canvas, Array.from({ length: N_COLUMNS ** 2 }, draw), N_COLUMNS);
    }
  };
  byId("compare-new").addEventListener("click", sample);

  let rounds = 0;
  let right = 0;
  const fooledBy = Object.fromEntries(models.map((name) => [name, 0]));
  let isAnswered = false;

  function deal() {
    isAnswered = false;
    const names = Object.keys(sources);
    const choices = [];
    while (names.length > 0) choices.push(...names.splice(random.below(names.length), 1));
    const pictures = choices.map((name, n) =>
      pictureButton(`Choice ${n + 1}`, () => answer(name, pictures, choices), "?"),
    );
    byId("game-choices").replaceChildren(...pictures.map(({ button }) => button));
    pictures.forEach(({ canvas }, n) => {
      paint(canvas, sources[choices[n]]());
    });
  }

  function answer(name, pictures, choices) {
    if (isAnswered) return;
    isAnswered = true;
    rounds++;
    if (name === "real") right++;
    else fooledBy[name]++;
    pictures.forEach(({ button, words }, n) => {
      words.textContent = choices[n];
      button.setAttribute("aria-label", `Choice ${n + 1}: ${choices[n]}`);
      button.dataset.verdict = choices[n] === "real" ? "real" : "made";
      if (choices[n] === name) button.dataset.mine = "";
    });
    const tally = models.map((model) => `${model} ${fooledBy[model]}`).join(", ");
    const verdict = name === "real" ? "Right." : `No, the ${name} made it.`;
    byId("game-score").textContent = `${verdict} ${right} of ${rounds} right. Fooled by: ${tally}.`;
  }

  byId("game-next").addEventListener("click", () => {
    deal();
    byId("game-choices").firstElementChild.focus();
  });
  // A hundred samples take a while, so they wait until somebody looks.
  const start = new IntersectionObserver(([{ isIntersecting }]) => {
    if (!isIntersecting) return;
    start.disconnect();
    sample();
    deal();
  });
  start.observe(byId("compare"));
}
