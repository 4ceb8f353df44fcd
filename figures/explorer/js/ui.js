// Pieces that every view uses: pictures, sliders, gauges, announcements.

const SIDE = 28;
const painted = new Map(); // what each canvas shows, to paint it again in other colours

export function byId(id) {
  return document.getElementById(id);
}

/** An element with properties, attributes (in `aria` and `data`) and children. */
export function element(tag, { aria = {}, data = {}, ...properties } = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(aria)) node.setAttribute(`aria-${name}`, value);
  Object.assign(node.dataset, data);
  node.append(...children);
  return node;
}

/** The red, green and blue of a computed colour. */
export function channels(colour) {
  return colour
    .match(/[\d.]+/g)
    .slice(0, 3)
    .map(Number);
}

/** Paint images of 784 values in [0, 1] on a canvas: one, or a grid with as many columns. */
export function paint(canvas, images, columns = 1) {
  const list = Array.isArray(images) ? images : [images];
  painted.set(canvas, [list, columns]);
  const gap = list.length > 1 ? 3 : 0;
  const step = SIDE + gap;
  canvas.width = columns * step - gap;
  canvas.height = Math.ceil(list.length / columns) * step - gap;
  const style = getComputedStyle(canvas);
  const ink = channels(style.color);
  const paper = channels(style.backgroundColor);
  const context = canvas.getContext("2d");
  list.forEach((image, n) => {
    const pixels = context.createImageData(SIDE, SIDE);
    image.forEach((value, k) => {
      for (let c = 0; c < 3; c++) pixels.data[4 * k + c] = paper[c] + value * (ink[c] - paper[c]);
      pixels.data[4 * k + 3] = 255;
    });
    context.putImageData(pixels, (n % columns) * step, Math.floor(n / columns) * step);
  });
}

/** Paint one image and say what it is. */
export function show(canvas, image, label) {
  paint(canvas, image);
  canvas.setAttribute("aria-label", label);
}

/** Paint every canvas again that is still on the page, in the colours of now. */
export function repaint() {
  for (const [canvas, [images, columns]] of painted) {
    if (canvas.isConnected) paint(canvas, images, columns);
    else painted.delete(canvas);
  }
}

/** A number with two decimals, and never "-0.00". */
export function twoDecimals(value) {
  const text = value.toFixed(2);
  return Number(text) === 0 ? "0.00" : text;
}

/** Call `callback(value)` when a range input moves; returns a function that sets its value. */
export function onRange(input, callback, words = twoDecimals) {
  const output = input.parentElement.querySelector("output");
  const tell = () => {
    output.textContent = words(input.valueAsNumber);
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", () => {
    tell();
    callback(input.valueAsNumber);
  });
  tell();
  return (value) => {
    input.value = value;
    tell();
  };
}

/**
 * A number on a track, with the band that holds 90% of the test digits.
 * Returns a function that sets the number; null is a dash.
 */
export function gauge(host, { label, unit, band, min, max, decimals }) {
  const output = element("output");
  const mark = element("span", { className: "mark" });
  const range = element("span", { className: "band" });
  const percent = (value) => 100 * Math.min(Math.max((value - min) / (max - min), 0), 1);
  range.style.left = `${percent(band[0])}%`;
  range.style.width = `${percent(band[2]) - percent(band[0])}%`;
  const [low, , high] = band.map((value) => value.toFixed(decimals));
  host.append(
    element(
      "div",
      { className: "gauge" },
      element("div", { className: "gauge-line" }, element("span", { textContent: label }), output),
      element("div", { className: "track", aria: { hidden: "true" } }, range, mark),
      element("p", {
        className: "hint",
        textContent: `90% of test digits: ${low} to ${high}${unit}`,
      }),
    ),
  );
  return (value) => {
    mark.hidden = value === null;
    output.textContent = value === null ? "–" : `${value.toFixed(decimals)}${unit}`;
    if (value !== null) mark.style.left = `${percent(value)}%`;
  };
}

let announcement;

/** Tell screen readers, once the user has paused. */
export function announce(text) {
  clearTimeout(announcement);
  announcement = setTimeout(() => {
    byId("announcer").textContent = text;
  }, 400);
}

/** A button with a picture in it. */
export function pictureButton(label, onClick, caption = "") {
  const canvas = element("canvas", { className: "digit" });
  const words = element("span", { className: "caption", textContent: caption });
  const button = element("button", { type: "button", className: "picture", onclick: onClick });
  button.append(canvas, words);
  button.setAttribute("aria-label", label);
  return { button, canvas, words };
}
