// The statistics of qbench/stats.py that ranks need: the paired t test, Holm's correction, the minimum effect. Scores are Maps from seed to number.
const stats = (() => {
  "use strict";
  const SPREADLESS = 1e-12, ALPHA = 0.05;

  const mean = values => values.reduce((a, b) => a + b, 0) / values.length;

  // Lanczos's approximation, to fifteen digits.
  const LANCZOS = [
    0.99999999999980993, 676.5203681218851, -1259.1392167224028, 771.32342877765313, -176.61502916214059, 12.507343278686905,
    -0.13857109526572012, 9.9843695780195716e-6, 1.5056327351493116e-7,
  ];
  function lgamma(x) {
    if (x < 0.5) return Math.log(Math.PI / Math.sin(Math.PI * x)) - lgamma(1 - x);
    const t = x + 6.5;
    let sum = LANCZOS[0];
    for (let i = 1; i < LANCZOS.length; i++) sum += LANCZOS[i] / (x - 1 + i);
    return 0.5 * Math.log(2 * Math.PI) + (x - 0.5) * Math.log(t) - t + Math.log(sum);
  }

  // The continued fraction of the incomplete beta function, by Lentz; it converges fast where x < (a + 1) / (a + b + 2).
  function fraction(a, b, x) {
    const TINY = 1e-300, keep = v => (Math.abs(v) < TINY ? TINY : v);
    let c = 1, d = 1 / keep(1 - ((a + b) * x) / (a + 1)), h = d;
    for (let m = 1; m < 500; m++) {
      for (const top of [(m * (b - m) * x) / ((a + 2 * m - 1) * (a + 2 * m)), (-(a + m) * (a + b + m) * x) / ((a + 2 * m) * (a + 2 * m + 1))]) {
        d = 1 / keep(1 + top * d);
        c = keep(1 + top / c);
        h *= d * c;
      }
      if (Math.abs(d * c - 1) < 1e-15) break;
    }
    return h;
  }

  // `y` is 1 − x, given apart because near x = 1 the difference has no digits left.
  function betainc(a, b, x, y) {
    if (x <= 0) return 0;
    if (y <= 0) return 1;
    const front = Math.exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * Math.log(x) + b * Math.log(y));
    return x < (a + 1) / (a + b + 2) ? (front * fraction(a, b, x)) / a : 1 - (front * fraction(b, a, y)) / b;
  }

  const twoSided = (t, df) => betainc(df / 2, 0.5, df / (df + t * t), (t * t) / (df + t * t));

  function pairedTest(a, b) {
    const shared = [...a.keys()].filter(seed => b.has(seed)).sort((x, y) => x - y);
    const d = shared.map(seed => a.get(seed) - b.get(seed));
    if (d.length < 2) return { difference: d.length ? mean(d) : NaN, p: null };
    const difference = mean(d);
    const error = Math.sqrt(d.reduce((sum, x) => sum + (x - difference) ** 2, 0) / (d.length - 1) / d.length);
    const size = Math.max(...shared.map(seed => Math.abs(a.get(seed)) + Math.abs(b.get(seed))));
    return { difference, p: error <= SPREADLESS * size ? null : twoSided(difference / error, d.length - 1) };
  }

  function holm(p) {
    const order = p.map((_, i) => i).sort((i, j) => p[i] - p[j]);
    const adjusted = new Array(p.length).fill(0);
    let worst = 0;
    order.forEach((i, rank) => { adjusted[i] = worst = Math.max(worst, Math.min(1, (p.length - rank) * p[i])); });
    return adjusted;
  }

  function rankRanges(scores, better, effect) {
    const pairs = [];
    for (let i = 0; i < scores.length; i++) for (let j = 0; j < i; j++) pairs.push([i, j]);
    const tests = pairs.map(([i, j]) => pairedTest(scores[i], scores[j]));
    const adjusted = holm(tests.map(test => (test.p === null ? 1 : test.p)));
    const ranks = scores.map(() => [1, scores.length]);
    pairs.forEach(([i, j], n) => {
      const { difference } = tests[n];
      if (adjusted[n] >= ALPHA || Math.abs(difference) < effect) return;
      const [winner, loser] = difference > 0 === (better === "higher") ? [i, j] : [j, i];
      ranks[loser][0]++;
      ranks[winner][1]--;
    });
    return ranks;
  }

  // Who has the best mean, and the p of its being no better than some other; p is null where there is nothing to test.
  function leader(scores, better, effect) {
    if (scores.length < 2 || scores.some(s => !s.size)) return { best: -1, p: null };
    const sign = better === "higher" ? 1 : -1, merit = scores.map(s => sign * mean([...s.values()]));
    const best = merit.indexOf(Math.max(...merit));
    const tests = scores.filter((_, i) => i !== best).map(other => pairedTest(scores[best], other));
    const known = tests.filter(t => t.p !== null && sign * t.difference >= effect).map(t => t.p);
    return { best, p: known.length === tests.length ? Math.max(...holm(known)) : 1 };
  }

  // In each column the index of the one that beats every other, or −1: Holm over rivals, and again over columns.
  function clearBests(columns, better, effect) {
    const leaders = columns.map(scores => leader(scores, better, effect)), tested = leaders.filter(l => l.p !== null);
    const adjusted = holm(tested.map(l => l.p));
    return leaders.map(l => (l.p !== null && adjusted[tested.indexOf(l)] < ALPHA ? l.best : -1));
  }

  return { betainc, clearBests, holm, lgamma, mean, pairedTest, rankRanges, twoSided };
})();
