import { randomUUID } from 'node:crypto';
import { Pool } from 'pg';
import { CellDirectory } from '../../../src/cells/cell-directory.js';
import { checkCell, claimCell, claimFirstCell } from '../../../src/cells/cell-name.js';
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

it('given a copy of the first cell that an owner renames, when the other cell claims it, then it is that one', async () => {
  await new CellDirectory(pool).place('acme', [{ name: 'two', weight: 1 }]);
  await expect(claimCell(pool, 'three')).rejects.toThrow('is that of the cell default');
  // As docs/operations.md has it.
  await db.query(`delete from cell_name; insert into cell_name values ('three')`);
  await claimCell(pool, 'three');
});

it('given databases without names that were exchanged, when the first one is claimed, then the other is found to have the directory, and neither gets a name', async () => {
  const other = await createTestDatabase();
  try {
    await new CellDirectory(pool).place('acme', [{ name: 'two', weight: 1 }]);
    const two = { name: 'two', weight: 1, url: db.url };
    const away = { name: 'three', weight: 1, url: 'postgres://postgres@127.0.0.1:1/none' };
    await expect(claimFirstCell(other.url, [away, two])).rejects.toThrow(
      'the database of the cell two is that of the cell default',
    );
    expect([...(await names()), ...(await other.query('select name from cell_name'))]).toEqual([]);
    await claimFirstCell(db.url, [away, { ...two, url: other.url }]);
    expect(await names()).toEqual([{ name: 'default' }]);
  } finally {
    await other.drop();
  }
});

it('given a role without rights on the name, when it claims, then the error says what to run', async () => {
  const client = await pool.connect();
  const role = `without_${randomUUID().replaceAll('-', '')}`;
  try {
    await client.query(`create role ${role}`);
    await client.query(`grant select on tenant_cell to ${role}`);
    await client.query(`set role ${role}`);
    await expect(claimCell(client, 'two')).rejects.toThrow('run colloquy grant');
  } finally {
    await client.query('reset role');
    await client.query(`drop owned by ${role}`);
    await client.query(`drop role ${role}`);
    client.release();
  }
});
