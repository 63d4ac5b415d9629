// Builds the details of a cell when a reader opens it. Names may come from strangers: they are
// written as text only, never as HTML.
const makeDetailsBuilder = data => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";

  // ---- elements ----

  function create(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value !== null) element.setAttribute(name, value);
    }
    element.append(...children.flat().filter(child => child !== null && child !== undefined));
    return element;
  }

  // A name may be written from right to left; bdi keeps it from turning its surroundings.
  const createName = name => create("bdi", {}, name);

  function createTerms(pairs) {
    const known = pairs.filter(([, value]) => !isMissing(value) && value !== "");
    const parts = known.map(([name, value]) => [create("dt", {}, name), create("dd", {}, value)]);
    return create("dl", {}, parts.flat());
  }

  function createCommand(words) {
    const code = create("code", {}, words);
    const attributes = { type: "button", class: "copy", "aria-label": `Copy: ${words}` };
    const button = create("button", attributes, "copy");
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(words);
        button.textContent = "copied";
      } catch {
        // A page that was opened from a disk may not write to the clipboard.
        getSelection().selectAllChildren(code);
        button.textContent = "press Ctrl+C";
      }
    });
    return create("p", { class: "command" }, code, button);
  }

  // ---- numbers ----

  const isMissing = x => x === null || x === undefined;
  const isTiny = (x, least) => x !== 0 && Math.abs(x) < least;

  function formatNumber(x) {
    if (isMissing(x)) return "–";
    if (Math.abs(x) >= 1e5 || isTiny(x, 1e-4)) return x.toExponential(3);
    return String(+x.toPrecision(6));
  }

  function formatFixed(x, digits) {
    if (Math.abs(x) >= 1e5 || isTiny(x, 10 ** -digits)) return x.toExponential(2);
    return (x + 0).toFixed(digits); // adding 0 turns -0 into 0
  }

  function formatEstimate(e, digits, scale = 1, unit = "") {
    const [value, low, high] = [e.value, e.low, e.high].map(x =>
      x === null ? null : formatFixed(x * scale, digits));
    return value + unit + (low === null || high === null ? "" : ` [${low}, ${high}]`);
  }

  const formatOptional = (x, format) => (isMissing(x) ? "" : format(x));

  function formatSetting(value) {
    if (value === null) return "–";
    return typeof value === "object" ? JSON.stringify(value) : String(value);
  }

  // ---- results ----

  function createResults(section, cell) {
    const digits = section.digits + 1;
    return createTerms([
      [`${section.metric || "score"} (${section.better} is better)`,
        cell.score ? formatEstimate(cell.score, digits) : cell.state],
      ["gap recovered", formatOptional(cell.gap, gap => formatEstimate(gap, 1, 100, " %"))],
      ["score after randomised rounding", formatOptional(cell.rr, x => formatFixed(x, digits))],
      ["bits per weight, with scales", formatOptional(cell.bits_per_weight, formatNumber)],
      ["quantization levels", formatOptional(cell.levels, String)],
      ["learning rate", formatOptional(cell.lr, lr => formatRate(lr, cell.rates))],
      ["training time relative to full precision",
        formatOptional(cell.cost, x => `${formatFixed(x, 2)} ×`)],
      ["validation score when full precision finished training",
        formatOptional(cell.at_time, x => formatFixed(x, digits))],
      ["failed runs", describeFailures(cell)],
      ["audits", describeAudits(cell)],
    ]);
  }

  function formatRate(rate, tried) {
    return formatNumber(rate) + (tried > 1 ? `, the best of ${tried} on validation` : "");
  }

  function describeFailures(cell) {
    const counts = Object.entries(cell.failures || {}).map(([reason, count]) =>
      `${count} of ${cell.asked} ${reason}`);
    if (!counts.length) return "";
    const words = counts.join(", ");
    return createName(cell.message ? `${words}: ${cell.message}` : words);
  }

  function describeAudits(cell) {
    if (cell.audits_failed) return `${cell.audits_failed} failed`;
    return cell.runs.key.length ? "none failed" : "";
  }

  // ---- seeds ----

  // Draws the scores of the seeds on a line, with their mean.
  function drawSeeds(runs) {
    const scores = runs.score.filter(x => x !== null);
    if (scores.length < 2) return null;
    const low = Math.min(...scores), high = Math.max(...scores), span = high - low || 1;
    const mean = scores.reduce((sum, x) => sum + x, 0) / scores.length;
    const label = `${scores.length} seeds from ${formatNumber(low)} to ${formatNumber(high)}`;
    const svg = document.createElementNS(SVG, "svg");
    const attributes = { viewBox: "0 0 300 26", role: "img", class: "strip", "aria-label": label };
    for (const [name, value] of Object.entries(attributes)) svg.setAttribute(name, value);
    const draw = (d, cls) => {
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("d", d);
      path.setAttribute("class", cls);
      svg.append(path);
    };
    const place = x => 8 + (284 * (x - low)) / span;
    draw("M4 13H296", "axis");
    for (const x of scores) draw(`M${place(x) - 4} 13a4 4 0 1 0 8 0a4 4 0 1 0-8 0z`, "dot");
    draw(`M${place(mean)} 3V23`, "mean");
    return svg;
  }

  function createSeedTable(runs, unit) {
    const score = `score${unit ? `, ${unit}` : ""}`;
    const heads = ["seed", score, "state", "audit", "trust", "training", "run"];
    const rows = runs.key.map((key, i) => {
      const audit = runs.audit[i], seconds = runs.train_s[i];
      const words = [formatNumber(runs.score[i]), runs.state[i],
        audit === null ? "–" : audit ? "passed" : "failed",
        runs.trust[i], seconds === null ? "–" : `${formatNumber(seconds)} s`];
      return create("tr", {},
        create("th", { scope: "row" }, formatSetting(runs.seed[i])),
        words.map(word => create("td", {}, word)),
        create("td", {}, create("code", { title: key }, key.slice(0, 12))));
    });
    const head = create("tr", {}, heads.map(name => create("th", { scope: "col" }, name)));
    const table = create("table", { class: "plain" },
      create("thead", {}, head), create("tbody", {}, rows));
    // The table may be wider than the drawer: the region scrolls, also by the keyboard.
    const region = { class: "wide", tabindex: "0", role: "region", "aria-label": "Seeds" };
    return create("div", region, table);
  }

  // ---- how it was made ----

  function createReproduction(cell) {
    const key = cell.runs.key[0];
    const file = `${data.board.replace(/[^\w.-]+/g, "-")}.toml`;
    const commands = key ? [`qbench reproduce ${key}`, `qbench show ${key}`] : [];
    return [
      create("h3", {}, "Reproduce it"),
      ...[...commands, `qbench sweep ${file}`].map(createCommand),
      create("p", { class: "hint" }, "The sweep file is at the end of this page."),
    ];
  }

  function createConfiguration(row, cell) {
    const setting = isMissing(cell.setting) ? {} : data.settings[cell.setting];
    const format = values =>
      Object.entries(values || {}).map(([name, value]) => [name, formatSetting(value)]);
    const { recipe, task_params, ...task } = setting;
    const trials = cell.trials ? ` among ${cell.trials} trial${cell.trials === 1 ? "" : "s"}` : "";
    const groups = [
      ["Method", [
        ["method", createName(row.method)],
        ["version", row.version ? String(row.version) : ""],
        ["provenance", row.provenance],
        ...format(row.params),
      ]],
      [`Chosen on validation${trials}`, format(cell.chosen).map(([name, value]) =>
        [name, value + (isAtEdge(cell, name) ? ", at the edge of what was tried" : "")])],
      ["Task and format", [...format(task), ...format(task_params)]],
      ["Recipe", format(recipe)],
    ];
    return groups.filter(([, pairs]) => pairs.length).flatMap(([title, pairs]) =>
      [create("h4", {}, title), createTerms(pairs)]);
  }

  const isAtEdge = (cell, name) =>
    (cell.at_edge || []).some(edge => edge === name || edge.startsWith(`${name}=`));

  function createMachines(cell) {
    const used = [...new Set(cell.runs.environment)].sort((a, b) => a - b);
    return used.map(place => {
      const e = data.environments[place];
      const changes = e.dirty ? " with changes" : "";
      const commit = e.commit_id ? e.commit_id.slice(0, 12) + changes : "unknown";
      const named = e.device_name && e.device_name !== e.device;
      const pairs = [
        ["commit", commit],
        ["qbench", e.qbench],
        ["torch", e.torch],
        ["Python", e.python],
        ["machine", e.cpu],
        ["device", named ? `${e.device} (${e.device_name})` : e.device],
        ["threads", e.threads],
        ["platform", e.platform],
      ];
      return createTerms(pairs.map(([name, value]) => [name, formatOptional(value, String)]));
    });
  }

  // ---- the drawer ----

  // Returns the elements of the drawer; `close` closes it.
  return (section, row, cell, close) => {
    const title = create("h2", { id: "cell-title", tabindex: "-1" },
      createName(row.entrant.slice(0, 200)), ` · ${cell.format}`);
    const attributes = { type: "button", class: "close", "aria-label": "Close" };
    const button = create("button", attributes, "×");
    button.addEventListener("click", close);
    const runs = cell.runs, ran = runs.key.length > 0;
    const setting = [createName(section.title), ` · ${section.setting}`];
    const body = create("div", { class: "body" },
      create("p", { class: "setting" }, setting),
      createResults(section, cell),
      drawSeeds(runs),
      ran ? [create("h3", {}, "Seeds"), createSeedTable(runs, section.unit)] : null,
      createReproduction(cell),
      create("h3", {}, "Configuration"),
      createConfiguration(row, cell),
      ran ? [create("h3", {}, "Code and machine"), ...createMachines(cell)] : null);
    return [create("header", {}, title, button), body];
  };
};
