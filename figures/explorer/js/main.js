// The page: tabs, theme, code, and each view as soon as its model is unpacked.

import { setUpCompare } from "./compare.js";
import { Digits } from "./digits.js";
import { setUpDraw } from "./draw.js";
import { setUpFlow } from "./flow.js";
import { setUpGan } from "./gan.js";
import { Flow, Gan, Vae } from "./models.js";
import { unpack } from "./networks.js";
import { createPad, drawPads } from "./pad.js";
import { setUpPlane } from "./plane.js";
import { byId, element, repaint } from "./ui.js";
import { setUpUnits } from "./units.js";

const CLASSES = { vae20: Vae, vae2: Vae, gan: Gan, flow: Flow };
const data = JSON.parse(byId("data").textContent);
const tabs = [...byId("tabs").children];

/** Open a tab. The address ends in its name, in a form that makes no browser scroll. */
function openTab(name) {
  for (const tab of tabs) {
    const isOpen = tab.getAttribute("aria-controls") === name;
    tab.setAttribute("aria-selected", String(isOpen));
    tab.tabIndex = isOpen ? 0 : -1;
    byId(tab.getAttribute("aria-controls")).hidden = !isOpen;
  }
  history.replaceState(null, "", `#/${name}`);
}

function setUpTabs() {
  const names = tabs.map((tab) => tab.getAttribute("aria-controls"));
  tabs.forEach((tab, n) => {
    tab.addEventListener("click", () => openTab(names[n]));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = (n + step + tabs.length) % tabs.length;
      openTab(names[next]);
      tabs[next].focus();
    });
  });
  const asked = location.hash.slice(2);
  openTab(names.includes(asked) ? asked : names[0]);
}

function setUpTheme(onChange) {
  const root = document.documentElement;
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  let isDark = prefersDark.matches;
  const apply = () => {
    root.style.colorScheme = isDark ? "dark" : "light";
    byId("theme").textContent = isDark ? "Light" : "Dark";
    byId("theme").setAttribute("aria-label", `Change to ${isDark ? "light" : "dark"} colours`);
    onChange();
  };
  byId("theme").addEventListener("click", () => {
    isDark = !isDark;
    apply();
  });
  prefersDark.addEventListener("change", () => {
    isDark = prefersDark.matches;
    apply();
  });
  apply();
}

function setUpCode() {
  for (const button of document.querySelectorAll("[data-section]")) {
    const { file, line, source } = data.sections[button.dataset.section];
    button.title = `${file}, line ${line}`;
    button.addEventListener("click", () => {
      byId("code-title").textContent = `${file}, line ${line}`;
      byId("code-text").textContent = source;
      byId("code").showModal();
    });
  }
  byId("code").addEventListener("click", (event) => {
    if (event.target === byId("code")) byId("code").close(); // a click beside it
  });
}

function sayWhatIsMissing() {
  for (const host of document.querySelectorAll("[data-needs]")) {
    const { missing, title } = data.models[host.dataset.needs];
    if (!missing) continue;
    host.className = "missing";
    host.replaceChildren(
      element("p", { textContent: `${title}: ${missing.reason}. This makes one:` }),
      element("pre", {}, element("code", { textContent: missing.command })),
    );
  }
}

function fillTable() {
  for (const model of Object.values(data.models)) {
    const cells = model.missing
      ? ["", "", "", model.missing.reason, ""]
      : [
          model.script,
          model.nWeights.toLocaleString("en"),
          model.length,
          model.result,
          `${signed(model.cost.value)} ${model.cost.unit}`,
        ];
    const title = element("th", { scope: "row", textContent: model.title });
    const row = cells.map((textContent) => element("td", { textContent }));
    byId("about").append(element("tr", {}, title, ...row));
  }
}

function signed(value) {
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toPrecision(2)}`;
}

async function load() {
  const models = {};
  const hasPositions = !data.models.vae2.missing;
  const digits = new Digits(data.labels, await unpack("weights-digits"), hasPositions);
  for (const [name, description] of Object.entries(data.models)) {
    if (description.missing) continue;
    models[name] = new CLASSES[name](description, await unpack(`weights-${name}`));
  }
  const plane = models.vae2 && setUpPlane(models, digits);
  if (models.vae20) setUpUnits(models, digits);
  if (models.gan) setUpGan(models, digits);
  const sendDigit = models.flow && setUpFlow(models, digits);
  setUpDraw(models, digits, {
    openPlane: (z1, z2) => {
      openTab("plane");
      plane.moveTo(z1, z2);
      byId("plane-field").focus();
    },
    openFlow: () => {
      openTab("flow");
      sendDigit();
      byId("flow-play").focus();
    },
  });
  setUpCompare(models, digits);
  for (const host of document.querySelectorAll("[data-pad]")) createPad(host, digits);
  setUpTheme(() => {
    repaint();
    drawPads();
    plane?.repaint();
  });
  // For the browser's console and the tests.
  window.explorer = { models, digits };
  document.body.dataset.ready = "";
}

setUpTabs();
setUpCode();
sayWhatIsMissing();
fillTable();
load().catch((error) => {
  const textContent = `This browser can't unpack the models: ${error.message}`;
  byId("views").prepend(element("p", { className: "missing", textContent }));
  throw error;
});
