// The page's data as embedding.py found it: shared columns of runs back in their cells, keys as hexadecimal, each cell with its format and state.
const model = text => {
  "use strict";
  const SHAPE = ["seed", "state", "audit", "trust", "environment"];
  const data = JSON.parse(text);
  const estimate = e => (e ? { value: e[0], low: e[1], high: e[2] } : null);
  const hex = (bytes, from) => Array.from({ length: 16 }, (_, i) => bytes.charCodeAt(from + i).toString(16).padStart(2, "0")).join("");

  // A run a place: a column of one value has it for all.
  function unfold([shape, keys, score, trained]) {
    const bytes = atob(keys), count = bytes.length / 16;
    const column = values => (Array.isArray(values) ? values : new Array(count).fill(values));
    const runs = Object.fromEntries(SHAPE.map((name, i) => [name, column(data.shapes[shape][i])]));
    return { ...runs, score, train_s: column(trained), get key() { return Array.from({ length: count }, (_, i) => hex(bytes, 16 * i)); } };
  }

  const NOTHING = { key: [], score: [], train_s: [], ...Object.fromEntries(SHAPE.map(name => [name, []])) };
  for (const section of data.sections) for (const row of section.rows) {
    row.role ||= "";
    row.method ||= row.entrant;
    row.provenance ||= "paper";
    row.spans = row.role === "reference" && row.cells.length === 1;
    row.cells.forEach((cell, i) => {
      const folded = cell.runs;
      Object.assign(cell, data.likes[cell.like]);
      cell.format = row.spans ? "fp32" : section.formats[i];
      cell.state ||= "ok";
      cell.score = estimate(cell.score);
      cell.gap = estimate(cell.gap);
      // Only cells that are ranked or looked at are unfolded.
      Object.defineProperty(cell, "runs", { configurable: true, get() {
        const value = folded ? unfold(folded) : NOTHING;
        Object.defineProperty(cell, "runs", { value });
        return value;
      } });
    });
  }
  return data;
};
