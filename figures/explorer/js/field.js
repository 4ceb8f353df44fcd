// The picture of the latent plane: manifold, test digits and marks. Its axes are quantiles, 0 to 1.

import { normalCdf, normalQuantile } from "./maths.js";
import { byId, channels, element } from "./ui.js";

const N_CELLS = 20; // of the manifold, along each axis
const CELL = 28;

export class Field {
  /** A field on a canvas: `at` is the point that moves, `mine` the place of the digit, if any. */
  constructor(canvas, vae, digits) {
    Object.assign(this, { canvas, vae, digits });
    this.at = [0.5, 0.5];
    this.mine = [0.5, 0.5];
    this.shownClasses = new Set(Array.from({ length: 10 }, (_, digit) => digit));
    this.places = Array.from(digits.positions, normalCdf);
    this.manifold = element("canvas", { width: N_CELLS * CELL, height: N_CELLS * CELL });
    this.cells = []; // the images of the manifold, row by row from the top
    this.isDue = false;
    new ResizeObserver(() => this.redraw()).observe(canvas);
    this.addRow();
  }

  /** Decode one row of the manifold per frame, so that the page answers from the start. */
  addRow() {
    const quantile = (n) => normalQuantile((n + 0.5) / N_CELLS);
    const z2 = quantile(N_CELLS - 1 - this.cells.length / N_CELLS);
    for (let n = 0; n < N_CELLS; n++) {
      this.cells.push(this.vae.decode(Float32Array.of(quantile(n), z2)));
    }
    this.paintManifold();
    if (this.cells.length < N_CELLS ** 2) requestAnimationFrame(() => this.addRow());
  }

  /** Paint the manifold in the colours of now. */
  paintManifold() {
    const context = this.manifold.getContext("2d");
    const picture = context.createImageData(N_CELLS * CELL, N_CELLS * CELL);
    const ink = channels(getComputedStyle(this.canvas).color);
    this.cells.forEach((image, cell) => {
      const corner = Math.floor(cell / N_CELLS) * CELL * picture.width + (cell % N_CELLS) * CELL;
      image.forEach((value, k) => {
        const pixel = 4 * (corner + Math.floor(k / CELL) * picture.width + (k % CELL));
        picture.data.set([...ink, 255 * value], pixel);
      });
    });
    context.putImageData(picture, 0, 0);
    this.redraw();
  }

  /** Draw everything with the next frame. */
  redraw() {
    if (this.isDue) return;
    this.isDue = true;
    requestAnimationFrame(() => {
      this.isDue = false;
      if (this.canvas.clientWidth > 0) this.draw();
    });
  }

  draw() {
    const side = this.canvas.clientWidth;
    const sharp = Math.round(side * devicePixelRatio);
    if (this.canvas.width !== sharp) [this.canvas.width, this.canvas.height] = [sharp, sharp];
    const hasPoints = byId("plane-points").checked;
    const context = this.canvas.getContext("2d");
    context.setTransform(sharp, 0, 0, sharp, 0, 0); // the unit square
    context.clearRect(0, 0, 1, 1);
    if (byId("plane-manifold").checked) {
      context.globalAlpha = hasPoints ? 0.3 : 1;
      context.drawImage(this.manifold, 0, 0, 1, 1);
      context.globalAlpha = 1;
    }
    if (hasPoints) this.drawPoints(context, 2.6 / side);
    const { color, backgroundColor } = getComputedStyle(this.canvas);
    const [x, y] = [this.at[0], 1 - this.at[1]];
    context.strokeStyle = color;
    context.lineWidth = 2.5 / side;
    if (this.mine) diamond(context, this.mine[0], 1 - this.mine[1], 9 / side);
    context.fillStyle = backgroundColor;
    dot(context, x, y, 8 / side);
    context.stroke();
    context.fillStyle = color;
    dot(context, x, y, 3 / side);
  }

  drawPoints(context, radius) {
    for (const digit of this.shownClasses) {
      context.fillStyle = getComputedStyle(byId(`plane-class-${digit}`)).color;
      this.digits.labels.forEach((label, n) => {
        if (label !== digit) return;
        dot(context, this.places[2 * n], 1 - this.places[2 * n + 1], radius);
      });
    }
  }
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
