// The drawing pad: strokes of a mouse, a finger or the arrow keys, made a digit like MNIST's.

import { element } from "./ui.js";

const SIDE = 28;
const BOX = 20; // MNIST's digits are scaled to fit 20 x 20 pixels
const PEN = 2.5; // width of a stroke, in pixels of the digit
const FINE = 4; // each pixel is the average of 4 x 4 finer ones
const MAX_SCALE = 3; // a dot stays a dot
const KEY_STEP = 0.03;
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** The digit of strokes, lists of [x, y] in the unit square: grey values in 0..255. */
export function rasterise(strokes) {
  const points = strokes.flat();
  if (points.length === 0) return new Float32Array(SIDE * SIDE);
  const [left, right] = extent(points.map(([x]) => x));
  const [top, bottom] = extent(points.map(([, y]) => y));
  const size = SIDE * Math.max(right - left, bottom - top);
  const scale = SIDE * Math.min((BOX - PEN) / size, MAX_SCALE);
  const middle = [(left + right) / 2, (top + bottom) / 2];
  const place = ([x, y], [dx, dy]) => [
    (x - middle[0]) * scale + SIDE / 2 + dx,
    (y - middle[1]) * scale + SIDE / 2 + dy,
  ];
  const first = rendered(strokes.map((stroke) => stroke.map((point) => place(point, [0, 0]))));
  const shift = centreOfMass(first).map((value) => SIDE / 2 - value);
  return rendered(strokes.map((stroke) => stroke.map((point) => place(point, shift))));
}

function extent(values) {
  return [Math.min(...values), Math.max(...values)];
}

function rendered(strokes) {
  const canvas = element("canvas", { width: SIDE * FINE, height: SIDE * FINE });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.scale(FINE, FINE);
  trace(context, strokes, PEN);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  const grey = new Float32Array(SIDE * SIDE);
  for (let y = 0; y < canvas.height; y++) {
    for (let x = 0; x < canvas.width; x++) {
      const pixel = SIDE * Math.floor(y / FINE) + Math.floor(x / FINE);
      grey[pixel] += data[4 * (y * canvas.width + x) + 3] / FINE ** 2;
    }
  }
  return grey.map(Math.round);
}

function centreOfMass(grey) {
  let [x, y, sum] = [0, 0, 0];
  grey.forEach((value, n) => {
    x += value * ((n % SIDE) + 0.5);
    y += value * (Math.floor(n / SIDE) + 0.5);
    sum += value;
  });
  return [x / sum, y / sum];
}

/** Draw strokes with a round pen. */
function trace(context, strokes, width) {
  context.lineWidth = width;
  context.lineCap = "round";
  context.lineJoin = "round";
  for (const stroke of strokes) {
    context.beginPath();
    context.moveTo(...stroke[0]);
    for (const point of stroke) context.lineTo(...point);
    context.stroke();
  }
}

const strokes = []; // of all pads: they show the same drawing
const pads = [];

/** Fill a host with a pad and its buttons. */
export function createPad(host, digits) {
  const hint = element("span", {
    className: "pad-hint",
    textContent: "draw here",
    aria: { hidden: "true" },
  });
  const canvas = element("canvas", { className: "pad", tabIndex: 0 });
  canvas.setAttribute("role", "application");
  canvas.setAttribute(
    "aria-label",
    "Drawing pad. Arrow keys move the pen, the space bar lowers and lifts it, Delete clears.",
  );
  const pen = { at: [0.5, 0.3], isDown: false, isKeyboard: false };
  const pad = { canvas, hint, pen };
  pads.push(pad);

  const update = () => {
    drawPads();
    digits.draw(rasterise(strokes));
  };
  const positionOf = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  const clear = () => {
    strokes.length = 0;
    pen.isDown = false;
    update();
  };

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pen.isKeyboard = false;
    strokes.push([positionOf(event)]);
    update();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!canvas.hasPointerCapture(event.pointerId)) return;
    strokes.at(-1).push(...event.getCoalescedEvents().map(positionOf));
    strokes.at(-1).push(positionOf(event));
    update();
  });
  canvas.addEventListener("keydown", (event) => {
    const move = MOVES[event.key];
    if (move) {
      pen.at = pen.at.map((value, n) => Math.min(Math.max(value + KEY_STEP * move[n], 0), 1));
      if (pen.isDown) strokes.at(-1).push([...pen.at]);
    } else if (event.key === " ") {
      pen.isDown = !pen.isDown;
      if (pen.isDown) strokes.push([[...pen.at]]);
    } else if (event.key === "Delete" || event.key === "Backspace") {
      clear();
    } else {
      return;
    }
    event.preventDefault();
    pen.isKeyboard = true;
    if (pen.isDown) update();
    else drawPads();
  });
  canvas.addEventListener("blur", () => {
    Object.assign(pen, { isDown: false, isKeyboard: false });
    drawPads();
  });
  new ResizeObserver(drawPads).observe(canvas);

  const choose = () => {
    strokes.length = 0;
    digits.choose(digits.any());
    drawPads();
  };
  host.append(
    element("div", { className: "pad-frame" }, canvas, hint),
    element(
      "div",
      { className: "buttons" },
      element("button", { type: "button", textContent: "Clear", onclick: clear }),
      element("button", { type: "button", textContent: "Take a test digit", onclick: choose }),
    ),
  );
}

/** Draw the strokes on every pad that is on the screen. */
export function drawPads() {
  for (const { canvas, hint, pen } of pads) {
    const side = canvas.clientWidth;
    if (side === 0) continue;
    const sharp = side * devicePixelRatio;
    canvas.width = sharp;
    canvas.height = sharp;
    hint.hidden = strokes.length > 0 || pen.isKeyboard;
    const context = canvas.getContext("2d");
    context.strokeStyle = getComputedStyle(canvas).color;
    context.scale(sharp, sharp);
    trace(context, strokes, PEN / SIDE);
    if (pen.isKeyboard) {
      context.lineWidth = 0.006;
      context.beginPath();
      context.arc(...pen.at, pen.isDown ? 0.03 : 0.05, 0, 2 * Math.PI);
      context.stroke();
    }
  }
}
