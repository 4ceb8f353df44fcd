// Weights: from the text in the page to layers that compute.

/** The bytes of the weights stored in the element with this id: base64 of gzip. */
export async function unpack(id) {
  const element = document.getElementById(id);
  const text = atob(element.textContent);
  element.remove(); // several megabytes that nobody reads again
  const bytes = new Uint8Array(text.length);
  for (let n = 0; n < text.length; n++) bytes[n] = text.charCodeAt(n);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

/** Reads arrays from a buffer one after the other; each starts at a multiple of 4 bytes. */
export class Reader {
  constructor(buffer) {
    this.buffer = buffer;
    this.position = 0;
  }

  /** The next n numbers as views into the buffer. */
  floats(n) {
    return this.next(Float32Array, n);
  }

  integers(n) {
    return this.next(Int8Array, n);
  }

  bytes(n) {
    return this.next(Uint8Array, n);
  }

  next(Type, n) {
    const view = new Type(this.buffer, this.position, n);
    this.position += Math.ceil(view.byteLength / 4) * 4;
    return view;
  }
}

/**
 * Linear layers, each followed by x -> max(x, slope x): ReLU has slope 0, no activation slope 1.
 * Row i of a weight matrix is scales[i] times 8-bit integers.
 */
export class Network {
  constructor(description, reader) {
    this.layers = description.map(({ nIn, nOut, slope }) => ({
      nIn,
      nOut,
      slope,
      scales: reader.floats(nOut),
      biases: reader.floats(nOut),
      weights: reader.integers(nIn * nOut),
    }));
  }

  /** The outputs of the last layer. */
  run(input) {
    return this.layers.reduce((values, layer) => applyLayer(layer, values), input);
  }
}

function applyLayer({ nIn, nOut, slope, scales, biases, weights }, input) {
  const output = new Float32Array(nOut);
  for (let row = 0, k = 0; row < nOut; row++) {
    let sum = 0;
    for (let n = 0; n < nIn; n++, k++) sum += weights[k] * input[n];
    sum = scales[row] * sum + biases[row];
    output[row] = sum > 0 ? sum : slope * sum;
  }
  return output;
}
