// The GAN: samples, a walk between two of them, and the discriminator's opinion.

import { opinionGauge } from "./draw.js";
import { Random } from "./maths.js";
import { announce, byId, paint, pictureButton, show } from "./ui.js";
import { createWalk } from "./walk.js";

const N_SAMPLES = 16;

/** Set up the view. */
export function setUpGan({ gan }, digits) {
  const random = new Random(Math.random() * 2 ** 32);
  let latents = [];
  let opinions = []; // of the discriminator, as text
  let chosen = [0, 1]; // the start and the end of the walk

  const setOpinion = opinionGauge(byId("gan-opinion"), gan);
  const setDrawn = opinionGauge(byId("gan-drawn"), gan);
  const move = (z) => {
    const image = gan.generate(z);
    show(byId("gan-digit"), image, "Digit on the walk");
    setOpinion(gan.opinion(image));
  };
  const setWalk = createWalk(byId("gan-walk"), "gan-position", (z) => gan.generate(z), move);

  const buttons = Array.from({ length: N_SAMPLES }, (_, n) => {
    const picture = pictureButton("", () => {
      chosen = [chosen[1], n];
      walk();
    });
    byId("gan-samples").append(picture.button);
    return picture;
  });

  function walk() {
    buttons.forEach(({ button, words }, n) => {
      const end = ["start", "end"][chosen.indexOf(n)];
      words.textContent = end ? `${opinions[n]}, ${end}` : opinions[n];
      button.setAttribute("aria-pressed", String(Boolean(end)));
    });
    setWalk(latents[chosen[0]], latents[chosen[1]]);
    move(latents[chosen[0]]);
  }

  function sample() {
    latents = buttons.map(() => random.normals(gan.nLatents));
    const images = latents.map((z) => gan.generate(z));
    opinions = images.map((image) => `${Math.round(100 * gan.opinion(image))}%`);
    buttons.forEach(({ button, canvas }, n) => {
      paint(canvas, images[n]);
      button.setAttribute("aria-label", `Sample ${n + 1}, ${opinions[n]} real, says D: walk to it`);
    });
    walk();
    announce("New samples");
  }

  byId("gan-new").addEventListener("click", sample);
  digits.onChange(({ image, isEmpty }) => setDrawn(isEmpty ? null : gan.opinion(image)));
  sample();
}
