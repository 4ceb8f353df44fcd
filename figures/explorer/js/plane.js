// The latent plane: a point to move through it, and what is decoded there.

import { Field } from "./field.js";
import { normalCdf, normalQuantile } from "./maths.js";
import { announce, byId, element, onRange, show, twoDecimals } from "./ui.js";

const KEY_STEP = 0.01;
const EDGE = 0.00135; // z stays within 3 standard deviations, as its sliders do
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

/** Set up the view; returns `moveTo(z1, z2)` and `repaint()`. */
export function setUpPlane({ vae2: vae }, digits) {
  addLegend();
  const canvas = byId("plane-field");
  const field = new Field(canvas, vae, digits);

  /** Move to quantiles (u, v). */
  function moveTo(u, v) {
    field.at = [u, v].map((value) => Math.min(Math.max(value, EDGE), 1 - EDGE));
    const z = Float32Array.from(field.at, normalQuantile);
    setZ1(z[0]);
    setZ2(z[1]);
    decode(z);
  }

  function decode(z) {
    const nearest = digits.nearest(...z);
    const label = `z = (${twoDecimals(z[0])}, ${twoDecimals(z[1])})`;
    show(byId("plane-digit"), vae.decode(z), `Decoded digit at ${label}`);
    show(byId("plane-nearest"), digits.image(nearest), `Nearest: ${digits.name(nearest)}`);
    byId("plane-nearest-name").textContent = `nearest: a ${digits.labels[nearest]}`;
    announce(`${label}, nearest to a ${digits.labels[nearest]}`);
    field.redraw();
  }

  const moveToSliders = () => {
    stopWandering();
    const z = ["plane-z1", "plane-z2"].map((id) => byId(id).valueAsNumber);
    field.at = z.map(normalCdf);
    decode(Float32Array.from(z));
  };
  const setZ1 = onRange(byId("plane-z1"), moveToSliders);
  const setZ2 = onRange(byId("plane-z2"), moveToSliders);

  let isHeld = false;
  const follow = (event) => {
    const box = canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    moveTo(x / box.width, 1 - y / box.height);
  };
  canvas.addEventListener("pointermove", (event) => {
    if (wandering) return;
    if (event.buttons || (event.pointerType === "mouse" && !isHeld)) follow(event);
  });
  canvas.addEventListener("pointerdown", (event) => {
    stopWandering();
    canvas.setPointerCapture(event.pointerId);
    isHeld = event.pointerType === "mouse" && !isHeld;
    follow(event);
  });
  canvas.addEventListener("keydown", (event) => {
    const move = MOVES[event.key];
    if (!move) return;
    event.preventDefault();
    stopWandering();
    const step = KEY_STEP * (event.shiftKey ? 5 : 1);
    moveTo(field.at[0] + step * move[0], field.at[1] + step * move[1]);
  });

  let wandering = 0;
  const wander = (time) => {
    // A curve that never quite closes visits the whole square.
    moveTo(0.5 + 0.46 * Math.sin(time / 3100), 0.5 + 0.46 * Math.sin(time / 4700 + 1));
    wandering = requestAnimationFrame(wander);
  };
  const stopWandering = () => {
    cancelAnimationFrame(wandering);
    wandering = 0;
    byId("plane-wander").setAttribute("aria-pressed", "false");
  };
  byId("plane-wander").addEventListener("click", () => {
    if (wandering) {
      stopWandering();
    } else {
      wandering = requestAnimationFrame(wander);
      byId("plane-wander").setAttribute("aria-pressed", "true");
    }
  });

  byId("plane-legend").addEventListener("click", ({ target }) => {
    const digit = Number(target.value);
    if (target.tagName !== "BUTTON") return;
    if (!field.shownClasses.delete(digit)) field.shownClasses.add(digit);
    target.setAttribute("aria-pressed", String(field.shownClasses.has(digit)));
    field.redraw();
  });
  for (const id of ["plane-manifold", "plane-points"]) {
    byId(id).addEventListener("change", () => field.redraw());
  }
  digits.onChange(({ bits, isEmpty }) => {
    field.mine = isEmpty ? null : Array.from(vae.encode(bits).mean, normalCdf);
    field.redraw();
  });
  moveTo(0.5, 0.5);
  return {
    moveTo: (z1, z2) => moveTo(normalCdf(z1), normalCdf(z2)),
    repaint: () => field.paintManifold(),
  };
}

/** A button for the points of each class. */
function addLegend() {
  for (let digit = 0; digit < 10; digit++) {
    byId("plane-legend").append(
      element("button", {
        type: "button",
        id: `plane-class-${digit}`,
        value: digit,
        textContent: digit,
        aria: { pressed: "true", label: `Points of class ${digit}` },
      }),
    );
  }
}
