// How evenly tenants of uneven size fill cells, by the code that chooses a cell for a new tenant. Prints a table.
// Usage: node bench/scaling/cells.mjs [tenants]
import { product } from '../support/product.mjs';
import { quantile } from '../support/stats.mjs';

const TENANTS = Number(process.argv[2] ?? 10_000);
const RUNS = 10;
/** Sizes by rank to the power of minus this: 1 is Zipf's law, in which the largest of 10 000 has a tenth of all. */
const UNEVEN = { even: 0, 'uneven (0.5)': 0.5, 'very uneven (0.8)': 0.8, "Zipf's law (1)": 1 };

const { choose } = product('dist/cells/cell-directory.js');

const rows = [];
for (const count of [3, 10, 100]) {
  const cells = Array.from({ length: count }, (_, n) => ({ name: `cell-${n}`, weight: 1 }));
  const homes = Array.from({ length: RUNS }, (_, run) =>
    Array.from({ length: TENANTS }, (__, rank) => choose(`run-${run}-tenant-${rank}`, cells)),
  );
  for (const [name, power] of Object.entries(UNEVEN)) {
    const sizes = Array.from({ length: TENANTS }, (_, rank) => (rank + 1) ** -power);
    const mean = sizes.reduce((sum, size) => sum + size, 0) / count;
    const fullest = homes.map((cellOf) => {
      const loads = new Map();
      cellOf.forEach((cell, rank) => loads.set(cell, (loads.get(cell) ?? 0) + sizes[rank]));
      return Math.max(...loads.values()) / mean;
    });
    rows.push({
      cells: count,
      tenants: name,
      'largest tenant / mean cell': (sizes[0] / mean).toFixed(2),
      'fullest cell / mean cell': `${quantile(fullest, 0.5).toFixed(2)} (at most ${Math.max(...fullest).toFixed(2)} in ${RUNS})`,
    });
  }
}
console.table(rows);
