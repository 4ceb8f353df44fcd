// The three models, as in the scripts: images are Float32Arrays of 784 numbers.

import { Random, sigmoid, softplus } from "./maths.js";
import { Network, Reader } from "./networks.js";

const N_PIXELS = 784;
const ALPHA = 1e-5; // of the flow's logit transform
const N_DRAWS = 10; // of z for an ELBO

/** Every network of a model, by name. */
function readNetworks({ networks }, buffer) {
  const reader = new Reader(buffer);
  const entries = Object.entries(networks);
  return Object.fromEntries(entries.map(([name, layers]) => [name, new Network(layers, reader)]));
}

export class Vae {
  constructor(description, buffer) {
    Object.assign(this, readNetworks(description, buffer));
    this.about = description;
    this.nLatents = this.decoder.layers[0].nIn;
  }

  /** Mean and log standard deviation of q(z|x) for bits x. */
  encode(bits) {
    const heads = this.encoder.run(bits);
    return { mean: heads.slice(0, this.nLatents), logStd: heads.slice(this.nLatents) };
  }

  /** The pixels' means in [0, 1]. */
  decode(z) {
    return this.decoder.run(z).map(sigmoid);
  }

  /** -log p(x|z) averaged over draws of z, KL(q(z|x) || p(z)) and their sum, in nats. */
  negElbo(bits) {
    const { mean, logStd } = this.encode(bits);
    const random = new Random(1); // the same draws for every digit: numbers don't flicker
    let recon = 0;
    for (let draw = 0; draw < N_DRAWS; draw++) {
      const eps = random.normals(this.nLatents);
      const z = mean.map((mu, n) => mu + Math.exp(logStd[n]) * eps[n]);
      recon += negLogLikelihood(this.decoder.run(z), bits) / N_DRAWS;
    }
    let kl = 0;
    mean.forEach((mu, n) => {
      kl += 0.5 * (Math.exp(2 * logStd[n]) + mu * mu - 2 * logStd[n] - 1);
    });
    return { recon, kl, negElbo: recon + kl };
  }
}

/** -log p(x|z) in nats, of the log odds of the pixels. */
function negLogLikelihood(logits, bits) {
  let nats = 0;
  for (let n = 0; n < N_PIXELS; n++) nats += softplus(logits[n]) - bits[n] * logits[n];
  return nats;
}

export class Gan {
  constructor(description, buffer) {
    Object.assign(this, readNetworks(description, buffer));
    this.about = description;
    this.nLatents = this.generator.layers[0].nIn;
  }

  /** The image of a latent, in [0, 1]. */
  generate(z) {
    return this.generator.run(z).map((value) => (Math.tanh(value) + 1) / 2);
  }

  /** The probability that an image in [0, 1] is real, says the discriminator. */
  opinion(image) {
    return sigmoid(this.discriminator.run(image.map((value) => 2 * value - 1))[0]);
  }
}

export class Flow {
  constructor(description, buffer) {
    const networks = Object.values(readNetworks(description, buffer));
    this.about = description;
    this.couplings = networks.map((network, n) => {
      const kept = description.kept[n];
      const isKept = new Set(kept);
      const all = Array.from({ length: N_PIXELS }, (_, pixel) => pixel);
      return { network, kept, changed: all.filter((pixel) => !isKept.has(pixel)) };
    });
  }

  /** A digit's way to noise: states from noise to digit, and -log2 p(x) per dimension. */
  fromDigit(grey, noise = new Random(2).uniforms(N_PIXELS)) {
    const squeezed = grey.map((g, n) => ((g + noise[n]) / 256) * (1 - ALPHA) + ALPHA / 2);
    const states = [squeezed.map((w) => Math.log(w) - Math.log1p(-w))];
    const logDets = [];
    for (const coupling of this.couplings) {
      const { state, logDet } = applyCoupling(coupling, states[0], false);
      states.unshift(state);
      logDets.unshift(logDet);
    }
    return { states, bpd: bitsPerDimension(states, logDets) };
  }

  /** A sample's way from noise z: its states, from noise to digit, and -log2 p(x) per dimension. */
  fromNoise(z) {
    const states = [z];
    const logDets = [];
    for (const coupling of this.couplings.toReversed()) {
      const { state, logDet } = applyCoupling(coupling, states.at(-1), true);
      states.push(state);
      logDets.push(logDet);
    }
    return { states, bpd: bitsPerDimension(states, logDets) };
  }
}

/** A coupling's output and the log-determinant of its direction from image to noise. */
function applyCoupling({ network, kept, changed }, input, reverse) {
  const heads = network.run(Float32Array.from(kept, (pixel) => input[pixel]));
  const state = input.slice();
  let logDet = 0;
  changed.forEach((pixel, n) => {
    const logScale = Math.tanh(heads[n]);
    const translation = heads[n + changed.length];
    state[pixel] = reverse
      ? (input[pixel] - translation) * Math.exp(-logScale)
      : input[pixel] * Math.exp(logScale) + translation;
    logDet += logScale;
  });
  return { state, logDet };
}

function bitsPerDimension(states, logDets) {
  let nats = -logDets.reduce((sum, value) => sum + value, 0);
  for (const z of states[0]) nats += 0.5 * (z * z + Math.log(2 * Math.PI));
  // The logit transform: log p(y) = log p(l) + log(1 - alpha) - log 256 - log(w (1 - w)).
  for (const logit of states.at(-1)) {
    nats += Math.log(256) - Math.log(1 - ALPHA) - softplus(logit) - softplus(-logit);
  }
  return nats / (N_PIXELS * Math.LN2);
}

/** The pixels of a flow's state in [0, 1]: whole grey levels, as the flow's samples have. */
export function greyOf(state) {
  return state.map((logit) => {
    const level = Math.floor(((sigmoid(logit) - ALPHA / 2) / (1 - ALPHA)) * 256);
    return Math.min(Math.max(level, 0), 255) / 255;
  });
}
