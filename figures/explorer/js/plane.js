// The latent plane: a field to move in. Its axes are quantiles of the prior, 0 to 1.

import { normalCdf, normalQuantile } from "./maths.js";
import { announce, byId, element, onRange, show, twoDecimals } from "./ui.js";

const N_CELLS = 20; // of the manifold, along each axis
const CELL = 28;
const KEY_STEP = 0.01;
const EDGE = 0.001; // z stays within 3.1 standard deviations
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

/** Set up the view; returns a function that moves the point to (z1, z2). */
export function setUpPlane({ vae2: vae }, digits) {
  const field = byId("plane-field");
  const manifold = element("canvas", { width: N_CELLS * CELL, height: N_CELLS * CELL });
  const cells = []; // the images of the manifold, row by row from the top
  const shownClasses = new Set(Array.from({ length: 10 }, (_, digit) => digit));
  const places = Array.from(digits.positions, normalCdf);
  let at = [0.5, 0.5];
  let isHeld = false;
  let mine = null; // where the digit of the other tab is
  let isDue = false;

  const redraw = () => {
    if (isDue) return;
    isDue = true;
    requestAnimationFrame(() => {
      isDue = false;
      drawField();
    });
  };

  function drawField() {
    const side = field.clientWidth;
    if (side === 0) return;
    const sharp = Math.round(side * devicePixelRatio);
    if (field.width !== sharp) [field.width, field.height] = [sharp, sharp];
    const style = getComputedStyle(field);
    const colourOf = (name) => getComputedStyle(byId(`plane-class-${name}`)).color;
    const context = field.getContext("2d");
    context.setTransform(sharp, 0, 0, sharp, 0, 0);
    context.clearRect(0, 0, 1, 1);
    if (byId("plane-manifold").checked) {
      context.globalAlpha = byId("plane-points").checked ? 0.3 : 1;
      context.drawImage(manifold, 0, 0, 1, 1);
      context.globalAlpha = 1;
    }
    if (byId("plane-points").checked) {
      for (const digit of shownClasses) {
        context.fillStyle = colourOf(digit);
        digits.labels.forEach((label, n) => {
          if (label === digit) dot(context, places[2 * n], 1 - places[2 * n + 1], 2.6 / side);
        });
      }
    }
    context.strokeStyle = style.color;
    context.lineWidth = 2.5 / side;
    if (mine) diamond(context, mine[0], 1 - mine[1], 9 / side);
    context.fillStyle = style.backgroundColor;
    dot(context, at[0], 1 - at[1], 8 / side);
    context.stroke();
    context.fillStyle = style.color;
    dot(context, at[0], 1 - at[1], 3 / side);
  }

  function moveTo(u, v) {
    at = [u, v].map((value) => Math.min(Math.max(value, EDGE), 1 - EDGE));
    const z = Float32Array.from(at, normalQuantile);
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
    redraw();
  }

  const moveToLatents = () => {
    const z = ["plane-z1", "plane-z2"].map((id) => byId(id).valueAsNumber);
    at = z.map(normalCdf);
    decode(Float32Array.from(z));
  };
  const setZ1 = onRange(byId("plane-z1"), moveToLatents);
  const setZ2 = onRange(byId("plane-z2"), moveToLatents);

  const follow = (event) => {
    const box = field.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    moveTo(x / box.width, 1 - y / box.height);
  };
  field.addEventListener("pointermove", (event) => {
    if (event.buttons || (event.pointerType === "mouse" && !isHeld)) follow(event);
  });
  field.addEventListener("pointerdown", (event) => {
    stop();
    field.setPointerCapture(event.pointerId);
    isHeld = event.pointerType === "mouse" && !isHeld;
    follow(event);
  });
  field.addEventListener("keydown", (event) => {
    const move = MOVES[event.key];
    if (!move) return;
    event.preventDefault();
    stop();
    const step = KEY_STEP * (event.shiftKey ? 5 : 1);
    moveTo(at[0] + step * move[0], at[1] + step * move[1]);
  });

  let wandering = 0;
  const wander = (time) => {
    // A curve that never quite closes visits the whole square.
    moveTo(0.5 + 0.46 * Math.sin(time / 3100), 0.5 + 0.46 * Math.sin(time / 4700 + 1));
    wandering = requestAnimationFrame(wander);
  };
  const stop = () => {
    cancelAnimationFrame(wandering);
    wandering = 0;
    byId("plane-wander").setAttribute("aria-pressed", "false");
  };
  byId("plane-wander").addEventListener("click", () => {
    if (wandering) {
      stop();
    } else {
      wandering = requestAnimationFrame(wander);
      byId("plane-wander").setAttribute("aria-pressed", "true");
    }
  });

  for (let digit = 0; digit < 10; digit++) {
    const button = element("button", {
      type: "button",
      id: `plane-class-${digit}`,
      textContent: digit,
      aria: { pressed: "true", label: `Points of class ${digit}` },
    });
    button.addEventListener("click", () => {
      if (!shownClasses.delete(digit)) shownClasses.add(digit);
      button.setAttribute("aria-pressed", String(shownClasses.has(digit)));
      redraw();
    });
    byId("plane-legend").append(button);
  }
  for (const id of ["plane-manifold", "plane-points"]) byId(id).addEventListener("change", redraw);
  new ResizeObserver(redraw).observe(field);

  digits.onChange(({ bits }) => {
    mine = Array.from(vae.encode(bits).mean, normalCdf);
    redraw();
  });

  // One row of the manifold per frame, so that the page answers from the start.
  const quantiles = Array.from({ length: N_CELLS }, (_, n) => normalQuantile((n + 0.5) / N_CELLS));
  const addRow = () => {
    const z2 = quantiles[N_CELLS - 1 - cells.length / N_CELLS];
    for (const z1 of quantiles) cells.push(vae.decode(Float32Array.of(z1, z2)));
    paintManifold();
    if (cells.length < N_CELLS ** 2) requestAnimationFrame(addRow);
  };
  const paintManifold = () => {
    const context = manifold.getContext("2d");
    const picture = context.createImageData(N_CELLS * CELL, N_CELLS * CELL);
    const ink = getComputedStyle(field)
      .color.match(/[\d.]+/g)
      .map(Number);
    cells.forEach((image, cell) => {
      const corner = Math.floor(cell / N_CELLS) * CELL * picture.width + (cell % N_CELLS) * CELL;
      image.forEach((value, k) => {
        const pixel = 4 * (corner + Math.floor(k / CELL) * picture.width + (k % CELL));
        picture.data.set([ink[0], ink[1], ink[2], 255 * value], pixel);
      });
    });
    context.putImageData(picture, 0, 0);
    redraw();
  };
  addRow();
  moveTo(0.5, 0.5);

  return { moveTo: (z1, z2) => moveTo(normalCdf(z1), normalCdf(z2)), repaint: paintManifold };
}

function dot(context, x, y, radius) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fill();
}

function diamond(context, x, y, radius) {
  context.beginPath();
  context.moveTo(x, y - radius);
  context.lineTo(x + radius, y);
  context.lineTo(x, y + radius);
  context.lineTo(x - radius, y);
  context.closePath();
  context.stroke();
}
