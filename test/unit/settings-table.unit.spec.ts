import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { settingsTable } from '../support/settings-table.js';

const PAGE = join(__dirname, '../../docs/operations.md');
const TABLE = /(?<=<!-- settings: npm run docs:settings -->\n).*?(?=\n<!-- end of settings -->)/s;

it('given the schema of the settings, when their table is made, then it is the one of docs/operations.md; `npm run docs:settings` updates it', () => {
  const page = readFileSync(PAGE, 'utf8');
  if (process.env['UPDATE_DOCS'] === '1')
    writeFileSync(
      PAGE,
      page.replace(TABLE, () => settingsTable()),
    );
  expect(TABLE.exec(readFileSync(PAGE, 'utf8'))?.[0]).toBe(settingsTable());
});
