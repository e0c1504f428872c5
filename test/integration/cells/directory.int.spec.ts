import { Pool } from 'pg';
import { CellDirectory } from '../../../src/cells/cell-directory.js';
import { eventually } from '../../support/http.js';
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
      expect(directory.lastSeen(tenant)).toBe(placed[0]);
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
  directory.close();
});

it('given nodes that know a place, when the tenant is on its way, then they ask for it each time, until it has arrived', async () => {
  const other = new CellDirectory(pool);
  const cell = await other.place('acme', CELLS);
  const directory = new CellDirectory(pool);
  let changes = 0;
  await directory.load(() => {
    changes += 1;
  });
  const way = { tenant: 'acme', from: cell, to: 'elsewhere' };
  await other.announce(way);
  await other.announce(way);
  await eventually(() => Promise.resolve(changes > 0));
  expect(directory.remembered('acme')).toBeUndefined();
  expect(await directory.find('acme')).toBe(cell);
  expect(directory.remembered('acme')).toBeUndefined();
  await expect(other.announce({ ...way, to: 'nowhere' })).rejects.toThrow('on its way to another cell');
  const before = changes;
  await other.settle(way, 'elsewhere');
  await eventually(() => Promise.resolve(changes > before));
  expect(directory.remembered('acme')).toBe('elsewhere');
  directory.close();
});

it('given a directory that cannot be read, when a while has passed, then no place is trusted, until it can be read again', async () => {
  await new CellDirectory(pool).place('acme', CELLS);
  const own = new Pool({ connectionString: db.url, max: 1 });
  const directory = new CellDirectory(own);
  await directory.load();
  expect(directory.remembered('acme')).toBeDefined();
  const held = await own.connect();
  await eventually(() => Promise.resolve(!directory.isLooking));
  expect(directory.remembered('acme')).toBeUndefined();
  expect(directory.lastSeen('acme')).toBeDefined();
  held.release();
  await eventually(() => Promise.resolve(directory.isLooking));
  expect(directory.remembered('acme')).toBeDefined();
  directory.close();
  await own.end();
});
