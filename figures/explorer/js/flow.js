// The flow: a picture on its way through the couplings, from noise to digit or back.

import { bpdGauge } from "./draw.js";
import { between, Random } from "./maths.js";
import { greyOf } from "./models.js";
import { announce, byId, element, onRange, paint, show } from "./ui.js";

const SECONDS = 4; // from one end to the other

/** Set up the view; returns a function that shows the current digit in it. */
export function setUpFlow({ flow }, digits) {
  const random = new Random(Math.random() * 2 ** 32);
  const nSteps = flow.couplings.length;
  const step = byId("flow-step");
  const temperature = byId("flow-temperature");
  const setBpd = bpdGauge(byId("flow-bpd"), flow);
  let noise = random.normals(784);
  let path = null;
  let isSample = true;

  step.max = nSteps;
  const nameOf = (at) => ({ 0: "noise", [nSteps]: "digit" })[at] ?? String(nSteps - at);
  const setStep = onRange(step, paintStep, (at) => nameOf(Math.round(at)));
  const thumbs = Array.from({ length: nSteps + 1 }, (_, at) => {
    const canvas = element("canvas", { className: "digit" });
    const words = element("span", { className: "caption" });
    const button = element("button", { type: "button", className: "picture" }, canvas, words);
    button.addEventListener("click", () => {
      stop();
      go(at);
    });
    byId("flow-steps").append(button);
    return { button, canvas, words };
  });

  function paintStep(at) {
    const from = Math.min(Math.floor(at), nSteps - 1);
    const state = between(path.states[from], path.states[from + 1], at - from);
    show(
      byId("flow-digit"),
      greyOf(state),
      `Picture ${(nSteps - at).toFixed(1)} couplings from the digit`,
    );
    thumbs.forEach(({ button }, n) => {
      button.setAttribute("aria-pressed", String(n === Math.round(at)));
    });
  }

  function go(at) {
    setStep(at);
    paintStep(at);
  }

  function showPath(newPath, about) {
    path = newPath;
    temperature.disabled = !isSample;
    byId("flow-about").textContent = about;
    setBpd(path.bpd);
    thumbs.forEach(({ button, canvas, words }, at) => {
      paint(canvas, greyOf(path.states[at]));
      words.textContent = nameOf(at);
      button.setAttribute("aria-label", `${nSteps - at} couplings from the digit`);
    });
    paintStep(step.valueAsNumber);
  }

  function sample() {
    isSample = true;
    const t = temperature.valueAsNumber;
    showPath(
      flow.fromNoise(noise.map((value) => t * value)),
      `A sample: noise with standard deviation ${t.toFixed(2)} becomes a digit.`,
    );
  }

  function showDigit() {
    isSample = false;
    const { grey, name, isEmpty } = digits.current;
    const about = isEmpty ? "Nothing is drawn: an empty picture" : `On its way to noise: ${name}`;
    showPath(flow.fromDigit(grey), `${about}.`);
    if (isEmpty) setBpd(null);
  }

  let playing = 0;
  const stop = () => {
    cancelAnimationFrame(playing);
    playing = 0;
    byId("flow-play").textContent = "Play";
  };
  const play = (from, to) => {
    stop();
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
      go(to);
      return;
    }
    const start = performance.now();
    byId("flow-play").textContent = "Stop";
    const advance = (now) => {
      const share = Math.min(Math.max(now - start, 0) / (1000 * SECONDS), 1);
      go(from + share * (to - from));
      if (share < 1) playing = requestAnimationFrame(advance);
      else stop();
    };
    playing = requestAnimationFrame(advance);
  };

  onRange(temperature, sample);
  step.addEventListener("input", stop);
  byId("flow-play").addEventListener("click", () => {
    if (playing) stop();
    else if (step.valueAsNumber > nSteps / 2) play(nSteps, 0);
    else play(0, nSteps);
  });
  byId("flow-sample").addEventListener("click", () => {
    noise = random.normals(784);
    sample();
    play(0, nSteps);
    announce("A new sample");
  });
  const sendDigit = () => {
    showDigit();
    play(nSteps, 0);
  };
  byId("flow-test").addEventListener("click", () => {
    digits.choose(digits.any());
    sendDigit();
  });
  byId("flow-mine").addEventListener("click", sendDigit);
  digits.onChange(() => {
    if (!isSample) showDigit();
  });

  const { width, value, length, shifted, report } = flow.about;
  byId("flow-width").textContent =
    `This flow's couplings are ${width} units wide: after ${length} it reaches ` +
    `${value.toFixed(3)} bits per dimension on validation digits` +
    (shifted ? `, and ${shifted.toFixed(3)} on shifted ones. ` : ". ") +
    `The report's flow, ${report.width.toLocaleString("en")} wide and too large for a page, ` +
    `reaches ${report.bpd.toFixed(3)} on shifted ones.`;
  sample();
  return sendDigit;
}
