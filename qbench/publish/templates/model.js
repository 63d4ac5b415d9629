// Restores the page's data from what embed.py has packed: values that cells share are copied back
// into each cell, and keys become hexadecimal again.
const parseData = json => {
  "use strict";
  const SHARED_RUN_COLUMNS = ["seed", "state", "audit", "trust", "environment"];
  const KEY_BYTES = 16;
  const data = JSON.parse(json);

  const unpackEstimate = e => (e ? { value: e[0], low: e[1], high: e[2] } : null);

  function unpackKey(bytes, run) {
    const key = [...bytes.slice(KEY_BYTES * run, KEY_BYTES * (run + 1))];
    return key.map(byte => byte.charCodeAt(0).toString(16).padStart(2, "0")).join("");
  }

  // Returns the runs of a cell as columns of equal length.
  function unpackRuns([shared, keys, score, trained]) {
    const bytes = atob(keys), count = bytes.length / KEY_BYTES;
    const column = values => (Array.isArray(values) ? values : new Array(count).fill(values));
    const runs = { score, train_s: column(trained) };
    SHARED_RUN_COLUMNS.forEach((name, i) => { runs[name] = column(data.shared_runs[shared][i]); });
    runs.key = Array.from({ length: count }, (_, run) => unpackKey(bytes, run));
    return runs;
  }

  const NO_RUNS = { key: [], score: [], train_s: [] };
  for (const name of SHARED_RUN_COLUMNS) NO_RUNS[name] = [];

  function unpackCell(cell, format) {
    const packed = cell.runs;
    Object.assign(cell, data.shared_cells[cell.shared], { format });
    cell.state ||= "ok";
    cell.score = unpackEstimate(cell.score);
    cell.gap = unpackEstimate(cell.gap);
    // Only the runs of a cell that somebody opens are needed: unpacking all would take long.
    Object.defineProperty(cell, "runs", { get: () => (packed ? unpackRuns(packed) : NO_RUNS) });
  }

  for (const section of data.sections) {
    for (const row of section.rows) {
      row.role ||= "";
      row.method ||= row.entrant;
      row.provenance ||= "paper";
      row.spans = row.role === "reference" && row.cells.length === 1;
      row.cells.forEach((cell, i) => unpackCell(cell, row.spans ? "fp32" : section.formats[i]));
    }
  }
  return data;
};
