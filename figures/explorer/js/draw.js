// A drawn digit and what each model says of it.

import { byId, gauge, show, twoDecimals } from "./ui.js";

/** Room on a gauge around the test digits' band. */
function around(band, factor = 1.2) {
  return { min: 0, max: factor * band[2] };
}

/** Set up the view. `openPlane(z1, z2)` and `openFlow()` show the digit in other views. */
export function setUpDraw(models, digits, { openPlane, openFlow }) {
  const { vae20, vae2, gan, flow } = models;
  const onDigit = [];

  onDigit.push(({ image, name }) => {
    show(byId("draw-seen"), image, `What the models see: ${name}`);
    byId("draw-name").textContent = name;
  });

  if (vae20) {
    const host = byId("draw-elbo");
    const { bands } = vae20.about;
    const scale = { unit: " nats", decimals: 1 };
    const range = around(bands.negElbo);
    const setters = {
      recon: gauge(host, { label: "reconstruction", band: bands.recon, ...scale, ...range }),
      kl: gauge(host, { label: "KL(q(z|x) ‖ p(z))", band: bands.kl, ...scale, ...range }),
      negElbo: gauge(host, { label: "negative ELBO", band: bands.negElbo, ...scale, ...range }),
    };
    onDigit.push(({ bits, isEmpty }) => {
      show(byId("draw-bits"), bits, "The digit as bits");
      if (isEmpty) {
        show(byId("draw-recon"), bits, "No reconstruction");
        for (const set of Object.values(setters)) set(null);
        return;
      }
      const reconstruction = vae20.decode(vae20.encode(bits).mean);
      show(byId("draw-recon"), reconstruction, "Its reconstruction");
      const nats = vae20.negElbo(bits);
      for (const [name, set] of Object.entries(setters)) set(nats[name]);
    });
  }

  if (vae2) {
    let position = [0, 0];
    onDigit.push(({ bits, isEmpty }) => {
      byId("draw-goto").disabled = isEmpty;
      if (isEmpty) {
        show(byId("draw-plane"), bits, "No reconstruction");
        show(byId("draw-nearest"), bits, "No nearest digit");
        byId("draw-nearest-name").textContent = "nearest: –";
        byId("draw-position").textContent = "It lies at z = –.";
        return;
      }
      position = [...vae2.encode(bits).mean];
      const nearest = digits.nearest(...position);
      const [z1, z2] = position.map(twoDecimals);
      show(byId("draw-plane"), vae2.decode(Float32Array.from(position)), "Its reconstruction");
      show(byId("draw-nearest"), digits.image(nearest), digits.name(nearest));
      byId("draw-nearest-name").textContent = `nearest: a ${digits.labels[nearest]}`;
      byId("draw-position").textContent = `It lies at z = (${z1}, ${z2}).`;
    });
    byId("draw-goto").addEventListener("click", () => openPlane(...position));
  }

  if (gan) {
    const set = opinionGauge(byId("draw-opinion"), gan);
    onDigit.push(({ image, isEmpty }) => set(isEmpty ? null : gan.opinion(image)));
  }

  if (flow) {
    const set = bpdGauge(byId("draw-bpd"), flow);
    onDigit.push(({ grey, isEmpty }) => {
      byId("draw-flow").disabled = isEmpty;
      set(isEmpty ? null : flow.fromDigit(grey).bpd);
    });
    byId("draw-flow").addEventListener("click", openFlow);
  }

  // At most once per frame: a fast pen sends more strokes than that.
  let isDue = false;
  digits.onChange(() => {
    if (isDue) return;
    isDue = true;
    requestAnimationFrame(() => {
      isDue = false;
      for (const callback of onDigit) callback(digits.current);
    });
  });
}

/** A gauge of the discriminator's opinion. */
export function opinionGauge(host, gan) {
  const { real } = gan.about.bands;
  const set = gauge(host, { label: "real, says D", unit: "%", band: percents(real), ...PERCENT });
  return (opinion) => set(opinion === null ? null : 100 * opinion);
}

const PERCENT = { min: 0, max: 100, decimals: 0 };

function percents(band) {
  return band.map((value) => 100 * value);
}

/** A gauge of bits per dimension. */
export function bpdGauge(host, flow) {
  const { bpd } = flow.about.bands;
  return gauge(host, {
    label: "bits per dimension",
    unit: "",
    band: bpd,
    decimals: 2,
    ...around(bpd, 1.5),
  });
}
