import fc from 'fast-check';
import { arrayLiteral, bytesArray, integersArray } from '../../../src/database/array-literal.js';
import { type TestDatabase } from '../../support/database.js';
import { logPerTest, sized } from './fixture.js';

let db: TestDatabase;
logPerTest((made) => {
  db = made;
});

const read = async (type: string, values: Parameters<typeof arrayLiteral>[0]): Promise<unknown> => {
  const [row] = await db.query<{ values: unknown }>(`select to_jsonb($1::${type}[]) as values`, [
    arrayLiteral(values),
  ]);
  return row?.values;
};

it('given texts with every character that is special in an array literal, when PostgreSQL reads them, then they are unchanged', async () => {
  const texts = [
    '',
    ' ',
    'null',
    'NULL',
    'a,b',
    '{}',
    '"',
    '\\',
    '\\"',
    "'",
    'ä\n\t',
    'x y',
    '{"a": [1]}',
    null,
    '1',
  ];
  expect(await read('text', texts)).toEqual(texts);
  expect(await read('text', [])).toEqual([]);
});

it('given any texts, when PostgreSQL reads them, then they are unchanged', async () => {
  const text = fc.string({ unit: 'grapheme' }).filter((one) => !one.includes('\0'));
  await fc.assert(
    fc.asyncProperty(fc.array(fc.option(text)), async (texts) => {
      expect(await read('text', texts)).toEqual(texts);
    }),
    { seed: 20_261_122, numRuns: sized(1_000, 100) },
  );
});

it('given numbers and booleans, when PostgreSQL reads them, then they are unchanged', async () => {
  expect(await read('bigint', [0, -1, 2 ** 52, undefined])).toEqual([0, -1, 2 ** 52, null]);
  expect(await read('boolean', [true, false, null])).toEqual([true, false, null]);
});

it('given bytes, when PostgreSQL reads them, then they are unchanged', async () => {
  const columns = [
    [Buffer.from([0, 92, 34, 255]), null, Buffer.alloc(0), undefined, Buffer.alloc(100_000, 7)],
    [null, Buffer.from('x')],
  ];
  for (const column of columns) {
    const [row] = await db.query<{ values: Buffer[] }>('select $1::bytea[] as values', [
      bytesArray(column, (value) => value),
    ]);
    expect(row?.values).toEqual(column.map((value) => value ?? null));
  }
  expect(bytesArray([null, undefined], (value) => value)).toBeNull();
});

it('given lists of whole numbers, when PostgreSQL reads them, then they are one behind the other', async () => {
  for (const lists of [[], [[]], [[1], [], [-1, 2 ** 31 - 1, -(2 ** 31)], [0]]]) {
    const [row] = await db.query<{ values: number[] }>('select $1::integer[] as values', [
      integersArray(lists),
    ]);
    expect(row?.values).toEqual(lists.flat());
  }
});
