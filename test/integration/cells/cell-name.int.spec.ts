import { Pool } from 'pg';
import { CellDirectory } from '../../../src/cells/cell-directory.js';
import { checkCell, claimCell } from '../../../src/cells/cell-name.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';

let db: TestDatabase;
let pool: Pool;
beforeEach(async () => {
  db = await createTestDatabase();
  pool = new Pool({ connectionString: db.url, max: 4 });
});
afterEach(async () => {
  await pool.end();
  await db.drop();
});

const names = () => db.query<{ name: string }>('select name from cell_name');

it('given nodes that start at the same time as different cells, when all claim one database, then it is one of these, and the others are refused', async () => {
  const claims = ['two', 'three', 'two', 'three'].map((name) => claimCell(pool, name).then(() => name));
  const settled = await Promise.allSettled(claims);
  const [named] = await names();
  const claimed = settled.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []));
  expect(claimed).toEqual([named?.name, named?.name]);
  for (const one of settled)
    if (one.status === 'rejected') expect(one.reason).toMatchObject({ name: 'ConfigError' });
});

it('given a database without a name, when it is only compared, then it gets none', async () => {
  await checkCell(pool, 'two');
  expect(await names()).toEqual([]);
  await claimCell(pool, 'three');
  await expect(checkCell(pool, 'two')).rejects.toThrow(
    'the database of the cell two is that of the cell three',
  );
  await checkCell(pool, 'three');
});

it('given the first cell of a deployment that is older than names, when it is given to another cell, then it is refused and gets no name', async () => {
  await new CellDirectory(pool).place('acme', [{ name: 'two', weight: 1 }]);
  await expect(claimCell(pool, 'two')).rejects.toThrow(
    'the database of the cell two is that of the cell default',
  );
  expect(await names()).toEqual([]);
  await claimCell(pool, 'default');
});

it('given a database that an owner renames, when the other cell claims it, then it is that one', async () => {
  await claimCell(pool, 'two');
  // As docs/operations.md has it.
  await db.query(`update cell_name set name = 'three'`);
  await claimCell(pool, 'three');
});

it('given a role without rights on the name, when it claims, then the error says what to run', async () => {
  const client = await pool.connect();
  try {
    await client.query('create role without_rights');
    await client.query('grant select on tenant_cell to without_rights');
    await client.query('set role without_rights');
    await expect(claimCell(client, 'two')).rejects.toThrow('run colloquy grant');
  } finally {
    await client.query('reset role');
    await client.query('drop owned by without_rights');
    await client.query('drop role without_rights');
    client.release();
  }
});
