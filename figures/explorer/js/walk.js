// A strip of pictures on the straight line between two latents.

import { between } from "./maths.js";
import { byId, element, onRange, paint } from "./ui.js";

const N_STEPS = 9;

/**
 * Set up a strip in `host` with its slider.
 *
 * `decode` maps a latent to an image, `onMove` gets the latent at the slider. Returns a function
 * that sets both ends, and the slider to the first.
 */
export function createWalk(host, slider, decode, onMove) {
  let ends = null;
  const canvases = Array.from({ length: N_STEPS }, (_, n) => {
    const canvas = element("canvas", { className: "digit" });
    const button = element("button", { type: "button", className: "picture" }, canvas);
    button.setAttribute("aria-label", `Go to position ${(n / (N_STEPS - 1)).toFixed(2)}`);
    button.addEventListener("click", () => {
      setSlider(n / (N_STEPS - 1));
      move(n / (N_STEPS - 1));
    });
    host.append(button);
    return canvas;
  });
  const move = (t) => onMove(between(...ends, t));
  const setSlider = onRange(byId(slider), move);
  return (first, last) => {
    ends = [first, last];
    setSlider(0);
    canvases.forEach((canvas, n) => {
      paint(canvas, decode(between(first, last, n / (N_STEPS - 1))));
    });
  };
}
