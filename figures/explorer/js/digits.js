// The digits of the page: 1,000 test images, and the current one, drawn or chosen.

import { Random } from "./maths.js";
import { Reader } from "./networks.js";

const N_PIXELS = 784;

/** Test digits and the current digit; `onChange` callbacks run whenever the current one changes. */
export class Digits {
  constructor(labels, buffer, hasPositions) {
    this.labels = [...labels].map(Number);
    const reader = new Reader(buffer);
    const n = this.labels.length;
    // The mean of q(z|x) in the plane, z1 and z2 alternating.
    this.positions = reader.floats(hasPositions ? 2 * n : 0);
    this.images = reader.bytes(N_PIXELS * n);
    this.packedBits = reader.bytes((N_PIXELS / 8) * n);
    this.thresholds = new Random(3).uniforms(N_PIXELS);
    this.callbacks = [];
    this.choose(0);
  }

  /** Grey values of a test digit in 0..255. */
  grey(index) {
    return Float32Array.from(this.images.subarray(N_PIXELS * index, N_PIXELS * (index + 1)));
  }

  /** A test digit in [0, 1], to look at. */
  image(index) {
    return this.grey(index).map((value) => value / 255);
  }

  /** A test digit's static binarisation: the bits that the VAE sees. */
  bits(index) {
    const row = this.packedBits.subarray((N_PIXELS / 8) * index, (N_PIXELS / 8) * (index + 1));
    return Float32Array.from({ length: N_PIXELS }, (_, n) => (row[n >> 3] >> (7 - (n & 7))) & 1);
  }

  name(index) {
    return `test digit ${index}, a ${this.labels[index]}`;
  }

  /** The test digit nearest to (z1, z2) in the plane. */
  nearest(z1, z2) {
    let best = 0;
    let least = Number.POSITIVE_INFINITY;
    this.labels.forEach((_, n) => {
      const distance = (this.positions[2 * n] - z1) ** 2 + (this.positions[2 * n + 1] - z2) ** 2;
      if (distance < least) [best, least] = [n, distance];
    });
    return best;
  }

  /** A test digit at random. */
  any() {
    return Math.floor(Math.random() * this.labels.length);
  }

  /** Make a test digit the current one. */
  choose(index) {
    this.setCurrent(this.grey(index), this.bits(index), this.name(index));
  }

  /** Make a drawing the current digit: grey values in 0..255. Without ink it `isEmpty`. */
  draw(grey) {
    const bits = grey.map((value, n) => (255 * this.thresholds[n] < value ? 1 : 0));
    const isEmpty = grey.every((value) => value === 0);
    this.setCurrent(grey, bits, isEmpty ? "nothing is drawn" : "your digit", isEmpty);
  }

  setCurrent(grey, bits, name, isEmpty = false) {
    const image = grey.map((value) => value / 255);
    this.current = { grey, image, bits, name, isEmpty };
    for (const callback of this.callbacks) callback(this.current);
  }

  /** Call back now and whenever the current digit changes. */
  onChange(callback) {
    this.callbacks.push(callback);
    callback(this.current);
  }
}
