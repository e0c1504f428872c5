import { Pool } from 'pg';
import { CellDirectory } from '../../../src/cells/cell-directory.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';

const CELLS = [
  { name: 'default', weight: 1 },
  { name: 'two', weight: 1 },
];

let db: TestDatabase;
let pool: Pool;
beforeEach(async () => {
  db = await createTestDatabase();
  pool = new Pool({ connectionString: db.url, max: 8 });
});
afterEach(async () => {
  await pool.end();
  await db.drop();
});

it('given nodes that see a tenant at the same time and choose differently, when all of them place it, then they agree', async () => {
  const tenants = Array.from({ length: 20 }, (_, index) => `tenant-${index}`);
  for (const tenant of tenants) {
    const nodes = Array.from({ length: 8 }, (_, index) => ({
      directory: new CellDirectory(pool),
      // As during a change of the weights.
      cells: CELLS.map((cell, at) => ({ ...cell, weight: index % 2 === at ? 1 : 0 })),
    }));
    const placed = await Promise.all(nodes.map(({ directory, cells }) => directory.place(tenant, cells)));
    expect(new Set(placed).size).toBe(1);
    for (const { directory } of nodes) {
      expect(directory.remembered(tenant)).toBe(placed[0]);
      expect(await directory.find(tenant)).toBe(placed[0]);
    }
  }
  const counted = await new CellDirectory(pool).count();
  expect([...counted.values()].reduce((sum, count) => sum + count, 0)).toBe(tenants.length);
});

it('given places, when another node loads the directory, then it finds them without asking', async () => {
  const cell = await new CellDirectory(pool).place('acme', CELLS);
  const directory = new CellDirectory(pool);
  expect(directory.remembered('acme')).toBeUndefined();
  await directory.load();
  expect(directory.remembered('acme')).toBe(cell);
  expect(await directory.find('nobody')).toBeUndefined();
});
