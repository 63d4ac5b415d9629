// The page: sorting, filtering, ranks of what is shown, details of a cell, the theme. Without it the page is a plain table with its figures.
(() => {
  "use strict";
  const data = model(document.getElementById("data").textContent);
  const build = details(data);
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };

  // ---- the model: data and elements side by side ----

  const cells = new Map();
  const sections = data.sections.map((section, s) => {
    const root = document.getElementById(`s${s}`), body = $("tbody", root), elements = [...body.rows];
    const rows = section.rows.map((row, r) => {
      const element = elements[r];
      row.cells.forEach((cell, c) => cells.set(element.cells[2 + c].id.slice(5), { section, row, cell }));
      const words = `${row.entrant} ${row.method} ${JSON.stringify(row.params || {})} ${section.heading} ${section.setting}`.toLowerCase();
      return { row, element, order: r, words, entrant: +element.dataset.e, rank: row.rank || null };
    });
    return { section, root, body, rows, heads: [...$("thead", root).rows[0].cells], ranking: $(".ranking", root), said: $(".ranking", root).textContent, sort: null };
  });

  const filter = { words: "", place: "", formats: new Set(), entrants: new Set() };
  const filtered = () => Boolean(filter.words || filter.place || filter.formats.size || filter.entrants.size);

  const scoresOf = cell => {
    if (!cell.scores) {
      cell.scores = new Map();
      const { seed, score } = cell.runs;
      score.forEach((value, i) => { if (value !== null && !cell.scores.has(seed[i])) cell.scores.set(seed[i], value); });
    }
    return cell.scores;
  };
  const whole = cell => cell.state === "ok" && !cell.audits_failed;

  // The mean over the shown columns within each seed, over the seeds that all of them have.
  const over = columns => {
    const seeds = [...columns[0].keys()].filter(seed => columns.every(column => column.has(seed)));
    return new Map(seeds.map(seed => [seed, stats.mean(columns.map(column => column.get(seed)))]));
  };

  // ---- ranks ----

  function ranksOf(part, rows, columns) {
    const fit = rows.filter(r => r.row.role !== "reference" && !r.row.retired && columns.every(c => whole(r.row.cells[c])));
    const scores = columns.length ? fit.map(r => over(columns.map(c => scoresOf(r.row.cells[c])))) : [];
    const shared = scores.length ? [...scores[0].keys()].filter(seed => scores.every(s => s.has(seed))).length : 0;
    if (fit.length < 2 || shared < data.ranked_from) return { ranks: new Map(), shared, fit };
    const ranges = stats.rankRanges(scores, part.section.better, part.section.minimum_effect);
    return { ranks: new Map(fit.map((r, i) => [r, ranges[i]])), shared, fit };
  }

  const spellRank = range => (range ? (range[0] === range[1] ? `${range[0]}` : `${range[0]}–${range[1]}`) : "–");

  function showRanks(part, rows, columns) {
    const { ranks, shared, fit } = ranksOf(part, rows, columns);
    for (const r of part.rows) { r.rank = ranks.get(r) || null; r.element.cells[1].textContent = spellRank(r.rank); }
    const rivals = columns.map(c => rows.filter(r => r.row.role !== "reference" && !r.row.retired && whole(r.row.cells[c])));
    const bests = stats.clearBests(rivals.map((fit, i) => fit.map(r => scoresOf(r.row.cells[columns[i]]))), part.section.better, part.section.minimum_effect);
    columns.forEach((c, i) => part.rows.forEach(r => { if (!r.row.spans) cellElement(r, c).classList.toggle("best", bests[i] >= 0 && rivals[i][bests[i]] === r); }));
    const names = columns.map(c => part.section.formats[c]).join(", ");
    const few = shared < data.ranked_from ? `unranked (${shared} shared seed${shared === 1 ? "" : "s"}; ranks need ${data.ranked_from})` : "unranked (nobody to compare with)";
    part.ranking.textContent = filtered() ? (ranks.size ? `Ranks of the ${fit.length} shown, over ${names}.` : `Of what is shown: ${few}.`) : part.said;
  }

  const cellElement = (r, c) => r.element.cells[2 + (r.row.spans ? 0 : c)];

  // ---- filtering ----

  function apply() {
    let shown = 0, boards = 0;
    for (const part of sections) {
      const { section } = part, here = !filter.place || filter.place === `${section.task}/${section.size}`;
      const columns = section.formats.map((_, c) => c).filter(c => !filter.formats.has(section.formats[c]));
      const rows = part.rows.filter(r => !filter.entrants.has(r.entrant) && r.words.includes(filter.words));
      const visible = here && rows.length > 0 && (columns.length > 0 || !section.formats.length);
      part.root.hidden = !visible;
      if (!visible) continue;
      boards++;
      shown += rows.length;
      const keep = new Set(rows);
      for (const r of part.rows) r.element.hidden = !keep.has(r);
      showColumns(part, new Set(columns));
      showRanks(part, rows, columns);
      const kept = new Set(rows.map(r => r.entrant));
      for (const line of $$(".downstream tbody tr", part.root)) line.hidden = !kept.has(+line.dataset.e) || (line.dataset.f !== "" && !columns.includes(+line.dataset.f));
    }
    showEntrants();
    $("#status").textContent = filtered() ? (boards ? `${shown} rows in ${boards} table${boards === 1 ? "" : "s"} shown; ranks are of these.` : "Nothing matches.") : "";
    $("#filters .reset").hidden = !filtered();
  }

  // Of thousands of marks only those are touched whose entrant comes or goes.
  const hidden = new Set();
  function showEntrants() {
    for (const entrant of new Set([...hidden, ...filter.entrants])) {
      const off = filter.entrants.has(entrant);
      if (off === hidden.has(entrant)) continue;
      for (const element of $$(`.figures svg .e${entrant}`)) element.classList.toggle("off", off);
      if (off) hidden.add(entrant); else hidden.delete(entrant);
    }
    $$(".profile").forEach(thinOut);
  }

  // A dozen bands on each other say nothing; three do.
  const thinOut = figure => figure.classList.toggle("few", $$("svg .m:not(.off)", figure).length <= 3);

  function showColumns(part, columns) {
    part.panels ||= part.section.formats.map((_, c) => $$(`.figures [data-f="${c}"]`, part.root));
    part.section.formats.forEach((_, c) => {
      const off = !columns.has(c);
      part.heads[2 + c].hidden = off;
      for (const r of part.rows) if (!r.row.spans) cellElement(r, c).hidden = off;
      for (const panel of part.panels[c]) panel.classList.toggle("off", off);
    });
    for (const r of part.rows) if (r.row.spans) r.element.cells[2].colSpan = Math.max(columns.size, 1);
  }

  function toggle(set, value, buttons) {
    if (!set.delete(value)) set.add(value);
    for (const button of buttons) button.setAttribute("aria-pressed", String(!set.has(value)));
    apply();
  }

  function chips(label, values, set) {
    if (values.length < 2) return "";
    const buttons = values.map(value => {
      const button = make("button", { type: "button", class: "chip", "aria-pressed": "true" }, value);
      button.addEventListener("click", () => toggle(set, value, [button]));
      return button;
    });
    return make("div", { class: "chips", role: "group", "aria-label": label }, make("span", { class: "label" }, label), ...buttons);
  }

  function filters() {
    const bar = $("#filters");
    const search = make("input", { type: "search", placeholder: "method, task, parameter …", "aria-label": "Search" });
    search.addEventListener("input", () => { filter.words = search.value.trim().toLowerCase(); apply(); });
    const places = [...new Set(data.sections.map(s => `${s.task}/${s.size}`))];
    const select = make("select", { "aria-label": "Task and size" }, make("option", { value: "" }, "all tasks"), ...places.map(p => make("option", { value: p }, p)));
    select.addEventListener("change", () => { filter.place = select.value; apply(); });
    const reset = make("button", { type: "button", class: "reset" }, "show all");
    reset.addEventListener("click", () => {
      Object.assign(filter, { words: "", place: "" });
      filter.formats.clear();
      filter.entrants.clear();
      search.value = select.value = "";
      for (const button of $$("[aria-pressed]")) button.setAttribute("aria-pressed", "true");
      apply();
    });
    reset.hidden = true;
    bar.append(make("div", { class: "row" }, search, ...(places.length > 1 ? [select] : []), reset), chips("Formats", [...new Set(data.sections.flatMap(s => s.formats))], filter.formats), methods());
    bar.hidden = false;
  }

  // Every legend is the same filter: in the bar and under each table.
  function methods() {
    const seen = new Map();
    for (const part of sections) for (const r of part.rows) if (!seen.has(r.entrant)) {
      const [swatch, name] = $("th", r.element).children;
      seen.set(r.entrant, make("li", { "data-e": r.entrant }, swatch.cloneNode(), name.cloneNode(true)));
    }
    const list = make("ul", { class: "key", "aria-label": "Methods" }, ...[...seen].sort((a, b) => a[0] - b[0]).map(([, item]) => item));
    press(list);
    return make("div", { class: "chips" }, make("span", { class: "label" }, "Methods"), list);
  }

  function press(list) {
    for (const item of $$("[data-e]", list)) {
      const entrant = +item.dataset.e, pressed = String(!filter.entrants.has(entrant));
      const button = make("button", { type: "button", class: "chip", "aria-pressed": pressed }, ...item.childNodes);
      item.append(button);
      button.addEventListener("click", () => toggle(filter.entrants, entrant, $$(`.key [data-e="${entrant}"] button`)));
    }
  }

  // ---- figures ----

  // Where scripts run a figure is text in a noscript, which costs nothing, until the browser has time for it, or the page is printed.
  const waiting = $$(".figures").filter(box => $("noscript", box));

  function draw() {
    const box = waiting.shift(), part = sections.find(({ root }) => root.contains(box));
    box.innerHTML = $("noscript", box).textContent;
    press($(".key", box));
    for (const entrant of hidden) for (const element of $$(`svg .e${entrant}`, box)) element.classList.add("off");
    $$(".profile", box).forEach(thinOut);
    if (!part) return;
    part.panels = null;
    for (const panel of $$("[data-f]", box)) panel.classList.toggle("off", filter.formats.has(part.section.formats[panel.dataset.f]));
  }

  const idle = window.requestIdleCallback || setTimeout;
  function drawNext() { if (waiting.length) { draw(); idle(drawNext); } }
  addEventListener("beforeprint", () => { while (waiting.length) draw(); });

  // ---- sorting ----

    function valueOf(part, head) {
    if (head === 0) return r => r.row.entrant.toLowerCase();
    if (head === 1) return r => (r.rank ? r.rank[0] + r.rank[1] / 1e4 : null);
    const formats = Math.max(part.section.formats.length, 1);
    if (head < 2 + formats) return r => { const cell = r.row.cells[r.row.spans ? 0 : head - 2]; return cell && cell.score ? cell.score.value : null; };
    return r => r.row.cost[head - 2 - formats];
  }

  // Best first, then the other way round, then as it was. What has no number stays at the end.
  function sortBy(part, head) {
    const score = head >= 2 && head < 2 + Math.max(part.section.formats.length, 1);
    const first = score && part.section.better === "higher" ? -1 : 1;
    const now = part.sort && part.sort.head === head ? part.sort.direction : 0;
    part.sort = now === 0 ? { head, direction: first } : now === first ? { head, direction: -first } : null;
    const value = valueOf(part, head), direction = part.sort ? part.sort.direction : 1;
    const compare = (a, b) => {
      const x = value(a), y = value(b);
      if (x === null || y === null) return (x === null) - (y === null) || a.order - b.order;
      return (x < y ? -1 : x > y ? 1 : 0) * direction || a.order - b.order;
    };
    const rows = [...part.rows].sort(part.sort ? compare : (a, b) => a.order - b.order);
    part.body.append(...rows.map(r => r.element));
    part.heads.forEach((th, i) => {
      if (part.sort && i === head) th.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
      else th.removeAttribute("aria-sort");
    });
  }

  for (const part of sections) part.heads.forEach((th, i) => {
    const button = make("button", { type: "button", class: "sort" }, ...th.childNodes);
    th.append(button);
    button.addEventListener("click", () => sortBy(part, i));
  });

  // ---- details ----

  const dialog = $("#cell");
  let opener = null;

  function route() {
    const hash = decodeURIComponent(location.hash.slice(1)), found = hash.startsWith("cell=") && cells.get(hash.slice(5));
    if (!found) { if (dialog.open) dialog.close(); return; }
    opener = document.getElementById(hash);
    dialog.replaceChildren(...build(found.section, found.row, found.cell, () => dialog.close()));
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    $("#cell-title", dialog).focus();
  }
  dialog.addEventListener("close", () => {
    if (location.hash.startsWith("#cell=")) history.replaceState(null, "", "#");
    const link = opener && $("a", opener);
    if (link) link.focus({ preventScroll: true });
  });
  dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
  addEventListener("hashchange", route);

  // ---- an entrant lit up in the figures ----

  function light(event) {
    const item = event.target.closest ? event.target.closest("[data-e]") : null, root = item && item.closest("section");
    for (const box of $$(".figures.focus")) { box.classList.remove("focus"); $$(".lit", box).forEach(e => e.classList.remove("lit")); }
    const box = root && $(".figures", root);
    if (!box) return;
    box.classList.add("focus");
    $$(`svg .e${item.dataset.e}`, box).forEach(e => e.classList.add("lit"));
  }
  document.addEventListener("mouseover", light, { passive: true });
  document.addEventListener("focusin", light);

  // ---- the theme ----

  function theme() {
    const names = ["auto", "light", "dark"], root = document.documentElement;
    const remembered = (() => { try { return localStorage.getItem("theme"); } catch { return null; } })();
    let now = names.includes(remembered) ? remembered : "auto";
    const button = make("button", { type: "button", class: "theme" });
    const set = () => {
      if (now === "auto") delete root.dataset.theme; else root.dataset.theme = now;
      button.textContent = `Theme: ${now}`;
      try { localStorage.setItem("theme", now); } catch { /* a page from a file may remember nothing */ }
    };
    button.addEventListener("click", () => { now = names[(names.indexOf(now) + 1) % 3]; set(); });
    set();
    $(".actions").append(button);
  }

  theme();
  filters();
  route();
  idle(drawNext);
})();
