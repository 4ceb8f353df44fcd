// Numbers: random ones, the normal distribution, stable elementary functions.

/** 1 / (1 + e^-x). */
export function sigmoid(x) {
  return 1 / (1 + Math.exp(-x));
}

/** log(1 + e^x), without overflow. */
export function softplus(x) {
  return Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
}

/** P(Z <= x) for Z ~ N(0, 1), by its power series (Abramowitz & Stegun, Equation 26.2.11). */
export function normalCdf(x) {
  if (Math.abs(x) > 7) return x > 0 ? 1 : 0;
  let term = x;
  let sum = x;
  for (let n = 3; Math.abs(term) > 1e-17; n += 2) {
    term *= (x * x) / n;
    sum += term;
  }
  return 0.5 + (sum * Math.exp((-x * x) / 2)) / Math.sqrt(2 * Math.PI);
}

/** The x with normalCdf(x) = u, by bisection. */
export function normalQuantile(u) {
  let low = -7;
  let high = 7;
  for (let n = 0; n < 50; n++) {
    const middle = (low + high) / 2;
    if (normalCdf(middle) < u) low = middle;
    else high = middle;
  }
  return (low + high) / 2;
}

/** Reproducible random numbers: a Weyl sequence whose terms are mixed to 32 bits. */
export class Random {
  constructor(seed) {
    this.state = seed >>> 0;
  }

  /** Uniform on (0, 1). */
  uniform() {
    this.state = (this.state + 0x9e3779b9) >>> 0;
    let bits = this.state;
    bits = Math.imul(bits ^ (bits >>> 16), 0x85ebca6b);
    bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35);
    bits ^= bits >>> 16;
    return ((bits >>> 0) + 0.5) / 2 ** 32;
  }

  /** A whole number below n. */
  below(n) {
    return Math.floor(this.uniform() * n);
  }

  /** n draws from N(0, 1) (Box & Muller 1958). */
  normals(n) {
    return Float32Array.from({ length: n }, () => {
      const radius = Math.sqrt(-2 * Math.log(this.uniform()));
      return radius * Math.cos(2 * Math.PI * this.uniform());
    });
  }

  /** n draws from the uniform distribution on (0, 1). */
  uniforms(n) {
    return Float32Array.from({ length: n }, () => this.uniform());
  }
}

/** The straight line from a to b: the vector at t in [0, 1]. */
export function between(a, b, t) {
  return a.map((value, n) => (1 - t) * value + t * b[n]);
}
