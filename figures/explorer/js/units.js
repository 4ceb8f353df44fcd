// The VAE with 20 dimensions: a slider for each unit, samples, and walks between test digits.

import { Random } from "./maths.js";
import { announce, byId, element, onRange, paint, show } from "./ui.js";
import { createWalk } from "./walk.js";

const UNUSED = 0.01; // nats

/** Set up the view. */
export function setUpUnits({ vae20: vae }, digits) {
  const random = new Random(Math.random() * 2 ** 32);
  const z = new Float32Array(vae.nLatents);
  const setters = [];
  const { usage } = vae.about;
  const largest = Math.max(...usage);
  const order = [...usage.keys()].sort((a, b) => usage[b] - usage[a]);

  for (const unit of order) {
    const input = element("input", { type: "range", min: -4, max: 4, step: 0.05, value: 0 });
    const bar = element("span", { className: "usage", aria: { hidden: "true" } });
    bar.style.setProperty("--share", usage[unit] / largest);
    const words = usage[unit] < UNUSED ? "unused" : `${usage[unit].toFixed(2)} nats`;
    const name = element("span", { textContent: `z${unit + 1}` });
    const nats = element("span", { className: "nats", textContent: words });
    const output = element("output");
    byId("units-sliders").append(
      element("label", { className: "unit" }, name, bar, nats, input, output),
    );
    setters[unit] = onRange(input, (value) => {
      z[unit] = value;
      decode();
    });
  }

  function decode() {
    show(byId("units-digit"), vae.decode(z), "Digit decoded from the twenty sliders");
  }

  function set(latents) {
    z.set(latents);
    setters.forEach((setter, unit) => {
      setter(z[unit]);
    });
    decode();
  }

  function showOriginal(index) {
    const canvas = byId("units-original");
    if (index === null) {
      paint(canvas, new Float32Array(784));
      canvas.setAttribute("aria-label", "No test digit");
      byId("units-original-name").textContent = "no test digit";
    } else {
      show(canvas, digits.image(index), digits.name(index));
      byId("units-original-name").textContent = digits.name(index);
    }
  }

  const meanOf = (index) => vae.encode(digits.bits(index)).mean;
  const setWalk = createWalk(
    byId("units-walk"),
    "units-position",
    (at) => vae.decode(at),
    (at) => {
      showOriginal(null);
      set(at);
    },
  );
  let last = digits.any();
  const takeTestDigit = () => {
    // The walk leads from the new digit back to the last one.
    const first = last;
    do last = digits.any();
    while (digits.labels[last] === digits.labels[first]);
    setWalk(meanOf(last), meanOf(first));
    set(meanOf(last));
    showOriginal(last);
    announce(`Reconstruction of ${digits.name(last)}`);
  };

  byId("units-test").addEventListener("click", takeTestDigit);
  byId("units-sample").addEventListener("click", () => {
    showOriginal(null);
    set(random.normals(vae.nLatents));
    announce("New sample");
  });
  byId("units-zero").addEventListener("click", () => {
    showOriginal(null);
    set(new Float32Array(vae.nLatents));
    announce("All sliders at zero");
  });
  takeTestDigit();
}
