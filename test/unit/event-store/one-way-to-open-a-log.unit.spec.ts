import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

const SOURCES = join(__dirname, '../../../src');

it('given the sources, when a log is opened, then it is by the function that brings the master keys along', () => {
  const opening = readdirSync(SOURCES, { recursive: true, encoding: 'utf8' })
    .filter((path) => path.endsWith('.ts'))
    .filter((path) => /\bEventLog\.open\(/.test(readFileSync(join(SOURCES, path), 'utf8')));
  expect(opening).toEqual(['open-log.ts']);
});
