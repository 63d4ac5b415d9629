// What is known of one cell: built when somebody asks for it, from the page's data, by textContent alone.
const details = data => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";

  function h(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === "class") element.className = value;
      else if (value !== null) element.setAttribute(name, value);
    }
    element.append(...children.flat().filter(child => child !== null && child !== undefined));
    return element;
  }

  const number = x => (x === null || x === undefined ? "–" : Math.abs(x) >= 1e5 || (x !== 0 && Math.abs(x) < 1e-4) ? x.toExponential(3) : String(+x.toPrecision(6)));
  const fixed = (x, digits) => (Math.abs(x) >= 1e5 || (x !== 0 && Math.abs(x) < 10 ** -digits) ? x.toExponential(2) : (x + 0).toFixed(digits));
  const interval = (e, digits, scale = 1, unit = "") =>
    fixed(e.value * scale, digits) + unit + (e.low === null || e.high === null ? "" : ` [${fixed(e.low * scale, digits)}, ${fixed(e.high * scale, digits)}]`);
  const spell = value => (value === null ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value));

  const terms = pairs => h("dl", {}, pairs.filter(([, value]) => value !== null && value !== "").flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
  const bdi = words => h("bdi", {}, words);

  function command(words) {
    const copy = h("button", { type: "button", class: "copy", "aria-label": `Copy: ${words}` }, "copy");
    copy.addEventListener("click", async () => {
      try { await navigator.clipboard.writeText(words); copy.textContent = "copied"; } catch { getSelection().selectAllChildren(copy.previousSibling); copy.textContent = "press Ctrl+C"; }
    });
    return h("p", { class: "command" }, h("code", {}, words), copy);
  }

  // The seeds on a line, and the mean among them.
  function strip(cell) {
    const scores = cell.runs.score.filter(x => x !== null);
    if (scores.length < 2) return null;
    const low = Math.min(...scores), span = Math.max(...scores) - low || 1;
    const svg = document.createElementNS(SVG, "svg");
    const attributes = { viewBox: "0 0 300 26", role: "img", class: "strip", "aria-label": `${scores.length} seeds from ${number(low)} to ${number(low + span)}` };
    for (const [name, value] of Object.entries(attributes)) svg.setAttribute(name, value);
    const draw = (d, cls) => { const path = document.createElementNS(SVG, "path"); path.setAttribute("d", d); path.setAttribute("class", cls); svg.append(path); };
    const place = x => 8 + (284 * (x - low)) / span;
    draw("M4 13H296", "axis");
    for (const x of scores) draw(`M${place(x) - 4} 13a4 4 0 1 0 8 0a4 4 0 1 0-8 0z`, "dot");
    draw(`M${place(stats.mean(scores))} 3V23`, "mean");
    return svg;
  }

  function seeds({ runs }, unit) {
    const heads = ["seed", `score${unit ? `, ${unit}` : ""}`, "state", "audit", "trust", "trained", "run"];
    const rows = runs.key.map((key, i) => {
      const audit = runs.audit[i], seconds = runs.train_s[i];
      const words = [spell(runs.seed[i]), number(runs.score[i]), runs.state[i], audit === null ? "–" : audit ? "passed" : "failed",
        runs.trust[i], seconds === null ? "–" : `${number(seconds)} s`];
      return h("tr", {}, words.map((word, n) => (n ? h("td", {}, word) : h("th", { scope: "row" }, word))), h("td", {}, h("code", { title: key }, key.slice(0, 12))));
    });
    return h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Seeds" },
      h("table", { class: "plain" }, h("thead", {}, h("tr", {}, heads.map(head => h("th", { scope: "col" }, head)))), h("tbody", {}, rows)));
  }

  function configuration(row, cell) {
    const setting = cell.setting === undefined ? {} : data.settings[cell.setting];
    const plain = Object.entries(setting).filter(([name]) => name !== "recipe" && name !== "task_params");
    const pairs = group => Object.entries(group || {}).map(([name, value]) => [name, spell(value)]);
    const block = (title, list) => (list.length ? [h("h4", {}, title), terms(list)] : []);
    return [
      block("Method", [["method", bdi(row.method)], ["version", row.version ? String(row.version) : ""], ["provenance", row.provenance], ...pairs(row.params)]),
      block(`Chosen on validation${cell.trials ? `, of ${cell.trials} trial${cell.trials === 1 ? "" : "s"}` : ""}`, pairs(cell.chosen).map(([name, value]) => [name, (cell.at_edge || []).some(edge => edge === name || edge.startsWith(`${name}=`)) ? `${value}, at the edge of what was tried` : value])),
      block("Task and format", [...plain.map(([name, value]) => [name, spell(value)]), ...pairs(setting.task_params)]),
      block("Recipe", pairs(setting.recipe)),
    ].flat();
  }

  function machines(cell) {
    const used = [...new Set(cell.runs.environment)].sort((a, b) => a - b);
    return used.map(n => {
      const e = data.environments[n], commit = e.commit_id ? e.commit_id.slice(0, 12) + (e.dirty ? " with changes" : "") : "unknown";
      const device = e.device_name && e.device_name !== e.device ? `${e.device} (${e.device_name})` : e.device;
      return terms([["commit", commit], ["qbench", e.qbench], ["torch", e.torch], ["Python", e.python], ["machine", e.cpu], ["device", device],
        ["threads", e.threads === null ? "" : String(e.threads)], ["platform", e.platform]].map(([name, value]) => [name, value === null || value === undefined ? "" : String(value)]));
    });
  }

  function outcome(section, cell) {
    const failed = Object.entries(cell.failures || {}).map(([reason, count]) => `${count} of ${cell.asked} ${reason}`).join(", ");
    return terms([
      [`${section.metric || "score"} (${section.better} is better)`, cell.score ? interval(cell.score, section.digits + 1) : cell.state],
      ["gap recovered", cell.gap ? interval(cell.gap, 1, 100, " %") : ""],
      ["after randomised rounding", cell.rr === undefined ? "" : fixed(cell.rr, section.digits + 1)],
      ["true bits per weight", cell.bits_per_weight === undefined ? "" : number(cell.bits_per_weight)],
      ["levels", cell.levels === undefined ? "" : String(cell.levels)],
      ["learning rate", cell.lr === undefined ? "" : `${number(cell.lr)}${cell.rates > 1 ? `, the best on validation of ${cell.rates}` : ""}`],
      ["training over full precision's", cell.cost === undefined ? "" : `${fixed(cell.cost, 2)} ×`],
      ["validation when full precision was done", cell.at_time === undefined ? "" : fixed(cell.at_time, section.digits + 1)],
      ["not finished well", failed ? bdi(cell.message ? `${failed}: ${cell.message}` : failed) : ""],
      ["audits", cell.audits_failed ? `${cell.audits_failed} failed` : cell.runs.key.length ? "none failed" : ""],
    ]);
  }

  function redo(cell) {
    const key = cell.runs.key[0];
    return [h("h3", {}, "Do it again"), key ? command(`qbench reproduce ${key}`) : null, key ? command(`qbench show ${key}`) : null,
      command(`qbench sweep ${data.board.replace(/[^\w.-]+/g, "-")}.toml`), h("p", { class: "hint" }, "The sweep file is at the end of this page.")];
  }

  return (section, row, cell, close) => {
    const title = h("h2", { id: "cell-title", tabindex: "-1" }, bdi(row.entrant.slice(0, 200)), ` · ${cell.format}`);
    const button = h("button", { type: "button", class: "close", "aria-label": "Close" }, "×");
    button.addEventListener("click", close);
    const body = [h("p", { class: "setting" }, bdi(section.title), ` · ${section.setting}`), outcome(section, cell), strip(cell)];
    if (cell.runs.key.length) body.push(h("h3", {}, "Seeds"), seeds(cell, section.unit));
    body.push(...redo(cell), h("h3", {}, "Configuration"), ...configuration(row, cell));
    if (cell.runs.key.length) body.push(h("h3", {}, "Code and machine"), ...machines(cell));
    return [h("header", {}, title, button), h("div", { class: "body" }, body.filter(part => part !== null))];
  };
};
