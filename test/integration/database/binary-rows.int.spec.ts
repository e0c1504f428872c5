import { type Pool } from 'pg';
import { type BinaryFields, binaryRows } from '../../../src/database/binary-rows.js';
import { createPool, DatabaseUnavailable } from '../../../src/database/connection.js';
import { createTestDatabase, type TestDatabase } from '../../support/database.js';

let db: TestDatabase;
beforeAll(async () => {
  db = await createTestDatabase();
});
afterAll(() => db.drop());

const read = (fields: BinaryFields) => ({
  text: fields.text(),
  number: fields.integer(),
  missing: fields.textOrNull(),
  bytes: fields.bytesOrNull()?.toString('hex') ?? null,
});

describe.each([
  ['a connection', {}],
  ['a connection through a pooler', { throughPooler: true }],
])('the rows of a query in binary form, on %s', (_, options) => {
  let pool: Pool;
  beforeAll(() => {
    pool = createPool(db.url, 'test', options);
  });
  afterAll(() => pool.end());

  it('given more of them than come at once, when they are read, then each field is what it was', async () => {
    const rows = await binaryRows(
      pool,
      `select '„' || n || '“', -n, case when n % 2 = 0 then 'two' end,
              case when n % 3 > 0 then sha256(n::text::bytea) end
       from generate_series(1, 9000) n order by n`,
      read,
    );

    const expected = await db.query(
      `select '„' || n || '“' as text, -n as number, case when n % 2 = 0 then 'two' end as missing,
              case when n % 3 > 0 then encode(sha256(n::text::bytea), 'hex') end as bytes
       from generate_series(1, 9000) n order by n`,
    );
    expect(rows).toEqual(expected);
  });

  it('given none, when they are read, then there are none', async () => {
    expect(await binaryRows(pool, `select 'a', 1, null::text, null::bytea where false`, read)).toEqual([]);
  });

  it('given a statement that fails in the middle, when it is read, then that is its error, and the connection is of use', async () => {
    await expect(
      binaryRows(pool, `select 'a', 1 / (500 - n), 'b', null::bytea from generate_series(1, 900) n`, read),
    ).rejects.toMatchObject({ code: '22012' });
    expect(await binaryRows(pool, `select 'a', 1, 'b', null::bytea`, read)).toEqual([
      { text: 'a', number: 1, missing: 'b', bytes: null },
    ]);
  });
});

it('given a database that is away, when rows are read, then it is told to be', async () => {
  const pool = createPool('postgres://localhost:1/none', 'test');
  await expect(binaryRows(pool, 'select 1', read)).rejects.toThrow(DatabaseUnavailable);
  await pool.end();
});
