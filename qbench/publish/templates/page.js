// Adds to the page what needs a script: filters, sorting, details of a cell, highlights, the theme.
// Without it the page is a set of plain tables with their figures.
(() => {
  "use strict";
  const data = parseData(document.getElementById("data").textContent);
  const buildDetails = makeDetailsBuilder(data);

  const find = (selector, root = document) => root.querySelector(selector);
  const findAll = (selector, root = document) => [...root.querySelectorAll(selector)];

  function create(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  // ---- tables: their data and their elements ----

  const FIRST_SCORE = 2; // columns of a table: method, rank, a score per format, costs
  const cells = new Map();

  const tables = data.sections.map((section, number) => {
    const root = document.getElementById(`s${number}`);
    const body = find("tbody", root), elements = [...body.rows];
    const rows = section.rows.map((row, order) => {
      const element = elements[order];
      row.cells.forEach((cell, c) => {
        const id = element.cells[FIRST_SCORE + c].id.slice("cell=".length);
        cells.set(id, { section, row, cell });
      });
      const params = JSON.stringify(row.params || {});
      const words = [row.entrant, row.method, params, section.heading, section.setting];
      const searchable = words.join(" ").toLowerCase();
      return { row, element, order, searchable, entrant: +element.dataset.e };
    });
    const heads = [...find("thead", root).rows[0].cells];
    return { section, root, body, rows, heads, panels: null, sort: null };
  });

  // ---- filters ----

  // Formats and entrants are those that are hidden.
  const filter = { words: "", place: "", formats: new Set(), entrants: new Set() };
  const isFiltered = () =>
    Boolean(filter.words || filter.place || filter.formats.size || filter.entrants.size);

  // Shows the rows and columns that pass the filter. Ranks and best scores stay as they are: were
  // they computed from the visible rows, a reader could choose a method's rivals.
  function applyFilter() {
    let rowCount = 0, tableCount = 0;
    for (const table of tables) {
      const { section } = table;
      const visible = section.formats.map((format, c) => (filter.formats.has(format) ? -1 : c));
      const columns = new Set(visible.filter(c => c >= 0));
      const rows = new Set(table.rows.filter(r =>
        !filter.entrants.has(r.entrant) && r.searchable.includes(filter.words)));
      const chosen = !filter.place || filter.place === `${section.task}/${section.size}`;
      const hasColumns = columns.size > 0 || !section.formats.length;
      table.root.hidden = !(chosen && hasColumns && rows.size > 0);
      if (table.root.hidden) continue;
      tableCount++;
      rowCount += rows.size;
      for (const r of table.rows) r.element.hidden = !rows.has(r);
      showColumns(table, columns);
      showDownstreamRows(table, new Set([...rows].map(r => r.entrant)), columns);
    }
    showMarks();
    find("#status").textContent = describeFilter(rowCount, tableCount);
    find("#filters .reset").hidden = !isFiltered();
  }

  function describeFilter(rowCount, tableCount) {
    if (!isFiltered()) return "";
    if (!tableCount) return "Nothing matches.";
    const count = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;
    return `${count(rowCount, "row")} in ${count(tableCount, "table")} shown.`;
  }

  function showColumns(table, columns) {
    table.panels ||= table.section.formats.map((_, c) =>
      findAll(`.figures [data-f="${c}"]`, table.root));
    table.section.formats.forEach((_, c) => {
      const off = !columns.has(c);
      table.heads[FIRST_SCORE + c].hidden = off;
      for (const { row, element } of table.rows) {
        if (!row.spans) element.cells[FIRST_SCORE + c].hidden = off;
      }
      for (const panel of table.panels[c]) panel.classList.toggle("off", off);
    });
    for (const { row, element } of table.rows) {
      if (row.spans) element.cells[FIRST_SCORE].colSpan = Math.max(columns.size, 1);
    }
  }

  function showDownstreamRows(table, entrants, columns) {
    for (const line of findAll(".downstream tbody tr", table.root)) {
      const column = line.dataset.f; // empty for full precision, which has one line for all
      line.hidden = !entrants.has(+line.dataset.e) || (column !== "" && !columns.has(+column));
    }
  }

  // There are thousands of marks: only those of entrants that come or go are touched.
  const hiddenEntrants = new Set();
  function showMarks() {
    for (const entrant of new Set([...hiddenEntrants, ...filter.entrants])) {
      const off = filter.entrants.has(entrant);
      if (off === hiddenEntrants.has(entrant)) continue;
      for (const mark of findAll(`.figures svg .e${entrant}`)) mark.classList.toggle("off", off);
      if (off) hiddenEntrants.add(entrant); else hiddenEntrants.delete(entrant);
    }
    findAll(".profile").forEach(showBandsOfFew);
  }

  // A dozen bands on top of each other cannot be read; three can.
  function showBandsOfFew(figure) {
    figure.classList.toggle("few", findAll("svg .m:not(.off)", figure).length <= 3);
  }

  function toggle(hidden, value, buttons) {
    if (!hidden.delete(value)) hidden.add(value);
    for (const button of buttons) button.setAttribute("aria-pressed", String(!hidden.has(value)));
    applyFilter();
  }

  function addFilters() {
    const bar = find("#filters");
    const search = createSearch(), select = createTaskSelect(), reset = createReset(search, select);
    const formats = [...new Set(data.sections.flatMap(section => section.formats))];
    const first = create("div", { class: "row" }, search, reset);
    if (select.options.length > 2) search.after(select); // a choice between tasks
    bar.prepend(first, createFormatChips(formats), createMethodChips());
    bar.hidden = false;
  }

  function createSearch() {
    const attributes = { type: "search", placeholder: "method, task, parameter …" };
    const search = create("input", { ...attributes, "aria-label": "Search" });
    search.addEventListener("input", () => {
      filter.words = search.value.trim().toLowerCase();
      applyFilter();
    });
    return search;
  }

  function createTaskSelect() {
    const places = [...new Set(data.sections.map(s => `${s.task}/${s.size}`))];
    const select = create("select", { "aria-label": "Task and size" },
      create("option", { value: "" }, "all tasks"),
      ...places.map(place => create("option", { value: place }, place)));
    select.addEventListener("change", () => { filter.place = select.value; applyFilter(); });
    return select;
  }

  function createReset(search, select) {
    const reset = create("button", { type: "button", class: "reset" }, "show all");
    reset.addEventListener("click", () => {
      Object.assign(filter, { words: "", place: "" });
      filter.formats.clear();
      filter.entrants.clear();
      search.value = select.value = "";
      for (const button of findAll("[aria-pressed]")) button.setAttribute("aria-pressed", "true");
      applyFilter();
    });
    reset.hidden = true;
    return reset;
  }

  function createFormatChips(formats) {
    if (formats.length < 2) return "";
    const buttons = formats.map(format => {
      const attributes = { type: "button", class: "chip", "aria-pressed": "true" };
      const button = create("button", attributes, format);
      button.addEventListener("click", () => toggle(filter.formats, format, [button]));
      return button;
    });
    const label = create("span", { class: "label" }, "Formats");
    const group = { class: "chips", role: "group", "aria-label": "Formats" };
    return create("div", group, label, ...buttons);
  }

  function createMethodChips() {
    const items = new Map();
    for (const { entrant, element } of tables.flatMap(table => table.rows)) {
      if (items.has(entrant)) continue;
      const [swatch, name] = find("th", element).children;
      const parts = [swatch.cloneNode(), name.cloneNode(true)];
      items.set(entrant, create("li", { "data-e": entrant }, ...parts));
    }
    const ordered = [...items].sort((a, b) => a[0] - b[0]).map(([, item]) => item);
    const list = create("ul", { class: "key", "aria-label": "Methods" }, ...ordered);
    addLegendButtons(list);
    const label = create("span", { class: "label" }, "Methods");
    return create("div", { class: "chips" }, label, list);
  }

  // Every legend is the same filter: the one in the bar and those of the figures.
  function addLegendButtons(list) {
    for (const item of findAll("[data-e]", list)) {
      const entrant = +item.dataset.e, pressed = String(!filter.entrants.has(entrant));
      const attributes = { type: "button", class: "chip", "aria-pressed": pressed };
      const button = create("button", attributes, ...item.childNodes);
      item.append(button);
      button.addEventListener("click", () =>
        toggle(filter.entrants, entrant, findAll(`.key [data-e="${entrant}"] button`)));
    }
  }

  // ---- figures ----

  // Where scripts run, the browser reads the figures inside noscript as text, which is fast. They
  // are drawn one after the other when the browser is idle, or at once when the page is printed.
  const waiting = findAll(".figures").filter(box => find("noscript", box));

  function drawFigures() {
    const box = waiting.shift(), table = tables.find(({ root }) => root.contains(box));
    // Not hostile: page.py has escaped every name, and the content security policy stops scripts.
    box.innerHTML = find("noscript", box).textContent;
    addLegendButtons(find(".key", box));
    // A filter may have been set before the figures were there.
    for (const entrant of hiddenEntrants) {
      for (const mark of findAll(`svg .e${entrant}`, box)) mark.classList.add("off");
    }
    findAll(".profile", box).forEach(showBandsOfFew);
    if (!table) return;
    table.panels = null;
    for (const panel of findAll("[data-f]", box)) {
      panel.classList.toggle("off", filter.formats.has(table.section.formats[panel.dataset.f]));
    }
  }

  const whenIdle = window.requestIdleCallback || setTimeout;
  function drawWhenIdle() {
    if (!waiting.length) return;
    drawFigures();
    whenIdle(drawWhenIdle);
  }
  addEventListener("beforeprint", () => { while (waiting.length) drawFigures(); });

  // ---- sorting ----

  const countScoreColumns = table => Math.max(table.section.formats.length, 1);
  const isScoreColumn = (table, head) =>
    head >= FIRST_SCORE && head < FIRST_SCORE + countScoreColumns(table);

  // Returns a function that gives a row's value in a column, or null.
  function makeValueGetter(table, head) {
    if (head === 0) return ({ row }) => row.entrant.toLowerCase();
    // Ranges such as 2–4 are ordered by their start, then by their end.
    if (head === 1) return ({ row }) => (row.rank ? row.rank[0] + row.rank[1] / 1e4 : null);
    if (!isScoreColumn(table, head)) {
      return ({ row }) => row.cost[head - FIRST_SCORE - countScoreColumns(table)];
    }
    return ({ row }) => {
      const cell = row.cells[row.spans ? 0 : head - FIRST_SCORE];
      return cell && cell.score ? cell.score.value : null;
    };
  }

  // The first click on a head sorts best first, the second worst first, the third restores the
  // order of the board. Rows without a value stay at the end.
  function sortBy(table, head) {
    const { better } = table.section;
    const best = isScoreColumn(table, head) && better === "higher" ? -1 : 1;
    const now = table.sort && table.sort.head === head ? table.sort.direction : 0;
    const direction = now === 0 ? best : now === best ? -best : 0;
    table.sort = direction ? { head, direction } : null;
    const getValue = makeValueGetter(table, head);
    const compare = (a, b) => {
      if (!direction) return a.order - b.order;
      const x = getValue(a), y = getValue(b);
      if (x === null || y === null) return (x === null) - (y === null) || a.order - b.order;
      return (x < y ? -1 : x > y ? 1 : 0) * direction || a.order - b.order;
    };
    table.body.append(...[...table.rows].sort(compare).map(r => r.element));
    table.heads.forEach((th, i) => {
      if (direction && i === head) {
        th.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
      } else {
        th.removeAttribute("aria-sort");
      }
    });
  }

  function addSortButtons() {
    for (const table of tables) {
      table.heads.forEach((th, head) => {
        const button = create("button", { type: "button", class: "sort" }, ...th.childNodes);
        th.append(button);
        button.addEventListener("click", () => sortBy(table, head));
      });
    }
  }

  // ---- details of a cell ----

  // The address of the page names the open cell, so that it can be linked and the browser's "back"
  // closes it.
  const dialog = find("#cell");
  let opener = null;

  function showLinkedCell() {
    const hash = decodeURIComponent(location.hash.slice(1));
    const linked = hash.startsWith("cell=") && cells.get(hash.slice("cell=".length));
    if (!linked) {
      if (dialog.open) dialog.close();
      return;
    }
    opener = document.getElementById(hash);
    const close = () => dialog.close();
    dialog.replaceChildren(...buildDetails(linked.section, linked.row, linked.cell, close));
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    find("#cell-title", dialog).focus();
  }
  dialog.addEventListener("close", () => {
    if (location.hash.startsWith("#cell=")) history.replaceState(null, "", "#");
    const link = opener && find("a", opener);
    if (link) link.focus({ preventScroll: true });
  });
  dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
  addEventListener("hashchange", showLinkedCell);

  // ---- highlighting an entrant in the figures ----

  function highlight(event) {
    for (const box of findAll(".figures.focus")) {
      box.classList.remove("focus");
      findAll(".lit", box).forEach(mark => mark.classList.remove("lit"));
    }
    const item = event.target.closest ? event.target.closest("[data-e]") : null;
    const section = item && item.closest("section"), box = section && find(".figures", section);
    if (!box) return;
    box.classList.add("focus");
    findAll(`svg .e${item.dataset.e}`, box).forEach(mark => mark.classList.add("lit"));
  }
  document.addEventListener("mouseover", highlight, { passive: true });
  document.addEventListener("focusin", highlight);

  // ---- theme ----

  function addThemeButton() {
    const names = ["auto", "light", "dark"], root = document.documentElement;
    let theme = "auto";
    // A page that was opened from a disk may have no storage: reading and writing throw.
    try { theme = localStorage.getItem("theme"); } catch { /* stay with the default */ }
    if (!names.includes(theme)) theme = "auto";
    const button = create("button", { type: "button", class: "theme" });
    const applyTheme = () => {
      if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
      button.textContent = `Theme: ${theme}`;
      try { localStorage.setItem("theme", theme); } catch { /* nothing is remembered */ }
    };
    button.addEventListener("click", () => {
      theme = names[(names.indexOf(theme) + 1) % names.length];
      applyTheme();
    });
    applyTheme();
    find(".actions").append(button);
  }

  addThemeButton();
  addFilters();
  addSortButtons();
  showLinkedCell();
  whenIdle(drawWhenIdle);
})();
